"""Takes flicker out of a clip and keeps its trend, its steps and its whites. How and how well: docs/correct.md.

    corrected = correct(video, fps=16)

For clips too long for memory, read them twice::

    correction = estimate(frames(), fps=16)
    for index, frame in enumerate(frames()):
        correction.apply(frame, index)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

from wanjax.light.exposure import apply_gain
from wanjax.light.light_track import FIELD_TERMS, QUANTITIES, LightTrack, LightTracker, field_basis
from wanjax.light.photometry import linear_to_srgb, srgb_to_linear
from wanjax.light.trend import SHORTEST_PERIOD, flicker, level

__all__ = ["Correction", "correct", "estimate"]

PERIOD = 1.0
"""Seconds. Light that comes and goes faster than this is flicker, unless that is less than ten frames."""

LARGEST = 2.0
"""Stops. No more than this is taken away or added: a frame darker still holds too little to be brightened."""

# Stops of standard deviation that are not worth correcting: what the estimate makes of motion in steady light.
_NOISE = {"exposure": (0.006, 0.012), "colour": (0.008, 0.015)}  # of the frame, of a coefficient of the field
_FIELD_SEEN = 0.015  # stops of a field's flicker from which on the frame's own change is read beside it
_WHITE = 1 - 1e-5  # float sRGB of linear 1 is rounded to just below 1
_NEGLIGIBLE = 0.001  # stops; a field below this everywhere is not applied


@dataclass(frozen=True)
class Correction:
    """What is flicker in a clip.

    Attributes:
      stops: [T, 3, 1 + FIELD_TERMS] stops too much of red, green and blue: over the whole picture, then as
        coefficients of :func:`wanjax.light.light_track.field_basis`.
      white: [T, 3] in [0, 1], the share of each channel's clipped values that are clipped in the frames around
        too, and so do not come from the flicker.
      period: seconds, what came and went faster was taken for flicker.
    """

    stops: np.ndarray
    white: np.ndarray
    period: float

    def apply(self, frame: np.ndarray, index: int) -> np.ndarray:
        """Frame ``index`` of the clip, sRGB [H, W, 3] uint8 or float in [0, 1], without its flicker; same type.

        A value that is not at an end of the range is not put there.

        Raises:
          ValueError: a frame that is not such an array.
          IndexError: no frame of that index was seen by :func:`estimate`.
        """
        frame = _checked(frame, index)
        if not 0 <= index < len(self.stops):
            raise IndexError(f"frame {index}: the correction was estimated on {len(self.stops)} frames")
        stops = self.stops[index]
        if not stops.any():
            return frame.copy()
        if frame.dtype == np.uint8:
            return self._apply_to_bytes(frame, stops, self.white[index])
        pixels = _corrected(frame.astype(np.float32), stops, self.white[index], frame.shape)
        return _between(pixels.astype(frame.dtype), frame)

    @staticmethod
    def _apply_to_bytes(frame: np.ndarray, stops: np.ndarray, white: np.ndarray) -> np.ndarray:
        if np.abs(stops[:, 1:]).sum(1).max() < _NEGLIGIBLE:
            ramp = np.repeat(np.arange(256, dtype=np.float32)[:, None] / 255, 3, 1)
            brightest = _brightest(frame)
            # the table stops at each channel's brightest value, which the bend near white depends on
            ramp = np.minimum(ramp, brightest / np.float32(255))
            table = _corrected(ramp[None], stops[:, :1], white, (1, 256, 3))[0]
            pixels = np.stack([np.take(table[:, c], frame[..., c]) for c in range(3)], -1)
        else:
            pixels = _corrected(frame / np.float32(255), stops, white, frame.shape)
        return _between(np.rint(255 * pixels).astype(np.uint8), frame)


def estimate(frames: Iterable[np.ndarray], *, fps: float, period: float | None = None) -> Correction:
    """Finds the flicker of a clip in one pass over its frames, of which it holds no more than one.

    Args:
      frames: sRGB [H, W, 3], uint8 or float in [0, 1], of one size and type; at least one.
      fps: frames per second.
      period: seconds, of at least ten frames; exposure and colour that come and go faster are flicker. None:
        :data:`PERIOD`, or ten frames where that is longer.

    Raises:
      ValueError: no frames, frames of another shape, type or size than the first, values that are not finite
        or outside [0, 1], fps not above 0, a period of less than ten frames.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps = {fps}: expected frames per second above 0")
    shortest = SHORTEST_PERIOD / fps
    if period is None:
        period = max(PERIOD, shortest)
    if not (math.isfinite(period) and period >= shortest):
        raise ValueError(
            f"period = {period} s: expected at least {shortest:.4g} s, ten frames at {fps:.4g} frames per second"
        )
    tracker, clipped = LightTracker(), []
    first: np.ndarray | None = None
    for index, given in enumerate(frames):
        frame = _checked(given, index)
        first = frame if first is None else first
        if frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(
                f"frame {index}: {list(frame.shape)} {frame.dtype}, but the first frame is {list(first.shape)} "
                f"{first.dtype}; give frames of one size and type"
            )
        end = 255 if frame.dtype == np.uint8 else _WHITE
        clipped.append([np.mean(frame[..., channel] >= end) for channel in range(3)])
        tracker.add(_LINEAR_OF_BYTE[frame] if frame.dtype == np.uint8 else srgb_to_linear(frame.astype(np.float32)))
    if first is None:
        raise ValueError("video: no frames; a clip needs at least one")
    track = tracker.result()
    starts = [int(t) + 1 for t in np.flatnonzero(~track.linked)]
    frames_of_period = max(period * fps, SHORTEST_PERIOD)  # rounding may fall below
    found = np.zeros((len(track.frame), QUANTITIES, 1 + FIELD_TERMS))
    for quantity in range(QUANTITIES):
        frame_noise, field_noise = _NOISE["colour" if quantity else "exposure"]
        split = functools.partial(flicker, period=frames_of_period, starts=starts)
        found[:, quantity, 0] = split(_frame_track(track, quantity, round(frames_of_period)), noise=frame_noise)
        for term in range(FIELD_TERMS):
            found[:, quantity, 1 + term] = split(track.field[:, quantity, term], noise=field_noise)
    stops = np.clip(found[:, :1] + found[:, 1:], -LARGEST, LARGEST)
    white = _share_of_whites_that_stay(np.array(clipped), starts, round(frames_of_period))
    return Correction(stops, white, period)


def correct(video: np.ndarray, *, fps: float, period: float | None = None) -> np.ndarray:
    """A clip without its flicker of exposure and colour; slow change and lasting steps of light are kept.

    Args:
      video: sRGB [T, H, W, 3], float in [0, 1] or uint8.
      fps, period: see :func:`estimate`.

    Returns:
      [T, H, W, 3] of the same type. Clips of one or two frames come back as they are.

    Raises:
      ValueError: see :func:`estimate`.
    """
    video = np.asarray(video)
    if video.ndim != 4:
        raise ValueError(f"video: expected [T, H, W, 3], got {list(video.shape)}")
    correction = estimate(video, fps=fps, period=period)
    corrected = np.empty_like(video)
    for index, frame in enumerate(video):
        corrected[index] = correction.apply(frame, index)
    return corrected


def _frame_track(track: LightTrack, quantity: int, reach: int) -> np.ndarray:
    """[T] stops of the whole picture: the plain median, or as far as a field flickers the median beside it."""
    levels = [level(coefficient, reach) for coefficient in track.field[:, quantity].T]
    ratio = (float(np.median(np.linalg.norm(levels, axis=0))) / _FIELD_SEEN) ** 4
    return track.frame[:, quantity] + ratio / (1 + ratio) * (track.beside_field - track.frame)[:, quantity]


def _corrected(pixels: np.ndarray, stops: np.ndarray, white: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """sRGB float32 [H, W, 3] less ``stops [3, 1 + ...]``."""
    height, width, _ = shape
    excess = stops[:, 0].astype(np.float32)
    if stops.shape[1] > 1 and np.abs(stops[:, 1:]).sum(1).max() >= _NEGLIGIBLE:
        excess = excess + np.tensordot(field_basis(height, width), stops[:, 1:].astype(np.float32), (0, 1))
    linear = srgb_to_linear(np.where(pixels >= _WHITE, np.float32(1), pixels))
    corrected = apply_gain(linear, np.exp2(-excess), brightest=_brightest(linear), white=white.astype(np.float32))
    return linear_to_srgb(corrected)


def _brightest(frame: np.ndarray) -> np.ndarray:
    """[3] largest value of each channel; several times as fast as one maximum over both axes."""
    return np.array([frame[..., channel].max() for channel in range(3)])


def _share_of_whites_that_stay(clipped: np.ndarray, starts: Sequence[int], reach: int) -> np.ndarray:
    """[T, 3] from the share of each frame's values that are clipped [T, 3]: the running median over its own."""
    usual = np.zeros_like(clipped)
    edges = [0, *starts, len(clipped)]
    for first, last in zip(edges, edges[1:], strict=False):
        usual[first:last] = median_filter(clipped[first:last], size=(2 * reach + 1, 1), mode="reflect")
    return np.clip(usual / np.maximum(clipped, 1e-12), 0, 1)


def _between(corrected: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Rounding puts nothing at an end of the range that was not there."""
    if original.dtype == np.uint8:
        low, high, white = 1, 254, 255
    else:
        kind = original.dtype.type
        low, high, white = np.nextafter(kind(0), kind(1)), np.nextafter(kind(1), kind(0)), kind(1)
    return np.where((original > 0) & (original < white), np.clip(corrected, low, high), corrected)


def _checked(given: np.ndarray, index: int) -> np.ndarray:
    frame = np.asarray(given)
    if frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
        raise ValueError(f"frame {index}: expected [H, W, 3], got {list(frame.shape)}")
    if frame.dtype == np.uint8:
        return frame
    if not np.issubdtype(frame.dtype, np.floating):
        raise ValueError(f"frame {index}: expected uint8, or float in [0, 1], got {frame.dtype}")
    low, high = float(frame.min()), float(frame.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"frame {index}: holds values that are not finite")
    if low < 0 or high > 1:
        raise ValueError(
            f"frame {index}: values from {low:.4g} to {high:.4g}: expected [0, 1]; scale or clip them first"
        )
    return frame


_LINEAR_OF_BYTE = srgb_to_linear(np.arange(256, dtype=np.float32) / 255).astype(np.float32)
