"""A scan over stacked arrays, some of which lie in host memory: those come to the device one slice at a time.

Where an array lies is part of its type (``jax.typeof(w).memory_space``), so the arrays alone decide what is streamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
_ON_HOST, _ON_DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def scan(body: Callable[[Carry, Any], Carry], carry: Carry, xs: Any) -> Carry:
    """``carry = body(carry, x)`` for each slice x of ``xs``, under ``jax.lax.scan``.

    Where leaves of ``xs`` lie in host memory, the copy of the next slice is issued before the work on this one, so that
    it can run beside it, and two slices of those leaves are on the device at a time. The last step copies its own
    slice once more, which costs one slice's transfer and keeps one program for all steps.

    Args:
        body: pure.
        carry: tree of arrays in device memory.
        xs: tree of arrays with one leading axis of the same size.
    Raises: ValueError where a scan with leaves in host memory is differentiated: every slice that the backward pass
        needs would be kept on the device.
    """
    leaves, tree = jax.tree.flatten(xs)
    hosted = [jax.typeof(leaf).memory_space == _ON_HOST for leaf in leaves]
    if not any(hosted):
        return jax.lax.scan(lambda carry, own: (body(carry, own), None), carry, xs)[0]
    near = [leaf for leaf, away in zip(leaves, hosted, strict=True) if not away]
    far = [leaf for leaf, away in zip(leaves, hosted, strict=True) if away]
    steps = len(leaves[0])

    def fetch(step: Any) -> list[jax.Array]:
        slices = [jax.lax.dynamic_index_in_dim(leaf, step, keepdims=False) for leaf in far]
        return [jax.device_put(slice_, _ON_DEVICE) for slice_ in slices]

    def streamed(state: tuple[Carry, list[jax.Array]], at: Any) -> tuple[tuple[Carry, list[jax.Array]], None]:
        (carry, fetched), (step, here) = state, at
        following = fetch(jnp.minimum(step + 1, steps - 1))
        own, beside = iter(fetched), iter(here)
        x = jax.tree.unflatten(tree, [next(own if away else beside) for away in hosted])
        return (jax.tree.map(_forward_only, body(carry, x)), following), None

    return jax.lax.scan(streamed, (carry, fetch(0)), (jnp.arange(steps), near))[0][0]


@jax.custom_jvp
def _forward_only(x: jax.Array) -> jax.Array:
    return x


@_forward_only.defjvp
def _refused(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "parameters in host memory are streamed forward only: to differentiate, place the parameters in device memory"
    )
