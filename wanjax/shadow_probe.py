"""Does a transformer know where its shadows are? A shadow head on frozen hidden states, against thresholded luminance.

On noised clips both say where the key light is hidden: the head from hidden states, the baseline from how dark the
clean clip is that the same step's velocity points to. Shadow is what lies below a threshold, of the head's probability
as of the luminance, fitted alike on training scenes for every noise level. Both are scored by intersection over union
with the scenes' ground truth (docs/objectives.md).
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wanjax import rectified_flow
from wanjax.light.losses import shadow_loss
from wanjax.light.luminance import LuminanceFit, cell_luminance
from wanjax.light.photometry import luminance, srgb_to_linear
from wanjax.models.shadow_head import ShadowHead
from wanjax.uncertainty import bootstrap_interval

Batches = Sequence[Mapping[str, np.ndarray]]
CLASSES = ("shadow", "lit", "rarer")
_FEWEST = 0.01  # share of a clip's cells that must be in shadow, and in light, for the clip to count
_THRESHOLDS = 128
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How the head is trained on frozen states.

    Attributes:
      steps: of Adam, with cosine decay to zero.
      learning_rate: the first.
      gate: weigh clips by the noise gate, as the shadow term does; else every noise level counts the same, as it is
        scored.
      seed: of the head, the noise and the noise levels, which are uniform over the expert's range.
    """

    steps: int = 1500
    learning_rate: float = 5e-3
    gate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps = {self.steps}, learning_rate = {self.learning_rate}: expected at least 1 and > 0")


def train_head(head: ShadowHead, params: Any, batches: Iterator[Mapping[str, np.ndarray]], config: ProbeConfig, *,
               timesteps: tuple[float, float], report: Callable[[int, float], None] = lambda step, loss: None) -> Any:
    """Parameters of a head trained on the states of a transformer that stays as it is.

    Args:
      head: to be trained.
      params: the transformer's parameters.
      batches: {"latents" [B, F, h, w, C], "text" [B, L, E], "visibility" [B, F, *, *]}, at least ``config.steps``.
      timesteps: the expert's range in [0, 1000].
      report: called with every step and its loss.
    """
    key = jax.random.key(config.seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    @jax.jit
    def step(params: Any, own: Any, state: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
        noise_key, time_key = jax.random.split(key)
        x0 = batch["latents"]
        timestep = jax.random.uniform(time_key, (x0.shape[0],), minval=timesteps[0], maxval=timesteps[1])
        noise = jax.random.normal(noise_key, x0.shape)
        noised = jnp.asarray(rectified_flow.add_noise(x0, noise, timestep / 1000.0))
        _, states = head.model.apply_with_taps({"params": params}, noised, timestep, batch["text"], taps=head.taps)
        sigma = timestep / 1000.0 if config.gate else jnp.zeros_like(timestep)

        def loss(own: Any) -> jax.Array:
            return jnp.mean(shadow_loss(head.apply(own, states, _sizes(x0)), batch["visibility"], sigma))

        value, gradient = jax.value_and_grad(loss)(own)
        updates, state = optimizer.update(gradient, state, own)
        return optax.apply_updates(own, updates), state, value

    own = head.init(jax.random.fold_in(key, 0))
    state = optimizer.init(own)
    for i in range(1, config.steps + 1):
        own, state, value = step(params, own, state, next(batches), jax.random.fold_in(key, i))
        report(i, float(value))
    return own


def _sizes(x: jax.Array) -> tuple[int, int, int]:
    f, h, w = x.shape[1:4]
    return f, h, w


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known of clips at one noise level, [n, F, *, *] each.

    Attributes:
      visibility: ground truth in [0, 1].
      predicted: the head's probability that the light is visible.
      luminance: linear luminance of the same step's predicted clean clip, {"decoded": ..., "m": ...}.
    """

    visibility: np.ndarray
    predicted: np.ndarray
    luminance: Mapping[str, np.ndarray]


def make_look(head: ShadowHead, decode: Callable[[Any, jax.Array], jax.Array], fit: LuminanceFit | None
              ) -> Callable[..., Seen]:
    """``look(params, own, decoder_params, batches, sigma, key) -> Seen``: head and baselines, compiled once.

    Args:
      head: the probe.
      decode: (params, latents) -> video [B, T, H, W, 3] in [-1, 1].
      fit: the codec's luminance vector, for the baseline "m"; None leaves it out.
    """

    @jax.jit
    def one(params: Any, own: Any, decoder_params: Any, batch: Mapping[str, jax.Array], sigma: jax.Array,
            key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x0 = batch["latents"]
        sigmas = jnp.full((x0.shape[0],), sigma)
        noised = jnp.asarray(rectified_flow.add_noise(x0, jax.random.normal(key, x0.shape), sigmas))
        velocity, states = head.model.apply_with_taps({"params": params}, noised, 1000.0 * sigmas, batch["text"],
                                                      taps=head.taps)
        predicted = jax.nn.sigmoid(head.apply(own, states, _sizes(x0)))
        clean = jnp.asarray(rectified_flow.x0_from_velocity(noised, velocity, sigmas))
        return predicted, clean, luminance(srgb_to_linear(decode(decoder_params, clean) * 0.5 + 0.5))

    def look(params: Any, own: Any, decoder_params: Any, batches: Batches, sigma: float, key: jax.Array) -> Seen:
        seen, predictions, decoded, linear = [], [], [], []
        for i, batch in enumerate(batches):
            arrays = {name: jnp.asarray(batch[name]) for name in ("latents", "text")}
            predicted, clean, pixels = one(params, own, decoder_params, arrays, jnp.float32(sigma),
                                           jax.random.fold_in(key, i))
            cells = predicted.shape[2]
            seen.append(batch["visibility"])
            predictions.append(np.asarray(predicted))
            decoded.append(cell_luminance(np.asarray(pixels), space=pixels.shape[2] // cells))
            if fit is not None:
                each = np.asarray(clean) @ np.asarray(fit.m, np.float32) + fit.bias
                side = cells // each.shape[2]
                linear.append(each.repeat(side, 2).repeat(side, 3))
        maps = {"decoded": np.concatenate(decoded)}
        if linear:
            maps["m"] = np.concatenate(linear)
        return Seen(np.concatenate(seen), np.concatenate(predictions), maps)

    return look


def overlap(shadow: np.ndarray, visibility: np.ndarray) -> dict[str, np.ndarray]:
    """Intersection over union of every clip, for what is in shadow, what is lit, and the rarer of both in that clip.

    Args:
      shadow: predicted, bool [n, ...].
      visibility: in [0, 1], [n, ...]; below 1/2 is shadow.

    Returns:
      {"shadow": [n], "lit": [n], "rarer": [n]}; NaN for a clip of which less than 1 % is in shadow or in light: there
      is nothing to be found in it.
    """
    truth = visibility < 0.5
    axes = tuple(range(1, truth.ndim))
    share = truth.mean(axes)
    counts = (share >= _FEWEST) & (share <= 1 - _FEWEST)

    def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        union = (a | b).sum(axes)
        return np.where(counts, (a & b).sum(axes) / np.maximum(union, 1), np.nan)

    dark, lit = iou(shadow, truth), iou(~shadow, ~truth)
    return {"shadow": dark, "lit": lit, "rarer": np.where(share <= 0.5, dark, lit)}


def fit_thresholds(light: np.ndarray, visibility: np.ndarray) -> dict[str, float]:
    """For each of ``CLASSES`` the value, of 128 quantiles of ``light``, below which "shadow" scores best.

    The score is the class's mean IoU over clips: head and baseline are each at their best in everything that they are
    compared in.

    Args:
      light: luminance, or the probability that the light is visible, [n, ...].
      visibility: [n, ...].

    Raises:
      ValueError: if no clip holds both shadow and light.
    """
    candidates = np.unique(np.quantile(light, np.linspace(0, 1, _THRESHOLDS)))
    scores = [overlap(light < candidate, visibility) for candidate in candidates]
    return {c: float(candidates[int(np.argmax([_mean(score[c]) for score in scores]))]) for c in CLASSES}


def compare(seen: Seen, fitted_on: Seen, families: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of head and baselines on the same clips, with 95 % intervals from a bootstrap over clips.

    Args:
      seen: held-out clips.
      fitted_on: training clips at the same noise level, for the thresholds of head and baselines.
      families: of each clip, to be scored apart as well; () for none.

    Returns:
      {"clips": those that count, "clips_left_out", "shadow_share", "head": {"thresholds", class: {"mean", "low",
      "high"}}, "baselines": {name: the same}, "head_minus_baseline": {name: {class: ...}}, "families": {family: all of
      this}}; a family none of whose clips counts is left out.

    Raises:
      ValueError: if no clip holds both shadow and light.
    """
    thresholds = {name: fit_thresholds(light, fitted_on.visibility) for name, light in _maps(fitted_on).items()}
    scores = {name: {c: overlap(light < thresholds[name][c], seen.visibility)[c] for c in CLASSES}
              for name, light in _maps(seen).items()}
    counted = np.isfinite(scores["head"]["shadow"])
    if not counted.any():
        raise ValueError(f"none of the {len(counted)} held-out clips holds both shadow and light: take more clips, or "
                         "another split")
    everything = np.ones(len(counted), bool)
    found = _summary(scores, seen.visibility, thresholds, everything)
    groups = {family: np.asarray([f == family for f in families]) for family in dict.fromkeys(families)}
    found["families"] = {family: _summary(scores, seen.visibility, thresholds, chosen)
                         for family, chosen in groups.items() if (chosen & counted).any()}
    return found


def _maps(seen: Seen) -> dict[str, np.ndarray]:
    """What is thresholded, the head's probability first."""
    return {"head": seen.predicted, **seen.luminance}


def _summary(scores: Mapping[str, Mapping[str, np.ndarray]], visibility: np.ndarray,
             thresholds: Mapping[str, Mapping[str, float]], chosen: np.ndarray) -> dict[str, Any]:
    """Means and intervals over the chosen clips that count."""
    counts = chosen & np.isfinite(scores["head"]["shadow"])

    def interval(values: np.ndarray) -> dict[str, float]:
        mean = float(values[counts].mean())
        low, high = bootstrap_interval(values[counts], draws=_RESAMPLES) or (mean, mean)
        return {"mean": mean, "low": low, "high": high}

    head = scores["head"]
    scored = {name: {"thresholds": dict(thresholds[name])} | {c: interval(score[c]) for c in CLASSES}
              for name, score in scores.items()}
    return {
        "clips": int(counts.sum()), "clips_left_out": int((chosen & ~counts).sum()),
        "shadow_share": float((visibility[counts] < 0.5).mean()),
        "head": scored.pop("head"), "baselines": scored,
        "head_minus_baseline": {name: {c: interval(head[c] - scores[name][c]) for c in CLASSES} for name in scored}}


def _mean(values: np.ndarray) -> float:
    counted = values[np.isfinite(values)]
    if not counted.size:
        raise ValueError(f"none of {len(values)} clips holds both shadow and light: a threshold cannot be fitted; take "
                         "more clips")
    return float(counted.mean())
