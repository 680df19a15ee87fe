"""The objective is the weighted sum of its terms, and reports each apart."""
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
