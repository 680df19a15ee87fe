"""Attention is softmax(q kᵀ / √d) v, however it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from wanjax import partition
from wanjax.models import attention as module
from wanjax.models.attention import attention

WAYS = ("plain", "blockwise")


def _random(*shape, scale=1.0, seed=0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def _reference(q, k, v):
    logits = np.einsum("bnkd,bmkd->bknm", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bknm,bmkd->bnkd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("way", WAYS)
def test_matches_float64_with_other_lengths_of_queries_and_keys(way):
    q, k, v = _random(2, 5, 3, 8), _random(2, 7, 3, 8, seed=1), _random(2, 7, 3, 8, seed=2)
    np.testing.assert_allclose(attention(q, k, v, implementation=way), _reference(q, k, v), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_large_logits_stay_finite(way):
    q, k, v = _random(1, 4, 2, 8, scale=100), _random(1, 4, 2, 8, scale=100, seed=1), _random(1, 4, 2, 8, seed=2)
    np.testing.assert_allclose(attention(q, k, v, implementation=way), _reference(q, k, v), atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_softmax_runs_in_float32_for_bfloat16_operands(way):
    q, k, v = _random(1, 16, 1, 8), _random(1, 512, 1, 8, seed=1), np.ones((1, 512, 1, 8), np.float32)
    out = attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), implementation=way)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=4e-3)
    jaxpr = str(jax.make_jaxpr(functools.partial(attention, implementation=way))(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))))
    assert "exp" in jaxpr and all("f32" in line for line in jaxpr.splitlines() if " exp " in line)


def _gradient(way, q, k, v):
    """Of a function of which every output matters, with respect to all three."""
    return jax.grad(lambda *x: jnp.sum(jnp.sin(3 * attention(*x, implementation=way))), argnums=(0, 1, 2))(q, k, v)


@pytest.mark.parametrize("tokens", [5, 128, 300])
def test_gradients_of_blocks_are_those_of_the_formula(tokens):
    q, k, v = _random(2, tokens, 3, 8), _random(2, 77, 3, 8, seed=1), _random(2, 77, 3, 8, seed=2)
    for found, expected in zip(_gradient("blockwise", q, k, v), _gradient("plain", q, k, v), strict=True):
        assert np.linalg.norm(expected) > 1
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=4e-6)


def test_gradients_of_blocks_in_bfloat16_are_near_those_in_float32():
    exact = [_random(1, 300, 2, 16, seed=i) for i in range(3)]
    short = [jnp.asarray(x, jnp.bfloat16) for x in exact]
    for found, expected in zip(_gradient("blockwise", *short), _gradient("plain", *exact), strict=True):
        assert found.dtype == jnp.bfloat16
        found = np.asarray(found, np.float32)
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_blocks_work_inside_a_shard_map():
    mesh = partition.make_mesh({"fsdp": 4, "seq": 2})
    q, k, v = (_random(4, 150, 2, 8, seed=i) for i in range(3))

    def loss(q, k, v):
        per_shard = jax.shard_map(
            functools.partial(attention, implementation="blockwise"), mesh=mesh, in_specs=P("fsdp", None, "seq"),
            out_specs=P("fsdp", None, "seq"), axis_names={"fsdp", "seq"},
        )  # fmt: skip
        return jnp.sum(jnp.sin(3 * per_shard(q, k, v)))

    for found, expected in zip(
        jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v), _gradient("plain", q, k, v), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=4e-6)


def test_memory_of_blocks_grows_with_the_length_and_not_with_its_square():
    def peak(tokens):
        shapes = [jax.ShapeDtypeStruct((1, tokens, 1, 128), jnp.float32)] * 3
        stats = jax.jit(functools.partial(_gradient, "blockwise")).lower(*shapes).compile().memory_analysis()
        return stats.temp_size_in_bytes + stats.argument_size_in_bytes + stats.output_size_in_bytes

    short, long = peak(16_380), peak(32_760)
    assert long < 1e9 and long < 2.2 * short


def test_short_sequences_are_computed_by_the_formula_and_long_ones_in_blocks(monkeypatch):
    called = []
    for way in WAYS:
        monkeypatch.setattr(module, f"_{way}", lambda q, k, v, way=way: called.append(way))
    attention(*(np.zeros((1, 256, 1, 8), np.float32),) * 3)
    attention(*(np.zeros((1, 257, 1, 8), np.float32),) * 3)
    assert called == ["plain", "blockwise"]
    with pytest.raises(ValueError, match="'flash' is not one of"):
        attention(*(np.zeros((1, 4, 1, 8), np.float32),) * 3, implementation="flash")
