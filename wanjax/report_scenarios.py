"""Clips of one scenario or caption beside each other on the report's page, and beside what was rendered for it."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wanjax.clip_records import ANSWERS, OPTIONAL_ANSWERS
from wanjax.evaluate import ClipResult, Evaluation
from wanjax.light.metrics import UNITS
from wanjax.report_clips import WORDS, again
from wanjax.report_tables import LANGUAGES, OPTIONAL_NAMES, number, share, table

__all__ = ["ANSWER_NAMES", "scenarios"]

ANSWER_NAMES = {
    "exposure_change": "brightness",
    "sweep": "sweep",
    **OPTIONAL_NAMES,
}
"""What the answers are called in headers of tables."""

_MEASURES = {
    "exposure_slope": "exposure",
    "cct_drift": "color",
    "sweep_rate": "sweep",
    "glint_rate": "glints",
    "shadow_swing": "swing",
    "shadow_passing": "passing",
    "global_flicker": "global flicker",
    "common_flicker": "common flicker",
}


def scenarios(evaluation: Evaluation, summary: Mapping[str, Any], shown: set[int]) -> str:
    """Every scenario of an evaluation and of its ``summary``; ``shown`` are the clips that have a card."""
    entries = summary["scenarios"]
    if not entries:
        return ""
    parts = [_scenario(entry, [(i, evaluation.clips[i]) for i in entry["clips"]], shown) for entry in entries]
    note = "Clips of one scenario or one caption beside each other, the rendered reference first where there is one."
    if any(c.reference for c in evaluation.clips):
        note += " In blue: the same measurement on the rendered clip."
    return f'<h2 id="scenarios">Scenarios side by side</h2><p>{note}</p>{"".join(parts)}'


def _scenario(entry: Mapping[str, Any], members: Sequence[tuple[int, ClipResult]], shown: set[int]) -> str:
    name = entry["name"]
    prompts = list(dict.fromkeys(str(c.facts["prompt"]) for _, c in members if c.facts.get("prompt")))
    names = [n for n in (*ANSWERS, *OPTIONAL_ANSWERS) if any(n in c.answers for _, c in members)]
    measures = [m for m in _MEASURES if any(m in c.clip.metrics for _, c in members)]
    figures, rows, scenes = [], [], set()
    for index, result in members:
        label = _label(result, prompts)
        scene = result.facts.get("scene", index)
        if index in shown:
            if result.reference is not None and scene not in scenes:
                figures.append(again(f"v{index}-reference", "rendered", result.reference))
            figures.append(again(f"v{index}-clip", label, result.clip))
        scenes.add(scene)
        link = f"<a href=#clip-{index}>{html.escape(label)}</a>" if index in shown else html.escape(label)
        rows.append([link, *(_answer(n, result) for n in names), *(_measured(m, result) for m in measures)])
    if len(members) > 1:
        rows.append(["all", *(_right(n, entry) for n in names), *(_mean(m, entry) for m in measures)])
    said = "".join(f"<li>{html.escape(p)}</li>" for p in prompts if p != name)
    said = f'<ul class="plain">{said}</ul>' if said else ""
    title = html.escape(name if name in prompts else name.replace("_", " "))
    units = [f", {UNITS[m].removeprefix('frame ')}" if UNITS[m] else "" for m in measures]
    head = ["", *(ANSWER_NAMES[n] for n in names), *(_MEASURES[m] + u for m, u in zip(measures, units, strict=True))]
    return (
        f'<section class="scenario"><h3 class="caption">{title}</h3>{_verdict(entry)}{said}'
        f'<div class="row">{"".join(figures)}</div>'
        f"{table(head, rows, escaped=True, caption=f'Clips of {name}')}</section>"
    )


def _verdict(entry: Mapping[str, Any]) -> str:
    """How many clips do all that their captions state and that is scored."""
    score, rendered = entry["score"], entry["rendered"]
    if not score:
        return ""
    beside = f"; rendered {rendered['correct']} of {rendered['of']}" if rendered else ""
    return f"<p><b>{score['correct']} of {score['of']}</b> as captioned ({share(score)}){beside}</p>"


def _answer(name: str, result: ClipResult) -> str:
    """✓ or ✗ where it is scored, and what the rendered clip shows below."""
    if name not in result.answers:
        return "–"

    def words(answers: Mapping[str, int], right: Mapping[str, bool]) -> str:
        mark = {True: "✓ ", False: "✗ "}[right[name]] if name in right else ""
        return f"{mark}{WORDS[name][answers[name]]}"

    own = words(result.answers, result.right) + (" (not scored)" if name in result.unscored else "")
    rendered = result.rendered
    return own + _below(words(rendered.answers, rendered.right) if rendered else "")


def _measured(name: str, result: ClipResult) -> str:
    if name not in result.clip.metrics:
        return "–"
    known = result.reference.metrics.get(name) if result.reference else None
    return number(result.clip.metrics[name]) + _below("" if known is None else number(known))


def _right(name: str, entry: Mapping[str, Any]) -> str:
    """How many clips are right, with the interval; of the rendered ones below."""

    def counted(score: Mapping[str, Any] | None, words: Callable[[Mapping[str, Any]], str]) -> str:
        found = (score or {}).get("answers", {}).get(name)
        return f"{found['correct']} of {found['of']}{words(found)}" if found else ""

    own = counted(entry["score"], lambda found: f" <small>({_percents(found)})</small>")
    return (own or "–") + _below(counted(entry["rendered"], lambda found: ""))


def _percents(score: Mapping[str, Any]) -> str:
    low, high = score["interval_95"]
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def _mean(name: str, entry: Mapping[str, Any]) -> str:
    """Mean of the magnitude ± half of its interval; of the rendered clips below."""
    found = entry["metrics"].get(name)
    if not found:
        return "–"
    half = ""
    if found["interval_95"]:
        low, high = found["interval_95"]
        half = f" <small>± {number((high - low) / 2, digits=2)}</small>"
    known = found.get("reference_mean")
    return f"{number(found['mean'])}{half}" + _below("" if known is None else number(known))


def _below(text: str) -> str:
    return f"<div>{text}</div>" if text else ""


def _label(result: ClipResult, prompts: Sequence[str]) -> str:
    """What tells a clip from its neighbours: language, seed, else its file's name."""
    facts, parts = result.facts, []
    if len(prompts) > 1 and facts.get("language"):
        parts.append(LANGUAGES.get(str(facts["language"]), str(facts["language"])))
    if "seed" in facts:
        parts.append(f"seed {facts['seed']}")
    return ", ".join(parts) or result.name
