"""The report's front panel: what was measured, the verdict, the figures, and what to look at first."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from wanjax.compare import Comparison
from wanjax.evaluate import SHORTEST, ClipResult, Evaluation
from wanjax.light.metrics import UNITS
from wanjax.report_clips import MARKED, WORDS, place_words
from wanjax.report_tables import OPTIONAL_NAMES, number, plural, signed

__all__ = ["figures", "lead", "look_first", "refused", "verdict"]

_PEAK = 5.0  # flicker_peak from which a clip has one jump that stands out (docs/light.md)
_FLASHES = 3.0  # per second, WCAG 2
_VISIBLE = 0.03  # stops of common_flicker, about 2 %; below it nothing is pointed at
_LARGE = ("global_flicker", "common_flicker")
_DOING = {
    "exposure_change": "brighten, darken or stay steady as said",
    "sweep": "sweep the way that is said, or do not where nothing is",
    "color_change": "turn warmer or cooler as said",
    "glints": "have glints that run the way that is said",
    "shadow_follows": "have a shadow that follows the walker's feet",
}
_SIGNS = {"better": "✓", "worse": "✗", "not_better": "✗", "not_shown": "=", "undecided": "?"}


def lead(evaluation: Evaluation) -> str:
    """What the clips have in common."""
    clips = evaluation.clips
    if not clips:
        return "No clip could be measured."
    parts = [plural(len(clips), "clip")]
    sizes = {(len(c.clip.curves.seconds), *c.clip.size, c.clip.fps) for c in clips}
    if len(sizes) == 1:
        frames, height, width, fps = sizes.pop()
        parts.append(f"{width} × {height} pixels, {plural(frames, 'frame')} at {fps:g} per second")
    settings = [c.facts.get("settings") for c in clips]
    if isinstance(settings[0], Mapping) and all(s == settings[0] for s in settings):
        parts.append(", ".join(f"{name} {value}" for name, value in settings[0].items() if value not in ("", None)))
    return " · ".join(parts)


def verdict(comparison: Comparison | None) -> str:
    """The comparison's outcome in words."""
    if comparison is None:
        return ""
    said = comparison.verdict
    kind = {"better": "good", "worse": "bad", "not_better": "bad"}.get(said.outcome, "plain")
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in said.reasons)
    return (
        f'<section class="verdict {kind}" aria-label="Verdict"><p class="words"><span aria-hidden="true">'
        f'{_SIGNS[said.outcome]}</span> {html.escape(said.words)}</p><ul class="plain">{reasons}</ul></section>'
    )


def figures(summary: Mapping[str, Any], comparison: Comparison | None) -> str:
    """The few numbers that matter most, large."""
    score, shuffled, metrics = summary["score"], summary["shuffled_captions"], summary["metrics"]
    items: list[tuple[str, str]] = []
    if comparison is not None:
        shown = [(d, _percent(d.relative)) for d in comparison.differences if d.name in _LARGE]
        shown += [(d, signed(d.difference)) for d in comparison.path[:2]]
        items += [(head, f"{d.name}, {d.unit}: {number(d.against)} → {number(d.mean)}") for d, head in shown]
    elif score:
        low, high = score["interval_95"]
        n = score["of"]
        sure = f"(95 % interval {100 * low:.0f}–{100 * high:.0f} %)"
        items = [(f"{score['correct']} of {n}", f"do what their caption says: {_all_right(score)} {sure}")]
        items += [(f"{a['correct']} of {a['of']}", _DOING[name]) for name, a in score["answers"].items()]
        if shuffled["of"]:
            control = "against captions dealt to other clips: the control, to be low"
            items.append((f"{shuffled['correct']} of {shuffled['of']}", control))
        if entry := metrics.get("global_flicker"):
            known = f"; the rendered clips {number(entry['reference_mean'])}" if "reference_mean" in entry else ""
            items.append((number(entry["mean"]), f"stops of global flicker, mean{known}"))
    else:
        for name in ("global_flicker", "local_flicker", "common_flicker", "exposure_slope"):
            if entry := metrics.get(name):
                sure = " to ".join(number(v) for v in entry["interval_95"]) if entry["interval_95"] else ""
                label = f"{'|' * (name == 'exposure_slope')}{name}{'|' * (name == 'exposure_slope')}"
                items.append((number(entry["mean"]), f"{label}, {UNITS[name]}, mean{f' ({sure})' if sure else ''}"))
    cells = "".join(
        f"<li{' class=main' if i == 0 else ''}><b>{html.escape(head)}</b><span>{html.escape(text)}</span></li>"
        for i, (head, text) in enumerate(items)
    )
    return f'<ul class="figures">{cells}</ul>' if cells else ""


def _all_right(score: Mapping[str, Any]) -> str:
    more = [OPTIONAL_NAMES[name] for name in score["answers"] if name in OPTIONAL_NAMES]
    if not more:
        return "brightness and sweep both right"
    return f"brightness, sweep and, where stated, {', '.join(more)} right"


def refused(files: Sequence[Mapping[str, str]], measured: int) -> str:
    """Files that could not be measured, each with its reason."""
    if not files:
        return ""
    items = "".join(f"<li>{html.escape(f['error'])}</li>" for f in files)
    total = f"{len(files)} of {plural(len(files) + measured, 'file')}"
    return f'<div class="warn" id="refused"><h3>Not measured: {total}</h3><ul class="plain">{items}</ul></div>'


def look_first(evaluation: Evaluation, comparison: Comparison | None, *, most: int = 3) -> list[tuple[int, str]]:
    """(clip's index, why it deserves a look), the most telling first; ``most`` of each kind."""
    clips = list(enumerate(evaluation.clips))
    found: list[tuple[int, str]] = []

    def top(name: str, least: float, words: Any) -> None:
        ranked = sorted(
            ((c.clip.metrics.get(name, 0.0), i, c) for i, c in clips if c.clip.metrics["frames"] >= SHORTEST),
            key=lambda entry: (-entry[0], entry[1]),
        )
        found.extend((i, words(value, c)) for value, i, c in ranked[:most] if value >= least)

    top("flash_rate", _FLASHES, lambda value, c: f"flashes {number(value)} times per second: more than WCAG 2 allows")
    if comparison is not None:
        found += _pairs_first(comparison, most)
    missed = [(i, c) for i, c in clips if c.correct is False]
    found += [(i, _missed(c)) for i, c in missed[:most]]
    top("common_flicker", _VISIBLE, lambda value, c: _flickers(value, c))
    top(
        "flicker_peak", _PEAK, lambda value, c: f"one jump stands out, {number(value)} times its usual change{_when(c)}"
    )
    top(
        "local_flicker", 2 * _VISIBLE, lambda value, c: f"local flicker of {number(value)} stops, strongest {_where(c)}"
    )
    if not found and len(clips) > 1:
        top("common_flicker", 0.0, lambda value, c: f"among the most flicker here: {number(value)} stops, common")
        top("local_flicker", 0.0, lambda value, c: f"local flicker of {number(value)} stops, strongest {_where(c)}")
    return [(i, why) for n, (i, why) in enumerate(found) if i not in {j for j, _ in found[:n]}]


def _pairs_first(comparison: Comparison, most: int) -> list[tuple[int, str]]:
    place = {id(c): i for i, c in enumerate(comparison.clips.clips)}
    moves = sorted(
        (a.clip.metrics["common_flicker"] - b.clip.metrics["common_flicker"], place[id(a)]) for a, b in comparison.pairs
    )
    worse = [(i, f"common flicker rises by {number(d)} stops, the most of all") for d, i in moves[::-1][:1] if d > 0]
    fell = [(i, f"common flicker falls by {number(-d)} stops") for d, i in moves[: most - 1] if d < 0]
    return worse + fell


def _missed(result: ClipResult) -> str:
    wrong = [name for name, right in result.right.items() if not right]
    expected = result.expected or {}
    return "; ".join(f"{WORDS[n][result.answers[n]]}, its caption says: {WORDS[n][expected[n]]}" for n in wrong)


def _flickers(value: float, result: ClipResult) -> str:
    known = result.reference.metrics.get("common_flicker") if result.reference else None
    beside = f", its rendered reference {number(known)}" if known is not None else ""
    return f"the whole picture flickers by {number(value)} stops{beside}"


def _where(result: ClipResult) -> str:
    spot = result.clip.hotspot
    return f"at the {place_words(spot)} ({number(spot['stops'])} stops)"


def _when(result: ClipResult) -> str:
    curves = result.clip.curves
    if abs(curves.acceleration).max() < MARKED:
        return f", {_where(result)}"
    return f", at {curves.seconds[int(abs(curves.acceleration).argmax())]:.2f} s"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.0f} %".replace("-", "−")
