"""Whole clips against diffusers' pipelines: the same folder, prompt, noise and images, from text to pixels."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is installed by make parity")

from tests.parity import loop
from tests.parity.loop_case import CASES, FRAMES, PROMPT
from wanjax import generate, hub, images, solvers, text
from wanjax.conditions import condition_on, kind_of
from wanjax.pipeline import open_pipeline

ATOL = 1e-4  # of pixels in [0, 1]


def denoised(pipeline, condition, noise, prompt, negative, config):
    """Latents from noise: the loop of `wanjax.conditions`."""
    solver = solvers.make(config.solver, steps=config.steps, shift=config.shift, grid=config.grid)
    x = condition.start(noise)
    state = solver.init(x)
    for i, t in enumerate(solver.timesteps):
        name = "high" if t >= 1000 * config.boundary else "low"
        model, params = pipeline.experts[name]
        timesteps = condition.timesteps(t, len(x), model.config.grid(x.shape[1:4]))
        read = condition.network_input(x)
        v, v_null = (model.apply({"params": params}, read, timesteps, c) for c in (prompt, negative))
        x, state = solver.step(state, x, v_null + config.guidance(name) * (v - v_null), i)
        x = condition.after_step(x)
    return x


def pixels(case, folder):
    """The clip [T, H, W, 3] in [0, 1] that wanjax makes of what the folder holds."""
    pipeline = open_pipeline(folder)
    models = [model.config for model, _ in pipeline.experts.values()]
    kind = kind_of(models, pipeline.vae, expand_timesteps=case.expand_timesteps)
    first, last = (None if image is None else images.prepare_image(image, *case.size) for image in case.images)
    condition = condition_on(kind, pipeline.vae, pipeline.vae_params, first, last, frames=FRAMES)
    embeddings = pipeline.text.embed([PROMPT, case.sample.negative_prompt])
    prompt, negative = (text.pad([one], pipeline.text.length) for one in embeddings)
    if kind == "t2v":
        experts = (pipeline.experts.get(name) for name in ("high", "low"))
        latents = generate.denoise(*experts, case.noise, prompt, negative, case.sample)
    else:
        latents = denoised(pipeline, condition, case.noise, prompt, negative, case.sample)
    video = np.asarray(generate.decode(pipeline.vae, pipeline.vae_params, latents))[0]
    return np.clip((video + 1) / 2, 0, 1)


def write(case, folder, source):
    """A pipeline's folder written by wanjax, of what it opens in another; what is not weights is diffusers' own."""
    parts = hub.open_layout(source)
    for name in ("transformer", "transformer_2"):
        if name in parts:
            hub.save_dit(folder / name, *hub.load_dit(parts[name]))
    hub.save_vae(folder / "vae", *hub.load_vae(parts["vae"]))
    hub.save_text_encoder(folder / "text_encoder", *hub.load_text_encoder(parts["text_encoder"]))
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(source / name, folder / name)
    shutil.copy(source / "model_index.json", folder)


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
    write(case, tmp_path / "ours", tmp_path / "theirs")
    again = loop.pixels(case, loop.opened(case, tmp_path / "ours"))
    agree(pixels(case, tmp_path / "ours"), again, f"{name}, written by wanjax")
    # the same network; PyTorch's rounding depends on where in memory its weights lie
    np.testing.assert_allclose(again, expected, atol=5e-6)
