"""The shipped codecs: small, normalised, and true to held-out scenes of the families they were trained on."""

from pathlib import Path

import numpy as np
import pytest

import wanjax
from data_pipelines.light_scenes import ALL, FAMILIES
from experiments.train_codec import rendered
from wanjax import codec_training, hub
from wanjax.generate import frames
from wanjax.light import luminance
from wanjax.light.metrics import measure
from wanjax.light.photometry import luminance as rec709
from wanjax.light.photometry import srgb_to_linear

ASSETS = Path(wanjax.__file__).parent / "assets"
TRAINED_ON = {"light_scenes_tiny": FAMILIES, "light_scenes_all": ALL}


@pytest.fixture(scope="module")
def opened():
    """Model and parameters by name."""
    return {name: hub.load_vae(ASSETS / f"codec_{name}") for name in TRAINED_ON}


@pytest.mark.parametrize("name", TRAINED_ON)
def test_is_at_most_8_megabytes(name):
    assert sum(file.stat().st_size for file in (ASSETS / f"codec_{name}").iterdir()) <= 8_000_000


@pytest.mark.parametrize(("name", "family"), [(name, f) for name, families in TRAINED_ON.items() for f in families])
def test_held_out_scenes_keep_their_picture_and_their_light(opened, name, family):
    """Of street lamps and water, 8x8 latents of 16 channels lose fine texture, but not the light."""
    model, params = opened[name]
    figures = codec_training.measure(model, params, rendered([family], "test", 4))
    assert figures["psnr"].min() >= {"street_lamp": 25, "water_glitter": 24}.get(family.partition("/")[0], 28)
    assert figures["frame_error"].mean() <= 0.02  # stops


@pytest.mark.parametrize("family", ["sunrise_room", "constant/truck", "street_lamp"])
def test_coding_adds_little_flicker_where_it_was_trained_not_to(opened, family):
    model, params = opened["light_scenes_all"]
    clips = rendered([family], "test", 2)
    encode = lambda clip: model.apply({"params": params}, clip[None] / np.float32(127.5) - 1)[0]
    made = [np.stack(list(frames(model, params, encode(clip))))
            for clip in clips]
    coded, original = ([measure(clip, fps=8.0) for clip in group] for group in (made, clips))
    for measured, bound in (("global_flicker", 0.006), ("local_flicker", 0.012)):
        assert np.mean([a[measured] - b[measured] for a, b in zip(coded, original, strict=True)]) <= bound


@pytest.mark.parametrize("name", TRAINED_ON)
def test_latents_of_held_out_scenes_are_normalised_and_carry_luminance(opened, name):
    model, params = opened[name]
    clips = rendered(TRAINED_ON[name], "test", 2)
    latents = np.asarray(model.apply({"params": params}, clips / np.float32(127.5) - 1))
    assert abs(latents.mean()) < 0.2 and 0.7 < latents.std() < 1.3
    fit = luminance.load(ASSETS / f"codec_{name}" / "luminance.json")
    cells = luminance.cell_luminance(rec709(srgb_to_linear(clips.astype(np.float64) / 255)))
    predicted = latents @ np.float64(fit.m) + fit.bias
    assert fit.r2 > 0.9
    assert 1 - ((predicted - cells) ** 2).mean() / cells.var() > 0.8
