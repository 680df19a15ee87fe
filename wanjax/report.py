"""An evaluation as one HTML page that needs nothing but itself: clips playing, contact sheets, curves, tables.

The page goes from the verdict to the details: headline, what to look at first, tables, clips. Its size is bounded:
clips get a card (player, flicker map, curves, frames) until the limit is reached, the most telling first, and all have
a row in the table of every clip.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from wanjax import report_front, report_tables
from wanjax.compare import Comparison
from wanjax.evaluate import ClipResult, Evaluation
from wanjax.report_clips import MARKED, WORDS, Setting, card
from wanjax.report_media import COPY_FRAMES, heat_legend, heat_scale, strip
from wanjax.report_scenarios import scenarios
from wanjax.report_style import SCRIPT, STYLE

__all__ = ["PAGE_LIMIT", "contact_sheet", "render"]

_HEADING = re.compile(r'<h2 id="(\w+)">(.*?)</h2>')

PAGE_LIMIT = 48 << 20
"""Bytes of a page's cards: about 150 clips of a second or two at 512 pixels, over a thousand at 64."""


def render(
    evaluation: Evaluation,
    *,
    title: str,
    command: str = "",
    comparison: Comparison | None = None,
    limit: int = PAGE_LIMIT,
) -> str:
    """The page.

    Args:
      evaluation: what was measured.
      title: its headline.
      command: the command that made it, shown at the foot.
      comparison: of ``evaluation`` with another set; its verdict then leads the page, and cards show both clips.
      limit: bytes that the cards of single clips may take.

    Returns:
      HTML; every clip and picture is inside it.
    """
    summary = evaluation.summary()
    first = report_front.look_first(evaluation, comparison)
    setting = _setting(evaluation, comparison)
    cards = _cards(evaluation, comparison, [i for i, _ in first], setting, limit)
    against = comparison.against.unreadable if comparison else []
    measured = len(evaluation.clips) + (len(comparison.against.clips) if comparison else 0)
    front = [
        f'<header><p class="eyebrow">Light over time, measured</p><h1>{html.escape(title)}</h1>',
        f'<p class="soft">{html.escape(report_front.lead(evaluation))}</p></header>',
        report_front.verdict(comparison),
        report_front.figures(summary, comparison),
        report_front.refused([*summary["unreadable"], *against], measured),
    ]
    details = [
        _first(evaluation, first, set(cards)),
        report_tables.compared(comparison) if comparison else "",
        report_tables.families(summary),
        report_tables.the_estimator(summary["estimator"], summary["scored_answers"]),
        report_tables.measures(summary),
        scenarios(evaluation, summary, set(cards)),
        _clips(evaluation, comparison, cards, setting, limit),
        _every(evaluation, comparison, set(cards)),
        _reading(summary, command),
    ]
    body = [*front, _contents(details), *details]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n{chr(10).join(filter(None, body))}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _setting(evaluation: Evaluation, comparison: Comparison | None) -> Setting:
    shown = [c.clip for c in evaluation.clips]
    if comparison is None:
        return Setting(heat_scale(shown))
    scale = heat_scale([*shown, *(b.clip for _, b in comparison.pairs)])
    return Setting(scale, evaluation.name, comparison.against.name)


def _cards(
    evaluation: Evaluation, comparison: Comparison | None, first: Sequence[int], setting: Setting, limit: int
) -> dict[int, str]:
    """Cards by clip, as many as the page holds: what to look at first, then the clips of scenarios, then in order."""
    partners = {id(a): b for a, b in comparison.pairs} if comparison else {}
    together = [i for members in evaluation.scenarios().values() for i in members]
    cards: dict[int, str] = {}
    size = 0
    for index in dict.fromkeys([*first, *together, *range(len(evaluation.clips))]):
        result = evaluation.clips[index]
        made = card(index, result, setting, partners.get(id(result)))
        size += len(made)
        if cards and size > limit:
            break
        cards[index] = made
    return dict(sorted(cards.items()))


def _contents(parts: Sequence[str]) -> str:
    """Links to the parts of the page, from the headings they begin with."""
    found = [match for part in parts if (match := _HEADING.match(part))]
    links = "".join(f"<a href=#{match[1]}>{match[2]}</a>" for match in found)
    return f'<nav class="contents" aria-label="Contents">{links}</nav>'


def _first(evaluation: Evaluation, first: Sequence[tuple[int, str]], shown: set[int]) -> str:
    if not first:
        return ""
    items = []
    for index, why in first[:8]:
        name = html.escape(_name(evaluation.clips[index]))
        link = f"<a href=#clip-{index}>{name}</a>" if index in shown else name
        items.append(f"<li>{link} <span>{html.escape(why)}</span></li>")
    return f'<h2 id="first">Look at these first</h2><ol class="first">{"".join(items)}</ol>'


def _name(result: ClipResult) -> str:
    prompt = str(result.facts.get("prompt") or "")
    return f"{result.name} · {prompt[:70]}{'…' if len(prompt) > 70 else ''}" if prompt else result.name


def _clips(
    evaluation: Evaluation, comparison: Comparison | None, cards: Mapping[int, str], setting: Setting, limit: int
) -> str:
    clips = evaluation.clips
    if not clips:
        return ""
    tags = list(dict.fromkeys(str(c.facts["family"]) for c in clips if "family" in c.facts))
    filters = ["all", *(tags if len(tags) > 1 else [])]
    if any(c.expected for c in clips):
        filters += ["right", "wrong"]
    buttons = "".join(
        f'<button data-show="{html.escape(t)}" aria-pressed="{"true" if t == "all" else "false"}">'
        f"{html.escape(t.replace('_', ' '))}</button>"
        for t in (filters if len(filters) > 1 else [])
    )
    keys = [("clip", setting.name)]
    if comparison is not None:
        keys.append(("against", setting.against))
    if any(c.reference or c.facts.get("truth") for c in clips):
        keys.append(("reference", "rendered clip with this caption"))
    key = "".join(f'<span><i class="{kind}"></i>{html.escape(name)}</span>' for kind, name in keys)
    scale = (
        f'<span class="ramp">flicker map, stops: 0 <i style="background:{heat_legend()}"></i> '
        f"{setting.heat_scale:.2g} and more</span>"
    )
    left = len(clips) - len(cards)
    note = ""
    if left:
        note = (
            f'<p class="warn">{left} of {report_tables.plural(len(clips), "clip")} '
            f"{'has' if left == 1 else 'have'} no card here: the cards of a page may take {limit / (1 << 20):.3g} MiB. "
            "All clips are in the table below and in the JSON; measure fewer at once, or raise --page_mb.</p>"
        )
    return (
        f'<h2 id="clips">Clips</h2><p class="key soft">{key}{scale}<span>○ exposure turns by {MARKED:g} stops or more'
        f'</span></p>{note}<nav aria-label="Which clips to show">{buttons}'
        '<button data-pause aria-pressed="false">pause all</button></nav>'
        "<noscript><p>Clips play with JavaScript only; their frames are below each.</p></noscript>"
        + "\n".join(cards.values())
    )


def _every(evaluation: Evaluation, comparison: Comparison | None, shown: set[int]) -> str:
    if len(evaluation.clips) < 2 and not comparison:
        return ""
    note = "Press a header to sort. Units and definitions are below."
    out = f'<h2 id="every">Every clip</h2><p>{note}</p>' + report_tables.every_clip(evaluation.clips, shown)
    if comparison:
        out += f"<h3>{html.escape(comparison.against.name)}</h3>"
        out += report_tables.every_clip(comparison.against.clips, ())
    return out


def contact_sheet(evaluation: Evaluation, *, clips: int = 12, across: int = 3) -> np.ndarray:
    """A picture [H, W, 3] uint8 for pages that cannot play clips.

    Five frames of each of the first ``clips``, first to last, ``across`` clips side by side, and above each what its
    caption asks for, green where the clip does it and red where not.
    """
    cells = []
    for result in evaluation.clips[:clips]:
        frames = strip(result.clip, 5)
        label = np.full((22, frames.shape[1], 3), 255, np.uint8)
        words = ", ".join(WORDS[name][value] for name, value in (result.expected or {}).items())
        ink = {True: (0, 110, 40), False: (190, 30, 20), None: (40, 40, 40)}[result.correct]
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(label, words or result.record.path.name, (0, 15), font, 0.45, ink, 1, cv2.LINE_AA)
        cells.append(np.vstack([label, frames]))
    if not cells:
        raise ValueError("no clip was measured: there is nothing to put on a contact sheet")
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    rows = -(-len(cells) // across)
    sheet = np.full((rows * (height + 8), across * (width + 16), 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        y, x = index // across * (height + 8), index % across * (width + 16) + 8
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def _asked_for(metrics: Mapping[str, Any]) -> list[str]:
    """Explanations of what only some captions state."""
    items = []
    if "glint_rate" in metrics:
        items.append("<b>Glints</b> run the way that most of the motion energy of the water's rows runs.")
    if "shadow_swing" in metrics:
        items.append(
            "<b>A walker's shadow</b> follows if it begins at his feet, swings from behind him to ahead of him as he "
            "passes the lamp (<code>shadow_passing</code>: where on his way), and grows with the distance from there."
        )
    return items


def _reading(summary: Mapping[str, Any], command: str) -> str:
    limits = summary["thresholds"]
    items = [
        "<b>Exposure</b> is log2 of the frame's mean linear luminance (Rec. 709), in stops: one stop is twice the "
        f"light. A clip is steady while its fitted slope stays under {limits['exposure_slope']['value']} stops per "
        "second.",
        "<b>Acceleration</b> is the second difference of exposure from frame to frame: a steady rise reads zero, a "
        f"flicker does not. Frames with {MARKED:g} stops or more (3.5 % of the light) are circled.",
        "<b>Flicker</b> is the mean size of that second difference: of the frame (<code>global_flicker</code>), of "
        "each spot followed along optical flow (<code>local_flicker</code>), and of the part of that which the whole "
        "picture shares (<code>common_flicker</code>). The <b>flicker map</b> is the second one, per spot: its mean "
        "over time.",
        "<b>Where the light moves</b> is the horizontal center of what deviates from each pixel's usual brightness on "
        "surfaces that stand still; bold dots hold more of it. There is no sweep while it deviates by less than "
        f"{limits['sweep_mass']['value']} stops in the mean, or drifts by less than {limits['sweep_rate']['value']} "
        "frame widths per second.",
        "<b>Mired</b> is 10⁶ / kelvin: more is warmer.",
        *_asked_for(summary["metrics"]),
        "<b>Better</b> means that flicker falls and the light's path is kept: frozen light wins every flicker score.",
        f"Clips play up to {COPY_FRAMES} frames; what is measured is the whole clip.",
    ]
    text = (
        '<h2 id="reading">How to read this</h2><ul class="plain">' + "".join(f"<li>{i}</li>" for i in items) + "</ul>"
    )
    return text + (f'<p class="soft">Made by <code>{html.escape(command)}</code></p>' if command else "")
