"""Attention in blocks of queries, in plain JAX: its memory grows with the length and not with its square.

A block of queries sees all keys at once, so that its softmax is that of the whole. The backward pass computes the
weights anew from one float32 number per query. On CPU it is the fastest way for all but short sequences, because a
block's weights stay in the cache.

Source: the backward pass is that of Dao et al. 2022 (arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wanjax import precision

_BLOCK = 256  # queries, at most; on CPU the weights of one head's block are 1.3 MB at 1,280 keys
LOWEST = float(jnp.finfo(jnp.float32).min)  # a logit below all others by so much that its weight is exactly 0


def heads(q: jax.Array, k: jax.Array, v: jax.Array, name: str = "") -> jax.Array:
    """softmax(q kᵀ / √d) v of every head.

    Args:
        q: [heads, N, d].
        k: [heads, M, d].
        v: [heads, M, d].
        name: that ``jax.checkpoint`` knows the result and the softmax's statistics by; empty for none.

    Returns:
        [heads, N, d] in q's dtype.
    """
    return _joined(_blocks(name, _split(q), k, v), q.shape[1])


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What :func:`heads` gives, and the logarithm of the softmax's denominator, float32 [heads, N].

    Keys from number ``valid`` on are masked; a query that none is left for has a denominator of next to nothing.
    """
    out, statistics = _attend(_split(q), k, v, valid)
    return _joined(out, q.shape[1]), _joined(statistics, q.shape[1])


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, statistics: jax.Array, along: jax.Array, d_out: jax.Array,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Gradients of q, k and v from the statistics, which may be those of more keys than these.

    Args:
        q: [heads, N, d].
        k: [heads, M, d].
        v: [heads, M, d].
        statistics: float32 [heads, N], as of :func:`forward`.
        along: the sum over d of d_out · out, float32 [heads, N].
        d_out: [heads, N, d], gradient of the result.
        valid: as for :func:`forward`.
    """
    d_q, d_k, d_v = _gradient(_split(q), k, v, _split(statistics), _split(along), _split(d_out), valid)
    return _joined(d_q, q.shape[1]), d_k, d_v


def _split(x: jax.Array) -> jax.Array:
    """[heads, N, ...] -> [heads, blocks, n, ...], filled up with zeros."""
    count, tokens = x.shape[:2]
    blocks = -(-tokens // _BLOCK)
    each = -(-tokens // blocks)
    filled = jnp.pad(x, ((0, 0), (0, blocks * each - tokens)) + ((0, 0),) * (x.ndim - 2))
    return filled.reshape(count, blocks, each, *x.shape[2:])


def _joined(x: jax.Array, tokens: int) -> jax.Array:
    """The inverse of :func:`_split`; what was added is cut off again."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(name: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q [heads, blocks, n, d], k and v [heads, M, d] -> [heads, blocks, n, d], head after head, block after block."""
    return _forward(name, q, k, v)[0]


def _forward(name: str, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, statistics = _attend(q, k, v)
    if name:
        out, statistics = checkpoint_name(out, name), checkpoint_name(statistics, name)
    return out, (q, k, v, out, statistics)


def _backward(name: str, kept: tuple[jax.Array, ...], d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del name
    q, k, v, out, statistics = kept
    along = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    return _gradient(q, k, v, statistics, along, d_out)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """q, k, v as of :func:`_blocks`, keys from ``valid`` on masked -> [heads, blocks, n, d], statistics without d."""
    scale = 1.0 / math.sqrt(q.shape[-1])

    def block(k: jax.Array, v: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _dot(q * jnp.asarray(scale, q.dtype), k, 1, 1)
        if valid is not None:
            logits = jnp.where(jnp.arange(len(k)) < valid, logits, LOWEST)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _dot(weights.astype(v.dtype), v, 1, 0) / total
        return out.astype(q.dtype), (largest + jnp.log(total))[:, 0]

    def head(of: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v = of
        return jax.lax.map(functools.partial(block, k, v), q)

    return jax.lax.map(head, (q, k, v))


def _gradient(
    q: jax.Array, k: jax.Array, v: jax.Array, statistics: jax.Array, along: jax.Array, d_out: jax.Array,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """The weights again from the statistics, block by block."""
    scale = 1.0 / math.sqrt(q.shape[-1])

    def head(of: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v, statistics, along, d_out = of

        def block(
            totals: tuple[jax.Array, jax.Array], of: tuple[jax.Array, ...]
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            (d_k, d_v), (q, statistics, along, d_out) = totals, of
            q = q * jnp.asarray(scale, q.dtype)
            logits = _dot(k, q, 1, 1)  # [M, n]: only one of the products below reads them transposed
            if valid is not None:
                logits = jnp.where(jnp.arange(len(k))[:, None] < valid, logits, LOWEST)
            weights = jnp.exp(logits - statistics)
            d_v += _dot(weights.astype(v.dtype), d_out, 1, 0)
            d_logits = (weights * (_dot(v, d_out, 1, 1) - along)).astype(q.dtype)
            d_q = _dot(d_logits, k, 0, 0) * scale
            return (d_k + _dot(d_logits, q, 1, 0), d_v), d_q.astype(q.dtype)

        zeros = jnp.zeros_like(k, jnp.float32)
        (d_k, d_v), d_q = jax.lax.scan(block, (zeros, zeros), (q, statistics, along, d_out))
        return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype)

    return jax.lax.map(head, (q, k, v, statistics, along, d_out))


def _dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    """Product of matrices summed over an axis of each, in float32.

    As a batch of one: a policy of ``jax.checkpoint`` that keeps products without a batch, those of linear layers, would
    keep all logits otherwise.
    """
    axes = (((of_a + 1,), (of_b + 1,)), ((0,), (0,)))
    exact = precision.of(a.dtype)
    return jax.lax.dot_general(a[None], b[None], axes, precision=exact, preferred_element_type=jnp.float32)[0]


_blocks.defvjp(_forward, _backward)
