"""Tracks over time, split into a trend to keep and flicker to take away.

A trend is what a smoothing spline keeps: it follows slow change without bias to its slope, has no phase, and
runs straight on at both ends. Lasting steps are part of the trend; a flash that is over after two frames is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import solveh_banded
from scipy.ndimage import median_filter
from scipy.special import ndtri

__all__ = ["SHORTEST_PERIOD", "flicker", "level"]

SHORTEST_PERIOD = 10.0
"""Frames. Trend and flicker of shorter periods than this cannot be told apart in so few frames."""

_FLASH = 2  # frames that a flash may last
_FLASH_SIZE = 0.05  # stops
_FLASH_RATIO = 5.0  # a flash is this many times the flicker around it
_LEAST_LENGTH = 3  # frames on each side of a step
_STEP_SIZE = 0.15  # stops; a generated clip jumps by less than a lamp does
_STEP_EVIDENCE = 25.0  # fall of a spline's cost, cut in two, in units of the flicker's variance; white noise gives
# more than this in three clips of a thousand
_EVENT = 4  # second differences that one step or flash can spoil; so many are left out of the flicker's level


def flicker(track: np.ndarray, *, period: float, noise: float, starts: Sequence[int] = ()) -> np.ndarray:
    """The part of a track that comes and goes faster than ``period``, in stops; what is left is the trend.

    Where the track hardly flickers, little is returned: the flicker around each frame, of standard deviation
    s, is scaled by s^2 / (s^2 + noise^2).

    Args:
      track: [T] stops.
      period: in frames; a sine of this period is split in halves. At least :data:`SHORTEST_PERIOD`.
      noise: stops, standard deviation of what is not worth correcting.
      starts: first frames of further scenes, across which nothing is known.

    Returns:
      [T] stops.

    References:
      Whittaker, On a new method of graduation, 1923 (the spline in its discrete form).
    """
    if not period >= SHORTEST_PERIOD:
        raise ValueError(f"period = {period} frames: expected at least {SHORTEST_PERIOD}")
    track = np.asarray(track, np.float64)
    out = np.zeros_like(track)
    edges = [0, *starts, len(track)]
    for first, last in zip(edges, edges[1:], strict=False):
        scene = track[first:last]
        if len(scene) >= _LEAST_LENGTH:
            out[first:last] = _flicker_of_scene(scene, period, noise)
    return out


def level(track: np.ndarray, reach: int) -> np.ndarray:
    """[T] stops, standard deviation of the flicker of ``track [T]`` within ``reach`` frames of each: of white noise
    with the same second differences; 0 for fewer than three frames.

    The largest few are left out and made up for: one event does not make a clip flicker.
    """
    out = np.zeros(len(track))
    if len(track) < 3:
        return out
    second = np.abs(np.diff(track, n=2))  # [T-2], around frame t+1
    for t in range(len(track)):
        near = np.sort(second[max(0, t - 1 - reach) : t + reach])
        kept = len(near) - min(_EVENT, len(near) // 3)
        share = kept / len(near)
        # mean of the smallest share of standard normal numbers, without their signs
        expected = np.sqrt(2 / np.pi) * (1 - np.exp(-np.square(ndtri((1 + share) / 2)) / 2)) / share
        out[t] = near[:kept].mean() / (np.sqrt(6) * expected)
    return out


def _flicker_of_scene(track: np.ndarray, period: float, noise: float) -> np.ndarray:
    around = level(track, round(period))
    flash = _flashes(track, around)
    rest = np.empty_like(track)
    for part in _between_steps(track, around, flash, period):
        weights = (~flash[part]).astype(np.float64)
        rest[part] = track[part] - _spline(track[part], weights, _stiffness(period))
    gate = np.where(flash, 1.0, around**2 / (around**2 + noise**2))
    return rest * gate


def _flashes(track: np.ndarray, around: np.ndarray) -> np.ndarray:
    """[T] bool, frames that stand out from both sides for no longer than a flash: a running median drops them,
    and leaves steps and anything that only rises or only falls as it is."""
    out = np.abs(track - median_filter(track, size=2 * _FLASH + 1, mode="nearest"))
    return out > np.maximum(_FLASH_RATIO * around, _FLASH_SIZE)


def _between_steps(
    track: np.ndarray, around: np.ndarray, flash: np.ndarray, period: float
) -> list[slice]:
    """Pieces of the track between its lasting steps, which show as a spline that fits far better in two pieces.

    That spline is of twice the period: a stiffer one sees more of a step, a softer one less of slow change.
    """
    reach, stiffness = round(2 * period), _stiffness(2 * period)
    weights = (~flash).astype(np.float64)
    # a step is steeper than what comes before and after it
    slopes = np.pad(np.diff(track), 2, mode="reflect") if len(track) > 3 else np.zeros(len(track) + 3)
    jumps = np.abs(slopes[2:-2] - (slopes[:-4] + slopes[1:-3] + slopes[3:-1] + slopes[4:]) / 4)
    candidates = [t + 1 for t in range(len(jumps)) if _stands_out(jumps, t, around[t], round(period))]
    edges = [0, len(track)]
    while True:
        best, where = 0.0, 0
        for t in candidates:
            index = int(np.searchsorted(edges, t))
            first, last = max(edges[index - 1], t - reach), min(edges[index], t + reach)
            if min(t - first, last - t) < max(_LEAST_LENGTH, round(period / 3)):
                continue
            whole, left, right = slice(first, last), slice(first, t), slice(t, last)
            fall = _cost(track[whole], weights[whole], stiffness) - sum(
                _cost(track[side], weights[side], stiffness) for side in (left, right)
            )
            evidence = fall / max(around[t], 1e-4) ** 2
            if evidence > max(best, _STEP_EVIDENCE):
                best, where = evidence, t
        if not where:
            return [slice(first, last) for first, last in zip(edges, edges[1:], strict=False)]
        edges = sorted([*edges, where])
        candidates.remove(where)


def _stands_out(jumps: np.ndarray, t: int, around: float, reach: int) -> bool:
    """Whether the jump at t is large beside the flicker and the only one of its size: flicker that holds its value
    for a few frames is a row of jumps."""
    others = np.concatenate([jumps[max(0, t - reach) : max(0, t - 2)], jumps[t + 3 : t + 1 + reach]])
    return bool(jumps[t] > max(_STEP_SIZE, 3 * around, 1.5 * others.max(initial=0)))


def _stiffness(period: float) -> float:
    """Of the spline that takes a sine of ``period`` frames at half its height."""
    return float((2 - 2 * np.cos(2 * np.pi / period)) ** -2)


def _spline(track: np.ndarray, weights: np.ndarray, stiffness: float) -> np.ndarray:
    """Minimum over z of sum w (track - z)^2 + stiffness sum (second difference of z)^2."""
    count = len(track)
    if count < 3 or (weights > 0).sum() < 2:
        return track
    second = np.zeros((3, count))  # lower bands of D'D, D the second difference
    for offset, value in ((0, (1.0, 4.0, 1.0)), (1, (-2.0, -2.0)), (2, (1.0,))):
        for shift, one in enumerate(value):
            second[offset, shift : count - 2 + shift] += one
    bands = stiffness * second
    bands[0] += weights
    return solveh_banded(bands, weights * track, lower=True)


def _cost(track: np.ndarray, weights: np.ndarray, stiffness: float) -> float:
    trend = _spline(track, weights, stiffness)
    misfit = (weights * np.square(track - trend)).sum()
    return float(misfit + stiffness * np.square(np.diff(trend, n=2)).sum())
