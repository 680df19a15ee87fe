"""Training a codec: it learns, resumes to the same bits, and its luminance vector is what least squares says."""

import json
from dataclasses import replace

import chex
import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import train_codec
from wanjax import codec_training, hub
from wanjax.codec_training import CodecTrainingConfig
from wanjax.light import luminance
from wanjax.models.vae import VAEConfig, WanVAE

MODEL = WanVAE(
    VAEConfig(base_dim=2, num_res_blocks=1, dim_mult=(1, 1, 1, 1), latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16)
)
CONFIG = CodecTrainingConfig(
    steps=4, full_steps=0, crop_batch=1, crop_frames=5, crop_size=16, warmup_steps=1, evaluate_every=100, save_every=2
)


def flat_clips(step: int, *, batch: int, frames: int, size: int) -> np.ndarray:
    """Clips of one colour each."""
    colour = np.random.default_rng(step).uniform(-1, 1, (batch, 1, 1, 1, 3))
    return np.broadcast_to(colour, (batch, frames, size, size, 3)).astype(np.float32)


def run(config: CodecTrainingConfig, workdir, reports: list | None = None):
    def report(step, figures):
        if reports is not None:
            reports.append((step, dict(figures)))

    return codec_training.train(MODEL, config, flat_clips, workdir=workdir, held_out={}, report=report)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    whole = run(CONFIG, tmp_path / "whole")
    step, state = codec_training.make_step(MODEL, CONFIG), codec_training.init_state(MODEL, CONFIG)
    state = codec_training.jax.tree.map(codec_training.jnp.copy, state)
    for done in range(2):
        state, _ = step(state, flat_clips(done, **CONFIG.batch_of(done)))
    (tmp_path / "stopped").mkdir()
    codec_training.save_state(tmp_path / "stopped" / "state.msgpack", state)
    chex.assert_trees_all_equal(run(CONFIG, tmp_path / "stopped"), whole)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="step 4 .*lower learning_rate"):
        run(replace(CONFIG, learning_rate=float("inf")), tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"full_steps": 9, "steps": 4}, "full_steps is 9; expected 0 to steps = 4"),
        ({"crop_frames": 8}, r"crop_frames is 8; the codec takes 4n \+ 1"),
        ({"full_size": 60}, "full_size is 60; the codec takes multiples of 8"),
    ],
)
def test_config_refuses_what_the_codec_cannot_take(fields, message):
    with pytest.raises(ValueError, match=message):
        CodecTrainingConfig(**fields)


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
    with flagsaver.flagsaver(
        workdir=str(tmp_path), steps=1, full_steps=0, clips=1, held_out=1, base_dim=2, fit_clips=1
    ):
        train_codec.main(["train_codec"])
    folder = tmp_path / "codec"
    model, params = hub.load_vae(folder)
    fit = luminance.load(folder / "luminance.json")
    assert len(fit.m) == 16 and fit.r2 <= 1
    clip = train_codec.rendered("sundial", "train", 1)
    chex.assert_shape(model.apply({"params": params}, clip / np.float32(127.5) - 1), (1, 5, 8, 8, 16))
    (folder / "luminance.json").write_text(json.dumps({"m": []}))
    with pytest.raises(ValueError, match="fit it again"):
        luminance.load(folder / "luminance.json")
    with flagsaver.flagsaver(fit_luminance=True, checkpoint=str(folder), fit_clips=1):
        train_codec.main(["train_codec"])
    np.testing.assert_allclose(luminance.load(folder / "luminance.json").m, fit.m, rtol=1e-6)
