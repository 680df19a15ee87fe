"""What captions state against what clips show: right or wrong, how sure, and whether the estimator may say so.

Two answers are always scored, where a caption states both: ``exposure_change`` and, but on water, ``sweep``. The others
(:data:`wanjax.clip_records.OPTIONAL_ANSWERS`) are scored where a clip states them and the estimator has just been right
on rendered clips, whose answers are known; else they are shown and not scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from wanjax.clip_records import ANSWERS, OPTIONAL_ANSWERS
from wanjax.light.answers import classify_optional
from wanjax.light.metrics import classify, measure
from wanjax.uncertainty import wilson_interval

__all__ = [
    "LEAST_RIGHT",
    "check_estimator",
    "expected_answers",
    "kind_of",
    "score",
    "scored_answers",
    "shuffled_control",
    "stated_answers",
]

LEAST_RIGHT = 0.95
"""Share of rendered clips that an estimator has to be right on before it scores; of a control it may take the rest."""

_DIRECTIONAL = ("color_change", "glints")  # a clip played backwards shows the opposite


class Answered(Protocol):
    """A clip with what was read off it and what its caption states, as :class:`wanjax.evaluate.ClipResult`."""

    @property
    def answers(self) -> Mapping[str, int]: ...
    @property
    def expected(self) -> Mapping[str, int] | None: ...
    @property
    def right(self) -> Mapping[str, bool]: ...
    @property
    def correct(self) -> bool | None: ...


def kind_of(facts: Mapping[str, Any]) -> str:
    """``family`` or ``family/variant`` of a clip, empty where its facts name none."""
    family, variant = str(facts.get("family") or ""), str(facts.get("variant") or "")
    return f"{family}/{variant}" if family and variant else family


def expected_answers(facts: Mapping[str, Any]) -> dict[str, int] | None:
    """What a clip is scored on of :data:`ANSWERS`; None unless its facts hold both.

    ``sweep`` is the light's over surfaces that stand still. Of a clip whose glints run over water it says nothing.
    """
    if not all(name in facts for name in ANSWERS):
        return None
    return {name: int(facts[name]) for name in ANSWERS if not (name == "sweep" and facts.get("glints"))}


def stated_answers(facts: Mapping[str, Any], *, steady: bool = False) -> dict[str, int]:
    """The optional answers that a clip's facts state; 0 states none, but with ``steady`` a color that stays."""
    stated = {name: int(facts[name]) for name in OPTIONAL_ANSWERS if facts.get(name) is not None}
    return {name: value for name, value in stated.items() if value or (steady and name == "color_change")}


def check_estimator(
    clips: Iterable[tuple[np.ndarray, float, Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Runs the estimator on rendered clips, whose answers are known, forwards and played backwards.

    Args:
      clips: (frames [T, H, W, 3], fps, facts) each; facts with ``family``, ``exposure_change``, ``sweep``, and what the
        clip has of ``variant`` and the optional answers. With ``control`` the clip is a fault of that name: none of
        the optional answers that it states may be read off it.

    Returns:
      Per family or family/variant: ``clips``, and of them right ``forward`` and ``backward`` in both answers (of water,
      in exposure).
      Backwards, light that changes changes the other way, so next to none may be right, except where nothing changes.
      Where clips state optional answers also ``answers``: per answer ``of`` clips ``right``, and under ``controls`` the
      same of each control, which are to be few; playing backwards is one for answers with a direction.
    """
    counts: dict[str, dict[str, Any]] = {}
    for frames, fps, facts in clips:
        family = counts.setdefault(kind_of(facts), {"clips": 0, "forward": 0, "backward": 0})
        optional = stated_answers(facts, steady=True)
        metrics = measure(frames, fps=fps, look_for=optional)
        read = classify_optional(metrics)
        if control := facts.get("control"):
            for name, value in optional.items():
                _control(_entry(family, name), str(control), read[name] == value)
            continue
        backwards = measure(frames[::-1], fps=fps, look_for=optional)
        expected = expected_answers(facts) or {}
        family["clips"] += 1
        family["forward"] += expected.items() <= classify(metrics).items()
        family["backward"] += expected.items() <= classify(backwards).items()
        for name, value in optional.items():
            entry = _entry(family, name)
            entry["of"] += 1
            entry["right"] += read[name] == value
            if name in _DIRECTIONAL and value:
                _control(entry, "played backwards", classify_optional(backwards)[name] == value)
    return counts


def _entry(family: dict[str, Any], name: str) -> dict[str, Any]:
    return family.setdefault("answers", {}).setdefault(name, {"of": 0, "right": 0, "controls": {}})


def _control(entry: dict[str, Any], control: str, taken: bool) -> None:
    counted = entry["controls"].setdefault(control, {"of": 0, "right": 0})
    counted["of"] += 1
    counted["right"] += taken


def scored_answers(estimator: Mapping[str, Mapping[str, Any]] | None) -> frozenset[str]:
    """The optional answers that the estimator may score: those that :func:`check_estimator` found it right on.

    Right on at least :data:`LEAST_RIGHT` of the rendered clips that state the answer, all families together, and taking
    no more than the rest of the controls for right, each kind for itself. What was not checked, or against no control,
    is not scored.
    """
    passed = set()
    for name in OPTIONAL_ANSWERS:
        found = [f["answers"][name] for f in (estimator or {}).values() if name in f.get("answers", {})]
        of, right = (sum(entry[key] for entry in found) for key in ("of", "right"))
        controls: dict[str, np.ndarray] = {}
        for entry in found:
            for control, counted in entry["controls"].items():
                controls[control] = controls.get(control, np.zeros(2, int)) + (counted["of"], counted["right"])
        deceived = any(taken > (1 - LEAST_RIGHT) * tried for tried, taken in controls.values())
        if of and right >= LEAST_RIGHT * of and controls and not deceived:
            passed.add(name)
    return frozenset(passed)


def score(clips: Sequence[Answered]) -> dict[str, Any]:
    """Right clips and answers, with the 95 % intervals of the shares; clips whose captions state nothing do not count.

    Returns ``correct`` ``of`` clips, ``interval_95``, how many are right per answer of :data:`ANSWERS`, and under
    ``answers`` per answer that any clip states ``correct``, ``of`` and ``interval_95``.
    """
    stated = [c for c in clips if c.expected]
    right, n = sum(bool(c.correct) for c in stated), len(stated)
    out: dict[str, Any] = {"correct": right, "of": n}
    out |= {name: sum(c.right.get(name, False) for c in stated) for name in ANSWERS}
    if not n:
        return out
    out["interval_95"] = wilson_interval(right, n)
    out["answers"] = {}
    for name in (*ANSWERS, *OPTIONAL_ANSWERS):
        verdicts = [c.right[name] for c in stated if name in c.right]
        if verdicts:
            entry: dict[str, Any] = {"correct": sum(verdicts), "of": len(verdicts)}
            out["answers"][name] = entry | {"interval_95": wilson_interval(sum(verdicts), len(verdicts))}
    return out


def shuffled_control(clips: Sequence[Answered]) -> dict[str, Any]:
    """The score against other clips' captions, dealt so that exposure and sweep both differ from a clip's own.

    Every caption is dealt to one clip at most; clips for which none is left are not counted. An estimator
    that says yes to everything scores as well here as on the captions themselves. Optional answers do not count, nor do
    clips that are not scored on both.
    """
    clips = [c for c in clips if c.expected and all(name in c.expected for name in ANSWERS)]
    if not clips:
        return {"correct": 0, "of": 0}
    wanted = np.array([[c.expected[name] for name in ANSWERS] for c in clips if c.expected])
    differ = (wanted[:, None] != wanted[None, :]).all(axis=-1)
    # Random costs pick among the ways to deal; a pair that may not be costs more than all others together.
    costs = np.random.default_rng(0).random(differ.shape) + np.where(differ, 0, len(clips) + 1)
    rows, columns = linear_sum_assignment(costs)
    dealt = [(i, j) for i, j in zip(rows, columns, strict=True) if differ[i, j]]
    right = sum(tuple(wanted[j]) == tuple(clips[i].answers[name] for name in ANSWERS) for i, j in dealt)
    return {"correct": int(right), "of": len(dealt)}
