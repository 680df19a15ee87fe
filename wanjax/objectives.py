"""Terms and weights → one objective, composed from the config, that also returns each term as a metric.

A term is a pure function of a ``Prediction`` that returns one value per clip, as in ``optax.losses``. To add one:
write its loss in light/losses.py, give it a config below, and a line in ``Objective.terms``.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wanjax.light import losses

Weight = float | tuple[tuple[float, ...], ...]


class Prediction(NamedTuple):
    """What every term may look at.

    Attributes:
      velocity: [B, F, h, w, C] predicted.
      target: [B, F, h, w, C] true velocity, noise − x0.
      x0: [B, F, h, w, C] the clean latents.
      sigma: [B] noise level.
    """

    velocity: jax.Array
    target: jax.Array
    x0: jax.Array
    sigma: jax.Array


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
class ObjectiveConfig:
    """One section per term."""

    velocity: VelocityTerm = dataclasses.field(default_factory=VelocityTerm)
    light: LightTerm = dataclasses.field(default_factory=LightTerm)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_weight(field.name, getattr(self, field.name).weight)
        if all(_is_off(getattr(self, f.name).weight) for f in dataclasses.fields(self)):
            raise ValueError("every weight is 0: give at least one term of the objective a weight")


class Objective(NamedTuple):
    """The composed objective: (name, weight schedule, term) for every term with a weight."""

    terms: tuple[tuple[str, optax.Schedule, Callable[[Prediction], jax.Array]], ...]

    def __call__(self, prediction: Prediction, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the scalar to minimise and {"loss", "loss/<term>"} (terms unweighted), means over clips."""
        total, metrics = jnp.zeros((), jnp.float32), {}
        for name, weight, term in self.terms:
            value = jnp.mean(term(prediction))
            metrics[f"loss/{name}"] = value
            total = total + weight(step) * value
        return total, {"loss": total, **metrics}


def make_objective(config: ObjectiveConfig, luminance: Any | None) -> Objective:
    """Builds the objective.

    Args:
      config: weights and options.
      luminance: [C], the codec's luminance vector m; needed where ``light`` has a weight.

    Raises:
      ValueError: if ``light`` has a weight and the codec has no luminance vector.
    """
    terms: list[tuple[str, optax.Schedule, Callable[[Prediction], jax.Array]]] = []
    if not _is_off(config.velocity.weight):
        terms.append(("velocity", schedule(config.velocity.weight),
                      lambda p: losses.velocity_loss(p.velocity, p.target)))
    if not _is_off(config.light.weight):
        if luminance is None:
            raise ValueError("config.objective.light has a weight, but the codec has no luminance.json: fit it "
                             "with python -m experiments.train_codec --fit_luminance --checkpoint DIR, "
                             "or set the weight to 0")
        m = jnp.asarray(luminance, jnp.float32)
        terms.append(("light", schedule(config.light.weight),
                      lambda p: losses.light_loss(p.velocity, p.target, m, pools=config.light.pools,
                                                  orders=config.light.orders)))
    return Objective(tuple(terms))


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
