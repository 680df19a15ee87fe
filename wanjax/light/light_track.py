"""How the light of a picture changes from frame to frame, read along motion.

What enters, leaves or crosses the frame moves its mean; the median over pixels of the log ratio to the same
surface in the next frame hardly notices. Pixels weigh as much as they are bright, as they do in the mean: in
the shadows glare and a shifting black level change ratios most and light least. The median is taken for
luminance and for each channel against luminance, first for the whole picture, then as a smooth field over it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np

from wanjax.light.motion import Motion, dis_motion, warp
from wanjax.light.photometry import linear_to_srgb, luminance

__all__ = ["FIELD_TERMS", "QUANTITIES", "LightTrack", "LightTracker", "field_basis"]

QUANTITIES = 4
"""Log-luminance, and the logarithms of red, green and blue over luminance."""

WORKING_SIDE = 256
"""Longer side in pixels at which motion and light are looked at."""

_WAVES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))  # half waves over height and over width
FIELD_TERMS = len(_WAVES)
"""Number of cosines in the smooth field."""

_CELLS = 12  # cells along the longer side, each of which gives one median to the field
_DARK, _BRIGHT = 0.004, 0.9  # linear; below is rounding, above may have been clipped
_LEAST_SHARE = 0.05  # of the pixels must be comparable, or nothing is known about a change
# Stops between the quartiles of the pixels' changes, less the smooth field, over the share of pixels that are
# comparable: above it is another scene. Within a scene it is below 0.1, across cuts it was 1.2 and more.
_CUT_SPREAD = 0.6


@dataclass(frozen=True)
class LightTrack:
    """The light of a clip relative to its first frame, in stops.

    Axis 1 is log-luminance, then red, green and blue over luminance.

    Attributes:
      frame: [T, 4], the whole picture's, as the median over its pixels.
      beside_field: [T, 4], the same median after the field has been taken out: right where a field flickers, and
        noisier than ``frame`` where none does.
      field: [T, 4, FIELD_TERMS], coefficients of :func:`field_basis`.
      linked: [T-1] bool, whether frames t and t+1 could be compared; across a cut, or to a frame that is
        black or clipped, they cannot, and the tracks then stay where they were.
    """

    frame: np.ndarray
    beside_field: np.ndarray
    field: np.ndarray
    linked: np.ndarray


@functools.lru_cache(maxsize=4)
def field_basis(height: int, width: int) -> np.ndarray:
    """[FIELD_TERMS, height, width] float32 cosines with values in [-1, 1] and zero mean over the picture."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    return np.stack([np.outer(np.cos(np.pi * i * y), np.cos(np.pi * j * x)) for i, j in _WAVES])


@dataclass
class LightTracker:
    """Follows a clip frame by frame; keeps no more than one of them, at working size."""

    _last: np.ndarray | None = None
    _changes: list[np.ndarray] = field(default_factory=list)
    _linked: list[bool] = field(default_factory=list)
    count: int = 0

    def add(self, linear: np.ndarray) -> None:
        """Takes the next frame, linear RGB [H, W, 3] float32."""
        self.count += 1
        view = _working(linear)
        if self._last is not None:
            change = _change(self._last, view)
            self._linked.append(change is not None)
            self._changes.append(np.zeros((QUANTITIES, 2 + FIELD_TERMS)) if change is None else change)
        self._last = view

    def result(self) -> LightTrack:
        """The track over the frames seen so far, at least one."""
        first = np.zeros((1, QUANTITIES, 2 + FIELD_TERMS))
        stops = np.cumsum(np.concatenate([first, *(change[None] for change in self._changes)]), 0)
        return LightTrack(stops[..., 0], stops[..., 1], stops[..., 2:], np.array(self._linked, bool))


def _working(linear: np.ndarray) -> np.ndarray:
    height, width = linear.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(np.asarray(linear, np.float32), size, interpolation=cv2.INTER_AREA)


def _change(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """[4, 2 + FIELD_TERMS] stops from one view to the next; None where they cannot be compared."""
    motion = _motion(luminance(before), luminance(after))
    planes = [_log_planes(view) for view in (before, after)]
    maps = [_along(a, b, motion) for a, b in zip(*planes, strict=True)]
    light, valid = maps[0]
    if valid.mean() < _LEAST_SHARE:
        return None
    change = np.zeros((QUANTITIES, 2 + FIELD_TERMS))
    weight = np.stack([np.exp2(planes[0][0][0]), np.exp2(planes[1][0][0])])
    change[0], rest = _median_and_field(light, valid, weight)
    low, high = np.percentile(rest[valid], (25, 75))
    if high - low > _CUT_SPREAD * valid.mean():
        return None
    for quantity, (channel, seen) in enumerate(maps[1:], 1):
        both = valid & seen
        if both.mean() >= _LEAST_SHARE:
            change[quantity], _ = _median_and_field(channel - light, both, weight)
    return change


def _motion(before: np.ndarray, after: np.ndarray) -> Motion:
    """Optical flow takes brightness for constant: both frames are brought to the darker one's median first."""
    levels = [max(float(np.median(y)), _DARK) for y in (before, after)]
    greys = [np.round(255 * linear_to_srgb(y * (min(levels) / level))).astype(np.uint8)
             for y, level in zip((before, after), levels, strict=True)]
    return dis_motion(*greys)


def _log_planes(view: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Luminance, red, green, blue: low-passed log2 [H, W], and where it can be relied on."""
    planes = []
    for plane in (luminance(view), *np.moveaxis(view, -1, 0)):
        smooth = cv2.GaussianBlur(np.ascontiguousarray(plane), (0, 0), 1.5, borderType=cv2.BORDER_REPLICATE)
        planes.append((np.log2(np.maximum(smooth, 1e-6)), (smooth > _DARK) & (smooth < _BRIGHT)))
    return planes


def _along(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], motion: Motion
) -> tuple[np.ndarray, np.ndarray]:
    """Changes [2, H, W] in stops, on the grids of both frames, and where they are known.

    Both ways, so that the clip played backwards has exactly the opposite changes.
    """
    (a, good_a), (b, good_b) = before, after
    changes = np.stack([warp(b, motion.forward) - a, b - warp(a, motion.backward)])
    known = np.stack([
        good_a & motion.seen_next & (warp(good_b.astype(np.float32), motion.forward) > 0.99),
        good_b & motion.seen_before & (warp(good_a.astype(np.float32), motion.backward) > 0.99),
    ])
    return changes, known


def _median_and_field(
    changes: np.ndarray, known: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weighted median of the known pixels, and a smooth field fitted to the medians of cells.

    Returns:
      [2 + FIELD_TERMS] median, median beside the field, field; and what the latter two leave [2, H, W].
    """
    out = np.zeros(2 + FIELD_TERMS)
    out[:2] = _weighted_median(changes[known], weight[known])
    rest = changes - np.float32(out[0])
    middle, share = _cell_medians(rest, known)
    enough = share > 0.25
    if enough.sum() >= 4 * (1 + FIELD_TERMS):
        terms = np.concatenate([np.ones((1, *enough.shape)), field_basis(*enough.shape)])[:, enough].T
        out[2:] = _robust_fit(terms, middle[enough], share[enough])[1:]
        rest = rest - np.tensordot(out[2:].astype(np.float32), field_basis(*rest.shape[1:]), 1)
        left = _weighted_median(rest[known], weight[known])
        out[1] += left
        rest = rest - np.float32(left)
    return out, rest


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order], dtype=np.float64)
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])


def _cell_medians(changes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians over cells [h, w], both grids together, and the share of each cell that is known."""
    _, height, width = changes.shape
    size = max(1, round(max(height, width) / _CELLS))
    rows, columns = max(1, height // size), max(1, width // size)
    tall, wide = height // rows, width // columns

    def cells(plane: np.ndarray) -> np.ndarray:
        cut = plane[:, : rows * tall, : columns * wide].reshape(2, rows, tall, columns, wide)
        return cut.transpose(1, 3, 0, 2, 4).reshape(rows, columns, -1)

    values = np.sort(np.where(cells(known), cells(changes), np.inf), axis=-1)
    count = cells(known).sum(-1)
    middle = np.take_along_axis(values, np.maximum(count - 1, 0)[..., None] // 2, -1)[..., 0]
    return np.where(count > 0, middle, 0.0), count / values.shape[-1]


def _robust_fit(terms: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares with Tukey's biweight: what moves in a few cells does not bend the field."""
    trust = weights
    for _ in range(6):
        scaled = terms * trust[:, None]
        solution = np.linalg.lstsq(scaled.T @ terms + 1e-3 * np.eye(terms.shape[1]), scaled.T @ values, rcond=None)[0]
        rest = np.abs(values - terms @ solution)
        scale = max(1.4826 * float(np.median(rest)), 1e-3)
        trust = weights * np.square(np.maximum(1 - np.square(rest / (4.685 * scale)), 0))
    return solution
