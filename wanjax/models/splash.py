"""Attention on TPU: JAX's splash kernel (Pallas), without a mask and with its fused backward pass.

The kernel works on whole blocks: the arrays are padded to multiples of them, and added keys are given another segment
than all queries, which masks them exactly. Logits, softmax and its statistics are float32; the statistics that the
backward pass reads are one number per head and query.

Source: ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU's vector registers: blocks are multiples of it


@dataclass(frozen=True)
class SplashBlocks:
    """Tokens that the kernel holds in a chip's fast memory; a shorter sequence takes less.

    Attributes:
        forward: queries, keys, and keys per step, which divide the keys.
        backward: the same of the backward pass, which also holds gradients. It keeps one gradient of all queries per
            block of keys in main memory, so that large blocks of keys save memory.

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


def heads(q: jax.Array, k: jax.Array, v: jax.Array, blocks: SplashBlocks, name: str = "") -> jax.Array:
    """softmax(q kᵀ / √d) v of every head.

    Args:
        q: [heads, N, d].
        k: [heads, M, d].
        v: [heads, M, d].
        blocks: sizes of the kernel's blocks.
        name: that ``jax.checkpoint`` knows the result and the softmax's statistics by; empty for none.

    Returns:
        [heads, N, d] in q's dtype.
    """
    queries, keys = q.shape[1], k.shape[1]
    kernel, long, wide = _made(len(q), queries, keys, blocks, residual_checkpoint_name=name or None)
    segments = _segments(long, wide, keys, None)
    q, k, v = _filled(_scaled(q), long), _filled(k, wide), _filled(v, wide)
    return kernel(q, k, v, segments)[:, :queries]


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, blocks: SplashBlocks, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What :func:`heads` gives, and the logarithm of the softmax's denominator, float32 [heads, N].

    Keys from number ``valid`` on are masked; a query that none is left for has a denominator of next to nothing.
    """
    queries, keys = q.shape[1], k.shape[1]
    kernel, long, wide = _made(len(q), queries, keys, blocks, save_residuals=True)
    segments = _segments(long, wide, keys, valid)
    out, (statistics,) = kernel(_filled(_scaled(q), long), _filled(k, wide), _filled(v, wide), segments)
    return out[:, :queries], statistics[:, :queries]


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, statistics: jax.Array, along: jax.Array, d_out: jax.Array,
    blocks: SplashBlocks, valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Gradients of q, k and v from the statistics, which may be those of more keys than these.

    The kernel's own backward pass; nothing public of jax takes the statistics.

    Args:
        q: [heads, N, d].
        k: [heads, M, d].
        v: [heads, M, d].
        statistics: float32 [heads, N], as of :func:`forward`.
        along: the sum over d of d_out · out, float32 [heads, N].
        d_out: [heads, N, d], gradient of the result.
        blocks: sizes of the kernel's blocks.
        valid: as for :func:`forward`.
    """
    module = importlib.import_module("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel")
    queries, keys, scale = q.shape[1], k.shape[1], jnp.asarray(1.0 / math.sqrt(q.shape[2]), q.dtype)
    kernel, long, wide = _made(len(q), queries, keys, blocks)
    options, sizes = kernel.kwargs, kernel.kwargs["block_sizes"]
    d_q, d_k, d_v = module._splash_attention_bwd_dkv(
        _filled(_scaled(q), long), _filled(k, wide), _filled(v, wide), _segments(long, wide, keys, valid), None,
        _filled(statistics, long), _filled(d_out, long), _filled(along, long),
        bq=sizes.block_q_dkv, bkv=sizes.block_kv_dkv, bkv_compute=sizes.block_kv_dkv_compute, is_mqa=False,
        mask_info=kernel.dkv_mask_info, mask_value=options["mask_value"], attn_logits_soft_cap=None,
        use_fused_bwd_kernel=True, q_layout=sizes.q_layout, k_layout=sizes.k_layout, v_layout=sizes.v_layout,
        mask_function=options["mask_function"], interpret=options["interpret"],
    )  # fmt: skip
    return (d_q * scale)[:, :queries], d_k[:, :keys], d_v[:, :keys]


def _made(count: int, queries: int, keys: int, blocks: SplashBlocks, **settings: Any) -> tuple[Any, int, int]:
    """The kernel for so many heads, and the lengths of queries and keys that it takes."""
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import, and no use elsewhere

    forward, backward = (_fitted(sizes, queries, keys) for sizes in (blocks.forward, blocks.backward))
    long = _rounded(queries, math.lcm(forward[0], backward[0]))
    wide = _rounded(keys, math.lcm(forward[1], backward[1]))
    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((long, wide))] * count)
    kernel = splash_attention.make_splash_mha(
        mask,
        block_sizes=splash_attention.BlockSizes(
            block_q=forward[0], block_kv=forward[1], block_kv_compute=forward[2],
            block_q_dkv=backward[0], block_kv_dkv=backward[1], block_kv_dkv_compute=backward[2],
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        **settings,
    )  # fmt: skip
    return kernel, long, wide


def _scaled(q: jax.Array) -> jax.Array:
    return q * jnp.asarray(1.0 / math.sqrt(q.shape[-1]), q.dtype)


def _filled(x: jax.Array, tokens: int) -> jax.Array:
    """[heads, N, ...] with zeros up to so many tokens."""
    return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


def _segments(long: int, wide: int, keys: int, valid: jax.Array | None) -> Any:
    """Keys that are not attended to are of another segment than all queries; None where there are none."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    if valid is None and wide == keys:
        return None
    added = jnp.arange(wide, dtype=jnp.int32) >= (keys if valid is None else valid)
    return splash_attention.SegmentIds(q=jnp.zeros(long, jnp.int32), kv=added.astype(jnp.int32))


def _fitted(sizes: tuple[int, int, int], queries: int, keys: int) -> tuple[int, int, int]:
    """Blocks no longer than the sequences need."""
    step = min(sizes[2], _rounded(keys, LANES))
    return min(sizes[0], _rounded(queries, LANES)), min(sizes[1], _rounded(keys, step)), step


def _rounded(size: int, of: int) -> int:
    """The next multiple."""
    return -(-size // of) * of
