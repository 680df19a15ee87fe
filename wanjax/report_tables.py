"""Tables of the report: per kind of scene, per measure, two sets compared, and every clip in a row."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from wanjax.compare import FLICKER, Comparison, Difference
from wanjax.evaluate import ClipResult
from wanjax.light.metrics import UNITS
from wanjax.report_charts import whisker

__all__ = [
    "LANGUAGES",
    "OPTIONAL_NAMES",
    "SIGNED",
    "compared",
    "every_clip",
    "families",
    "measure_name",
    "measures",
    "number",
    "plural",
    "share",
    "signed",
    "table",
    "the_estimator",
]

SIGNED = ("exposure_slope", "cct_drift", "sweep_rate", "glint_rate", "glint_order")
LANGUAGES = {"en": "English", "zh": "Chinese"}
OPTIONAL_NAMES = {"color_change": "color", "glints": "glints", "shadow_follows": "shadow"}
"""What the optional answers are called in headers of tables."""
_LISTED = 50  # clips without a partner that are named
_ROWS = ("global_flicker", "local_flicker", "common_flicker", "flicker_peak", "flash_rate", "exposure_slope",
         "cct_drift", "sweep_rate")  # fmt: skip


def number(value: float, *, digits: int = 3) -> str:
    """Three significant digits, no more than four decimals, a true minus sign."""
    decimals = max(0, min(4, digits - 1 - int(np.floor(np.log10(abs(value)))))) if abs(value) >= 5e-5 else 0
    return f"{value:.{decimals}f}".replace("-0", "0" if abs(value) < 5e-5 else "−0").replace("-", "−")


def signed(value: float) -> str:
    """As :func:`number`, with a plus sign above zero."""
    text = number(value)
    return text if text.startswith("−") or text == "0" else f"+{text}"


def measure_name(name: str, unit: str, *, magnitude: bool = True) -> str:
    """HTML of a measure's name, in bars where its ``magnitude`` is meant and it has a sign, and its unit."""
    shown = f"|{name}|" if magnitude and name in SIGNED else name
    return f"<code>{shown}</code>" + (f" <small>{unit}</small>" if unit else "")


def plural(count: int, noun: str) -> str:
    """``3 clips``, ``1 clip``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    escaped: bool = False,
    caption: str = "",
    sortable: bool = False,
) -> str:
    """A table whose first column heads its rows.

    Args:
      head: headers of the columns.
      rows: cells, texts to be escaped unless ``escaped``; (text, sort value) where ``sortable``.
      caption: what it lists, for screen readers.
      sortable: headers sort when pressed.
    """

    def cell(value: Any, tag: str) -> str:
        order = ""
        if isinstance(value, tuple):
            value, key = value
            order = f' data-order="{html.escape(str(key))}"'
        scope = ' scope="row"' if tag == "th" else ""
        return f"<{tag}{scope}{order}>{value if escaped else html.escape(str(value))}</{tag}>"

    heads = (f"<button>{html.escape(h)}</button>" if sortable and h else html.escape(h) for h in head)
    top = "".join(f'<th scope="col">{h}</th>' for h in heads)
    lines = "".join(
        f"<tr>{''.join(cell(value, 'td' if index else 'th') for index, value in enumerate(row))}</tr>" for row in rows
    )
    said = f'<caption class="unseen">{html.escape(caption)}</caption>' if caption else ""
    label = html.escape(caption or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{" class=sortable" * sortable}>'
        f"{said}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def families(summary: Mapping[str, Any]) -> str:
    """Scores per family and per language."""
    rows = [(name, entry["score"]) for name, entry in summary["families"].items() if entry["score"]["of"]]
    rows += [(f"captions in {LANGUAGES.get(name, name)}", score) for name, score in summary["languages"].items()]
    if not rows:
        return ""
    if summary["score"]:
        rows.append(("all", summary["score"]))
    more = [name for name in OPTIONAL_NAMES if any(name in score["answers"] for _, score in rows)]
    cells = []
    for name, score in rows:
        low, high = score["interval_95"]
        counts = [_counted(score, key) for key in ("exposure_change", "sweep", *more)]
        sure = f"{100 * low:.0f}–{100 * high:.0f} %"
        cells.append([name.replace("_", " "), score["of"], score["correct"], *counts, sure])
    named = (f"{OPTIONAL_NAMES[name]} right" for name in more)
    head = ["", "clips", "right", "brightness right", "sweep right", *named, "right, 95 % interval"]
    return '<h2 id="kinds">By kind of scene</h2>' + table(head, cells, caption="Clips that do what their caption says")


def _counted(score: Mapping[str, Any], answer: str) -> str:
    """How many are right in an answer, and of how many where not all clips state it."""
    entry = score["answers"].get(answer)
    if entry is None:
        return "–"
    return str(entry["correct"]) if entry["of"] == score["of"] else f"{entry['correct']} of {entry['of']}"


def share(score: Mapping[str, Any]) -> str:
    """The interval of a share of clips, in words."""
    low, high = score["interval_95"]
    return f"95 % interval {100 * low:.0f}–{100 * high:.0f} %"


def the_estimator(check: Mapping[str, Mapping[str, Any]] | None, scored: Collection[str]) -> str:
    """How often the measurement itself is right; ``scored`` are the answers that it may score."""
    if not check:
        return ""
    rows = [
        [name.replace("_", " "), c["clips"], f"{c['forward']} of {c['clips']}", f"{c['backward']} of {c['clips']}"]
        for name, c in check.items()
    ]
    head = ["", "rendered clips", "right", "right played backwards"]
    out = (
        '<h2 id="estimator">The estimator itself</h2><p>The same measurement on rendered held-out clips, whose light '
        "is known: brightness and sweep. Played backwards, light that moves moves the other way, so none should be "
        "right; where nothing changes (<code>constant</code>), backwards is right too.</p>"
        + table(head, rows, caption="The estimator on rendered clips")
    )
    more = []
    for family, counted in check.items():
        for name, entry in counted.get("answers", {}).items():
            right = f"{entry['right']} of {entry['of']}" if entry["of"] else "–"
            verdict = "scored" if name in scored else "shown, not scored"
            shown = (name.replace("_", " "), family.replace("_", " "))
            more.append([*shown, right, _controls(entry["controls"]), verdict])
    if more:
        out += (
            "<p>What else a caption may state is scored only if it is right on 95 % of these clips or more, all kinds "
            "together, and of every control, which has it wrong, takes 5 % or less for right.</p>"
            + table(["", "kind of scene", "right", "controls taken for right", ""], more, caption="Optional answers")
        )
    return out


def _controls(controls: Mapping[str, Mapping[str, int]]) -> str:
    """How many of all controls were taken for right, and which kinds those are."""
    if not controls:
        return "–"
    taken, tried = (sum(counted[key] for counted in controls.values()) for key in ("right", "of"))
    believed = [f"{name} {c['right']} of {c['of']}" for name, c in controls.items() if c["right"]]
    kinds = ", ".join(controls) if len(controls) == 1 else f"{len(controls)} kinds"
    return f"{taken} of {tried} ({', '.join(believed) or kinds})"


def measures(summary: Mapping[str, Any]) -> str:
    """Mean and interval of every measure, per family and over all."""
    columns: list[tuple[str, Mapping[str, Any]]] = [
        (f.replace("_", " "), e["metrics"]) for f, e in summary["families"].items() if e["metrics"]
    ]
    if len(columns) != 1:
        columns.append(("all", summary["metrics"]))
    if not summary["metrics"]:
        return ""
    paired = any("reference_mean" in m for _, metrics in columns for m in metrics.values())
    head = ["", *(f"{name} ({next(iter(metrics.values()))['clips']})" for name, metrics in columns)]
    rows = []
    for name, unit in UNITS.items():
        if name == "frames" or not any(name in metrics for _, metrics in columns):
            continue
        row = [measure_name(name, unit)]
        for _, metrics in columns:
            entry = metrics.get(name)
            if entry is None:
                row.append("–")
                continue
            half = ""
            if entry["interval_95"]:
                low, high = entry["interval_95"]
                half = f" <small>± {number((high - low) / 2, digits=2)}</small>"
            known = f"<div>{number(entry['reference_mean'])}</div>" if "reference_mean" in entry else ""
            row.append(f"{number(entry['mean'])}{half}{known}")
        rows.append(row)
    note = (
        "Mean over clips of three or more frames (of slopes and rates, of their magnitude) ± half of its 95 % interval "
        "(bootstrap over clips; none for a single clip); in brackets how many clips."
    )
    if paired:
        note += " Below, in blue: the mean on the rendered clips that the captions were written for."
    caption = "Mean of every measure with its 95 % interval"
    return f'<h2 id="measured">Measured</h2><p>{note}</p>' + table(head, rows, escaped=True, caption=caption)


def compared(comparison: Comparison) -> str:
    """Every measure of two sets side by side, with interval and test."""
    a, b = html.escape(comparison.clips.name), html.escape(comparison.against.name)
    listed = [d for d in comparison.differences if d.name in FLICKER] + comparison.path
    shown = {d.name for d in listed}
    rest = [d for d in comparison.differences if d.name not in shown]
    names = (comparison.clips.name, comparison.against.name)
    head = ["", "difference", "95 % interval", "relative, −100 to +100 %", "p", *names, "pairs"]
    rows = [_compared_row(d, d.name in FLICKER or d in comparison.path) for d in (*listed, *rest)]
    held = (
        f"; the light's path is held against {html.escape(comparison.path_against)}" if comparison.path_against else ""
    )
    note = (
        f"{plural(len(comparison.pairs), 'pair')}, by {comparison.rule}. Difference: {a} minus {b}, of slopes and "
        "rates that of their magnitude, with its 95 % interval by bootstrap over pairs; p from a paired sign-flip "
        "permutation test, each row for itself: of twenty rows without any difference one falls below 0.05 by chance. "
        f"The verdict rests on the rows in bold{held}."
    )
    left = ""
    if unpaired := comparison.unpaired:
        items = [f"<code>{html.escape(u['file'])}</code>: {html.escape(u['reason'])}" for u in unpaired[:_LISTED]]
        items += [f"and {len(unpaired) - _LISTED} more"] if len(unpaired) > _LISTED else []
        said = "".join(f"<li>{item}</li>" for item in items)
        count = plural(len(unpaired), "clip")
        left = f'<details><summary>{count} without a partner</summary><ul class="plain">{said}</ul></details>'
    return (
        f'<h2 id="compared">{a} against {b}</h2><p>{note}</p>'
        + table(head, rows, escaped=True, caption=f"{a} against {b}")
        + left
    )


def _compared_row(d: Difference, bold: bool) -> list[str]:
    name = measure_name(d.name, d.unit)
    interval, picture = "–", ""
    if d.interval:
        low, high = d.interval
        interval = f"{signed(low)} to {signed(high)}"
        if d.against:
            move = d.moved() * {"lower": -1, "higher": 1}.get(d.better, 0)
            kind = {1: "good", -1: "bad", 0: "plain"}[move]
            picture = whisker(low / d.against, d.difference / d.against, high / d.against, 1.0, kind)
    p = f"{d.p:.3f}" if d.p >= 0.001 else "&lt; 0.001"
    means = (number(d.mean), number(d.against))
    return [f"<b>{name}</b>" if bold else name, signed(d.difference), interval, picture, p, *means, str(d.pairs)]


def every_clip(clips: Sequence[ClipResult], shown: Collection[int]) -> str:
    """One row per clip; its name leads to its card where there is one."""
    columns = [name for name in _ROWS if any(name in c.clip.metrics for c in clips)]
    rows = []
    for index, result in enumerate(clips):
        height, width = result.clip.size
        name = html.escape(result.name)
        link = f"<a href=#clip-{index}>{name}</a>" if index in shown else name
        verdict = {None: "–", True: "✓ right", False: "✗ wrong"}[result.correct]
        frames = int(result.clip.metrics["frames"])
        row: list[Any] = [
            (link, result.name), (verdict, verdict), (f"{width} × {height}", width * height), (str(frames), frames),
            (f"{result.clip.fps:.4g}", result.clip.fps),
        ]  # fmt: skip
        row += [
            (number(result.clip.metrics[c]), result.clip.metrics[c]) if c in result.clip.metrics else ("–", 0)
            for c in columns
        ]
        rows.append([*row, (html.escape("; ".join(result.notes)) or "–", "; ".join(result.notes))])
    head = ["file", "as captioned", "pixels", "frames", "frames/s", *columns, "notes"]
    return table(head, rows, escaped=True, caption="Every clip", sortable=True)
