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

from wanjax import precision
from wanjax.light.photometry import log_luminance, srgb_to_linear

__all__ = [
    "change_weighted_loss",
    "light_consistency_loss",
    "light_loss",
    "noise_gate",
    "shadow_loss",
    "temporal_luminance_loss",
    "velocity_loss",
]

Pool = str | int
MODES = ("relative", "absolute")


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
    return _per_clip(jnp.square(_error(pred, target)))


def change_weighted_loss(
    pred: jax.Array, target: jax.Array, x0: jax.Array, *, strength: float = 1.0, limit: float = 4.0
) -> jax.Array:
    r"""Squared error of the velocity, weighted by how much the clean latents change from frame to frame.

    .. math:: \overline{w (\hat v - v)^2}, \quad w \propto \min(1 + a \log(1 + |\Delta_t x_0|),\, limit)

    ``|Δ_t x0|`` is the root mean square over channels of the difference to the latent frame before (the first frame
    takes the second's). w is scaled to a mean of 1 within each clip, so a clip's loss has the scale of
    :func:`velocity_loss`, does not depend on the batch, and a still clip has exactly that loss.

    Since w is known only with the clean clip, the minimiser is the mean of v weighted by w, not the mean itself: what
    might change counts for more than what might stand still.

    Args:
      pred: predicted velocity [B, F, h, w, C].
      target: ``noise - x0`` [B, F, h, w, C].
      x0: clean latents [B, F, h, w, C].
      strength: a >= 0.
      limit: largest weight before scaling, >= 1.

    Returns:
      [B] float32.
    """
    if strength < 0 or limit < 1:
        raise ValueError(f"change_weighted_loss: strength = {strength}, limit = {limit}: expected >= 0 and >= 1")
    error = jnp.square(_error(pred, target))
    if x0.shape != error.shape:
        raise ValueError(f"change_weighted_loss needs x0 of the velocity's shape {error.shape}, got {x0.shape}")
    if x0.shape[1] == 1:
        return _per_clip(error)
    change = jnp.sqrt(jnp.mean(jnp.square(jnp.diff(jnp.asarray(x0, jnp.float32), axis=1)), axis=-1, keepdims=True))
    change = jnp.concatenate([change[:, :1], change], axis=1)  # [B, F, h, w, 1]
    weight = jnp.minimum(1.0 + strength * jnp.log1p(change), limit)
    weight = jax.lax.stop_gradient(weight / jnp.mean(weight, axis=(1, 2, 3, 4), keepdims=True))
    return _per_clip(weight * error)


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
    vector = _luminance_vector("light_loss", m, error)
    frames = error.shape[1]
    if not pools or not orders:
        raise ValueError(f"light_loss needs at least one pool and one order, got {pools=} {orders=}")
    for order in orders:
        if not 1 <= order < frames:
            raise ValueError(
                f"light_loss: a difference of order {order} needs order >= 1 and at least {order + 1} latent "
                f"frames, got F = {frames}; lengthen the clips or drop the order from {tuple(orders)}"
            )

    # Normalising m here makes the projected white error unit-variance.
    luminance = _dot(error, vector / jnp.linalg.norm(vector))  # [B, F, h, w]
    terms = []
    for pool in pools:
        pooled = _unit_variance_pool(luminance, pool)  # [B, F, cells]
        for order in orders:
            change = jnp.diff(pooled, n=order, axis=1)  # [B, F - order, cells]
            # The squared binomial coefficients of D^k sum to binom(2k, k).
            terms.append(jnp.mean(jnp.square(change), axis=(1, 2)) / math.comb(2 * order, order))
    return jnp.mean(jnp.stack(terms), axis=0)


def light_consistency_loss(
    pred_x0: jax.Array, target_x0: jax.Array, m: ArrayLike, *, mode: str = "relative", threshold: float = 0.1
) -> jax.Array:
    r"""The light-consistency penalty on the luminance of latents: smoothness, and jumps above a threshold once more.

    .. math:: \overline{|d| + \max(|d| - \tau, 0)}

    d is the difference along **time** of the cells' linear luminance ``m . latent``. In mode "absolute" it is the
    prediction's own, as in the penalty's original form: least for a clip whose light stands still, so it punishes
    real change. In mode "relative" the target clip's own difference is taken off first: zero for the target clip,
    and its minimiser is the conditional median of the change instead of the mean.

    Args:
      pred_x0: predicted clean latents [B, F, h, w, C].
      target_x0: the clean latents [B, F, h, w, C]; they are not read in mode "absolute".
      m: [C], luminance per unit of each normalised latent channel (white = 1), not all 0.
      mode: "relative" or "absolute".
      threshold: tau in linear luminance, >= 0.

    Returns:
      [B] float32, mean over latent frames and cells; 0 for a single latent frame.

    Raises:
      ValueError: where shapes disagree, m is zero, or mode or threshold cannot be.
    """
    if mode not in MODES or threshold < 0:
        raise ValueError(f"light_consistency_loss: mode = {mode!r}, threshold = {threshold}: expected one of {MODES} "
                         "and >= 0")
    error = _error(pred_x0, target_x0)
    vector = _luminance_vector("light_consistency_loss", m, error)
    latents = error if mode == "relative" else jnp.asarray(pred_x0, jnp.float32)
    if error.shape[1] == 1:
        return jnp.zeros(error.shape[0], jnp.float32)
    change = jnp.abs(jnp.diff(_dot(latents, vector), axis=1))  # [B, F - 1, h, w]
    return _per_clip(change + jnp.maximum(change - threshold, 0.0))


def noise_gate(sigma: jax.Array, cut: float | None = None) -> jax.Array:
    r"""How far a predicted clean clip can be trusted: :math:`(1-\sigma)^2 / ((1-\sigma)^2 + \sigma^2)`.

    That is the share of the signal's power in ``x_sigma`` for unit signal and noise: 1 at sigma = 0, 1/2 at 0.5.

    Args:
      sigma: [B] in [0, 1].
      cut: 0 from this noise level on.

    Returns:
      [B] float32.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    signal = jnp.square(1.0 - sigma)
    gate = signal / (signal + jnp.square(sigma))
    return gate if cut is None else jnp.where(sigma < cut, gate, 0.0)


def temporal_luminance_loss(
    pred_video: jax.Array, target_video: jax.Array, sigma: jax.Array, *, cut: float = 0.5
) -> jax.Array:
    r"""Squared error, in stops, of the change of every pixel's log-luminance from frame to frame, noise-gated.

    .. math:: g(\sigma) \overline{(\Delta_t \hat L - \Delta_t L)^2}, \quad L = \log_2(Y + 0.001)

    Relative to the real clip, so real change costs nothing. The logarithm and the decoder are not linear: the
    minimiser is that of :func:`velocity_loss` only as the noise goes to zero, hence the gate and its cut.

    Args:
      pred_video: decoded predicted clean latents [B, T, H, W, 3] in [-1, 1]; what is outside counts as its limit.
      target_video: the real clip as the same decoder gives it, [B, T, H, W, 3].
      sigma: [B] noise level of the prediction.
      cut: no weight from this noise level on.

    Returns:
      [B] float32, stops squared; 0 for T = 1.
    """
    if pred_video.shape != target_video.shape or pred_video.ndim != 5 or pred_video.shape[-1] != 3:
        raise ValueError("temporal_luminance_loss needs two videos of one shape [B, T, H, W, 3], got "
                         f"{pred_video.shape} and {target_video.shape}")
    if pred_video.shape[1] == 1:
        return jnp.zeros(pred_video.shape[0], jnp.float32)
    stops = [log_luminance(srgb_to_linear(jnp.asarray(video, jnp.float32) * 0.5 + 0.5))
             for video in (pred_video, target_video)]
    error = jnp.diff(stops[0] - stops[1], axis=1)  # [B, T - 1, H, W]
    return noise_gate(sigma, cut) * _per_clip(jnp.square(error))


def shadow_loss(logits: jax.Array, visibility: jax.Array, sigma: jax.Array) -> jax.Array:
    r"""Binary cross-entropy plus Dice of the light's predicted visibility, noise-gated.

    .. math:: g(\sigma) \left(\overline{\mathrm{BCE}(p, q)} + 1 - \frac{2 \sum \bar p \bar q + 1}
              {\sum \bar p^2 + \sum \bar q^2 + 1}\right)

    p = sigmoid(logits), q the visibility, :math:`\bar p = 1 - p` and :math:`\bar q = 1 - q` the shadow. Both parts
    are least at p = q, also where the target is soft (a penumbra): Dice in the form with squares, whose 1 keeps a clip
    without any shadow defined.

    Args:
      logits: [B, F, *, *] of the light being visible.
      visibility: share of the light that is seen, same shape, in [0, 1].
      sigma: [B] noise level of the prediction.

    Returns:
      [B] float32.

    References:
      Milletari et al., `V-Net <https://arxiv.org/abs/1606.04797>`_, 2016 (the Dice loss with squares).
    """
    if logits.shape != visibility.shape:
        raise ValueError(f"logits and visibility must have one shape, got {logits.shape} and {visibility.shape}")
    logits, visibility = jnp.asarray(logits, jnp.float32), jnp.asarray(visibility, jnp.float32)
    entropy = jnp.maximum(logits, 0) - logits * visibility + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    shadow, truth = jax.nn.sigmoid(-logits), 1.0 - visibility
    axes = tuple(range(1, logits.ndim))
    overlap = jnp.sum(shadow * truth, axis=axes)
    sizes = jnp.sum(jnp.square(shadow), axis=axes) + jnp.sum(jnp.square(truth), axis=axes)
    dice = 1.0 - (2.0 * overlap + 1.0) / (sizes + 1.0)
    return noise_gate(sigma) * (_per_clip(entropy) + dice)


def _per_clip(x: jax.Array) -> jax.Array:
    """Mean over everything but the clip."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def _dot(x: jax.Array, vector: jax.Array) -> jax.Array:
    """x · vector over the last axis, in float32, for which accelerators otherwise take a shorter format."""
    return jnp.matmul(x, vector, precision=precision.of("float32"))


def _luminance_vector(name: str, m: ArrayLike, latents: jax.Array) -> jax.Array:
    """m as float32 [C], checked against latents [B, F, h, w, C]."""
    if latents.ndim != 5:
        raise ValueError(f"{name} needs arrays of shape [B, F, h, w, C], got {latents.shape}")
    if not isinstance(m, jax.core.Tracer) and not np.any(np.asarray(m)):
        raise ValueError(f"{name} got m = 0 in every channel: fit it with wanjax.light.luminance first")
    vector = jnp.asarray(m, jnp.float32)
    if vector.shape != latents.shape[-1:]:
        raise ValueError(f"{name} needs m of shape [{latents.shape[-1]}], one per channel, got {vector.shape}")
    return vector


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
