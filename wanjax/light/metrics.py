"""Light over time, measured on a clip. Definitions: docs/light.md.

A frame is looked at once and then forgotten: a clip of any length is measured in the memory of a short one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from wanjax.light.answers import LOOKED_FOR
from wanjax.light.flashes import FlashTracker
from wanjax.light.flicker import FlickerTracker
from wanjax.light.glints import WayTracker
from wanjax.light.ground_truth import SceneTracker, slope, slope_errors
from wanjax.light.motion import Motion, dis_motion, given_motion
from wanjax.light.photometry import (
    LUMINANCE_FLOOR,
    linear_to_srgb,
    luma_rec601,
    luminance,
    mired,
    srgb_to_linear,
)
from wanjax.light.sweep import Sweep, SweepTracker
from wanjax.light.walker import following

__all__ = [
    "ASKED_FOR",
    "EXPOSURE_THRESHOLD",
    "GROUND_TRUTH",
    "SWEEP_MASS_THRESHOLD",
    "SWEEP_RATE_THRESHOLD",
    "UNITS",
    "LightCurves",
    "classify",
    "curves_and_metrics",
    "measure",
]

UNITS = {
    "frames": "",
    "global_flicker": "stops",
    "local_flicker": "stops",
    "common_flicker": "stops",
    "flicker_peak": "ratio",
    "flash_rate": "1/s",
    "exposure_slope": "stops/s",
    "cct_jitter": "mired",
    "cct_drift": "mired/s",
    "sweep_rate": "frame widths/s",
    "sweep_mass": "stops",
    "glint_rate": "frame widths/s",
    "glint_order": "",
    "shadow_seen": "",
    "shadow_attached": "",
    "shadow_swing": "",
    "shadow_swing_fit": "",
    "shadow_stretch": "",
    "shadow_passing": "",
    "vbench_temporal_flickering": "",
    "light_consistency": "",
    "exposure_slope_error": "stops/s",
    "cct_slope_error": "mired/s",
    "sweep_rate_error": "frame widths/s",
    "shadow_iou": "",
    "shadow_angle_error": "degrees",
    "shadow_length_error": "relative",
    "patch_error": "pixels",
    "glint_lag": "frames",
}
"""Unit of every metric that :func:`measure` returns, in the order they are reported."""

ASKED_FOR = frozenset(name for names in LOOKED_FOR.values() for name in names)
"""Those that are absent where nobody asks to ``look_for`` them."""

GROUND_TRUTH = frozenset(name for name in UNITS if name.endswith("_error")) | {"shadow_iou", "glint_lag"}
"""Those that are absent where no truth states them. The best value is 1 of ``shadow_iou`` and 0 of the others."""

EXPOSURE_THRESHOLD = 0.25
"""Steady: the exposure's slope is smaller than this many stops per second."""

SWEEP_MASS_THRESHOLD = 0.01
"""No sweep: the light that moves over still surfaces deviates by less than this many stops in the mean."""

SWEEP_RATE_THRESHOLD = 0.02
"""No sweep: the centroid of that deviation moves by less than this many frame widths per second."""

WORKING_SIDE = 256
"""Longer side in pixels at which motion and local change are looked at."""

_JUMP = 0.1  # threshold of the original light-consistency penalty, in luma


@dataclass(frozen=True)
class LightCurves:
    """Tracks over time, for plotting.

    Attributes:
      seconds: [T].
      log_luminance: [T] in stops.
      mired: [T].
      sweep: where the light that moves stands, at its own times.
      acceleration: [T] signed second difference of ``log_luminance`` in stops, 0 at the first and last frame.
      flicker_map: [h, w] at the working size (no side above :data:`WORKING_SIDE`), in stops: mean over time of the
        absolute second difference of log-luminance along motion that a neighbourhood shares
        (:mod:`wanjax.light.flicker`), over the frames where it was seen before and after; its mean over the frame
        is about ``local_flicker``. 0 where it never was, and for T < 3.
    """

    seconds: np.ndarray
    log_luminance: np.ndarray
    mired: np.ndarray
    sweep: Sweep
    acceleration: np.ndarray
    flicker_map: np.ndarray


def measure(
    video: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float,
    flow: Any = None,
    truth: Mapping[str, Any] | None = None,
    look_for: Collection[str] = (),
) -> dict[str, float]:
    """Measures the light of one clip.

    Args:
      video: sRGB frames [T, H, W, 3], float in [0, 1] or uint8: an array or any iterable of frames; T >= 1.
      fps: frames per second.
      flow: surface flow [T-1, H, W, 2], (dx, dy) in pixels from frame t to t+1, or a pair (forward, backward
        from t+1 to t). With forward alone the backward one is its splatted inverse and holes count as
        occluded. None: DIS flow at no more than 256 pixels (none for frames with a side below 12 pixels).
      truth: the scene's record. Of it are read ``exposure_slope`` (stops/s; else the slope of
        ``log_luminance`` [T]), ``cct_slope`` (mired/s) and ``sweep_rate`` (frame widths/s). Of a clip with the
        scene's own layout also, one entry per frame, as arrays or iterables: ``visibility`` [T, H, W] in [0, 1] (or
        uint8), the share of the key light that arrives; ``direct``, ``ambient``, ``specular`` [T, H, W, 3] linear,
        reflected light of the key light as if nothing were in its way, of its surroundings, and highlights;
        ``shadowed`` [T, H, W, 3], ``direct`` with its shadows, which tells the visibility of pixels at borders better;
        ``foot`` [T, 2], (x, y) in pixels where the caster stands; ``glint`` [T, H, W], the highlights to follow, else
        the luminance of ``specular``, else ``glint`` [T], their mean over the frame. What is absent is left out.
      look_for: answers of :data:`wanjax.light.answers.LOOKED_FOR`, whose metrics are then returned too.

    Returns:
      Finite floats under the names and in the units of :data:`UNITS`. Errors against ground truth have no sign and
      are absent without it: ``shadow_iou`` and ``patch_error`` want ``visibility``, ``direct`` and ``ambient``, the
      shadow's angle and length ``foot`` too, ``glint_lag`` ``glint`` or ``specular``. Too short a clip (T < 3 for
      flicker, T < 2 for slopes) reads 0, and 1 in ``vbench_temporal_flickering``.

    Raises:
      ValueError: no frames, frames of another shape, type or size than the first, values that are not finite,
        fewer or more flows than pairs of frames, fewer or more passes than frames, an answer that cannot be looked for.
    """
    return curves_and_metrics(video, fps=fps, flow=flow, truth=truth, look_for=look_for)[1]


def curves_and_metrics(
    video: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float,
    flow: Any = None,
    truth: Mapping[str, Any] | None = None,
    look_for: Collection[str] = (),
) -> tuple[LightCurves, dict[str, float]]:
    """What :func:`measure` returns, with the tracks over time it came from; takes the same arguments."""
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps = {fps}: expected frames per second above 0")
    if unknown := set(look_for) - set(LOOKED_FOR):
        raise ValueError(f"look_for: {', '.join(sorted(unknown))}: expected names of {', '.join(LOOKED_FOR)}")
    tracks = _Tracks(FlashTracker(fps), SceneTracker(truth or {}), WayTracker() if "glints" in look_for else None)
    frames = _frames(video)
    tracks.start(next(frames))
    motions: Iterator[Motion] | None = None
    if flow is not None:
        motions = given_motion(flow, *tracks.working_shape)
    for frame in frames:
        motion = None
        if motions is not None:
            motion = next(motions, None)
            if motion is None:
                raise ValueError(
                    f"flow: {tracks.count - 1} given, more are needed: one for each pair of frames"
                )
        tracks.add(frame, motion)
    if motions is not None and next(motions, None) is not None:
        raise ValueError(
            f"flow: more given than the {tracks.count - 1} pairs of frames; one for each pair is needed"
        )
    exposure = np.array(tracks.exposure)
    acceleration = np.zeros(len(exposure))
    acceleration[1:-1] = np.diff(exposure, n=2)
    curves = LightCurves(
        np.arange(tracks.count) / fps,
        exposure,
        np.array(tracks.mired),
        tracks.sweep.result(fps, exact_flow=flow is not None),
        acceleration,
        tracks.flicker.map,
    )
    metrics = _summary(tracks, curves, fps)
    metrics |= _asked_for(tracks, fps, look_for) | _errors(metrics, truth or {}, fps) | tracks.scene.metrics()
    return curves, {name: float(metrics[name]) for name in UNITS if name in metrics}


def classify(metrics: Mapping[str, float]) -> dict[str, int]:
    """What a caption could have said of a clip: does it get brighter, and which way does its light sweep?

    Args:
      metrics: what :func:`measure` returned.

    Returns:
      ``exposure_change``: 1 brighter, -1 darker, 0 steady (under :data:`EXPOSURE_THRESHOLD`). ``sweep``: 1
      to the right, -1 to the left, 0 none (under :data:`SWEEP_MASS_THRESHOLD` or
      :data:`SWEEP_RATE_THRESHOLD`).
    """
    slope, rate = metrics["exposure_slope"], metrics["sweep_rate"]
    sweeps = metrics["sweep_mass"] >= SWEEP_MASS_THRESHOLD and abs(rate) >= SWEEP_RATE_THRESHOLD
    return {
        "exposure_change": int(np.sign(slope)) if abs(slope) >= EXPOSURE_THRESHOLD else 0,
        "sweep": int(np.sign(rate)) if sweeps else 0,
    }


@dataclass
class _View:
    """What is kept of a frame until the next two have been seen."""

    pixels: np.ndarray  # [H, W, 3] float32 or uint8 sRGB
    grey: np.ndarray  # [h, w] uint8, for optical flow
    stops: np.ndarray  # [h, w] log-luminance


@dataclass
class _Tracks:
    """One number or map per frame, filled in one pass."""

    flashes: FlashTracker
    scene: SceneTracker
    glints: WayTracker | None
    count: int = 0
    exposure: list[float] = field(default_factory=list)
    mired: list[float] = field(default_factory=list)
    pixel_change: list[float] = field(default_factory=list)
    luma_penalty: list[float] = field(default_factory=list)
    flicker: FlickerTracker = field(default_factory=FlickerTracker)
    sweep: SweepTracker = field(default_factory=SweepTracker)
    _last: _View | None = None

    def start(self, frame: np.ndarray) -> None:
        self._last = self._look(frame)
        self.flicker.add(self._last.stops, None)
        self.sweep.add(self._last.stops, None)

    @property
    def working_shape(self) -> tuple[int, int]:
        assert self._last is not None
        height, width = self._last.grey.shape
        return height, width

    def add(self, frame: np.ndarray, motion: Motion | None) -> None:
        """Adds a frame; ``motion`` is from the frame before to it, None to have it estimated."""
        view, last = self._look(frame), self._last
        assert last is not None
        if motion is None:
            motion = dis_motion(last.grey, view.grey)
        self._compare(last.pixels, view.pixels)
        self.flicker.add(view.stops, motion)
        self.sweep.add(view.stops, motion.forward)
        self._last = view

    def _look(self, frame: np.ndarray) -> _View:
        """The view of a frame; what needs no other frame is noted."""
        self.count += 1
        linear = _LINEAR_OF_BYTE[frame] if frame.dtype == np.uint8 else srgb_to_linear(frame)
        mean = np.array(cv2.mean(linear)[:3])  # summed in float64, many times as fast as numpy's over two axes
        self.exposure.append(float(np.log2(luminance(mean) + LUMINANCE_FLOOR)))
        self.mired.append(float(mired(mean)))
        full = luminance(linear)
        self.scene.add(full)
        y = _working(full)
        self.flashes.add(y)
        grey = np.round(255 * linear_to_srgb(y)).astype(np.uint8)
        stops = np.log2(y + np.float32(LUMINANCE_FLOOR))
        if self.glints is not None:
            self.glints.add(stops)
        return _View(frame, grey, stops)

    def _compare(self, before: np.ndarray, after: np.ndarray) -> None:
        """The two measures in use elsewhere, both blind to motion."""
        scale = 255.0 if before.dtype == np.uint8 else 1.0
        change = cv2.absdiff(before, after)
        self.pixel_change.append(float(np.mean(cv2.mean(change)[:3])) / scale)
        step = cv2.absdiff(_luma(after), _luma(before))
        self.luma_penalty.append((cv2.mean(step)[0] + cv2.mean(np.maximum(step - _JUMP * scale, 0))[0]) / scale)


def _summary(tracks: _Tracks, curves: LightCurves, fps: float) -> dict[str, float]:
    return {
        "frames": tracks.count,
        "global_flicker": _acceleration(curves.log_luminance),
        "local_flicker": _mean(tracks.flicker.local),
        "common_flicker": _mean(tracks.flicker.common),
        "flicker_peak": tracks.flicker.peak,
        "flash_rate": tracks.flashes.rate,
        "exposure_slope": slope(curves.log_luminance, fps),
        "cct_jitter": _acceleration(curves.mired),
        "cct_drift": slope(curves.mired, fps),
        "sweep_rate": curves.sweep.rate,
        "sweep_mass": curves.sweep.mass,
        "vbench_temporal_flickering": 1.0 - _mean(tracks.pixel_change),
        "light_consistency": _mean(tracks.luma_penalty),
    }


def _asked_for(tracks: _Tracks, fps: float, look_for: Collection[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    if tracks.glints is not None:
        found |= {"glint_rate": tracks.glints.rate(fps), "glint_order": tracks.glints.order}
    if "shadow_follows" in look_for:
        shadow = following(tracks.sweep.maps)
        found |= {f"shadow_{name}": value for name, value in dataclasses.asdict(shadow).items()}
    return found


def _errors(metrics: Mapping[str, float], truth: Mapping[str, Any], fps: float) -> dict[str, float]:
    measured = {"exposure_slope": metrics["exposure_slope"], "cct_slope": metrics["cct_drift"]}
    # A centroid of next to nothing wanders; a clip without a sweep has rate 0.
    measured["sweep_rate"] = metrics["sweep_rate"] if metrics["sweep_mass"] >= SWEEP_MASS_THRESHOLD else 0.0
    return slope_errors(measured, truth, fps)


def _frames(video: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Checked frames [H, W, 3], uint8 or float32 in [0, 1]."""
    first: np.ndarray | None = None
    for index, given in enumerate(video):
        frame = np.asarray(given)
        if frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
            raise ValueError(f"frame {index}: expected [H, W, 3], got {list(frame.shape)}")
        if frame.dtype != np.uint8:
            if not np.issubdtype(frame.dtype, np.floating):
                raise ValueError(f"frame {index}: expected uint8, or float in [0, 1], got {frame.dtype}")
            frame = frame.astype(np.float32)
            if not np.isfinite(frame).all():
                raise ValueError(f"frame {index}: holds values that are not finite")
            frame = np.clip(frame, 0, 1)
        if first is None:
            first = frame
        if frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(
                f"frame {index}: {list(frame.shape)} {frame.dtype}, but the first frame is "
                f"{list(first.shape)} {first.dtype}; give frames of one size and type"
            )
        yield np.ascontiguousarray(frame)
    if first is None:
        raise ValueError("video: no frames; a clip needs at least one")


def _working(image: np.ndarray) -> np.ndarray:
    """``image [H, W]`` averaged down to no more than :data:`WORKING_SIDE` pixels a side, float32."""
    height, width = image.shape
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(np.asarray(image, np.float32), size, interpolation=cv2.INTER_AREA)


def _acceleration(values: np.ndarray) -> float:
    """Mean absolute second difference; 0 for fewer than three values."""
    return float(np.abs(np.diff(values, n=2)).mean()) if len(values) > 2 else 0.0


def _luma(pixels: np.ndarray) -> np.ndarray:
    """Rec. 601 luma [H, W] float32 of frames [H, W, 3], on their own scale."""
    return cv2.transform(pixels.astype(np.float32), _LUMA)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


_LUMA = luma_rec601(np.eye(3, dtype=np.float32))[None]  # [1, 3]
_LINEAR_OF_BYTE = srgb_to_linear(np.arange(256, dtype=np.float32) / 255).astype(np.float32)
