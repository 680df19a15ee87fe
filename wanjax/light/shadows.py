"""Shadows against ground truth: where they lie, which way they point, how long they are, where the lit patches are.

A clip that shows a scene of known layout tells its shadows: in linear light ``image = direct * visibility + ambient +
specular``, so visibility is what is left when the other passes are taken out, wherever the direct light is bright
enough to divide by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

__all__ = ["NO_ANGLE", "ShadowTracker", "Shadow", "estimated_visibility", "shadow_of"]

NO_ANGLE = 90.0
"""Degrees charged where the truth has a shadow at the foot and the clip has none: what a random direction is off."""

_BRIGHT = 0.02  # direct luminance; half a step of an 8-bit code is a hundredth of it
_SHARE = 0.2  # of direct in the unshadowed light; below it, errors of the ambient pass outweigh the shadow
_NEAR = 0.05  # of the longer side: a shadow belongs to the foot that it reaches within this distance
_SMALLEST = 4  # pixels; less has no direction


def estimated_visibility(
    y: np.ndarray, direct: np.ndarray, ambient: np.ndarray, specular: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much of the key light reaches each pixel of a picture.

    Args:
      y: [H, W] linear luminance of the picture, 1 at most.
      direct, ambient, specular: [H, W] luminance of the scene's passes, ``direct`` as if nothing were in its way.

    Returns:
      [H, W] share in 0 to 1, and [H, W] bool where it can be told: where the direct light that a picture can show
      (what is brighter than white is cut off) is bright enough, alone and beside the rest.
    """
    rest = ambient + specular
    shown = np.minimum(direct + rest, 1) - rest
    known = (shown > _BRIGHT) & (shown > _SHARE * (shown + rest))
    return np.clip((y - rest) / np.maximum(shown, _BRIGHT), 0, 1), known


@dataclass(frozen=True)
class Shadow:
    """The shadow that lies at a foot.

    Attributes:
      angle: radians in the image, x to the right and y down, from the foot to the shadow's centroid.
      length: pixels from the foot to the farthest part along that direction (98th percentile).
    """

    angle: float
    length: float


def shadow_of(mask: np.ndarray, foot: tuple[float, float]) -> Shadow | None:
    """The shadow in ``mask [H, W]`` that reaches ``foot`` (x, y in pixels); None where none does."""
    near = _NEAR * max(mask.shape)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    y, x = np.nonzero(labels)
    dx, dy, label = x - foot[0], y - foot[1], labels[y, x]
    reaching = np.unique(label[np.hypot(dx, dy) <= near])
    own = np.isin(label, reaching)
    if own.sum() < _SMALLEST:
        return None
    dx, dy = dx[own], dy[own]
    angle = math.atan2(dy.mean(), dx.mean())
    along = dx * math.cos(angle) + dy * math.sin(angle)
    return Shadow(angle, float(np.percentile(along, 98)))


@dataclass
class ShadowTracker:
    """Sums errors over the frames of a clip."""

    _common: int = 0  # pixels in shadow in both, and in either
    _either: int = 0
    _angles: list[float] = field(default_factory=list)
    _lengths: list[float] = field(default_factory=list)
    _patches: list[float] = field(default_factory=list)

    def add(
        self, estimate: np.ndarray, truth: np.ndarray, known: np.ndarray, foot: tuple[float, float] | None
    ) -> None:
        """Adds a frame: visibility [H, W] as estimated and as it is, where it is known, and the caster's foot."""
        dark, true_dark = known & (estimate < 0.5), known & (truth < 0.5)
        self._common += int((dark & true_dark).sum())
        self._either += int((dark | true_dark).sum())
        if foot is not None and (true := shadow_of(true_dark, foot)) is not None:
            seen = shadow_of(dark, foot)
            turn = NO_ANGLE if seen is None else abs(math.degrees(seen.angle - true.angle))
            self._angles.append(min(turn, 360 - turn))
            self._lengths.append(abs((0.0 if seen is None else seen.length) / max(true.length, 1.0) - 1))
        patch, true_patch = _centroid(estimate, known), _centroid(truth, known)
        if true_patch is not None:
            # A patch that is gone is as far off as it can be from the middle of the frame.
            gone = 0.5 * math.hypot(*truth.shape)
            self._patches.append(gone if patch is None else math.dist(patch, true_patch))

    def metrics(self) -> dict[str, float]:
        """``shadow_iou`` over all frames together, the other errors as means over the frames that have them."""
        found = {"shadow_iou": self._common / self._either} if self._either else {}
        for name, values in (
            ("shadow_angle_error", self._angles),
            ("shadow_length_error", self._lengths),
            ("patch_error", self._patches),
        ):
            if values:
                found[name] = float(np.mean(values))
        return found


def _centroid(visibility: np.ndarray, known: np.ndarray) -> tuple[float, float] | None:
    """Centroid (x, y) in pixels of what is lit; its border counts by its share, noise in the dark does not."""
    lit = np.where(known, np.clip(2 * visibility - 0.5, 0, 1), 0)
    mass = lit.sum(dtype=np.float64)
    if mass < 1:
        return None
    return float(lit.sum(0) @ np.arange(lit.shape[1]) / mass), float(lit.sum(1) @ np.arange(lit.shape[0]) / mass)
