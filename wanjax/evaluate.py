"""Clips to measurements: every clip measured, held against its caption, and summed up with its uncertainty.

A caption states two things that can be checked on a clip with a layout of its own: whether it gets brighter,
darker or stays (``exposure_change``), and which way its light sweeps (``sweep``). A clip is right if both
are. docs/evaluate.md lists what the JSON holds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from wanjax import video
from wanjax.clip_records import ANSWERS, ClipRecord, Reference, records_of_samples, records_of_videos
from wanjax.light.metrics import (
    EXPOSURE_THRESHOLD,
    SWEEP_MASS_THRESHOLD,
    SWEEP_RATE_THRESHOLD,
    UNITS,
    LightCurves,
    classify,
    curves_and_metrics,
    measure,
)
from wanjax.uncertainty import bootstrap_interval, wilson_interval
from wanjax.video_color import to_screen

__all__ = [
    "ANSWERS",
    "SCHEMA",
    "ClipRecord",
    "ClipResult",
    "Evaluation",
    "Measured",
    "Reference",
    "check_estimator",
    "evaluate_clips",
    "records_of_samples",
    "records_of_videos",
    "write_text",
]

SCHEMA = 2
"""Version of the JSON's layout; keys are added, not renamed."""

SHORTEST = 3
"""Frames below which a clip has no second difference: it is shown, and left out of means and tests."""

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


@dataclass(frozen=True)
class ClipResult:
    """A clip, what was measured on it and on its reference, and whether it is what its caption says.

    ``file`` is what the file says of itself, ``notes`` what a reader of the numbers has to know of it.
    """

    record: ClipRecord
    facts: dict[str, Any]
    clip: Measured
    reference: Measured | None
    answers: dict[str, int]
    expected: dict[str, int] | None
    file: video.Probe | None = None
    notes: tuple[str, ...] = ()

    @property
    def right(self) -> dict[str, bool]:
        """Per answer; empty where the caption states none."""
        return {name: self.answers[name] == value for name, value in (self.expected or {}).items()}

    @property
    def correct(self) -> bool | None:
        return all(self.right.values()) if self.expected else None

    @property
    def name(self) -> str:
        return self.record.path.name

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        out: dict[str, Any] = {"file": str(self.record.path), **self.facts}
        height, width = self.clip.size
        out |= {"fps": self.clip.fps, "height": height, "width": width, "metrics": self.clip.metrics}
        out |= {
            "answers": self.answers,
            "expected": self.expected,
            "right": self.right,
            "correct": self.correct,
            "flicker_hotspot": self.clip.hotspot,
            "stream": dataclasses.asdict(self.file) if self.file else None,
            "notes": list(self.notes),
        }
        out["curves"] = _curves(self.clip.curves)
        if self.reference is not None:
            out["reference"] = {"metrics": self.reference.metrics, "curves": _curves(self.reference.curves)}
        return out


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one set of clips. ``unreadable`` holds {"file", "error"} of files that could not be."""

    clips: list[ClipResult]
    unreadable: list[dict[str, str]]
    estimator: dict[str, dict[str, int]] | None = None
    name: str = field(default="clips", kw_only=True)

    def scenarios(self) -> dict[str, list[int]]:
        """Clips that belong side by side, as indices: those of one ``scenario``, or else two or more of one prompt."""
        groups: dict[str, list[int]] = {}
        for index, clip in enumerate(self.clips):
            key = clip.facts.get("scenario") or clip.facts.get("prompt")
            if key:
                groups.setdefault(str(key), []).append(index)
        named = {str(c.facts["scenario"]) for c in self.clips if c.facts.get("scenario")}
        return {key: members for key, members in groups.items() if len(members) > 1 or key in named}

    def summary(self) -> dict[str, Any]:
        """As JSON: score, control, families, estimator's own check, thresholds, units, and every clip."""
        stated = [c for c in self.clips if c.expected]
        families = dict.fromkeys(str(c.facts["family"]) for c in self.clips if "family" in c.facts)
        groups = {f: [c for c in self.clips if c.facts.get("family") == f] for f in families}
        return {
            "schema": SCHEMA,
            "name": self.name,
            "clips_measured": len(self.clips),
            "clips_refused": len(self.unreadable),
            "score": _score(stated) if stated else None,
            "shuffled_captions": shuffled_control(stated) if stated else None,
            "languages": {
                str(name): _score([c for c in stated if c.facts.get("language") == name])
                for name in sorted({str(c.facts["language"]) for c in stated if "language" in c.facts})
            },
            "families": {f: {"score": _score(g), "metrics": _means(g)} for f, g in groups.items()},
            "metrics": _means(self.clips),
            "scenarios": [{"name": key, "clips": members} for key, members in self.scenarios().items()],
            "estimator": self.estimator,
            "thresholds": {
                "exposure_slope": {"value": EXPOSURE_THRESHOLD, "unit": UNITS["exposure_slope"]},
                "sweep_mass": {"value": SWEEP_MASS_THRESHOLD, "unit": UNITS["sweep_mass"]},
                "sweep_rate": {"value": SWEEP_RATE_THRESHOLD, "unit": UNITS["sweep_rate"]},
            },
            "units": UNITS,
            "unreadable": self.unreadable,
            "clips": [c.summary() for c in self.clips],
        }


def evaluate_clips(
    records: Iterable[ClipRecord],
    *,
    estimator: dict[str, dict[str, int]] | None = None,
    report: Callable[[str], None] = lambda line: None,
    name: str = "clips",
) -> Evaluation:
    """Measures clips one after the other; one that cannot be is named with its reason, and the others go on.

    Args:
      records: the clips.
      estimator: what :func:`check_estimator` returned, carried along.
      report: called with a line of text per clip.
      name: what this set of clips is called.
    """
    clips, unreadable = [], []
    for record in records:
        try:
            result = _evaluate(record)
        except (ValueError, OSError) as error:
            unreadable.append({"file": str(record.path), "error": str(error)})
            report(f"not measured: {error}")
            continue
        clips.append(result)
        verdict = {None: "", True: " right", False: " wrong"}[result.correct]
        slope, rate = (result.clip.metrics[name] for name in ("exposure_slope", "sweep_rate"))
        report(f"{record.path.name}: {slope:+.2f} stops/s, sweep {rate:+.3f} widths/s{verdict}")
    return Evaluation(clips, unreadable, estimator, name=name)


def check_estimator(
    clips: Iterable[tuple[np.ndarray, float, Mapping[str, Any]]],
) -> dict[str, dict[str, int]]:
    """Runs the estimator on rendered clips, whose answers are known, forwards and played backwards.

    Args:
      clips: (frames [T, H, W, 3], fps, facts with ``family``, ``exposure_change``, ``sweep``) each.

    Returns:
      Per family: ``clips``, and of them right ``forward`` and ``backward``. Backwards, light that changes
      changes the other way, so next to none may be right, except where nothing changes.
    """
    counts: dict[str, dict[str, int]] = {}
    for frames, fps, facts in clips:
        expected = {name: int(facts[name]) for name in ANSWERS}
        family = counts.setdefault(str(facts["family"]), {"clips": 0, "forward": 0, "backward": 0})
        family["clips"] += 1
        family["forward"] += classify(measure(frames, fps=fps)) == expected
        family["backward"] += classify(measure(frames[::-1], fps=fps)) == expected
    return counts


def shuffled_control(clips: Sequence[ClipResult]) -> dict[str, Any]:
    """The score against other clips' captions, dealt so that both answers differ from a clip's own.

    Every caption is dealt to one clip at most; clips for which none is left are not counted. An estimator
    that says yes to everything scores as well here as on the captions themselves.
    """
    wanted = np.array([[c.expected[name] for name in ANSWERS] for c in clips if c.expected])
    differ = (wanted[:, None] != wanted[None, :]).all(axis=-1)
    # Random costs pick among the ways to deal; a pair that may not be costs more than all others together.
    costs = np.random.default_rng(0).random(differ.shape) + np.where(differ, 0, len(clips) + 1)
    rows, columns = linear_sum_assignment(costs)
    dealt = [(i, j) for i, j in zip(rows, columns, strict=True) if differ[i, j]]
    right = sum(tuple(wanted[j]) == tuple(clips[i].answers[name] for name in ANSWERS) for i, j in dealt)
    return {"correct": int(right), "of": len(dealt)}


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file whole or not at all; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _evaluate(record: ClipRecord) -> ClipResult:
    path = record.path
    file = video.probe(path)
    if file.jitter > video.JITTER_LIMIT and file.worst_gap:
        frame, seconds = file.worst_gap
        raise video.VideoError(
            f"{path}: variable frame rate: frame {frame} comes {1000 * seconds:.0f} ms after the one before, where "
            f"{1000 * file.spacing:.0f} ms are usual; flicker is read from even spacing (up to "
            f"{100 * video.JITTER_LIMIT:.0f} % off): cut the part that is even, or film or export at a constant rate"
        )
    frames, _, stored = video.stream(path, exact=True)
    facts = {**stored, **record.facts}
    stated = [name for name in ANSWERS if name in facts]
    for name in stated:
        if facts[name] not in (-1, 0, 1):
            raise ValueError(f"{path}: its fact {name} = {facts[name]!r}: expected -1, 0 or 1")
    truth = facts.get("truth")
    if truth is not None and not isinstance(truth, Mapping):
        raise ValueError(f"{path}: its fact truth = {truth!r}: expected an object such as {{\"exposure_slope\": 0.5}}")
    clip = _measure(frames, file.fps, truth, hdr=bool(file.hdr))
    reference = None
    if record.reference is not None:
        shown = record.reference()
        reference = _measure(shown.frames, shown.fps, None)
    expected = {name: int(facts[name]) for name in ANSWERS} if len(stated) == len(ANSWERS) else None
    notes = _notes(file, int(clip.metrics["frames"]))
    return ClipResult(record, facts, clip, reference, classify(clip.metrics), expected, file, notes)


def _notes(file: video.Probe, frames: int) -> tuple[str, ...]:
    """What a reader of the clip's numbers has to know of its file."""
    notes = []
    if frames < SHORTEST:
        notes.append(
            f"{frames} frame{'s' if frames > 1 else ''}: flicker needs {SHORTEST}, so it reads 0 here and counts in "
            "no mean"
        )
    if file.rotation:
        notes.append(f"turned by {file.rotation}° as its metadata asks")
    if file.hdr:
        notes.append(f"HDR ({file.hdr}, {file.primaries}): converted to linear Rec. 709, 1,000 cd/m² as 1")
    elif file.bits > 8:
        notes.append(f"{file.bits} bits per sample, measured at that depth")
    if file.jitter > 0.01:
        notes.append(f"spacing of frames varies by up to {100 * file.jitter:.0f} %; measured at its mean rate")
    if file.interlaced:
        notes.append("interlaced: both fields of a frame are measured as one picture")
    if file.frames and frames < file.frames:
        notes.append(f"its container lists {file.frames} frames, {frames} could be decoded")
    return tuple(notes)


def _measure(
    frames: Iterable[np.ndarray], fps: float, truth: Mapping[str, Any] | None, *, hdr: bool = False
) -> Measured:
    kept: list[np.ndarray] = []
    size = [0, 0]

    def watched() -> Iterator[np.ndarray]:
        stride = 1
        for index, frame in enumerate(frames):
            size[:] = frame.shape[:2]
            if index % stride == 0:
                kept.append(_smaller(frame, _THUMBNAIL))
                if len(kept) == _WATCHED:
                    del kept[1::2]
                    stride *= 2
            yield frame

    curves, metrics = curves_and_metrics(watched(), fps=fps, truth=truth)
    curves = dataclasses.replace(curves, flicker_map=_smaller(curves.flicker_map.astype(np.float32), _HEAT))
    picked = np.unique(np.linspace(0, len(kept) - 1, _THUMBNAILS).round().astype(int))
    return Measured(metrics, curves, fps, (size[0], size[1]), tuple(_jpeg(to_screen(kept[i], hdr=hdr)) for i in picked))


def _smaller(image: np.ndarray, side: int) -> np.ndarray:
    scale = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _score(clips: Sequence[ClipResult]) -> dict[str, Any]:
    """Right clips and answers, with the 95 % interval of the share."""
    stated = [c for c in clips if c.expected]
    right, n = sum(bool(c.correct) for c in stated), len(stated)
    out: dict[str, Any] = {"correct": right, "of": n}
    out |= {name: sum(c.right[name] for c in stated) for name in ANSWERS}
    if n:
        out["interval_95"] = wilson_interval(right, n)
    return out


def _means(clips: Sequence[ClipResult]) -> dict[str, dict[str, Any]]:
    """Mean of every metric over clips of three or more frames, its 95 % interval, and the references' mean.

    Of slopes and rates it is the mean of the magnitude: left and right would cancel.
    """
    out: dict[str, dict[str, Any]] = {}
    long = [c for c in clips if c.clip.metrics["frames"] >= SHORTEST]
    for name, unit in UNITS.items():
        values = np.abs([c.clip.metrics[name] for c in long if name in c.clip.metrics])
        if not len(values):
            continue
        out[name] = {"mean": float(values.mean()), "interval_95": bootstrap_interval(values)}
        out[name] |= {"clips": len(values), "unit": unit}
        known = [abs(c.reference.metrics[name]) for c in long if c.reference and name in c.reference.metrics]
        if known:
            out[name]["reference_mean"] = float(np.mean(known))
    return out


def _curves(curves: LightCurves) -> dict[str, list[float]]:
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
