"""A decoded frame's samples to sRGB: matrix, range, depth, transfer function and primaries, as the file is tagged.

Ordinary 8-bit video goes through libswscale. Deeper, HDR and wide-gamut video is converted here in float32, since
libswscale's 16-bit RGB has a white that depends on the source and knows no transfer functions.

SDR samples are taken as sRGB, as browsers show them. HDR light is relative: 1 is 1,000 cd/m2, HLG's nominal peak, so
that highlights are measured and not cut.

References:
  ITU-T H.273 (the code points), ITU-R BT.2100 (PQ, HLG), BT.2408 (reference white of 203 cd/m2).
"""

from __future__ import annotations

from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from wanjax.light.photometry import linear_to_srgb, srgb_to_linear

__all__ = ["HDR_PEAK", "SCALER", "Color", "UnsupportedColor", "color_of", "for_measuring", "for_showing", "to_screen"]

SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

HDR_PEAK = 1000.0
"""cd/m2 of HDR video that become linear 1; brighter PQ highlights are cut there."""

_WHITE = 203.0  # cd/m2 of a white page in HDR (BT.2408); becomes white where HDR is shown on 8 bits

_UNSPECIFIED = 2
# Kr and Kb of Y'CbCr, by the H.273 code of the matrix
_MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
_MATRIX_NAMES = {
    0: "RGB", 1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 8: "YCgCo", 9: "BT.2020",
    10: "BT.2020 constant luminance", 14: "ICtCp",
}  # fmt: skip
_SDR, _POWERS, _PQ, _HLG = {1, 6, 7, 13, 14, 15}, {4: 2.2, 5: 2.8, 8: 1.0}, 16, 18
_TRANSFER_NAMES = {
    1: "BT.709", 4: "gamma 2.2", 5: "gamma 2.8", 6: "BT.601", 7: "SMPTE 240M", 8: "linear", 9: "logarithmic (100:1)",
    10: "logarithmic (316:1)", 11: "xvYCC", 12: "BT.1361", 13: "sRGB", 14: "BT.2020", 15: "BT.2020", _PQ: "PQ",
    17: "SMPTE 428 (DCI)", _HLG: "HLG",
}  # fmt: skip
# Linear RGB of wider primaries (white D65) to linear Rec. 709; the others are near enough to it to be taken as it.
_TO_REC709 = {
    9: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    12: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
_PRIMARY_NAMES = {
    1: "BT.709", 4: "BT.470M", 5: "BT.601 (625 lines)", 6: "BT.601 (525 lines)", 7: "SMPTE 240M", 8: "film",
    9: "BT.2020", 10: "XYZ", 11: "DCI-P3", 12: "Display P3", 22: "EBU 3213",
}  # fmt: skip


class UnsupportedColor(ValueError):
    """Colours that cannot be converted; the message names what they are tagged as."""


class Color(NamedTuple):
    """How a frame's samples are to be read; ``tagged`` tells whether the file says so or it is the usual guess."""

    matrix: int
    full_range: bool
    transfer: int
    primaries: int
    bits: int
    rgb: bool
    tagged: bool

    @property
    def hdr(self) -> str:
        """``PQ``, ``HLG`` or nothing."""
        return _TRANSFER_NAMES[self.transfer] if self.transfer in (_PQ, _HLG) else ""

    @property
    def plain(self) -> bool:
        """Whether samples are 8 bits deep and, but for the matrix, already sRGB."""
        return self.bits == 8 and self.transfer in _SDR and self.primaries not in _TO_REC709

    def names(self) -> dict[str, str]:
        """``matrix``, ``range``, ``transfer`` and ``primaries`` in words."""
        return {
            "matrix": _MATRIX_NAMES[self.matrix],
            "range": "full" if self.full_range else "limited",
            "transfer": _TRANSFER_NAMES[self.transfer],
            "primaries": _PRIMARY_NAMES.get(self.primaries, "BT.709"),
        }


def color_of(frame: av.VideoFrame) -> Color:
    """How to read a frame's samples: its tags, and where it has none what players take.

    Untagged: limited range (full for RGB and yuvj formats), BT.709 from 720 lines up and BT.601 below, BT.2020 where
    the primaries are; an SDR transfer function.

    Raises UnsupportedColor.
    """
    format_ = frame.format
    matrix, transfer, primaries = int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries)
    if format_.is_rgb or format_.has_palette:
        matrix = 0
    elif matrix in (0, _UNSPECIFIED, 3):
        matrix = 9 if primaries == 9 else 1 if frame.height >= 720 else 6
    if matrix and matrix not in _MATRICES:
        raise UnsupportedColor(f"its colours are {_MATRIX_NAMES.get(matrix, f'matrix {matrix}')}")
    if transfer in (0, _UNSPECIFIED, 3):
        transfer = 1
    if transfer not in _SDR and transfer not in _POWERS and transfer not in (_PQ, _HLG):
        raise UnsupportedColor(f"its transfer function is {_TRANSFER_NAMES.get(transfer, transfer)}")
    if primaries in (10, 11):
        raise UnsupportedColor(f"its primaries are {_PRIMARY_NAMES[primaries]}")
    full = int(frame.color_range) == 2 or matrix == 0 or format_.name.startswith("yuvj")
    bits = max(component.bits for component in format_.components)
    if bits > 16:
        raise UnsupportedColor(f"its samples have {bits} bits")
    if format_.has_palette or (matrix == 0 and bits < 8):
        bits = 8
    tagged = matrix == 0 or int(frame.colorspace) in _MATRICES
    return Color(matrix, full, transfer, primaries, bits, matrix == 0, tagged)


def for_measuring(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] sRGB: uint8 where the file holds no more than that, else float32 in [0, 1] at the file's own depth.

    HDR light is scaled so that 1,000 cd/m2 is 1. Raises UnsupportedColor.
    """
    color = color_of(frame)
    if color.plain:
        return _scaled(frame, color)
    signal = _signal(frame, color)
    if color.transfer in _SDR and color.primaries not in _TO_REC709:
        return np.clip(signal, 0, 1)
    return linear_to_srgb(_linear(signal, color)).astype(np.float32)


def for_showing(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8 sRGB, for eyes; raises UnsupportedColor."""
    return to_screen(for_measuring(frame), hdr=bool(color_of(frame).hdr))


def to_screen(pixels: np.ndarray, *, hdr: bool) -> np.ndarray:
    """What :func:`for_measuring` gave, as uint8 for a screen; HDR is near white at 203 cd/m2 and rolls off."""
    if pixels.dtype == np.uint8:
        return pixels
    if hdr:
        pixels = linear_to_srgb(_rolled_off(srgb_to_linear(pixels)))
    return np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _scaled(frame: av.VideoFrame, color: Color) -> np.ndarray:
    matrix = None if color.tagged else Colorspace.ITU709 if color.matrix == 1 else Colorspace.ITU601
    return frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=SCALER).to_ndarray()


def _signal(frame: av.VideoFrame, color: Color) -> np.ndarray:
    """Non-linear RGB [H, W, 3] float32, black 0 and white 1; may leave [0, 1] where the samples do."""
    depth = "" if color.bits == 8 else f"{color.bits}le"
    planes = _planes(frame, f"{'gbrp' if color.rgb else 'yuv444p'}{depth}", color)
    peak = np.float32((1 << color.bits) - 1)
    if color.rgb:
        green, blue, red = (plane / peak for plane in planes)
        return np.stack([red, green, blue], axis=-1)
    unit = np.float32(1 << (color.bits - 8))
    y, u, v = planes
    if color.full_range:
        y, u, v = y / peak, (u - 128 * unit) / peak, (v - 128 * unit) / peak
    else:
        y, u, v = (y / unit - 16) / 219, (u / unit - 128) / 224, (v / unit - 128) / 224
    kr, kb = _MATRICES[color.matrix]
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.stack([red, green, blue], axis=-1)


def _planes(frame: av.VideoFrame, name: str, color: Color) -> list[np.ndarray]:
    """The three planes [H, W] float32 of a frame brought to a planar format of the same depth and range."""
    given = 2 if color.full_range else 1
    full = frame if frame.format.name == name else frame.reformat(
        format=name, src_color_range=given, dst_color_range=given, interpolation=SCALER
    )  # fmt: skip
    kind = np.dtype(np.uint8 if color.bits == 8 else "<u2")
    rows = [(np.frombuffer(memoryview(p), kind).reshape(p.height, -1), p.width) for p in full.planes[:3]]
    return [row[:, :width].astype(np.float32) for row, width in rows]


def _linear(signal: np.ndarray, color: Color) -> np.ndarray:
    """Linear Rec. 709 [H, W, 3] float32 in [0, 1]; of HDR, 1 is 1,000 cd/m2."""
    signal = np.clip(signal, 0, 1)
    if color.transfer == _PQ:
        light = _pq(signal)
    elif color.transfer == _HLG:
        light = _hlg(signal)
    elif color.transfer in _POWERS:
        light = signal ** np.float32(_POWERS[color.transfer])
    else:
        light = srgb_to_linear(signal)
    if color.primaries in _TO_REC709:
        light = light @ np.array(_TO_REC709[color.primaries], np.float32).T
    return np.clip(light, 0, 1).astype(np.float32)


def _pq(signal: np.ndarray) -> np.ndarray:
    """Light in units of 1,000 cd/m2 from PQ samples (BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** np.float32(1 / m2)
    return 10_000 / HDR_PEAK * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** np.float32(1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """Light in units of 1,000 cd/m2 from HLG samples on a display of that peak, gamma 1.2 (BT.2100, table 5)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    y = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return scene * y[..., None] ** np.float32(0.2)


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """HDR light for an SDR screen: linear up to three quarters of white, then bent towards it; hue is kept."""
    light = light * np.float32(HDR_PEAK / _WHITE)
    knee, top = 0.75, light.max(axis=-1, keepdims=True)
    over = np.maximum(top - knee, 0)
    bent = knee + (1 - knee) * over / (over + 1 - knee)
    return np.where(top > knee, light * bent / np.maximum(top, 1e-6), light)
