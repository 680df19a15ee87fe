"""Statements about sampling: who takes which step, what guidance does, what a clip depends on."""

import dataclasses
import functools
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wanjax import conditions, denoise, generate, images, partition, solvers, text
from wanjax.denoise import Batch, Execution
from wanjax.experts import Expert
from wanjax.generate import Pipeline, Request, noise_for
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae import VAEConfig, WanVAE
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.sample_config import SampleConfig

DIT = DiTConfig(width=24, heads=2, layers=1, ffn=32, freq_dim=16, text_dim=16, in_channels=4, out_channels=4)
SHAPE = (2, 4, 4, 4)  # F, h, w, C


def randomised(tree, seed, scale):
    """Every parameter random: a freshly made network answers 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * scale, tree)


def expert(seed, config=DIT):
    model = WanDiT(config)
    return Expert.of(model, randomised(jax.eval_shape(model.init, jax.random.key(0))["params"], seed, 0.15))


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
    return Pipeline(
        experts, vae, vae_params, "random", PromptEmbedder.of(embedder), config, frames=5, height=32, width=32, fps=8.0
    )


def inputs(clips=2, tokens=6):
    rng = np.random.default_rng(0)
    noise = np.stack([noise_for(i, SHAPE) for i in range(clips)])
    return noise, *(rng.standard_normal((n, tokens, 16)).astype(np.float32) for n in (clips, 1))


def run(experts, noise, prompt, null, config, **options):
    """Latents of one batch."""
    batch = Batch(noise, prompt, null, options.pop("condition", conditions.Condition()))
    (latents,) = denoise.denoise(experts, [batch], config, **options)
    return latents


# -- denoising --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(experts):
    """answer(expert, x, t, text): one call of one network, as numpy."""
    apply = jax.jit(lambda params, x, t, c: experts["high"].model.apply({"params": params}, x, t, c))
    params = {name: expert.read(expert.places()) for name, expert in experts.items()}
    return lambda name, x, t, c: np.asarray(apply(params[name], x, np.full(len(x), t, np.float32), c))


def plainly(answer, noise, prompt, null, config):
    """The loop of sampling, written out."""
    plan = solvers.make(config.solver, steps=config.steps, shift=config.shift)
    x, state = noise, plan.init(noise)
    for i, t in enumerate(plan.timesteps):
        name = "high" if t >= 1000 * config.boundary else "low"
        v, g = answer(name, x, t, prompt), np.float32(config.guidance(name))
        if g != 1.0:
            v_null = answer(name, x, t, np.repeat(null, len(x), axis=0))
            v = v_null + g * (v - v_null)
        x, state = plan.step(state, x, v, i)
    return x


def test_the_compiled_steps_agree_with_a_plain_loop(experts, answer):
    config = SampleConfig(solver="unipc", steps=5, shift=5.0, guidance_high=2.0, guidance_low=1.0)
    noise, prompt, null = inputs()
    got = run(experts, noise, prompt, null, config)
    chex.assert_shape(got, noise.shape)
    assert got.dtype == np.float32
    expected = plainly(answer, noise, prompt, null, config)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.abs(expected - noise).max() > 0.1


def test_each_expert_takes_its_share_of_the_steps():
    for shift, high in ((5.0, 17), (12.0, 26)):
        assert SampleConfig(shift=shift).expert_steps == {"high": high, "low": 40 - high}
    assert SampleConfig(boundary=0.0).expert_steps == {"high": 40, "low": 0}


def test_one_expert_alone_is_enough_where_it_takes_every_step(experts):
    noise, prompt, null = inputs()
    config = SampleConfig(solver="euler", steps=2, boundary=0.0, guidance_high=1.0)
    alone = run({"high": experts["high"]}, noise, prompt, null, config)
    np.testing.assert_array_equal(alone, run(experts, noise, prompt, null, config))


def test_a_missing_expert_is_named_with_the_steps_it_would_take(experts):
    noise, prompt, null = inputs()
    for name, other, steps in (("low", "high", 14), ("high", "low", 26)):
        with pytest.raises(ValueError, match=f"{name}-noise expert is missing: {steps} of the 40 steps"):
            run({other: experts[other]}, noise, prompt, null, SampleConfig())


def test_an_expert_of_other_channels_is_refused_before_it_is_read(experts):
    noise, prompt, null = inputs()
    model = WanDiT(dataclasses.replace(DIT, in_channels=9))
    image = Expert(model, lambda places: pytest.fail("was read"), "", "float32")
    with pytest.raises(ValueError, match="takes 9 channels"):
        run(experts | {"high": image}, noise, prompt, null, SampleConfig())


def test_guidance_without_a_negative_embedding_is_refused(experts):
    noise, prompt, _ = inputs()
    with pytest.raises(ValueError, match="null_text is None"):
        run(experts, noise, prompt, None, SampleConfig(steps=2))


def test_without_guidance_the_negative_prompt_does_not_matter(experts):
    noise, prompt, null = inputs()
    config = SampleConfig(solver="euler", steps=2, boundary=0.0, guidance_high=1.0)
    np.testing.assert_array_equal(
        run(experts, noise, prompt, null, config), run(experts, noise, prompt, None, config)
    )


# -- time and memory --------------------------------------------------------------------------------------

GUIDED = SampleConfig(steps=4, shift=5.0, guidance_high=2.0, guidance_low=3.0)


def test_two_passes_give_what_one_batched_pass_gives(experts, answer):
    noise, prompt, null = inputs()
    batched, two = (run(experts, noise, prompt, null, GUIDED, execution=Execution(passes=passes))
                    for passes in ("batched", "two"))  # fmt: skip
    np.testing.assert_allclose(batched, two, atol=1e-5)
    np.testing.assert_allclose(two, plainly(answer, noise, prompt, null, GUIDED), atol=2e-5)


class Shelf:
    """Experts whose reading is watched: who was read, and who was still held then."""

    def __init__(self, experts):
        self.read, self.alive = [], {}
        self.experts = {
            name: dataclasses.replace(expert, read=functools.partial(self.fetch, name, expert))
            for name, expert in experts.items()
        }

    def fetch(self, name, expert, places):
        gc.collect()
        held = sorted(other for other, leaf in self.alive.items() if leaf() is not None)
        self.read.append((name, held))
        params = jax.tree.map(jnp.array, expert.read(places))
        self.alive[name] = weakref.ref(jax.tree.leaves(params)[0])
        return params


def test_one_expert_at_a_time_is_read_once_and_makes_the_same_clips(experts):
    noise, prompt, null = inputs(3)
    batches = [Batch(noise[i : i + 1], prompt[i : i + 1], null) for i in range(3)]
    both, one, grouped = Shelf(experts), Shelf(experts), Shelf(experts)
    run_with = lambda shelf, holding, group=0: list(
        denoise.denoise(shelf.experts, batches, GUIDED, execution=Execution(holding=holding, group=group))
    )
    for a, b, c in zip(run_with(both, "both"), run_with(one, "one"), run_with(grouped, "one", 2), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert both.read == [("high", []), ("low", ["high"])]
    assert one.read == [("high", []), ("low", [])]
    assert grouped.read == [("high", []), ("low", [])] * 2  # two clips are finished before the third is begun


def test_blocks_streamed_from_the_host_make_the_same_clips(experts):
    noise, prompt, null = inputs()
    resident, streamed = (run(experts, noise, prompt, null, GUIDED, execution=Execution(holding=holding))
                          for holding in ("both", "blocks"))  # fmt: skip
    np.testing.assert_array_equal(resident, streamed)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(experts["high"].variables(streamed=True))}
    assert "pinned_host" in kinds


@pytest.mark.parametrize("holding", ["one", "blocks"])
def test_a_mesh_makes_the_same_clips_and_compiles_one_step_per_expert(experts, holding):
    mesh = partition.make_mesh({"fsdp": 2, "seq": 2, "tensor": 2})
    spread = {name: Expert.of(WanDiT(DIT, mesh), expert.read(expert.places())) for name, expert in experts.items()}
    noise, prompt, null = inputs()
    before = denoise._jitted(())._cache_size()
    execution = Execution(holding=holding, passes="batched")
    got = run(spread, noise, prompt, null, GUIDED, execution=execution)
    assert denoise._jitted(())._cache_size() - before == 2
    np.testing.assert_allclose(got, run(experts, noise, prompt, null, GUIDED), atol=1e-5)
    assert spread["high"].nbytes() < experts["high"].nbytes() / 2


def test_every_step_is_told_with_its_time(experts):
    noise, prompt, null = inputs()
    steps = []
    run(experts, noise, prompt, null, GUIDED, on_step=steps.append)
    assert [(step.done, step.total) for step in steps] == [(i, 4) for i in (1, 2, 3, 4)]
    shares = GUIDED.expert_steps
    assert [step.expert for step in steps] == ["high"] * shares["high"] + ["low"] * shares["low"]
    assert all(step.seconds > 0 for step in steps)


def test_what_fits_is_held(experts, monkeypatch):
    noise, prompt, null = inputs()
    own = experts["high"].nbytes()
    assert own == 4 * sum(leaf.size for leaf in jax.tree.leaves(experts["high"].shapes()))
    chosen = {}
    for free in range(3 * own, 0, -own // 64):
        monkeypatch.setattr(denoise, "free_everywhere", lambda devices, free=free: free)
        try:
            found = denoise.fitting(experts, Batch(noise, prompt, null), GUIDED, Execution())
        except ValueError as error:
            assert "GB on each device" in str(error)
            break
        chosen.setdefault((found.holding, found.passes), free)
    else:
        pytest.fail("something fitted into nothing")
    assert list(chosen)[0] == ("both", "batched") and list(chosen)[-1] == ("one", "two")
    largest, least = chosen["both", "batched"], min(chosen.values())
    assert largest - least >= own, "holding one expert saves the other's parameters"


def test_what_is_asked_for_is_not_second_guessed(experts, monkeypatch):
    monkeypatch.setattr(denoise, "free_everywhere", lambda devices: 0)
    asked = Execution(holding="both", passes="batched")
    assert denoise.fitting(experts, Batch(*inputs()), GUIDED, asked) == asked
    with pytest.raises(ValueError, match="holding = 'all'"):
        Execution(holding="all")


def test_another_prompt_or_scale_compiles_nothing_new(experts):
    noise, prompt, null = inputs()
    run(experts, noise, prompt, null, GUIDED)
    before = denoise._jitted(())._cache_size()
    run(experts, noise, 2 * prompt, null, dataclasses.replace(GUIDED, guidance_low=5.0, negative_prompt="dark"))
    assert denoise._jitted(())._cache_size() == before


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
    requests = [Request("sun rises", 5), Request("太阳落下", 6), Request("a wall", 5)]
    made = lambda some, size: list(generate.latents(pipeline, some, execution=Execution(batch=size)))
    one, two, (last,) = made(requests, 1), made(requests, 2), made(requests[2:], 2)
    for a, b in zip([*one, one[2]], [*two, last], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(one[0] - one[2]).max() > 1e-3  # the same seed, another prompt


def test_what_a_process_makes_by_itself_is_made_before_devices_work_together(pipeline, monkeypatch):
    told, embed = [], type(pipeline.text).embed
    monkeypatch.setattr(type(pipeline.text), "embed", lambda *given: told.append("embed") or embed(*given))
    nothing = np.zeros((1, *pipeline.latent_shape))
    monkeypatch.setattr(generate, "denoise", lambda *_, **__: told.append("denoise") or [nothing])
    list(generate.latents(pipeline, [Request("dawn", 1)], on_ready=lambda: told.append("ready")))
    assert told == ["embed", "ready", "denoise"]


def test_whole_clips_are_the_frames_of_their_latents(pipeline):
    prompts, seeds = ["sun rises", "太阳落下"], [5, 6]
    clips = list(generate.generate(pipeline, prompts, seeds, batch=2))
    assert [clip.shape for clip in clips] == [(5, 32, 32, 3)] * 2
    assert {clip.dtype for clip in clips} == {np.dtype(np.uint8)}
    requests = [Request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    for clip, latents in zip(clips, generate.latents(pipeline, requests, execution=Execution(batch=2)), strict=True):
        whole = pipeline.vae.apply({"params": pipeline.vae_params}, latents[None], method="decode")
        assert np.abs(generate.to_uint8(whole[0]).astype(int) - clip).max() <= 1
        assert clip.std() > 1


def test_a_batch_that_is_not_full_compiles_nothing_new(pipeline):
    list(generate.generate(pipeline, ["a", "b"], [1, 2], batch=2))
    before = denoise._jitted(())._cache_size()
    list(generate.generate(pipeline, ["c", "d", "e"], [1, 2, 3], batch=2))
    assert denoise._jitted(())._cache_size() == before


# -- images -----------------------------------------------------------------------------------------------

PICTURE = np.random.default_rng(9).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def with_images(pipeline, kind, channels):
    """The pipeline with an expert for images of that many channels."""
    sole = expert(7, dataclasses.replace(DIT, in_channels=channels))
    return dataclasses.replace(pipeline, experts={"high": sole}, kind=kind)


def test_an_image_makes_another_clip_and_its_latents_stay(pipeline):
    picture = with_images(pipeline, "ti2v", 4)
    words = Request("sun rises", 5)
    shown = dataclasses.replace(words, image=PICTURE)
    plain, given, again = generate.latents(picture, [words, shown, words], execution=Execution(batch=2))
    np.testing.assert_allclose(plain, again, atol=1e-5)
    assert np.abs(plain[1:] - given[1:]).max() > 1e-3
    pixels = images.prepare_image(PICTURE, picture.height, picture.width)
    own = picture.vae.apply({"params": picture.vae_params}, pixels[None, None], method="encode")
    np.testing.assert_allclose(given[:1], own[0], atol=1e-6)
    assert np.abs(plain[:1] - own[0]).max() > 0.1


def test_image_to_video_reads_the_image_and_needs_it(pipeline):
    picture = with_images(pipeline, "i2v", 4 + 4 + 4)
    other = PICTURE[::-1].copy()
    requests = [Request("dawn", 1, PICTURE), Request("dawn", 1, other), Request("dawn", 1, PICTURE, other)]
    one, two, both = generate.latents(picture, requests, execution=Execution(batch=3))
    for a, b in ((one, two), (one, both)):
        assert np.abs(a - b).max() > 1e-3
    with pytest.raises(ValueError, match="needs an image"):
        next(generate.latents(picture, [Request("dawn", 1)]))
    with pytest.raises(ValueError, match="takes no image"):
        next(generate.latents(pipeline, [Request("dawn", 1, PICTURE)]))


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
    mesh = partition.make_mesh({"fsdp": 2}, jax.devices()[:2])
    spread = {name: dataclasses.replace(expert, model=WanDiT(DIT, mesh)) for name, expert in experts.items()}
    with pytest.raises(ValueError, match="batch = 3: .* 2 ways; make it a multiple of 2"):
        run(dataclasses.replace(pipeline, experts=spread), ["a"], [1], batch=3)
    sizes = ("frames", 8, "use 5 or 9"), ("height", 40, "use 32 or 48"), ("width", 8, "use 16 or 32")
    for field, value, near in sizes:
        with pytest.raises(ValueError, match=f"{field} = {value}.*{near}"):
            run(dataclasses.replace(pipeline, **{field: value}), ["a"], [1])


def test_latents_that_are_not_finite_are_not_made_into_a_clip(pipeline):
    spoil = lambda params: jax.tree.map(lambda leaf: leaf * np.nan, params)
    broken = {name: Expert.of(one.model, spoil(one.read(one.places()))) for name, one in pipeline.experts.items()}
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
