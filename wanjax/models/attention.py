"""Scaled dot-product attention: softmax(q kᵀ / √d) v, without a mask.

One function, several ways to compute it, all with the softmax's statistics in float32:

``plain``      the formula; its memory grows with N · M.
``blockwise``  queries in blocks (:mod:`wanjax.models.blockwise`), on any platform; its memory grows with M.
``splash``     the TPU's kernel (:mod:`wanjax.models.splash`).
``cudnn``      the GPU's kernel, flash attention of cuDNN (:mod:`wanjax.models.cudnn`); 16-bit operands.
``auto``       by length, platform and dtype: the formula for short sequences; for others the kernel of the platform,
               and blocks where there is none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax import precision
from wanjax.models import blockwise, cudnn, splash
from wanjax.models.varying import marked, varying

IMPLEMENTATIONS = ("auto", "plain", "blockwise", "splash", "cudnn")
_SHORT = 256 * 256  # products of lengths up to which a loop over blocks costs more than it saves
_LARGEST_CUDNN_HEAD = 128  # GPUs before Hopper; from there on 256
_DEFAULT_BLOCKS = splash.SplashBlocks()

_Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str = "auto", mesh: Mesh | None = None,
    splash_blocks: splash.SplashBlocks = _DEFAULT_BLOCKS, name: str = "", valid: int | None = None,
) -> jax.Array:  # fmt: skip
    """softmax(q kᵀ / √d) v.

    Args:
        q: [B, N, K, d].
        k: [B, M, K, d].
        v: [B, M, K, d].
        implementation: of :data:`IMPLEMENTATIONS`.
        mesh: that the arrays lie on, None for one device of the default platform. Heads may be sharded over
            ``tensor``; over other axes, this is called per shard.
        splash_blocks: sizes that the TPU's kernel works with.
        name: that ``jax.checkpoint`` knows the result and the softmax's statistics by, for :func:`keeps`; empty for
            none.
        valid: of self-attention, tokens from this number on are padding: not attended to, and what the result holds
            for them is finite and means nothing. Their gradient has to be zero. None: there is no padding.

    Returns:
        [B, N, K, d] in q's dtype.

    Raises:
        ValueError: an unknown implementation, or one that this platform, dtype or size of heads does not have.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    queries, keys = ((x.shape[0], valid or x.shape[1], *x.shape[2:]) for x in (q, k))
    way = chosen(implementation, platform, q.dtype, queries, keys)
    if valid is not None and way != "splash":
        whole = (x[:, :valid] for x in (q, k, v))
        out = attention(*whole, implementation=way, mesh=mesh, name=name)
        return jnp.pad(out, ((0, 0), (0, q.shape[1] - valid), (0, 0), (0, 0)))
    if way == "plain":
        out = _plain(q, k, v)
        return checkpoint_name(out, name) if name else out
    q, k, v = _varying_alike(q, k, v)
    shards = _Shards(mesh, q)
    if way == "blockwise" and shards.over is None:  # of plain operations: it needs no shard_map of its own
        return _blockwise(name).plain(q, k, v)
    kernel = {"splash": lambda: _splash(splash_blocks, valid), "cudnn": _cudnn, "blockwise": lambda: _blockwise(name)}
    return _fused(shards, kernel[way](), name, q, k, v)


def tile(
    implementation: str, platform: str, dtype: Any, queries: tuple[int, ...], keys: tuple[int, ...]
) -> int:
    """How many tokens the implementation takes at least, and pads others to. Arguments: as for :func:`chosen`."""
    return splash.LANES if chosen(implementation, platform, dtype, queries, keys) == "splash" else 1


def chosen(implementation: str, platform: str, dtype: Any, queries: tuple[int, ...], keys: tuple[int, ...]) -> str:
    """What an implementation stands for, of those but "auto".

    Args:
        implementation: of :data:`IMPLEMENTATIONS`.
        platform: "cpu", "gpu" or "tpu".
        dtype: of the operands.
        queries, keys: [B, N, K, d] and [B, M, K, d], the shapes of q and k.

    Raises:
        ValueError: as :func:`attention`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    size = queries[-1]
    narrow = jnp.dtype(dtype).name in ("bfloat16", "float16")
    if implementation == "auto":
        if queries[1] * keys[1] <= _SHORT:
            return "plain"
        if platform == "gpu" and narrow and size % 8 == 0 and size <= _LARGEST_CUDNN_HEAD:
            return "cudnn"
        return "splash" if platform == "tpu" else "blockwise"
    needs = {"splash": "tpu", "cudnn": "gpu"}.get(implementation, platform)
    if needs != platform:
        raise ValueError(
            f"attention {implementation!r} is a kernel of {needs.upper()}s, and this is compiled for {platform}: choose"
            f" 'auto', or give the model a mesh of {needs.upper()} devices to compile for some that are not here"
        )
    if implementation == "cudnn" and not narrow:
        raise ValueError(f"attention 'cudnn' takes bfloat16 or float16 operands, not {jnp.dtype(dtype).name}: choose"
                         f" such a dtype, or 'blockwise'")  # fmt: skip
    if implementation == "cudnn" and size % 8:
        raise ValueError(f"attention 'cudnn' takes heads whose size is a multiple of 8, not {size}: choose 'auto' or"
                         " 'blockwise'")  # fmt: skip
    return implementation


def keeps(*names: str, host: bool = False) -> Callable[..., Any]:
    """A policy of ``jax.checkpoint``: what attention of such a name gives is kept, all else is recomputed.

    With the results and the softmax's statistics at hand, the backward pass of a kernel needs no second forward pass.
    Of the plain formula the result is kept.

    Args:
        names: of attention, or of other values that ``jax.ad_checkpoint.checkpoint_name`` named.
        host: whether it is kept in the hosts' pinned memory, and comes back to the device when it is needed.
    """
    if not host:
        return jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(), names_which_can_be_offloaded=names, offload_src="device",
        offload_dst="pinned_host",
    )  # fmt: skip


def _plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q = q * jnp.asarray(1.0 / math.sqrt(q.shape[-1]), q.dtype)
    product = functools.partial(jnp.einsum, precision=precision.of(q.dtype))
    logits = product("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return product("bknm,bmkd->bnkd", weights, v)


class _Shards:
    """A kernel on the shards of a mesh, all of whose axes have to be manual around it: over ``tensor``, its heads.

    A kernel says of no result over which axes it varies, which ``jax.shard_map`` then cannot check. So this check is
    off around the kernel, forward and backward each, and what comes out is marked as varying over the axes that q, k
    and v vary over; both passes being written out, the mark is never transposed into a sum. Arrays cross the border as
    [B, N, K·d]: an operation inside forgets the mark.

    Attributes:
        run: ``jax.shard_map`` around a function, or nothing where there is one device.
        over: mesh axis that heads are split over, if any.
    """

    def __init__(self, mesh: Mesh | None, q: jax.Array):
        self._size, self._varying = q.shape[-1], varying(q)
        self.run: Callable[..., Callable[..., Any]] = lambda function, in_specs, out_specs: function
        self.over: str | None = None
        if mesh is None or mesh.size == 1:
            return
        around = jax.sharding.get_abstract_mesh()
        already = tuple(around.manual_axes)
        ways = mesh.shape["tensor"]
        self.over = "tensor" if ways > 1 and q.shape[2] % ways == 0 else None
        self.run = functools.partial(
            jax.shard_map, mesh=around if already else mesh, axis_names=set(mesh.axis_names) - set(already),
            check_vma=False,
        )  # fmt: skip

    def split(self, x: jax.Array) -> jax.Array:
        """[B, N, K·d] -> [B, N, K, d]."""
        return x.reshape(*x.shape[:2], -1, self._size)

    def joined(self, x: jax.Array) -> jax.Array:
        """[B, N, K, d] -> [B, N, K·d]."""
        return x.reshape(*x.shape[:2], -1)

    def marked(self, x: jax.Array) -> jax.Array:
        """What came out of :attr:`run`."""
        return marked(x, self._varying)


class _Fused(NamedTuple):
    """A kernel with a backward pass of its own; arrays are [B, N, K, d], statistics float32 [B, K, N].

    Attributes:
        plain: (q, k, v) -> the result, where nothing is differentiated.
        forward: (q, k, v) -> the result, and the logarithm of the softmax's denominator.
        backward: (q, k, v, result, statistics, its gradient) -> gradients of q, k and v.
    """

    plain: _Kernel
    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def _cudnn() -> _Fused:
    forward = functools.partial(cudnn.forward, heads_first=False)
    return _Fused(lambda q, k, v: forward(q, k, v)[0], forward, functools.partial(cudnn.backward, heads_first=False))


def _blockwise(name: str) -> _Fused:
    return _of_heads(functools.partial(blockwise.heads, name=name), blockwise.forward, blockwise.backward)


def _splash(blocks: splash.SplashBlocks, valid: int | None) -> _Fused:
    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(function, blocks=blocks, valid=valid)

    return _of_heads(told(splash.heads), told(splash.forward), told(splash.backward))


def _of_heads(plain: _Kernel, forward: Callable[..., Any], backward: Callable[..., Any]) -> _Fused:
    """Of functions of [heads, N, d], the last of which takes the sum of the result and its gradient in its place."""

    def apart(x: jax.Array) -> jax.Array:  # [B, N, K, d] -> [B·K, N, d]
        x = x.transpose(0, 2, 1, 3)
        return x.reshape(-1, *x.shape[2:])

    def together(x: jax.Array, clips: int) -> jax.Array:  # [B·K, N, d] -> [B, N, K, d]
        return x.reshape(clips, -1, *x.shape[1:]).transpose(0, 2, 1, 3)

    def of_clips(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return together(plain(apart(q), apart(k), apart(v)), len(q))

    def with_statistics(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, statistics = forward(apart(q), apart(k), apart(v))
        return together(out, len(q)), statistics.reshape(len(q), -1, statistics.shape[-1])

    def gradients(
        q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, statistics: jax.Array, d_out: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        along = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).transpose(0, 2, 1)
        statistics, along = (x.reshape(-1, x.shape[-1]) for x in (statistics, along))
        d_q, d_k, d_v = backward(apart(q), apart(k), apart(v), statistics, along, apart(d_out))
        return together(d_q, len(q)), together(d_k, len(q)), together(d_v, len(q))

    return _Fused(of_clips, with_statistics, gradients)


def _fused(shards: _Shards, kernel: _Fused, name: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """What is kept by name is named outside of the shard_map, whose border it crosses anyway."""
    operand, statistic = P(None, None, shards.over), P(None, shards.over)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        own = lambda *x: shards.joined(kernel.plain(*map(shards.split, x)))
        return shards.marked(shards.run(own, in_specs=operand, out_specs=operand)(q, k, v))

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        def own(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out, statistics = kernel.forward(*map(shards.split, (q, k, v)))
            return shards.joined(out), statistics

        out, statistics = shards.run(own, in_specs=operand, out_specs=(operand, statistic))(q, k, v)
        out, statistics = shards.marked(out), shards.marked(statistics)
        if name:
            out, statistics = checkpoint_name(out, name), checkpoint_name(statistics, name)
        return out, (q, k, v, out, statistics)

    def backward(kept: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
        def own(*of: jax.Array) -> tuple[jax.Array, ...]:
            q, k, v, out, statistics, d_out = of
            q, k, v, out, d_out = map(shards.split, (q, k, v, out, d_out))
            return tuple(map(shards.joined, kernel.backward(q, k, v, out, statistics, d_out)))

        specs = (operand, operand, operand, operand, statistic, operand)
        return tuple(map(shards.marked, shards.run(own, in_specs=specs, out_specs=operand)(*kept, d_out)))

    whole = jax.custom_vjp(plain)
    whole.defvjp(forward, backward)
    return shards.split(whole(*map(shards.joined, (q, k, v))))


def _varying_alike(*operands: jax.Array) -> tuple[jax.Array, ...]:
    """Each marked as varying over all manual axes that one of them varies over, so that all gradients do, too."""
    return tuple(marked(x, varying(*operands)) for x in operands)
