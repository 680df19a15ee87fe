"""Changes of low rank, kept beside the parameters and added where these are used: x W' = x (W + whole) + x · down · up.

A tree of changes mirrors the parameters and names those alone that change; in place of an array it has a dict of

``down``   [*inputs, R]   (Hu et al. 2021, arXiv:2106.09685; stacked like the array, with the layer axis first)
``up``     [R, O]
``whole``  of the array's shape

where inputs and O are the array's axes. ``down`` and ``up`` come together; their scale is in ``up``. A layer that
nothing changes has zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from wanjax import precision

Change = Mapping[str, Any]
_FACTORS = {"down", "up"}


def product(x: jax.Array, change: Change, dtype: Any) -> jax.Array:
    """x · down · up, what the factors of a matrix add to its product with x.

    Beside the product and never as a matrix of W's size: a frozen W then needs no gradient, of which W + down · up
    would form all of it for every layer, a third of a training step's products; nothing is lost to the rounding of W;
    and it costs R (inputs + O) multiplications per row of x, about one in a hundred of those of W.

    Args:
        x: [..., inputs], the inputs as one axis.
        change: ``down`` and ``up`` of one layer.
        dtype: of the products.
    Returns: [..., O].
    """
    down, up = (jnp.asarray(change[part], dtype) for part in ("down", "up"))
    exact = precision.of(dtype)
    return jnp.dot(jnp.dot(x.astype(dtype), down.reshape(-1, down.shape[-1]), precision=exact), up, precision=exact)


def factors(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of changes without whole deltas, which are summed into the parameters (:func:`changed`)."""
    out: dict[str, Any] = {}
    for name, change in changes.items():
        if not (_FACTORS | {"whole"}) & change.keys():
            kept = factors(change)
        else:
            kept = {part: change[part] for part in change if part in _FACTORS}
        if kept:
            out[name] = kept
    return out


def changed(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with their whole deltas, summed in float32; all others are the same arrays, in their dtype.

    Args:
        params: nested dict, of one layer where it is stacked.
        changes: see above, of one layer likewise.
    """
    out = dict(params)
    for name, change in changes.items():
        if isinstance(params[name], Mapping):
            out[name] = changed(params[name], change)
        elif "whole" in change:
            out[name] = params[name].astype(jnp.float32) + jnp.asarray(change["whole"], jnp.float32)
    return out


def part_spec(spec: P, part: str, *, stacked: bool) -> P:
    """How a part is sharded beside an array of this spec: as the axes that it shares with it, so that each device has
    the part of the change that belongs to its shard."""
    if part == "whole":
        return spec
    entries = tuple(spec)
    return P(*entries[:-1], None) if part == "down" else P(*entries[:1] if stacked else (), None, entries[-1])


def specs(params_specs: Mapping[str, Any], changes: Mapping[str, Any], *, stacked: bool) -> dict[str, Any]:
    """Tree of PartitionSpec like ``changes``, from that of the parameters."""
    out: dict[str, Any] = {}
    for name, change in changes.items():
        own = params_specs[name]
        if isinstance(own, Mapping):
            out[name] = specs(own, change, stacked=stacked)
        else:
            out[name] = {part: part_spec(own, part, stacked=stacked) for part in change}
    return out


def check(params: Mapping[str, Any], changes: Mapping[str, Any], stacked: str) -> None:
    """Refuses changes that do not belong to the parameters; ``stacked`` is the key of the stacked ones.

    Raises:
        ValueError: one error that lists what is no parameter, is incomplete or has another shape.
    """
    problems = list(_problems(params, changes, stacked, ()))
    if problems:
        raise ValueError("the LoRA does not fit the parameters:\n  " + "\n  ".join(problems))


def _problems(params: Any, changes: Any, stacked: str, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(params, Mapping):
        if not isinstance(changes, Mapping):
            yield f"{'/'.join(path) or 'it'}: expected a dict"
            return
        for name, change in changes.items():
            if name in params:
                yield from _problems(params[name], change, stacked, (*path, name))
            else:
                yield f"{'/'.join((*path, name))}: no such parameter"
        return
    where, shape = "/".join(path), tuple(np.shape(params))
    parts = set(changes) if isinstance(changes, Mapping) else set()
    if not parts or parts - _FACTORS - {"whole"} or len(parts & _FACTORS) == 1:
        yield f"{where}: expected a dict of down and up, of whole, or of all three"
        return
    found = {part: tuple(np.shape(changes[part])) for part in parts}
    layer = shape[:1] if path[0] == stacked else ()
    rank = found["down"][-1:] if "down" in parts else ()
    expected = {"whole": shape, "down": (*shape[:-1], *rank), "up": (*layer, *rank, *shape[-1:])}
    if "down" in parts and len(shape) - len(layer) < 2:
        yield f"{where}: not a matrix, has no factors"
        return
    for part in sorted(parts):
        if found[part] != expected[part]:
            yield f"{where}/{part}: shape {found[part]}, expected {expected[part]}"
