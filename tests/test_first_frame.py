"""A given first frame is neither noised nor learned; what is not given is learned from it."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.parity import dit_case
from wanjax import conditions, first_frame, objectives, partition, rectified_flow, train
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.vae import VAEConfig, WanVAE

CONFIG = DiTConfig(width=48, heads=4, layers=2, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20)
IMAGE = dataclasses.replace(CONFIG, in_channels=4 + 4 + 4)
SHAPE = (4, 3, 4, 4, 4)  # B, F, h, w, C
GRID = (3, 2, 2)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


BATCH = {"latents": draw(0), "text": draw(1, (4, 5, 20)), "image": draw(2)}


@dataclasses.dataclass(frozen=True)
class Linear:
    """Stands for a transformer: velocity = w · (what it reads, the first channels) + u · timestep / 1000."""

    config: DiTConfig
    seen: Any = dataclasses.field(default_factory=lambda: types.SimpleNamespace(), compare=False)

    def apply(self, variables, latents, timestep, text):
        self.seen.latents, self.seen.timestep = latents, timestep
        params = variables["params"]
        if timestep.ndim == 2:
            timestep = timestep.reshape(len(latents), GRID[0], -1)[:, :, 0]
        per_frame = jnp.broadcast_to(timestep.reshape(len(latents), -1, 1, 1, 1), (*latents.shape[:-1], 1))
        return params["w"] * latents[..., : self.config.out_channels] + params["u"] * per_frame / 1000.0


PARAMS = {"w": jnp.float32(0.7), "u": jnp.float32(-0.4)}


def step_of(model, *, accumulate=1, probability=0.0, terms=None, params=PARAMS):
    """Gradient and metrics of one step."""
    tx = optax.sgd(1.0)  # the update is then the gradient
    step = train.make_train_step(model, objectives.make_objective(terms or objectives.ObjectiveConfig(), None), tx,
                                 timesteps=(100.0, 900.0), shift=3.0, accumulate=accumulate, ema_decay=0.9,
                                 first_frame=probability)
    state = train.TrainState(jnp.zeros((), jnp.int32), params, params, tx.init(params))
    new, metrics = step(state, jax.tree.map(jnp.asarray, BATCH), jax.random.key(5))
    return jax.tree.map(lambda a, b: a - b, params, new.params), metrics


def drawn():
    """Noise and timesteps of that step."""
    noise_key, time_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(5), 0), 3)
    noise = jax.random.normal(noise_key, SHAPE, jnp.float32)
    return noise, rectified_flow.sample_timesteps(time_key, SHAPE[0], shift=3.0, low=100.0, high=900.0)


def test_a_given_frame_is_clean_at_timestep_0_and_the_others_are_not():
    x, x0, given = draw(3), draw(4), np.array([True, False, True, False])
    shown = first_frame.condition(CONFIG, x0, given, None)
    expected = x.copy()
    expected[[0, 2], 0] = x0[[0, 2], 0]
    for got in (shown.start(x), shown.after_step(jnp.asarray(x))):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(shown.network_input(x), x)
    np.testing.assert_array_equal(shown.timesteps(jnp.array([10.0, 20.0, 30.0, 40.0]), 4, GRID),
                                  [[0] * 4 + [10] * 8, [20] * 12, [0] * 4 + [30] * 8, [40] * 12])
    np.testing.assert_array_equal(shown.timesteps(7, 4, GRID), [[0] * 4 + [7] * 8, [7] * 12] * 2)


def test_an_image_lies_behind_noise_and_mask():
    x, image = draw(3), draw(4)
    shown = first_frame.condition(IMAGE, draw(5), None, image)
    latents = shown.network_input(shown.start(x))
    np.testing.assert_array_equal(latents[..., :4], x)
    assert np.all(latents[:, 0, ..., 4:8] == 1) and np.all(latents[:, 1:, ..., 4:8] == 0)
    np.testing.assert_array_equal(latents[..., 8:], image)
    np.testing.assert_array_equal(shown.timesteps(jnp.arange(4.0), 4, GRID), np.arange(4.0))
    assert first_frame.image_channels(16) == 36
    with pytest.raises(ValueError, match='12 channels.*no "image"'):
        first_frame.condition(IMAGE, x, None, None)


def test_training_and_sampling_show_the_same_image():
    """The latents of the cache, as training shows them, are what sampling makes of the clip's first frame."""
    vae = WanVAE(VAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1, latents_mean=(0.1,) * 4,
                           latents_std=(0.5,) * 4))
    params = vae.init(jax.random.key(0))["params"]
    video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 16, 16, 3)).astype(np.float32)
    latents = vae.apply({"params": params}, video)
    image = vae.apply({"params": params}, first_frame.alone(jnp.asarray(video[:, :1]), 9))
    for config, kind, given in ((CONFIG, "ti2v", np.array([True])), (IMAGE, "i2v", None)):
        trained = first_frame.condition(config, latents, given, image)
        sampled = conditions.condition_on(kind, vae, params, video[0, 0], frames=9)
        noise = draw(1, latents.shape)
        read = [np.asarray(c.network_input(c.start(noise))) for c in (trained, sampled)]
        np.testing.assert_allclose(*read, atol=1e-5)
        assert not np.array_equal(read[0][:, 0], noise[:, 0])


def test_with_no_frame_given_a_transformer_does_what_it_does_per_clip():
    params, x, timestep = dit_case.params(CONFIG), draw(3), jnp.array([10.0, 200.0, 300.0, 940.0])
    model, text = WanDiT(CONFIG), BATCH["text"]
    per_clip = model.apply({"params": params}, x, timestep, text)
    none = first_frame.condition(CONFIG, draw(4), np.zeros(4, bool), None)
    times = none.timesteps(timestep, 4, GRID)
    assert times.shape == (4, 12)
    np.testing.assert_allclose(model.apply({"params": params}, none.start(x), times, text), per_clip, atol=1e-5)


def test_the_step_has_loss_and_gradient_of_the_frames_that_are_not_given():
    noise, timestep = drawn()
    sigma = (timestep / 1000.0)[:, None, None, None, None]
    x0, target = BATCH["latents"], noise - BATCH["latents"]
    noised = ((1 - sigma) * x0 + sigma * noise).at[:, 0].set(x0[:, 0])

    def expected(params):
        velocity = params["w"] * noised + params["u"] * sigma
        return jnp.mean(jnp.square((velocity - target)[:, 1:])) * (SHAPE[1] - 1) / SHAPE[1]

    for accumulate in (1, 2):
        gradient, metrics = step_of(Linear(CONFIG), probability=1.0, accumulate=accumulate)
        value, wanted = jax.value_and_grad(expected)(PARAMS)
        np.testing.assert_allclose(metrics["loss/velocity"], value, rtol=1e-5)
        for name in PARAMS:
            np.testing.assert_allclose(gradient[name], wanted[name], rtol=1e-4)


def test_without_given_frames_the_step_is_what_it_was():
    noise, timestep = drawn()
    sigma = (timestep / 1000.0)[:, None, None, None, None]
    noised = (1 - sigma) * BATCH["latents"] + sigma * noise
    loss = jnp.mean(jnp.square(0.7 * noised - 0.4 * sigma - (noise - BATCH["latents"])))
    np.testing.assert_allclose(step_of(Linear(CONFIG))[1]["loss"], loss, rtol=1e-5)


def test_as_many_clips_are_given_their_frame_as_the_probability_says():
    model, counts = Linear(CONFIG), []
    for seed in range(100):
        given = first_frame.draw(CONFIG, 0.3, jax.random.key(seed), 10)
        counts.append(int(given.sum()))
    assert 250 < sum(counts) < 350 and len(set(counts)) > 3
    assert first_frame.draw(CONFIG, 0.0, jax.random.key(0), 4) is None
    assert first_frame.draw(IMAGE, 1.0, jax.random.key(0), 4) is None
    assert first_frame.share(CONFIG, 0.5, 4).tolist() == [True, True, False, False]
    assert first_frame.share(CONFIG, 0.5, 2, 4).tolist() == [True, False, False, False]
    step_of(model, probability=0.5)
    assert model.seen.timestep.shape == (4, 12)


def test_a_transformer_that_reads_an_image_learns_every_frame_from_it():
    params = dit_case.params(IMAGE)
    gradient, metrics = step_of(WanDiT(IMAGE), probability=1.0, params=params)
    kernel = gradient["patch_embedding"]["kernel"]  # [1, 2, 2, 12, D]
    assert all(np.any(kernel[..., part, :]) for part in (slice(0, 4), slice(4, 8), slice(8, 12)))
    noise, timestep = drawn()
    noised = rectified_flow.add_noise(BATCH["latents"], noise, timestep / 1000.0)
    mask = np.zeros_like(noised)
    mask[:, 0] = 1
    read = jnp.concatenate([noised, mask, BATCH["image"]], -1)
    velocity = WanDiT(IMAGE).apply({"params": params}, read, timestep, BATCH["text"])
    np.testing.assert_allclose(metrics["loss"], np.mean((velocity - (noise - BATCH["latents"])) ** 2), rtol=1e-4)


def test_differences_over_time_are_taken_from_the_given_frame():
    terms = objectives.ObjectiveConfig(velocity=objectives.VelocityTerm(0.0), light=objectives.LightTerm(
        1.0, pools=("frame",), orders=(1,)))
    objective = objectives.make_objective(terms, np.ones(4, np.float32))
    target = jnp.asarray(draw(6))
    velocity = first_frame.exact(target + 1.0, target, np.array([True, True, False, False]))
    each = [float(objective(objectives.Prediction(velocity[i : i + 1], target[i : i + 1], target[i : i + 1],
                                                  jnp.full(1, 0.5)), 0)[0]) for i in (0, 2)]
    assert each[0] > 0.1 and each[1] == pytest.approx(0.0, abs=1e-10)  # a jump after the given frame; none without it


@pytest.mark.parametrize("config", [CONFIG, IMAGE])
def test_validation_is_given_what_training_is(config):
    params, model = dit_case.params(config), WanDiT(config)
    validate = train.make_validation(model, timesteps=(0.0, 1000.0), bins=2, first_frame=1.0)
    key, x0 = jax.random.key(1), BATCH["latents"]
    noise = jax.random.normal(key, SHAPE, jnp.float32)
    losses = []
    for t in (250.0, 750.0):
        noised = (1 - t / 1000) * x0 + t / 1000 * noise
        if config is CONFIG:
            noised, times = noised.at[:, 0].set(x0[:, 0]), jnp.tile(jnp.array([0.0] * 4 + [t] * 8), (4, 1))
        else:
            mask = jnp.zeros(SHAPE).at[:, 0].set(1.0)
            noised, times = jnp.concatenate([noised, mask, BATCH["image"]], -1), jnp.full(4, t)
        error = np.array(model.apply({"params": params}, noised, times, BATCH["text"]) - (noise - x0))
        if config is CONFIG:
            error[:, 0] = 0
        losses.append(np.mean(error**2))
    np.testing.assert_allclose(validate({"params": params}, BATCH, key), losses, rtol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, IMAGE])
def test_many_devices_take_the_same_step_as_one(config):
    params, results = dit_case.params(config), []
    for sizes in (None, {"data": 2, "fsdp": 2, "seq": 2}):
        mesh = None if sizes is None else partition.make_mesh(sizes)
        results.append(jax.jit(lambda p, mesh=mesh: step_of(WanDiT(config, mesh), probability=0.5, params=p))(params))
    (one, one_metrics), (many, many_metrics) = jax.device_get(results)
    np.testing.assert_allclose(many_metrics["loss"], one_metrics["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * max(np.abs(a).max(), 1e-3))
