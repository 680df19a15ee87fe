"""The stack of blocks, in plain JAX: one scan over stacked parameters, written per shard.

Its body takes its own block's parameters from wherever they lie: from host memory, as shards of a mesh, with low-rank
changes beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax import partition
from wanjax.models import attention, chunks, lora, rows, streaming
from wanjax.models.dit_config import DiTConfig
from wanjax.models.dit_layers import SELF_ATTENTION, Block
from wanjax.models.rows.dit import dit_rows
from wanjax.models.sequence import Shards
from wanjax.models.varying import marked

_MANUAL = ("data", "fsdp", "seq")  # axes of the mesh that the stack is written per shard of
_INPUT = "block_input"
_WHOLE = -1  # in the place of the axis of a parameter that is split over tensor
# Of a block, what is as quick to compute again as to keep: on a CPU a kept value is written, copied and read back.
_CHEAP = frozenset({
    "add", "add_any", "sub", "mul", "div", "neg", "square", "one_minus_square", "integer_pow", "sqrt", "rsqrt", "tanh",
    "reduce_sum", "convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "split",
    "pad", "concatenate", "stack",
})  # fmt: skip


def _but_cheap(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy that keeps what products and attention give, so that no such work is done twice."""
    return primitive.name not in _CHEAP


def _but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy that keeps everything but gathered parameters, which would undo the sharding of the parameters."""
    return bool(primitive.name != "all_gather")


_POLICIES = {
    "none": _but_cheap,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": attention.keeps(SELF_ATTENTION),
    "offload": attention.keeps(SELF_ATTENTION, _INPUT, host=True),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run(
    config: DiTConfig, mesh: Mesh | None, taps: tuple[int, ...], blocks: Any, changes: Any, x: jax.Array,
    text: jax.Array, time: jax.Array, angles: Any, tokens: int,
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
    """All blocks.

    Args:
        config, mesh: of the network.
        taps: numbers of blocks after which the state is wanted.
        blocks: stacked parameters; leaves in host memory come to the device block by block.
        changes: of those, as :mod:`wanjax.models.lora` has them; empty for none.
        x: float32 [B, N, D].
        text: [B, L, D].
        time: float32 [B, 1 or N, 6, D].
        angles: rotary tables, 2 × [N, d/2].
        tokens: how many of N are none of padding, which stands at the end and is not attended to.
    Returns: [B, N, D], and the states [taps, B, N, D] (None without taps).
    """
    if mesh is None or all(mesh.shape[axis] == 1 for axis in _MANUAL):
        return _scan(
            config, taps, blocks, changes, x, text, time, angles, mesh=mesh, shards=None, specs=None, manual=()
        )
    # a gather over several axes of a torus at once compiles to a padded all-reduce
    torus, parts = partition.over_torus(mesh, "fsdp")
    manual = tuple(part for axis in _MANUAL for part in parts[axis] if torus.shape[part] > 1)
    axes = rows.logical_axes(dit_rows(config))["blocks"]
    specs = jax.tree.map(
        lambda names, w: _manual_part(partition.spec(mesh, names, w.shape), parts, manual),
        axes, blocks, is_leaf=lambda node: isinstance(node, tuple),
    )  # fmt: skip
    split = jax.tree.map(
        lambda names, w: _split_over("tensor", partition.spec(mesh, names, w.shape)),
        axes, blocks, is_leaf=lambda node: isinstance(node, tuple),
    )  # fmt: skip
    beside = lora.specs(specs, changes, stacked=True)
    batch = tuple(part for axis in partition.BATCH for part in parts[axis] if part in manual) or None
    seq = "seq" if "seq" in manual else None
    shards = None if seq is None else Shards.of(config.sequence, config.heads, mesh, tokens)
    per_shard = jax.shard_map(
        lambda b, c, *args: _scan(config, taps, b, c, *args, mesh=torus, shards=shards, specs=(specs, split, beside),
                                  manual=manual),
        mesh=torus,
        in_specs=(specs, beside, P(batch, seq), P(batch),
                  P(batch, seq if time.shape[1] > 1 else None), P(seq)),
        out_specs=(P(batch, seq), P(None, batch, seq) if taps else None),
        axis_names=set(manual),
    )  # fmt: skip
    return per_shard(blocks, changes, x, text, time, angles)


def _manual_part(spec: P, parts: Mapping[str, tuple[str, ...]], manual: tuple[str, ...]) -> P:
    """The spec with every axis in its parts, without automatic ones: shard_map's in_specs may name manual axes only."""

    def own(entry: Any) -> tuple[str, ...] | None:
        return tuple(part for name in partition.names_of(entry) for part in parts[name] if part in manual) or None

    return P(*map(own, spec))


def _split_over(axis: str, spec: P) -> int:
    """Which axis of one layer's parameter a mesh axis divides; :data:`_WHOLE` for none."""
    return next((i for i, entry in enumerate(spec[1:]) if axis in partition.names_of(entry)), _WHOLE)


def _scan(
    config: DiTConfig, taps: tuple[int, ...], blocks: Any, changes: Any, x: jax.Array, text: jax.Array,
    time: jax.Array, angles: Any, *, mesh: Mesh | None, shards: Shards | None, specs: Any, manual: tuple[str, ...],
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
    """The stack on one shard.

    ``specs``: how stacked parameters are sharded over ``manual`` axes, which of their axes ``tensor`` splits, and how
    changes are sharded.
    """
    block = Block(config, shards, mesh)
    # what waits on the host waits in the compute dtype; the stream from block to block stays in float32
    rounded = config.remat == "offload" and config.dtype != "float32"

    def body(x: jax.Array, at: Any) -> jax.Array:
        own, change = at
        own, factors = lora.changed(own, change), lora.factors(change)  # on the shards: a gather rounds
        if manual:
            gather = functools.partial(_gather, config, manual)
            own = jax.tree_util.tree_map_with_path(gather, own, specs[0], specs[1])
            factors = jax.tree_util.tree_map_with_path(gather, factors, lora.factors(specs[2]))
        variables = {"params": own, "lora": factors}
        kept = checkpoint_name(x.astype(config.dtype) if rounded else x, _INPUT)
        if rounded:
            return _block(block, variables, x, kept, text, time, angles)
        return _block(block, variables, kept, None, text, time, angles)

    # jax cannot divide a shard_map within a shard_map into what is kept and what is computed again
    policy = _but_gathered if manual and config.remat == "none" else _POLICIES[config.remat]
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    if not taps:
        return streaming.scan(body, x, (blocks, changes)), None

    # Added, not selected: the backward pass then keeps one number per layer and tap, and no state. It stands outside
    # the rematerialised body for the same reason.
    def tapped(carry: tuple[jax.Array, jax.Array], at: Any) -> tuple[jax.Array, jax.Array]:
        (x, states), (own, here) = carry, at
        x = body(x, own)
        return x, states + here[:, None, None, None] * x

    here = np.asarray([[layer + 1 == tap for tap in taps] for layer in range(config.layers)], np.float32)
    states = jnp.stack([jnp.zeros_like(x)] * len(taps))
    return streaming.scan(tapped, (x, states), ((blocks, changes), here))


def _block(
    block: Block, variables: dict[str, Any], x: jax.Array, kept: jax.Array | None, text: jax.Array, time: jax.Array,
    angles: Any,
) -> jax.Array:  # fmt: skip
    """The block, in chunks of tokens where its config says so; ``variables``: its parameters, and factors beside. With
    ``kept`` it reads that, and its change is added to the stream x."""

    def part(method: str, variables: Any, *given: Any) -> Any:
        return block.apply(variables, *given, method=method)

    def changed(x: jax.Array, read: jax.Array, out: jax.Array) -> jax.Array:
        return out if kept is None else x + (out - read)

    size = block.config.chunk_tokens
    if not 0 < size < x.shape[1]:
        read = chunks.read(x, kept)
        return changed(x, read, part("__call__", variables, read, text, time, angles))
    per_token = time.shape[1] > 1  # else it belongs to all tokens of a clip

    def before(whole: Any, x: jax.Array, read: jax.Array, others: Any, tables: Any) -> Any:
        variables, time = whole
        cos, sin = tables
        return part("before", variables, read, *others or (time,), (cos[0], sin[0]))

    def after(whole: Any, x: jax.Array, read: jax.Array, others: Any, _: Any) -> jax.Array:
        variables, time, text = whole
        attended, *of_token = others
        return changed(x, read, part("after", variables, read, attended, text, *of_token or (time,)))

    shared, each = (None, (time,)) if per_token else (time, ())
    norms = ("norm_q", "norm_k")
    first = _only(variables, modulation=(), self_attention=("q", "k", "v", *norms))
    last = _only(variables, modulation=(), cross_norm=(), ffn=(), self_attention=("o", *norms),
                 cross_attention=("q", "o", *norms))  # fmt: skip
    tables = tuple(table[None] for table in angles)
    qkv = chunks.over_tokens(before, size, (first, shared), x, each, tables, kept=kept)
    attended = block.attend(*qkv)
    of_text = _only(variables, modulation=(), cross_attention=("k", "v", *norms))
    whole = (last, shared, part("text", of_text, text))
    return cast(jax.Array, chunks.over_tokens(after, size, whole, x, (attended, *each), kept=kept, in_place=True))


def _only(variables: Mapping[str, Any], **names: tuple[str, ...]) -> dict[str, Any]:
    """Of each collection those of a block's modules that are named, and of them what is named, or all."""

    def of(tree: Any, inner: tuple[str, ...]) -> Any:
        return {name: tree[name] for name in inner if name in tree} if inner else tree

    return {kind: {name: of(tree[name], inner) for name, inner in names.items() if name in tree}
            for kind, tree in variables.items()}  # fmt: skip


def _gather(
    config: DiTConfig, manual: tuple[str, ...], path: Any, w: jax.Array, spec: P, split: int = _WHOLE
) -> jax.Array:
    """One whole parameter of a block from its shards, of the part that ``tensor`` leaves to a device; ``split`` is the
    axis that it divides. The transpose reduce-scatters its gradient.

    Marked as varying over the axes that it is copied on *before* the gather, so that the gradient is reduce-scattered
    first and only the shard is summed over ``data``, in the parameters' dtype. Matrices travel in the compute dtype,
    their gradients as the config says.
    """
    entries = [partition.names_of(entry) for entry in spec[1:]]
    sharded = {name for names in entries for name in names}
    w = marked(w, set(manual) - sharded)
    wire = config.dtype if path[-1].key == "kernel" else w.dtype.name
    back = wire if config.grad_reduce_dtype == "auto" or wire == w.dtype.name else config.grad_reduce_dtype
    steps = tuple((axis, name) for axis, names in enumerate(entries) for name in reversed(names))  # innermost first
    return _gathered(_Way(steps, split, w.dtype.name, wire, back), w)


class _Way(NamedTuple):
    """Steps of a gather, each along an axis of the array over an axis of the mesh; the axis that ``tensor`` splits;
    types of the shard, of what is gathered, and of the gradient while it is summed."""

    steps: tuple[tuple[int, str], ...]
    split: int
    shard: str
    forward: str
    backward: str


def _whole(way: _Way, w: jax.Array) -> jax.Array:
    def gather(w: jax.Array) -> jax.Array:
        for axis, name in way.steps:
            w = jax.lax.all_gather(w, name, axis=axis, tiled=True)
        return w

    return _on_own_part(way, gather, w.astype(way.forward))


def _scattered(way: _Way, _: None, d_w: jax.Array) -> tuple[jax.Array]:
    def scatter(d_w: jax.Array) -> jax.Array:
        for axis, name in reversed(way.steps):
            d_w = jax.lax.psum_scatter(d_w, name, scatter_dimension=axis, tiled=True)
        return d_w

    return (_on_own_part(way, scatter, d_w.astype(way.backward)).astype(way.shard),)


def _on_own_part(way: _Way, function: Callable[[jax.Array], jax.Array], w: jax.Array) -> jax.Array:
    """What is sent along other axes is gathered over ``tensor`` first, unless that is manual, too."""
    if way.split == _WHOLE or not way.steps:
        return function(w)
    spec, around = P(*(None,) * way.split, "tensor"), jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=around, axis_names={"tensor"}, in_specs=spec, out_specs=spec)(w)


_gathered = jax.custom_vjp(_whole, nondiff_argnums=(0,))
_gathered.defvjp(lambda way, w: (_whole(way, w), None), _scattered)
