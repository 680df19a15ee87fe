"""Small charts as inline SVG, styled by the page they stand in."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Line", "line_chart", "stem_chart", "whisker"]

_WIDTH, _HEIGHT = 240, 172
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 8, 28, 26
_POINTS = 360  # per line; a longer track keeps the lowest and the highest of every bin


@dataclass(frozen=True)
class Line:
    """One line: ``x [n]``, ``y [n]``; ``kind`` is its CSS class.

    ``dots`` [n] in [0, 1] is how bold each dot is; ``marks`` [n] bool circles points.
    """

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    kind: str
    dots: Sequence[float] | np.ndarray | None = None
    marks: np.ndarray | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    least_span: float,
    limits: tuple[float, float] | None = None,
    ends: tuple[str, str] | None = None,
    seconds: float | None = None,
    summary: str = "",
) -> str:
    """A chart over time in seconds.

    Args:
      title: what is drawn, with its unit.
      lines: drawn in order, the last on top.
      least_span: the vertical axis spans at least this much, so that stillness looks still.
      limits: lower and upper end of the vertical axis instead.
      ends: words for these two ends, in place of numbers.
      seconds: length of the time axis, if not that of the longest line.
      summary: what the chart shows, for those who cannot see it.

    Returns:
      An ``<svg>`` element.
    """
    low, high = limits or _span(lines, least_span)
    axes = _Axes(low, high, seconds or _end(lines))
    parts = axes.frame(title, summary, ends)
    if not any(len(line.x) for line in lines):
        parts.append(axes.words("none"))
    for line in lines:
        kept = _thinned(np.asarray(line.y, np.float64))
        points = [axes.at(float(line.x[i]), float(line.y[i])) for i in kept]
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line {line.kind}" points="{path}"/>')
        if line.dots is not None:
            weights = [float(line.dots[i]) for i in kept]
        else:
            weights = [1.0] * len(points) if len(points) == 1 else []
        for (x, y), weight in zip(points, weights, strict=False):
            radius = 2.8 * math.sqrt(max(0.0, min(1.0, weight)))
            if radius > 0.4:
                parts.append(f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
        for i in np.flatnonzero(line.marks)[:_POINTS] if line.marks is not None else ():
            x, y = axes.at(float(line.x[i]), float(line.y[i]))
            parts.append(f'<circle class="mark {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return "".join([*parts, "</svg>"])


def stem_chart(title: str, lines: Sequence[Line], *, least_span: float, summary: str = "") -> str:
    """A chart of signed values over time in seconds: the last line as stems from zero, the others as lines.

    Takes what :func:`line_chart` takes.
    """
    reach = max([least_span / 2, *(1.1 * float(np.abs(line.y).max()) for line in lines if len(line.y))])
    axes = _Axes(-reach, reach, _end(lines))
    parts = axes.frame(title, summary, None)
    for index, line in enumerate(lines):
        kept = _thinned(np.asarray(line.y, np.float64))
        if index < len(lines) - 1:
            path = " ".join("{:.1f},{:.1f}".format(*axes.at(float(line.x[i]), float(line.y[i]))) for i in kept)
            parts.append(f'<polyline class="line {line.kind}" points="{path}"/>')
            continue
        steps = []
        for i in kept:
            (x, zero), (_, y) = axes.at(float(line.x[i]), 0.0), axes.at(float(line.x[i]), float(line.y[i]))
            steps.append(f"M{x:.1f} {zero:.1f}V{y:.1f}")
        parts.append(f'<path class="line {line.kind}" d="{"".join(steps)}"/>')
        for i in np.flatnonzero(line.marks)[:_POINTS] if line.marks is not None else ():
            x, y = axes.at(float(line.x[i]), float(line.y[i]))
            parts.append(f'<circle class="mark {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return "".join([*parts, "</svg>"])


def whisker(low: float, middle: float, high: float, reach: float, kind: str) -> str:
    """An interval on an axis from -``reach`` to ``reach`` with zero in its middle; beyond it, an arrow."""
    width, height = 150, 18

    def at(value: float) -> float:
        return width / 2 * (1 + max(-1.0, min(1.0, value / reach)) * 0.96)

    parts = [
        f'<svg class="whisker {kind}" viewBox="0 0 {width} {height}" aria-hidden="true">',
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="1" y2="{height - 1}"/>',
        f'<line class="bar" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{height / 2}" y2="{height / 2}"/>',
        f'<circle cx="{at(middle):.1f}" cy="{height / 2}" r="4"/>',
    ]
    for value, x, step in ((low, 1.0, 4), (high, width - 1.0, -4)):
        if abs(value) > reach and (value < 0) == (step > 0):
            parts.append(f'<path class="bar" d="M{x + step} 5L{x} 9L{x + step} 13"/>')
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Axes:
    """The plane of a chart: value ``low`` to ``high``, time 0 to ``end``."""

    low: float
    high: float
    end: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, self.low), self.high) - self.low) / (self.high - self.low)
        across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * x / self.end, _TOP + down * (1 - share)

    def frame(self, title: str, summary: str, ends: tuple[str, str] | None) -> list[str]:
        said = html.escape(f"{title}: {summary}" if summary else title)
        parts = [
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">',
            f'<text class="title" x="0" y="13">{html.escape(title)}</text>',
        ]
        for index, tick in enumerate((self.low, self.high) if ends else _ticks(self.low, self.high)):
            _, y = self.at(0, tick)
            label = ends[index] if ends else f"{tick:g}".replace("-", "−")
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
        for tick in _ticks(0, self.end, most=4):
            x, _ = self.at(tick, self.low)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{tick:g} s</text>')
        return parts

    def words(self, text: str) -> str:
        x, y = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
        return f'<text class="tick" x="{x}" y="{y}" text-anchor="middle">{text}</text>'


def _end(lines: Sequence[Line]) -> float:
    return max((float(np.max(line.x)) for line in lines if len(line.x)), default=0.0) or 1.0


def _thinned(y: np.ndarray) -> np.ndarray:
    """Indices to draw: all, or of a long track the lowest and the highest of every bin, so that no spike is lost."""
    if len(y) <= _POINTS:
        return np.arange(len(y))
    kept: list[int] = [0, len(y) - 1]
    for part in np.array_split(np.arange(len(y)), _POINTS // 2):
        kept += [int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])]
    return np.unique(kept)


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
