"""Statements about sampling: who takes which step, what guidance does, what a clip depends on."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax import generate, solvers, text
from wanjax.generate import Pipeline, SampleConfig, denoise, noise_for
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae import VAEConfig, WanVAE

DIT = DiTConfig(width=24, heads=2, layers=1, ffn=32, freq_dim=16, text_dim=16, in_channels=4, out_channels=4)
SHAPE = (2, 4, 4, 4)  # F, h, w, C


def randomised(tree, seed, scale):
    """Every parameter random: a freshly made network answers 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * scale, tree)


def expert(seed, config=DIT):
    model = WanDiT(config)
    return model, randomised(jax.eval_shape(model.init, jax.random.key(0))["params"], seed, 0.15)


@pytest.fixture(scope="module")
def experts():
    return {"high": expert(1), "low": expert(2)}


@pytest.fixture(scope="module")
def pipeline(experts):
    vae = WanVAE(
        VAEConfig(
            base_dim=4,
            z_dim=4,
            dim_mult=(1, 1, 1, 1),
            num_res_blocks=1,
            latents_mean=(0.0,) * 4,
            latents_std=(1.0,) * 4,
        )
    )
    vae_params = randomised(jax.eval_shape(vae.init, jax.random.key(0))["params"], 3, 0.3)
    encoder = UMT5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=1)
    embedder = text.load_text_encoder_for(text.TextConfig(length=32, model=encoder))
    config = SampleConfig(steps=2, shift=5.0, boundary=0.0, guidance_high=2.0)
    return Pipeline(experts, vae, vae_params, embedder, config, frames=5, height=32, width=32, fps=8.0)


def inputs(clips=2, tokens=6):
    rng = np.random.default_rng(0)
    noise = np.stack([noise_for(i, SHAPE) for i in range(clips)])
    return noise, *(rng.standard_normal((n, tokens, 16)).astype(np.float32) for n in (clips, 1))


# -- denoising --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(experts):
    """answer(expert, x, t, text): one call of one network, as numpy."""
    apply = jax.jit(lambda params, x, t, c: experts["high"][0].apply({"params": params}, x, t, c))
    return lambda name, x, t, c: np.asarray(apply(experts[name][1], x, np.full(len(x), t, np.float32), c))


def test_the_compiled_program_agrees_with_a_plain_loop(experts, answer):
    config = SampleConfig(solver="unipc", steps=5, shift=5.0, guidance_high=2.0, guidance_low=1.0)
    noise, prompt, null = inputs()
    plan = solvers.make("unipc", steps=5, shift=5.0)
    x, state = noise, plan.init(noise)
    for i, t in enumerate(plan.timesteps):
        if t >= 875:
            v, v_null = answer("high", x, t, prompt), answer("high", x, t, np.repeat(null, 2, axis=0))
            v = v_null + np.float32(2.0) * (v - v_null)
        else:
            v = answer("low", x, t, prompt)
        x, state = plan.step(state, x, v, i)
    got = denoise(experts["high"], experts["low"], noise, prompt, null, config)
    chex.assert_shape(got, noise.shape)
    chex.assert_type(got, jnp.float32)
    np.testing.assert_allclose(got, x, atol=2e-5)
    assert np.abs(x - noise).max() > 0.1


def test_each_expert_takes_its_share_of_the_steps():
    for shift, high in ((5.0, 17), (12.0, 26)):
        assert SampleConfig(shift=shift).expert_steps == {"high": high, "low": 40 - high}
    assert SampleConfig(boundary=0.0).expert_steps == {"high": 40, "low": 0}


def test_one_expert_alone_is_enough_where_it_takes_every_step(experts):
    noise, prompt, null = inputs()
    config = SampleConfig(solver="euler", steps=2, boundary=0.0, guidance_high=1.0)
    alone = denoise(experts["high"], None, noise, prompt, null, config)
    np.testing.assert_array_equal(alone, denoise(experts["high"], experts["low"], noise, prompt, null, config))


def test_a_missing_expert_is_named_with_the_steps_it_would_take(experts):
    noise, prompt, null = inputs()
    with pytest.raises(ValueError, match="low-noise expert is missing: 14 of the 40 steps"):
        denoise(experts["high"], None, noise, prompt, null, SampleConfig())
    with pytest.raises(ValueError, match="high-noise expert is missing: 26 of the 40 steps"):
        denoise(None, experts["low"], noise, prompt, null, SampleConfig())


def test_an_image_to_video_expert_is_refused(experts):
    noise, prompt, null = inputs()
    model = WanDiT(dataclasses.replace(DIT, in_channels=9))
    with pytest.raises(ValueError, match="takes 9 channels"):
        denoise((model, {}), experts["low"], noise, prompt, null, SampleConfig())


def test_guidance_without_a_negative_embedding_is_refused(experts):
    noise, prompt, _ = inputs()
    with pytest.raises(ValueError, match="null_text is None"):
        denoise(experts["high"], experts["low"], noise, prompt, None, SampleConfig(steps=2))


def test_without_guidance_the_negative_prompt_does_not_matter(experts):
    noise, prompt, null = inputs()
    config = SampleConfig(solver="euler", steps=2, boundary=0.0, guidance_high=1.0)
    high, low = experts["high"], experts["low"]
    got = denoise(high, low, noise, prompt, null, config)
    np.testing.assert_array_equal(got, denoise(high, low, noise, prompt, None, config))


# -- noise and pixels -------------------------------------------------------------------------------------


def test_noise_depends_on_the_seed_alone_and_is_standard_normal():
    a, b = noise_for(7, (3, 8, 8, 16)), noise_for(8, (3, 8, 8, 16))
    np.testing.assert_array_equal(a, noise_for(7, (3, 8, 8, 16)))
    assert a.dtype == np.float32 and abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06
    assert abs(a.mean()) < 0.06 and abs(a.std() - 1) < 0.05
    # a clip is made again years later: these bits must never change
    np.testing.assert_array_equal(noise_for(0, (1, 1, 1, 2)).ravel(), np.float32([1.7640524, 0.4001572]))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "7"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        noise_for(seed, SHAPE)


def test_pixels_are_rounded_and_clipped():
    video = np.array([-3.0, -1.0, -0.999, 0.0, 1.0, 1.5])
    np.testing.assert_array_equal(generate.to_uint8(video), [0, 0, 0, 128, 255, 255])
    levels = np.arange(256)
    np.testing.assert_array_equal(generate.to_uint8(levels / 127.5 - 1.0), levels)


# -- prompts to video -------------------------------------------------------------------------------------


def test_a_clip_depends_on_nothing_but_its_own_prompt_and_seed(pipeline):
    prompts, seeds = ["sun rises", "太阳落下", "a wall"], [5, 6, 5]
    latents = []
    original = generate.decode

    def spy(vae, params, z):
        latents.append(np.asarray(z[0]))
        return original(vae, params, z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "decode", spy)
        clips = {size: list(generate.generate(pipeline, prompts, seeds, batch=size)) for size in (1, 2)}
        alone = list(generate.generate(pipeline, prompts[2:], seeds[2:], batch=2))
    one, two, last = latents[:3], latents[3:6], latents[6]
    for a, b in zip([*one, one[2]], [*two, last], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for size in (1, 2):
        assert [clip.shape for clip in clips[size]] == [(5, 32, 32, 3)] * 3
        assert {clip.dtype for clip in clips[size]} == {np.dtype(np.uint8)}
    assert np.abs(alone[0].astype(int) - clips[1][2]).max() <= 1
    assert np.abs(one[0] - one[2]).max() > 1e-3  # the same seed, another prompt


def test_a_batch_that_is_not_full_compiles_nothing_new(pipeline):
    list(generate.generate(pipeline, ["a", "b"], [1, 2], batch=2))
    before = generate._denoise._cache_size()
    list(generate.generate(pipeline, ["c", "d", "e"], [1, 2, 3], batch=2))
    assert generate._denoise._cache_size() == before


def test_bad_requests_are_refused_before_anything_runs(pipeline, experts):
    run = lambda p, *a, **k: list(generate.generate(p, *a, **k))
    with pytest.raises(ValueError, match="1 prompts and 2 seeds"):
        run(pipeline, ["a"], [1, 2])
    with pytest.raises(ValueError, match="batch = 0"):
        run(pipeline, ["a"], [1], batch=0)
    with pytest.raises(ValueError, match="low-noise expert is missing"):
        run(dataclasses.replace(pipeline, experts={"high": experts["high"]}), ["a"], [1], config=SampleConfig())
    with pytest.raises(text.CaptionTooLong, match="limit is 32"):
        run(pipeline, ["x" * 40], [1])
    sizes = ("frames", 8, "use 5 or 9"), ("height", 40, "use 32 or 48"), ("width", 8, "use 16 or 32")
    for field, value, near in sizes:
        with pytest.raises(ValueError, match=f"{field} = {value}.*{near}"):
            run(dataclasses.replace(pipeline, **{field: value}), ["a"], [1])


def test_latents_that_are_not_finite_are_not_made_into_a_clip(pipeline):
    spoil = lambda params: jax.tree.map(lambda leaf: leaf * np.nan, params)
    broken = {name: (model, spoil(params)) for name, (model, params) in pipeline.experts.items()}
    with pytest.raises(FloatingPointError, match="prompt 'a', seed 1 are not finite"):
        list(generate.generate(dataclasses.replace(pipeline, experts=broken), ["a"], [1]))


def test_the_fingerprint_tells_weights_apart(pipeline, experts):
    assert pipeline.fingerprint == dataclasses.replace(pipeline).fingerprint
    assert len(pipeline.fingerprint) == 16
    swapped = {"high": experts["low"], "low": experts["high"]}
    assert dataclasses.replace(pipeline, experts=swapped).fingerprint != pipeline.fingerprint
    assert dataclasses.replace(pipeline, experts={"high": experts["high"]}).fingerprint != pipeline.fingerprint


@pytest.mark.parametrize(
    "change,message",
    [
        ({"solver": "heun"}, "solver 'heun'"),
        ({"grid": "karras"}, "grid 'karras'"),
        ({"steps": 0}, "steps = 0"),
        ({"shift": -1.0}, "shift = -1.0"),
        ({"guidance_low": float("nan")}, "guidance_low = nan"),
        ({"boundary": 875.0}, "boundary = 875.0"),
    ],
)
def test_settings_that_cannot_work_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SampleConfig(**change)
