"""Photometry: the standards' own numbers, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax.light import photometry as ph


def test_srgb_transfer_inverts_and_meets_the_standard():
    pixels = np.linspace(0, 1, 256)
    np.testing.assert_allclose(ph.linear_to_srgb(ph.srgb_to_linear(pixels)), pixels, atol=1e-6)
    assert ph.srgb_to_linear(np.float64(0.5)) == pytest.approx(0.2140411)
    assert ph.srgb_to_linear(np.float64(0.04)) == pytest.approx(0.04 / 12.92)


def test_luminance_and_luma_weights_add_up_to_white():
    white = np.ones(3)
    assert ph.luminance(white) == pytest.approx(1)
    assert ph.luma_rec601(white) == pytest.approx(1)
    np.testing.assert_allclose(ph.luminance(np.eye(3)), [0.2126, 0.7152, 0.0722])


def test_log_luminance_counts_stops_and_is_finite_in_black():
    grey = np.array([0.2, 0.2, 0.2])
    assert ph.log_luminance(2 * grey) - ph.log_luminance(grey) == pytest.approx(1, abs=0.01)
    assert ph.log_luminance(np.zeros(3)) == pytest.approx(np.log2(1e-3))


@pytest.mark.parametrize(
    ("x", "y", "kelvin"), [(0.44757, 0.40745, 2856), (0.31271, 0.32902, 6504), (0.34567, 0.3585, 5003)]
)
def test_cct_of_the_standard_illuminants(x, y, kelvin):
    xyz = np.array([x / y, 1, (1 - x - y) / y])
    linear = np.linalg.solve(np.asarray(ph._RGB_TO_XYZ), xyz) / 4
    assert ph.cct(linear) == pytest.approx(kelvin, rel=0.005)
    assert ph.mired(linear) == pytest.approx(1e6 / kelvin, rel=0.005)


def test_cct_is_finite_and_ordered_for_every_colour():
    colours = np.random.default_rng(0).random((5000, 3)) ** 3
    colours[:4] = np.eye(3)[[0, 1, 2]].tolist() + [[0, 0, 0]]
    values = ph.mired(colours)
    assert np.isfinite(values).all()
    assert values.min() >= 39
    assert values.max() <= 620
    assert ph.cct(np.zeros(3)) == pytest.approx(6505, rel=0.002)
    assert ph.cct(np.array([0, 0, 1.0])) > 20000 > 2000 > ph.cct(np.array([1.0, 0, 0]))


def test_jax_gives_what_numpy_gives_and_has_gradients():
    pixels = np.random.default_rng(1).random((4, 5, 3)).astype(np.float32)
    pixels[0, 0] = 0
    for function in (ph.srgb_to_linear, ph.linear_to_srgb, ph.log_luminance, ph.luma_rec601, ph.mired):
        ours = function(jnp.asarray(pixels))
        assert isinstance(ours, jax.Array)
        np.testing.assert_allclose(ours, function(pixels), rtol=2e-4, atol=1e-5)
        gradient = jax.grad(lambda p, f=function: f(p).sum())(jnp.asarray(pixels))
        assert bool(jnp.isfinite(gradient).all())
