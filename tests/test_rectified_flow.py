"""Statements about the noise levels and the straight path between data and noise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax import rectified_flow as rf


def clips(seed, shape=(3, 2, 4, 4, 5)):
    return np.random.default_rng(seed).standard_normal(shape)


def test_the_path_runs_from_the_clip_to_the_noise():
    x0, noise = clips(0), clips(1)
    np.testing.assert_array_equal(rf.add_noise(x0, noise, 0.0), x0)
    np.testing.assert_array_equal(rf.add_noise(x0, noise, 1.0), noise)


def test_velocity_is_the_derivative_along_the_path():
    x0, noise, sigma, step = clips(0), clips(1), np.array([0.1, 0.5, 0.9]), 1e-3
    slope = (rf.add_noise(x0, noise, sigma + step) - rf.add_noise(x0, noise, sigma - step)) / (2 * step)
    np.testing.assert_allclose(rf.velocity_target(x0, noise), slope, atol=1e-12)


def test_x0_is_recovered_from_the_velocity_at_every_noise_level():
    x0, noise = clips(0), clips(1)
    for sigma in (np.array([0.0, 0.4, 1.0]), 0.3, np.full((3, 2, 1, 1, 1), 0.7)):
        x = rf.add_noise(x0, noise, sigma)
        np.testing.assert_allclose(rf.x0_from_velocity(x, rf.velocity_target(x0, noise), sigma), x0, atol=1e-14)


def test_jax_gives_what_numpy_gives():
    x0, noise, sigma = (a.astype(np.float32) for a in (clips(0), clips(1), np.array([0.1, 0.5, 0.9])))
    got = jax.jit(rf.add_noise)(x0, noise, sigma)
    chex.assert_trees_all_close(got, rf.add_noise(x0, noise, sigma), atol=1e-6)
    chex.assert_type(got, jnp.float32)


def test_a_sigma_per_something_else_is_refused():
    with pytest.raises(ValueError, match="one per clip"):
        rf.add_noise(clips(0), clips(1), np.zeros(2))


def test_unshift_inverts_shift_and_keeps_the_ends():
    u = np.linspace(0, 1, 101)
    for shift in (0.5, 1.0, 3.0, 5.0, 12.0):
        sigma = rf.shift_sigma(u, shift)
        assert sigma[0] == 0.0 and abs(sigma[-1] - 1.0) < 1e-15
        np.testing.assert_allclose(rf.unshift_sigma(sigma, shift), u, atol=1e-14)


@pytest.mark.parametrize(
    "shift,low,high", [(1.0, 875, 1000), (5.0, 0, 875), (5.0, 873.5, 874), (12.0, 875, 1000), (12.0, 0, 1000)]
)
def test_timesteps_follow_the_shifted_density_of_their_range(shift, low, high):
    n = 100_000
    t = np.asarray(jax.jit(lambda k: rf.sample_timesteps(k, n, shift=shift, low=low, high=high))(jax.random.key(3)))
    assert t.dtype == np.float32 and t.shape == (n,)
    assert t.min() >= low and t.max() <= high
    # the exact cumulative distribution turns the draws into a uniform sample: Kolmogorov-Smirnov, p ≈ 1e-4
    ends = rf.unshift_sigma(np.array([low, high]) / 1000.0, shift)
    p = np.sort((rf.unshift_sigma(t.astype(np.float64) / 1000.0, shift) - ends[0]) / (ends[1] - ends[0]))
    grid = np.arange(n) / n
    resolution = np.spacing(np.float32(high)) / (high - low) * 12  # a narrow range has few float32 values
    assert max(np.abs(p - grid).max(), np.abs(p - grid - 1 / n).max()) < 2.3 / np.sqrt(n) + resolution


def test_the_same_key_gives_the_same_timesteps_and_others_do_not():
    draw = lambda k: np.asarray(rf.sample_timesteps(jax.random.key(k), 8, shift=5.0))
    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize("low,high", [(875, 875), (900, 100), (-1, 500), (500, 1000.5), (float("nan"), 10)])
def test_an_impossible_range_is_refused(low, high):
    with pytest.raises(ValueError, match="timestep range"):
        rf.sample_timesteps(jax.random.key(0), 2, shift=5.0, low=low, high=high)


@pytest.mark.parametrize("shift", [0.0, -3.0, float("inf"), float("nan")])
def test_an_impossible_shift_is_refused(shift):
    with pytest.raises(ValueError, match="shift"):
        rf.sample_timesteps(jax.random.key(0), 2, shift=shift)
