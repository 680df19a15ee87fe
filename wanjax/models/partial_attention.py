"""Attention to a part of the keys, and how parts are put together: what ring attention is made of.

Besides its result a kernel gives the softmax's statistics, one number per query: log Σ exp(logits). Two parts make a
whole by them, and given the whole's statistics and result, a part's share of the gradient is its own and needs no other
part (Dao et al. 2022, arXiv:2205.14135, appendix B.2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wanjax import precision
from wanjax.models import attention, blockwise, cudnn, splash

LOWEST = blockwise.LOWEST


class Kernel(NamedTuple):
    """Attention of queries to some of the keys, in one implementation.

    Arrays are [B, K, N, d] (queries, results and their gradients), [B, K, M, d] (keys, values) and float32 [B, K, N]
    (statistics). Keys from number ``valid`` on are masked exactly, none for None; where none is left, the result means
    nothing and its statistics are so low that it has no weight in :func:`merged`.

    Attributes:
        forward: (q, k, v, valid) -> result in q's dtype, and statistics.
        backward: (q, k, v, out, statistics, d_out, valid) -> gradients of q, k, v in their dtypes, where ``out`` and
            the statistics are those of all parts together, and ``d_out`` the gradient of the result.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def kernel(
    implementation: str, platform: str, dtype: Any, queries: tuple[int, ...], keys: tuple[int, ...],
    splash_blocks: splash.SplashBlocks,
) -> Kernel:  # fmt: skip
    """What computes a part on one device.

    Args:
        implementation: of :data:`wanjax.models.attention.IMPLEMENTATIONS`.
        platform: "cpu", "gpu" or "tpu".
        dtype: of the operands.
        queries, keys: shapes [B, K, N, d] and [B, K, M, d].
        splash_blocks: sizes that the TPU's kernel works with.

    Raises:
        ValueError: as :func:`wanjax.models.attention.chosen`.
    """
    tokens_first = ((b, n, heads, d) for b, heads, n, d in (queries, keys))
    way = attention.chosen(implementation, platform, dtype, *tokens_first)
    if way == "plain":
        return Kernel(_plain, _plain_gradient)
    if way == "cudnn":
        return Kernel(cudnn.forward, cudnn.backward)
    if way == "splash":
        here, back = (functools.partial(each, blocks=splash_blocks) for each in (splash.forward, splash.backward))
        return Kernel(_of_heads(here), _of_heads(_from_result(back)))
    return Kernel(_of_heads(blockwise.forward), _of_heads(_from_result(blockwise.backward)))


def merged(
    out: jax.Array, statistics: jax.Array, other: jax.Array, of_other: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two parts as one: results [B, K, N, d] and statistics [B, K, N], in float32."""
    largest = jnp.maximum(statistics, of_other)
    weight, of_its = jnp.exp(statistics - largest), jnp.exp(of_other - largest)
    total = weight + of_its
    out = (weight / total)[..., None] * out + (of_its / total)[..., None] * other.astype(jnp.float32)
    return out, largest + jnp.log(total)


def _plain(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    logits = _logits(q, k, valid)
    statistics = jax.nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - statistics[..., None]).astype(v.dtype)
    return jnp.einsum("bknm,bkmd->bknd", weights, v, precision=precision.of(v.dtype)), statistics


def _plain_gradient(
    q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, statistics: jax.Array, d_out: jax.Array,
    valid: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    product = functools.partial(jnp.einsum, precision=precision.of(q.dtype), preferred_element_type=jnp.float32)
    weights = jnp.exp(_logits(q, k, valid) - statistics[..., None])
    d_logits = (weights * (product("bknd,bkmd->bknm", d_out, v) - _along(out, d_out)[..., None])).astype(q.dtype)
    scale = 1.0 / math.sqrt(q.shape[-1])
    d_q, d_k = (scale * product(f"bknm,{other}", d_logits, x)
                for other, x in (("bkmd->bknd", k), ("bknd->bkmd", q)))  # fmt: skip
    d_v = product("bknm,bknd->bkmd", weights.astype(v.dtype), d_out)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _logits(q: jax.Array, k: jax.Array, valid: jax.Array | None) -> jax.Array:
    """float32 [B, K, N, M]."""
    q = q * jnp.asarray(1.0 / math.sqrt(q.shape[-1]), q.dtype)
    exact = precision.of(q.dtype)
    logits = jnp.einsum("bknd,bkmd->bknm", q, k, precision=exact, preferred_element_type=jnp.float32)
    return logits if valid is None else jnp.where(jnp.arange(k.shape[2]) < valid, logits, LOWEST)


def _along(out: jax.Array, d_out: jax.Array) -> jax.Array:
    """The sum over d of a result and its gradient, in float32."""
    return jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)


def _from_result(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that is given the result in the place of its sum with its gradient."""

    def with_along(
        q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, statistics: jax.Array, d_out: jax.Array,
        valid: jax.Array | None,
    ) -> Any:  # fmt: skip
        return backward(q, k, v, statistics, _along(out, d_out), d_out, valid=valid)

    return with_along


def _of_heads(function: Callable[..., Any]) -> Callable[..., Any]:
    """From a function of [heads, N, ...] to one of [B, K, N, ...]: each head of a clip is one of its own."""

    def of_clips(*given: Any) -> Any:
        *arrays, valid = given
        found = function(*(x.reshape(-1, *x.shape[2:]) for x in arrays), valid=valid)
        return jax.tree.map(lambda x: x.reshape(len(arrays[0]), -1, *x.shape[1:]), found)

    return of_clips
