"""Loss functions of light, written like ``optax.losses``: pure functions that return one value per clip.

The caller averages over clips and weighs the terms (``wanjax.objectives``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["light_loss", "velocity_loss"]

Pool = str | int


def velocity_loss(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Rectified-flow loss: mean squared error of the velocity, per clip.

    Args:
      pred: predicted velocity [B, F, h, w, C].
      target: ``noise - x0`` [B, F, h, w, C].

    Returns:
      [B] float32, mean over everything but the clip.

    References:
      Liu et al., `Flow Straight and Fast <https://arxiv.org/abs/2209.03003>`_, 2022.
    """
    error = _error(pred, target)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def light_loss(
    pred_velocity: jax.Array,
    target_velocity: jax.Array,
    m: ArrayLike,
    *,
    pools: Sequence[Pool] = ("frame", 4),
    orders: Sequence[int] = (1, 2),
) -> jax.Array:
    r"""Squared error of the *change of luminance over latent frames*, relative to the target's own change.

    .. math:: \frac{1}{|P||K|} \sum_{P, k} \frac{1}{s_{P,k}} \overline{\| P D^k\, m \cdot (\hat v - v) \|^2}

    ``m`` maps a latent to luminance, ``D^k`` is the k-th difference over latent frames, ``P`` averages over
    the frame or over square cells. Everything inside the norm is linear in the velocity's error, so the
    minimiser is that of :func:`velocity_loss` (the conditional mean): real change of light costs nothing,
    only getting it wrong does. Each (pool, order) pair is divided by ``s = |m|^2 binom(2k, k) / n``, n the
    number of latents averaged, which is its expectation for white error of unit variance. So the loss is
    then exactly 1 in expectation, whatever the size, and the scale of ``m`` does not matter.

    Args:
      pred_velocity: [B, F, h, w, C].
      target_velocity: [B, F, h, w, C].
      m: [C], luminance per unit of each normalised latent channel (``wanjax.light.luminance``), not all 0.
      pools: ``"frame"`` for the frame's mean; an integer for the mean over square cells of that many latents
        a side (cells at the right and lower edge may be smaller, and are scaled by what they hold).
      orders: orders of the difference over latent frames, each >= 1 and < F.

    Returns:
      [B] float32, mean over pools, orders, latent frames and cells.

    Raises:
      ValueError: where shapes disagree, m is zero, a pool is unknown, or F is too short for an order.
    """
    error = _error(pred_velocity, target_velocity)
    if error.ndim != 5:
        raise ValueError(f"light_loss needs velocities of shape [B, F, h, w, C], got {error.shape}")
    frames, channels = error.shape[1], error.shape[-1]
    if not isinstance(m, jax.core.Tracer) and not np.any(np.asarray(m)):
        raise ValueError("light_loss got m = 0 in every channel: fit it with wanjax.light.luminance first")
    vector = jnp.asarray(m, jnp.float32)
    if vector.shape != (channels,):
        raise ValueError(f"light_loss needs m of shape [{channels}], one per channel, got {vector.shape}")
    if not pools or not orders:
        raise ValueError(f"light_loss needs at least one pool and one order, got {pools=} {orders=}")
    for order in orders:
        if not 1 <= order < frames:
            raise ValueError(
                f"light_loss: a difference of order {order} needs order >= 1 and at least {order + 1} latent "
                f"frames, got F = {frames}; lengthen the clips or drop the order from {tuple(orders)}"
            )

    # Normalising m here makes the projected white error unit-variance.
    luminance = error @ (vector / jnp.linalg.norm(vector))  # [B, F, h, w]
    terms = []
    for pool in pools:
        pooled = _unit_variance_pool(luminance, pool)  # [B, F, cells]
        for order in orders:
            change = jnp.diff(pooled, n=order, axis=1)  # [B, F - order, cells]
            # The squared binomial coefficients of D^k sum to binom(2k, k).
            terms.append(jnp.mean(jnp.square(change), axis=(1, 2)) / math.comb(2 * order, order))
    return jnp.mean(jnp.stack(terms), axis=0)


def _error(pred: jax.Array, target: jax.Array) -> jax.Array:
    """pred - target in float32, shapes checked (broadcasting would hide a mistake)."""
    if pred.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, got {pred.shape} and {target.shape}")
    return jnp.asarray(pred, jnp.float32) - jnp.asarray(target, jnp.float32)


def _unit_variance_pool(x: jax.Array, pool: Pool) -> jax.Array:
    """Sums over cells / sqrt(latents in the cell): white noise in, white noise of the same variance out.

    Args:
      x: [B, F, h, w].
      pool: "frame" or the side of a cell.

    Returns:
      [B, F, cells].
    """
    batch, frames, height, width = x.shape
    if pool == "frame":
        rows, columns = height, width
    elif isinstance(pool, int) and not isinstance(pool, bool) and pool >= 1:
        rows = columns = pool
    else:
        raise ValueError(f"light_loss: unknown pool {pool!r}, expected 'frame' or an int >= 1 (latents)")
    down, across = -(-height // rows), -(-width // columns)
    pad = ((0, down * rows - height), (0, across * columns - width))
    x = jnp.pad(x, ((0, 0), (0, 0), *pad))
    sums = x.reshape(batch, frames, down, rows, across, columns).sum(axis=(3, 5))
    held = np.pad(np.ones((height, width), np.float32), pad)
    held = held.reshape(down, rows, across, columns).sum(axis=(1, 3))
    return (sums / np.sqrt(held)).reshape(batch, frames, down * across)
