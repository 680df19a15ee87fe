"""Attention on TPU: JAX's splash kernel (Pallas), without a mask and with its fused backward pass.

The kernel works on whole blocks: the arrays are padded to multiples of them, and added keys are given another segment
than all queries, which masks them exactly. Logits, softmax and its statistics are float32; the statistics that the
backward pass reads are one number per head and query.

Source: ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU's vector registers: blocks are multiples of it
PARTIAL_BYTES = 2**30  # of gradients that wait to be summed, in the backward pass


@dataclass(frozen=True)
class SplashBlocks:
    """Tokens that the kernel holds in a chip's fast memory; a shorter sequence takes less.

    Attributes:
        forward: queries, keys, and keys per step, which divide the keys.
        backward: the same of the backward pass, which also holds gradients. It keeps one gradient of all queries per
            block of keys in main memory until they are summed, so that large blocks of keys save memory.

    Raises:
        ValueError: sizes that the kernel cannot have. That a chip's fast memory holds them, its compiler decides.
    """

    forward: tuple[int, int, int] = (1024, 2048, 1024)
    backward: tuple[int, int, int] = (1024, 2048, 1024)

    def __post_init__(self) -> None:
        for name, sizes in (("forward", self.forward), ("backward", self.backward)):
            if len(sizes) != 3 or any(size < LANES or size % LANES for size in sizes) or sizes[1] % sizes[2]:
                raise ValueError(
                    f"blocks of splash attention, {name} = {sizes}: expected queries, keys, keys per step, each a"
                    f" multiple of {LANES}, the last a divisor of the second; such as (1024, 2048, 1024)"
                )


def heads(
    q: jax.Array, k: jax.Array, v: jax.Array, blocks: SplashBlocks, valid: jax.Array | int | None = None
) -> jax.Array:
    """softmax(q kᵀ / √d) v of every head, where nothing is differentiated.

    Args:
        q: [heads, N, d].
        k: [heads, M, d].
        v: [heads, M, d].
        blocks: sizes of the kernel's blocks.
        valid: keys from this number on are masked; None: none are.

    Returns:
        [heads, N, d] in q's dtype.
    """
    kernel = _kernel(len(q), q, k, blocks, save_residuals=False)
    return kernel(*_padded(q, k, v, blocks, valid))[:, : q.shape[1]]


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, blocks: SplashBlocks, valid: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """What :func:`heads` gives, and the logarithm of the softmax's denominator, float32 [heads, N].

    Keys from number ``valid`` on are masked; a query that none is left for has a denominator of next to nothing.
    """
    kernel = _kernel(len(q), q, k, blocks, save_residuals=True)
    out, (statistics,) = kernel(*_padded(q, k, v, blocks, valid))
    return out[:, : q.shape[1]], statistics[:, : q.shape[1]]


def at_once(heads: int, partial: int) -> int:
    """How many heads the backward pass works on at a time; ``partial``: bytes of one head's gradients that wait."""
    return max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * partial <= PARTIAL_BYTES))


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, statistics: jax.Array, along: jax.Array, d_out: jax.Array,
    blocks: SplashBlocks, valid: jax.Array | int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Gradients of q, k and v, without another forward pass; the statistics may be those of more keys than these.

    The kernel writes a gradient of all queries for every block of keys, and these are summed. As many heads are worked
    on at a time as keep them within :data:`PARTIAL_BYTES`; the kernel's grid runs head after head anyway.

    Args:
        q: [heads, N, d].
        k: [heads, M, d].
        v: [heads, M, d].
        statistics: of :func:`forward`, float32 [heads, N].
        along: the sum over d of d_out · out, float32 [heads, N].
        d_out: [heads, N, d], gradient of the result.
        blocks: sizes of the kernel's blocks.
        valid: as for :func:`forward`.
    """
    count, queries, size = q.shape
    keys = k.shape[1]
    long, wide = _lengths(queries, keys, blocks)
    partial = long * size * q.dtype.itemsize * (wide // _fitted(blocks.backward, queries, keys)[1])
    group = at_once(count, partial)
    kernel = _kernel(group, q, k, blocks, save_residuals=False)
    options, sizes = kernel.kwargs, kernel.kwargs["block_sizes"]
    # the kernel's own rule of differentiation takes nothing that was kept: it would run it forward once more
    module = importlib.import_module("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel")
    run = functools.partial(
        module._splash_attention_bwd_dkv,
        bq=sizes.block_q_dkv, bkv=sizes.block_kv_dkv, bkv_compute=sizes.block_kv_dkv_compute, is_mqa=False,
        mask_info=kernel.dkv_mask_info, mask_value=options["mask_value"], attn_logits_soft_cap=None,
        use_fused_bwd_kernel=True, q_layout=sizes.q_layout, k_layout=sizes.k_layout, v_layout=sizes.v_layout,
        mask_function=options["mask_function"], interpret=options["interpret"],
    )  # fmt: skip
    added = ((0, 0), (0, long - queries))

    def some(of: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        q, k, v, statistics, along, d_out = of
        d_out = jnp.pad(d_out, (*added, (0, 0)))  # of no weight, whatever the statistics beside it
        statistics, along = jnp.pad(statistics, added), jnp.pad(along, added)
        d_q, d_k, d_v = run(*_padded(q, k, v, blocks, valid), None, statistics, d_out, along)
        return d_q[:, :queries] * _scale(q), d_k[:, :keys], d_v[:, :keys]

    given = (q, k, v, statistics, along, d_out)
    if group == count:
        d_q, d_k, d_v = some(given)
    else:
        grouped = tuple(x.reshape(count // group, group, *x.shape[1:]) for x in given)
        d_q, d_k, d_v = (x.reshape(count, *x.shape[2:]) for x in jax.lax.map(some, grouped))
    return d_q, d_k, d_v


def _kernel(count: int, q: jax.Array, k: jax.Array, blocks: SplashBlocks, *, save_residuals: bool) -> Any:
    """The kernel of ``count`` heads."""
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import, and no use elsewhere

    queries, keys = q.shape[1], k.shape[1]
    forward, backward = (_fitted(sizes, queries, keys) for sizes in (blocks.forward, blocks.backward))
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.FullMask(_lengths(queries, keys, blocks))] * count),
        block_sizes=splash_attention.BlockSizes(
            block_q=forward[0], block_kv=forward[1], block_kv_compute=forward[2],
            block_q_dkv=backward[0], block_kv_dkv=backward[1], block_kv_dkv_compute=backward[2],
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=save_residuals,
    )  # fmt: skip


def _scale(q: jax.Array) -> jax.Array:
    return jnp.asarray(1.0 / math.sqrt(q.shape[-1]), q.dtype)


def _padded(
    q: jax.Array, k: jax.Array, v: jax.Array, blocks: SplashBlocks, valid: jax.Array | int | None = None
) -> tuple[Any, ...]:
    """The kernel's operands: whole blocks of scaled q, of k and of v, and what masks keys that are not attended to."""
    long, wide = _lengths(q.shape[1], k.shape[1], blocks)
    keys = k.shape[1]
    q = q * _scale(q)
    q, k, v = (jnp.pad(x, ((0, 0), (0, to - x.shape[1]), (0, 0))) for x, to in ((q, long), (k, wide), (v, wide)))
    if wide == keys and valid is None:
        return q, k, v, None
    from jax.experimental.pallas.ops.tpu import splash_attention

    added = jnp.arange(wide, dtype=jnp.int32) >= (keys if valid is None else valid)
    return q, k, v, splash_attention.SegmentIds(q=jnp.zeros(long, jnp.int32), kv=added.astype(jnp.int32))


def _lengths(queries: int, keys: int, blocks: SplashBlocks) -> tuple[int, int]:
    """Of queries and keys as the kernel takes them."""
    forward, backward = (_fitted(sizes, queries, keys) for sizes in (blocks.forward, blocks.backward))
    return _rounded(queries, math.lcm(forward[0], backward[0])), _rounded(keys, math.lcm(forward[1], backward[1]))


def _fitted(sizes: tuple[int, int, int], queries: int, keys: int) -> tuple[int, int, int]:
    """Blocks no longer than the sequences need."""
    step = min(sizes[2], _rounded(keys, LANES))
    return min(sizes[0], _rounded(queries, LANES)), min(sizes[1], _rounded(keys, step)), step


def _rounded(size: int, of: int) -> int:
    """The next multiple."""
    return -(-size // of) * of
