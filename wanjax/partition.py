"""Device mesh and the placement of arrays on it: logical axes -> NamedSharding. Knows nothing of Wan.

Mesh axes: ``data`` (clips; parameters are copied), ``fsdp`` (clips and parameters), ``seq`` (tokens and parameters),
``tensor`` (heads and hidden features).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "seq", "tensor")
BATCH = ("data", "fsdp")

# Logical axis of a parameter -> mesh axes it is split over, outermost first.
RULES: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp", "seq"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),  # one layer is gathered at a time, so the layer axis itself stays whole
    "vae_in": (),  # the codec is small and its convolutions want whole channels
    "vae_out": (),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over :data:`AXES` with automatic axis types.

    Args:
        sizes: size by axis; an axis left out has size 1, one axis may be -1 = all devices that are left.
        devices: default ``jax.devices()``; all of them must be used.

    Raises:
        ValueError: unknown axis, size 0 or below -1, two axes of -1, a product that is not the device count, or TPUs of
            several slices that ``data`` does not divide into.
    """
    devices = jax.devices() if devices is None else list(devices)
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh axis {unknown[0]!r} is not one of {AXES}")
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ValueError(f"mesh sizes {dict(sizes)}: each must be at least 1, at most one may be -1 (= the rest)")
    if -1 in shape:
        known = -math.prod(shape)
        if len(devices) % known:
            raise ValueError(f"mesh sizes {dict(sizes)}: {len(devices)} devices do not divide by {known}")
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh sizes {dict(zip(AXES, shape, strict=True))} need {math.prod(shape)} devices, there are"
            f" {len(devices)}; set one axis to -1 to use the rest"
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = 1
    if devices[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        try:
            return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=devices)
        except NotImplementedError:  # no product of whole axes of the torus: part of one, which is a line and no ring
            split = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return Mesh(split, AXES, axis_types=types)
    if shape[0] % slices:
        raise ValueError(
            f"mesh axis data of size {shape[0]}: the devices lie in {slices} slices, and data alone may run from slice"
            f" to slice; make it a multiple of {slices}"
        )
    within, between = (shape[0] // slices, *shape[1:]), (slices, *(1,) * (len(AXES) - 1))
    hybrid = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(hybrid, AXES, axis_types=types)


def over_torus(mesh: Mesh, *axes: str) -> tuple[Mesh, dict[str, tuple[str, ...]]]:
    """The same devices, with some axes of the mesh split into the axes of the chips' torus that they lie over.

    Collectives over one axis of a torus are rings; over several at once a compiler may make another, costlier
    operation of them.

    Args:
        mesh: any.
        axes: of it, to be split where they lie over several axes of a torus; those of other devices stay.
    Returns: the mesh, and for every axis of the given one its parts, outermost first.
    """
    parts: dict[str, tuple[str, ...]] = {axis: (axis,) for axis in mesh.axis_names}
    sizes = dict(mesh.shape)
    for axis in axes:
        lengths = _torus_lengths(mesh, axis)
        if len(lengths) > 1:
            parts[axis] = tuple(f"{axis}_{i}" for i in range(len(lengths)))
            sizes |= dict(zip(parts[axis], lengths, strict=True))
    names = tuple(part for axis in mesh.axis_names for part in parts[axis])
    if names == mesh.axis_names:
        return mesh, parts
    devices = mesh.devices.reshape([sizes[name] for name in names])
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names)), parts


def _torus_lengths(mesh: Mesh, axis: str) -> tuple[int, ...]:
    """Lengths of the parts of an axis that each change one coordinate of the chips, outermost first."""
    lines = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)
    if any(device.platform != "tpu" for device in lines.flat):
        return (len(lines),)
    places = np.asarray([[(*device.coords, device.core_on_chip) for device in line] for line in lines])
    lengths: list[int] = []
    while (left := len(places)) > 1:
        fits = [n for n in range(2, left + 1) if left % n == 0 and _changes_one(places, n)]
        if not fits:
            return (len(lines),)
        lengths.insert(0, max(fits))
        places = places[:: lengths[0]]
    return tuple(lengths) or (1,)


def _changes_one(places: np.ndarray, length: int) -> bool:
    """Whether runs of this length differ in one coordinate: [devices along the axis, lines, coordinates]."""
    runs = places.reshape(-1, length, *places.shape[1:])
    return int((runs != runs[:, :1]).any(axis=(0, 1, 2)).sum()) == 1


def spec(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> P:
    """PartitionSpec of one parameter.

    Each logical axis takes its mesh axes of :data:`RULES` that have size > 1, are not used by an earlier axis of the
    same array and divide the dimension; what does not divide stays whole.

    Raises:
        ValueError: a logical axis that has no rule, or another number of axes than dimensions.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} logical axes {tuple(axes)} for an array of shape {tuple(shape)}")
    used: set[str] = set()
    entries: list[Any] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"logical axis {axis!r} has no rule; known: {sorted(RULES)}")
        chosen: tuple[str, ...] = ()
        for candidate in RULES[axis] if axis is not None else ():
            ways = math.prod(mesh.shape[name] for name in chosen) * mesh.shape[candidate]
            if mesh.shape[candidate] > 1 and candidate not in used and size % ways == 0:
                chosen += (candidate,)
        used.update(chosen)
        entries.append(None if not chosen else chosen[0] if len(chosen) == 1 else chosen)
    return P(*entries)


def shardings(mesh: Mesh, axes_tree: Any, shapes_tree: Any) -> Any:
    """Tree of NamedSharding for parameters.

    Args:
        axes_tree: nested dict of tuples of logical axes (``rows.logical_axes``).
        shapes_tree: the same nested dict of things with ``.shape`` (``rows.shapes``).
    """
    return jax.tree.map(
        lambda axes, leaf: NamedSharding(mesh, spec(mesh, axes, leaf.shape)), axes_tree, shapes_tree, is_leaf=_is_axes
    )


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 (clips) over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def placed_shapes(tree: Any, places: Any) -> Any:
    """Shapes of arrays with the places that they are to lie in.

    Args:
        tree: of things with ``.shape`` and ``.dtype``.
        places: a sharding for all of them, or a tree of shardings like ``tree``.
    """
    each = jax.tree.map(lambda _: places, tree) if isinstance(places, jax.sharding.Sharding) else places
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, each)


def put(tree: Any, place: jax.sharding.Sharding) -> Any:
    """Host values on devices that may be those of several processes.

    ``jax.device_put`` first compares what the processes give, over the network; here each gives its own devices their
    parts of what it has.

    Args:
        tree: arrays, the same on every process.
        place: of all of them.
    """

    def placed(x: Any) -> jax.Array:
        if place.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, place)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])

    return jax.tree.map(placed, tree)


def to_host(tree: Any) -> Any:
    """Whole arrays in the memory of every process; what lies on devices of several is gathered, so all have to ask."""

    def fetched(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_get(x)
        assert isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh)
        return np.asarray(_gatherer(replicated(x.sharding.mesh))(x).addressable_data(0))

    return jax.tree.map(fetched, tree)


@functools.cache
def _gatherer(place: NamedSharding) -> Any:
    return jax.jit(lambda x: x, out_shardings=place)


def names_of(entry: str | Iterable[str] | None) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec, outermost first."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | Iterable[str] | None) -> jax.Array:
    """``x`` held to mesh axes, one entry per leading dimension (None = whole); ``mesh=None`` leaves it as it is.

    Raises:
        ValueError: an unknown mesh axis, or a dimension that does not divide.
    """
    if mesh is None:
        return x
    for size, entry in zip(np.shape(x), axes, strict=False):
        names = names_of(entry)
        for name in names:
            if name not in mesh.shape:
                raise ValueError(f"mesh axis {name!r} is not one of {tuple(mesh.shape)}")
        ways = math.prod(mesh.shape[name] for name in names)
        if size % ways:
            raise ValueError(f"a dimension of {size} does not divide over mesh axes {names} ({ways} ways)")
    entries = [tuple(e) if isinstance(e, (list, tuple)) else e for e in axes]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*entries)))
