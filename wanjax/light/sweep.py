"""The sweep of light over surfaces that stand still: which way, and how fast, a shadow or a patch slides.

Per frame the deviation of log-luminance from its temporal median is taken, less the frame's own median (a
change of exposure is no sweep). Its horizontal centroid over still pixels moves with the shadow or the patch,
whichever way their brightness goes.

Optical flow alone cannot say what stands still: it sees a patch of light slide over a plain wall, and fills
the wall with that motion. But light that slides over a still picture leaves most of it as it was most of the
time, while a panning camera changes all of it. So estimated flow is believed only where the picture as a
whole does not hold still; an object that moves under a still camera then counts as sweep. Flow that is given
is believed everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from wanjax.light.shrink import shrunk

__all__ = ["CHANGED", "GATE", "STILL", "Sweep", "SweepTracker"]

STILL = 0.5
"""A pixel's surface stands still if the temporal median of its flow is below this many pixels per frame."""

CHANGED = 0.12
"""The picture holds still if half of its pixels stay within this many stops of their median half of the time.

Rendered clips read 0 to 0.014 under a still camera, 0.22 under a panning one; blurred and with noise in every
frame 0.03 to 0.08, and 0.19.
"""

GATE = 0.15
"""Smaller deviations, in stops, are left out: noise all over the frame would pull the centroid inward."""

_SIDE = 64  # longer side in pixels of the maps that are kept
_KEPT = 96  # frames kept; when full, every other one goes


@dataclass(frozen=True)
class Sweep:
    """How light moves over still surfaces.

    Attributes:
      rate: frame widths per second, positive to the right.
      mass: mean deviation in stops.
      seconds: [n] times of the frames that were kept.
      position: [n] horizontal centroid of the deviation, 0 (left edge) to 1 (right edge).
      weight: [n] mass of each frame in stops; where it is 0 the position means nothing.
    """

    rate: float
    mass: float
    seconds: np.ndarray
    position: np.ndarray
    weight: np.ndarray


@dataclass
class SweepTracker:
    """Collects what :meth:`result` needs from a clip of any length, in bounded memory."""

    _stride: int = 1
    _count: int = 0
    _stops: list[np.ndarray] = field(default_factory=list)
    _flows: list[np.ndarray] = field(default_factory=list)

    def add(self, stops: np.ndarray, flow: np.ndarray | None) -> None:
        """Adds a frame.

        Args:
          stops: [H, W] log-luminance.
          flow: [H, W, 2] motion in pixels between the frame before and this one; None for the first frame.
        """
        index = self._count
        self._count += 1
        if index % self._stride:
            return
        stops = shrunk(stops.astype(np.float32), _SIDE)
        self._stops.append(cv2.GaussianBlur(stops, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE))
        flow = np.zeros((*stops.shape, 2)) if flow is None else flow
        self._flows.append(shrunk(flow.astype(np.float32), _SIDE))
        if len(self._stops) == _KEPT:
            self._stops, self._flows = self._stops[::2], self._flows[::2]
            self._stride *= 2

    @property
    def maps(self) -> np.ndarray:
        """The frames' log-luminance [n, h, w] as it is kept: small, low-passed, at most 96 frames."""
        return np.stack(self._stops)

    def result(self, fps: float, *, exact_flow: bool) -> Sweep:
        """The sweep; rate and mass 0 for fewer than two frames or where nothing stands still.

        ``exact_flow`` says that the flow is the surfaces' own and not an estimate from the pictures.
        """
        seconds = np.arange(len(self._stops)) * self._stride / fps
        if len(self._stops) < 2:
            return _no_sweep(seconds)
        stops = np.stack(self._stops)  # [n, h, w]
        still = np.hypot(*np.moveaxis(np.median(np.stack(self._flows[1:]), axis=0), -1, 0)) < STILL
        if not exact_flow and _holds_still(stops):
            still = np.ones_like(still)
        if not still.any():
            return _no_sweep(seconds)
        deviation = stops - np.median(stops, axis=0)
        deviation = np.abs(deviation - np.median(deviation[:, still], axis=1)[:, None, None])
        deviation = np.where(still & (deviation > GATE), deviation, 0)
        return _centroid_slope(deviation, seconds)


def _holds_still(stops: np.ndarray) -> bool:
    """Whether the picture ``stops [n, h, w]`` stays what it is, changes of exposure aside."""
    stops = stops - np.median(stops, axis=(1, 2), keepdims=True)
    change = np.median(np.abs(stops - np.median(stops, axis=0)), axis=0)
    return bool(np.median(change) < CHANGED)


def _centroid_slope(deviation: np.ndarray, seconds: np.ndarray) -> Sweep:
    """Slope of the horizontal centroid of ``deviation [n, h, w]``, frames weighted by the mass they hold."""
    mass = deviation.mean(axis=(1, 2), dtype=np.float64)  # [n]
    if mass.sum() < 1e-6:
        return _no_sweep(seconds)
    width = deviation.shape[2]
    columns = (np.arange(width) + 0.5) / width
    centroid = deviation.mean(axis=1, dtype=np.float64) @ columns / (width * np.maximum(mass, 1e-12))
    weight = mass / mass.sum()
    time = seconds - weight @ seconds
    spread = weight @ np.square(time)
    rate = float(weight @ (time * centroid) / spread) if spread > 0 else 0.0
    return Sweep(rate, float(mass.mean()), seconds, centroid, mass)


def _no_sweep(seconds: np.ndarray) -> Sweep:
    return Sweep(0.0, 0.0, seconds, np.full(len(seconds), 0.5), np.zeros(len(seconds)))
