"""Video files in and out, through PyAV.

Out: H.264, yuv420p, BT.709 (tagged, limited range), so that it plays in every browser and reads back in the
colours it was written in. Facts about a clip (prompt, seed, settings) travel in it as JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream

__all__ = ["Stream", "Video", "VideoError", "read", "stream", "write"]

_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_BT709 = 1  # ISO/IEC 23091-2: primaries, transfer and matrix alike
_LIMITED = 1


class VideoError(ValueError):
    """A video file that cannot be read or written; the message names it and says what to do."""


class Video(NamedTuple):
    """A clip in memory: ``frames [T, H, W, 3]`` uint8 sRGB, frames per second, the facts stored with it."""

    frames: np.ndarray
    fps: float
    metadata: dict[str, Any]


class Stream(NamedTuple):
    """A clip that is read as it is used: as :class:`Video`, its frames one after the other, once."""

    frames: Iterator[np.ndarray]
    fps: float
    metadata: dict[str, Any]


def stream(path: str | os.PathLike[str]) -> Stream:
    """Opens a clip; its frames [H, W, 3] uint8 are decoded as they are asked for, upright.

    Raises:
      FileNotFoundError: no such file.
      VideoError: empty, not a video, cut short or damaged (at once, or at the frame where it shows).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty; write or download it again")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(f"{path}: not a video, or damaged at its start ({_reason(error)})") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video stream")
    source = container.streams.video[0]
    end = max((entry.pos + entry.size for entry in source.index_entries), default=0)
    if end > path.stat().st_size:
        container.close()
        raise VideoError(
            f"{path}: cut short: {path.stat().st_size} bytes, its index reaches to {end}; "
            "write or download it again"
        )
    rate = source.average_rate or source.guessed_rate
    fps = float(rate) if rate else 0.0
    if not (math.isfinite(fps) and fps > 0):
        container.close()
        raise VideoError(f"{path}: states no frame rate")
    return Stream(_decode(path, container, source), fps, _metadata(container))


def read(path: str | os.PathLike[str]) -> Video:
    """Reads a whole clip; raises what :func:`stream` raises."""
    frames, fps, metadata = stream(path)
    return Video(np.stack(list(frames)), fps, metadata)


def write(
    path: str | os.PathLike[str],
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float,
    metadata: Mapping[str, Any] | None = None,
    *,
    crf: int = 12,
) -> None:
    """Writes an H.264 MP4 whole or not at all (under another name first).

    Args:
      path: where to; folders are made.
      frames: sRGB [T, H, W, 3] uint8 with even H and W, an array or any iterable of frames; T >= 1.
      fps: frames per second.
      metadata: anything JSON can hold; :func:`read` gives it back.
      crf: constant rate factor, 0 (best) to 51.

    Raises:
      VideoError: no frames, frames of another size, shape or type, odd sizes, settings out of range, a disk
        that is full or cannot be written to.
    """
    path = Path(path)
    if not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"{path}: fps = {fps}: expected frames per second above 0")
    if not 0 <= crf <= 51:
        raise VideoError(f"{path}: crf = {crf}: expected 0 (best) to 51")
    comment = json.dumps(dict(metadata or {}), ensure_ascii=False)
    checked = _checked(path, frames)
    first = next(checked)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _encode(part, first, checked, Fraction(fps).limit_denominator(1001), comment, crf)
        os.replace(part, path)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: could not be written ({_reason(error)}); nothing was left there"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _encode(
    part: Path, first: np.ndarray, rest: Iterator[np.ndarray], rate: Fraction, comment: str, crf: int
) -> None:
    options = {"movflags": "+faststart+use_metadata_tags"}
    with av.open(str(part), "w", format="mp4", options=options) as container:
        container.metadata["comment"] = comment
        target = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "medium"})
        target.height, target.width = first.shape[:2]
        target.pix_fmt = "yuv420p"
        context = target.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED
        for pixels in _chain(first, rest):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=_LIMITED,
                interpolation=_SCALER,
            )
            frame.color_primaries = frame.color_trc = _BT709
            container.mux(target.encode(frame))
        container.mux(target.encode())


def _decode(path: Path, container: InputContainer, source: VideoStream) -> Iterator[np.ndarray]:
    count = 0
    try:
        with container:
            for frame in container.decode(source):
                if frame.is_corrupt:
                    raise VideoError(f"{path}: damaged at frame {count}; write or download it again")
                yield _pixels(frame)
                count += 1
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: damaged after {count} frames ({_reason(error)})") from error
    if not count:
        raise VideoError(f"{path}: holds no frame that can be decoded")


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8 sRGB, upright. Untagged video is BT.709 from 720 lines up, as players take it."""
    matrix: Colorspace | None = None
    if frame.colorspace not in (1, 4, 5, 6, 7, 9):
        matrix = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    pixels = frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=_SCALER).to_ndarray()
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _checked(path: Path, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for index, given in enumerate(frames):
        frame = np.asarray(given)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise VideoError(
                f"{path}: frame {index} is {list(frame.shape)} {frame.dtype}, expected [H, W, 3] uint8"
            )
        shape = shape or frame.shape
        if frame.shape != shape:
            raise VideoError(
                f"{path}: frame {index} is {list(frame.shape)}, the first is {list(shape)}; "
                "write frames of one size"
            )
        height, width = shape[:2]
        if height % 2 or width % 2 or not height or not width:
            raise VideoError(
                f"{path}: frames of {height} x {width} pixels: yuv420p needs even sizes; crop or pad to "
                f"{height + height % 2} x {width + width % 2}"
            )
        yield np.ascontiguousarray(frame)
    if shape is None:
        raise VideoError(f"{path}: no frames to write; a clip needs at least one")


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _metadata(container: InputContainer) -> dict[str, Any]:
    """What :func:`write` put there; a comment of another program's is passed on as it is."""
    comment = container.metadata.get("comment")
    if comment is None:
        return {}
    try:
        stated = json.loads(comment)
    except json.JSONDecodeError:
        return {"comment": comment}
    return stated if isinstance(stated, dict) else {"comment": comment}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
