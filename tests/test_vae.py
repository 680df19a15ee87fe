"""The codec: shapes, causality, chunks, refused input, and parity with diffusers' recorded outputs."""

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import vae_case
from wanjax.models.rows import count, export_tensors, import_tensors, shapes
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import VAEConfig, WanVAE

TINY = VAEConfig(base_dim=8, num_res_blocks=1, dim_mult=(1, 1, 2, 2))


def randomised(config: VAEConfig) -> dict:
    """Parameters of which none is zero or one."""
    return {"params": import_tensors(vae_rows(config), vae_case.foreign_params(config, seed=3))}


@pytest.fixture(scope="module")
def tiny():
    return WanVAE(TINY), randomised(TINY)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return vae_case.video(seed=4, frames=13, size=(16, 24))


@pytest.fixture(scope="module")
def latents(tiny, clip) -> np.ndarray:
    model, variables = tiny
    return np.asarray(model.apply(variables, clip))


def test_encode_and_decode_shapes(tiny, clip, latents):
    model, variables = tiny
    chex.assert_shape(latents, (1, 4, 2, 3, 16))
    chex.assert_shape(model.apply(variables, latents, method="decode"), clip.shape)


def test_encode_returns_the_normalised_mean(tiny, clip, latents):
    model, variables = tiny
    mean, logvar = model.apply(variables, clip, method="moments")
    chex.assert_equal_shape([mean, logvar, latents])
    expected = (np.asarray(mean) - np.float32(TINY.latents_mean)) / np.float32(TINY.latents_std)
    np.testing.assert_allclose(latents, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_chunks_give_the_whole_clips_numbers(tiny, clip, latents, method):
    model, variables = tiny
    x = clip if method == "encode" else latents
    whole = np.asarray(model.apply(variables, x, method=method))
    np.testing.assert_allclose(model.apply(variables, x, method=method + "_chunked"), whole, atol=1e-5)


def test_latents_do_not_depend_on_later_frames(tiny, clip, latents):
    model, variables = tiny
    changed = clip.copy()
    changed[:, 5:] = -changed[:, 5:]  # frames 1-4 belong to latent 1, frame 5 is the first of latent 2
    after = np.asarray(model.apply(variables, changed))
    np.testing.assert_allclose(after[:, :2], latents[:, :2], atol=1e-6)
    assert np.abs(after[:, 2] - latents[:, 2]).max() > 1e-2


def test_frames_do_not_depend_on_later_latents(tiny, latents):
    model, variables = tiny
    before = np.asarray(model.apply(variables, latents, method="decode"))
    changed = latents.copy()
    changed[:, 2:] = -changed[:, 2:]
    after = np.asarray(model.apply(variables, changed, method="decode"))
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-6)
    assert np.abs(after[:, 5] - before[:, 5]).max() > 1e-2


def test_a_single_frame_is_the_first_of_a_clip(tiny, clip, latents):
    model, variables = tiny
    np.testing.assert_allclose(model.apply(variables, clip[:, :1]), latents[:, :1], atol=1e-6)


def test_diffusers_recorded_outputs_within_1e_4():
    recorded = load_file(vae_case.RECORDED)
    model = WanVAE(vae_case.CONFIG)
    variables = {"params": import_tensors(vae_rows(vae_case.CONFIG), vae_case.foreign_params())}
    mean, logvar = model.apply(variables, vae_case.video(), method="moments")
    np.testing.assert_allclose(mean, recorded["mean"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logvar, recorded["logvar"], atol=1e-4, rtol=0)
    decoded = model.apply(variables, vae_case.latents(), method="decode")
    np.testing.assert_allclose(decoded, recorded["video"], atol=1e-4, rtol=0)


def test_init_makes_the_tensors_of_the_rows():
    model = WanVAE(VAEConfig())
    made = jax.eval_shape(model.init, jax.random.key(0))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(made, shapes(vae_rows(model.config), np.float32))
    assert count(vae_rows(model.config)) == 126_892_531  # Wan2.1's published codec


def test_foreign_tensors_survive_a_round_trip():
    foreign = vae_case.foreign_params(TINY)
    for names in ("diffusers", "official"):
        rows = vae_rows(TINY)
        theirs = export_tensors(rows, import_tensors(rows, foreign), names)
        again = export_tensors(rows, import_tensors(rows, theirs, names))
        chex.assert_trees_all_equal(again, foreign)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 6, 16, 16, 3), r"6 frames; the codec takes 4n \+ 1: crop to 5"),
        ((1, 5, 20, 16, 3), "20x16 pixels; the codec takes multiples of 8: crop to 16x16"),
        ((5, 16, 16, 3), r"expected \[B, T, H, W, 3\]"),
    ],
)
def test_refuses_a_clip_that_does_not_fit(tiny, shape, message):
    model, variables = tiny
    with pytest.raises(ValueError, match=message):
        model.apply(variables, np.zeros(shape, np.float32))


def test_refuses_latents_of_other_channels_and_unknown_methods(tiny):
    model, variables = tiny
    with pytest.raises(ValueError, match=r"expected \[B, F, h, w, 16\]"):
        model.apply(variables, np.zeros((1, 2, 2, 2, 4), np.float32), method="decode")
    with pytest.raises(ValueError, match="no method 'sample'"):
        model.apply(variables, np.zeros((1, 1, 8, 8, 3), np.float32), method="sample")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"z_dim": 4}, "latents_mean has 16 entries; expected z_dim = 4"),
        ({"temporal_downsample": (True, True, True)}, "2 are true"),
        ({"dim_mult": (1, 2)}, "expected 4 positive integers"),
        ({"base_dim": 3, "dim_mult": (1, 1, 2, 2)}, "must be even"),
        ({"dtype": "float8"}, "expected one of"),
    ],
)
def test_config_refuses_sizes_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**fields)
