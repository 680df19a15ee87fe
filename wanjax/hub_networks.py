"""A network whose weights still lie where they are kept: what it is, and its tensors one at a time.

Reading, writing and converting of all layouts meet here: a file's tensors, those of an orbax folder and parameters in
memory are asked for by row and layer (:mod:`wanjax.models.rows`), and come in our own layout.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, Sharding

from wanjax.hub_readers import Reader
from wanjax.models import rows as row_table
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae_config import VAEConfig
from wanjax.transposing import copy_into
from wanjax.weight_files import TensorSpec

KINDS = ("transformer", "vae", "text_encoder")
Config = DiTConfig | VAEConfig | UMT5Config
Index = tuple[slice, ...] | EllipsisType


class Weights(Protocol):
    """Tensors of a network; ``layer`` is 0 for a row that is not stacked."""

    def name_of(self, row: Row) -> str:
        """What the row's tensor is called there, for messages."""

    def dtype_of(self, row: Row, layer: int) -> str:
        """Name of the type that :meth:`read` gives, without reading."""

    def read(self, row: Row, layer: int, index: Index = ...) -> np.ndarray:
        """``[index]`` of one layer's tensor in our layout; it may share memory with a file."""

    def placed(self, rows: tuple[Row, ...], shardings: list[Sharding] | None) -> list[jax.Array]:
        """The whole arrays of ``rows`` on their devices; None is the default device."""


@dataclass(frozen=True, eq=False)
class Network:
    """One network, checked against its rows, its weights unread.

    Attributes:
        kind: one of :data:`KINDS`.
        config: its :data:`Config`; ``dtype`` and ``param_dtype`` are the type in which it computes.
        weights: its tensors.
        source: where they are, for messages.
    """

    kind: str
    config: Any
    weights: Weights
    source: str

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        return rows_of(self.config)

    def dtype_of(self, row: Row) -> str:
        """The one type of a row.

        Raises:
            ValueError: layers of one row are stored in different types; as one array some of them would be rounded.
        """
        stored = {self.weights.dtype_of(row, layer) for layer in range(max(row.stacked, 1))}
        if len(stored) > 1:
            raise ValueError(
                f"{self.source}: {self.weights.name_of(row)} is stored as {' and '.join(sorted(stored))} in different "
                "layers: name the type to read all of them in, such as dtype='float32'"
            )
        return stored.pop()

    def stacked(self, row: Row) -> np.ndarray:
        """The whole array of a row, layers first, in memory of its own."""
        out = np.empty(row.full_shape, self.dtype_of(row))
        for layer in range(max(row.stacked, 1)):
            copy_into(out[layer] if row.stacked else out, self.weights.read(row, layer))
        return out

    def specs(self, naming: str) -> dict[str, TensorSpec]:
        """Every foreign tensor by name; nothing is read."""
        return {
            name: TensorSpec(row.foreign_shape, self.weights.dtype_of(row, layer))
            for row in self.rows
            for layer, name in enumerate(row.foreign_names(naming))
        }

    def tensors(self, naming: str) -> Iterator[tuple[str, np.ndarray]]:
        """Every foreign tensor by name, read one after the other."""
        for row in self.rows:
            change = row_table.LAYOUTS[row.layout].to_foreign
            for layer, name in enumerate(row.foreign_names(naming)):
                yield name, change(self.weights.read(row, layer))

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(spec.nbytes for spec in self.specs("official").values())

    def place(self, places: Any = None) -> dict[str, Any]:
        """Parameters where they will be used; the host holds about one row at a time.

        Args:
            places: tree of shardings; None for the default device. Of a mesh, only what this process's devices hold is
                read.
        """
        for row in self.rows:
            self.dtype_of(row)  # refuses, before anything is read
        shardings = None if places is None else [row_table.pick(places, row) for row in self.rows]
        placed = self.weights.placed(self.rows, shardings)
        leaves = {row.path: leaf for row, leaf in zip(self.rows, placed, strict=True)}
        return row_table.tree(self.rows, lambda row: leaves[row.path])

    def over(self, mesh: Mesh) -> dict[str, Any]:
        """Tree of shardings of the parameters over a mesh."""
        return row_table.shardings(self.rows, mesh)


def rows_of(config: Config) -> tuple[Row, ...]:
    """Every tensor of the network that a config describes."""
    match config:
        case DiTConfig():
            return dit_rows(config)
        case VAEConfig():
            return vae_rows(config)
        case UMT5Config():
            return umt5_rows(config)


class ForeignWeights:
    """Tensors of a foreign checkpoint under the names of the rows."""

    def __init__(self, reader: Reader, naming: str):
        self._reader, self._naming = reader, naming

    def name_of(self, row: Row) -> str:
        return getattr(row, self._naming)

    def dtype_of(self, row: Row, layer: int) -> str:
        return self._reader.dtype_of(self._name(row, layer))

    def read(self, row: Row, layer: int, index: Index = ...) -> np.ndarray:
        change = row_table.LAYOUTS[row.layout].to_ours
        return self._reader.read(self._name(row, layer), lambda stored: change(stored)[index])

    def placed(self, rows: tuple[Row, ...], shardings: list[Sharding] | None) -> list[jax.Array]:
        if shardings is None:
            whole = (slice(None),)
            return [jax.device_put(self._part(row, whole * len(row.full_shape))) for row in rows]
        return [
            jax.make_array_from_callback(row.full_shape, place, functools.partial(self._part, row))
            for row, place in zip(rows, shardings, strict=True)
        ]

    def _part(self, row: Row, index: tuple[slice, ...] | None) -> np.ndarray:
        """Part of a row's whole array, in memory of its own: the files may change under a mapped one."""
        index = index or ()
        if not row.stacked:
            part = self.read(row, 0, index)
            out = np.empty(part.shape, part.dtype)
            copy_into(out, part)
            return out
        layers = range(*index[0].indices(row.stacked))
        shape = [len(range(*cut.indices(size))) for cut, size in zip(index[1:], row.shape, strict=True)]
        out = np.empty((len(layers), *shape), self.dtype_of(row, 0))
        for place, layer in enumerate(layers):
            copy_into(out[place], self.read(row, layer, index[1:]))
        return out

    def _name(self, row: Row, layer: int) -> str:
        return row.foreign_name(layer, self._naming)


class ArrayWeights:
    """Parameters in memory, numpy's or JAX's.

    Raises:
        ValueError: on making it, if the parameters are not those of ``rows``.
    """

    def __init__(self, params: Mapping[str, Any], rows: tuple[Row, ...]):
        wanted, found = ({jax.tree_util.keystr(at) for at, _ in jax.tree.leaves_with_path(tree)}
                         for tree in (row_table.shapes(rows, np.float32), params))  # fmt: skip
        if found != wanted:
            raise ValueError(
                f"these parameters are not this network's: unexpected {sorted(found - wanted)[:5]}, missing "
                f"{sorted(wanted - found)[:5]}"
            )
        for row in rows:
            shape = tuple(np.shape(row_table.pick(params, row)))
            if shape != row.full_shape:
                raise ValueError(
                    f"parameter {'/'.join(row.path)} has shape {shape}, the network's config asks for {row.full_shape}"
                )
        self._params = params

    def name_of(self, row: Row) -> str:
        return "/".join(row.path)

    def dtype_of(self, row: Row, layer: int) -> str:
        return row_table.pick(self._params, row).dtype.name

    def read(self, row: Row, layer: int, index: Index = ...) -> np.ndarray:
        array = np.asarray(row_table.pick(self._params, row))
        return (array[layer] if row.stacked else array)[index]

    def placed(self, rows: tuple[Row, ...], shardings: list[Sharding] | None) -> list[jax.Array]:
        leaves = [row_table.pick(self._params, row) for row in rows]
        if shardings is None:
            return [jax.device_put(leaf) for leaf in leaves]
        return [jax.device_put(leaf, place) for leaf, place in zip(leaves, shardings, strict=True)]


class CastWeights:
    """Other weights, rounded to another type as they are read; how much that changed is known afterwards.

    Raises:
        ValueError: at a tensor with values that the type cannot hold.
    """

    def __init__(self, weights: Weights, dtype: str):
        self.dtype = dtype
        self._weights = weights
        self._error = self._energy = 0.0

    @property
    def relative_error(self) -> float:
        """Root mean square of what rounding changed, over that of the tensors it was done to."""
        return math.sqrt(self._error / self._energy) if self._energy else 0.0

    def name_of(self, row: Row) -> str:
        return self._weights.name_of(row)

    def dtype_of(self, row: Row, layer: int) -> str:
        return self.dtype

    def read(self, row: Row, layer: int, index: Index = ...) -> np.ndarray:
        exact = self._weights.read(row, layer, index)
        with np.errstate(over="ignore"):  # said below, by name
            out = exact.astype(self.dtype)
        if _holds(self.dtype, exact.dtype.name):
            return out
        wide = exact.astype(np.float32)
        change = _squares(out.astype(np.float32) - wide)
        if not math.isfinite(change):
            raise ValueError(
                f"{'/'.join(row.path)} holds values that {self.dtype} cannot (largest {np.abs(wide).max()}): take "
                "another type"
            )
        self._error += change
        self._energy += _squares(wide)
        return out

    def placed(self, rows: tuple[Row, ...], shardings: list[Sharding] | None) -> list[jax.Array]:
        return [leaf.astype(self.dtype) for leaf in self._weights.placed(rows, shardings)]


def _holds(wide: str, narrow: str) -> bool:
    """Whether every number of the one type is one of the other."""
    a, b = ml_dtypes.finfo(wide), ml_dtypes.finfo(narrow)
    return a.nmant >= b.nmant and a.maxexp >= b.maxexp and a.minexp <= b.minexp


def _squares(array: np.ndarray) -> float:
    return float(np.square(array).sum(dtype=np.float64))


def most_common(specs: Mapping[str, TensorSpec]) -> str:
    """The type in which most of the weights are stored."""
    sizes: Counter[str] = Counter()
    for spec in specs.values():
        sizes[spec.dtype] += math.prod(spec.shape)
    return sizes.most_common(1)[0][0]
