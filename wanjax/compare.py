"""Two sets of clips, pair by pair: what differs, how surely, and whether one may be called better.

The rule (docs/light.md): a method that freezes the light wins every flicker score, so "better" means that flicker
falls *and* that the light's path is kept.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wanjax.evaluate import SHORTEST, ClipResult, Evaluation, Measured
from wanjax.light.metrics import GROUND_TRUTH, SWEEP_MASS_THRESHOLD, UNITS
from wanjax.uncertainty import bootstrap_interval, holm, sign_flip_p

__all__ = [
    "FLICKER",
    "KEPT_MARGINS",
    "LEAST_PAIRS",
    "LEVEL",
    "Comparison",
    "Difference",
    "Verdict",
    "compare",
]

FLICKER = ("global_flicker", "local_flicker", "common_flicker")
"""What must fall: at least one of them, and none may rise."""

LEVEL = 0.05
LEAST_PAIRS = 7
"""Below this many pairs the sign-flip test cannot reach 0.05 on three measures at once (3 * 2 / 2^n)."""

KEPT_MARGINS = {"exposure_slope_error": 0.05, "cct_slope_error": 5.0}
"""Against the originals: the 95 % interval of how far the path moved must stay below this, in stops/s and mired/s.

A fifth of the slope from which a clip counts as brightening, and about the smallest step of colour that is seen. The
sweep is left out: under a moving camera it is not one of the light's.
"""

_PATHS = {"exposure_slope_error": "exposure_slope", "cct_slope_error": "cct_drift", "sweep_rate_error": "sweep_rate"}
_HIGHER_IS_BETTER = ("shadow_iou", "vbench_temporal_flickering")
_MISSED = "caption_missed"
_LOWER_IS_BETTER = (_MISSED, "flash_rate", "cct_jitter")


@dataclass(frozen=True)
class Difference:
    """One measure over all pairs that have it: of slopes and rates the magnitude, of errors the error.

    Attributes:
      name, unit: of the measure.
      pairs: how many.
      mean, against: its mean over each side of them.
      difference: mean of clip minus partner.
      interval: 95 % bootstrap interval of that over pairs; None for one pair.
      p: of the paired sign-flip test, two-sided, of this measure alone.
      better: ``lower``, ``higher``, or nothing where neither is.
    """

    name: str
    unit: str
    pairs: int
    mean: float
    against: float
    difference: float
    interval: list[float] | None
    p: float
    better: str

    @property
    def relative(self) -> float | None:
        """The difference as a share of the partners' mean."""
        return self.difference / self.against if self.against else None

    def moved(self, p: float | None = None) -> int:
        """-1 where it fell, 1 where it rose, 0 where that is not sure (by interval and test both)."""
        if self.interval is None or (self.p if p is None else p) >= LEVEL:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "unit": self.unit, "pairs": self.pairs, "mean": self.mean, "against_mean": self.against,
            "difference": self.difference, "relative": self.relative, "interval_95": self.interval,
            "p_value": self.p, "better": self.better or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What may be said: ``outcome`` is better, worse, not_better, not_shown or undecided; ``words`` and ``reasons``."""

    outcome: str
    words: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, their pairs and what differs.

    Attributes:
      clips, against: the two sets.
      rule: what made pairs, in words.
      pairs: (clip, partner) each.
      unpaired: {"file", "reason"} of clips that are in no pair.
      differences: of every metric that both sides have.
      path: errors of the light's path, where something says what it should be.
      path_against: what that is, in words; empty where nothing is.
      verdict: what may be said.
    """

    clips: Evaluation
    against: Evaluation
    rule: str
    pairs: list[tuple[ClipResult, ClipResult]]
    unpaired: list[dict[str, str]]
    differences: list[Difference]
    path: list[Difference]
    path_against: str
    verdict: Verdict

    def summary(self) -> dict[str, Any]:
        """As JSON; the clips of ``against`` are in it too."""
        return {
            "against": self.against.summary(),
            "paired_by": self.rule,
            "pairs": [{"file": str(a.record.path), "against": str(b.record.path)} for a, b in self.pairs],
            "unpaired": self.unpaired,
            "metrics": {d.name: d.summary() for d in self.differences},
            "path": {"against": self.path_against or None, "errors": {d.name: d.summary() for d in self.path}},
            "verdict": {
                "outcome": self.verdict.outcome,
                "words": self.verdict.words,
                "reasons": list(self.verdict.reasons),
            },
        }


def compare(clips: Evaluation, against: Evaluation, *, pair_by: str = "auto", original: bool = False) -> Comparison:
    """Pairs two sets and tests every measure.

    Args:
      clips: the set that is judged.
      against: the set that it is held against.
      pair_by: ``prompt`` (prompt and seed), ``name`` (of the file), or ``auto``: prompt and seed where every clip has
        them and no two of a set share them.
      original: ``against`` holds the very clips that ``clips`` were made from, so their light's path is the one to
        keep. Else the path is held against ground truth, or where there is none against each clip's reference.

    Raises ValueError where no pair is found, which says what to do.
    """
    rule, pairs, unpaired = _paired(clips, against, pair_by)
    if not pairs:
        raise ValueError(
            f"{clips.name} and {against.name}: no pair of clips by {rule}"
            + (f" ({unpaired[0]['file']}: {unpaired[0]['reason']})" if unpaired else "")
            + "; give both sets the same file names, or prompts and seeds, and choose with --pair_by"
        )
    differences = [
        _difference(name, unit, [(abs(a.clip.metrics[name]), abs(b.clip.metrics[name])) for a, b in have])
        for name, unit in UNITS.items()
        if name != "frames" and (have := [p for p in pairs if all(name in side.clip.metrics for side in p)])
    ]
    errors = [_errors(a, b, original) for a, b in pairs]
    names = dict.fromkeys(name for pair in errors for name in pair)
    path = [_difference(name, UNITS.get(name, "share"), [e[name] for e in errors if name in e]) for name in names]
    held = {"the clips of " + against.name} if original else {_path_source(a) for a, _ in pairs} - {""}
    verdict = _verdict(clips.name, against.name, differences, path, len(pairs), original)
    return Comparison(
        clips, against, rule, pairs, unpaired, differences, path, " or ".join(sorted(held)) if path else "", verdict
    )


def _paired(
    a: Evaluation, b: Evaluation, by: str
) -> tuple[str, list[tuple[ClipResult, ClipResult]], list[dict[str, str]]]:
    keys = [_prompt_keys(side.clips) for side in (a, b)]
    rule = "prompt and seed"
    if by == "prompt":
        for side, found in zip((a, b), keys, strict=True):
            if found is None:
                raise ValueError(
                    f"{side.name}: not every clip has a prompt and a seed of its own; pair by file name instead"
                )
    elif by == "name" or None in keys or not (set(keys[0] or ()) & set(keys[1] or ())):
        rule, keys = "file name", [_name_keys(side.clips) for side in (a, b)]
    first, second = keys[0] or {}, keys[1] or {}
    pairs: list[tuple[ClipResult, ClipResult]] = []
    unpaired: list[dict[str, str]] = []
    for key, clip in first.items():
        partner = second.get(key)
        reason = f"no partner in {b.name} by {rule}" if partner is None else _unlike(clip, partner)
        if partner is None or reason:
            unpaired.append({"file": str(clip.record.path), "reason": reason})
        else:
            pairs.append((clip, partner))
    unpaired += [
        {"file": str(clip.record.path), "reason": f"no partner in {a.name} by {rule}"}
        for key, clip in second.items()
        if key not in first
    ]
    return rule, pairs, unpaired


def _prompt_keys(clips: Sequence[ClipResult]) -> dict[Hashable, ClipResult] | None:
    if not all("prompt" in c.facts and "seed" in c.facts for c in clips):
        return None
    found: dict[Hashable, ClipResult] = {(str(c.facts["prompt"]), str(c.facts["seed"])): c for c in clips}
    return found if len(found) == len(clips) else None


def _name_keys(clips: Sequence[ClipResult]) -> dict[Hashable, ClipResult]:
    """By file name without its ending; by the path below the folder that all share, where names repeat."""
    names: dict[Hashable, ClipResult] = {c.record.path.stem: c for c in clips}
    if len(names) == len(clips):
        return names
    top = os.path.commonpath([c.record.path.parent for c in clips])
    return {os.path.splitext(os.path.relpath(c.record.path, top))[0]: c for c in clips}


def _unlike(a: ClipResult, b: ClipResult) -> str:
    """Why two clips cannot be compared, or nothing."""
    if abs(a.clip.fps / b.clip.fps - 1) > 0.01:
        return f"{a.clip.fps:g} frames per second, its partner {b.clip.fps:g}: flicker depends on the spacing"
    if min(side.clip.metrics["frames"] for side in (a, b)) < SHORTEST:
        return f"fewer than {SHORTEST} frames, here or in its partner"
    return ""


def _path_source(result: ClipResult) -> str:
    if not GROUND_TRUTH.isdisjoint(result.clip.metrics):
        return "ground truth"
    if result.reference is not None:
        return "the rendered reference"
    return "the caption" if result.expected else ""


def _errors(a: ClipResult, b: ClipResult, original: bool) -> dict[str, tuple[float, float]]:
    """Errors of the light's path of a clip and of its partner, for what both have."""
    if original:
        return {name: (_path_gap(name, a.clip, b.clip), 0.0) for name in KEPT_MARGINS}
    sides = [_own_errors(side) for side in (a, b)]
    return {name: (value, sides[1][name]) for name, value in sides[0].items() if name in sides[1]}


def _own_errors(result: ClipResult) -> dict[str, float]:
    metrics = result.clip.metrics
    errors = {name: abs(value) for name, value in metrics.items() if name in GROUND_TRUTH}
    if not errors and result.reference is not None:
        errors = {name: _path_gap(name, result.clip, result.reference) for name in _PATHS}
    if result.correct is not None:
        errors[_MISSED] = float(not result.correct)
    return errors


def _path_gap(name: str, a: Measured, b: Measured) -> float:
    values = []
    for side in (a, b):
        value = side.metrics[_PATHS[name]]
        # A centroid of next to nothing wanders; a clip without a sweep has rate 0.
        still = name == "sweep_rate_error" and side.metrics["sweep_mass"] < SWEEP_MASS_THRESHOLD
        values.append(0.0 if still else value)
    return abs(values[0] - values[1])


def _difference(name: str, unit: str, values: Sequence[tuple[float, float]]) -> Difference:
    a, b = np.array(values, np.float64).T
    lower = name in (*FLICKER, *GROUND_TRUTH, *_LOWER_IS_BETTER)
    better = "higher" if name in _HIGHER_IS_BETTER else "lower" if lower else ""
    return Difference(
        name, unit, len(values), float(a.mean()), float(b.mean()), float((a - b).mean()),
        bootstrap_interval(a - b, draws=5000), sign_flip_p(a - b), better,
    )  # fmt: skip


def _verdict(
    a: str, b: str, differences: Sequence[Difference], path: Sequence[Difference], pairs: int, original: bool
) -> Verdict:
    if pairs < LEAST_PAIRS:
        return Verdict(
            "undecided",
            f"Undecided: {pairs} pair{'s' if pairs > 1 else ''} of clips cannot tell; it takes {LEAST_PAIRS} or more.",
            (f"The paired test cannot reach p = {LEVEL} on three measures of flicker with fewer.",),
        )
    flicker = [d for d in differences if d.name in FLICKER]
    moves = [d.moved(p) for d, p in zip(flicker, holm([d.p for d in flicker]), strict=True)]
    falls = [d for d, move in zip(flicker, moves, strict=True) if move < 0]
    rises = [d for d, move in zip(flicker, moves, strict=True) if move > 0]
    reasons = [_said(d, "falls") for d in falls] + [_said(d, "rises") for d in rises]
    if not falls and not rises:
        reasons.append(f"No measure of flicker differs surely: {_listed(flicker)}.")
    worse, told = _path_worse(path, original, b)
    reasons += told
    if rises or (worse and not falls):
        what = " and ".join((["flicker rises"] if rises else []) + (["the light's path is worse"] if worse else []))
        mixed = " in one measure and falls in another" if rises and falls else ""
        return Verdict("worse", f"{a} is not better than {b}: {what}{mixed}.", tuple(reasons))
    if not falls:
        return Verdict("not_shown", f"{a} is not shown to flicker less than {b}.", tuple(reasons))
    if not path:
        return Verdict(
            "undecided",
            f"Undecided: {a} flickers less than {b}, but nothing says what its light should have done.",
            (
                *reasons,
                "Give ground truth, references or captions' answers; where these clips were made from those, compare "
                "with --against_is original.",
            ),
        )
    if worse:
        return Verdict(
            "not_better",
            f"{a} is not better than {b}: flicker falls, but at the cost of the light's path.",
            tuple(reasons),
        )
    return Verdict("better", f"{a} is better than {b}: flicker falls, and the light's path is kept.", tuple(reasons))


def _path_worse(path: Sequence[Difference], original: bool, b: str) -> tuple[bool, list[str]]:
    """Whether the light's path is worse, and the sentences that say so."""
    if original:
        ends = {d.name: d.interval[1] if d.interval else float("inf") for d in path}
        beyond = [d for d in path if ends[d.name] >= KEPT_MARGINS[d.name]]
        if beyond:
            return True, [
                f"{d.name} against {b} is {_short(d.mean)} {d.unit} and may be {_short(ends[d.name])}; it has to stay "
                f"below {KEPT_MARGINS[d.name]:g}."
                for d in beyond
            ]
        kept = "; ".join(f"{d.name} below {_short(ends[d.name])} {d.unit}, of {KEPT_MARGINS[d.name]:g}" for d in path)
        return False, [f"The light's path is that of {b}, within the margins: {kept}."]
    worse = [d for d in path if d.moved() == (-1 if d.better == "higher" else 1)]
    if worse:
        return True, [_said(d, "is worse") for d in worse]
    if not path:
        return False, []
    return False, [f"The light's path is not surely worse: {_listed(path)}."]


def _said(d: Difference, verb: str) -> str:
    share = f" ({100 * d.relative:+.0f} %)".replace("-", "−") if d.relative is not None else ""
    return f"{d.name} {verb}: {_short(d.against)} → {_short(d.mean)} {d.unit}{share}, by {_range(d)}, p = {d.p:.2g}."


def _listed(differences: Sequence[Difference]) -> str:
    return "; ".join(f"{d.name} {_range(d)}" for d in differences)


def _range(d: Difference) -> str:
    if d.interval is None:
        return f"{_short(d.difference, '+')} {d.unit}"
    low, high = (_short(end, "+") for end in d.interval)
    return f"{_short(d.difference, '+')} [{low}, {high}] {d.unit}"


def _short(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}".replace("-", "−")
