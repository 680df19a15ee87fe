"""The objective is the weighted sum of its terms, and reports each apart."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax import objectives
from wanjax.light import losses


def prediction(seed=0):
    a, b, c = (jax.random.normal(k, (2, 5, 8, 8, 4)) for k in jax.random.split(jax.random.key(seed), 3))
    return objectives.Prediction(a, b, c, jnp.asarray([0.5, 0.9]))


M = jnp.asarray([0.5, -0.2, 0.1, 0.3])


def test_terms_add_up_and_are_reported_unweighted():
    config = objectives.ObjectiveConfig(velocity=objectives.VelocityTerm(2.0), light=objectives.LightTerm(0.5))
    total, metrics = objectives.make_objective(config, M)(prediction(), jnp.asarray(0))
    p = prediction()
    assert metrics["loss/velocity"] == pytest.approx(float(losses.velocity_loss(p.velocity, p.target).mean()))
    light = losses.light_loss(p.velocity, p.target, M, pools=("frame", 4), orders=(1, 2))
    assert metrics["loss/light"] == pytest.approx(float(light.mean()), rel=1e-6)
    np.testing.assert_allclose(total, 2.0 * metrics["loss/velocity"] + 0.5 * metrics["loss/light"], rtol=1e-6)


def test_a_weight_may_be_a_schedule():
    term = objectives.LightTerm(((0, 0.0), (100, 1.0)))
    objective = objectives.make_objective(objectives.ObjectiveConfig(light=term), M)
    at = {s: objective(prediction(), jnp.asarray(s)) for s in (0, 50, 200)}
    for step, weight in ((0, 0.0), (50, 0.5), (200, 1.0)):
        total, m = at[step]
        np.testing.assert_allclose(total, m["loss/velocity"] + weight * m["loss/light"], rtol=1e-6)


def test_a_term_without_weight_is_not_computed():
    _, metrics = objectives.make_objective(objectives.ObjectiveConfig(), None)(prediction(), jnp.asarray(0))
    assert set(metrics) == {"loss", "loss/velocity"}


def test_light_without_a_luminance_vector_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="fit_luminance"):
        objectives.make_objective(objectives.ObjectiveConfig(light=objectives.LightTerm(0.1)), None)


def linear_decoder():
    """Two frames of pixels per latent, from a matrix that is the decoder's parameter."""
    def apply(params, x):
        return jnp.tanh(jnp.repeat(x @ params, 2, axis=1))

    return objectives.Decoder(apply, 0.3 * jax.random.normal(jax.random.key(9), (4, 3)))


PIXELS = objectives.ObjectiveConfig(temporal_luminance=objectives.TemporalLuminanceTerm(0.5, every=3))


def with_pixels(velocity, step, params, objective):
    p = prediction()._replace(velocity=velocity, sigma=jnp.asarray([0.2, 0.4]), decoder_params=params)
    return objective(p, step)[0]


def test_the_gradient_of_pixels_is_that_of_the_loss_on_both_decoded_clips():
    decoder = linear_decoder()
    objective = objectives.make_objective(PIXELS, None, decoder)
    p = prediction()._replace(sigma=jnp.asarray([0.2, 0.4]))

    def plain(velocity):
        q = p._replace(velocity=velocity)
        pred, real = (decoder.apply(decoder.params, x) for x in (q.predicted_x0, q.x0))
        return losses.velocity_loss(velocity, q.target).mean() + 0.5 * losses.temporal_luminance_loss(
            pred, real, q.sigma).mean()

    found = jax.grad(with_pixels)(p.velocity, jnp.asarray(2), decoder.params, objective)
    expected = jax.grad(plain)(p.velocity)
    alone = jax.grad(lambda v: losses.velocity_loss(v, p.target).mean())(p.velocity)
    assert float(jnp.linalg.norm(expected - alone)) > 0.01 * float(jnp.linalg.norm(alone))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


def test_some_clips_of_the_batch_stand_for_all_and_the_others_get_no_gradient():
    decoder = linear_decoder()
    some, every = (objectives.make_objective(dataclasses.replace(PIXELS, temporal_luminance=dataclasses.replace(
        PIXELS.temporal_luminance, clips=clips)), None, decoder) for clips in (1, 0))
    p = prediction()._replace(sigma=jnp.asarray([0.2, 0.4]), decoder_params=decoder.params)
    first = jax.tree.map(lambda x: x[:1], p._replace(decoder_params=None))._replace(decoder_params=decoder.params)
    term = "loss/temporal_luminance"
    np.testing.assert_allclose(some(p, 2)[1][term], every(first, 2)[1][term], rtol=1e-6)
    gradient = jax.grad(lambda v: some(p._replace(velocity=v), jnp.asarray(2))[1][term])(p.velocity)
    assert np.any(gradient[0]) and not np.any(gradient[1])


def test_no_gradient_goes_into_the_decoder_and_its_parameters_are_no_constants():
    decoder = linear_decoder()
    objective = objectives.make_objective(PIXELS, None, decoder)
    step, velocity = jnp.asarray(2), prediction().velocity
    into = jax.grad(with_pixels, argnums=2)(velocity, step, decoder.params, objective)
    assert not np.any(into)
    constants = jax.make_jaxpr(lambda *args: with_pixels(*args, objective))(velocity, step, decoder.params).consts
    assert not any(np.shape(c) == decoder.params.shape for c in constants)


def test_a_term_waits_for_its_steps():
    objective = objectives.make_objective(PIXELS, None, linear_decoder())
    computed = ["temporal_luminance" in objective.at(step).names for step in range(1, 7)]
    assert computed == [False, False, True, False, False, True]
    assert all("velocity" in objective.at(step).names for step in range(1, 7)) and objective.at(3) is objective


def test_pixels_are_for_the_low_noise_expert_alone():
    assert PIXELS.of((0.0, 500.0)).active == ("velocity", "temporal_luminance")
    assert PIXELS.of((500.0, 1000.0)).active == ("velocity",)
    assert PIXELS.of((0.0, 1000.0)).active == ("velocity", "temporal_luminance")  # a single expert
    with pytest.raises(ValueError, match="no decoder"):
        objectives.make_objective(PIXELS, None)


def test_the_predicted_clip_is_what_the_velocity_points_to():
    p = prediction()
    noise = p.target + p.x0
    sigma = p.sigma[:, None, None, None, None]
    noised = (1 - sigma) * p.x0 + sigma * noise
    np.testing.assert_allclose(p.predicted_x0, noised - sigma * p.velocity, atol=1e-5)


def test_all_terms_are_summed_and_reported_apart():
    weights = {"light": 0.1, "light_consistency": 0.2, "temporal_luminance": 0.3, "shadow": 0.4, "change_weight": 0.5}
    kinds = {"light": objectives.LightTerm, "light_consistency": objectives.LightConsistencyTerm,
             "temporal_luminance": objectives.TemporalLuminanceTerm, "shadow": objectives.ShadowTerm,
             "change_weight": objectives.ChangeWeightTerm}
    config = objectives.ObjectiveConfig(**{name: kinds[name](weight) for name, weight in weights.items()})
    objective = objectives.make_objective(config, M, linear_decoder())
    logits = jax.random.normal(jax.random.key(5), (2, 5, 16, 16))
    p = prediction()._replace(shadow_logits=logits, visibility=jax.nn.sigmoid(-logits), sigma=jnp.asarray([0.3, 0.9]),
                              decoder_params=objective.decoder.params)
    total, metrics = objective(p, jnp.asarray(3))
    parts = {name: float(metrics[f"loss/{name}"]) for name in weights}
    assert all(value > 0 for value in parts.values())
    expected = metrics["loss/velocity"] + sum(weights[name] * parts[name] for name in weights)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="ShadowHead"):
        objective(p._replace(visibility=None), jnp.asarray(3))
