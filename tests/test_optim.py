"""The optimizer does what its config says."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from wanjax import optim, partition


def test_schedule_warms_up_and_decays():
    config = optim.OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay="cosine", final_fraction=0.1)
    rate = optim.learning_rate(config, 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1.0, 0.55, 0.1], atol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "linear"])
def test_schedules_end_where_they_say(decay):
    config = optim.OptimizerConfig(learning_rate=2.0, warmup_steps=0, decay=decay, final_fraction=0.25)
    assert float(optim.learning_rate(config, 100)(100)) == pytest.approx({"constant": 2.0, "linear": 0.5}[decay])


def test_weight_decay_touches_masked_tensors_only():
    config = optim.OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = optim.make_optimizer(config, 10, {"kernel": True, "bias": False}, {"kernel": False, "bias": False})
    zero = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = tx.update(zero, tx.init(params), params)
    chex.assert_trees_all_close(updates, {"kernel": jnp.full((2, 2), -0.05), "bias": jnp.zeros(2)})


def test_gradients_are_clipped_by_their_global_norm():
    config = optim.OptimizerConfig(learning_rate=1.0, warmup_steps=0, clip_norm=1.0, weight_decay=0.0, b1=0.0, eps=1e3)
    params = {"a": jnp.zeros(4)}
    tx = optim.make_optimizer(config, 10, {"a": True}, {"a": False})
    small, _ = tx.update({"a": jnp.full(4, 0.5)}, tx.init(params), params)  # norm 1
    large, _ = tx.update({"a": jnp.full(4, 50.0)}, tx.init(params), params)
    chex.assert_trees_all_close(small, large, rtol=1e-5)


def test_muon_moves_stacked_matrices_along_orthogonal_directions_and_the_rest_by_adam():
    config = optim.OptimizerConfig(name="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1e9)
    draw = np.random.default_rng(0)
    gradients = {"blocks": draw.standard_normal((3, 8, 16)).astype(np.float32), "bias": np.float32([2.0, -3.0])}
    tx = optim.make_optimizer(config, 10, {"blocks": True, "bias": False}, {"blocks": True, "bias": False})
    params = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = tx.update(gradients, tx.init(params), params)
    for update, gradient in zip(updates["blocks"], gradients["blocks"], strict=True):
        stretches = np.linalg.svd(update, compute_uv=False)
        assert stretches.max() < 2 * stretches.min() and np.vdot(update, gradient) < 0
    np.testing.assert_allclose(np.sqrt(np.mean(updates["blocks"] ** 2)), 0.1 * config.muon_rms, rtol=0.3)
    np.testing.assert_allclose(updates["bias"], [-0.1, 0.1], rtol=1e-3)


def test_average_follows_fast_at_first_and_slowly_later():
    ema = optim.update_ema({"a": jnp.zeros(1)}, {"a": jnp.ones(1)}, jnp.asarray(0), 0.999)
    np.testing.assert_allclose(ema["a"], 0.9, rtol=1e-6)
    ema = optim.update_ema({"a": jnp.zeros(1)}, {"a": jnp.ones(1)}, jnp.asarray(10**6), 0.999)
    np.testing.assert_allclose(ema["a"], 0.001, rtol=1e-3)


def _steps(name, memory):
    """Parameters, average and optimizer state after three steps on a mesh of eight, and the state's places; the
    gradients are large enough to be clipped."""
    mesh = partition.make_mesh({"fsdp": 4, "tensor": 2})
    matrix, vector = (NamedSharding(mesh, spec) for spec in (P(None, "fsdp", "tensor"), P()))
    draw = np.random.default_rng(1)
    params = {"blocks": {"in": draw.standard_normal((5, 8, 16), np.float32), "bias": np.ones((5, 8), np.float32)},
              "head": draw.standard_normal((8, 4), np.float32)}
    near = {"blocks": {"in": matrix, "bias": vector}, "head": vector}
    far = {**near, "blocks": {**near["blocks"], "in": matrix.with_memory_kind("pinned_host")}}
    decay = {"blocks": {"in": True, "bias": False}, "head": True}
    tx = optim.make_optimizer(optim.OptimizerConfig(name=name, learning_rate=1e-2, warmup_steps=0), 10, decay,
                              {"blocks": {"in": True, "bias": False}, "head": False})
    own = dict(jax.tree.leaves_with_path(far if memory == "host" else near))
    at = jax.tree.map_with_path(lambda path, _: own.get(optim.owner(path, own), vector),
                                jax.eval_shape(tx.init, params))
    places = near, far if memory == "host" else near, at

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=places)
    def step(state, gradients, number):
        params, ema, own = state
        updates, own = tx.update(gradients, own, params)
        params = optax.apply_updates(params, updates)
        return params, optim.update_ema(ema, params, number, 0.99), own

    state = jax.device_put((params, params, tx.init(params)), places)
    for number in range(3):
        gradients = jax.tree.map(lambda p: draw.standard_normal(p.shape, np.float32), params)
        state = step(state, jax.device_put(gradients, near), number)
    return jax.device_get(state), [leaf.sharding.memory_kind for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("name,moments", [("adamw", 2), ("muon", 1)])
def test_state_in_host_memory_moves_as_on_the_device_and_stays_there(name, moments):
    (expected, kinds), (found, far) = (_steps(name, memory) for memory in ("device", "host"))
    assert set(kinds) == {"device"} and far.count("pinned_host") == 1 + moments  # of the average, and of moments
    chex.assert_trees_all_equal_structs(found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-7 * np.linalg.norm(b)
        assert np.any(b)


@pytest.mark.parametrize("bad", [{"name": "sgd"}, {"state_memory": "disk"},
                                 {"decay": "step"}, {"learning_rate": 0.0}, {"ema_decay": 1.0}, {"warmup_steps": -1}])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        optim.OptimizerConfig(**bad)
