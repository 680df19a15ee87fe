"""Functions of single tokens, computed for some of them at a time: memory then grows with the chunk, not with N.

The result is the same. The backward pass goes through the chunks once more, computes each anew from what came in, and
sums the gradients of parameters over the chunks in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_ROWS = 16  # tokens of a chunk are a multiple of it where they are as many: rows of a TPU's tiles of bfloat16


def over_tokens(
    function: Callable[[Any, Any, Any], Any], size: int, whole: Any, tokens: Any, tables: Any = (), *,
    stored: str | None = None,
) -> Any:  # fmt: skip
    """``function(whole, tokens, tables)``, at most ``size`` tokens at a time.

    Args:
        function: computes each token from that token and from ``whole`` alone.
        size: tokens of a chunk at most; 0 for all of them at once, which is then differentiated as usual.
        whole: tree of arrays that every token needs: parameters, and what is given per clip.
        tokens: tree of arrays [B, N, ...].
        tables: tree of arrays [B or 1, N, ...] that no gradient is needed of.
        stored: type that ``tokens`` in float32 wait in for the backward pass, where they are exact in it; None for
            float32.

    Returns: tree of arrays [B, N, ...].
    """
    count = jax.tree.leaves(tokens)[0].shape[1]
    if not size or count <= size:
        return function(whole, tokens, tables)
    chunks, each = _cut(count, size)
    # copies on every shard are made here: their gradient is then summed over the shards once, not in every chunk
    axes = frozenset[str]().union(*map(_varying, jax.tree.leaves((whole, tokens, tables))))
    whole, tokens, tables = jax.tree.map(functools.partial(_marked, axes), (whole, tokens, tables))
    dtypes = tuple(leaf.dtype.name for leaf in jax.tree.leaves(tokens))
    return _in_chunks(function, _Layout(count, chunks, each, dtypes, stored), whole, tokens, tables)


def _cut(count: int, size: int) -> tuple[int, int]:
    """Chunks and tokens of each: whole rows of tiles and nothing added, where up to twice as many chunks allow that."""
    least = -(-count // size)
    for chunks in range(least, 2 * least):
        if count % (chunks * _ROWS) == 0:
            return chunks, count // chunks
    return least, min(size, -(-count // (least * _ROWS)) * _ROWS)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Attributes:
    tokens, chunks, each: N, number of chunks, tokens of a chunk; those added at the end are cut off again.
    dtypes: of the leaves of tokens.
    stored: see :func:`over_tokens`.
    """

    tokens: int
    chunks: int
    each: int
    dtypes: tuple[str, ...]
    stored: str | None

    def cut(self, tree: Any) -> Any:
        """[B, N, ...] -> [chunks, B, n, ...]."""

        def cut(x: jax.Array) -> jax.Array:
            added = self.chunks * self.each - self.tokens
            x = jnp.pad(x, ((0, 0), (0, added), *((0, 0),) * (x.ndim - 2)))
            return jnp.moveaxis(x.reshape(x.shape[0], self.chunks, self.each, *x.shape[2:]), 1, 0)

        return jax.tree.map(cut, tree)

    def joined(self, tree: Any) -> Any:
        """[chunks, B, n, ...] -> [B, N, ...]."""

        def joined(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(x.shape[0], self.chunks * self.each, *x.shape[3:])[:, : self.tokens]

        return jax.tree.map(joined, tree)

    def store(self, tokens: Any) -> Any:
        """As they wait for the backward pass."""
        if self.stored is None:
            return tokens
        return jax.tree.map(lambda x: x.astype(self.stored) if x.dtype == jnp.float32 else x, tokens)

    def restore(self, stored: Any) -> Any:
        leaves, tree = jax.tree.flatten(stored)
        return jax.tree.unflatten(tree, [x.astype(name) for x, name in zip(leaves, self.dtypes, strict=True)])


def _mapped(function: Any, layout: _Layout, whole: Any, tokens: Any, tables: Any) -> Any:
    return layout.joined(jax.lax.map(lambda of: function(whole, *of), layout.cut((tokens, tables))))


def _forward(function: Any, layout: _Layout, whole: Any, tokens: Any, tables: Any) -> tuple[Any, Any]:
    return _mapped(function, layout, whole, tokens, tables), (whole, layout.store(tokens), tables)


def _backward(function: Any, layout: _Layout, kept: Any, d_out: Any) -> tuple[Any, Any, None]:
    whole, stored, tables = kept

    def step(total: Any, of: Any) -> tuple[Any, Any]:
        stored, tables, d_out = of
        tokens = layout.restore(stored)
        _, pull = jax.vjp(lambda whole, tokens: function(whole, tokens, tables), whole, tokens)
        d_whole, d_tokens = pull(d_out)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, d_whole), d_tokens

    zeros = jax.tree.map(lambda x: _marked(_varying(x), jnp.zeros(x.shape, jnp.float32)), whole)
    # else a compiler keeps zeros for all layers beside the sums
    zeros, d_out = jax.lax.optimization_barrier((zeros, d_out))
    total, d_tokens = jax.lax.scan(step, zeros, layout.cut((stored, tables, d_out)))
    return jax.tree.map(lambda x, d: d.astype(x.dtype), whole, total), layout.joined(d_tokens), None


_in_chunks = jax.custom_vjp(_mapped, nondiff_argnums=(0, 1))
_in_chunks.defvjp(_forward, _backward)


def _varying(x: jax.Array) -> frozenset[str]:
    """Manual axes over which an array is known to vary."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def _marked(axes: frozenset[str], x: jax.Array) -> jax.Array:
    missing = tuple(sorted(axes - _varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
