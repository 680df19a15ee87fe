"""Flicker: the second difference of log-luminance along motion, looked at frame by frame.

Where a surface is seen in three frames in a row, the second difference of its log-luminance is 0 if its light is
steady or changes at a steady rate. What is left is looked at in cells of 1/32 of the frame's longer side, each the mean
over what is seen in it: what is occluded before or after takes no part, so that nothing bleeds over from behind.

A change of light moves a neighbourhood together. An edge of light that slides over a still floor does not: it leaves a
rise beside a fall, which cancel in the neighbourhood's mean unless the edge is fast, and touch few cells, which
leaves the median where it was unless there are many edges. So a neighbourhood counts by the smaller of its mean and
its median, and only where both have the same sign.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from wanjax.light.motion import Motion, warp

__all__ = ["CELLS", "FlickerTracker", "shared_change"]

CELLS = 32
"""Cells along the frame's longer side; frames with fewer pixels have cells of one pixel."""

_SIGMA = CELLS / 24  # of the Gaussian mean, in cells: 1/24 of the longer side
_WINDOW = 5  # cells along the side of the square that the median is of
_LEAST_SEEN = 0.25  # share of a cell
_PEAK_PERCENTILE = 90
_PEAK_FLOOR = 0.01  # stops; keeps the peak's ratio from dividing by the stillness of a still clip
_BORDER = np.ones((3, 3), np.uint8)


@dataclass
class FlickerTracker:
    """Second differences of a clip of any length, in the memory of three frames.

    Attributes:
      local: per inner frame, mean over cells of the absolute change that neighbourhoods share, in stops.
      common: per inner frame, absolute median over cells of that change, in stops.
      extreme: per inner frame, 90th percentile over cells of its absolute value, in stops.
    """

    local: list[float] = field(default_factory=list)
    common: list[float] = field(default_factory=list)
    extreme: list[float] = field(default_factory=list)
    _last: np.ndarray | None = None  # [h, w] log-luminance of the last frame, and of the one before it
    _older: np.ndarray | None = None
    _motion: Motion | None = None  # between those two
    _sum: np.ndarray | None = None  # per cell, of the absolute change over time
    _terms: np.ndarray | None = None  # per cell, how many terms that sum has

    def add(self, stops: np.ndarray, motion: Motion | None) -> None:
        """Adds a frame's log-luminance [h, w] and the motion from the frame before to it (None for the first)."""
        if self._older is not None and self._motion is not None and self._last is not None and motion is not None:
            second = warp(stops, motion.forward) - 2 * self._last + warp(self._older, self._motion.backward)
            self._note(second, motion.seen_next & self._motion.seen_before)
        self._older, self._last, self._motion = self._last, stops, motion

    def _note(self, second: np.ndarray, seen: np.ndarray) -> None:
        # Pixels at the border of what is seen hold some of what is not.
        seen = cv2.erode(seen.view(np.uint8), _BORDER, borderValue=1).view(bool)
        change = shared_change(second, seen)
        known = np.isfinite(change)
        size = np.abs(change)
        if self._sum is None or self._terms is None:
            self._sum, self._terms = np.zeros(size.shape), np.zeros(size.shape, np.int64)
        self._sum += np.where(known, size, 0)
        self._terms += known
        self.local.append(float(size[known].mean(dtype=np.float64)) if known.any() else 0.0)
        self.common.append(abs(float(np.median(change[known]))) if known.any() else 0.0)
        self.extreme.append(float(np.percentile(size[known], _PEAK_PERCENTILE)) if known.any() else 0.0)

    @property
    def peak(self) -> float:
        """Largest over median of the frames' extremes, the median floored at 0.01 stops; 0 without any."""
        return max(self.extreme) / max(float(np.median(self.extreme)), _PEAK_FLOOR) if self.extreme else 0.0

    @property
    def map(self) -> np.ndarray:
        """[h, w] stops: mean over time of the absolute change, where it was seen; 0 where it never was."""
        assert self._last is not None
        height, width = self._last.shape
        if self._sum is None or self._terms is None:
            return np.zeros((height, width))
        return cv2.resize(self._sum / np.maximum(self._terms, 1), (width, height), interpolation=cv2.INTER_LINEAR)


def shared_change(second: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What neighbourhoods share of a second difference ``second [h, w]``, per cell; NaN where too little is seen."""
    height, width = second.shape
    scale = min(1.0, CELLS / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    share = cv2.resize(seen.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    total = cv2.resize(np.where(seen, second, np.float32(0)), size, interpolation=cv2.INTER_AREA)
    known = share > _LEAST_SEEN
    cells = np.where(known, total / np.maximum(share, _LEAST_SEEN), np.nan)
    mean, median = _mean(cells, known), _median(cells)
    agreed = np.where(mean * median > 0, np.copysign(np.minimum(np.abs(mean), np.abs(median)), mean), 0)
    return np.where(known, agreed, np.nan)


def _mean(cells: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Gaussian mean around every cell of the known ones."""
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), _SIGMA, borderType=cv2.BORDER_REPLICATE)
    total = cv2.GaussianBlur(np.where(known, cells, 0), (0, 0), _SIGMA, borderType=cv2.BORDER_REPLICATE)
    return total / np.maximum(weight, 1e-6)


def _median(cells: np.ndarray) -> np.ndarray:
    """Median around every cell of the known ones; 0 where there is none."""
    padded = np.pad(cells, _WINDOW // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_WINDOW, _WINDOW))
    ordered = np.sort(windows.reshape(*cells.shape, -1), axis=-1)  # NaN comes last
    count = np.isfinite(ordered).sum(-1)
    middle = np.stack([np.maximum(count - 1, 0) // 2, count // 2], axis=-1)
    return np.where(count > 0, np.take_along_axis(ordered, middle, axis=-1).mean(-1), 0)
