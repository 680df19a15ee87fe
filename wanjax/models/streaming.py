"""Scans over stacked arrays, some of which lie in host memory: those come to the device one slice at a time.

Where an array lies is part of its type (``jax.typeof(w).memory_space``), so the arrays alone decide what is streamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
_ON_HOST, _ON_DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def is_on_host(leaf: Any) -> bool:
    """Whether an array, of a program too, lies in host memory."""
    return bool(jax.typeof(leaf).memory_space == _ON_HOST)


def scan(body: Callable[[Carry, Any], Carry], carry: Carry, xs: Any) -> Carry:
    """``carry = body(carry, x)`` for each slice x of ``xs``, under ``jax.lax.scan``.

    Where leaves of ``xs`` lie in host memory, the next slice is copied while this one is worked on, and two slices of
    those leaves are on the device at a time. The last step copies its own slice once more, which costs one slice's
    transfer and keeps one program for all steps.

    Args:
        body: pure.
        carry: tree of arrays in device memory.
        xs: tree of arrays with one leading axis of the same size.
    Raises: ValueError where a scan with leaves in host memory is differentiated: every slice that the backward pass
        needs would be kept on the device.
    """
    leaves, tree = jax.tree.flatten(xs)
    hosted = [is_on_host(leaf) for leaf in leaves]
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

    # Two steps per turn of the loop: with one, the compiler writes the next slice over this one, and so copies only
    # when the work on this one is done.
    return jax.lax.scan(streamed, (carry, fetch(0)), (jnp.arange(steps), near), unroll=2)[0][0]


def replace(body: Callable[[Any, Any], Any], stacks: Any, beside: Any) -> Any:
    """The stacks with every slice replaced by ``body(slice, slice of beside)``, in the place of the old ones.

    Of leaves in host memory, the next slice comes while this one is worked on and then goes back, and no more than two
    slices are on the device at a time. What is written takes the memory of what was read, where nobody else reads it:
    a donated argument, or an array that was made in the same program.

    Args:
        body: pure; gives slices of the shapes and types of the first that it takes. All slices keep their leading axis.
        stacks: tree of arrays with one leading axis of the same size, in host or in device memory.
        beside: tree of such arrays in device memory.
    """
    leaves, tree = jax.tree.flatten(stacks)
    hosted = [is_on_host(leaf) for leaf in leaves]
    steps = len(leaves[0])

    def fetch(leaves: list[jax.Array], step: Any) -> list[jax.Array]:
        return [jax.device_put(jax.lax.dynamic_slice_in_dim(leaf, step, 1), _ON_DEVICE)
                for leaf, away in zip(leaves, hosted, strict=True) if away]  # fmt: skip

    def replaced(state: tuple[list[jax.Array], list[jax.Array]], at: Any) -> tuple[Any, None]:
        (leaves, fetched), (step, others) = state, at
        following = fetch(leaves, jnp.minimum(step + 1, steps - 1))
        near = [jax.lax.dynamic_slice_in_dim(leaf, step, 1)
                for leaf, away in zip(leaves, hosted, strict=True) if not away]  # fmt: skip
        # read before it is written: an operation that does both would have the whole stack copied for it
        far, near = iter(fetched), iter(jax.lax.optimization_barrier(near))
        slices = jax.tree.unflatten(tree, [next(far if away else near) for away in hosted])
        made = jax.tree.leaves(body(slices, jax.tree.map(lambda other: other[None], others)))
        made = [jax.device_put(new, _ON_HOST) if away else new for new, away in zip(made, hosted, strict=True)]
        leaves = [jax.lax.dynamic_update_slice_in_dim(leaf, new, step, 0)
                  for leaf, new in zip(leaves, made, strict=True)]  # fmt: skip
        return (leaves, following), None

    first = (leaves, fetch(leaves, 0))
    return jax.tree.unflatten(tree, jax.lax.scan(replaced, first, (jnp.arange(steps), beside))[0][0])


@jax.custom_jvp
def _forward_only(x: jax.Array) -> jax.Array:
    return x


@_forward_only.defjvp
def _refused(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "parameters in host memory are streamed forward only: to differentiate, place the parameters in device memory"
    )
