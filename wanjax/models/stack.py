"""The stack of blocks, in plain JAX: one scan over stacked parameters, written per shard.

Its body takes its own block's parameters from wherever they lie: from host memory, as shards of a mesh, with low-rank
changes beside them.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax import partition
from wanjax.models import attention, lora, rows, streaming
from wanjax.models.dit_config import DiTConfig
from wanjax.models.dit_layers import SELF_ATTENTION, Block
from wanjax.models.rows.dit import dit_rows
from wanjax.models.sequence import Shards

_GATHERED = "gathered_parameter"
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": attention.keeps(SELF_ATTENTION),
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
    manual = () if mesh is None else tuple(a for a in ("data", "fsdp", "seq") if mesh.shape[a] > 1)
    if mesh is None or not manual:
        return _scan(
            config, taps, blocks, changes, x, text, time, angles, mesh=mesh, shards=None, specs=None, manual=()
        )
    axes = rows.logical_axes(dit_rows(config))["blocks"]
    specs = jax.tree.map(
        lambda names, w: _manual_part(partition.spec(mesh, names, w.shape), manual),
        axes, blocks, is_leaf=lambda node: isinstance(node, tuple),
    )  # fmt: skip
    beside = lora.specs(specs, changes, stacked=True)
    batch = tuple(a for a in partition.BATCH if a in manual) or None
    seq = "seq" if "seq" in manual else None
    shards = None if seq is None else Shards.of(config.sequence, config.heads, mesh, tokens)
    per_shard = jax.shard_map(
        lambda b, c, *args: _scan(config, taps, b, c, *args, mesh=mesh, shards=shards, specs=(specs, beside),
                                  manual=manual),
        mesh=mesh,
        in_specs=(specs, beside, P(batch, seq), P(batch),
                  P(batch, seq if time.shape[1] > 1 else None), P(seq)),
        out_specs=(P(batch, seq), P(None, batch, seq) if taps else None),
        axis_names=set(manual),
    )  # fmt: skip
    return per_shard(blocks, changes, x, text, time, angles)


def _manual_part(spec: P, manual: tuple[str, ...]) -> P:
    """The spec without automatic axes: shard_map's in_specs may name manual axes only."""

    return P(*(tuple(name for name in _names(entry) if name in manual) or None for entry in spec))


def _names(entry: Any) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec, outermost first."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _scan(
    config: DiTConfig, taps: tuple[int, ...], blocks: Any, changes: Any, x: jax.Array, text: jax.Array,
    time: jax.Array, angles: Any, *, mesh: Mesh | None, shards: Shards | None, specs: Any, manual: tuple[str, ...],
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
    """The stack on one shard; ``specs``: how stacked parameters and changes are sharded over ``manual`` axes."""
    block = Block(config, shards, mesh)

    def body(x: jax.Array, at: Any) -> jax.Array:
        own, change = at
        own, factors = lora.changed(own, change), lora.factors(change)  # on the shards: a gather rounds
        if manual:
            gather = functools.partial(_gather, config, manual)
            own, factors = jax.tree.map(gather, own, specs[0]), jax.tree.map(gather, factors, lora.factors(specs[1]))
        return cast(jax.Array, block.apply({"params": own, "lora": factors}, x, text, time, angles))

    if config.remat != "none":
        body = jax.checkpoint(body, policy=_POLICIES[config.remat], prevent_cse=False)
    elif manual:  # even then a gathered block is not kept: it would undo the sharding of the parameters
        keep = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
        body = jax.checkpoint(body, policy=keep, prevent_cse=False)
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


def _gather(config: DiTConfig, manual: tuple[str, ...], w: jax.Array, spec: P) -> jax.Array:
    """One whole parameter of a block from its shards; the transpose reduce-scatters its gradient.

    Marked as varying over the axes that it is copied on *before* the gather, so that the gradient is reduce-scattered
    first and only the shard is summed over ``data``, in the parameters' dtype. Matrices travel in the compute dtype.
    Axis by axis, innermost first: one gather over several axes of a torus compiles to a padded all-reduce.
    """
    entries = [_names(entry) for entry in spec[1:]]
    sharded = {name for names in entries for name in names}
    copied = tuple(name for name in manual if name not in sharded)
    if copied:
        w = jax.lax.pcast(w, copied, to="varying")
    if w.ndim == 2 and w.shape[0] > 6:
        w = w.astype(config.dtype)
    for axis, names in enumerate(entries):
        for name in reversed(names):
            w = jax.lax.all_gather(w, name, axis=axis, tiled=True)
    return checkpoint_name(w, _GATHERED)
