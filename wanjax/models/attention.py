"""Scaled dot-product attention."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √d) v, without a mask, the softmax in float32.

    Args:
        q: [B, N, K, d].
        k: [B, M, K, d].
        v: [B, M, K, d].

    Returns:
        [B, N, K, d] in q's dtype.
    """
    scale = 1.0 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("bnkd,bmkd->bknm", q * jnp.asarray(scale, q.dtype), k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bknm,bmkd->bnkd", weights, v)
