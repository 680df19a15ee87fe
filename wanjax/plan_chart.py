"""Plans of a search as a picture: an SVG file that stands alone."""

from __future__ import annotations

import html

from wanjax.plan_search import Search, short

_LINE, _BAR, _GAP, _LETTER = 26, 230, 150, 6.6
_FITS, _NOT = "fits", "not"  # classes of the style sheet
_STYLE = (
    "text { font: 12px Helvetica, Arial, sans-serif; fill: #222; stroke: #fff; stroke-width: 3px; "
    "paint-order: stroke } .title { font-weight: 600 } .small { fill: #555 } "
    f".{_FITS} {{ fill: #2a7f62 }} .{_NOT} {{ fill: #c46a4a }} .limit {{ stroke: #222; stroke-dasharray: 3 2 }}"
)


def chart(found: Search, title: str) -> str:
    """Two bars for every plan: seconds of one clip at least, and memory of one device beside what there is of it.

    Args:
        found: plans, in the order in which they are drawn.
        title: what was planned, and where.
    Returns: an ``<svg>`` document.
    """
    labels = [f"{number}  {short(plan['overrides'])}" for number, plan in enumerate(found.plans, start=1)]
    left = round(24 + _LETTER * max(map(len, [*labels, title]), default=0))
    second = left + _BAR + _GAP
    width, height = second + _BAR + _GAP + 60, 90 + _LINE * len(found.plans)
    slowest = max((plan["seconds_per_clip"] or 0 for plan in found.plans), default=0) or 1.0
    most = max((max(plan["peak_bytes_per_device"], plan["hbm_bytes_per_device"]) for plan in found.plans), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(title)}"><style>{_STYLE}</style>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="8" y="20">{html.escape(title)}</text>',
        f'<text class="small" x="{left}" y="42">seconds of one clip: a lower bound, never run</text>',
        f'<text class="small" x="{second}" y="42">GB of a device; dashed: what it has</text>',
    ]
    for number, (label, plan) in enumerate(zip(labels, found.plans, strict=True)):
        y, kind, seconds = 52 + _LINE * number, _FITS if plan["fits"] else _NOT, plan["seconds_per_clip"]
        parts.append(f'<text x="8" y="{y + 15}">{html.escape(label)}</text>')
        said = "not known" if seconds is None else f"{seconds:.3g}"
        parts += _bar(left, y, (seconds or 0) / slowest, kind, said)
        peak, host = plan["peak_bytes_per_device"], plan["host_bytes"]
        beside = f" and {host / 1e9:.1f} on its host" if host else ""
        x, text = second + _BAR * plan["hbm_bytes_per_device"] / most, "" if plan["fits"] else ", too much"
        bar, words = _bar(second, y, peak / most, kind, f"{peak / 1e9:.1f}{text}{beside}")
        parts += [bar, f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + _LINE - 6}"/>', words]
    y, x = height - 14, left
    for kind, said in ((_FITS, "fits"), (_NOT, "does not fit")):
        parts.append(f'<circle class="{kind}" cx="{x + 5}" cy="{y - 4}" r="5"/>')
        parts.append(f'<text class="small" x="{x + 16}" y="{y}">{said}</text>')
        x += 60
    return "".join([*parts, "</svg>\n"])


def _bar(x: int, y: int, share: float, kind: str, said: str) -> list[str]:
    width = _BAR * share
    return [f'<rect class="{kind}" x="{x}" y="{y + 3}" width="{width:.1f}" height="{_LINE - 12}"/>',
            f'<text class="small" x="{x + width + 5:.1f}" y="{y + 15}">{html.escape(said)}</text>']
