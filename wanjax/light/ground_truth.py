"""Errors of a clip's light against the record of the scene that it shows.

The record states slopes, which any clip of the caption can be compared with, and may hold the scene's passes, which
only a clip of the same layout can: one that was rendered, then coded, corrected or made to flicker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from wanjax.light.glints import LagTracker
from wanjax.light.photometry import luminance
from wanjax.light.shadows import ShadowTracker, estimated_visibility

__all__ = ["SceneTracker", "slope", "slope_errors"]

_PER_FRAME = ("visibility", "direct", "shadowed", "ambient", "specular", "foot", "glint")

_GLITTER = 0.01  # change of luminance from frame to frame (rms); weaker highlights are lost in a stored clip


def slope(values: np.ndarray, fps: float) -> float:
    """Least-squares slope per second; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    seconds = (np.arange(len(values)) - (len(values) - 1) / 2) / fps
    return float(seconds @ values / (seconds @ seconds))


def slope_errors(measured: Mapping[str, float], truth: Mapping[str, Any], fps: float) -> dict[str, float]:
    """Absolute differences of ``exposure_slope``, ``cct_slope`` and ``sweep_rate``, of what the truth states.

    Raises:
      ValueError: a value that is not finite.
    """
    stated = dict(truth)
    if stated.get("exposure_slope") is None and stated.get("log_luminance") is not None:
        stated["exposure_slope"] = slope(np.asarray(stated["log_luminance"], np.float64), fps)
    errors = {}
    for name, value in measured.items():
        if stated.get(name) is not None:
            expected = float(stated[name])
            if not math.isfinite(expected):
                raise ValueError(f"truth: {name} = {expected}: expected a finite number")
            errors[f"{name}_error"] = abs(value - expected)
    return errors


class SceneTracker:
    """Compares a clip with its scene's passes, one frame after the other; holds one frame of them at a time."""

    def __init__(self, truth: Mapping[str, Any]) -> None:
        """Takes from ``truth`` what it states of the keys of :func:`wanjax.light.metrics.measure`."""
        self._passes: dict[str, Iterator[Any]] = {}
        for name in _PER_FRAME:
            value = truth.get(name)
            if value is None:
                continue
            if not isinstance(value, Iterable):
                raise ValueError(f"truth: {name}: expected one entry per frame, got {type(value).__name__}")
            self._passes[name] = iter(value)
        self._frame = 0
        self._shadows = ShadowTracker()
        self._glints = LagTracker()

    @property
    def compares(self) -> bool:
        """Whether the truth states anything that has to be compared frame by frame."""
        named = set(self._passes)
        return {"visibility", "direct", "ambient"} <= named or bool(named & {"glint", "specular"})

    def add(self, y: np.ndarray) -> None:
        """Adds a frame's linear luminance [H, W], as it was measured."""
        if not self.compares:
            return
        passes = {name: self._next(name) for name in self._passes}
        foot, glint = passes.pop("foot", None), passes.get("glint")
        shapes = {name: values.shape for name, values in passes.items() if values.ndim == 2}
        shape = next(iter(shapes.values()), y.shape)
        for name, other in shapes.items():
            if other != shape:
                raise ValueError(
                    f"truth: {name} of frame {self._frame} is {list(other)}, {next(iter(shapes))} {list(shape)}"
                )
        y = _resized(y, shape)
        dark = np.zeros(shape)
        direct, ambient, specular = (passes.get(name, dark) for name in ("direct", "ambient", "specular"))
        visible = passes.get("visibility", np.ones(shape))
        if {"shadowed", "direct"} <= set(passes):
            # Of a pixel with several surfaces in it, what a picture can show is this, not their mean visibility.
            visible = np.where(direct > 0, np.minimum(passes["shadowed"] / np.where(direct > 0, direct, 1), 1), visible)
        if {"visibility", "direct", "ambient"} <= set(passes):
            estimate, known = estimated_visibility(y, direct, ambient, specular)
            self._shadows.add(estimate, visible, known, None if foot is None else (float(foot[0]), float(foot[1])))
        highlights = np.maximum(y - np.minimum(direct * visible + ambient, 1), 0)
        if glint is not None and (glint.ndim == 2 or "specular" not in passes):
            measured = highlights if glint.ndim == 2 else np.full((1, 1), highlights.mean())
            self._glints.add(measured, np.atleast_2d(glint))
        elif "specular" in passes:
            self._glints.add(highlights, specular)
        self._frame += 1

    def metrics(self) -> dict[str, float]:
        """What could be compared, under the names of :data:`wanjax.light.metrics.UNITS`.

        Raises:
          ValueError: the truth has more frames than the clip.
        """
        if not self.compares:
            return {}
        for name, values in self._passes.items():
            if next(values, None) is not None:
                raise ValueError(f"truth: {name} has more than the {self._frame} frames of the clip")
        found = self._shadows.metrics()
        lag = self._glints.lag
        if lag is not None and ("glint" in self._passes or self._glints.strength >= _GLITTER):
            found["glint_lag"] = lag
        return found

    def _next(self, name: str) -> np.ndarray:
        """The next frame's entry: luminance [H, W] of a pass, shares [H, W], a point [2]; of glints a map or number."""
        given = next(self._passes[name], None)
        if given is None:
            raise ValueError(f"truth: {name} has {self._frame} frames, the clip has more")
        values = np.asarray(given)
        scale = 255.0 if values.dtype == np.uint8 else 1.0
        values = values.astype(np.float64) / scale
        if name in ("direct", "shadowed", "ambient", "specular") and values.ndim == 3:
            values = luminance(values)
        expected = {"foot": (1,), "glint": (0, 2)}.get(name, (2,))
        if values.ndim not in expected or (name == "foot" and values.shape != (2,)):
            raise ValueError(f"truth: {name} of frame {self._frame} has shape {list(np.shape(given))}")
        if not np.isfinite(values).all():
            raise ValueError(f"truth: {name} of frame {self._frame} holds values that are not finite")
        return values


def _resized(y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if y.shape == shape:
        return np.asarray(y, np.float64)
    smaller = shape[0] <= y.shape[0] and shape[1] <= y.shape[1]
    return cv2.resize(
        np.asarray(y, np.float64), shape[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
