"""How long sampling will take at least, before it begins."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from wanjax import flops
from wanjax.models.dit import WanDiT
from wanjax.sample_config import SampleConfig

_SIDE = 2048  # of the matrices; large enough that a device is at work and not waiting
_SECONDS = 0.2  # of measuring


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the networks will do.

    Attributes:
        tokens: N of one clip.
        operations: of all clips and steps together.
        rate: operations per second of a plain matrix product on all devices in use.
    """

    tokens: int
    operations: int
    rate: float

    @property
    def seconds(self) -> float:
        """At that rate, which attention and all that is not a matrix product do not reach."""
        return self.operations / self.rate

    def __str__(self) -> str:
        return (
            f"estimate: {self.tokens} tokens a clip, {self.operations:.2g} operations; matrix products run at "
            f"{self.rate:.2g} a second here, so at least {duration(self.seconds)}"
        )


def estimate(
    models: Mapping[str, WanDiT], config: SampleConfig, latent_shape: tuple[int, int, int, int], text_length: int,
    clips: int,
) -> Estimate:  # fmt: skip
    """Of sampling clips; measures how fast the devices multiply matrices, for a fifth of a second.

    Args:
        models: by expert.
        config: settings.
        latent_shape: (F, h, w, C) of one clip.
        text_length: L.
        clips: how many, those that fill up batches included.
    """
    operations, tokens = 0, 0
    for name, count in config.expert_steps.items():
        if not count:
            continue
        frames, height, width = models[name].config.grid(latent_shape[:3])
        tokens, passes = frames * height * width, 1 if config.guidance(name) == 1.0 else 2
        operations += clips * count * passes * flops.forward(models[name].config, tokens, text_length)
    model = next(iter(models.values()))
    devices = 1 if model.mesh is None else model.mesh.size
    return Estimate(tokens, operations, devices * matrix_rate(model.config.dtype))


def matrix_rate(dtype: str) -> float:
    """Operations per second of a matrix product of this type on the first device."""
    x = jnp.ones((_SIDE, _SIDE), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < _SECONDS:
        product(x, x).block_until_ready()
        count += 1
    return 2 * _SIDE**3 * count / taken


def duration(seconds: float) -> str:
    """In the unit that people would use."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
