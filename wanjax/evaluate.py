"""Clips to measurements: every clip measured, held against its caption, and summed up with its uncertainty.

A caption states two things that can be checked on a clip with a layout of its own: whether it gets brighter,
darker or stays (``exposure_change``), and which way its light sweeps (``sweep``); it may state more
(:data:`wanjax.clip_records.OPTIONAL_ANSWERS`). A clip is right if all that is scored is
(:mod:`wanjax.scoring`). docs/evaluate.md lists what the JSON holds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wanjax import video
from wanjax.clip_records import (
    ANSWERS,
    ClipRecord,
    Reference,
    check_answers,
    records_of_samples,
    records_of_videos,
)
from wanjax.light.answers import COLOR_THRESHOLD, classify_optional
from wanjax.light.metrics import (
    EXPOSURE_THRESHOLD,
    SWEEP_MASS_THRESHOLD,
    SWEEP_RATE_THRESHOLD,
    UNITS,
    classify,
)
from wanjax.measured import Measured, curves_of, measured
from wanjax.scoring import (
    check_estimator,
    expected_answers,
    kind_of,
    score,
    scored_answers,
    shuffled_control,
    stated_answers,
)
from wanjax.uncertainty import bootstrap_interval

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
    "shuffled_control",
    "write_text",
]

SCHEMA = 2
"""Version of the JSON's layout; keys are added, not renamed."""

SHORTEST = 3
"""Frames below which a clip has no second difference: it is shown, and left out of means and tests."""


@dataclass(frozen=True)
class Rendered:
    """A reference's answers beside what the caption states, as in :class:`ClipResult`."""

    answers: dict[str, int]
    expected: dict[str, int] | None

    @property
    def right(self) -> dict[str, bool]:
        return {name: self.answers[name] == value for name, value in (self.expected or {}).items()}

    @property
    def correct(self) -> bool | None:
        return all(self.right.values()) if self.expected else None


@dataclass(frozen=True)
class ClipResult:
    """A clip, what was measured on it and on its reference, and whether it is what its caption says.

    ``answers`` are read off the clip, ``expected`` those that it is scored on, ``unscored`` others that its caption
    states. ``file`` is what the file says of itself, ``notes`` what a reader of the numbers has to know of it.
    """

    record: ClipRecord
    facts: dict[str, Any]
    clip: Measured
    reference: Measured | None
    answers: dict[str, int]
    expected: dict[str, int] | None
    file: video.Probe | None = None
    notes: tuple[str, ...] = ()
    unscored: dict[str, int] = field(default_factory=dict)

    @property
    def right(self) -> dict[str, bool]:
        """Per scored answer; empty where the caption states none."""
        return {name: self.answers[name] == value for name, value in (self.expected or {}).items()}

    @property
    def correct(self) -> bool | None:
        return all(self.right.values()) if self.expected else None

    @property
    def name(self) -> str:
        return self.record.path.name

    @property
    def rendered(self) -> Rendered | None:
        """What the same estimator reads off the clip's reference, held against the same caption."""
        if self.reference is None:
            return None
        return Rendered(_answers(self.reference.metrics, self.answers), self.expected)

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
            "unscored": self.unscored,
            "flicker_hotspot": self.clip.hotspot,
            "stream": dataclasses.asdict(self.file) if self.file else None,
            "notes": list(self.notes),
        }
        out["curves"] = curves_of(self.clip.curves)
        if self.reference is not None:
            out["reference"] = {"metrics": self.reference.metrics, "curves": curves_of(self.reference.curves)}
        if self.rendered is not None:
            out["reference"] |= {"answers": self.rendered.answers, "right": self.rendered.right}
        return out


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one set of clips. ``unreadable`` holds {"file", "error"} of files that could not be."""

    clips: list[ClipResult]
    unreadable: list[dict[str, str]]
    estimator: dict[str, dict[str, Any]] | None = None
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

    def scenario_scores(self, members: Sequence[int]) -> dict[str, Any]:
        """``score`` of some of the clips and ``rendered``, that of their references; None where nothing is stated."""
        clips = [self.clips[i] for i in members]
        rendered = [c.rendered for c in clips if c.rendered is not None and c.expected]
        return {
            "score": score(clips) if any(c.expected for c in clips) else None,
            "rendered": score(rendered) if rendered else None,
        }

    def summary(self) -> dict[str, Any]:
        """As JSON: score, control, families, estimator's own check, thresholds, units, and every clip."""
        stated = [c for c in self.clips if c.expected]
        families = dict.fromkeys(kind_of(c.facts) for c in self.clips if "family" in c.facts)
        groups = {f: [c for c in self.clips if kind_of(c.facts) == f] for f in families}
        return {
            "schema": SCHEMA,
            "name": self.name,
            "clips_measured": len(self.clips),
            "clips_refused": len(self.unreadable),
            "score": score(stated) if stated else None,
            "shuffled_captions": shuffled_control(stated) if stated else None,
            "languages": {
                str(name): score([c for c in stated if c.facts.get("language") == name])
                for name in sorted({str(c.facts["language"]) for c in stated if "language" in c.facts})
            },
            "families": {f: {"score": score(g), "metrics": _means(g)} for f, g in groups.items()},
            "metrics": _means(self.clips),
            "scenarios": [
                {"name": key, "clips": members, **self.scenario_scores(members)}
                | {"metrics": _means([self.clips[i] for i in members])}
                for key, members in self.scenarios().items()
            ],
            "estimator": self.estimator,
            "scored_answers": [*ANSWERS, *sorted(scored_answers(self.estimator))],
            "thresholds": {
                "exposure_slope": {"value": EXPOSURE_THRESHOLD, "unit": UNITS["exposure_slope"]},
                "sweep_mass": {"value": SWEEP_MASS_THRESHOLD, "unit": UNITS["sweep_mass"]},
                "sweep_rate": {"value": SWEEP_RATE_THRESHOLD, "unit": UNITS["sweep_rate"]},
                "cct_drift": {"value": COLOR_THRESHOLD, "unit": UNITS["cct_drift"]},
            },
            "units": UNITS,
            "unreadable": self.unreadable,
            "clips": [c.summary() for c in self.clips],
        }


def evaluate_clips(
    records: Iterable[ClipRecord],
    *,
    estimator: dict[str, dict[str, Any]] | None = None,
    report: Callable[[str], None] = lambda line: None,
    name: str = "clips",
) -> Evaluation:
    """Measures clips one after the other; one that cannot be is named with its reason, and the others go on.

    Args:
      records: the clips.
      estimator: what :func:`check_estimator` returned; says which optional answers are scored.
      report: called with a line of text per clip.
      name: what this set of clips is called.
    """
    clips, unreadable = [], []
    optional = scored_answers(estimator)
    for record in records:
        try:
            result = _evaluate(record, optional)
        except (ValueError, OSError) as error:
            unreadable.append({"file": str(record.path), "error": str(error)})
            report(f"not measured: {error}")
            continue
        clips.append(result)
        verdict = {None: "", True: " right", False: " wrong"}[result.correct]
        slope, rate = (result.clip.metrics[name] for name in ("exposure_slope", "sweep_rate"))
        report(f"{record.path.name}: {slope:+.2f} stops/s, sweep {rate:+.3f} widths/s{verdict}")
    return Evaluation(clips, unreadable, estimator, name=name)


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


def _evaluate(record: ClipRecord, optional: Collection[str]) -> ClipResult:
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
    check_answers(facts, f"{path}: its fact ")
    more = stated_answers(facts)
    truth = facts.get("truth")
    if truth is not None and not isinstance(truth, Mapping):
        raise ValueError(f"{path}: its fact truth = {truth!r}: expected an object such as {{\"exposure_slope\": 0.5}}")
    clip = measured(frames, file.fps, truth, look_for=more, hdr=bool(file.hdr))
    reference = None
    if record.reference is not None:
        shown = record.reference()
        reference = measured(shown.frames, shown.fps, None, look_for=more)
    expected = expected_answers(facts)
    if expected is not None:
        expected |= {name: value for name, value in more.items() if name in optional}
    unscored = {name: value for name, value in more.items() if name not in (expected or {})}
    answers = _answers(clip.metrics, more)
    notes = _notes(file, int(clip.metrics["frames"]))
    return ClipResult(record, facts, clip, reference, answers, expected, file, notes, unscored)


def _answers(metrics: Mapping[str, float], names: Collection[str]) -> dict[str, int]:
    """Both answers, and of the optional ones those of ``names``."""
    return classify(metrics) | {n: value for n, value in classify_optional(metrics).items() if n in names}


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


def _means(clips: Sequence[ClipResult]) -> dict[str, dict[str, Any]]:
    """Mean of every metric over clips of three or more frames, its 95 % interval, and the references' mean.

    Of slopes and rates it is the mean of the magnitude: left and right would cancel. A walker's shadow has no left and
    right, but a right and a wrong way.
    """
    out: dict[str, dict[str, Any]] = {}
    long = [c for c in clips if c.clip.metrics["frames"] >= SHORTEST]
    for name, unit in UNITS.items():
        size = float if name.startswith("shadow_") else abs
        values = np.array([size(c.clip.metrics[name]) for c in long if name in c.clip.metrics])
        if not len(values):
            continue
        out[name] = {"mean": float(values.mean()), "interval_95": bootstrap_interval(values)}
        out[name] |= {"clips": len(values), "unit": unit}
        known = [size(c.reference.metrics[name]) for c in long if c.reference and name in c.reference.metrics]
        if known:
            out[name]["reference_mean"] = float(np.mean(known))
    return out
