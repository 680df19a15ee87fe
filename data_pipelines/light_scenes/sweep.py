"""The sweep of light over surfaces that stand still, measured on a rendered clip with its own flow."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes.colour import LUMINANCE_FLOOR

STILL = 0.5
"""A pixel stands still if the median over time of its surface flow is below this many pixels per frame, in a picture
whose longer side has 64 pixels or fewer, or that share of a larger one."""


GATE = 0.15
"""Deviations in stops that are left out under a moving camera: textures that slide over the pixels make such."""


@dataclass(frozen=True)
class Sweep:
    """``rate``: frame widths per second, positive to the right. ``mass``: mean deviation in stops."""

    rate: float
    mass: float


def sweep_of(luminance: np.ndarray, flow: np.ndarray, fps: float, gate: float = 0.0) -> Sweep:
    """Sweep of linear luminance ``[T, H, W]`` with surface flow ``[T-1, H, W, 2]`` in pixels per frame.

    Per frame, the deviation is abs(log2(frame / temporal median)) after the frame's median over pixels is
    taken out; the rate is the slope of its horizontal centroid, frames weighted by their mass. Moving pixels,
    and deviations up to ``gate`` stops, count as 0. A clip of one frame, or without still pixels, has rate and
    mass 0.
    """
    frames, height, width = luminance.shape
    if frames < 2:
        return Sweep(0.0, 0.0)
    still = np.median(np.sqrt((flow.astype(np.float32) ** 2).sum(-1)), 0) < STILL * max(1.0, max(height, width) / 64)
    if not still.any():
        return Sweep(0.0, 0.0)
    stops = np.log2(luminance.astype(np.float32) + np.float32(LUMINANCE_FLOOR))
    stops = stops - np.median(stops, 0)
    stops = stops - np.median(stops[:, still], 1)[:, None, None]
    deviation = np.abs(stops) * still
    if gate:
        deviation = np.where(deviation > gate, deviation, 0)
    mass = deviation.sum((1, 2), dtype=np.float64)
    if mass.sum() <= 1e-6 * deviation.size:
        return Sweep(0.0, float(mass.sum() / deviation.size))
    centroid = (deviation.sum(1, dtype=np.float64) * (np.arange(width) + 0.5) / width).sum(1)
    centroid = centroid / np.maximum(mass, 1e-12)
    seconds = np.arange(frames) / fps
    mean = (mass * seconds).sum() / mass.sum()
    spread = (mass * (seconds - mean) ** 2).sum()
    if spread == 0:
        return Sweep(0.0, float(mass.sum() / deviation.size))
    rate = (mass * (seconds - mean) * (centroid - (mass * centroid).sum() / mass.sum())).sum() / spread
    return Sweep(float(rate), float(mass.sum() / deviation.size))
