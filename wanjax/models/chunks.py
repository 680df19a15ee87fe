"""Functions of single tokens, computed for some of them at a time: memory then grows with the chunk, not with N.

The result is the same. The backward pass goes through the chunks once more, computes each anew from what came in, and
sums the gradients of parameters over the chunks in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wanjax.models.varying import marked, varying

# Tokens of a chunk are a multiple of the first that divides: rows of a TPU's tiles of bfloat16 and of float32, what a
# GPU copies at once, pairs.
_ROWS = (16, 8, 4, 2, 1)
Function = Callable[[Any, jax.Array, jax.Array, Any, Any], Any]


def over_tokens(
    function: Function, size: int, whole: Any, x: jax.Array, others: Any = (), tables: Any = (), *,
    kept: jax.Array | None = None, in_place: bool = False,
) -> Any:  # fmt: skip
    """``function(whole, x, read, others, tables)``, at most ``size`` tokens at a time.

    Args:
        function: computes each token from that token and from ``whole`` alone. ``read`` is x as it is kept.
        size: tokens of a chunk at most; 0 for all of them at once, which is then differentiated as usual.
        whole: tree of arrays that every token needs: parameters, and what is given per clip.
        x: float32 [B, N, D].
        others: tree of arrays [B, N, ...].
        tables: tree of arrays [B or 1, N, ...] that no gradient is needed of.
        kept: x rounded, which alone waits for the backward pass; None for x itself.
        in_place: whether the result is one array of x's shape and type, which then takes its memory.

    Returns: tree of arrays [B, N, ...].
    """
    count = x.shape[1]
    if not size or count <= size:
        return function(whole, x, read(x, kept), others, tables)
    # copies on every shard are made here: their gradient is then summed over the shards once, not in every chunk
    axes = varying(*jax.tree.leaves((whole, x, others, tables)))
    whole, x, kept, others, tables = jax.tree.map(lambda leaf: marked(leaf, axes), (whole, x, kept, others, tables))
    return _in_chunks(function, _Layout(count, *cut(count, size), in_place), whole, x, kept, others, tables)


def _as_read(x: jax.Array, kept: jax.Array | None) -> jax.Array:
    return x if kept is None else kept.astype(x.dtype)


# x as it is kept, in its own type again; the gradient passes to x as it is, without the rounding
read = jax.custom_vjp(_as_read)
read.defvjp(lambda x, kept: (_as_read(x, kept), None), lambda _, d_read: (d_read, None))


def cut(count: int, size: int) -> tuple[int, int]:
    """Chunks and tokens of each: the roundest number of tokens, without any added, where up to twice as many chunks
    allow that."""
    least = -(-count // size)
    for rows in _ROWS:
        for chunks in range(least, 2 * least):
            if count % (chunks * rows) == 0:
                return chunks, count // chunks
    return least, -(-count // least)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Attributes:
    tokens, chunks, each: N, number of chunks, tokens of a chunk; those added at the end are cut off again.
    in_place: see :func:`over_tokens`.
    """

    tokens: int
    chunks: int
    each: int
    in_place: bool

    def padded(self, tree: Any) -> Any:
        added = self.chunks * self.each - self.tokens
        if not added:
            return tree
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, added), *((0, 0),) * (x.ndim - 2))), tree)

    def of(self, tree: Any, chunk: Any) -> Any:
        """[B, N, ...] -> [B, n, ...]."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, chunk * self.each, self.each, axis=1), tree)

    def put(self, x: jax.Array, own: jax.Array, chunk: Any) -> jax.Array:
        """[B, N, ...] with [B, n, ...] in its place."""
        return jax.lax.dynamic_update_slice_in_dim(x, own, chunk * self.each, axis=1)

    def joined(self, tree: Any) -> Any:
        """[chunks, B, n, ...] -> [B, N, ...]."""

        def joined(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(x.shape[0], self.chunks * self.each, *x.shape[3:])[:, : self.tokens]

        return jax.tree.map(joined, tree)


def _mapped(
    function: Function, layout: _Layout, whole: Any, x: jax.Array, kept: jax.Array | None, others: Any, tables: Any
) -> Any:
    x, *given = layout.padded((x, kept, others, tables))

    def step(x: jax.Array, chunk: Any) -> tuple[jax.Array, Any]:
        own = layout.of(x, chunk)
        kept, others, tables = layout.of(given, chunk)
        out = function(whole, own, _as_read(own, kept), others, tables)
        return (layout.put(x, out, chunk), None) if layout.in_place else (x, out)

    x, out = jax.lax.scan(step, x, jnp.arange(layout.chunks))
    return x[:, : layout.tokens] if layout.in_place else layout.joined(out)


def _forward(
    function: Function, layout: _Layout, whole: Any, x: jax.Array, kept: jax.Array | None, others: Any, tables: Any
) -> tuple[Any, Any]:
    out = _mapped(function, layout, whole, x, kept, others, tables)
    return out, (whole, x if kept is None else kept, others, tables)


def _backward(function: Function, layout: _Layout, given: Any, d_out: Any) -> tuple[Any, ...]:
    whole, *tokens = given
    tokens, d_out = layout.padded((tokens, d_out))

    def step(carry: tuple[Any, Any], chunk: Any) -> tuple[tuple[Any, Any], Any]:
        total, d_out = carry
        stored, others, tables = layout.of(tokens, chunk)
        x = stored.astype(jnp.float32)
        _, pull = jax.vjp(lambda whole, x, others: function(whole, x, x, others, tables), whole, x, others)
        d_whole, d_x, d_others = pull(layout.of(d_out, chunk))
        total = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, d_whole)
        if layout.in_place:
            return (total, layout.put(d_out, d_x, chunk)), (None, d_others)
        return (total, d_out), (d_x, d_others)

    zeros = jax.tree.map(lambda x: marked(jnp.zeros(x.shape, jnp.float32), varying(x)), whole)
    # else a compiler keeps zeros for all layers beside the sums
    start = jax.lax.optimization_barrier((zeros, d_out))
    (total, d_in), (d_x, d_others) = jax.lax.scan(step, start, jnp.arange(layout.chunks))
    d_x = d_in[:, : layout.tokens] if layout.in_place else layout.joined(d_x)
    d_whole = jax.tree.map(lambda x, d: d.astype(x.dtype), whole, total)
    return d_whole, d_x, None, layout.joined(d_others), None


# The rules call what they need as plain functions: a policy of jax.checkpoint does not see into others.
_in_chunks = jax.custom_vjp(_mapped, nondiff_argnums=(0, 1))
_in_chunks.defvjp(_forward, _backward)
