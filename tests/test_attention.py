"""Attention is softmax(q kᵀ / √d) v."""

import jax
import jax.numpy as jnp
import numpy as np

from wanjax.models.attention import attention


def _random(*shape, scale=1.0, seed=0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def _reference(q, k, v):
    logits = np.einsum("bnkd,bmkd->bknm", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bknm,bmkd->bnkd", weights / weights.sum(-1, keepdims=True), v)


def test_matches_float64_with_other_lengths_of_queries_and_keys():
    q, k, v = _random(2, 5, 3, 8), _random(2, 7, 3, 8, seed=1), _random(2, 7, 3, 8, seed=2)
    np.testing.assert_allclose(attention(q, k, v), _reference(q, k, v), atol=1e-6)


def test_large_logits_stay_finite():
    q, k, v = _random(1, 4, 2, 8, scale=100), _random(1, 4, 2, 8, scale=100, seed=1), _random(1, 4, 2, 8, seed=2)
    np.testing.assert_allclose(attention(q, k, v), _reference(q, k, v), atol=1e-4)


def test_softmax_runs_in_float32_for_bfloat16_operands():
    q, k, v = _random(1, 16, 1, 8), _random(1, 512, 1, 8, seed=1), np.ones((1, 512, 1, 8), np.float32)
    out = attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=4e-3)
    jaxpr = str(jax.make_jaxpr(attention)(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))))
    assert "exp" in jaxpr and all("f32" in line for line in jaxpr.splitlines() if " exp " in line)
