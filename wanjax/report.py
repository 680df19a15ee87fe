"""An evaluation as one HTML page that needs nothing but itself: clips playing, contact sheets, curves, tables."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from wanjax import video
from wanjax.evaluate import ANSWERS, ClipResult, Evaluation, Measured
from wanjax.light.metrics import UNITS
from wanjax.report_charts import Line, line_chart
from wanjax.report_style import SCRIPT, STYLE

__all__ = ["contact_sheet", "render"]

WORDS = {
    "exposure_change": {1: "brightens", -1: "darkens", 0: "steady"},
    "sweep": {1: "sweeps right", -1: "sweeps left", 0: "no sweep"},
}
SIGNED = ("exposure_slope", "cct_drift", "sweep_rate")
LANGUAGES = {"en": "English", "zh": "Chinese"}
_EMBEDDED = 4 << 20  # bytes; a larger clip is shown as a smaller copy
_SHOWN = 512  # pixels; longer side of such a copy
_SHEET = 9  # frames on a contact sheet
_SHEET_HEIGHT = 96


def render(evaluation: Evaluation, *, title: str, command: str = "") -> str:
    """The page.

    Args:
      evaluation: what was measured.
      title: its headline.
      command: the command that made it, shown at the foot.

    Returns:
      HTML; every clip and picture is inside it.
    """
    summary = evaluation.summary()
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{html.escape(_lead(evaluation))}</p>',
        _figures(summary),
        _unreadable(summary["unreadable"]),
        _families(summary),
        _estimator(summary["estimator"]),
        _metrics(summary),
        _clips(evaluation.clips),
        _reading(summary, command),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n{chr(10).join(filter(None, body))}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _lead(evaluation: Evaluation) -> str:
    """What the clips have in common."""
    clips = evaluation.clips
    if not clips:
        return "No clip could be measured."
    parts = [f"{len(clips)} clip{'s' if len(clips) > 1 else ''}"]
    sizes = {(len(c.clip.curves.seconds), *c.clip.size, c.clip.fps) for c in clips}
    if len(sizes) == 1:
        frames, height, width, fps = sizes.pop()
        parts.append(f"{width} × {height} pixels, {frames} frames at {fps:g} per second")
    settings = [c.facts.get("settings") for c in clips]
    if isinstance(settings[0], Mapping) and all(s == settings[0] for s in settings):
        parts.append(", ".join(f"{name} {value}" for name, value in settings[0].items() if value not in ("", None)))
    return " · ".join(parts)


def _figures(summary: Mapping[str, Any]) -> str:
    score, shuffled = summary["score"], summary["shuffled_captions"]
    if not score:
        names = ("global_flicker", "local_flicker", "common_flicker", "exposure_slope")
        plain = "".join(
            f"<li><b>{_number(summary['metrics'][n]['mean'])}</b><span>{n}, {UNITS[n]}, mean</span></li>"
            for n in names
            if n in summary["metrics"]
        )
        return f'<ul class="figures">{plain}</ul>' if plain else ""
    low, high = score["interval_95"]
    n = score["of"]
    items = [
        (
            f"{score['correct']} of {n}",
            "do what their caption says: brightness and sweep both right "
            f"(95 % interval {100 * low:.0f}–{100 * high:.0f} %)",
        ),
        (f"{score['exposure_change']} of {n}", "brighten, darken or stay steady as said"),
        (f"{score['sweep']} of {n}", "sweep the way that is said, or do not where nothing is"),
    ]
    if shuffled["of"]:
        items.append(
            (
                f"{shuffled['correct']} of {shuffled['of']}",
                "against captions dealt to other clips: the control, to be low",
            )
        )
    cells = "".join(
        f"<li{' class=main' if i == 0 else ''}><b>{head}</b><span>{text}</span></li>"
        for i, (head, text) in enumerate(items)
    )
    return f'<ul class="figures">{cells}</ul>'


def _unreadable(files: Sequence[Mapping[str, str]]) -> str:
    if not files:
        return ""
    items = "".join(f"<li>{html.escape(f['error'])}</li>" for f in files)
    return f'<div class="warn"><h3>Not measured: {len(files)}</h3><ul class="plain">{items}</ul></div>'


def _families(summary: Mapping[str, Any]) -> str:
    rows = [(name, entry["score"]) for name, entry in summary["families"].items() if entry["score"]["of"]]
    rows += [(f"captions in {LANGUAGES.get(name, name)}", score) for name, score in summary["languages"].items()]
    if not rows:
        return ""
    if summary["score"]:
        rows.append(("all", summary["score"]))
    cells = []
    for name, score in rows:
        low, high = score["interval_95"]
        cells.append(
            [
                name,
                score["of"],
                score["correct"],
                score["exposure_change"],
                score["sweep"],
                f"{100 * low:.0f}–{100 * high:.0f} %",
            ]
        )
    head = ["", "clips", "right", "brightness right", "sweep right", "right, 95 % interval"]
    return "<h2>By kind of scene</h2>" + _table(head, cells)


def _estimator(check: Mapping[str, Mapping[str, int]] | None) -> str:
    if not check:
        return ""
    rows = [
        [name, c["clips"], f"{c['forward']} of {c['clips']}", f"{c['backward']} of {c['clips']}"]
        for name, c in check.items()
    ]
    return (
        "<h2>The estimator itself</h2><p>The same measurement on rendered held-out clips, whose light is known. "
        "Played backwards, light that moves moves the other way, so none should be right; where nothing changes "
        "(<code>constant</code>), backwards is right too.</p>"
        + _table(["", "rendered clips", "right", "right played backwards"], rows)
    )


def _metrics(summary: Mapping[str, Any]) -> str:
    columns: list[tuple[str, Mapping[str, Any]]] = [(f, e["metrics"]) for f, e in summary["families"].items()]
    if len(columns) != 1:
        columns.append(("all", summary["metrics"]))
    if not summary["metrics"]:
        return ""
    paired = any("reference_mean" in m for _, metrics in columns for m in metrics.values())
    head = ["", "unit", *(f"{name} ({next(iter(metrics.values()))['clips']})" for name, metrics in columns)]
    rows = []
    for name, unit in UNITS.items():
        if name == "frames" or not any(name in metrics for _, metrics in columns):
            continue
        shown = f"|{name}|" if name in SIGNED else name
        row = [f"<code>{shown}</code>", unit or "–"]
        for _, metrics in columns:
            entry = metrics.get(name)
            if entry is None:
                row.append("–")
                continue
            half = (entry["interval_95"][1] - entry["interval_95"][0]) / 2
            known = f"<div>{_number(entry['reference_mean'])}</div>" if "reference_mean" in entry else ""
            row.append(f"{_number(entry['mean'])} <small>± {_number(half, digits=2)}</small>{known}")
        rows.append(row)
    note = (
        "Mean over clips (of slopes and rates, of their magnitude) ± half of its 95 % interval (bootstrap over "
        "clips); in brackets how many clips."
    )
    if paired:
        note += " Below, in blue: the mean on the rendered clips that the captions were written for."
    return f"<h2>Measured</h2><p>{note}</p>" + _table(head, rows, escaped=True)


def _clips(clips: Sequence[ClipResult]) -> str:
    if not clips:
        return ""
    tags = list(dict.fromkeys(str(c.facts["family"]) for c in clips if "family" in c.facts))
    shown = ["all", *(tags if len(tags) > 1 else [])]
    if any(c.expected for c in clips):
        shown += ["right", "wrong"]
    buttons = "".join(
        f'<button data-show="{html.escape(t)}" aria-pressed="{"true" if t == "all" else "false"}">'
        f"{html.escape(t.replace('_', ' '))}</button>"
        for t in shown
    )
    key = '<span class="key soft"><i></i>this clip'
    if any(c.reference or c.facts.get("truth") for c in clips):
        key += '<i class="reference"></i>rendered clip with this caption'
    nav = f"<nav>{buttons}</nav>" if len(shown) > 1 else ""
    return f"<h2>Clips</h2><p>{key}</span></p>{nav}" + "\n".join(_card(c) for c in clips)


def _card(result: ClipResult) -> str:
    facts = result.facts
    chips = []
    for name in ANSWERS:
        words = WORDS[name][result.answers[name]]
        if result.expected is None:
            chips.append(f'<span class="chip">{words}</span>')
        elif result.right[name]:
            chips.append(f'<span class="chip good">✓ {words}</span>')
        else:
            said = WORDS[name][result.expected[name]]
            chips.append(f'<span class="chip bad">✗ {words}, said: {said}</span>')
    for name in ("family", "seed"):
        if name in facts:
            value = str(facts[name]).replace("_", " ")
            chips.append(f'<span class="chip">{html.escape(value if name == "family" else f"seed {value}")}</span>')
    verdict = {None: "", True: "right", False: "wrong"}[result.correct]
    caption = str(facts.get("prompt") or result.record.path.name)
    players = [_player(_file_uri(result), "this clip")]
    strips = [("clip", _sheet(result.clip))]
    if result.reference is not None and result.record.reference is not None:
        shown = result.record.reference()
        players.append(_player(_video_uri(shown.frames, shown.fps), "rendered, same caption"))
        strips.append(("rendered", _sheet(result.reference)))
    sheets = "".join(
        f'<span>{name}</span><img class="sheet" alt="frames of the {name}, first to last" src="{uri}">'
        for name, uri in strips
    )
    numbers = [[f"<code>{n}</code>", _number(v), UNITS[n] or "–"] for n, v in result.clip.metrics.items()]
    return (
        f'<article data-tags="{html.escape(str(facts.get("family", "")))} {verdict}">'
        f'<div class="head"><div class="caption">{html.escape(caption)}</div>'
        f'<div class="chips">{"".join(chips)}</div></div>'
        f'<div class="body"><div class="players">{"".join(players)}</div>'
        f'<div class="charts">{_charts(result)}</div></div><div class="strips">{sheets}</div>'
        f"<details><summary>{html.escape(result.record.path.name)}: all measurements</summary>"
        f"{_table(['', 'value', 'unit'], numbers, escaped=True)}</details></article>"
    )


def _charts(result: ClipResult) -> str:
    exposure, color, sweep = [], [], []
    sources: list[tuple[str, Measured]] = [("clip", result.clip)]
    if result.reference is not None:
        sources.insert(0, ("reference", result.reference))
    elif isinstance(result.facts.get("truth"), Mapping):
        truth, curves = result.facts["truth"], result.clip.curves
        exposure += _stated(curves.seconds, curves.log_luminance, truth.get("exposure_slope"))
        color += _stated(curves.seconds, curves.mired, truth.get("cct_slope"))
    for kind, measured in sources:
        curves = measured.curves
        exposure.append(Line(curves.seconds, curves.log_luminance, kind))
        color.append(Line(curves.seconds, curves.mired, kind))
        track, heaviest = curves.sweep, max(float(curves.sweep.weight.max(initial=0)), 0.02)
        sweep.append(Line(track.seconds[:0], track.position[:0], kind))
        held = track.weight > 0.05 * heaviest
        if held.any():
            sweep[-1] = Line(track.seconds[held], track.position[held], kind, track.weight[held] / heaviest)
    end = max(float(measured.curves.seconds[-1]) for _, measured in sources)
    return (
        line_chart("exposure, stops", exposure, least_span=1.0)
        + line_chart("where the light moves", sweep, least_span=1, limits=(0, 1), ends=("left", "right"), seconds=end)
        + line_chart("color temperature, mired", color, least_span=60)
    )


def _stated(seconds: np.ndarray, values: np.ndarray, slope: Any) -> list[Line]:
    """A line of the slope that ground truth states, through the middle of what was measured."""
    if slope is None or len(seconds) < 2:
        return []
    return [Line(seconds, values.mean() + float(slope) * (seconds - seconds.mean()), "reference")]


def contact_sheet(evaluation: Evaluation, *, clips: int = 12, across: int = 3) -> np.ndarray:
    """A picture [H, W, 3] uint8 for pages that cannot play clips.

    Five frames of each of the first ``clips``, first to last, ``across`` clips side by side, and above each what its
    caption asks for, green where the clip does it and red where not.
    """
    cells = []
    for result in evaluation.clips[:clips]:
        strip = _strip(result.clip, 5)
        label = np.full((22, strip.shape[1], 3), 255, np.uint8)
        words = ", ".join(WORDS[name][value] for name, value in (result.expected or {}).items())
        ink = {True: (0, 110, 40), False: (190, 30, 20), None: (40, 40, 40)}[result.correct]
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(label, words or result.record.path.name, (0, 15), font, 0.45, ink, 1, cv2.LINE_AA)
        cells.append(np.vstack([label, strip]))
    if not cells:
        raise ValueError("no clip was measured: there is nothing to put on a contact sheet")
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    rows = -(-len(cells) // across)
    sheet = np.full((rows * (height + 8), across * (width + 16), 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        y, x = index // across * (height + 8), index % across * (width + 16) + 8
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def _strip(measured: Measured, count: int) -> np.ndarray:
    """Evenly spaced frames side by side, first to last, 96 pixels high."""
    frames = measured.thumbnails
    picked = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]
    height, width = picked[0].shape[:2]
    size = (max(1, round(width * _SHEET_HEIGHT / height)), _SHEET_HEIGHT)
    gap = np.full((_SHEET_HEIGHT, 3, 3), 255, np.uint8)
    row: list[np.ndarray] = []
    for frame in picked:
        row += [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC), gap]
    return np.hstack(row[:-1])


def _sheet(measured: Measured) -> str:
    """A strip of frames as a data URI."""
    _, data = cv2.imencode(".jpg", _strip(measured, _SHEET)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _player(uri: str, caption: str) -> str:
    return (
        f'<figure><video autoplay loop muted playsinline preload="auto" src="{uri}"></video>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _file_uri(result: ClipResult) -> str:
    """The clip's own bytes where every browser plays them, else a copy that does, smaller if it is large."""
    path = result.record.path
    if path.stat().st_size <= _EMBEDDED and path.suffix.lower() == ".mp4":
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            if context.name == "h264" and context.pix_fmt == "yuv420p":
                return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    frames, fps, _ = video.stream(path)
    return _video_uri(frames, fps)


def _video_uri(frames: Any, fps: float) -> str:
    """Frames [H, W, 3] as an MP4 of at most 512 pixels a side and even sizes."""

    def shown() -> Any:
        for frame in frames:
            scale = min(1.0, _SHOWN / max(frame.shape[:2]))
            height, width = (max(2, round(side * scale / 2) * 2) for side in frame.shape[:2])
            yield cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.mp4"
        video.write(path, shown(), fps, crf=16)
        return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, escaped: bool = False) -> str:
    def cell(value: Any) -> str:
        return str(value) if escaped else html.escape(str(value))

    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _number(value: float, *, digits: int = 3) -> str:
    """Three significant digits, no more than four decimals, a true minus sign."""
    decimals = max(0, min(4, digits - 1 - int(np.floor(np.log10(abs(value)))))) if abs(value) >= 5e-5 else 0
    return f"{value:.{decimals}f}".replace("-0", "0" if abs(value) < 5e-5 else "−0").replace("-", "−")


def _reading(summary: Mapping[str, Any], command: str) -> str:
    limits = summary["thresholds"]
    text = (
        "<h2>How to read this</h2><p><b>Exposure</b> is log2 of the frame's mean linear luminance (Rec. 709), "
        "in stops: one stop is twice the light. A clip is steady while its fitted slope stays under "
        f"{limits['exposure_slope']['value']} stops per second. <b>Where the light moves</b> is the horizontal "
        "center of what deviates from each pixel's usual brightness on surfaces that stand still; bold dots hold "
        f"more of it. There is no sweep while it deviates by less than {limits['sweep_mass']['value']} stops in "
        f"the mean, or drifts by less than {limits['sweep_rate']['value']} frame widths per second. "
        "<b>Mired</b> is 10⁶ / kelvin: more is warmer. Flicker is the second difference over time of "
        "log-luminance: of the frame (<code>global_flicker</code>), of each spot followed along optical flow "
        "(<code>local_flicker</code>), and of the part of that the whole picture shares "
        "(<code>common_flicker</code>); a steady rise reads zero in all three.</p>"
    )
    return text + (f'<p class="soft">Made by <code>{html.escape(command)}</code></p>' if command else "")
