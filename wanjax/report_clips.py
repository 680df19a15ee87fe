"""One clip on the report's page: playing, where it flickers, its curves, its frames, its numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wanjax.evaluate import ClipResult, Measured
from wanjax.light.metrics import UNITS
from wanjax.report_charts import Line, line_chart, stem_chart
from wanjax.report_media import (
    Playable,
    file_copy,
    heat_picture,
    picture_uri,
    poster,
    reference_copy,
    strip,
)
from wanjax.report_tables import measure_name, number, table
from wanjax.scoring import kind_of

__all__ = ["MARKED", "WORDS", "Setting", "again", "card", "place_words"]

WORDS = {
    "exposure_change": {1: "brightens", -1: "darkens", 0: "steady"},
    "sweep": {1: "sweeps right", -1: "sweeps left", 0: "no sweep"},
    "color_change": {1: "turns warmer", -1: "turns cooler", 0: "color stays"},
    "glints": {1: "glints run right", -1: "glints run left", 0: "glints run neither way"},
    "shadow_follows": {1: "shadow follows", 0: "shadow does not follow"},
}
MARKED = 0.05
"""Stops: a frame at which exposure turns by this much or more (3.5 % of its light) is circled."""

_FLASHES = 3.0  # per second; above it WCAG 2 warns of seizures, and the clip starts only when it is asked to


@dataclass(frozen=True)
class Setting:
    """What the cards of a page share: stops at the hot end of the maps, names of the sets."""

    heat_scale: float
    name: str = "this clip"
    against: str = "partner"


def card(index: int, result: ClipResult, setting: Setting, partner: ClipResult | None = None) -> str:
    """An ``<article>``; ``partner`` is the clip that it is compared with."""
    facts = result.facts
    verdict = {None: "", True: "right", False: "wrong"}[result.correct]
    caption = str(facts.get("prompt") or result.name)
    shown: list[tuple[str, str, Measured, Playable]] = [("clip", setting.name, result.clip, file_copy(result))]
    if partner is not None:
        shown.append(("against", setting.against, partner.clip, file_copy(partner)))
    if result.reference is not None and result.record.reference is not None:
        rendered = reference_copy(result.record.reference())
        shown.append(("reference", "rendered, same caption", result.reference, rendered))
    screens = "".join(
        _player(f"v{index}-{kind}", name, measured, clip) + _heat(kind, name, measured, setting.heat_scale)
        for kind, name, measured, clip in shown
    )
    sheets = "".join(
        f'<span>{html.escape(_short(kind, name))}</span><img class="sheet" loading="lazy" '
        f'alt="frames of {html.escape(name)}, first to last" src="{picture_uri(strip(measured))}">'
        for kind, name, measured, _ in shown
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in result.notes)
    columns = [(name, measured.metrics) for _, name, measured, _ in shown]
    numbers = [
        [measure_name(n, unit, magnitude=False), *(number(m[n]) if n in m else "–" for _, m in columns)]
        for n, unit in UNITS.items()
        if n in result.clip.metrics
    ]
    head = ["", *(name for name, _ in columns)]
    return (
        f'<article id="clip-{index}" data-tags="{html.escape(str(facts.get("family", "")))} {verdict}" '
        f'aria-labelledby="name-{index}"><div class="head"><h3 class="caption" id="name-{index}">{html.escape(caption)}'
        f'</h3><div class="chips">{_chips(result)}</div></div>'
        f'<div class="body"><div class="screens{" one" * (len(shown) == 1)}">{screens}</div>'
        f'<div class="charts">{_charts(result, partner)}</div></div>{notes}<div class="strips">{sheets}</div>'
        f"<details><summary>{html.escape(result.name)}: all measurements</summary>"
        f"{table(head, numbers, escaped=True, caption='All measurements of this clip')}{_file(result)}"
        "</details></article>"
    )


def place_words(spot: Mapping[str, float]) -> str:
    """Where in the frame: ``upper left``, ``center``, ..."""
    down = "upper" if spot["y"] < 1 / 3 else "lower" if spot["y"] > 2 / 3 else ""
    across = "left" if spot["x"] < 1 / 3 else "right" if spot["x"] > 2 / 3 else ""
    return " ".join(filter(None, (down, across))) or "center"


def _chips(result: ClipResult) -> str:
    chips = []
    for name, value in result.answers.items():
        words = WORDS[name][value]
        if name in result.unscored:
            said = WORDS[name][result.unscored[name]]
            chips.append(f'<span class="chip">{words}, said: {said} (not scored)</span>')
        elif name not in result.right:
            chips.append(f'<span class="chip">{words}</span>')
        elif result.right[name]:
            chips.append(f'<span class="chip good">✓ {words}</span>')
        else:
            said = WORDS[name][(result.expected or {})[name]]
            chips.append(f'<span class="chip bad">✗ {words}, said: {said}</span>')
    told = [kind_of(result.facts).replace("_", " "), f"seed {result.facts['seed']}" if "seed" in result.facts else ""]
    chips += [f'<span class="chip">{html.escape(text)}</span>' for text in told if text]
    return "".join(chips)


def _player(key: str, name: str, measured: Measured, clip: Playable) -> str:
    note = f" ({html.escape(clip.note)})" if clip.note else ""
    caption = f"<figcaption>{html.escape(name)}{note}</figcaption>"
    if not clip.uri:
        picture = f'<img alt="first frame of {html.escape(name)}" src="{poster(measured)}">'
        return f"<figure>{picture}{caption}</figure>"
    flashes = measured.metrics.get("flash_rate", 0.0) > _FLASHES
    hold = " data-hold" if flashes else ""
    warning = '<span class="warning">flashes: press to play</span>' if flashes else ""
    return (
        f'<figure>{warning}<video id="{key}"{hold} loop muted playsinline preload="none" tabindex="0" '
        f'aria-label="{html.escape(name)}: press to play or pause" {_shape(measured)} poster="{poster(measured)}" '
        f'data-src="{clip.uri}"></video>{caption}</figure>'
    )


def again(key: str, name: str, measured: Measured) -> str:
    """A player of a clip that the page holds already."""
    hold = " data-hold" if measured.metrics.get("flash_rate", 0.0) > _FLASHES else ""
    return (
        f'<figure><video data-of="{key}"{hold} loop muted playsinline preload="none" tabindex="0" '
        f'aria-label="{html.escape(name)}: press to play or pause" {_shape(measured)} '
        f'poster="{poster(measured)}"></video>'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
    )


def _shape(measured: Measured) -> str:
    height, width = measured.size
    return f'style="aspect-ratio:{width}/{height}"'


def _heat(kind: str, name: str, measured: Measured, scale: float) -> str:
    spot = measured.hotspot
    said = f"at most {number(spot['stops'])} stops, {place_words(spot)}" if spot["stops"] else "none"
    whose = "" if kind == "clip" else f", {html.escape(_short(kind, name))}"
    return (
        f'<figure><img loading="lazy" {_shape(measured)} alt="flicker map of {html.escape(name)}: {said}" '
        f'src="{heat_picture(measured, scale)}"><figcaption>flicker{whose}: {said}</figcaption></figure>'
    )


def _short(kind: str, name: str) -> str:
    return "rendered" if kind == "reference" else name.removeprefix("this ")


def _charts(result: ClipResult, partner: ClipResult | None) -> str:
    exposure, turns, color, sweep = [], [], [], []
    sources: list[tuple[str, Measured]] = [("clip", result.clip)]
    if partner is not None:
        sources.insert(0, ("against", partner.clip))
    if result.reference is not None:
        sources.insert(0, ("reference", result.reference))
    elif isinstance(result.facts.get("truth"), Mapping):
        truth, curves = result.facts["truth"], result.clip.curves
        exposure += _stated(curves.seconds, curves.log_luminance, truth.get("exposure_slope"))
        color += _stated(curves.seconds, curves.mired, truth.get("cct_slope"))
    for kind, measured in sources:
        curves = measured.curves
        marks = np.abs(curves.acceleration) >= MARKED if kind == "clip" else None
        exposure.append(Line(curves.seconds, curves.log_luminance, kind, marks=marks))
        turns.append(Line(curves.seconds, curves.acceleration, kind, marks=marks))
        color.append(Line(curves.seconds, curves.mired, kind))
        track, heaviest = curves.sweep, max(float(curves.sweep.weight.max(initial=0)), 0.02)
        sweep.append(Line(track.seconds[:0], track.position[:0], kind))
        held = track.weight > 0.05 * heaviest
        if held.any():
            sweep[-1] = Line(track.seconds[held], track.position[held], kind, track.weight[held] / heaviest)
    end = max(float(measured.curves.seconds[-1]) for _, measured in sources)
    own, metrics = result.clip.curves, result.clip.metrics
    worst = int(np.argmax(np.abs(own.acceleration)))
    top = f"largest {abs(own.acceleration[worst]):.3f} stops at {own.seconds[worst]:.2f} s"
    slope = f"slope {metrics['exposure_slope']:+.2f} stops per second"
    drift = f"drift {metrics['cct_drift']:+.1f} mired per second"
    way = WORDS["sweep"][result.answers["sweep"]]
    where: dict[str, Any] = {"limits": (0, 1), "ends": ("left", "right"), "seconds": end, "summary": way}
    return (
        line_chart("exposure, stops", exposure, least_span=1.0, summary=slope)
        + stem_chart("acceleration, stops per frame²", turns, least_span=0.1, summary=top)
        + line_chart("where the light moves", sweep, least_span=1, **where)
        + line_chart("color temperature, mired", color, least_span=60, summary=drift)
    )


def _stated(seconds: np.ndarray, values: np.ndarray, slope: Any) -> list[Line]:
    """A line of the slope that ground truth states, through the middle of what was measured."""
    if slope is None or len(seconds) < 2:
        return []
    return [Line(seconds, values.mean() + float(slope) * (seconds - seconds.mean()), "reference")]


def _file(result: ClipResult) -> str:
    file = result.file
    if file is None:
        return ""
    tags = f"{file.matrix} matrix{'' if file.tagged else ' (untagged: the usual one)'}, {file.range} range"
    said = (
        f"{result.record.path.name}: {file.container}, {file.codec}, {file.pixel_format}, {file.bits} bits, {tags}, "
        f"{file.transfer} transfer, {file.primaries} primaries, {file.fps:g} frames per second"
    )
    return f'<p class="soft">{html.escape(said)}</p>'
