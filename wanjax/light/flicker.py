"""Flicker: the second difference of log-luminance along motion, looked at frame by frame.

Where a surface is seen in three frames in a row, its light's second difference is 0 if the light is steady or changes
at a steady rate. It is low-passed over the frame, with its sign: a change of light moves neighbours together, while
the edge of a shadow that slides over a still floor leaves a rise beside a fall, which cancel. What is occluded in
either frame takes no part in that average, so that nothing bleeds over from what was behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from wanjax.light.motion import Motion, warp

__all__ = ["LOW_PASS", "FlickerTracker"]

LOW_PASS = 1 / 24
"""Standard deviation of the Gaussian low-pass, in longer sides of the frame; 1 pixel at least."""

_PEAK_FLOOR = 0.01  # stops; keeps the peak's ratio from dividing by the stillness of a still clip
_PEAK_PERCENTILE = 75  # the quarter of the frame that changes most, the area that a flash needs
_EDGE = np.ones((3, 3), np.uint8)


@dataclass
class FlickerTracker:
    """Second differences of a clip of any length, in the memory of three frames.

    Attributes:
      size: per inner frame, mean over valid pixels of the absolute second difference, in stops.
      shared: per inner frame, absolute value of its median over valid pixels, in stops.
      extreme: per inner frame, high percentile of its absolute value, in stops.
    """

    size: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)
    extreme: list[float] = field(default_factory=list)
    _last: np.ndarray | None = None  # [h, w] log-luminance of the last frame, and of the one before it
    _older: np.ndarray | None = None
    _motion: Motion | None = None  # between those two
    _sum: np.ndarray | None = None  # [h, w] of the absolute second difference over time
    _terms: np.ndarray | None = None  # [h, w] how many terms that sum has

    def add(self, stops: np.ndarray, motion: Motion | None) -> None:
        """Adds a frame's log-luminance [h, w] and the motion from the frame before to it (None for the first)."""
        if self._older is not None and self._motion is not None and self._last is not None and motion is not None:
            second = warp(stops, motion.forward) - 2 * self._last + warp(self._older, self._motion.backward)
            self._note(second, motion.seen_next & self._motion.seen_before)
        self._older, self._last, self._motion = self._last, stops, motion

    def _note(self, second: np.ndarray, seen: np.ndarray) -> None:
        # Pixels at the border of what is seen hold some of what is not.
        seen = cv2.erode(seen.view(np.uint8), _EDGE, borderValue=1).view(bool)
        smooth = _low_pass(second, seen)
        size = np.abs(smooth)
        if self._sum is None or self._terms is None:
            self._sum, self._terms = np.zeros(second.shape), np.zeros(second.shape, np.int64)
        self._sum += np.where(seen, size, 0)
        self._terms += seen
        valid = size[seen]
        self.size.append(float(valid.mean(dtype=np.float64)) if valid.size else 0.0)
        self.shared.append(abs(float(np.median(smooth[seen]))) if valid.size else 0.0)
        self.extreme.append(float(np.percentile(valid, _PEAK_PERCENTILE)) if valid.size else 0.0)

    @property
    def peak(self) -> float:
        """Largest over median of the frames' extremes, the median floored at 0.01 stops; 0 without any."""
        return max(self.extreme) / max(float(np.median(self.extreme)), _PEAK_FLOOR) if self.extreme else 0.0

    @property
    def map(self) -> np.ndarray:
        """[h, w] stops: mean over time where the pixel was seen before and after; 0 where it never was."""
        assert self._last is not None
        if self._sum is None or self._terms is None:
            return np.zeros(self._last.shape)
        return self._sum / np.maximum(self._terms, 1)


def _low_pass(second: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Gaussian average [h, w] of what is ``seen``; the rest takes no part."""
    sigma = max(1.0, LOW_PASS * max(second.shape))
    if seen.all():
        return cv2.GaussianBlur(second, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    weight = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    total = cv2.GaussianBlur(np.where(seen, second, np.float32(0)), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return total / np.maximum(weight, 1e-6)
