"""Attention on GPU: cuDNN's flash attention, with the statistics of its softmax in float32.

``jax.nn.dot_product_attention`` calls the same kernels, but rounds the statistics to 16 bits and takes none for the
backward pass; the rules of differentiation underneath do, and are called here. They are internal to jax.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from wanjax.models.blockwise import LOWEST


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, heads_first: bool = True
) -> tuple[jax.Array, jax.Array]:
    """softmax(q kᵀ / √d) v, and the logarithm of the softmax's denominator.

    Args:
        q: [B, K, N, d], bfloat16 or float16.
        k: [B, K, M, d].
        v: [B, K, M, d].
        valid: keys from this number on are masked; None for none. Where none is left, the denominator is next to
            nothing.
        heads_first: else q, k, v and the result are [B, N, K, d].

    Returns:
        [B, K, N, d] in q's dtype, and float32 [B, K, N].
    """
    fused, lengths, mask = _kernels(), _lengths(q, valid, heads_first), _mask(valid)
    out, statistics = fused.dot_product_attention(
        q, k, v, q_seqlen=lengths[0], kv_seqlen=lengths[1], scale=_scale(q), mask_type=mask,
        qkv_layout="BNTH" if heads_first else "BTNH", return_residual=True,
    )  # fmt: skip
    return out, statistics if valid is None else jnp.where(valid > 0, statistics, LOWEST)


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, statistics: jax.Array, d_out: jax.Array,
    valid: jax.Array | None = None, *, heads_first: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Gradients of q, k and v from result and statistics, which may be those of more keys than these.

    Args:
        q, k, v, valid, heads_first: as for :func:`forward`.
        out, statistics: as it gives them.
        d_out: gradient of the result, in its shape.
    """
    fused, none, lengths = _kernels(), jnp.zeros(0, q.dtype), _lengths(q, valid, heads_first)
    kept = (q, k, v, none, *(none if x is None else x for x in lengths), none, none, none, none, statistics, out)
    layout = fused.AttentionLayout.BNTH if heads_first else fused.AttentionLayout.BTNH
    settings = dict(scale=_scale(q), seed=0, dropout_rate=0.0, variadic_args=(False, False), mask_type=_mask(valid),
                    layout=layout.value, sliding_window_length=None, is_training=True,
                    return_residual=False)  # fmt: skip
    given = fused._dot_product_attention_bwd_rule(**settings, res=kept, grad_output=d_out)[:3]
    d_q, d_k, d_v = given if valid is None else (jnp.where(valid > 0, x, 0) for x in given)
    return d_q, d_k, d_v


def _kernels() -> Any:
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def _scale(q: jax.Array) -> float:
    return 1.0 / math.sqrt(q.shape[-1])


def _mask(valid: jax.Array | None) -> Any:
    kinds = _kernels().MaskType
    return kinds.NO_MASK if valid is None else kinds.PADDING


def _lengths(
    q: jax.Array, valid: jax.Array | None, heads_first: bool
) -> tuple[jax.Array | None, jax.Array | None]:
    """Of queries and keys, int32 [B]. At least one key: a softmax over none is not defined."""
    if valid is None:
        return None, None
    clips, every = len(q), jnp.int32(q.shape[2 if heads_first else 1])
    return jnp.full(clips, every), jnp.broadcast_to(jnp.maximum(valid, 1).astype(jnp.int32), clips)
