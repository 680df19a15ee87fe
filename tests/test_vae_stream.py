"""Streams: the codec's numbers chunk by chunk, with nothing that grows with the clip."""

from functools import partial

import chex
import jax
import numpy as np
import pytest

from tests.parity import vae_case
from wanjax.models import vae
from wanjax.models.rows import import_tensors
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import VAEConfig, WanVAE

MODEL = WanVAE(VAEConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 2, 2)))


@pytest.fixture(scope="module")
def variables():
    return {"params": import_tensors(vae_rows(MODEL.config), vae_case.foreign_params(MODEL.config, seed=3))}


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.concatenate([vae_case.video(seed=seed, frames=17, size=(16, 24)) for seed in (4, 5)])


@pytest.fixture(scope="module")
def latents(clip, variables) -> np.ndarray:
    return np.asarray(MODEL.apply(variables, clip, method="encode_chunked"))


def test_decoding_gives_one_frame_then_four_at_a_time_to_the_bit(variables, latents):
    chunks = list(MODEL.stream(variables, latents))
    chex.assert_shape(chunks[0], (2, 1, 16, 24, 3))
    chex.assert_shape(chunks[1:], (2, 4, 16, 24, 3))
    assert len(chunks) == 5 and {chunk.dtype for chunk in chunks} == {np.dtype("float32")}
    np.testing.assert_array_equal(np.concatenate(chunks, 1), MODEL.apply(variables, latents, method="decode_chunked"))


@pytest.mark.parametrize("given", ["array on the host", "array on the device", "frames one by one"])
def test_encoding_gives_a_latent_frame_at_a_time_to_the_bit(variables, clip, latents, given):
    frames = {"array on the host": clip, "array on the device": jax.numpy.asarray(clip),
              "frames one by one": (clip[:, t] for t in range(clip.shape[1]))}[given]
    chunks = list(MODEL.stream(variables, frames, method="encode"))
    chex.assert_shape(chunks, (2, 1, 2, 3, 16))
    np.testing.assert_array_equal(np.concatenate(chunks, 1), latents)


def test_latent_frames_may_come_one_by_one(variables, latents):
    once = np.concatenate(list(MODEL.stream(variables, latents)), 1)
    again = np.concatenate(list(MODEL.stream(variables, (latents[:, f] for f in range(5)))), 1)
    np.testing.assert_array_equal(once, again)


def test_frames_are_asked_for_one_chunk_ahead(variables, latents):
    asked = []
    chunks = MODEL.stream(variables, (asked.append(f) or latents[:, f] for f in range(5)))
    assert not asked
    for number, _ in enumerate(chunks):
        assert asked[-1] == min(number + 1, 4)


def test_two_programs_serve_any_length_and_what_is_kept_changes_in_place(variables, latents):
    vae._piece.clear_cache()
    for length in (1, 3, 5):
        list(MODEL.stream(variables, latents[:, :length]))
    assert vae._piece._cache_size() == 2
    _, kept = jax.eval_shape(partial(vae._piece, MODEL, "decode"), variables["params"], latents[:, :1], None)
    later = vae._piece.lower(MODEL, "decode", variables["params"], latents[:, :1], kept).compile()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    assert later.memory_analysis().alias_size_in_bytes == held > 0


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("decode", (1, 2, 2, 2, 4), r"expected \[B, F, h, w, 16\]"),
        ("encode", (1, 6, 16, 16, 3), r"6 frames; the codec takes 4n \+ 1: crop to 5"),
        ("moments", (1, 5, 16, 16, 3), r"no stream 'moments'; expected one of \('encode', 'decode'\)"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_before_anything_runs(variables, method, shape, message):
    with pytest.raises(ValueError, match=message):
        MODEL.stream(variables, np.zeros(shape, np.float32), method=method)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_pixels_of_a_file_are_refused_until_they_are_floats(variables, one_by_one):
    """Frames as a video file holds them would be encoded as light far outside of what the codec knows."""
    video = np.zeros((1, 5, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"given uint8; expected floats, pixels in \[-1, 1\]: x / 127.5 - 1"):
        list(MODEL.stream(variables, iter(np.moveaxis(video, 1, 0)) if one_by_one else video, method="encode"))
    with pytest.raises(ValueError, match="given uint8"):
        MODEL.apply(variables, video)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 20, 16, 3)], "20x16 pixels; the codec takes multiples of 8"),
        ([(1, 16, 16, 3)] * 3, r"3 frames; the codec takes 4n \+ 1: crop to 1"),
        ([(1, 16, 16, 3), (1, 16, 24, 3)], r"frame 1 is \(1, 16, 24, 3\), the first is \(1, 16, 16, 3\)"),
        ([], r"video has shape \(1, 0, 1, 1, 1\)"),
    ],
)
def test_frames_that_do_not_fit_are_refused_where_it_shows(variables, shapes, message):
    with pytest.raises(ValueError, match=message):
        list(MODEL.stream(variables, (np.zeros(shape, np.float32) for shape in shapes), method="encode"))
