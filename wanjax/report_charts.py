"""Small line charts as inline SVG, styled by the page they stand in."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Line", "line_chart"]

_WIDTH, _HEIGHT = 240, 172
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 8, 28, 26


@dataclass(frozen=True)
class Line:
    """One line: ``x [n]``, ``y [n]``; ``kind`` is its CSS class, ``dots`` [n] in [0, 1] how bold each dot is."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    kind: str
    dots: Sequence[float] | np.ndarray | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    least_span: float,
    limits: tuple[float, float] | None = None,
    ends: tuple[str, str] | None = None,
    seconds: float | None = None,
) -> str:
    """A chart over time in seconds.

    Args:
      title: what is drawn, with its unit.
      lines: drawn in order, the last on top.
      least_span: the vertical axis spans at least this much, so that stillness looks still.
      limits: lower and upper end of the vertical axis instead.
      ends: words for these two ends, in place of numbers.
      seconds: length of the time axis, if not that of the longest line.

    Returns:
      An ``<svg>`` element.
    """
    low, high = limits or _span(lines, least_span)
    end = seconds or max((float(np.max(line.x)) for line in lines if len(line.x)), default=0.0) or 1.0
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, low), high) - low) / (high - low)
        return _LEFT + inner_width * x / end, _TOP + inner_height * (1 - share)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text class="title" x="0" y="13">{html.escape(title)}</text>',
    ]
    for index, tick in enumerate((low, high) if ends else _ticks(low, high)):
        _, y = at(0, tick)
        label = ends[index] if ends else f"{tick:g}".replace("-", "−")
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for tick in _ticks(0, end, most=4):
        x, _ = at(tick, low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{tick:g} s</text>')
    if not any(len(line.x) for line in lines):
        middle = f'x="{_LEFT + inner_width / 2}" y="{_TOP + inner_height / 2}"'
        parts.append(f'<text class="tick" {middle} text-anchor="middle">none</text>')
    for line in lines:
        points = [at(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True)]
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line {line.kind}" points="{path}"/>')
        weights = line.dots if line.dots is not None else [1.0] * len(points) if len(points) == 1 else []
        for (x, y), weight in zip(points, weights, strict=False):
            radius = 2.8 * math.sqrt(max(0.0, min(1.0, float(weight))))
            if radius > 0.4:
                parts.append(f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
    parts.append("</svg>")
    return "".join(parts)


def _span(lines: Sequence[Line], least: float) -> tuple[float, float]:
    values = np.concatenate([np.asarray(line.y, np.float64) for line in lines] or [np.zeros(1)])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    pad = max(least - (high - low), 0.1 * (high - low)) / 2
    return low - pad, high + pad


def _ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers within [low, high], ``most`` or fewer (at least one)."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]
