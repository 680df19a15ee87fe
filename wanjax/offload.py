"""Arrays that do not fit on the device: stacked matrices in pinned host memory, streamed block by block.

Of parameters, :meth:`wanjax.models.dit.WanDiT.apply` sees from the arrays where they lie. A device then holds what
stands outside the stack, the stack's vectors, and the matrices of two blocks: the one at work and the next, which is on
its way. Optimizer state is placed by the same rule and streamed by :func:`wanjax.optim.streamed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from wanjax import partition
from wanjax.models import rows as row_table
from wanjax.models.rows import Row

HOST = "pinned_host"
BUFFERS = 2  # blocks on a device at a time


def is_streamed(row: Row) -> bool:
    """Whether this tensor lies in host memory: the matrices of a stack, and factors of them. Its vectors and tables are
    a thousandth of it, and a TPU tiles them over the layers, so that one layer cannot be copied by itself."""
    return bool(row.stacked) and row.layout == "linear"


def shardings(rows: Sequence[Row], *, mesh: Mesh | None = None, device: jax.Device | None = None) -> dict[str, Any]:
    """Where each parameter lies: tree of shardings, of what is streamed in pinned host memory.

    Args:
        rows: the network's.
        mesh: each device streams its own shard; None for one device.
        device: that one, the first by default; only without a mesh.
    Raises: ValueError where both are given, or the backend has no pinned host memory.
    """
    if mesh is not None and device is not None:
        raise ValueError("a mesh and a device: give one of them")
    one = device or (jax.local_devices()[0] if mesh is None else mesh.local_devices[0])
    kinds = [memory.kind for memory in one.addressable_memories()]
    if HOST not in kinds:
        listed = ", ".join(kinds) or "none, as every GPU does that is only described to its compiler"
        raise ValueError(f"{one} has no {HOST} memory to stream from; it lists {listed}: keep parameters and optimizer "
                         "state on the device")  # fmt: skip
    # of a mesh even for one device: jax writes the memory into an array's type for NamedSharding alone
    devices = partition.make_mesh({}, devices=[one]) if mesh is None else mesh

    def place(row: Row) -> NamedSharding:
        own = _on_device(row, devices)
        return own.with_memory_kind(HOST) if is_streamed(row) else own

    return row_table.tree(rows, place)


def _on_device(row: Row, mesh: Mesh) -> NamedSharding:
    axes = ("layers", *row.axes) if row.stacked else row.axes
    return NamedSharding(mesh, partition.spec(mesh, axes, row.full_shape))


def to_host(
    params: Any, rows: Sequence[Row], *, mesh: Mesh | None = None, device: jax.Device | None = None
) -> dict[str, Any]:
    """The parameters, placed as :func:`shardings` says.

    Args:
        params: of numpy arrays (mapped files too), which go straight into host memory, or of jax arrays.
        rows, mesh, device: as for :func:`shardings`.
    Raises: ValueError as :func:`shardings`, or where the parameters are not those of the rows.
    """
    places = shardings(rows, mesh=mesh, device=device)
    found = {tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(params)}
    if strange := found ^ {row.path for row in rows}:
        raise ValueError(f"parameters and rows are of two networks: only one has {'/'.join(sorted(strange)[0])}")

    def placed(row: Row) -> jax.Array:
        leaf = row_table.pick(params, row)
        if tuple(np.shape(leaf)) != row.full_shape:
            raise ValueError(f"parameter {'/'.join(row.path)} has shape {np.shape(leaf)}, expected {row.full_shape}")
        return jax.device_put(leaf, row_table.pick(places, row))

    return row_table.tree(rows, placed)


def device_bytes(rows: Sequence[Row], dtype: Any, *, streamed: bool, mesh: Mesh | None = None) -> int:
    """Bytes of parameters that the fullest device holds while the network runs, activations and gathered blocks apart.

    Args:
        rows: the network's.
        dtype: of the parameters.
        streamed: with the matrices of the stack in host memory, or all on the device.
        mesh: devices that the parameters are spread over; None for one.
    """
    total = 0
    for row in rows:
        shape = row.full_shape
        if mesh is not None:
            shape = _on_device(row, mesh).shard_shape(shape)
        if streamed and is_streamed(row):
            shape = (min(BUFFERS, row.stacked), *shape[1:])
        total += math.prod(shape)
    return total * np.dtype(dtype).itemsize
