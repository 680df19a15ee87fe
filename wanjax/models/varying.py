"""Manual mesh axes over which an array is known to vary: what ``jax.shard_map`` checks, and sums gradients by."""

from __future__ import annotations

from collections.abc import Iterable

import jax


def varying(*arrays: jax.Array) -> frozenset[str]:
    """Axes over which one of them is known to vary."""
    return frozenset[str]().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def marked(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """The array as varying over ``axes``, too; its gradient is then summed over those that are new."""
    missing = tuple(sorted(frozenset(axes) - varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
