"""Whether the shadow of a walker under a lamp is his, read off a clip of unknown layout under a still camera.

The lamp may be seen or not; all that is used is how a shadow that belongs to a walker has to move. With his height h,
the lamp's height H and his distance d from the point below it, its tip lies h d / (H - h) beyond his feet, away from
the lamp: it is attached to them, it points back where he comes from until he passes the lamp and ahead of him
afterwards, and it is shortest as he passes. Where he walks past at a constant pace, the shadow's lead over him grows in
proportion to his way, whatever the perspective: both feet and tip run along straight lines in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["NO_SHADOW", "Following", "following"]

_CHANGE = 0.5  # stops off its usual light from which a pixel belongs to the walker or his shadow
_MOST = 2.0  # stops; more does not count more
_BODY = 0.18  # of his height: half the width, to either side, within which his own legs swing
_ABOVE, _BELOW = 0.2, 0.55  # of his height: rows around his feet in which the shadow is looked for
_LEAST_SHADOW = 2.0  # stops times pixels beside him; less is no shadow to either side
_LEAST_COLUMN = 0.5  # the same in one column that the shadow reaches
_NEAR = 0.3  # of his height: a shadow that begins within this distance of him is attached to him
_LEAST_WALK = 0.15  # of the width
_SMALLEST = 8  # pixels; a smaller figure has no feet to speak of


@dataclass(frozen=True)
class Following:
    """How a dark shape moves beside a walker.

    Attributes:
      seen: share of frames in which it lies to one side of him.
      attached: share of these in which it begins at his feet.
      swing: way of its centroid ahead of him over his own way; positive where it swings from behind him to ahead.
      swing_fit: correlation of that lead with his way.
      passing: where the lead changes sides, 0 at the beginning of his walk and 1 at its end; may lie outside.
      stretch: correlation of its reach with his distance from there.
    """

    seen: float
    attached: float
    swing: float
    swing_fit: float
    passing: float
    stretch: float


NO_SHADOW = Following(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def following(stops: np.ndarray) -> Following:
    """Looks at log-luminance [n, h, w] in stops, as small as 64 pixels; :data:`NO_SHADOW` where nobody walks."""
    frames, height, width = stops.shape
    if frames < 5 or min(height, width) < 2 * _SMALLEST:
        return NO_SHADOW
    change = stops - np.median(stops, axis=0)
    change = change - np.median(change, axis=(1, 2), keepdims=True)
    moving = np.where(np.abs(change) > _CHANGE, np.minimum(np.abs(change), _MOST), 0)
    rows = moving.mean(axis=(0, 2))
    if rows.max() <= 0:
        return NO_SHADOW
    busy = np.flatnonzero(rows > 0.15 * rows.max())
    head, lowest = int(busy[0]), int(busy[-1])
    upper = slice(head, head + max(2, round(0.5 * (lowest - head + 1))))
    x = _track(moving[:, upper].sum(axis=1))
    if abs(x[-1] - x[0]) < _LEAST_WALK * width:
        return NO_SHADOW
    foot = _foot(moving, x, upper, lowest)
    tall = foot - head + 1
    if tall < _SMALLEST:
        return NO_SHADOW
    band = slice(max(0, foot - round(_ABOVE * tall)), min(height, foot + round(_BELOW * tall) + 1))
    dark = np.where(change < -_CHANGE, np.minimum(-change, _MOST), 0)[:, band]
    beside = np.arange(width) - x[:, None]  # [n, w]
    own = (np.arange(height)[band] <= foot)[None, :, None] & (np.abs(beside) <= _BODY * tall)[:, None, :]
    return _judge(np.where(own, 0, dark).sum(axis=1), beside, x, _NEAR * tall)


def _track(columns: np.ndarray) -> np.ndarray:
    """Where the walker is in every frame [n], from what moves per column [n, w]: a line, little moved by outliers."""
    mass = columns.sum(axis=1)
    below = np.cumsum(columns, axis=1)
    middle = (below < 0.5 * mass[:, None]).sum(axis=1).astype(float)
    time = np.arange(len(columns), dtype=float)
    weight = np.minimum(mass, np.median(mass)) + 1e-9
    trust = weight
    line = middle
    for _ in range(8):
        line = np.polyval(np.polyfit(time, middle, 1, w=np.sqrt(trust)), time)
        off = np.abs(middle - line)
        trust = weight * np.where(off < 4 * max(1.5 * float(np.median(off)), 0.5), 1, 0.02)
    return line


def _foot(moving: np.ndarray, x: np.ndarray, upper: slice, lowest: int) -> int:
    """The lowest row that moves with the walker in most frames; a shadow crosses his columns only as he passes."""
    _, _, width = moving.shape
    profiles = []
    for frame, at in zip(moving, np.round(x).astype(int), strict=True):
        if 0 <= at < width:
            profiles.append(frame[:, max(0, at - 2) : at + 3].max(axis=1))
    profile = np.median(profiles, axis=0)
    body = np.flatnonzero(profile > 0.5 * np.median(profile[upper]))
    return int(body[-1]) if len(body) else lowest


def _judge(dark: np.ndarray, beside: np.ndarray, x: np.ndarray, near: float) -> Following:
    """What the darkness per column [n, w], at distances ``beside`` [n, w] from the walker at ``x`` [n], does."""
    mass = dark.sum(axis=1)
    seen = mass >= _LEAST_SHADOW
    if not seen.any():
        return NO_SHADOW
    weight = np.where(seen[:, None], dark, 0) / np.maximum(mass, 1e-9)[:, None]
    # As he passes it lies below him, to neither side: a lead of 0.
    lead, reach = (weight * beside).sum(axis=1), np.sqrt((weight * beside**2).sum(axis=1))
    begins = np.where(dark > _LEAST_COLUMN, np.abs(beside), np.inf).min(axis=1)
    attached = float((begins[seen] < near).mean())
    way = x - x.mean()
    swing = float(way @ lead / (way @ way))
    passing = x.mean() - lead.mean() / swing if abs(swing) > 1e-3 else np.inf
    along = float((passing - x[0]) / (x[-1] - x[0]))
    stretch = _correlation(np.abs(x - passing), reach) if np.isfinite(passing) else 0.0
    return Following(
        float(seen.mean()), attached, swing, _correlation(way, lead), float(np.clip(along, -9, 9)), stretch
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / power if power > 1e-9 else 0.0
