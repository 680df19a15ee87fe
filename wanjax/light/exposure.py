"""Gains on linear light that push nothing into the ends of the range."""

from __future__ import annotations

import numpy as np

__all__ = ["apply_gain"]

_KNEE = 0.85
"""Linear light up to which a gain is a plain factor, where the brightest pixel would otherwise be clipped."""


def apply_gain(linear: np.ndarray, gain: np.ndarray | float, brightest: np.ndarray | float) -> np.ndarray:
    """``linear`` times ``gain``, bent near white so that only white becomes white, and white stays white.

    Up to the knee the gain is a plain factor. Above it, if the brightest value would pass or leave white, a
    hyperbola with the same slope at the knee leads to where the brightest value goes: strictly increasing, so
    that no two values become one, and only as far from the plain factor as that needs.

    Args:
      linear: any shape, in [0, 1].
      gain: broadcasts, above 0.
      brightest: broadcasts, no less than any of ``linear``.

    Returns:
      Same shape as ``linear``, in [0, 1]; 1 where ``linear`` is 1 and nowhere else, 0 where it is 0.
    """
    # a brightening gain is bent from a knee on the output, a darkening one from the knee on the input,
    # which makes the two inverse to each other
    knee = np.where(np.asarray(gain) > 1, _KNEE / np.asarray(gain), _KNEE).astype(np.float32)
    top = np.where(np.asarray(brightest) >= 1, 1.0, np.minimum(gain * brightest, (1 + np.asarray(brightest)) / 2))
    span, room = brightest - knee, top - gain * knee
    plain = gain * linear
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.clip((linear - knee) / span, 0, 1)
        steep = gain * span / room
        bent = gain * knee + room * steep * u / (1 + (steep - 1) * u)
    return np.where((linear > knee) & (span > 0), bent, plain).astype(linear.dtype)
