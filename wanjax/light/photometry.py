"""Photometry: pixels to light. Numpy in, numpy out; jax in, jax out.

Every statement about light is made in linear light. Luminance and colour temperature follow Rec. 709, whose
primaries and white (D65) sRGB shares.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "LUMINANCE_FLOOR",
    "cct",
    "linear_to_srgb",
    "log_luminance",
    "luma_rec601",
    "luminance",
    "mired",
    "srgb_to_linear",
]

LUMINANCE_FLOOR = 1e-3
"""Added to linear luminance before the logarithm; 10 stops below white, so that black is finite."""

REC709 = (0.2126, 0.7152, 0.0722)
REC601 = (0.299, 0.587, 0.114)

_RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), REC709, (0.0193339, 0.1191920, 0.9503041))
# Light of the white point added before chromaticity is taken: black has none of its own, and so reads as D65.
_PEDESTAL = 1e-5
# McCamy's cubic turns back below n = -1.28; [-1.2, 1.7] is 1,620 K to 25,000 K.
_MCCAMY_RANGE = (-1.2, 1.49)

Array = TypeVar("Array", np.ndarray, jax.Array)


def srgb_to_linear(pixels: Array) -> Array:
    """sRGB values in [0, 1] to linear light in [0, 1], any shape (IEC 61966-2-1)."""
    xp = _namespace(pixels)
    pixels = xp.clip(pixels, 0.0, 1.0)
    return xp.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Array) -> Array:
    """Linear light in [0, 1] to sRGB values in [0, 1], any shape (IEC 61966-2-1)."""
    xp = _namespace(linear)
    linear = xp.clip(linear, 0.0, 1.0)
    # The floor keeps the root's slope finite at black, for gradients; the branch never uses it.
    root = xp.maximum(linear, 0.0031308) ** (1 / 2.4)
    return xp.where(linear <= 0.0031308, linear * 12.92, 1.055 * root - 0.055)


def luminance(linear: Array) -> Array:
    """Luminance Y [...] of linear RGB [..., 3] (Rec. 709); white is 1."""
    return REC709[0] * linear[..., 0] + REC709[1] * linear[..., 1] + REC709[2] * linear[..., 2]


def log_luminance(linear: Array) -> Array:
    """Log-luminance [...] in stops of linear RGB [..., 3]: ``log2(Y + 0.001)``, from -9.97 (black) to 0."""
    xp = _namespace(linear)
    return xp.log2(luminance(linear) + LUMINANCE_FLOOR)


def luma_rec601(pixels: Array) -> Array:
    """Luma Y' [...] of gamma-encoded RGB [..., 3] (Rec. 601). For the light-consistency penalty alone."""
    return REC601[0] * pixels[..., 0] + REC601[1] * pixels[..., 1] + REC601[2] * pixels[..., 2]


def cct(linear: Array) -> Array:
    """Correlated colour temperature [...] in kelvin of linear RGB [..., 3]; black reads as D65 (6505 K).

    Colours far from the black body have no temperature; they give a value in 1,620 to 25,000 K all the same,
    so that a track over time stays finite.

    References:
      McCamy, Correlated color temperature as an explicit function of chromaticity coordinates, 1992.
    """
    xp = _namespace(linear)
    weights = np.asarray(_RGB_TO_XYZ)
    light = xp.maximum(linear, 0.0) + _PEDESTAL
    x, y, z = (light[..., 0] * w[0] + light[..., 1] * w[1] + light[..., 2] * w[2] for w in weights)
    total = x + y + z
    # Below y = 0.1858 (violet) McCamy's line turns over; the floor leaves it at the end it came from.
    n = (0.3320 - x / total) / xp.maximum(y / total - 0.1858, 1e-3)
    n = xp.clip(n, *_MCCAMY_RANGE)
    return 449.0 * n**3 + 3525.0 * n**2 + 6823.3 * n + 5520.33


def mired(linear: Array) -> Array:
    """Correlated colour temperature [...] in mired (10^6 / K; more is warmer) of linear RGB [..., 3]."""
    return 1e6 / cct(linear)


def _namespace(x: Array) -> ModuleType:
    return jnp if isinstance(x, jax.Array) else np
