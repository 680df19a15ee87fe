"""The codecs: shapes, causality, chunks, brightness, refused input, files, parity with diffusers' recorded outputs."""

import dataclasses
import pathlib
from functools import partial

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import vae_case
from tests.parity.vae_case import CASES
from wanjax import hub, hub_configs
from wanjax.models.rows import count, export_tensors, import_tensors, shapes
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

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


@pytest.fixture(scope="module")
def case_variables() -> dict[str, dict]:
    """Parameters of the recorded cases."""
    configs = {name: case.config for name, case in CASES.items()}
    return {name: {"params": import_tensors(vae_rows(config), vae_case.foreign_params(config))}
            for name, config in configs.items()}


@pytest.mark.parametrize("name", CASES)
def test_diffusers_recorded_outputs_within_1e_4(name, case_variables):
    recorded = load_file(vae_case.recorded(name))
    case, variables = CASES[name], case_variables[name]
    model = WanVAE(case.config)
    mean, logvar = model.apply(variables, case.video, method="moments")
    np.testing.assert_allclose(mean, recorded["mean"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logvar, recorded["logvar"], atol=1e-4, rtol=0)
    decoded = model.apply(variables, case.latents, method="decode")
    np.testing.assert_allclose(decoded, recorded["video"], atol=1e-4, rtol=0)


def encoded_whole(model: WanVAE, variables: dict, clip: np.ndarray) -> np.ndarray:
    """Normalised latents by the program that the parity test compiles."""
    mean = np.asarray(model.apply(variables, clip, method="moments")[0])
    return (mean - np.float32(model.config.latents_mean)) / np.float32(model.config.latents_std)


def test_wan22_chunks_give_the_whole_clips_numbers(case_variables):
    case, variables = CASES["vae22"], case_variables["vae22"]
    model = WanVAE(case.config)
    whole = encoded_whole(model, variables, case.video)
    np.testing.assert_allclose(model.apply(variables, case.video, method="encode_chunked"), whole, atol=1e-5, rtol=0)
    decoded = model.apply(variables, case.latents, method="decode")
    chunked = model.apply(variables, case.latents, method="decode_chunked")
    np.testing.assert_allclose(chunked, decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["constant", "ramp"])
def test_chunks_keep_every_frames_brightness(name, kind, case_variables):
    case, variables = CASES[name], case_variables[name]
    model = WanVAE(case.config)
    levels = np.linspace(-0.6, 0.6, case.frames, dtype=np.float32) if kind == "ramp" else np.full(case.frames, 0.3)
    clip = np.broadcast_to(levels.astype(np.float32)[None, :, None, None, None], case.video.shape)
    whole = model.apply(variables, encoded_whole(model, variables, clip), method="decode")
    latents = model.apply(variables, clip, method="encode_chunked")
    chunked = model.apply(variables, latents, method="decode_chunked")
    np.testing.assert_allclose(chunked.mean((2, 3, 4)), whole.mean((2, 3, 4)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "set_by_caller", "highest"),
    [("float32", None, True), ("float32", "tensorfloat32", False), ("bfloat16", None, False)],
)
def test_float32_is_float32_on_accelerators_too_unless_jax_is_told_otherwise(tiny, dtype, set_by_caller, highest):
    _, variables = tiny
    model = WanVAE(dataclasses.replace(TINY, dtype=dtype, encoder_dtype=dtype))
    for method, shape in (("decode", (1, 2, 1, 1, 16)), ("encode", (1, 5, 8, 8, 3))):
        with jax.default_matmul_precision(set_by_caller):
            program = jax.make_jaxpr(partial(model.apply, method=method))(variables, np.zeros(shape, np.float32))
        assert ("HIGHEST" in str(program)) == highest


@pytest.mark.parametrize(("config", "published"), [(VAEConfig(), 126_892_531), (WAN22, 704_688_668)])
def test_init_makes_the_tensors_of_the_rows(config, published):
    model = WanVAE(config)
    made = jax.eval_shape(model.init, jax.random.key(0))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(made, shapes(vae_rows(config), np.float32))
    assert count(vae_rows(config)) == published


@pytest.mark.parametrize("config", [TINY, CASES["vae22"].config], ids=["wan2.1", "wan2.2"])
def test_foreign_tensors_survive_a_round_trip(config):
    foreign = vae_case.foreign_params(config)
    for names in ("diffusers", "official"):
        rows = vae_rows(config)
        theirs = export_tensors(rows, import_tensors(rows, foreign), names)
        again = export_tensors(rows, import_tensors(rows, theirs, names))
        chex.assert_trees_all_equal(again, foreign)


def test_wan22_official_names():
    """As in the state dict of the official ``WanVAE_`` (``wan/modules/vae2_2.py``)."""
    shape = {row.official: row.foreign_shape for row in vae_rows(WAN22)}
    assert shape["encoder.conv1.weight"] == (160, 12, 3, 3, 3)
    assert shape["encoder.downsamples.0.downsamples.0.residual.0.gamma"] == (160, 1, 1, 1)
    assert shape["encoder.downsamples.0.downsamples.2.resample.1.weight"] == (160, 160, 3, 3)
    assert shape["encoder.downsamples.1.downsamples.0.shortcut.weight"] == (320, 160, 1, 1, 1)
    assert shape["encoder.downsamples.2.downsamples.2.time_conv.weight"] == (640, 640, 3, 1, 1)
    assert shape["encoder.downsamples.3.downsamples.1.residual.6.bias"] == (640,)
    assert shape["conv1.weight"] == (96, 96, 1, 1, 1)
    assert shape["decoder.middle.1.to_qkv.weight"] == (3072, 1024, 1, 1)
    assert shape["decoder.upsamples.0.upsamples.3.time_conv.weight"] == (2048, 1024, 3, 1, 1)
    assert shape["decoder.upsamples.2.upsamples.3.resample.1.weight"] == (512, 512, 3, 3)
    assert shape["decoder.upsamples.3.upsamples.2.residual.3.gamma"] == (256, 1, 1, 1)
    assert shape["decoder.head.2.weight"] == (12, 256, 3, 3, 3)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_codec_comes_back_to_the_bit(name, tmp_path, case_variables):
    model = WanVAE(CASES[name].config)
    hub.save_vae(tmp_path / "once", model, case_variables[name]["params"])
    found, params = hub.load_vae(tmp_path / "once")
    assert found == model
    chex.assert_trees_all_equal(params, case_variables[name]["params"])
    hub.save_vae(tmp_path / "again", found, params)
    files = sorted(file.name for file in (tmp_path / "once").iterdir())
    assert "config.json" in files
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "once" / file).read_bytes()


WAN22_JSON = {
    "_class_name": "AutoencoderKLWan", "attn_scales": [], "base_dim": 160, "clip_output": False,
    "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "dropout": 0.0, "in_channels": 12, "is_residual": True,
    "latents_mean": list(WAN22.latents_mean), "latents_std": list(WAN22.latents_std), "num_res_blocks": 2,
    "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4,
    "temperal_downsample": [False, True, True], "z_dim": 48,
}  # fmt: skip


def test_wan22_config_file():
    """The settings of ``vae/config.json`` beside TI2V-5B."""
    assert hub_configs.vae_config(WAN22_JSON, pathlib.Path("vae")) == (WAN22, [])
    assert hub_configs.vae_json(WAN22).items() <= WAN22_JSON.items()
    assert WanVAE(WAN22).strides == (4, 16, 16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in_channels": 3}, "in_channels = 3; only 12 is built"),
        ({"scale_factor_spatial": 8}, "scale_factor_spatial = 8; only 16 is built"),
        ({"dim_mult": [1, 2, 4, 3]}, "averages 640 values into 480 channels"),
    ],
)
def test_a_config_file_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        hub_configs.vae_config({**WAN22_JSON, **changed}, pathlib.Path("vae"))


def test_wan22_refuses_a_clip_that_does_not_fill_its_latents(case_variables):
    with pytest.raises(ValueError, match="24x32 pixels; the codec takes multiples of 16: crop to 16x32"):
        WanVAE(CASES["vae22"].config).apply(case_variables["vae22"], np.zeros((1, 5, 24, 32, 3), np.float32))


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
        ({"encoder_dtype": "float8"}, "VAEConfig.encoder_dtype is 'float8'; expected one of"),
        ({"patch": 0}, "patch is 0; it must be at least 1"),
        ({"decoder_base_dim": 0}, "decoder_base_dim is 0; it must be at least 1"),
        ({"residual": True, "dim_mult": (1, 2, 4, 3)}, "averages 384 values into 288 channels"),
        ({"residual": True, "dim_mult": (1, 1, 8, 8)}, "repeats 768 channels into 384 values"),
    ],
)
def test_config_refuses_sizes_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**fields)
