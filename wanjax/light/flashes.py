"""General flashes as WCAG 2 counts them, for photosensitive viewers.

A flash is a pair of opposing changes of relative luminance of 10 % or more of its maximum (white), the darker state
below 0.80. It counts where it happens at once over a quarter of the picture. What moves past a still screen makes
pixels rise and fall as well, but as many rise as fall, and that is not taken for a flash.

References:
  Web Content Accessibility Guidelines 2.2, "general flash and red flash thresholds".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["AREA", "CHANGE", "DARKER_STATE", "FlashTracker"]

CHANGE = 0.1
"""Least change of relative luminance, of white's."""

DARKER_STATE = 0.8
"""The darker of two opposing states is below this relative luminance."""

AREA = 0.25
"""Least share of the frame that changes at once."""

_DOMINANCE = 2  # times as many pixels change that way as the other; a pan carries past as many rises as falls
_ROUNDING = 1e-5  # a change of exactly a tenth is one, whichever way its sRGB values were rounded
_NEVER = -(2**40)
_TOGETHER = 1 / 6  # seconds; at three flashes a second, the least that may do harm, a change takes no longer


@dataclass
class FlashTracker:
    """Counts the flashes of a clip of any length, in the memory of a few maps.

    Every pixel has its own chain of extremes: a rise or a fall is one that opposes the pixel's last and is large
    enough. The frame changes when a quarter of its pixels do within a sixth of a second, against its last change,
    and no more than half as many change the other way.
    """

    fps: float
    changes: int = 0
    _frame: int = 0
    _direction: int = 0  # of the frame's last change
    _low: np.ndarray = field(default_factory=lambda: np.zeros(()))  # extremes since the pixel's last change
    _high: np.ndarray = field(default_factory=lambda: np.zeros(()))
    _turn: np.ndarray = field(default_factory=lambda: np.zeros((), np.int8))  # direction of that change
    _when: dict[int, np.ndarray] = field(default_factory=dict)  # frame of each pixel's last rise (1) and fall (-1)

    @property
    def rate(self) -> float:
        """Flashes per second: pairs of opposing changes over the clip's duration."""
        return (self.changes // 2) * self.fps / self._frame if self._frame else 0.0

    def add(self, y: np.ndarray) -> None:
        """Adds a frame's relative luminance [h, w]."""
        if self._frame == 0:
            self._low = self._high = y
            self._turn = np.zeros(y.shape, np.int8)
            self._forget(y.shape)
        low, high = np.minimum(self._low, y), np.maximum(self._high, y)
        rises = (self._turn != 1) & (y - low >= CHANGE - _ROUNDING) & (low < DARKER_STATE)
        falls = (self._turn != -1) & (high - y >= CHANGE - _ROUNDING) & (y < DARKER_STATE)
        turned = rises | falls
        self._low, self._high = np.where(turned, y, low), np.where(turned, y, high)
        for direction, changed in ((1, rises), (-1, falls)):
            self._turn[changed] = direction
            self._when[direction][changed] = self._frame
        self._count(y.shape)
        self._frame += 1

    def _count(self, shape: tuple[int, ...]) -> None:
        since = self._frame - max(1, int(self.fps * _TOGETHER))
        share = {d: float(np.mean((when > since) & (self._turn == d))) for d, when in self._when.items()}
        for direction in (1, -1):
            together = share[direction] >= AREA and share[direction] >= _DOMINANCE * share[-direction]
            if together and direction != self._direction:
                self.changes += 1
                self._direction = direction
                self._forget(shape)  # stragglers of a change that has been counted are no further change
                return

    def _forget(self, shape: tuple[int, ...]) -> None:
        self._when = {direction: np.full(shape, _NEVER, np.int64) for direction in (1, -1)}
