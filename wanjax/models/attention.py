"""Scaled dot-product attention: softmax(q kᵀ / √d) v, without a mask.

One function, several ways to compute it, all with the softmax's statistics in float32:

``plain``      the formula; its memory grows with N · M.
``blockwise``  queries in blocks (:mod:`wanjax.models.blockwise`), on any platform; its memory grows with M.
``splash``     the TPU's kernel (:mod:`wanjax.models.splash`).
``cudnn``      the GPU's kernel, flash attention of cuDNN through ``jax.nn.dot_product_attention``; 16-bit operands.
``auto``       by length, platform and dtype: the formula for short sequences; for others the kernel of the platform,
               and blocks where there is none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax.models import blockwise, splash

IMPLEMENTATIONS = ("auto", "plain", "blockwise", "splash", "cudnn")
_SHORT = 256 * 256  # products of lengths up to which a loop over blocks costs more than it saves
_LARGEST_CUDNN_HEAD = 128  # GPUs before Hopper; from there on 256
_CUDNN_PRIMITIVE = "dot_product_attention_fwd_wrapper"
_DEFAULT_BLOCKS = splash.SplashBlocks()

_Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str = "auto", mesh: Mesh | None = None,
    splash_blocks: splash.SplashBlocks = _DEFAULT_BLOCKS, name: str = "",
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

    Returns:
        [B, N, K, d] in q's dtype.

    Raises:
        ValueError: an unknown implementation, or one that this platform, dtype or size of heads does not have.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    way = chosen(implementation, platform, q.dtype, q.shape, k.shape)
    if way == "plain":
        out = _plain(q, k, v)
        return checkpoint_name(out, name) if name else out
    q, k, v = _varying_alike(q, k, v)
    if way == "cudnn":
        kernel: _Kernel = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    elif way == "splash":
        kernel = _heads_first(functools.partial(splash.heads, blocks=splash_blocks, name=name))
    else:
        kernel = _heads_first(functools.partial(blockwise.heads, name=name))
    whole = mesh is None or mesh.size == 1 or (way == "blockwise" and mesh.shape["tensor"] == 1)
    return kernel(q, k, v) if whole else _per_shard(kernel, cast(Mesh, mesh), q, k, v)


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
    size, even = queries[-1], queries[1] % 2 == keys[1] % 2 == 0
    narrow = jnp.dtype(dtype).name in ("bfloat16", "float16")
    if implementation == "auto":
        if queries[1] * keys[1] <= _SHORT:
            return "plain"
        if platform == "gpu" and narrow and even and size % 8 == 0 and size <= _LARGEST_CUDNN_HEAD:
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
    if implementation == "cudnn" and (size % 8 or not even):
        raise ValueError(f"attention 'cudnn' takes heads whose size is a multiple of 8 and even numbers of queries and"
                         f" keys, not {size}, {queries[1]} and {keys[1]}: choose 'auto' or 'blockwise'")  # fmt: skip
    return implementation


def keeps(name: str) -> Callable[..., bool]:
    """A policy of ``jax.checkpoint``: what attention of that name gives is kept, all else is recomputed.

    With the results and the softmax's statistics at hand, the backward pass of a kernel needs no second forward pass.
    cuDNN's are kept whatever their name: its primitive does not pass one on. Of the plain formula the result is kept.
    """
    named = jax.checkpoint_policies.save_only_these_names(name)

    def policy(primitive: Any, *avals: Any, **params: Any) -> bool:
        return primitive.name == _CUDNN_PRIMITIVE or named(primitive, *avals, **params)

    return policy


def _plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scale = 1.0 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("bnkd,bmkd->bknm", q * jnp.asarray(scale, q.dtype), k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bknm,bmkd->bnkd", weights, v)


def _heads_first(kernel: _Kernel) -> _Kernel:
    """From a function of [heads, N, d] to one of [B, N, K, d]: each head of a clip is one of its own."""

    def of_clips(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        clips, tokens, heads, size = q.shape
        q, k, v = (x.transpose(0, 2, 1, 3).reshape(clips * heads, x.shape[1], size) for x in (q, k, v))
        return kernel(q, k, v).reshape(clips, heads, tokens, size).transpose(0, 2, 1, 3)

    return of_clips


def _per_shard(kernel: _Kernel, mesh: Mesh, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A kernel on the shards of a mesh, all of whose axes have to be manual around it: over ``tensor``, its heads.

    A kernel says of no result over which axes it varies, which ``jax.shard_map`` then cannot check. So this check is
    off around the kernel, forward and backward each, and what comes out is marked as varying over the axes that q, k
    and v vary over; both passes being written out, the mark is never transposed into a sum.
    """
    around = jax.sharding.get_abstract_mesh()
    already = tuple(around.manual_axes)
    varying = tuple(sorted(_varying(q)))
    size, ways = q.shape[-1], mesh.shape["tensor"]
    over = "tensor" if ways > 1 and q.shape[2] % ways == 0 else None
    spec, residuals = P(None, None, over), P(over)
    run = functools.partial(
        jax.shard_map, mesh=around if already else mesh, axis_names=set(mesh.axis_names) - set(already), check_vma=False
    )

    def split(x: jax.Array) -> jax.Array:  # [B, N, K·d] crosses the border: an operation inside forgets the mark
        return x.reshape(*x.shape[:2], -1, size)

    def joined(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1)

    def marked(x: jax.Array) -> jax.Array:
        return jax.lax.pcast(x, varying, to="varying") if varying else x

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        def own(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
            out, pull = jax.vjp(kernel, split(q), split(k), split(v))
            return joined(out), jax.tree.map(lambda x: x[None], pull)  # stacked over the shards, numbers too

        out, pull = run(own, in_specs=spec, out_specs=(spec, residuals))(q, k, v)
        return marked(out), pull

    def backward(pull: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
        def own(pull: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
            pull = jax.tree.map(lambda x: x[0], pull)
            return tuple(joined(x) for x in pull(split(d_out)))

        return tuple(marked(x) for x in run(own, in_specs=(residuals, spec), out_specs=spec)(pull, d_out))

    @jax.custom_vjp
    def whole(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = run(lambda *x: joined(kernel(*map(split, x))), in_specs=spec, out_specs=spec)(q, k, v)
        return marked(out)

    whole.defvjp(forward, backward)
    return split(whole(joined(q), joined(k), joined(v)))


def _varying_alike(*operands: jax.Array) -> tuple[jax.Array, ...]:
    """Each marked as varying over all manual axes that one of them varies over, so that all gradients do, too."""
    every = frozenset[str]().union(*map(_varying, operands))
    return tuple(jax.lax.pcast(x, tuple(sorted(every - _varying(x))), to="varying") for x in operands)


def _varying(x: jax.Array) -> frozenset[str]:
    """Manual axes over which an array is known to vary."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)
