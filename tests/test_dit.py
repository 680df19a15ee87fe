"""The transformer: recorded parity with diffusers, its conventions, its errors."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import dit_case
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.dit_layers import layer_norm, rms_norm
from wanjax.models.rows import export_tensors
from wanjax.models.rows.dit import dit_rows
from wanjax.models.timestep import timestep_features

CONFIG = dit_case.CONFIG


@pytest.fixture(scope="module")
def recorded():
    return load_file(dit_case.RECORDED)


@pytest.fixture(scope="module")
def params():
    return dit_case.params()


def _apply(model, params, inputs):
    return model.apply({"params": params}, inputs["latents"], inputs["timestep"], inputs["text"])


def _compiled(model, params, inputs):
    return jax.jit(partial(_apply, model))(params, inputs)


def _objective(model, inputs):
    def objective(params):
        velocity = _apply(model, params, inputs)
        return (velocity * inputs["cotangent"]).sum(), velocity

    return jax.jit(jax.grad(objective, has_aux=True))


def _relative(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_velocity_and_gradients_agree_with_diffusers_whatever_is_recomputed(recorded, params, remat):
    model = WanDiT(dataclasses.replace(CONFIG, remat=remat))
    gradients, velocity = _objective(model, dit_case.inputs())(params)
    assert 0.3 < np.std(recorded["clip/velocity"]) < 3
    np.testing.assert_allclose(velocity, recorded["clip/velocity"], atol=2e-5, rtol=0)
    for name, gradient in export_tensors(dit_rows(CONFIG), gradients).items():
        expected = recorded[f"clip/gradients/{name}"]
        assert np.linalg.norm(expected) > 0, name
        assert _relative(gradient, expected) <= 1e-5, name


def test_per_token_timesteps_agree_with_diffusers_and_constant_ones_with_per_clip(recorded, params):
    model = WanDiT(CONFIG)
    inputs = dit_case.inputs(per_token=True)
    velocity = _apply(model, params, inputs)
    assert velocity.dtype == jnp.float32 and velocity.shape == inputs["cotangent"].shape
    np.testing.assert_allclose(velocity, recorded["token/velocity"], atol=2e-5, rtol=0)
    inputs = dit_case.inputs()
    inputs["timestep"] = np.repeat(inputs["timestep"][:, None], dit_case.TOKENS, axis=1)
    np.testing.assert_allclose(_compiled(model, params, inputs), recorded["clip/velocity"], atol=2e-5, rtol=0)


def test_timestep_features_are_accurate_to_float64_under_jit():
    t = np.concatenate([np.arange(1001), np.random.default_rng(0).uniform(0, 1000, 1000)]).astype(np.float32)
    frequency = 10000.0 ** (-np.arange(128) / 128)
    angle = t.astype(np.float64)[:, None] * frequency
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    found = jax.jit(timestep_features, static_argnums=1)(t, 256)
    assert np.abs(found - expected).max() <= 2.5e-7


def test_norms_use_their_eps():
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32) * 1e-3
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x), 1e-6), expected, atol=1e-6)
    weight = np.linspace(0.5, 2, 64).astype(np.float32)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), weight, 1e-6), expected, atol=1e-6)


def test_a_fresh_network_predicts_zero_and_its_weights_are_wans():
    config = DiTConfig(width=96, heads=2, layers=2, ffn=256, in_channels=4, out_channels=4, text_dim=64)
    params = jax.jit(WanDiT(config).init)(jax.random.key(0))["params"]
    assert not params["head"]["projection"]["kernel"].any()
    assert np.std(params["head"]["modulation"]) == pytest.approx(96**-0.5, rel=0.2)
    assert np.std(params["text_embedding"]["in"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["time_embedding"]["out"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    kernel = np.asarray(params["blocks"]["ffn"]["in"]["kernel"])
    assert np.std(kernel) == pytest.approx((2 / (96 + 256)) ** 0.5, rel=0.05)
    assert not np.array_equal(kernel[0], kernel[1])
    # torch reads the patch convolution as a matrix [D, C·patch]
    assert np.std(params["patch_embedding"]["kernel"]) == pytest.approx((2 / (16 + 96)) ** 0.5, rel=0.05)
    assert (np.asarray(params["blocks"]["cross_norm"]["scale"]) == 1).all()


def test_bfloat16_compute_stays_near_float32_and_leaves_parameters_alone(recorded, params):
    model = WanDiT(dataclasses.replace(CONFIG, dtype="bfloat16"))
    velocity = _compiled(model, params, dit_case.inputs())
    assert velocity.dtype == jnp.float32
    assert 1e-4 < np.abs(velocity - recorded["clip/velocity"]).max() < 0.2
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))} == {
        jnp.dtype("float32")
    }


def test_text_is_never_masked_or_padded(params):
    model, inputs = WanDiT(CONFIG), dit_case.inputs()
    shorter = _compiled(model, params, inputs)
    inputs["text"] = np.concatenate([inputs["text"], np.zeros_like(inputs["text"])], axis=1)
    assert np.abs(_compiled(model, params, inputs) - shorter).max() > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": np.zeros((2, 3, 4, 6, 5))}, r"latents \(2, 3, 4, 6, 5\) must be \[B, F, h, w, 6\]"),
        ({"latents": np.zeros((2, 3, 5, 6, 6))}, r"\(3, 5, 6\) do not divide into patches \(1, 2, 2\)"),
        ({"timestep": np.zeros(3)}, r"timestep \(3,\) must be \[B\] = \[2\] or \[B, N\] = \[2, 18\]"),
        ({"text": np.zeros((1, 7, 20))}, r"text \(1, 7, 20\) must be \[B, L, E\] = \[2, L, 20\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(params, change, message):
    with pytest.raises(ValueError, match=message):
        _apply(WanDiT(CONFIG), params, dit_case.inputs() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width 32 does not divide into 5 heads"),
        ({"heads": 8}, "head_dim 4"),
        ({"layers": 0}, "layers is 0"),
        ({"freq_dim": 7}, "freq_dim 7 must be even"),
        ({"patch": (1, 2)}, r"patch \(1, 2\)"),
        ({"dtype": "float8"}, "dtype 'float8' is not one of"),
        ({"remat": "some"}, "remat 'some' is not one of"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
