"""Colour for the renderer, float32 numpy: sRGB transfer, colour of a black body, luminance, CCT."""

import numpy as np

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""Rec. 709 luminance of linear RGB."""

LUMINANCE_FLOOR = 1e-3
"""Log-luminance is ``log2(Y + LUMINANCE_FLOOR)``, in stops."""

_XYZ_TO_RGB = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]], np.float64
)
_RGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float64
)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light ``[...]`` in [0, 1] (clipped) to sRGB values in [0, 1] (IEC 61966-2-1)."""
    linear = np.clip(linear, 0.0, 1.0).astype(np.float32, copy=False)
    return np.where(
        linear <= np.float32(0.0031308),
        linear * np.float32(12.92),
        np.float32(1.055) * np.power(linear, np.float32(1 / 2.4)) - np.float32(0.055),
    )


def black_body(kelvin: np.ndarray) -> np.ndarray:
    """Linear RGB ``[..., 3]`` of luminance 1 of a black body at ``kelvin`` ``[...]``, 1667 to 25000 K.

    Planckian locus by the cubic fits of Kim et al., US patent 7024034 (2006).
    """
    kelvin = np.asarray(kelvin, np.float64)
    if kelvin.size and (kelvin.min() < 1667 or kelvin.max() > 25000):
        raise ValueError(
            f"colour temperature {kelvin.min():.0f} to {kelvin.max():.0f} K: expected 1667 to 25000 K"
        )
    k = 1e3 / kelvin
    x = np.where(
        kelvin <= 4000,
        -0.2661239 * k**3 - 0.2343589 * k**2 + 0.8776956 * k + 0.179910,
        -3.0258469 * k**3 + 2.1070379 * k**2 + 0.2226347 * k + 0.240390,
    )
    y = np.where(
        kelvin <= 2222,
        -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683,
        np.where(
            kelvin <= 4000,
            -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867,
            3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483,
        ),
    )
    xyz = np.stack([x / y, np.ones_like(y), (1 - x - y) / y], -1)
    rgb = np.maximum(xyz @ _XYZ_TO_RGB.T, 0.0)
    return (rgb / (rgb @ LUMINANCE.astype(np.float64))[..., None]).astype(np.float32)


def correlated_colour_temperature(linear_rgb: np.ndarray) -> np.ndarray:
    """CCT in kelvin ``[...]`` of linear RGB ``[..., 3]`` (McCamy 1992)."""
    xyz = np.asarray(linear_rgb, np.float64) @ _RGB_TO_XYZ.T
    total = xyz.sum(-1)
    x, y = xyz[..., 0] / total, xyz[..., 1] / total
    n = (x - 0.3320) / (y - 0.1858)
    return -449.0 * n**3 + 3525.0 * n**2 - 6823.3 * n + 5520.33


def albedo(hue: float, saturation: float, value: float) -> np.ndarray:
    """Linear RGB ``[3]`` albedo of luminance ``value``; ``hue`` in [0, 1), ``saturation`` in [0, 1]."""
    angle = 2 * np.pi * (hue - np.array([0.0, 1 / 3, 2 / 3]))
    rgb = 1 + saturation * np.cos(angle)
    return (value * rgb / (rgb @ LUMINANCE)).astype(np.float32)
