"""Terms and weights → one objective, composed from the config, that also returns each term as a metric.

A term is a pure function of a ``Prediction`` that returns one value per clip, as in ``optax.losses``. To add one:
write its loss in light/losses.py, give it a config below, and a line in ``_loss_of``. docs/objectives.md has the
formulas.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wanjax.light import losses
from wanjax.models.shadow_head import ShadowHeadConfig

Weight = float | tuple[tuple[float, ...], ...]


class Prediction(NamedTuple):
    """What every term may look at.

    Attributes:
      velocity: [B, F, h, w, C] predicted.
      target: [B, F, h, w, C] true velocity, noise − x0.
      x0: [B, F, h, w, C] the clean latents.
      sigma: [B] noise level.
      shadow_logits: [B, F, *, *] of the shadow head, where the objective asks for it.
      visibility: [B, F, *, *] its ground truth in [0, 1].
      decoder_params: parameters of the ``Decoder``, where the objective has one.
    """

    velocity: jax.Array
    target: jax.Array
    x0: jax.Array
    sigma: jax.Array
    shadow_logits: jax.Array | None = None
    visibility: jax.Array | None = None
    decoder_params: Any = None

    @property
    def predicted_x0(self) -> jax.Array:
        """[B, F, h, w, C] the clean latents that the predicted velocity points to, x_σ − σ v̂ = x0 + σ (v − v̂)."""
        sigma = self.sigma.reshape(-1, *(1,) * (self.x0.ndim - 1))
        return self.x0 + sigma * (self.target - self.velocity)


class Decoder(NamedTuple):
    """Latents to pixels, for the terms that look at pixels. No gradient goes into its parameters.

    Attributes:
      apply: (params, latents [B, F, h, w, C]) -> video [B, T, H, W, 3] in [−1, 1].
      params: handed to the compiled step as an argument, never a constant in it.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any


@dataclasses.dataclass(frozen=True)
class VelocityTerm:
    """The rectified-flow loss."""

    weight: Weight = 1.0


@dataclasses.dataclass(frozen=True)
class LightTerm:
    """Temporal differences of the luminance error in latents (docs/light.md).

    Attributes:
      weight: a number, or ((step, value), ...) interpolated linearly; 0 switches the term off.
      pools: spatial low-passes: "frame" for the whole frame, n for n×n cells of the latent grid.
      orders: of the temporal difference.
    """

    weight: Weight = 0.0
    pools: tuple[str | int, ...] = ("frame", 4)
    orders: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if not self.pools or not self.orders or any(k < 1 for k in self.orders):
            raise ValueError(f"pools = {self.pools}, orders = {self.orders}: expected at least one of each, orders ≥ 1")


@dataclasses.dataclass(frozen=True)
class LightConsistencyTerm:
    """The light-consistency penalty on the luminance of the predicted clean latents.

    Attributes:
      weight: as in ``LightTerm``.
      mode: "relative" to the clip's own change, or "absolute", which punishes real change too.
      threshold: jump in linear luminance that counts once more.
    """

    weight: Weight = 0.0
    mode: str = "relative"
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if self.mode not in losses.MODES or self.threshold < 0:
            raise ValueError(f"mode = {self.mode!r}, threshold = {self.threshold}: expected 'relative' or 'absolute', "
                             "and ≥ 0")


@dataclasses.dataclass(frozen=True)
class TemporalLuminanceTerm:
    """Change of log-luminance on decoded pixels, for the expert of low noise alone: the low one, or a single one.

    Attributes:
      weight: as in ``LightTerm``.
      every: steps from one use to the next; the steps between do not decode.
      clips: how many clips of a (micro-)batch are decoded, evenly spaced in it; 0 for all.
      cut: noise level from which on a clip has no weight, at most 0.5.
    """

    weight: Weight = 0.0
    every: int = 4
    clips: int = 0
    cut: float = 0.5

    def __post_init__(self) -> None:
        if self.every < 1 or self.clips < 0 or not 0.0 < self.cut <= 0.5:
            raise ValueError(f"every = {self.every}, clips = {self.clips}, cut = {self.cut}: expected at least 1, at "
                             "least 0, and in (0, 0.5]")


@dataclasses.dataclass(frozen=True)
class ShadowTerm:
    """Where the light is visible, predicted from hidden states by a head that is trained along.

    Attributes:
      weight: as in ``LightTerm``.
      head: shape of the head.
    """

    weight: Weight = 0.0
    head: ShadowHeadConfig = dataclasses.field(default_factory=ShadowHeadConfig)


@dataclasses.dataclass(frozen=True)
class ChangeWeightTerm:
    """The rectified-flow loss with more weight where the clip changes; beside ``velocity`` or in its place.

    Attributes:
      weight: as in ``LightTerm``.
      strength: a of 1 + a·log1p(change).
      limit: largest weight before a clip's weights are scaled to a mean of 1.
    """

    weight: Weight = 0.0
    strength: float = 1.0
    limit: float = 4.0

    def __post_init__(self) -> None:
        if self.strength < 0 or self.limit < 1:
            raise ValueError(f"strength = {self.strength}, limit = {self.limit}: expected ≥ 0 and ≥ 1")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """One section per term."""

    velocity: VelocityTerm = dataclasses.field(default_factory=VelocityTerm)
    light: LightTerm = dataclasses.field(default_factory=LightTerm)
    light_consistency: LightConsistencyTerm = dataclasses.field(default_factory=LightConsistencyTerm)
    temporal_luminance: TemporalLuminanceTerm = dataclasses.field(default_factory=TemporalLuminanceTerm)
    shadow: ShadowTerm = dataclasses.field(default_factory=ShadowTerm)
    change_weight: ChangeWeightTerm = dataclasses.field(default_factory=ChangeWeightTerm)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_weight(field.name, getattr(self, field.name).weight)
        if not self.active:
            raise ValueError("every weight is 0: give at least one term of the objective a weight")

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the terms that have a weight."""
        return tuple(f.name for f in dataclasses.fields(self) if not _is_off(getattr(self, f.name).weight))

    def of(self, timesteps: tuple[float, float]) -> ObjectiveConfig:
        """What the expert of these timesteps is trained on: the terms that are not for it are off.

        Args:
          timesteps: its range in [0, 1000]; where it begins at 0, the expert sees low noise.

        Raises:
          ValueError: if nothing is left.
        """
        if timesteps[0] == 0.0 or "temporal_luminance" not in self.active:
            return self
        off = dataclasses.replace(self.temporal_luminance, weight=0.0)
        return dataclasses.replace(self, temporal_luminance=off)


@dataclasses.dataclass(frozen=True)
class Term:
    """One term: its loss, per clip [B], its weight at every step, and how often it is computed."""

    name: str
    weight: optax.Schedule
    loss: Callable[[Prediction], jax.Array]
    every: int = 1


class Objective(NamedTuple):
    """The composed objective: every term that has a weight, and the decoder where one of them needs pixels."""

    terms: tuple[Term, ...]
    decoder: Decoder | None = None

    def __call__(self, prediction: Prediction, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the scalar to minimise and {"loss", "loss/<term>"} (terms unweighted), means over clips.

        Args:
          prediction: see there.
          step: steps done before this one, for the weights' schedules.
        """
        total, metrics = jnp.zeros((), jnp.float32), {}
        for term in self.terms:
            value = jnp.mean(term.loss(prediction))
            metrics[f"loss/{term.name}"] = value
            total = total + term.weight(step) * value
        return total, {"loss": total, **metrics}

    def at(self, step: int) -> Objective:
        """What is computed in the ``step``-th step (from 1): the objective without the terms that wait.

        Steps with and without such a term are programs of their own: inside a conditional, the decoder's convolutions
        are several times slower on CPU.
        """
        due = tuple(term for term in self.terms if step % term.every == 0)
        return self if len(due) == len(self.terms) else self._replace(terms=due)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms."""
        return tuple(term.name for term in self.terms)


def make_objective(config: ObjectiveConfig, luminance: Any | None, decoder: Decoder | None = None) -> Objective:
    """Builds the objective.

    Args:
      config: weights and options, of one expert (``ObjectiveConfig.of``).
      luminance: [C], the codec's luminance vector m; needed where ``light`` or ``light_consistency`` has a weight.
      decoder: needed where ``temporal_luminance`` has a weight.

    Raises:
      ValueError: if a term that has a weight lacks what it needs.
    """
    needing_m = [name for name in ("light", "light_consistency") if name in config.active]
    if needing_m and luminance is None:
        raise ValueError(f"config.objective.{needing_m[0]} has a weight, but the codec has no luminance.json: fit it "
                         "with python -m experiments.train_codec --fit_luminance --checkpoint DIR, "
                         "or set the weight to 0")
    pixels = "temporal_luminance" in config.active
    if pixels and decoder is None:
        raise ValueError("config.objective.temporal_luminance has a weight, but no decoder is given: "
                         "it compares pixels")
    m = None if luminance is None else jnp.asarray(luminance, jnp.float32)
    terms = []
    for name in config.active:
        section = getattr(config, name)
        loss = _loss_of(name, section, m, decoder)
        terms.append(Term(name, schedule(section.weight), loss, getattr(section, "every", 1)))
    return Objective(tuple(terms), decoder if pixels else None)


def _loss_of(name: str, c: Any, m: Any, decoder: Decoder | None) -> Callable[[Prediction], jax.Array]:
    """The loss of the term ``name`` with its section ``c`` of the config."""
    if name == "velocity":
        return lambda p: losses.velocity_loss(p.velocity, p.target)
    if name == "light":
        return lambda p: losses.light_loss(p.velocity, p.target, m, pools=c.pools, orders=c.orders)
    if name == "light_consistency":
        return lambda p: losses.light_consistency_loss(p.predicted_x0, p.x0, m, mode=c.mode, threshold=c.threshold)
    if name == "change_weight":
        return lambda p: losses.change_weighted_loss(p.velocity, p.target, p.x0, strength=c.strength, limit=c.limit)
    if name == "shadow":
        return _shadow
    assert name == "temporal_luminance" and decoder is not None

    def temporal_luminance(p: Prediction) -> jax.Array:
        params, stride = jax.lax.stop_gradient(p.decoder_params), p.x0.shape[0] // c.clips if c.clips else 1
        predicted, x0, sigma = (a[::stride] for a in (p.predicted_x0, p.x0, p.sigma))
        real = jax.lax.stop_gradient(decoder.apply(params, x0))
        some = losses.temporal_luminance_loss(decoder.apply(params, predicted), real, sigma, cut=c.cut)
        # the mean over the batch is then that over the clips that were decoded
        return jnp.zeros(p.sigma.shape, jnp.float32).at[::stride].set(stride * some)

    return temporal_luminance


def _shadow(p: Prediction) -> jax.Array:
    if p.shadow_logits is None or p.visibility is None:
        raise ValueError("the shadow term needs shadow_logits and visibility in the Prediction: train with a "
                         "ShadowHead on batches with \"visibility\"")
    return losses.shadow_loss(p.shadow_logits, p.visibility, p.sigma)


def schedule(weight: Weight) -> optax.Schedule:
    """A number, or ((step, value), ...) interpolated linearly and held constant outside."""
    if isinstance(weight, (int, float)):
        return optax.constant_schedule(float(weight))
    steps = jnp.asarray([s for s, _ in weight], jnp.float32)
    values = jnp.asarray([v for _, v in weight], jnp.float32)
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), steps, values)


def _is_off(weight: Weight) -> bool:
    return weight == 0.0 if isinstance(weight, (int, float)) else all(v == 0.0 for _, v in weight)


def _check_weight(name: str, weight: Weight) -> None:
    if isinstance(weight, (int, float)):
        if weight < 0:
            raise ValueError(f"{name}.weight = {weight}: expected ≥ 0")
        return
    steps = [pair[0] for pair in weight]
    if not weight or any(len(p) != 2 or p[1] < 0 for p in weight) or steps != sorted(set(steps)):
        raise ValueError(f"{name}.weight = {weight}: expected ((step, value), ...) with rising steps and values ≥ 0")
