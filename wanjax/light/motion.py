"""Motion between frames, for following light along it: optical flow, its inverse, occlusion, warping.

Flow is [H, W, 2] float32 with (dx, dy) in pixels, from a pixel of one frame to where it went in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["SMALLEST_SIDE", "Motion", "dis_motion", "given_motion", "warp"]

SMALLEST_SIDE = 12
"""Below this many pixels DIS has no patch to match; such frames are compared where they are."""


@dataclass(frozen=True)
class Motion:
    """Motion between frame t and t+1.

    Attributes:
      forward: [H, W, 2] from t to t+1.
      backward: [H, W, 2] from t+1 to t.
      seen_next: [H, W] bool, the pixels of t that are seen in t+1.
      seen_before: [H, W] bool, the pixels of t+1 that are seen in t.
    """

    forward: np.ndarray
    backward: np.ndarray
    seen_next: np.ndarray
    seen_before: np.ndarray


def dis_motion(before: np.ndarray, after: np.ndarray) -> Motion:
    """Motion between two grey frames [H, W] uint8 by dense inverse search; none below 12 pixels a side.

    References:
      Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016.
    """
    if min(before.shape) < SMALLEST_SIDE:
        still, seen = np.zeros((*before.shape, 2), np.float32), np.ones(before.shape, bool)
        return Motion(still, still, seen, seen)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if max(before.shape) < 128:
        search.setFinestScale(0)  # half-size flow of a small frame misses thin things
    forward = search.calc(before, after, None)
    backward = search.calc(after, before, None)
    return Motion(forward, backward, _seen(forward, backward), _seen(backward, forward))


def given_motion(flow: object, height: int, width: int) -> Iterator[Motion]:
    """Motions from given flow, resized to ``height`` x ``width``, one pair of frames after the other.

    Args:
      flow: [T-1, H, W, 2] from t to t+1 (or any iterable of [H, W, 2]), or a pair (forward, backward) of
        these. With forward alone the backward flow is its splatted inverse, and holes count as occluded.
      height, width: size of the frames that the motion is for.

    Raises:
      ValueError: where a flow is not [H, W, 2] or not finite.
    """
    if isinstance(flow, tuple | list) and len(flow) == 2 and np.ndim(flow[0]) != 3:
        for one, other in zip(*flow, strict=True):
            forward, backward = _resized(one, height, width), _resized(other, height, width)
            yield Motion(forward, backward, _seen(forward, backward), _seen(backward, forward))
        return
    if not isinstance(flow, Iterable):
        raise ValueError(f"flow: expected [T-1, H, W, 2] or a pair of these, got {type(flow).__name__}")
    for one in flow:
        forward = _resized(one, height, width)
        backward, hit = _splatted_inverse(forward)
        yield Motion(forward, backward, _seen(forward, backward, hit), hit & _seen(backward, forward))


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """``image [H, W]`` of the other frame, fetched to where ``flow [H, W, 2]`` starts (bilinear)."""
    x, y = _targets(flow)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return x, y


def _seen(there: np.ndarray, back: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Pixels that land inside the frame and come back to where they started (Sundaram et al., 2010)."""
    height, width = there.shape[:2]
    x, y = _targets(there)
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    returned = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = inside & (_squared(there + returned) < 0.01 * (_squared(there) + _squared(returned)) + 0.5)
    if known is not None:
        hit = cv2.remap(known.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        seen &= hit > 0.5
    return seen


def _squared(flow: np.ndarray) -> np.ndarray:
    return flow[..., 0] ** 2 + flow[..., 1] ** 2  # a sum over an axis of two takes numpy ten times as long


def _splatted_inverse(forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Backward flow and where it is known: each pixel leaves its flow, reversed, on the four it hits.

    Where several land, the flows are averaged by the area they cover.
    """
    height, width = forward.shape[:2]
    x, y = _targets(forward)
    left, top = np.floor(x), np.floor(y)
    total = np.zeros((height * width, 3), np.float64)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row))
            ok = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row[ok] * width + column[ok]).astype(np.int64)
            for channel, value in enumerate((weight, -weight * forward[..., 0], -weight * forward[..., 1])):
                total[:, channel] += np.bincount(index, value[ok], minlength=height * width)
    hit = total[:, 0] > 0.25
    backward = np.where(hit[:, None], total[:, 1:] / np.maximum(total[:, :1], 1e-6), 0)
    return backward.reshape(height, width, 2).astype(np.float32), hit.reshape(height, width)


def _resized(flow: object, height: int, width: int) -> np.ndarray:
    field = np.asarray(flow, np.float32)
    if field.ndim != 3 or field.shape[-1] != 2:
        raise ValueError(f"flow: expected [H, W, 2] for each pair of frames, got {list(field.shape)}")
    if not np.isfinite(field).all():
        raise ValueError("flow: holds values that are not finite; give zeros where motion is unknown")
    rows, columns = field.shape[:2]
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(field)
    scale = np.array([width / columns, height / rows], np.float32)
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA) * scale
