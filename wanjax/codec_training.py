"""Training of a codec: frames in, frames out, with the light of every frame kept.

It starts from a fitted linear transform (:mod:`wanjax.codec_start`). The loss is

    mean |error| + cell_weight * mean |error of cells| + mse_weight * mean error^2
    + luminance_weight * mean |error of log-luminance|   (stops; half frames, half cells; whole clips have
      full_luminance_weight instead, since only they show a frame's mean)
    + flicker_weight * mean |second difference over time of that error|   (whole clips only)
    + kl_weight * KL(posterior || unit normal) per latent value

A cell is the pixels of one latent: 8x8 in Wan2.1's codec, 16x16 in Wan2.2's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wanjax.codec_finish import frame_error
from wanjax.codec_start import linear_start
from wanjax.light.photometry import log_luminance, srgb_to_linear
from wanjax.models.vae import WanVAE

Params = Any


class ClipSource(Protocol):
    """Gives training clips; a pure function of the step, so that a run resumes without stored position."""

    def __call__(self, step: int, *, batch: int, frames: int, size: int) -> np.ndarray:
        """Clips ``[batch, frames, size, size, 3]`` in [-1, 1]."""


@dataclass(frozen=True)
class CodecTrainingConfig:
    """How a codec is trained.

    Attributes:
        steps: optimizer steps in all; the last ``full_steps`` of them see whole clips, the others crops.
        crop_batch, crop_frames, crop_size: clips, frames and pixels of a batch of crops.
        full_batch, full_frames, full_size: the same of a batch of whole clips.
        learning_rate: peak; linear warm-up over ``warmup_steps``, then cosine decay to 1 % of it.
        ema_decay: of the averaged parameters, which are what is evaluated and kept.
        cell_weight, mse_weight, luminance_weight, full_luminance_weight, flicker_weight, kl_weight: see the module's
            loss.
        initial_logvar: log-variance of the posterior before training.
        clip_norm: bound on the gradient's norm.
        evaluate_every, save_every: steps.
        seed: of the parameters and of the posterior's noise.
    """

    steps: int = 800
    full_steps: int = 350
    crop_batch: int = 4
    crop_frames: int = 9
    crop_size: int = 32
    full_batch: int = 1
    full_frames: int = 17
    full_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 40
    ema_decay: float = 0.99
    cell_weight: float = 1.0
    mse_weight: float = 4.0
    luminance_weight: float = 0.1
    full_luminance_weight: float = 0.5
    flicker_weight: float = 1.0
    kl_weight: float = 1e-4
    initial_logvar: float = -6.0
    clip_norm: float = 1.0
    evaluate_every: int = 150
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.full_steps <= self.steps:
            raise ValueError(f"full_steps is {self.full_steps}; expected 0 to steps = {self.steps}")

    def check(self, strides: tuple[int, int, int]) -> None:
        """Refuses sizes that a codec of these strides (frames, rows, columns of pixels per latent) cannot take.

        Raises:
            ValueError: naming the field and what the codec takes.
        """
        time, space = strides[0], math.lcm(*strides[1:])
        for name in ("crop_frames", "full_frames"):
            if getattr(self, name) < 1 or (getattr(self, name) - 1) % time:
                raise ValueError(f"{name} is {getattr(self, name)}; the codec takes {time}n + 1 frames")
        for name in ("crop_size", "full_size"):
            if getattr(self, name) % space or getattr(self, name) < space:
                raise ValueError(f"{name} is {getattr(self, name)}; the codec takes multiples of {space} pixels")

    def sees_whole_clips(self, step: int | jax.Array) -> bool | jax.Array:
        """Whether a step is one of the last ``full_steps``."""
        return step >= self.steps - self.full_steps

    def batch_of(self, step: int) -> dict[str, int]:
        """Batch, frames and size of a step, as :class:`ClipSource` takes them."""
        kind = "full" if self.sees_whole_clips(step) else "crop"
        return {name: getattr(self, f"{kind}_{name}") for name in ("batch", "frames", "size")}


class CodecState(NamedTuple):
    """What a run must keep: step done so far, parameters, their average, optimizer state."""

    step: jax.Array
    params: Params
    ema: Params
    opt_state: Any


def make_optimizer(config: CodecTrainingConfig) -> optax.GradientTransformation:
    """Adam with clipping, warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1),
        config.learning_rate * 0.01,
    )  # fmt: skip
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule, b1=0.9, b2=0.98))


def init_state(model: WanVAE, config: CodecTrainingConfig, start: np.ndarray | Params) -> CodecState:
    """State before the first step.

    Args:
        start: parameters, or uint8 clips [n, T, H, W, 3] to which a linear transform is fitted. (From random weights,
          a run of 1,100 steps at learning rate 4e-3 had learned shapes, but greys only.)

    Raises:
        ValueError: parameters of another shape than the model's.
    """
    if isinstance(start, np.ndarray):
        start = linear_start(model.config, start, logvar=config.initial_logvar, seed=config.seed)
    else:
        chex.assert_trees_all_equal_shapes(start, jax.eval_shape(model.init, jax.random.key(0))["params"])
    return _state_of(config, jax.tree.map(jnp.array, start))


def _state_of(config: CodecTrainingConfig, params: Params) -> CodecState:
    # Steps give their inputs' memory away, so parameters and average must not share a buffer.
    average = jax.tree.map(jnp.copy, params)
    return CodecState(jnp.zeros((), jnp.int32), params, average, make_optimizer(config).init(params))


def codec_loss(
    model: WanVAE,
    config: CodecTrainingConfig,
    params: Params,
    video: jax.Array,
    key: jax.Array,
    step: jax.Array | int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its terms, averaged over clips.

    Args:
        step: steps done, which decide what log-luminance weighs.
        video: [B, T, H, W, 3] in [-1, 1].
        key: of the posterior's noise.
    """
    variables = {"params": params}
    mean, logvar = model.apply(variables, video, method="moments")
    sample = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    centre, scale = (jnp.asarray(s) for s in (model.config.latents_mean, model.config.latents_std))
    error = (made := model.apply(variables, (sample - centre) / scale, method="decode")) - video
    cell = model.strides[1:]
    light, flicker = _light_errors(made, video, cell)
    terms = {
        "l1": jnp.mean(jnp.abs(error)),
        "cell": jnp.mean(jnp.abs(_cells(error, cell))),
        "mse": jnp.mean(error**2),
        "stops": light,
        "flicker": flicker,
        "kl": 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar),
    }
    weights: dict[str, jax.Array | float] = {
        "l1": 1.0,
        "cell": config.cell_weight,
        "mse": config.mse_weight,
        "stops": jnp.where(config.sees_whole_clips(step), config.full_luminance_weight, config.luminance_weight),
        "flicker": jnp.where(config.sees_whole_clips(step), config.flicker_weight, 0.0),
        "kl": config.kl_weight,
    }
    return sum((weights[name] * value for name, value in terms.items()), jnp.zeros(())), terms


def _cells(x: jax.Array, cell: tuple[int, int]) -> jax.Array:
    """Means over cells of [B, T, H, W, 3]."""
    B, T, H, W, _ = x.shape
    return x.reshape(B, T, H // cell[0], cell[0], W // cell[1], cell[1], 3).mean((3, 5))


def _light_errors(made: jax.Array, video: jax.Array, cell: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Means of |log-luminance error| in stops and of its |second difference over frames|.

    Of whole frames and of cells in equal parts. A codec that is a constant part of a stop off does not flicker, nor
    does a clip of fewer than three frames.
    """
    error, flicker = jnp.zeros(()), jnp.zeros(())
    linear = [srgb_to_linear((x + 1) / 2) for x in (made, video)]
    for size in ((video.shape[2], video.shape[3]), cell):
        pooled = [_cells(x, size) for x in linear]
        off = log_luminance(pooled[0]) - log_luminance(pooled[1])
        error = error + 0.5 * jnp.mean(jnp.abs(off))
        if off.shape[1] > 2:
            flicker = flicker + 0.5 * jnp.mean(jnp.abs(jnp.diff(off, n=2, axis=1)))
    return error, flicker


@lru_cache(maxsize=4)  # a resumed run in one process need not compile again
def make_step(model: WanVAE, config: CodecTrainingConfig) -> Callable[..., tuple[CodecState, dict[str, jax.Array]]]:
    """Compiled ``(state, video) -> (state, terms)``."""
    optimizer = make_optimizer(config)

    @partial(jax.jit, donate_argnums=0)
    def step(state: CodecState, video: jax.Array) -> tuple[CodecState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
        loss = partial(codec_loss, model, config)
        (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, video, key, state.step)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short average at first: the random start must not linger in it.
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        return CodecState(state.step + 1, params, ema, opt_state), terms

    return step


def save_state(path: Path, state: CodecState) -> None:
    """Write the state; a reader sees the old file or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(flax.serialization.to_bytes(state._asdict()))
    os.replace(temporary, path)


def load_state(path: Path, model: WanVAE, config: CodecTrainingConfig) -> CodecState:
    """Read a state that :func:`save_state` wrote for the same model and config.

    Raises:
        ValueError: it is of a codec of other sizes.
    """
    like = jax.eval_shape(lambda key: _state_of(config, model.init(key)["params"]), jax.random.key(0))
    fields = flax.serialization.from_bytes(like._asdict(), path.read_bytes())
    wrong = [jax.tree_util.keystr(path) for (path, leaf), shape in
             zip(jax.tree_util.tree_leaves_with_path(fields), jax.tree.leaves(like._asdict()), strict=True)
             if leaf.shape != shape.shape]
    if wrong:
        raise ValueError(f"{path} is of a codec of other sizes ({len(wrong)} tensors differ, e.g. {wrong[0]}): go on "
                         "with the run's own, or give another work folder")
    return CodecState(**jax.tree.map(jnp.asarray, fields))


def train(
    model: WanVAE,
    config: CodecTrainingConfig,
    clips: ClipSource,
    *,
    start: np.ndarray | Params,
    workdir: Path,
    held_out: Mapping[str, np.ndarray],
    report: Callable[[int, Mapping[str, float]], None],
) -> Params:
    """Train (or go on with the run in ``workdir``) and return the averaged parameters.

    Args:
        start: of a new run, as :func:`init_state` takes it: parameters, or about a dozen clips.
        held_out: family -> uint8 clips [n, T, H, W, 3], measured every ``evaluate_every`` steps.
        report: called with the step and its figures.

    Raises:
        FloatingPointError: the loss is not finite; the stored state is the last good one.
        ValueError: sizes of clips that the codec cannot take.
    """
    config.check(model.strides)
    workdir.mkdir(parents=True, exist_ok=True)
    stored = workdir / "state.msgpack"
    state = load_state(stored, model, config) if stored.exists() else init_state(model, config, start)
    step = make_step(model, config)
    done = int(state.step)
    while done < config.steps:
        state, terms = step(state, clips(done, **config.batch_of(done)))
        done += 1
        last = done == config.steps
        if done % 50 == 0 or last:
            figures = {name: float(value) for name, value in terms.items()}
            if not all(np.isfinite(value) for value in figures.values()):
                raise FloatingPointError(f"codec training: step {done} has {figures}; lower learning_rate")
            report(done, figures)
        if done % config.evaluate_every == 0 or last:
            report(done, summarise(measure_families(model, state.ema, held_out)))
        if done % config.save_every == 0 or last:
            save_state(stored, state)
    return jax.device_get(state.ema)


def measure(model: WanVAE, params: Params, video: np.ndarray) -> dict[str, np.ndarray]:
    """How well clips survive encoding and decoding.

    Args:
        video: uint8 [n, T, H, W, 3].

    Returns:
        psnr: [n] dB over the whole clip, of the clipped, 8-bit result.
        frame_error: [n, T] stops, |log2 of the frame's mean linear luminance (+ 0.001)| made - true.
    """
    psnr, light = [], []
    for clip in video:
        made = model.apply({"params": params}, clip[None] / np.float32(127.5) - 1)
        made = np.asarray(model.apply({"params": params}, made, method="decode"))[0]
        light.append(np.abs(frame_error(made, clip)))
        shown = np.clip(np.round((made + 1) * 127.5), 0, 255)
        psnr.append(10 * np.log10(255**2 / max(np.mean((shown - clip) ** 2), 1e-12)))
    return {"psnr": np.asarray(psnr), "frame_error": np.asarray(light)}


def measure_families(
    model: WanVAE, params: Params, held_out: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """:func:`measure` for every family."""
    return {family: measure(model, params, video) for family, video in held_out.items()}


def summarise(measured: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Mean and worst clip of each family."""
    out: dict[str, float] = {}
    for family, figures in measured.items():
        out[f"{family}/psnr"] = float(figures["psnr"].mean())
        out[f"{family}/psnr_min"] = float(figures["psnr"].min())
        out[f"{family}/frame_error"] = float(figures["frame_error"].mean())
        out[f"{family}/frame_error_max"] = float(figures["frame_error"].mean(1).max())
    return out
