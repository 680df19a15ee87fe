"""Training a codec: it learns, resumes to the same bits, and its luminance vector is what least squares says."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train_codec
from tests import forked
from wanjax import codec_training, hub
from wanjax.codec import find_codec
from wanjax.codec_training import CodecTrainingConfig
from wanjax.light import luminance, photometry
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

ROOT = Path(__file__).parents[1]
MODEL = WanVAE(
    VAEConfig(base_dim=8, num_res_blocks=1, dim_mult=(1, 2, 2, 5), latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16)
)
MODEL22 = WanVAE(replace(WAN22, base_dim=4, decoder_base_dim=8, num_res_blocks=1))
START = np.zeros((1, 1, 8, 8, 3), np.uint8)
# Single frames: a step's program is then a third as large, and compiling it is most of these tests' time.
CONFIG = CodecTrainingConfig(
    steps=4, full_steps=0, crop_batch=1, crop_frames=1, crop_size=8, warmup_steps=1, evaluate_every=100, save_every=2
)


@pytest.fixture
def random_start(monkeypatch):
    """Runs begin from random weights: nothing to fit."""
    random = jax.tree.map(np.array, MODEL.init(jax.random.key(0))["params"])
    monkeypatch.setattr(codec_training, "linear_start", lambda *args, **kwargs: random)


def flat_clips(step: int, *, batch: int, frames: int, size: int) -> np.ndarray:
    """Clips of one colour each."""
    colour = np.random.default_rng(step).uniform(-1, 1, (batch, 1, 1, 1, 3))
    return np.broadcast_to(colour, (batch, frames, size, size, 3)).astype(np.float32)


def run(workdir, clips=flat_clips):
    return codec_training.train(
        MODEL, CONFIG, clips, start=START, workdir=workdir, held_out={}, report=lambda *_: None
    )


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, random_start):
    whole = run(tmp_path / "whole")
    step, state = codec_training.make_step(MODEL, CONFIG), codec_training.init_state(MODEL, CONFIG, START)
    for done in range(2):
        state, _ = step(state, flat_clips(done, **CONFIG.batch_of(done)))
    (tmp_path / "stopped").mkdir()
    codec_training.save_state(tmp_path / "stopped" / "state.msgpack", state)
    chex.assert_trees_all_equal(run(tmp_path / "stopped"), whole)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, random_start):
    def broken(step: int, **sizes: int) -> np.ndarray:
        return flat_clips(step, **sizes) * np.float32("nan")

    with pytest.raises(FloatingPointError, match="step 4 .*lower learning_rate"):
        run(tmp_path, broken)


@pytest.mark.parametrize(
    ("fields", "strides", "message"),
    [
        ({"crop_frames": 8}, (4, 8, 8), r"crop_frames is 8; the codec takes 4n \+ 1"),
        ({"full_size": 60}, (4, 8, 8), "full_size is 60; the codec takes multiples of 8"),
        ({"crop_size": 24}, (4, 16, 16), "crop_size is 24; the codec takes multiples of 16"),
    ],
)
def test_sizes_that_the_codec_cannot_take_are_refused(fields, strides, message):
    with pytest.raises(ValueError, match=message):
        CodecTrainingConfig(**fields).check(strides)


def test_more_steps_on_whole_clips_than_there_are_steps_are_refused():
    with pytest.raises(ValueError, match="full_steps is 9; expected 0 to steps = 4"):
        CodecTrainingConfig(full_steps=9, steps=4)


def test_luminance_vector_is_recovered_from_a_linear_codec():
    draw = np.random.default_rng(0)
    latents, m = draw.normal(size=(2, 3, 4, 4, 16)), draw.normal(size=16)
    fit = luminance.fit_luminance(latents, latents @ m + 0.25, fitted_on="noise")
    np.testing.assert_allclose(fit.m, m, atol=1e-9)
    assert fit.bias == pytest.approx(0.25) and fit.r2 == pytest.approx(1.0)


def test_luminance_that_never_changes_is_refused():
    with pytest.raises(ValueError, match="m cannot be fitted"):
        luminance.fit_luminance(np.ones((1, 1, 2, 2, 16)), np.ones((1, 1, 2, 2)))


def test_a_cell_is_the_mean_of_its_frames_and_pixels():
    frames = np.arange(9, dtype=float)[None, :, None, None] * np.ones((1, 9, 16, 8))
    cells = luminance.cell_luminance(frames)
    chex.assert_shape(cells, (1, 3, 2, 1))
    np.testing.assert_allclose(cells[0, :, 0, 0], [0, 2.5, 6.5])


def test_launcher_trains_exports_and_fits_luminance_again(tmp_path):
    folder = train_codec.run(
        tmp_path, MODEL.config, CONFIG, families=("sundial", "street_lamp"), clips=1, held_out=1, fit_clips=1
    )
    model, params = hub.load_vae(folder)
    fit = luminance.load(folder / "luminance.json")
    assert len(fit.m) == 16 and fit.r2 <= 1
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"sundial/psnr", "street_lamp/psnr"} <= set(last)
    clip = train_codec.rendered(["sundial"], "train", 1)
    latents = model.apply({"params": params}, clip / np.float32(127.5) - 1)
    chex.assert_shape(latents, (1, 5, 8, 8, 16))
    (folder / "luminance.json").write_text(json.dumps({"m": []}))
    with pytest.raises(ValueError, match="fit it again"):
        luminance.load(folder / "luminance.json")
    (folder / "luminance.json").unlink()  # a codec from elsewhere has none
    command = ("-m", "experiments.train_codec", "--fit_luminance", f"--checkpoint={folder}", "--fit_clips=1")
    command += ("--families=sundial,street_lamp",)
    done = subprocess.run((sys.executable, *command), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "R2" in done.stdout
    np.testing.assert_allclose(luminance.load(folder / "luminance.json").m, fit.m, rtol=1e-4, atol=1e-6)


def test_a_run_starts_from_a_codec_with_its_sizes():
    tiny = hub.load_vae(find_codec("light_scenes_tiny"), dtype="float32")[1]
    config, given = train_codec.start_from(find_codec("light_scenes_tiny"))
    assert config == train_codec.tiny_config()
    chex.assert_trees_all_equal(given, jax.device_get(tiny))


def test_a_state_of_another_codec_is_not_gone_on_with(tmp_path):
    wider = WanVAE(replace(MODEL.config, base_dim=16))
    params = jax.tree.map(np.array, wider.init(jax.random.key(0))["params"])
    codec_training.save_state(tmp_path / "state.msgpack", codec_training.init_state(wider, CONFIG, params))
    with pytest.raises(ValueError, match="state.msgpack is of a codec of other sizes.*another work folder"):
        run(tmp_path)


@pytest.fixture(scope="module")
def codec22(tmp_path_factory):
    """A tiny codec of Wan2.2's architecture in its folder: random weights, published statistics."""
    folder = tmp_path_factory.mktemp("codec22")
    hub.save_vae(folder, MODEL22, MODEL22.init(jax.random.key(0))["params"])
    return folder


def test_m_of_wan22s_codec_is_the_least_squares_fit_of_its_16_pixel_cells(codec22):
    found = train_codec.fit_again(codec22, families=("sundial", "sunrise_room"), fit_clips=2)
    assert luminance.load(codec22 / "luminance.json") == found
    assert len(found.m) == 48 and "4 training clips" in found.fitted_on
    clips = train_codec.rendered(["sundial", "sunrise_room"], "train", 2)
    model, params = hub.load_vae(codec22)
    latents = np.asarray(model.apply({"params": params}, clips / np.float32(127.5) - 1), np.float64)
    chex.assert_shape(latents, (4, 5, 4, 4, 48))
    light = photometry.luminance(photometry.srgb_to_linear(clips / 255.0))
    cells = light.reshape(4, 17, 4, 16, 4, 16).mean((3, 5))
    cells = np.stack([cells[:, 0], *(cells[:, t : t + 4].mean(1) for t in range(1, 17, 4))], 1)
    off = cells - latents @ np.asarray(found.m) - found.bias
    assert found.r2 == pytest.approx(1 - (off**2).sum() / ((cells - cells.mean()) ** 2).sum(), abs=1e-4)
    # what is left over is orthogonal to every channel: nothing linear could take more out
    centred = latents.reshape(-1, 48) - latents.reshape(-1, 48).mean(0)
    assert np.abs(centred.T @ off.reshape(-1)).max() < 1e-3 * np.linalg.norm(centred) * np.linalg.norm(cells)


@dataclass(frozen=True)
class Checkers:
    """Stands for a codec that adds a checkerboard of 8x8 pixels, which cells of 16x16 do not see."""

    space: int
    config: VAEConfig = MODEL.config

    @property
    def strides(self):
        return 4, self.space, self.space

    def apply(self, variables, x, method):
        if method == "moments":
            return jnp.zeros_like(x), jnp.full_like(x, -30.0)
        rows, columns = np.indices((32, 32)) // 8
        return jnp.broadcast_to((0.2 * (-1.0) ** (rows + columns))[:, :, None], (1, 5, 32, 32, 3))


@pytest.mark.parametrize(("space", "seen"), [(8, 0.2), (16, 0.0)])
def test_cells_of_the_loss_are_the_codecs(space, seen):
    model = Checkers(space, replace(MODEL.config, z_dim=3, latents_mean=(0.0,) * 3, latents_std=(1.0,) * 3))
    _, terms = codec_training.codec_loss(model, CONFIG, {}, jnp.zeros((1, 5, 32, 32, 3)), jax.random.key(0), 0)
    assert float(terms["l1"]) == pytest.approx(0.2) and float(terms["cell"]) == pytest.approx(seen, abs=1e-6)
    assert 0 < float(terms["stops"])


def test_m_is_fitted_on_clips_of_the_size_that_is_asked_for(codec22):
    assert train_codec.fit_again(codec22, families=("sundial",), fit_clips=1, fit_size=96).fitted_on == (
        "1 training clips of light_scenes (sundial), 17 x 96 x 96")
    before = (codec22 / "luminance.json").read_bytes()
    with pytest.raises(ValueError, match="--fit_size 72: the codec takes multiples of 16; use 64 or 80"):
        train_codec.fit_again(codec22, families=("sundial",), fit_clips=1, fit_size=72)
    assert (codec22 / "luminance.json").read_bytes() == before


def test_a_codec_of_wan22s_architecture_is_trained_further_and_exported(codec22, tmp_path, monkeypatch):
    whole = train_codec.rendered
    monkeypatch.setattr(train_codec, "rendered", lambda *args: whole(*args)[:, :5, :32, :32])
    config, start = train_codec.start_from(codec22)
    sizes = {"families": ("sundial",), "clips": 1, "held_out": 1, "fit_clips": 1}
    folder = train_codec.run(tmp_path, config, replace(CONFIG, steps=1, crop_size=16), **sizes, start=start)
    model, params = hub.load_vae(folder)
    statistics = {"latents_mean": model.config.latents_mean, "latents_std": model.config.latents_std}
    assert model.config == replace(MODEL22.config, **statistics) and model.strides == (4, 16, 16)
    assert statistics["latents_std"] != MODEL22.config.latents_std
    before, after = (np.asarray(tree["encoder"]["conv_in"]["kernel"]) for tree in (start, params))
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(before, after, atol=0.01)
    assert len(luminance.load(folder / "luminance.json").m) == 48


def test_a_given_codec_keeps_its_sizes(codec22):
    command = (sys.executable, "-m", "experiments.train_codec", "--workdir=none")
    done = forked.run((*command, f"--init_from={codec22}", "--base_dim=16"))
    assert done.returncode != 0 and "--base_dim is for a codec from scratch" in done.stdout + done.stderr
