"""Light losses: what they measure, what minimises them, how they are scaled."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax.light.losses import light_loss, velocity_loss

SHAPE = (3, 5, 8, 8, 4)
M = np.array([0.5, -1.0, 0.25, 2.0], np.float32)


def normal(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_velocity_loss_is_the_mean_squared_error_of_each_clip():
    pred, target = normal(0), normal(1)
    loss = velocity_loss(pred, target)
    chex.assert_shape(loss, (3,))
    np.testing.assert_allclose(loss, ((pred - target) ** 2).mean(axis=(1, 2, 3, 4)), rtol=1e-6)


@pytest.mark.parametrize("pools", [("frame",), (4,), (3,), ("frame", 4)])
@pytest.mark.parametrize("orders", [(1,), (2,), (1, 2), (3,)])
def test_white_error_of_unit_variance_gives_one(pools, orders):
    error = normal(2, (512, 5, 8, 8, 4))
    loss = light_loss(error, np.zeros_like(error), M, pools=pools, orders=orders)
    assert abs(float(loss.mean()) - 1) < 5 * float(loss.std()) / np.sqrt(loss.size)


def test_the_error_is_linear_inside_the_square():
    error, zero = normal(3), np.zeros(SHAPE, np.float32)
    once = light_loss(error, zero, M)
    np.testing.assert_allclose(light_loss(3 * error, zero, M), 9 * once, rtol=1e-5)
    other = normal(4)
    # The parallelogram law holds for a squared norm of something linear, and for nothing else.
    both = light_loss(error + other, zero, M) + light_loss(error - other, zero, M)
    np.testing.assert_allclose(both, 2 * once + 2 * light_loss(other, zero, M), rtol=1e-4)


def test_its_minimiser_is_the_conditional_mean_that_velocity_loss_has():
    targets = normal(5, (64, 5, 8, 8, 4))
    mean = targets.mean(axis=0, keepdims=True)

    def expected(pred, loss):
        return loss(jnp.broadcast_to(pred, targets.shape), targets).mean()

    for loss in (velocity_loss, lambda p, t: light_loss(p, t, M)):
        gradient = jax.grad(expected)(mean, loss)
        assert float(jnp.abs(gradient).max()) < 1e-6
        assert float(expected(mean + 0.1 * normal(6, mean.shape), loss)) > float(expected(mean, loss))


def test_what_is_constant_in_time_costs_nothing_and_a_flicker_costs():
    offset = np.broadcast_to(normal(7, (1, 1, 8, 8, 4)), SHAPE)
    zero = np.zeros(SHAPE, np.float32)
    np.testing.assert_allclose(light_loss(offset, zero, M), 0, atol=1e-9)
    flicker = np.broadcast_to((-1.0) ** np.arange(5)[None, :, None, None, None], SHAPE).astype(np.float32)
    assert float(light_loss(flicker, zero, M).min()) > 1


def test_colour_change_that_keeps_luminance_costs_nothing():
    across = np.array([2.0, 1.0, 0.0, 0.0], np.float32)
    assert across @ M == 0
    error = normal(8, (*SHAPE[:-1], 1)) * across
    np.testing.assert_allclose(light_loss(error, np.zeros_like(error), M), 0, atol=1e-9)


def test_the_scale_of_m_does_not_matter():
    pred, target = normal(9), normal(10)
    np.testing.assert_allclose(light_loss(pred, target, M), light_loss(pred, target, 100 * M), rtol=1e-5)


def test_it_works_under_jit_with_m_as_an_argument():
    pred, target = normal(11), normal(12)
    np.testing.assert_allclose(jax.jit(light_loss)(pred, target, M), light_loss(pred, target, M), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orders": (5,)}, "F = 5"),
        ({"orders": ()}, "at least one"),
        ({"pools": ("cell",)}, "'cell'"),
        ({"m": np.zeros(4)}, "m = 0"),
        ({"m": np.ones(3)}, r"\[4\]"),
        ({"target_velocity": normal(1)[:, :1]}, "one shape"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"pred_velocity": normal(0), "target_velocity": normal(1), "m": M} | change
    with pytest.raises(ValueError, match=message):
        light_loss(**arguments)
