"""Codec and light: sudden steps come out where they went in, and short types move brightness by no more than stated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train_codec import rendered
from wanjax import codec_start
from wanjax.codec import open_codec
from wanjax.codec_finish import frame_error
from wanjax.models.vae import VAEConfig, WanVAE

FRAMES = 13
# wide enough for the linear start: weights that carry each frame's brightness through, trained on nothing
LINEAR = WanVAE(VAEConfig(base_dim=8, num_res_blocks=1, dim_mult=(1, 2, 2, 5), latents_mean=(0.0,) * 16,
                          latents_std=(1.0,) * 16))  # fmt: skip


def flat(levels: np.ndarray) -> np.ndarray:
    """Clips [n, T, 8, 8, 3] of even grey; ``levels [n, T]``."""
    return np.broadcast_to(levels.astype(np.float32)[:, :, None, None, None], (*levels.shape, 8, 8, 3))


def steps() -> np.ndarray:
    """Levels of clips that brighten once, before each frame, and of clips that darken there."""
    later = np.arange(FRAMES) >= np.arange(1, FRAMES)[:, None]
    up = np.where(later, 0.3, -0.3)
    return np.concatenate([up, -up])


@pytest.fixture(scope="module")
def linear():
    """Parameters of a linear codec fitted to even frames of random brightness."""
    levels = np.random.default_rng(0).uniform(20, 235, (96, FRAMES))
    video = np.broadcast_to(np.round(levels)[:, :, None, None, None], (96, FRAMES, 8, 8, 3)).astype(np.uint8)
    return {"params": codec_start.linear_start(LINEAR.config, video, logvar=-6.0)}


def brightness(model, variables, video, suffix=""):
    latents = model.apply(variables, video, method="encode" + suffix)
    return np.asarray(model.apply(variables, latents, method="decode" + suffix)).mean((2, 3, 4))


def test_a_step_comes_out_at_its_frame_wherever_it_falls_in_a_group_of_four(linear):
    levels = steps()
    made = brightness(LINEAR, linear, flat(levels))
    np.testing.assert_allclose(np.diff(made, axis=1), np.diff(levels, axis=1), atol=0.03, rtol=0)  # of steps of 0.6


@pytest.mark.parametrize("name", ["linear", "light_scenes_all"])
def test_chunks_give_every_step_as_the_whole_clip_does(name, linear):
    opened = None if name == "linear" else open_codec(name)
    model, variables = (LINEAR, linear) if opened is None else (opened.model, {"params": opened.params})
    video = flat(steps())
    whole = brightness(model, variables, video)
    np.testing.assert_allclose(brightness(model, variables, video, "_chunked"), whole, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def scenes():
    """A shipped codec in float32, two scenes, their latents and decoded frames."""
    opened = open_codec("light_scenes_all", dtype="float32")
    clips = rendered(["sunrise_room", "street_lamp"], "test", 1)
    latents = np.asarray(opened.model.apply({"params": opened.params}, clips / np.float32(127.5) - 1))
    decoded = np.asarray(opened.model.apply({"params": opened.params}, latents, method="decode"))
    return opened, clips, latents, decoded


def in_type(opened, **types) -> WanVAE:
    return WanVAE(dataclasses.replace(opened.model.config, **types))


@pytest.mark.parametrize(("dtype", "latent", "stops"), [("bfloat16", 0.04, 0.02), ("float16", 0.005, 0.002)])
def test_a_short_type_in_the_encoder(dtype, latent, stops, scenes):
    """Root mean square of latents of deviation 1, and the worst frame's light."""
    opened, clips, latents, decoded = scenes
    model, variables = in_type(opened, encoder_dtype=dtype), {"params": opened.params}
    found = np.asarray(model.apply(variables, clips / np.float32(127.5) - 1))
    assert 1e-4 < np.sqrt(np.mean((found - latents) ** 2)) < latent
    made = np.asarray(model.apply(variables, found, method="decode"))
    assert worst_light(made, decoded, clips) < stops


@pytest.mark.parametrize(("dtype", "psnr", "stops"), [("bfloat16", 50, 0.03), ("float16", 65, 0.003)])
def test_a_short_type_in_the_decoder(dtype, psnr, stops, scenes):
    opened, clips, latents, decoded = scenes
    made = np.asarray(in_type(opened, dtype=dtype).apply({"params": opened.params}, latents, method="decode"))
    assert psnr < 10 * np.log10(4 / np.mean((made - decoded) ** 2)) < 90
    assert worst_light(made, decoded, clips) < stops


def worst_light(made: np.ndarray, expected: np.ndarray, clips: np.ndarray) -> float:
    """Largest difference of a frame's light, in stops."""
    return max(np.abs(frame_error(a, clip) - frame_error(b, clip)).max()
               for a, b, clip in zip(made, expected, clips, strict=True))  # fmt: skip


def test_the_encoder_stays_in_float32_when_a_codec_is_opened_in_a_short_type(scenes):
    opened, clips, _, _ = scenes
    short = open_codec("light_scenes_all", dtype="bfloat16")
    assert (short.model.config.dtype, short.model.config.encoder_dtype) == ("bfloat16", "float32")
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), short.params)
    video = clips / np.float32(127.5) - 1
    expected = opened.model.apply({"params": wide}, video)
    np.testing.assert_array_equal(short.model.apply({"params": short.params}, video), expected)
