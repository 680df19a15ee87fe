"""Whole clips against diffusers' pipelines: the same folder, prompt, noise and images, from text to pixels."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is installed by make parity")

from tests.parity import loop
from tests.parity.loop_case import CASES, FRAMES, PROMPT
from wanjax import images, text
from wanjax.conditions import condition_on
from wanjax.convert import convert
from wanjax.denoise import Batch, denoise
from wanjax.pipeline import open_pipeline

ATOL = 1e-4  # of pixels in [0, 1]


def pixels(case, folder):
    """The clip [T, H, W, 3] in [0, 1] that wanjax makes of what the folder holds."""
    pipeline = open_pipeline(folder)
    assert pipeline.kind == case.kind
    first, last = (None if image is None else images.prepare_image(image, *case.size) for image in case.images)
    condition = condition_on(pipeline.kind, pipeline.vae, pipeline.vae_params, first, last, frames=FRAMES)
    embeddings = pipeline.text.embed([PROMPT, case.sample.negative_prompt])
    prompt, negative = (text.pad([one], pipeline.text.length) for one in embeddings)
    batch = Batch(case.noise, prompt, negative, condition)
    (latents,) = denoise(pipeline.experts, [batch], case.sample)
    video = np.concatenate(list(pipeline.vae.stream({"params": pipeline.vae_params}, latents)), axis=1)[0]
    return np.clip((video + 1) / 2, 0, 1)


def agree(found, expected, name):
    assert found.shape == expected.shape
    free = (expected > 0) & (expected < 1)
    assert free.mean() > 0.8 and expected[free].std() > 0.05, (free.mean(), expected[free].std())
    error = float(np.abs(found - expected).max())
    print(f"{name}: largest difference of pixels {error:.1e}")
    assert error <= ATOL


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_diffusers_from_either_ones_folder(name, tmp_path):
    case = CASES[name]
    theirs = loop.build(case)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = loop.pixels(case, theirs)
    found = pixels(case, tmp_path / "theirs")
    agree(found, expected, f"{name}, written by diffusers")
    # the official layout has neither model_index.json nor scheduler: both are wanjax's own
    convert(tmp_path / "theirs", tmp_path / "official", layout="official")
    convert(tmp_path / "official", tmp_path / "ours", layout="diffusers")
    again = loop.pixels(case, loop.opened(case, tmp_path / "ours"))
    agree(pixels(case, tmp_path / "ours"), again, f"{name}, written by wanjax")
    # the same network; PyTorch's rounding depends on where in memory its weights lie
    np.testing.assert_allclose(again, expected, atol=5e-6)
