"""Pictures and maps brought down to a working size."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["shrunk"]


def shrunk(values: np.ndarray, side: int) -> np.ndarray:
    """``values [H, W, ...]`` averaged down until no side is above ``side``; smaller ones stay as they are."""
    height, width = values.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)
