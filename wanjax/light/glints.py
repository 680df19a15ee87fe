"""Glints on water: which way they run, and whether they move with the waves that make them or behind.

Highlights flash and vanish; what stays bright in one place says nothing of time. So it is changes of the highlight
signal from frame to frame that are compared: with the next change, for the way that they run, and with the truth's
changes, shifted by so many frames: the shift with the highest correlation is the lag, between frames by the parabola
through its neighbours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np

from wanjax.light.shrink import shrunk

__all__ = ["LARGEST_LAG", "LagTracker", "WayTracker"]

LARGEST_LAG = 6
"""Frames of shift that are looked at, in clips of twice as many and more; a lag reads this where nothing matches."""

_SIDE = 256  # longer side in pixels at which glints are compared
_WAY_SIDE = 64  # the same for the way that they run
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
        signals = shrunk(np.asarray(measured, np.float32), _SIDE), shrunk(np.asarray(true, np.float32), _SIDE)
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


@dataclass
class WayTracker:
    """Which way a glittering surface runs: motion energy of its rows, rightward against leftward.

    Waves of many lengths run at many speeds, each row of the picture sees them at another scale, and no glint lives
    long, so there is no shift that all of the picture takes from one frame to the next. But every Fourier component of
    a row that runs to the right turns its phase backward, whatever its speed, as long as it has more than two frames
    a period.

    References:
      Adelson and Bergen, Spatiotemporal energy models for the perception of motion, 1985 (opponent energy).
    """

    _stops: np.ndarray | None = None
    _spectrum: np.ndarray | None = None
    _cross: np.ndarray | None = None  # [K] sum over rows and frames of spectrum[t + 1] * conj(spectrum[t])
    _power: float = 0.0
    _changes: int = 0

    def add(self, stops: np.ndarray) -> None:
        """Adds a frame's log-luminance [H, W]."""
        stops = shrunk(np.asarray(stops, np.float32), _WAY_SIDE)
        stops = cv2.GaussianBlur(stops, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
        if self._stops is not None:
            change = stops - self._stops
            window = np.hanning(change.shape[1] + 2)[1:-1]
            # A change of the whole picture's exposure is no motion.
            spectrum = np.fft.rfft((change - change.mean()) * window, axis=1)[:, 1:]
            if self._spectrum is not None:
                cross = (spectrum * np.conj(self._spectrum)).sum(axis=0)
                self._cross = cross if self._cross is None else self._cross + cross
            self._power += float(np.square(np.abs(spectrum)).sum())
            self._changes += 1
            self._spectrum = spectrum
        self._stops = stops

    @property
    def order(self) -> float:
        """Opponent motion energy, -1 to 1: positive to the right, near 0 for what flickers or runs both ways."""
        if self._cross is None or self._power <= 0:
            return 0.0
        pairs = (self._changes - 1) / self._changes
        return float(np.clip(-self._cross.imag.sum() / (pairs * self._power), -1, 1))

    def rate(self, fps: float) -> float:
        """Frame widths per second, positive to the right: the speed that fits all components' turns best."""
        if self._cross is None or self._stops is None:
            return 0.0
        number = 2 * np.pi * np.arange(1, len(self._cross) + 1)  # radians per frame width
        weight = np.abs(self._cross)
        spread = float(weight @ np.square(number))
        return float(fps * (weight * number) @ -np.angle(self._cross)) / spread if spread > 0 else 0.0
