"""One row per tensor: our path, foreign names, layout change and logical axes.

Sharding, import, export, shapes and parameter counts of a network are all read off its rows. The rows themselves
live beside this file, one module per network (``dit.py``, ``vae.py``, ``umt5.py``).

A *stacked* row stands for one tensor of every layer: we keep them in one array with the layer axis first, foreign
files keep one tensor per layer, and ``{i}`` in the foreign name stands for the layer's index.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from wanjax import partition

Shape = tuple[int, ...]


class _Layout(NamedTuple):
    """A named layout change: foreign array -> ours, its inverse, and the foreign shape for one of ours."""

    to_ours: Callable[[Any], Any]
    to_foreign: Callable[[Any], Any]
    foreign_shape: Callable[[Shape], Shape]


def _permuted(*order: int) -> _Layout:
    """``ours = foreign.transpose(order)``."""
    inverse = tuple(order.index(axis) for axis in range(len(order)))
    return _Layout(
        lambda array: array.transpose(order),
        lambda array: array.transpose(inverse),
        lambda shape: tuple(shape[axis] for axis in inverse),
    )


def _padded(before: int, after: int) -> _Layout:
    """The foreign array has axes of size 1 before and after ours."""

    def foreign_shape(shape: Shape) -> Shape:
        return (1,) * before + shape + (1,) * after

    return _Layout(
        lambda array: array.reshape(array.shape[before : array.ndim - after]),
        lambda array: array.reshape(foreign_shape(array.shape)),
        foreign_shape,
    )


LAYOUTS: dict[str, _Layout] = {
    "same": _padded(0, 0),
    "linear": _permuted(1, 0),  # [O, I] -> [I, O]
    "conv2d": _permuted(2, 3, 1, 0),  # [O, I, kh, kw] -> [kh, kw, I, O]
    "conv3d": _permuted(2, 3, 4, 1, 0),  # [O, I, kt, kh, kw] -> [kt, kh, kw, I, O]
    "gamma2d": _padded(0, 2),  # [C, 1, 1] -> [C]
    "gamma3d": _padded(0, 3),  # [C, 1, 1, 1] -> [C]
    "table": _padded(1, 0),  # [1, n, D] -> [n, D]
}
NAMES = ("diffusers", "official")


@dataclass(frozen=True)
class Row:
    """One tensor of a network (of every layer, when stacked).

    Attributes:
        path: keys of our nested parameter dict.
        shape: our shape, without the layer axis.
        axes: logical axis of each entry of ``shape`` (names of :data:`wanjax.partition.RULES`, None = never sharded).
        diffusers: name in the diffusers layout, ``{i}`` for the layer; "" if other software does not have it.
        official: name in the official layout, ``{i}`` for the layer, likewise.
        layout: key of :data:`LAYOUTS`, the change from the foreign array to ours.
        stacked: number of layers, 0 for a tensor that is not stacked.
    """

    path: tuple[str, ...]
    shape: Shape
    axes: tuple[str | None, ...]
    diffusers: str = ""
    official: str = ""
    layout: str = "same"
    stacked: int = 0

    def __post_init__(self) -> None:
        name = "/".join(self.path)
        if len(self.axes) != len(self.shape):
            raise ValueError(f"row {name}: {len(self.axes)} logical axes {self.axes} for shape {self.shape}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"row {name}: layout {self.layout!r} is not one of {sorted(LAYOUTS)}")
        for foreign in (self.diffusers, self.official):
            if foreign and ("{i}" in foreign) != bool(self.stacked):
                raise ValueError(f"row {name}: {foreign!r} must contain '{{i}}' exactly when the row is stacked")

    @property
    def full_shape(self) -> Shape:
        """Our shape with the layer axis first."""
        return (self.stacked, *self.shape) if self.stacked else self.shape

    @property
    def foreign_shape(self) -> Shape:
        """Shape of one foreign tensor."""
        return LAYOUTS[self.layout].foreign_shape(self.shape)

    def foreign_names(self, names: str = "diffusers") -> tuple[str, ...]:
        """Names of the foreign tensors, one per layer, in the ``names`` naming ("diffusers" or "official")."""
        return tuple(self.foreign_name(layer, names) for layer in range(max(self.stacked, 1)))

    def foreign_name(self, layer: int, names: str = "diffusers") -> str:
        """Name of the foreign tensor of one layer (any number where the row is not stacked)."""
        if names not in NAMES:
            raise ValueError(f"naming {names!r} is not one of {NAMES}")
        name: str = getattr(self, names)
        if not name:
            raise ValueError(f"row {'/'.join(self.path)} has no name in the {names} layout: it is ours alone")
        return name.replace("{i}", str(layer))


def tree(rows: Iterable[Row], leaf: Callable[[Row], Any]) -> dict[str, Any]:
    """Nested dict with ``leaf(row)`` at every row's path."""
    out: dict[str, Any] = {}
    for row in rows:
        node = out
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        if row.path[-1] in node:
            raise ValueError(f"two rows have the path {'/'.join(row.path)}")
        node[row.path[-1]] = leaf(row)
    return out


def pick(params: Mapping[str, Any], row: Row) -> Any:
    """The leaf of ``params`` at the row's path."""
    node: Any = params
    for key in row.path:
        node = node[key]
    return node


def shapes(rows: Iterable[Row], dtype: Any) -> dict[str, Any]:
    """Tree of ``jax.ShapeDtypeStruct``, layer axis first."""
    return tree(rows, lambda row: jax.ShapeDtypeStruct(row.full_shape, dtype))


def logical_axes(rows: Iterable[Row]) -> dict[str, Any]:
    """Tree of tuples of logical axis names; a stacked row's first axis is "layers"."""
    return tree(rows, lambda row: ("layers", *row.axes) if row.stacked else row.axes)


def shardings(rows: Sequence[Row], mesh: Mesh) -> dict[str, Any]:
    """Tree of NamedSharding: where each parameter lies on a mesh, by the rules of :mod:`wanjax.partition`."""
    # of which type they are does not matter to where they lie
    return partition.shardings(mesh, logical_axes(rows), shapes(rows, np.float32))


def count(rows: Iterable[Row]) -> int:
    """Number of parameters; allocates nothing."""
    return sum(math.prod(row.full_shape) for row in rows)


def to_ours(row: Row, foreign: Sequence[Any]) -> Any:
    """Our array from the foreign ones: one per layer for a stacked row, otherwise a sequence of one."""
    if len(foreign) != max(row.stacked, 1):
        raise ValueError(f"row {'/'.join(row.path)} needs {max(row.stacked, 1)} foreign tensors, got {len(foreign)}")
    change = LAYOUTS[row.layout].to_ours
    if not row.stacked:
        return change(foreign[0])
    out = np.empty(row.full_shape, np.asarray(foreign[0]).dtype)
    for i, array in enumerate(foreign):
        out[i] = change(np.asarray(array))
    return out


def to_foreign(row: Row, array: Any, names: str = "diffusers") -> dict[str, Any]:
    """Foreign tensors by name from our array (layer axis first when stacked)."""
    change = LAYOUTS[row.layout].to_foreign
    layers = array if row.stacked else (array,)
    return {name: change(one) for name, one in zip(row.foreign_names(names), layers, strict=True)}


class _Stream(Sequence[Any]):
    """The foreign tensors of one row, read one at a time so that a stacked row never holds two copies."""

    def __init__(self, reader: Mapping[str, Any], names: Sequence[str]):
        self.reader, self.names = reader, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return self.reader[self.names[index]]


def check(rows: Sequence[Row], found: Mapping[str, Shape], names: str = "diffusers") -> None:
    """Whether foreign tensors are a network's.

    Args:
        rows: the network's rows.
        found: shape of every tensor by name.
        names: "diffusers" or "official".

    Raises:
        ValueError: one error that lists every missing (with the nearest name present), unexpected (with the nearest
            name expected) and wrong-shaped tensor.
    """
    wanted = {name: row for row in rows for name in row.foreign_names(names)}
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    problems = [f"missing {name}{_nearest(name, unexpected)}" for name in missing]
    problems += [f"unexpected {name}{_nearest(name, missing)}" for name in unexpected]
    for name in sorted(wanted.keys() & found.keys()):
        shape, expected = tuple(found[name]), wanted[name].foreign_shape
        if shape != expected:
            problems.append(f"wrong shape {name}: {shape}, expected {expected}")
    if problems:
        shown = "\n  ".join(problems[:40]) + (f"\n  and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise ValueError(f"the {names} checkpoint does not fit the network ({len(problems)} tensors):\n  {shown}")


def import_tensors(rows: Sequence[Row], reader: Mapping[str, Any], names: str = "diffusers") -> dict[str, Any]:
    """Parameter tree of numpy arrays, in the stored dtype, from foreign tensors.

    Args:
        rows: the network's rows.
        reader: tensor name -> array. A reader that knows shapes without reading offers ``shape_of(name)``; the check
            of a large checkpoint then costs no reading.
        names: "diffusers" or "official".

    Raises:
        ValueError: as :func:`check`.
    """
    shape_of = getattr(reader, "shape_of", lambda name: reader[name].shape)
    check(rows, {name: shape_of(name) for name in reader.keys()}, names)
    return tree(rows, lambda row: to_ours(row, _Stream(reader, row.foreign_names(names))))


def _nearest(name: str, candidates: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f" (nearest: {found[0]})" if found else ""


def export_tensors(rows: Sequence[Row], params: Mapping[str, Any], names: str = "diffusers") -> dict[str, np.ndarray]:
    """Foreign tensors by name, contiguous numpy arrays, from our parameter tree; inverse of :func:`import_tensors`."""
    out: dict[str, np.ndarray] = {}
    for row in rows:
        array = np.asarray(pick(params, row))
        if array.shape != row.full_shape:
            raise ValueError(f"parameter {'/'.join(row.path)} has shape {array.shape}, expected {row.full_shape}")
        out.update({name: np.ascontiguousarray(one) for name, one in to_foreign(row, array, names).items()})
    return out
