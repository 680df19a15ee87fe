"""Transformers whose parameters are read when their steps come, and let go of when those of another are needed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from wanjax import partition
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows


@dataclasses.dataclass(frozen=True, eq=False)
class Expert:
    """One transformer and where its parameters come from.

    Attributes:
        model: the network, with the mesh that it runs on.
        read: model -> parameters, each placed where the model's mesh wants it; called each time that they are needed
            and are not held, so it may take minutes.
        fingerprint: tells one set of weights from another; found without reading them all.
        dtype: of the parameters; None takes that of the model's config.
    """

    model: WanDiT
    read: Callable[[WanDiT], Any]
    fingerprint: str
    dtype: str | None = None

    @classmethod
    def of(cls, model: WanDiT, params: Any) -> Expert:
        """An expert whose parameters are there already, arrays of numpy or jax; they stay with the caller too."""
        dtypes = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(params)}
        if len(dtypes) > 1:
            raise ValueError(f"parameters of several types {sorted(dtypes)}: give all in one")
        dtype = dtypes.pop() if dtypes else model.config.param_dtype
        return cls(model, lambda model: _placed(model, params, dtype), _fingerprint_of(params), dtype)

    @property
    def shapes(self) -> Any:
        """Tree of ``jax.ShapeDtypeStruct`` of the parameters, with shardings where there is a mesh."""
        return _shapes(self.model, self.dtype or self.model.config.param_dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters on the device that holds most of them."""
        return sum(_bytes_per_device(leaf) for leaf in jax.tree.leaves(self.shapes))


class Held:
    """The parameters that are on the devices: those of the experts asked for last.

    Args:
        experts: by name.
        at_once: of how many experts parameters are held; those of the others are let go of before new ones are read.
        on_read: told the name of an expert before its parameters are read.
    """

    def __init__(self, experts: Mapping[str, Expert], at_once: int, on_read: Callable[[str], None] = lambda name: None):
        self._experts, self._at_once, self._on_read = experts, at_once, on_read
        self._params: dict[str, Any] = {}

    def params(self, name: str) -> Any:
        """Parameters of one expert."""
        if name not in self._params:
            while len(self._params) >= self._at_once:
                del self._params[next(iter(self._params))]
            self._on_read(name)
            expert = self._experts[name]
            self._params[name] = expert.read(expert.model)
        return self._params[name]


def _shapes(model: WanDiT, dtype: str) -> Any:
    table = dit_rows(model.config)
    shapes = rows.shapes(table, dtype)
    if model.mesh is None:
        return shapes
    places = partition.shardings(model.mesh, rows.logical_axes(table), shapes)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def _placed(model: WanDiT, params: Any, dtype: str) -> Any:
    """``params`` on the model's devices; arrays that are there already are not copied."""
    return jax.tree.map(lambda leaf, x: jax.device_put(leaf, x.sharding), params, _shapes(model, dtype))


def _bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def _fingerprint_of(params: Any) -> str:
    """16 hex digits, from the first 64 values of every row of layers of every tensor."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part = leaf[(slice(None),) + (0,) * (leaf.ndim - 2) + (slice(64),)] if leaf.ndim > 1 else leaf
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
