"""Attention on TPU: JAX's splash kernel (Pallas), without a mask and with its fused backward pass.

The kernel works on whole blocks: the arrays are padded to multiples of them, and added keys are given another segment
than all queries, which masks them exactly. Logits, softmax and its statistics are float32; the statistics that the
backward pass reads are one number per head and query.

Source: ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import, and no use elsewhere

    count, queries, size = q.shape
    keys = k.shape[1]
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
        residual_checkpoint_name=name or None,
    )  # fmt: skip
    q = q * jnp.asarray(1.0 / math.sqrt(size), q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, to - x.shape[1]), (0, 0))) for x, to in ((q, long), (k, wide), (v, wide)))
    segments = None
    if wide > keys:
        added = jnp.arange(wide, dtype=jnp.int32) >= keys
        segments = splash_attention.SegmentIds(q=jnp.zeros(long, jnp.int32), kv=added.astype(jnp.int32))
    return kernel(q, k, v, segments)[:, :queries]


def _fitted(sizes: tuple[int, int, int], queries: int, keys: int) -> tuple[int, int, int]:
    """Blocks no longer than the sequences need."""
    step = min(sizes[2], _rounded(keys, LANES))
    return min(sizes[0], _rounded(queries, LANES)), min(sizes[1], _rounded(keys, step)), step


def _rounded(size: int, of: int) -> int:
    """The next multiple."""
    return -(-size // of) * of
