"""Plans of a search as a picture: an SVG file that stands alone."""

from __future__ import annotations

import html

from wanjax.plan_search import Search, short

_LINE, _LEFT, _BAR, _GAP = 26, 330, 230, 70
_STYLE = ("text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 } .small { fill: #666 } "
          ".fits { fill: #2a7f62 } .not { fill: #c46a4a } .limit { stroke: #222; stroke-dasharray: 3 2 }")


def chart(found: Search, title: str) -> str:
    """Two bars for every plan: seconds of one clip at least, and memory of one device beside what there is of it.

    Args:
        found: plans, in the order in which they are drawn.
        title: what was planned, and where.
    Returns: an ``<svg>`` document.
    """
    width, height = _LEFT + 2 * (_BAR + _GAP), 62 + _LINE * len(found.plans)
    slowest = max((plan["seconds_per_clip"] or 0 for plan in found.plans), default=0) or 1.0
    most = max((max(plan["peak_bytes_per_device"], plan["hbm_bytes_per_device"]) for plan in found.plans), default=1)
    second = _LEFT + _BAR + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(title)}"><style>{_STYLE}</style>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="8" y="20">{html.escape(title)}</text>',
        f'<text class="small" x="{_LEFT}" y="42">seconds of one clip, at least</text>',
        f'<text class="small" x="{second}" y="42">memory of a device, GB; dashed: what it has</text>',
    ]
    for number, plan in enumerate(found.plans):
        y, kind, seconds = 52 + _LINE * number, "fits" if plan["fits"] else "not", plan["seconds_per_clip"]
        parts.append(f'<text x="8" y="{y + 15}">{html.escape(short(plan["overrides"]))}</text>')
        said = "not known" if seconds is None else f"{seconds:.3g}"
        parts += _bar(_LEFT, y, (seconds or 0) / slowest, kind, said)
        peak = plan["peak_bytes_per_device"]
        parts += _bar(second, y, peak / most, kind, f"{peak / 1e9:.1f}")
        x = second + _BAR * plan["hbm_bytes_per_device"] / most
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + _LINE - 6}"/>')
    return "".join([*parts, "</svg>\n"])


def _bar(x: int, y: int, share: float, kind: str, said: str) -> list[str]:
    width = _BAR * share
    return [f'<rect class="{kind}" x="{x}" y="{y + 3}" width="{width:.1f}" height="{_LINE - 12}"/>',
            f'<text class="small" x="{x + width + 5:.1f}" y="{y + 15}">{said}</text>']
