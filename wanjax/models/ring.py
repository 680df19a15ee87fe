"""Ring attention: the keys and values of all shards pass by every shard's queries, one shard's at a time.

Each device holds its own keys and values and those that are just passing, whatever the length of the ring; the backward
pass lets them pass by once more, together with the sums of their gradients. While a kernel works on one part, the next
is on its way.

Source: Liu, Zaharia and Abbeel 2023 (arXiv:2310.01889), here without a mask but that of padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax.models.partial_attention import LOWEST, Kernel, merged
from wanjax.models.varying import marked, varying


@dataclass(frozen=True)
class Ring:
    """Devices along a mesh axis whose tokens attend to one another.

    Attributes:
        axis: a manual mesh axis.
        size: devices in each ring; device i of the axis has the tokens of number ``i // stride`` in it.
        stride: how many rings there are, side by side.
        tokens: of all the devices of a ring together, padding left out, which stands at the end; None for no padding.
        mesh: that the shards lie on.
        over: mesh axis that the heads are split over besides; None for none.
    """

    axis: str
    size: int
    stride: int
    tokens: int | None
    mesh: Mesh
    over: str | None


def attention(ring: Ring, kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, name: str = "") -> jax.Array:
    """softmax(q kᵀ / √d) v over the tokens of all the devices of a ring; called per shard.

    Args:
        ring: where the shards are.
        kernel: for each part.
        q, k, v: [B, K, n, d], one shard's tokens, varying over the same mesh axes.
        name: that ``jax.checkpoint`` knows the result and the softmax's statistics by; empty for none.

    Returns:
        [B, K, n, d] in q's dtype; what it holds for padding means nothing.
    """
    return _ring(ring, kernel, name, q, k, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ring(ring: Ring, kernel: Kernel, name: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _forward(ring, kernel, name, q, k, v)[0]


def _forward(
    ring: Ring, kernel: Kernel, name: str, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, statistics = _on_own_heads(ring, functools.partial(_results, ring, kernel), q, k, v)
    if name:
        out, statistics = checkpoint_name(out, name), checkpoint_name(statistics, name)
    return out, (q, k, v, out, statistics)


def _backward(
    ring: Ring, kernel: Kernel, name: str, kept: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array, ...]:
    del name
    return _on_own_heads(ring, functools.partial(_gradients, ring, kernel), *kept, d_out)


_ring.defvjp(_forward, _backward)


def _on_own_heads(ring: Ring, function: Callable[..., tuple[jax.Array, ...]], *x: jax.Array) -> tuple[jax.Array, ...]:
    """The function on each device's own heads, all mesh axes being manual around it.

    What is sent along one axis would otherwise be gathered over those that are not manual, and a kernel compiled by
    itself works on nothing but a device's own arrays. It says of no result over which axes it varies, so that this is
    not checked around it; what comes out is marked as varying over the axes that q varies over.
    """
    around = jax.sharding.get_abstract_mesh()
    spec = P(None, ring.over)
    run = jax.shard_map(function, mesh=around, axis_names=set(ring.mesh.axis_names) - set(around.manual_axes),
                        in_specs=spec, out_specs=spec, check_vma=False)  # fmt: skip
    return jax.tree.map(lambda y: marked(y, varying(x[0])), run(*x))


def _results(ring: Ring, kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The result in q's dtype, and the softmax's statistics."""
    valid = _valid(ring, q.shape[2])

    def add(
        out: jax.Array, statistics: jax.Array, k: jax.Array, v: jax.Array, step: int | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return merged(out, statistics, *kernel.forward(q, k, v, valid(step)))

    def pass_by(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, statistics, k, v = carry
        return *add(out, statistics, k, v, step), _passed(ring, k), _passed(ring, v)

    nothing = jnp.zeros_like(q, jnp.float32), jnp.full_like(q[..., 0], LOWEST, jnp.float32)
    out, statistics, last_k, last_v = jax.lax.fori_loop(0, ring.size - 1, pass_by, (*nothing, k, v))
    out, statistics = add(out, statistics, last_k, last_v, ring.size - 1)
    return out.astype(q.dtype), statistics


def _gradients(
    ring: Ring, kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, statistics: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """Of q, k and v. Sums of those of keys and values travel with these, and go home after the last step.

    They travel in the dtype of keys and values, in which a kernel gives its part; the gradient of the queries, which
    stays, is summed in float32.
    """
    valid = _valid(ring, q.shape[2])

    def part(k: jax.Array, v: jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return kernel.backward(q, k, v, out, statistics, d_out, valid(step))

    def pass_by(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        d_q, k, v, d_k, d_v = carry
        more = part(k, v, step)
        d_k, d_v = _passed(ring, d_k + more[1]), _passed(ring, d_v + more[2])
        return d_q + more[0].astype(jnp.float32), _passed(ring, k), _passed(ring, v), d_k, d_v

    own, away = part(k, v, 0), (_passed(ring, k), _passed(ring, v))
    carry = (own[0].astype(jnp.float32), *away, jnp.zeros_like(k), jnp.zeros_like(v))
    if ring.size > 2:
        carry = jax.lax.fori_loop(1, ring.size - 1, pass_by, carry)
    d_q, k, v, d_k, d_v = carry
    last = part(k, v, ring.size - 1)
    d_q = d_q + last[0].astype(jnp.float32)
    d_k, d_v = (_passed(ring, sums + given) for sums, given in ((d_k, last[1]), (d_v, last[2])))
    return d_q.astype(q.dtype), own[1] + d_k, own[2] + d_v


def _passed(ring: Ring, x: jax.Array) -> jax.Array:
    """What the next device of the ring had: after s steps, a device has the part of the one s places on."""
    length = ring.size * ring.stride
    pairs = [(i, (i - ring.stride) % length) for i in range(length)]
    return jax.lax.ppermute(x, ring.axis, pairs)


def _valid(ring: Ring, tokens: int) -> Callable[[int | jax.Array], jax.Array | None]:
    """How many of a part's ``tokens`` keys are none of padding, by step; None where no part has any."""
    if ring.tokens is None:
        return lambda step: None
    whole, here = ring.tokens, jax.lax.axis_index(ring.axis) // ring.stride
    return lambda step: jnp.clip(whole - (here + step) % ring.size * tokens, 0, tokens)
