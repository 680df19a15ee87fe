"""Pictures and clips of the report as data URIs, each of bounded size."""

from __future__ import annotations

import base64
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from wanjax import video
from wanjax.evaluate import ClipResult, Measured, Reference

__all__ = [
    "COPY_FRAMES",
    "Playable",
    "file_copy",
    "heat_legend",
    "heat_picture",
    "heat_scale",
    "picture_uri",
    "poster",
    "reference_copy",
    "strip",
]

EMBEDDED = 1 << 20  # bytes; a larger clip is shown as a smaller copy
COPY_SIDE = 512  # pixels; longer side of such a copy
COPY_FRAMES = 240
"""Frames of a clip that the page plays; a longer one is shown up to there."""

_QUALITIES = (16, 22, 28, 34)  # x264's constant rate factor, until a copy is small enough
_SHEET_FRAMES = 9
_SHEET_HEIGHT = 96
_HEAT_SIDE = 240
_LEAST_SCALE = 0.05  # stops; stillness looks still


class Playable(NamedTuple):
    """A clip for the page: ``uri`` (empty where there is none) and ``note``, what a viewer has to know of it."""

    uri: str
    note: str = ""


def file_copy(result: ClipResult) -> Playable:
    """The clip's own bytes where every browser plays them and they are few, else a copy of its first frames."""
    path = result.record.path
    if path.stat().st_size <= EMBEDDED and path.suffix.lower() == ".mp4":
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            plain = context.name == "h264" and context.pix_fmt == "yuv420p" and not (result.file and result.file.hdr)
        if plain and result.clip.metrics["frames"] <= COPY_FRAMES:
            return Playable(_uri(path.read_bytes(), "video/mp4"))
    frames, fps, _ = video.stream(path)
    return _copy(frames, fps, int(result.clip.metrics["frames"]))


def reference_copy(reference: Reference) -> Playable:
    """A rendered clip that browsers play."""
    return _copy(reference.frames, reference.fps, len(reference.frames))


def _copy(frames: Iterable[np.ndarray], fps: float, total: int) -> Playable:
    """An MP4 of at most 512 pixels a side and 240 frames, of the best quality that stays below a megabyte."""
    shown = [_shrunk(frame) for frame in itertools.islice(frames, COPY_FRAMES)]
    note = f"first {len(shown)} of {total} frames" if total > len(shown) else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.mp4"
        for quality in _QUALITIES:
            video.write(path, shown, fps, crf=quality)
            if path.stat().st_size <= EMBEDDED:
                return Playable(_uri(path.read_bytes(), "video/mp4"), note)
    return Playable("", "too large to play in this page; its frames are below")


def _shrunk(frame: np.ndarray) -> np.ndarray:
    """At most 512 pixels a side, and even sizes."""
    scale = min(1.0, COPY_SIDE / max(frame.shape[:2]))
    height, width = (max(2, round(side * scale / 2) * 2) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def strip(measured: Measured, count: int = _SHEET_FRAMES) -> np.ndarray:
    """Evenly spaced frames side by side, first to last, [96, W, 3] uint8."""
    frames = measured.thumbnails
    picked = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]
    height, width = picked[0].shape[:2]
    size = (max(1, round(width * _SHEET_HEIGHT / height)), _SHEET_HEIGHT)
    gap = np.full((_SHEET_HEIGHT, 3, 3), 255, np.uint8)
    row: list[np.ndarray] = []
    for frame in picked:
        row += [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC), gap]
    return np.hstack(row[:-1])


def poster(measured: Measured) -> str:
    """The first frame as a data URI, for a player that is not playing yet."""
    return _uri(measured.jpegs[0], "image/jpeg")


def heat_scale(clips: Iterable[Measured]) -> float:
    """Stops at the hot end of the page's flicker maps: three in four clips stay below it nearly everywhere.

    A single clip that flickers far more than the others then saturates instead of hiding theirs.
    """
    tops = [float(np.percentile(m.curves.flicker_map, 95)) for m in clips]
    return max(_LEAST_SCALE, float(np.percentile(tops, 75, method="lower"))) if tops else _LEAST_SCALE


def heat_picture(measured: Measured, scale: float) -> str:
    """The flicker map over the middle frame in grey, as a data URI; ``scale`` stops and more are brightest."""
    frames = measured.thumbnails
    frame = frames[len(frames) // 2]
    times = _HEAT_SIDE / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * times)), max(1, round(frame.shape[0] * times)))
    grey = cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2GRAY)
    heat = cv2.resize(measured.curves.flicker_map.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    share = np.clip(heat / scale, 0, 1)
    color = cv2.applyColorMap(np.round(255 * share).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    cover = np.minimum(1, 0.25 + 1.5 * share)[..., None]
    return picture_uri(np.round((1 - cover) * 0.5 * grey[..., None] + cover * color).astype(np.uint8))


def picture_uri(pixels: np.ndarray) -> str:
    """[H, W, 3] uint8 as a JPEG data URI."""
    return _uri(cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 86])[1].tobytes(), "image/jpeg")


def heat_legend() -> str:
    """CSS of the colours from cold to hot."""
    ramp = cv2.applyColorMap(np.linspace(0, 255, 9).astype(np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]
    return "linear-gradient(90deg," + ",".join(f"rgb({r},{g},{b})" for r, g, b in ramp) + ")"


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
