"""Statements about images that clips start from: what the network is shown, and which checkpoint takes what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax import conditions
from wanjax.conditions import Condition, FirstLatents, ImageChannels, check_images, condition_on, kind_of
from wanjax.family import MEMBERS
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

C = 4
VAE = WanVAE(VAEConfig(base_dim=4, z_dim=C, dim_mult=(1, 1, 1, 1), num_res_blocks=1,
                       latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(0.5, 1.5, 0.8, 1.2)))  # fmt: skip
SHAPE = (2, 3, 2, 4, C)  # B, F, h, w, C
SIZE = (16, 32)  # pixels


@pytest.fixture(scope="module")
def vae_params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(VAE.init, jax.random.key(0))["params"]
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.3, shapes)


def draw(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def image(seed=2):
    return np.random.default_rng(seed).uniform(-1, 1, (*SIZE, 3)).astype(np.float32)


# -- text alone -------------------------------------------------------------------------------------------


def test_nothing_given_changes_nothing():
    x = draw(*SHAPE)
    nothing = Condition()
    for got in (nothing.start(x), nothing.network_input(x), nothing.after_step(x)):
        np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(nothing.timesteps(7, 2, (3, 1, 2)), [7.0, 7.0])
    assert nothing.channels == 0 and not jax.tree.leaves(nothing)


# -- I2V-A14B ---------------------------------------------------------------------------------------------


def test_the_network_reads_noise_then_mask_then_image_latents():
    x, given = draw(*SHAPE), draw(1, *SHAPE[1:-1], 4 + C, seed=3)
    condition = ImageChannels(given)
    read = condition.network_input(condition.start(x))
    assert read.shape[-1] == C + condition.channels == C + 4 + C
    np.testing.assert_array_equal(read[..., :C], x)
    for clip in range(2):
        np.testing.assert_array_equal(read[clip, ..., C:], given[0])
    np.testing.assert_array_equal(condition.after_step(x), x)
    np.testing.assert_array_equal(condition.timesteps(900, 2, (3, 1, 2)), [900.0, 900.0])


@pytest.mark.parametrize("last", [False, True])
def test_the_mask_counts_frames_and_the_latents_are_those_of_the_given_frames(vae_params, last):
    frames = 9
    end = image(4) if last else None
    given = np.asarray(conditions.image_channels(VAE, vae_params, image(), frames, last=end).given)
    mask = np.zeros((3, 4), np.float32)
    mask[0] = 1.0  # the first frame, four times
    if last:
        mask[2, 3] = 1.0  # the last of frames 5, 6, 7, 8
    np.testing.assert_array_equal(given[..., :4], np.broadcast_to(mask[None, :, None, None], (1, 3, 2, 4, 4)))
    video = np.zeros((1, frames, *SIZE, 3), np.float32)
    video[0, 0] = image()
    if last:
        video[0, -1] = end
    expected = VAE.apply({"params": vae_params}, video, method="encode")
    np.testing.assert_allclose(given[..., 4:], expected, atol=1e-5)
    assert np.std(expected) > 0.1


def test_a_last_image_needs_the_same_size_and_frames_between(vae_params):
    with pytest.raises(ValueError, match=r"last image is \(8, 8, 3\), the first \(16, 32, 3\)"):
        conditions.image_channels(VAE, vae_params, image(), 9, last=np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="frames = 1: a first and a last image need at least 5"):
        conditions.image_channels(VAE, vae_params, image(), 1, last=image())


# -- TI2V-5B ----------------------------------------------------------------------------------------------


def test_the_first_latents_stay_clean_and_their_tokens_at_timestep_0(vae_params):
    condition = conditions.first_latents(VAE, vae_params, image())
    clean = VAE.apply({"params": vae_params}, image()[None, None], method="encode")
    x = draw(*SHAPE)
    for got in (condition.start(x), condition.after_step(jnp.asarray(x)), condition.network_input(condition.start(x))):
        np.testing.assert_array_equal(got[:, 1:], x[:, 1:])
        for clip in range(2):
            np.testing.assert_allclose(got[clip, :1], clean[0], atol=1e-6)
    steps = condition.timesteps(900, 2, (3, 1, 2))  # tokens run over time, then height, then width
    np.testing.assert_array_equal(steps, [[0, 0, 900, 900, 900, 900]] * 2)
    assert condition.channels == 0


def test_several_latent_frames_may_be_given():
    condition = FirstLatents(draw(1, 2, 2, 4, C))
    np.testing.assert_array_equal(condition.timesteps(5, 1, (3, 2, 1)), [[0, 0, 0, 0, 5, 5]])
    assert not np.array_equal(condition.start(draw(*SHAPE, seed=5))[:, 1], draw(*SHAPE, seed=5)[:, 1])


# -- in a compiled step -----------------------------------------------------------------------------------


def test_one_program_serves_every_image():
    traced = []

    @jax.jit
    def step(condition, x):
        traced.append(type(condition))
        return condition.network_input(condition.start(x))

    for kind, shape in ((ImageChannels, (2, *SHAPE[1:-1], 4 + C)), (FirstLatents, (2, 1, *SHAPE[2:]))):
        answers = [step(kind(draw(*shape, seed=seed)), draw(*SHAPE)) for seed in (7, 8)]
        assert not np.array_equal(*answers)
    assert traced == [ImageChannels, FirstLatents]


def test_conditions_of_clips_are_stacked():
    one, two = (FirstLatents(draw(1, 1, *SHAPE[2:], seed=seed)) for seed in (1, 2))
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), one, two)
    started = both.start(draw(*SHAPE))
    for clip, condition in enumerate((one, two)):
        np.testing.assert_array_equal(started[clip], condition.start(draw(*SHAPE))[clip])


# -- which checkpoint takes what --------------------------------------------------------------------------


def test_the_members_of_the_family_are_told_apart():
    kinds = {name: kind_of([member.model] * len(member.experts), WanVAE(WAN22 if "TI2V" in name else VAEConfig()))
             for name, member in MEMBERS.items()}  # fmt: skip
    assert kinds == {"Wan2.2-T2V-A14B": "t2v", "Wan2.2-I2V-A14B": "i2v", "Wan2.2-TI2V-5B": "ti2v",
                     "Wan2.1-T2V-14B": "t2v", "Wan2.1-T2V-1.3B": "t2v"}  # fmt: skip


def test_what_the_checkpoint_states_goes_before_what_its_codec_suggests():
    model = MEMBERS["Wan2.2-TI2V-5B"].model
    assert kind_of([model], WanVAE(WAN22), expand_timesteps=False) == "t2v"
    small = dataclasses.replace(model, in_channels=16, out_channels=16)
    assert kind_of([small], WanVAE(VAEConfig()), expand_timesteps=True) == "ti2v"


def test_other_channels_are_refused_with_what_is_expected():
    t2v, i2v = MEMBERS["Wan2.2-T2V-A14B"].model, MEMBERS["Wan2.2-I2V-A14B"].model
    vae = WanVAE(VAEConfig())
    for models in ([t2v, i2v], [dataclasses.replace(t2v, in_channels=32)], [dataclasses.replace(t2v, out_channels=32)]):
        with pytest.raises(ValueError, match=r"read .* channels and give .*expected all to read 16 .* or all 36"):
            kind_of(models, vae)
    with pytest.raises(ValueError, match=r"patch\[0\] > 1"):
        kind_of([dataclasses.replace(t2v, patch=(2, 2, 2))], vae, expand_timesteps=True)


@pytest.mark.parametrize(
    "kind,first,last,message",
    [
        ("t2v", True, False, "is text-to-video .*takes no image.*Wan2.2-I2V-A14B"),
        ("t2v", False, True, "is text-to-video"),
        ("i2v", False, False, "is image-to-video .*needs an image for the first frame$"),
        ("i2v", False, True, "first frame, not the last one alone"),
        ("ti2v", True, True, "takes a first image, but no last one"),
    ],
)
def test_an_image_that_is_missing_or_not_wanted_is_named(vae_params, kind, first, last, message):
    with pytest.raises(ValueError, match=message):
        check_images(kind, first=first, last=last)
    with pytest.raises(ValueError, match=message):
        condition_on(kind, VAE, vae_params, image() if first else None, image() if last else None, frames=9)


def test_the_condition_is_the_one_of_the_kind(vae_params):
    kinds = [("t2v", None), ("ti2v", None), ("ti2v", image()), ("i2v", image())]
    made = [condition_on(kind, VAE, vae_params, first, frames=5) for kind, first in kinds]
    assert [type(one) for one in made] == [Condition, Condition, FirstLatents, ImageChannels]
    with_last = condition_on("i2v", VAE, vae_params, image(), image(4), frames=5)
    assert not np.array_equal(with_last.given, made[-1].given)
