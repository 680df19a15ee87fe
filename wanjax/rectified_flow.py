"""Rectified flow: noise levels, the straight path between data and noise, and what the network predicts.

    x_σ = (1 − σ) x0 + σ ε,    velocity = dx/dσ = ε − x0,    σ in [0, 1], timestep = 1000 σ.

Liu et al. 2022, https://arxiv.org/abs/2209.03003; the shift of the noise levels is Esser et al. 2024,
https://arxiv.org/abs/2403.03206, equation 23. Every function takes numpy or jax arrays and keeps their
precision: the schedules of `wanjax.solvers` are computed here in numpy float64.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Number = TypeVar("Number", float, np.ndarray, jax.Array)

TIMESTEPS = 1000.0  # what σ = 1 is called in Wan's checkpoints


def _per_clip(sigma: Array | float, x: Array) -> Array | float:
    """`sigma` [] or [B] made to broadcast over the trailing axes of x [B, ...]."""
    if isinstance(sigma, (int, float)) or sigma.ndim in (0, x.ndim):
        return sigma
    if sigma.ndim != 1 or sigma.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"sigma has shape {np.shape(sigma)}, but the clips have shape {tuple(x.shape)}: "
            f"give one number, one per clip ({x.shape[0]},), or an array of the clips' rank"
        )
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - 1))


def add_noise(x0: Array, noise: Array, sigma: Array | float) -> Array:
    """x_σ = (1 − σ) x0 + σ ε.

    x0, noise: [B, ...] of one shape. sigma: a number, [B], or of x0's rank (for example per frame,
    [B, F, 1, 1, 1]). Returns [B, ...].
    """
    sigma = _per_clip(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Array, noise: Array) -> Array:
    """What the network learns to predict: ε − x0, the derivative of x_σ in σ. Shapes as `add_noise`."""
    return noise - x0


def x0_from_velocity(x: Array, velocity: Array, sigma: Array | float) -> Array:
    """The clean clip that a velocity at noise level σ points to: x_σ − σ v. Shapes as `add_noise`."""
    return x - _per_clip(sigma, x) * velocity


def shift_sigma(u: Number, shift: float) -> Number:
    """σ = s u / (1 + (s − 1) u): maps [0, 1] onto itself, spending more of it at high noise if s > 1."""
    return shift * u / (1 + (shift - 1) * u)


def unshift_sigma(sigma: Number, shift: float) -> Number:
    """The inverse of `shift_sigma` in its first argument: u = σ / (s − (s − 1) σ)."""
    return sigma / (shift - (shift - 1) * sigma)


def sample_timesteps(key: jax.Array, n: int, *, shift: float, low: float = 0.0, high: float = TIMESTEPS) -> jax.Array:
    """Independent timesteps for training an expert that sees only [low, high].

    Their density is that of 1000 · shift_sigma(U, shift), U uniform on [0, 1], conditioned on the range:
    U is drawn uniformly between the inverse images of the ends, so no draw is rejected or piled up there.

    Args:
      key: jax random key. The same key gives the same timesteps.
      n: how many.
      shift: s of `shift_sigma`, > 0.
      low, high: ends of the expert's range, 0 ≤ low < high ≤ 1000 (host numbers).
    Returns: [n] float32 in [low, high]; σ = timestep / 1000.
    Raises: ValueError on a range that is empty or leaves [0, 1000], or a shift ≤ 0.
    """
    if not 0.0 <= low < high <= TIMESTEPS:
        raise ValueError(
            f"timestep range [{low}, {high}]: expected 0 <= low < high <= {TIMESTEPS:g} "
            "(the high-noise expert of Wan2.2-T2V-A14B trains on [875, 1000], the low-noise one on [0, 875])"
        )
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift = {shift}: expected a number > 0 (Wan2.2-T2V-A14B samples with 12)")
    first, last = (unshift_sigma(end / TIMESTEPS, shift) for end in (low, high))
    u = jax.random.uniform(key, (n,), jnp.float32) * (last - first) + first
    # float32 may round a draw at an end to just outside the range: another expert's ground
    return jnp.clip(TIMESTEPS * shift_sigma(u, shift), low, high)
