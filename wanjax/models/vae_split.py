"""Clips and rows of frames over a device mesh: where a codec's arrays are cut, and what neighbours exchange.

Clips go over the mesh axes ``data`` and ``fsdp``, the rows of every frame over ``seq`` and ``tensor``. The cut is
exact: before a 3x3 convolution neighbours exchange the rows that it reaches over the edge, and attention sees the keys
and values of the whole frame. No part is computed twice, nothing is blended.

Rows need not divide. Every part then takes as many latent rows as the largest, and what lies below the frame is set to
zero wherever a convolution would look at it, as the border itself is, and left out of the keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wanjax import partition

ROWS = ("seq", "tensor")  # the codec has no heads and few channels: what splits those elsewhere splits rows here


@dataclass(frozen=True)
class RowSplit:
    """Rows of a frame, in equal parts of which the last ones may reach below the frame.

    The methods run inside ``jax.shard_map`` on one part ``[B, T, rows of the part, W, channels]``, at whatever
    resolution x has.

    Attributes:
        axes: mesh axes over which rows are split, outermost first.
        parts: how many parts there are.
        rows: latent rows h of the whole frame.
    """

    axes: tuple[str, ...]
    parts: int
    rows: int

    @property
    def each(self) -> int:
        """Latent rows of a part."""
        return -(-self.rows // self.parts)

    def with_neighbours(self, x: jax.Array, above: int, below: int) -> jax.Array:
        """x between the last ``above`` rows of the part before and the first ``below`` of the part after; zeros where
        the frame ends."""
        x = self._cleared(x)
        pieces = [x]
        if above:
            down = [(part, part + 1) for part in range(self.parts - 1)]
            pieces.insert(0, jax.lax.ppermute(x[:, :, -above:], self.axes, down))
        if below:
            up = [(part + 1, part) for part in range(self.parts - 1)]
            pieces.append(jax.lax.ppermute(x[:, :, :below], self.axes, up))
        return jnp.concatenate(pieces, axis=2)

    def gathered(self, x: jax.Array) -> jax.Array:
        """The whole frame's rows on every part, without what lies below the frame."""
        rows = self.rows * (x.shape[2] // self.each)
        return jax.lax.all_gather(x, self.axes, axis=2, tiled=True)[:, :, :rows]

    def _cleared(self, x: jax.Array) -> jax.Array:
        """x with zeros below the frame."""
        if self.rows % self.parts == 0:
            return x
        scale = x.shape[2] // self.each
        row = jax.lax.axis_index(self.axes) * x.shape[2] + jnp.arange(x.shape[2])
        return jnp.where((row < self.rows * scale)[:, None, None], x, jnp.zeros((), x.dtype))


def placement(mesh: Mesh, height: int) -> NamedSharding:
    """Where clips ``[B, T, height, W, channels]``, of pixels or latents, come from and go to.

    Rows that do not divide, 90 of latents over 8 devices, are on all of them. The 720 of their pixels divide, and are
    cut otherwise there than while the codec works on them, which cuts between latent rows.
    """
    divide = height % math.prod(mesh.shape[axis] for axis in ROWS) == 0
    return NamedSharding(mesh, P(partition.BATCH, None, ROWS if divide else None))


def kept_placement(mesh: Mesh) -> NamedSharding:
    """Where lies what a chunk keeps for the next: every device its own part, with what reaches below the frame."""
    return NamedSharding(mesh, P(partition.BATCH, None, ROWS))


def over_parts(mesh: Mesh | None, rows: int, function: Callable[..., Any], params: Any, x: jax.Array, kept: Any) -> Any:
    """``function(split, params, x, kept) -> (out, kept)`` on every device of the mesh.

    Args:
        mesh: None calls it once, with no split.
        rows: latent rows of the whole frame.
        function: takes and returns arrays, or trees of arrays, ``[B, T, H, W, channels]`` (but for ``params``).
        params: the same on all devices.
        x: a whole clip, or chunk of one; ``kept``: what an earlier call returned, or an empty tree.
    """
    used = () if mesh is None else tuple(axis for axis in partition.AXES if mesh.shape[axis] > 1)
    if mesh is None or not used:
        return function(None, params, x, kept)
    # Axes of size 1 are left out: a mesh whose manual axes all have size 1 trips a check of XLA's.
    axes = tuple(axis for axis in ROWS if axis in used)
    split = RowSplit(axes, math.prod(mesh.shape[axis] for axis in axes), rows)
    spec = P(tuple(axis for axis in partition.BATCH if axis in used) or None, None, axes or None)
    missing = split.each * split.parts - rows
    height = x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, missing * (height // rows)), (0, 0), (0, 0)))

    def part(params: Any, x: jax.Array, kept: Any) -> Any:
        return function(split if axes else None, params, x, kept)

    out, kept = jax.shard_map(part, mesh=mesh, in_specs=(P(), spec, spec), out_specs=spec)(params, x, kept)
    if missing:

        def cropped(y: jax.Array) -> jax.Array:
            height = y.shape[2] // (rows + missing) * rows
            return jax.lax.with_sharding_constraint(y[:, :, :height], placement(mesh, height))

        out = jax.tree.map(cropped, out)
    return out, kept
