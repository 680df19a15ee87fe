"""Video files in and out, through PyAV.

Out: H.264, yuv420p, BT.709 (tagged, limited range), so that it plays in every browser and reads back in the
colours it was written in. Facts about a clip (prompt, seed, settings) travel in it as JSON.

In: whatever FFmpeg decodes, upright, its colours as they are tagged (see ``video_color``). docs/evaluate.md says what
is done with each kind of file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from wanjax.video_color import SCALER, Color, UnsupportedColor, color_of, for_measuring, for_showing

__all__ = ["JITTER_LIMIT", "Probe", "Stream", "Video", "VideoError", "probe", "read", "stream", "write"]

JITTER_LIMIT = 0.1
"""Frames whose spacing is off the usual one by no more than this share of it count as evenly spaced.

Light that rises by one stop per second at 30 frames per second then shows at most 4 * 0.1 / 30 = 0.013 stops of false
acceleration.
"""

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


@dataclass(frozen=True)
class Probe:
    """What a file says of itself.

    Attributes:
      container, codec, pixel_format: FFmpeg's names.
      height, width: of the picture, upright, in pixels.
      rotation: degrees by which the picture is turned to stand upright, as the file asks; counterclockwise.
      bits: per sample.
      matrix, range, transfer, primaries: how its colours are read.
      hdr: ``PQ``, ``HLG`` or nothing.
      tagged: whether the file names its matrix, or the usual one is taken.
      interlaced: whether a frame holds two fields.
      frames: how many its container lists.
      fps: frames per second, from the timestamps where these contradict the stated rate by over 1 %.
      spacing: median time from one frame to the next in seconds; 0 where timestamps are missing or frames too few.
      jitter: largest deviation from that spacing, as a share of it.
      worst_gap: (frame, seconds) of the spacing that deviates most, before that frame; None below two frames.
    """

    container: str
    codec: str
    pixel_format: str
    height: int
    width: int
    rotation: int
    bits: int
    matrix: str
    range: str
    transfer: str
    primaries: str
    hdr: str
    tagged: bool
    interlaced: bool
    frames: int
    fps: float
    spacing: float
    jitter: float
    worst_gap: tuple[int, float] | None


def stream(path: str | os.PathLike[str], *, exact: bool = False) -> Stream:
    """Opens a clip; its frames [H, W, 3] are decoded as they are asked for, upright.

    Args:
      path: the file.
      exact: for measuring: frames of a clip with more than 8 bits per sample, wide gamut or HDR are float32 in [0, 1]
        at the file's own depth, and HDR is scaled so that 1,000 cd/m2 is linear 1. Else all are uint8, and HDR is
        brought to what an SDR screen shows.

    Raises:
      FileNotFoundError: no such file.
      VideoError: empty, not a video, cut short, damaged, or in colours that cannot be converted (at once, or at the
        frame where it shows).
    """
    path = Path(path)
    container, source = _open(path)
    rate = source.average_rate or source.guessed_rate
    fps = float(rate) if rate else 0.0
    if not (math.isfinite(fps) and fps > 0):
        container.close()
        raise VideoError(f"{path}: states no frame rate")
    convert = for_measuring if exact else for_showing
    pictures = (_upright(path, frame, convert) for frame in _decode(path, container, source))
    return Stream(pictures, fps, _metadata(container))


def probe(path: str | os.PathLike[str]) -> Probe:
    """Reads all timestamps and the first frame; raises what :func:`stream` raises."""
    path = Path(path)
    container, source = _open(path)
    with container:
        try:
            stamps = [p.pts for p in container.demux(source) if p.size and not p.is_discard]
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: damaged ({_reason(error)}); write or download it again") from error
        stated, clock = source.average_rate or source.guessed_rate, source.time_base or Fraction(1)
    ticks = sorted(stamp for stamp in stamps if stamp is not None)
    complete = len(ticks) == len(stamps) > 1
    spacing, jitter, worst = _spacing(ticks, clock) if complete else (0.0, 0.0, None)
    if complete and ticks[-1] > ticks[0]:
        measured = Fraction(len(ticks) - 1) / ((ticks[-1] - ticks[0]) * clock)
        if not stated or abs(float(measured / stated) - 1) > 0.01:
            stated = measured
    if not stated:
        raise VideoError(f"{path}: states no frame rate")
    container, source = _open(path)
    first = next(_decode(path, container, source))
    color = _color(path, first)
    turns = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    return Probe(
        container=container.format.name.split(",")[0],
        codec=source.codec_context.name,
        pixel_format=first.format.name,
        height=height,
        width=width,
        rotation=turns * 90,
        bits=color.bits,
        **color.names(),
        hdr=color.hdr,
        tagged=color.tagged,
        interlaced=bool(first.interlaced_frame),
        frames=len(stamps),
        fps=float(stated),
        spacing=spacing,
        jitter=jitter,
        worst_gap=worst,
    )


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
                interpolation=SCALER,
            )
            frame.color_primaries = frame.color_trc = _BT709
            container.mux(target.encode(frame))
        container.mux(target.encode())


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    """The container and its video stream, checked as far as that goes without decoding."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty; write or download it again")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(f"{path}: not a video, or damaged at its start ({_reason(error)})") from error
    kind = container.format.name
    if kind == "image2" or kind.endswith("_pipe"):
        container.close()
        raise VideoError(f"{path}: a still picture, not a video; leave it out")
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        container.close()
        raise VideoError(f"{path}: holds no video stream (found: {found}); leave it out")
    source = moving[0]
    end = max((entry.pos + entry.size for entry in source.index_entries), default=0)
    if end > path.stat().st_size:
        container.close()
        raise VideoError(
            f"{path}: cut short: {path.stat().st_size} bytes, its index reaches to {end}; "
            "write or download it again"
        )
    return container, source


def _spacing(ticks: Sequence[int], clock: Fraction) -> tuple[float, float, tuple[int, float]]:
    """Median spacing in seconds, largest deviation from it as a share of it, and the frame and seconds of that one.

    What the rounding of timestamps to whole ticks can explain does not count.
    """
    gaps = np.diff(np.array(ticks, np.float64))
    middle = float(np.median(gaps))
    off = np.maximum(np.abs(gaps - middle) - 1, 0) / max(middle, 1.0)
    worst = int(np.argmax(off))
    return middle * float(clock), float(off[worst]), (worst + 1, float(gaps[worst]) * float(clock))


def _decode(path: Path, container: InputContainer, source: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames, all of one size; the container is closed behind the last."""
    count = 0
    size: tuple[int, int] | None = None
    try:
        with container:
            for frame in container.decode(source):
                if frame.is_corrupt:
                    raise VideoError(f"{path}: damaged at frame {count}; write or download it again")
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise VideoError(
                        f"{path}: its picture changes from {size[0]} x {size[1]} to {frame.width} x {frame.height} "
                        f"pixels at frame {count}; cut it there"
                    )
                yield frame
                count += 1
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: damaged after {count} frames ({_reason(error)})") from error
    if not count:
        raise VideoError(f"{path}: holds no frame that can be decoded")


def _upright(path: Path, frame: av.VideoFrame, convert: Callable[[av.VideoFrame], np.ndarray]) -> np.ndarray:
    _color(path, frame)
    pixels = convert(frame)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _color(path: Path, frame: av.VideoFrame) -> Color:
    try:
        return color_of(frame)
    except UnsupportedColor as error:
        raise VideoError(
            f"{path}: {error}, which is not converted; bring it to BT.709 or to BT.2100 PQ or HLG first"
        ) from error


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
