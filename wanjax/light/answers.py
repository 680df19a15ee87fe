"""What else a caption may state of a clip than its exposure and sweep: color, the way of glints, whose shadow it is.

Glints and shadows are looked for only where a caption speaks of them: what moves in a picture without water, or beside
nobody, is neither.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["COLOR_THRESHOLD", "GLINTS_THRESHOLD", "LOOKED_FOR", "PASSING", "SHADOW_THRESHOLDS", "classify_optional"]

COLOR_THRESHOLD = 10.0
"""The color stays: the slope of the frame's color temperature is smaller than this many mired per second."""

GLINTS_THRESHOLD = 0.25
"""Glints run neither way: ``glint_order`` is smaller than this."""

SHADOW_THRESHOLDS = {
    "shadow_seen": 0.4,
    "shadow_attached": 0.75,
    "shadow_swing": 0.12,
    "shadow_swing_fit": 0.75,
    "shadow_stretch": 0.5,
}
"""A shadow follows its walker where each of these is at least this large, and ``shadow_passing`` within PASSING."""

PASSING = (0.1, 0.9)
"""Where on his way the walker passes the lamp, of a shadow that follows; 0 is the beginning and 1 the end."""

LOOKED_FOR: dict[str, tuple[str, ...]] = {
    "color_change": (),
    "glints": ("glint_rate", "glint_order"),
    "shadow_follows": (*SHADOW_THRESHOLDS, "shadow_passing"),
}
"""Optional answers, and the metrics that :func:`wanjax.light.metrics.measure` returns only where one is asked for."""


def classify_optional(metrics: Mapping[str, float]) -> dict[str, int]:
    """What a caption could have said of a clip beside its exposure and sweep.

    Args:
      metrics: what :func:`wanjax.light.metrics.measure` returned.

    Returns:
      ``color_change``: 1 warmer, -1 cooler, 0 neither (under :data:`COLOR_THRESHOLD`). Where they were looked for,
      ``glints``: 1 to the right, -1 to the left, 0 neither (under :data:`GLINTS_THRESHOLD`), and ``shadow_follows``: 1
      the walker's shadow is his, 0 it is not or is not seen (:data:`SHADOW_THRESHOLDS`).
    """
    drift = metrics["cct_drift"]
    found = {"color_change": int(np.sign(drift)) if abs(drift) >= COLOR_THRESHOLD else 0}
    if "glint_order" in metrics:
        order = metrics["glint_order"]
        found["glints"] = int(np.sign(order)) if abs(order) >= GLINTS_THRESHOLD else 0
    if "shadow_passing" in metrics:
        enough = all(metrics[name] >= least for name, least in SHADOW_THRESHOLDS.items())
        found["shadow_follows"] = int(enough and PASSING[0] <= metrics["shadow_passing"] <= PASSING[1])
    return found
