"""Glints against ground truth: do they move with the waves that make them, or behind?

Highlights flash and vanish; what stays bright in one place says nothing of time. So the change of the highlight signal
from frame to frame is compared with the truth's change, shifted by so many frames, and the shift with the highest
correlation is the lag, between frames by the parabola through its neighbours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np

__all__ = ["LARGEST_LAG", "LagTracker"]

LARGEST_LAG = 6
"""Frames of shift that are looked at, in clips of twice as many and more; a lag reads this where nothing matches."""

_SIDE = 256  # longer side in pixels at which glints are compared
_LEAST = 0.1  # correlation below which there is no match at any shift


@dataclass
class LagTracker:
    """Correlates two signals over a range of shifts, in the memory of that many maps."""

    _last: tuple[np.ndarray, np.ndarray] | None = None
    _measured: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=LARGEST_LAG + 1))
    _true: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=LARGEST_LAG + 1))
    _changes: int = 0
    _pixels: int = 0
    # per shift k: sums of measured[t + k] * true[t] and of both squares over the same frames
    _sums: np.ndarray = field(default_factory=lambda: np.zeros((2 * LARGEST_LAG + 1, 3)))

    def add(self, measured: np.ndarray, true: np.ndarray) -> None:
        """Adds a frame's highlight signals [H, W]."""
        signals = _small(measured), _small(true)
        if self._last is not None:
            self._changes += 1
            self._pixels += signals[1].size
            changes = [now - before for now, before in zip(signals, self._last, strict=True)]
            self._measured.appendleft(changes[0])
            self._true.appendleft(changes[1])
            for k in range(len(self._true)):
                self._note(k, self._measured[0], self._true[k])
                if k:
                    self._note(-k, self._measured[k], self._true[0])
        self._last = signals

    def _note(self, k: int, measured: np.ndarray, true: np.ndarray) -> None:
        self._sums[k + LARGEST_LAG] += (
            np.vdot(measured, true),
            np.vdot(measured, measured),
            np.vdot(true, true),
        )

    @property
    def strength(self) -> float:
        """Root mean square of the true signal's change from frame to frame, over pixels and time."""
        return float(np.sqrt(self._sums[LARGEST_LAG, 2] / max(self._pixels, 1)))

    @property
    def lag(self) -> float | None:
        """Frames, without sign, that the measured highlights are off the true ones; None if those never change."""
        cross, measured, true = self._sums.T
        if true[LARGEST_LAG] <= 0:
            return None
        power = np.sqrt(measured * true)
        match = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
        # A large shift of a short clip compares next to nothing; at least half of the clip has to overlap.
        reach = min(LARGEST_LAG, self._changes // 2)
        match = match[LARGEST_LAG - reach : LARGEST_LAG + reach + 1]
        best = int(np.argmax(match))
        if match[best] < _LEAST:
            return float(LARGEST_LAG)
        shift = float(best - reach)
        if 0 < best < len(match) - 1:
            before, at, after = match[best - 1 : best + 2]
            shift += 0.5 * (before - after) / min(before - 2 * at + after, -1e-12)
        return abs(shift)


def _small(signal: np.ndarray) -> np.ndarray:
    height, width = signal.shape
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(np.asarray(signal, np.float32), size, interpolation=cv2.INTER_AREA)
