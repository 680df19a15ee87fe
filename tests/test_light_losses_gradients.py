"""Every loss of light: its value and gradient against a plain float64 formula, what its minimum is, what it ignores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax.light import losses
from wanjax.light.photometry import log_luminance, srgb_to_linear

SHAPE = (3, 5, 4, 4, 4)
M = np.array([0.05, -0.1, 0.025, 0.2])
SIGMA = np.array([0.1, 0.45, 0.8])


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape)


def gate(sigma):
    return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)


def mean(x):
    return x.mean(axis=tuple(range(1, x.ndim)))


def change_weighted(pred):
    x0 = normal(2)
    change = np.sqrt((np.diff(x0, axis=1) ** 2).mean(-1, keepdims=True))
    change = np.concatenate([change[:, :1], change], axis=1)
    weight = np.minimum(1 + 2 * np.log1p(change), 2.5)
    assert 0.1 < (weight == 2.5).mean() < 0.9
    weight = weight / weight.mean(axis=(1, 2, 3, 4), keepdims=True)
    return mean(weight * (pred - normal(1)) ** 2)


def consistency(pred, relative):
    change = np.abs(np.diff((pred - (normal(1) if relative else 0)) @ M, axis=1))
    assert 0.1 < (change > 0.3).mean() < 0.9
    return mean(change + np.maximum(change - 0.3, 0))


def video(seed):
    # some of it outside [-1, 1], where it counts as its limit
    return 0.6 * normal(seed, (3, 5, 4, 4, 3))


def temporal(pred):
    stops = [log_luminance(srgb_to_linear(x / 2 + 0.5)) for x in (pred, video(1))]
    return np.where(SIGMA < 0.5, gate(SIGMA), 0) * mean(np.diff(stops[0] - stops[1], axis=1) ** 2)


VISIBILITY = np.clip(normal(1, (3, 5, 8, 8)) + 0.5, 0, 1)


def shadow(logits):
    p = 1 / (1 + np.exp(-logits))
    entropy = -(VISIBILITY * np.log(p) + (1 - VISIBILITY) * np.log(1 - p))
    a, b = 1 - p, 1 - VISIBILITY
    total = lambda x: x.sum(axis=(1, 2, 3))
    return gate(SIGMA) * (mean(entropy) + 1 - (2 * total(a * b) + 1) / (total(a**2) + total(b**2) + 1))


CASES = {
    "velocity": (lambda x: losses.velocity_loss(x, normal(1)), lambda x: mean((x - normal(1)) ** 2), SHAPE),
    "change_weight": (lambda x: losses.change_weighted_loss(x, normal(1), normal(2), strength=2.0, limit=2.5),
                      change_weighted, SHAPE),
    "light_consistency, relative": (
        lambda x: losses.light_consistency_loss(x, normal(1), M, threshold=0.3),
        lambda x: consistency(x, relative=True), SHAPE),
    "light_consistency, absolute": (
        lambda x: losses.light_consistency_loss(x, normal(1), M, mode="absolute", threshold=0.3),
        lambda x: consistency(x, relative=False), SHAPE),
    "temporal_luminance": (lambda x: losses.temporal_luminance_loss(x, video(1), SIGMA), temporal, (3, 5, 4, 4, 3)),
    "shadow": (lambda x: losses.shadow_loss(x, VISIBILITY, SIGMA), shadow, (3, 5, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name):
    loss, formula, shape = CASES[name]
    x = 0.6 * normal(0, shape)
    value, pull = jax.vjp(loss, jnp.asarray(x, jnp.float32))
    assert value.shape == (3,) and value.dtype == jnp.float32
    x = np.asarray(x, np.float32).astype(np.float64)  # the same point for both
    np.testing.assert_allclose(value, formula(x), rtol=1e-5, atol=1e-7)
    for clip in range(3):
        (gradient,) = pull(jnp.eye(3)[clip])
        gradient = np.asarray(gradient, np.float64)
        assert not np.delete(gradient, clip, axis=0).any(), "a clip's loss depends on its own prediction alone"
        direction = normal(10 + clip, shape)
        step = 1e-7  # short enough to cross next to no kink, long enough for float64
        slope = (formula(x + step * direction) - formula(x - step * direction))[clip] / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_what_is_relative_to_the_clip_is_zero_for_the_clip_and_positive_for_frozen_light():
    clip = np.cumsum(normal(0), axis=1)
    frozen = np.broadcast_to(clip[:, :1], clip.shape)
    assert not losses.light_consistency_loss(clip, clip, M).any()
    assert float(losses.light_consistency_loss(frozen, clip, M).min()) > 0
    pixels = np.clip(np.cumsum(0.1 * video(0), axis=1), -1, 1)
    still = np.broadcast_to(pixels[:, :1], pixels.shape)
    assert not losses.temporal_luminance_loss(pixels, pixels, SIGMA).any()
    assert float(losses.temporal_luminance_loss(still, pixels, SIGMA)[0]) > 0


def test_the_absolute_penalty_prefers_frozen_light():
    clip = np.cumsum(normal(0), axis=1)
    frozen = np.broadcast_to(clip[:, :1], clip.shape)
    assert not losses.light_consistency_loss(frozen, clip, M, mode="absolute").any()
    assert float(losses.light_consistency_loss(clip, clip, M, mode="absolute").min()) > 0


def test_the_difference_is_along_time_and_not_across_clips():
    clips = np.broadcast_to(normal(0)[:, :1], SHAPE)  # three different clips, each of them still
    assert not losses.light_consistency_loss(clips, np.zeros(SHAPE), M, mode="absolute").any()


def test_a_still_clip_has_the_plain_velocity_loss():
    still = np.broadcast_to(normal(2)[:, :1], SHAPE)
    plain = losses.velocity_loss(normal(0), normal(1))
    np.testing.assert_allclose(losses.change_weighted_loss(normal(0), normal(1), still), plain, rtol=1e-6)


def test_change_has_more_weight_and_the_weights_average_to_one():
    x0 = np.zeros(SHAPE)
    x0[:, 3:, :2] = 3.0  # the upper half changes once
    error = np.zeros((2, *SHAPE))
    error[0, :, 3, 0], error[1, :, 3, 3] = 1, 1
    changing, still = (losses.change_weighted_loss(e, np.zeros(SHAPE), x0) for e in error)
    plain = losses.velocity_loss(error[0], np.zeros(SHAPE))
    assert (changing > 1.5 * plain).all() and (still < plain).all()
    everywhere = losses.change_weighted_loss(np.ones(SHAPE), np.zeros(SHAPE), x0)
    np.testing.assert_allclose(everywhere, 1.0, rtol=5e-6)


def test_the_weights_of_a_clip_do_not_depend_on_the_batch():
    whole = losses.change_weighted_loss(normal(0), normal(1), normal(2))
    alone = losses.change_weighted_loss(normal(0)[:1], normal(1)[:1], normal(2)[:1])
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-6)


def test_the_gate_falls_from_one_to_zero_and_may_be_cut():
    sigma = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(losses.noise_gate(sigma), [1, 0.9, 0.5, 0.1, 0], atol=1e-6)
    np.testing.assert_allclose(losses.noise_gate(sigma, 0.5), [1, 0.9, 0, 0, 0], atol=1e-6)


def test_a_soft_edge_is_matched_exactly_and_a_clip_without_shadow_is_defined():
    for some in (VISIBILITY, np.ones((3, 5, 8, 8)), np.zeros((3, 5, 8, 8))):
        truth = np.clip(some, 1e-3, 1 - 1e-3)  # logits are finite there
        logits = np.log(truth) - np.log1p(-truth)
        best = losses.shadow_loss(logits, truth, np.zeros(3))
        for other in (logits + 0.3, logits - 0.3, 0.8 * logits):
            assert (losses.shadow_loss(other, truth, np.zeros(3)) > best).all()
        gradient = jax.grad(lambda x, q=truth: losses.shadow_loss(x, q, np.zeros(3)).sum())(jnp.asarray(logits))
        assert float(jnp.abs(gradient).max()) < 1e-6


@pytest.mark.parametrize(("call", "message"), [
    (lambda: losses.light_consistency_loss(normal(0), normal(1), M, mode="both"), "mode = 'both'"),
    (lambda: losses.light_consistency_loss(normal(0), normal(1), np.zeros(4)), "m = 0"),
    (lambda: losses.change_weighted_loss(normal(0), normal(1), normal(2)[:1]), "x0 of the velocity's shape"),
    (lambda: losses.change_weighted_loss(normal(0), normal(1), normal(2), limit=0.5), "limit = 0.5"),
    (lambda: losses.temporal_luminance_loss(video(0), video(1)[:, :3], SIGMA), "one shape"),
    (lambda: losses.shadow_loss(normal(0, (3, 5, 8, 8)), VISIBILITY[:, :, :4], SIGMA), "one shape"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
