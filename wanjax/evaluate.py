"""Clips to measurements: every clip measured, held against its caption, and summed up with its uncertainty.

A caption states two things that can be checked on a clip with a layout of its own: whether it gets brighter,
darker or stays (``exposure_change``), and which way its light sweeps (``sweep``). A clip is right if both
are.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from wanjax import video
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

__all__ = [
    "ANSWERS",
    "ClipRecord",
    "Evaluation",
    "Measured",
    "Reference",
    "check_estimator",
    "evaluate_clips",
    "records_of_samples",
    "records_of_videos",
    "write_text",
]

ANSWERS = ("exposure_change", "sweep")
"""What is read off a clip and held against its caption; each is -1, 0 or 1."""

_THUMBNAIL = 128  # longer side in pixels
_THUMBNAILS = 32  # kept per clip; when full, every other one goes


@dataclass(frozen=True)
class Reference:
    """A rendered clip to show and measure beside a sampled one: ``frames [T, H, W, 3]`` uint8."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class ClipRecord:
    """A clip to be measured.

    Attributes:
      path: its file.
      facts: what is known of it: any of ``prompt``, ``language``, ``family``, ``exposure_change``, ``sweep``,
        ``seed``, ``settings``, ``truth`` (see :func:`wanjax.light.metrics.measure`).
      reference: gives the rendered clip that the caption was written for, if there is one.
    """

    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[[], Reference] | None = None


@dataclass(frozen=True)
class Measured:
    """One video, measured; ``thumbnails`` are evenly spaced frames of at most 128 pixels, uint8."""

    metrics: dict[str, float]
    curves: LightCurves
    fps: float
    size: tuple[int, int]
    thumbnails: list[np.ndarray]


@dataclass(frozen=True)
class ClipResult:
    """A clip, what was measured on it and on its reference, and whether it is what its caption says."""

    record: ClipRecord
    facts: dict[str, Any]
    clip: Measured
    reference: Measured | None
    answers: dict[str, int]
    expected: dict[str, int] | None

    @property
    def right(self) -> dict[str, bool]:
        """Per answer; empty where the caption states none."""
        return {name: self.answers[name] == value for name, value in (self.expected or {}).items()}

    @property
    def correct(self) -> bool | None:
        return all(self.right.values()) if self.expected else None

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
        }
        out["curves"] = _curves(self.clip.curves)
        if self.reference is not None:
            out["reference"] = {"metrics": self.reference.metrics, "curves": _curves(self.reference.curves)}
        return out


@dataclass(frozen=True)
class Evaluation:
    """Everything measured in one go. ``unreadable`` holds {"file", "error"} of files that could not be."""

    clips: list[ClipResult]
    unreadable: list[dict[str, str]]
    estimator: dict[str, dict[str, int]] | None = None

    def summary(self) -> dict[str, Any]:
        """As JSON: score, control, families, estimator's own check, thresholds, units, and every clip."""
        stated = [c for c in self.clips if c.expected]
        families = dict.fromkeys(str(c.facts["family"]) for c in self.clips if "family" in c.facts)
        groups = {f: [c for c in self.clips if c.facts.get("family") == f] for f in families}
        return {
            "clips_measured": len(self.clips),
            "score": _score(stated) if stated else None,
            "shuffled_captions": shuffled_control(stated) if stated else None,
            "languages": {
                str(name): _score([c for c in stated if c.facts.get("language") == name])
                for name in sorted({str(c.facts["language"]) for c in stated if "language" in c.facts})
            },
            "families": {f: {"score": _score(g), "metrics": _means(g)} for f, g in groups.items()},
            "metrics": _means(self.clips),
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
) -> Evaluation:
    """Measures clips one after the other; one that cannot be read is named and the others go on.

    Args:
      records: the clips.
      estimator: what :func:`check_estimator` returned, carried along.
      report: called with a line of text per clip.
    """
    clips, unreadable = [], []
    for record in records:
        try:
            result = _evaluate(record)
        except (video.VideoError, OSError) as error:
            unreadable.append({"file": str(record.path), "error": str(error)})
            report(f"not measured: {error}")
            continue
        clips.append(result)
        verdict = {None: "", True: " right", False: " wrong"}[result.correct]
        slope, rate = (result.clip.metrics[name] for name in ("exposure_slope", "sweep_rate"))
        report(f"{record.path.name}: {slope:+.2f} stops/s, sweep {rate:+.3f} widths/s{verdict}")
    return Evaluation(clips, unreadable, estimator)


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


def records_of_videos(pattern: str) -> list[ClipRecord]:
    """The clips of a glob (``**`` for folders below), with the facts stored in them.

    Raises FileNotFoundError where nothing matches.
    """
    paths = sorted(Path(p) for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p))
    if not paths:
        raise FileNotFoundError(f"--videos {pattern}: no file matches; quote the pattern and check the folder")
    return [ClipRecord(path) for path in paths]


def records_of_samples(
    folder: str | os.PathLike[str], reference: Callable[[Mapping[str, Any]], Callable[[], Reference] | None]
) -> list[ClipRecord]:
    """The clips that ``experiments.sample`` left in a folder, one per line of its ``samples.jsonl``.

    Args:
      folder: where they are.
      reference: given a line's record, what gives the clip's reference (None where there is none).

    Raises:
      FileNotFoundError: no ``samples.jsonl``.
      ValueError: a line that is not a record with a ``file``, or answers that are not -1, 0 or 1.
    """
    listing = Path(folder) / "samples.jsonl"
    if not listing.is_file():
        raise FileNotFoundError(f"{listing}: no such file; run experiments.sample --out {folder} first")
    records = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            facts = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{listing}:{number}: not JSON ({error.msg}); sample again or remove the line") from error
        if not isinstance(facts, dict) or not isinstance(facts.get("file"), str):
            raise ValueError(f'{listing}:{number}: expected an object with a "file"')
        for name in ANSWERS:
            if name in facts and facts[name] not in (-1, 0, 1):
                raise ValueError(f"{listing}:{number}: {name} = {facts[name]!r}: expected -1, 0 or 1")
        records.append(ClipRecord(Path(folder) / facts.pop("file"), facts, reference(facts)))
    if not records:
        raise ValueError(f"{listing}: holds no clip; run experiments.sample --out {folder} again")
    return records


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
    frames, fps, stored = video.stream(record.path)
    facts = {**stored, **record.facts}
    clip = _measure(frames, fps, facts.get("truth"))
    reference = None
    if record.reference is not None:
        shown = record.reference()
        reference = _measure(shown.frames, shown.fps, None)
    expected = {name: int(facts[name]) for name in ANSWERS} if all(n in facts for n in ANSWERS) else None
    return ClipResult(record, facts, clip, reference, classify(clip.metrics), expected)


def _measure(frames: Iterable[np.ndarray], fps: float, truth: Mapping[str, Any] | None) -> Measured:
    kept: list[np.ndarray] = []
    size = [0, 0]

    def watched() -> Iterator[np.ndarray]:
        stride = 1
        for index, frame in enumerate(frames):
            size[:] = frame.shape[:2]
            if index % stride == 0:
                kept.append(_thumbnail(frame))
                if len(kept) == _THUMBNAILS:
                    del kept[1::2]
                    stride *= 2
            yield frame

    curves, metrics = curves_and_metrics(watched(), fps=fps, truth=truth)
    return Measured(metrics, curves, fps, (size[0], size[1]), kept)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    scale = min(1.0, _THUMBNAIL / max(frame.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _score(clips: Sequence[ClipResult]) -> dict[str, Any]:
    """Right clips and answers, with the 95 % interval of the share (Wilson, 1927)."""
    stated = [c for c in clips if c.expected]
    right, n = sum(bool(c.correct) for c in stated), len(stated)
    out: dict[str, Any] = {"correct": right, "of": n}
    out |= {name: sum(c.right[name] for c in stated) for name in ANSWERS}
    if n:
        z = 1.96
        middle = (right + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * (right * (n - right) / n + z**2 / 4) ** 0.5
        out["interval_95"] = [max(0.0, middle - half), min(1.0, middle + half)]
    return out


def _means(clips: Sequence[ClipResult]) -> dict[str, dict[str, Any]]:
    """Mean of every metric over clips, its 95 % interval by bootstrap over them, and the references' mean.

    Of slopes and rates it is the mean of the magnitude: left and right would cancel.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, unit in UNITS.items():
        values = np.abs([c.clip.metrics[name] for c in clips if name in c.clip.metrics])
        if not len(values):
            continue
        draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
        low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
        out[name] = {"mean": float(values.mean()), "interval_95": [float(low), float(high)]}
        out[name] |= {"clips": len(values), "unit": unit}
        known = [abs(c.reference.metrics[name]) for c in clips if c.reference and name in c.reference.metrics]
        if known:
            out[name]["reference_mean"] = float(np.mean(known))
    return out


def _curves(curves: LightCurves) -> dict[str, list[float]]:
    tracks = {
        "seconds": curves.seconds,
        "log_luminance": curves.log_luminance,
        "mired": curves.mired,
        "sweep_seconds": curves.sweep.seconds,
        "sweep_position": curves.sweep.position,
        "sweep_weight": curves.sweep.weight,
    }
    return {name: [round(float(v), 5) for v in values] for name, values in tracks.items()}
