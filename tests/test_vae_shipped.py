"""The shipped codec: small, normalised, and true to held-out scenes of every family."""

from pathlib import Path

import numpy as np
import pytest

import wanjax
from data_pipelines.light_scenes import FAMILIES
from experiments.train_codec import rendered
from wanjax import codec_training, hub
from wanjax.light import luminance
from wanjax.light.photometry import luminance as rec709
from wanjax.light.photometry import srgb_to_linear

FOLDER = Path(wanjax.__file__).parent / "assets" / "codec_light_scenes_tiny"


@pytest.fixture(scope="module")
def codec():
    return hub.load_vae(FOLDER)


def test_is_at_most_8_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_scenes_keep_their_picture_and_their_light(codec, family):
    model, params = codec
    figures = codec_training.measure(model, params, rendered([family], "test", 4))
    assert figures["psnr"].min() >= 28
    assert figures["frame_error"].mean() <= 0.02  # stops


def test_latents_of_held_out_scenes_are_normalised_and_carry_luminance(codec):
    model, params = codec
    clips = rendered(FAMILIES, "test", 2)
    latents = np.asarray(model.apply({"params": params}, clips / np.float32(127.5) - 1))
    assert abs(latents.mean()) < 0.2 and 0.7 < latents.std() < 1.3
    fit = luminance.load(FOLDER / "luminance.json")
    cells = luminance.cell_luminance(rec709(srgb_to_linear(clips.astype(np.float64) / 255)))
    predicted = latents @ np.float64(fit.m) + fit.bias
    assert fit.r2 > 0.9
    assert 1 - ((predicted - cells) ** 2).mean() / cells.var() > 0.8
