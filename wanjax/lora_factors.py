"""LoRAs kept beside the weights: files become a tree of changes for ``{"params": p, "lora": tree}``.

The weights stay as they are, so they may be shared by several networks, sharded or in host memory, and another LoRA, or
another weight for it, is another tree. :mod:`wanjax.models.lora` says what the tree looks like.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from wanjax import partition
from wanjax.lora import Lora, check, read_files, summed
from wanjax.models import lora as changes
from wanjax.models import rows as row_table
from wanjax.models.rows import LAYOUTS, Row


def factors(rows: Sequence[Row], loras: Sequence[tuple[Lora, float]], *, mesh: Mesh | None = None) -> dict[str, Any]:
    """What :func:`wanjax.lora.merge` adds to the parameters, as a tree of changes in float32.

    The ranks of all files lie side by side, scales and weights are in ``up``; a layer of lower rank than another is
    filled up with zeros. The same files with other weights give the same shapes, and so the same compiled program.

    Args:
        rows: of the network that the LoRAs were read for.
        loras: each with its weight.
        mesh: that of the network: each part is sharded like the parameter that it changes. None for one device.
    Returns: nested dict of those parameters alone that a LoRA changes; empty where there is none.
    Raises: ValueError where a LoRA was read for another network, a weight or a factor is not finite.
    """
    check(rows, loras)
    changing = {path for lora, _ in loras for path, _ in lora.changes}
    found = [(row, _parts(row, loras)) for row in rows if row.path in changing]

    def place(row: Row, part: str, array: np.ndarray) -> jax.Array:
        if mesh is None:
            return jax.device_put(array)
        spec = partition.spec(mesh, ("layers", *row.axes) if row.stacked else row.axes, row.full_shape)
        return partition.put(array, NamedSharding(mesh, changes.part_spec(spec, part, stacked=bool(row.stacked))))

    placed = {row.path: {part: place(row, part, array) for part, array in parts.items()} for row, parts in found}
    return row_table.tree([row for row, _ in found], lambda row: placed[row.path])


def factors_of_files(
    rows: Sequence[Row], files: Iterable[tuple[pathlib.Path, float]], *, expert: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As :func:`factors`, from files with their weights; ``expert`` as for :func:`wanjax.lora.read_lora`.

    Returns: the tree, and for each file what identifies it: {"file": its name, "sha256", "weight"}.
    """
    loras, records = read_files(files, rows, expert=expert)
    return factors(rows, loras, mesh=mesh), records


def _parts(row: Row, loras: Sequence[tuple[Lora, float]]) -> dict[str, np.ndarray]:
    """All that changes one of our arrays, in our layout, the layer axis first where it is stacked."""
    to_ours = LAYOUTS[row.layout].to_ours
    by_layer: list[dict[str, np.ndarray]] = []
    for layer in range(max(row.stacked, 1)):
        up, down, whole = summed(row, layer, loras)
        parts = {} if whole is None else {"whole": to_ours(whole)}
        if up is not None and down is not None:
            parts |= {"down": to_ours(down.reshape(-1, *row.foreign_shape[1:])), "up": up.T}
        by_layer.append(parts)
    if not row.stacked:
        return by_layer[0]
    rank = max(len(parts["up"]) if "up" in parts else 0 for parts in by_layer)
    shapes = {"down": (*row.shape[:-1], rank), "up": (rank, row.shape[-1]), "whole": row.shape}
    present = [part for part in shapes if any(part in parts for parts in by_layer)]
    stacked = {part: np.zeros((row.stacked, *shapes[part]), np.float32) for part in present}
    for layer, parts in enumerate(by_layer):
        for part, array in parts.items():
            stacked[part][layer][tuple(slice(size) for size in array.shape)] = array
    return stacked
