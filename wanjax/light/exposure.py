"""Gains on linear light that push nothing into the ends of the range."""

from __future__ import annotations

import numpy as np

__all__ = ["apply_gain"]

_KNEE = 0.95
"""Linear light up to which a gain is a plain factor even where the brightest value would leave the range."""

_MARGIN = 0.1
"""Of the way from the brightest value to white: no nearer is it brought."""


def apply_gain(
    linear: np.ndarray,
    gain: np.ndarray | float,
    *,
    brightest: np.ndarray | float,
    white: np.ndarray | float = 1.0,
) -> np.ndarray:
    """``linear`` times ``gain``, bent near white so that nothing is clipped that was not.

    Where the brightest value times ``gain`` stays below 1, the gain is a plain factor. Where not, it is one up
    to a knee; from there a hyperbola of the same slope leads to the value that the brightest one is given:
    strictly increasing, so that no two values become one. Where values are at 1 already, what they were before
    they were clipped is not known: brightened they stay at 1, darkened they go to ``white`` of the way from the
    plain factor back to 1.

    Args:
      linear: any shape, in [0, 1].
      gain: broadcasts, above 0.
      brightest: broadcasts, no less than any of ``linear``.
      white: broadcasts, in [0, 1]: the share of the values at 1 that would be there without the excess.

    Returns:
      Same shape and type as ``linear``, in [0, 1]; 0 where that is 0, and 1 at most where that is 1.
    """
    shape = np.shape(linear)
    gain = np.asarray(gain, np.float32)
    brightest = np.asarray(brightest, np.float32)
    white = np.asarray(white, np.float32)
    # On the output of a brightening gain, on the input of a darkening one: the two are then inverse to each other.
    knee = _KNEE / np.maximum(gain, 1)
    out = gain * linear
    bent = np.nonzero((linear > knee) & (knee < brightest))
    if len(bent[0]):
        x, gain, knee = (np.broadcast_to(v, shape)[bent] for v in (linear, gain, knee))
        brightest, white = (np.broadcast_to(v, shape)[bent] for v in (brightest, white))
        below_white = np.minimum(gain * brightest, 1 - _MARGIN * (1 - brightest))
        at_white = np.where(gain > 1, 1, gain + (1 - gain) * white)
        top = np.where(brightest >= 1, at_white, below_white)
        span, room = brightest - knee, top - gain * knee
        u, slope = (x - knee) / span, gain * span / room
        out[bent] = np.minimum(gain * knee + room * slope * u / (1 + (slope - 1) * u), top)  # rounding passes it
    return out.astype(linear.dtype)
