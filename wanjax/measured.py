"""One video, measured: its numbers, its tracks over time, and what is kept of its pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from wanjax.light.metrics import LightCurves, curves_and_metrics
from wanjax.light.shrink import shrunk
from wanjax.video_color import to_screen

__all__ = ["Measured", "curves_of", "measured"]

_THUMBNAIL = 128  # longer side in pixels
_WATCHED = 32  # thumbnails while a clip runs by; when full, every other one goes
_THUMBNAILS = 9  # kept afterwards
_HEAT = 96  # longer side in pixels of the flicker map that is kept


@dataclass(frozen=True)
class Measured:
    """One video, measured.

    Attributes:
      metrics: under the names of :data:`wanjax.light.metrics.UNITS`.
      curves: tracks over time; its ``flicker_map`` is brought down to at most 96 pixels a side.
      fps: frames per second.
      size: (H, W) in pixels.
      jpegs: up to nine evenly spaced frames of at most 128 pixels a side, compressed: a thousand clips are kept.
    """

    metrics: dict[str, float]
    curves: LightCurves
    fps: float
    size: tuple[int, int]
    jpegs: tuple[bytes, ...]

    @property
    def thumbnails(self) -> list[np.ndarray]:
        """Evenly spaced frames [H, W, 3] uint8 of at most 128 pixels a side."""
        coded = (np.frombuffer(jpeg, np.uint8) for jpeg in self.jpegs)
        return [np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1] for data in coded]

    @property
    def hotspot(self) -> dict[str, float]:
        """Where it flickers most: ``x`` and ``y`` in shares of width and height from the upper left, ``stops``."""
        heat = self.curves.flicker_map
        row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
        x, y = (column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0]
        return {"x": round(float(x), 4), "y": round(float(y), 4), "stops": round(float(heat[row, column]), 5)}


def measured(
    frames: Iterable[np.ndarray],
    fps: float,
    truth: Mapping[str, Any] | None,
    *,
    look_for: Collection[str],
    hdr: bool = False,
) -> Measured:
    """Measures frames [H, W, 3] one after the other.

    Args:
      frames, fps, truth, look_for: as :func:`wanjax.light.metrics.measure` takes them.
      hdr: whether the frames are those of an HDR clip, to be shown with highlights rolled off.
    """
    kept: list[np.ndarray] = []
    size = [0, 0]

    def watched() -> Iterator[np.ndarray]:
        stride = 1
        for index, frame in enumerate(frames):
            size[:] = frame.shape[:2]
            if index % stride == 0:
                kept.append(shrunk(frame, _THUMBNAIL))
                if len(kept) == _WATCHED:
                    del kept[1::2]
                    stride *= 2
            yield frame

    curves, metrics = curves_and_metrics(watched(), fps=fps, truth=truth, look_for=look_for)
    curves = dataclasses.replace(curves, flicker_map=shrunk(curves.flicker_map.astype(np.float32), _HEAT))
    picked = np.unique(np.linspace(0, len(kept) - 1, _THUMBNAILS).round().astype(int))
    return Measured(metrics, curves, fps, (size[0], size[1]), tuple(_jpeg(to_screen(kept[i], hdr=hdr)) for i in picked))


def _jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def curves_of(curves: LightCurves) -> dict[str, list[float]]:
    """The tracks as JSON, rounded to five decimals."""
    tracks = {
        "seconds": curves.seconds,
        "log_luminance": curves.log_luminance,
        "acceleration": curves.acceleration,
        "mired": curves.mired,
        "sweep_seconds": curves.sweep.seconds,
        "sweep_position": curves.sweep.position,
        "sweep_weight": curves.sweep.weight,
    }
    return {name: [round(float(v), 5) for v in values] for name, values in tracks.items()}
