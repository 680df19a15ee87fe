"""Copies of arrays that are transposed views, at about the speed of memory.

numpy copies a transposed matrix element by element, an order of magnitude slower; foreign checkpoints keep linear
layers as [out, in] and we as [in, out], so that a conversion would spend its time there.
"""

from __future__ import annotations

import mmap

import cv2
import numpy as np

_BITS = {1: np.uint8, 2: np.uint16, 4: np.float32}  # types that OpenCV moves and does not look into


def copy_into(out: np.ndarray, array: np.ndarray) -> None:
    """``out[...] = array`` for arrays of the same shape and dtype.

    Raises:
        ValueError: they are not.
    """
    if out.shape != array.shape or out.dtype != array.dtype:
        raise ValueError(f"{array.shape} {array.dtype} cannot be copied into {out.shape} {out.dtype}")
    bits = _BITS.get(array.itemsize)
    if array.ndim == 2 and bits and array.size and out.flags.c_contiguous and array.T.flags.c_contiguous:
        target = out.view(bits)
        # of a mapped file, pages that are touched in order come many times faster than here and there: a copy first
        source = array.T.copy() if _is_mapped(array) else array.T
        moved = cv2.transpose(source.view(bits), dst=target)
        if moved is not target and not np.shares_memory(moved, target):  # it allocates where it cannot write in place
            target[...] = moved
    else:
        out[...] = array


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array itself if it is C-contiguous, otherwise a copy that is."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    copy_into(out, array)
    return out


def _is_mapped(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)
