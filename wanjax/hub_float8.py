"""8-bit floats: plain ones, and ComfyUI's ``fp8_scaled``, read and written.

In ``fp8_scaled``, ``X.weight`` in 8 bits stands for itself times the one number in ``X.scale_weight``, and a tensor
``scaled_fp8`` marks the file (as ComfyUI's ``comfy/ops.py`` and ``comfy/model_detection.py`` read it).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np

from wanjax.hub_readers import Reader, View
from wanjax.weight_files import FLOAT8, Cut, TensorSpec

_SCALE, _INPUT_SCALE, _MARKER = ".scale_weight", ".scale_input", "scaled_fp8"
_LARGEST = 448.0  # of float8_e4m3fn
_MULTIPLY_WIDE = 2  # the marker's length that tells ComfyUI not to cast activations to 8 bits: we know no scale_input


class _Widened(View):
    """Tensors stored as 8-bit floats, read in a wider type and times their scale where they have one."""

    def __init__(self, reader: Reader, names: Mapping[str, str], scales: Mapping[str, str], dtype: str):
        super().__init__(reader, names)
        self._scales, self._wide = scales, dtype

    def read(self, name: str, cut: Cut) -> np.ndarray:
        tensor = super().read(name, cut)
        if tensor.dtype.name not in FLOAT8:
            return tensor
        if name in self._scales:  # rounded once, from the exact product
            scale = self._reader[self._scales[name]].astype(np.float32).reshape(())
            tensor = tensor.astype(np.float32) * scale
        return tensor.astype(self._wide)

    def dtype_of(self, name: str) -> str:
        stored = super().dtype_of(name)
        return self._wide if stored in FLOAT8 else stored


def widened(reader: Reader, dtype: str | None) -> Reader:
    """8-bit floats read as ``dtype`` (bfloat16 if None), and ComfyUI's ``fp8_scaled`` understood.

    There ``X.weight`` in 8 bits stands for itself times the one number in ``X.scale_weight``; a tensor ``scaled_fp8``
    marks the file. ``X.scale_input`` is for multiplying activations in 8 bits, which nothing here does: it is left out.

    Raises:
        ValueError: a scale without its 8-bit tensor, or with more than one number.
    """
    scales = {name.removesuffix(_SCALE) + ".weight": name for name in reader if name.endswith(_SCALE)}
    for weight, scale in scales.items():
        if weight not in reader or reader.dtype_of(weight) not in FLOAT8:
            found = reader.dtype_of(weight) if weight in reader else "no such tensor"
            raise ValueError(f"{reader.source}: {scale} scales {weight}, expected 8-bit floats, found {found}")
        if int(np.prod(reader.shape_of(scale))) != 1:
            raise ValueError(
                f"{reader.source}: {scale} has shape {reader.shape_of(scale)}; only one scale per tensor is read: take "
                "a checkpoint in bfloat16"
            )
    aside = {*scales.values(), *(name for name in reader if name.endswith(_INPUT_SCALE) or name == _MARKER)}
    names = {name: name for name in reader if name not in aside}
    return _Widened(reader, names, scales, dtype or "bfloat16")


class ScaledFloat8:
    """Turns tensors into those of an ``fp8_scaled`` file, one at a time.

    The scale of a tensor is its largest absolute value over 448, that value first rounded to bfloat16: read in
    bfloat16, float16 or float32 and written again, the file then has the same bytes.

    Args:
        names: tensors to store in 8 bits, called ``X.weight``; all others stay as they are.
    """

    def __init__(self, names: Collection[str]):
        self._names = names
        self._error = self._energy = 0.0

    @property
    def relative_error(self) -> float:
        """Root mean square of what rounding to 8 bits changed, over that of the tensors it was done to."""
        return float(np.sqrt(self._error / self._energy)) if self._energy else 0.0

    def specs(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """What becomes of tensors like these."""
        out = {_MARKER: TensorSpec((_MULTIPLY_WIDE,), "float8_e4m3fn")}
        for name, spec in specs.items():
            out[name] = TensorSpec(spec.shape, "float8_e4m3fn") if name in self._names else spec
            if name in self._names:
                out[name.removesuffix(".weight") + _SCALE] = TensorSpec((), "float32")
        return out

    def __call__(self, tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """Raises ValueError at a tensor that is not finite."""
        yield _MARKER, np.zeros(_MULTIPLY_WIDE, ml_dtypes.float8_e4m3fn)
        for name, tensor in tensors:
            if name not in self._names:
                yield name, tensor
                continue
            exact = tensor.astype(np.float32)
            largest = np.abs(exact).max(initial=0.0).astype(ml_dtypes.bfloat16).astype(np.float32)
            if not np.isfinite(largest):
                raise ValueError(f"tensor {name} has values that are not finite and cannot be scaled to 8 bits")
            scale = largest / np.float32(_LARGEST)
            if scale < np.finfo(np.float32).tiny:
                scale = np.float32(1)
            stored = np.clip(exact / scale, -_LARGEST, _LARGEST).astype(ml_dtypes.float8_e4m3fn)
            self._error += float(np.square(stored.astype(np.float32) * scale - exact).sum(dtype=np.float64))
            self._energy += float(np.square(exact).sum(dtype=np.float64))
            yield name, stored
            yield name.removesuffix(".weight") + _SCALE, np.asarray(scale, np.float32)
