"""The diffusion transformer of Wan2.1 and Wan2.2: noisy latents, noise level and text in, velocity out.

The inside of a block is a Linen module (:mod:`wanjax.models.dit_layers`); the stack of blocks is plain JAX
(:mod:`wanjax.models.stack`): one scan over stacked parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wanjax import partition
from wanjax.models import lora, rope, sequence, stack
from wanjax.models.attention import tile
from wanjax.models.dit_config import DiTConfig
from wanjax.models.dit_layers import Block, Embeddings, Head

__all__ = ["DiTConfig", "WanDiT"]

_OUTSIDE = ("patch_embedding", "text_embedding", "time_embedding", "time_projection")


@dataclass(frozen=True)
class WanDiT:
    """The transformer as a pair of pure functions.

    Attributes:
        config: shape and arithmetic.
        mesh: None for one device. With a mesh the stack is written per shard: it runs under ``jax.shard_map``, manual
            over those of ``data``, ``fsdp``, ``seq`` whose size is above 1, automatic over ``tensor``. Clips are
            sharded over ``data`` and ``fsdp``, tokens over ``seq``, padded where they do not divide.

    Raises:
        ValueError: config.sequence is "heads", and these do not divide over ``seq``.
    """

    config: DiTConfig
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.mesh is not None:
            sequence.shared(self.config.sequence, self.config.heads, self.mesh.shape["seq"])

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Random parameters as Wan initialises them (the head is zero), ``{"params": nested dict}``.

        A pure function: works under ``jax.jit`` with ``out_shardings`` and under ``jax.eval_shape``.
        """
        c = self.config
        embed_key, block_key, head_key = jax.random.split(rng, 3)
        tokens, time = jnp.zeros((1, 1, c.width)), jnp.zeros((1, 1, c.width))
        patches = jnp.zeros((1, 1, c.patch_size * c.in_channels))
        params = Embeddings(c).init(embed_key, patches, jnp.zeros((1, 1)), jnp.zeros((1, 1, c.text_dim)))["params"]
        angles = (jnp.ones((1, c.head_dim // 2)), jnp.zeros((1, c.head_dim // 2)))
        text = jnp.zeros((1, 1, c.width), c.dtype)
        plain = Block(dataclasses.replace(c, attention="plain"))  # parameters need no kernel

        def block(key: jax.Array) -> Any:
            return plain.init(key, tokens, text, jnp.zeros((1, 1, 6, c.width)), angles)["params"]

        blocks = jax.vmap(block)(jax.random.split(block_key, c.layers))
        head = Head(c).init(head_key, tokens, time)["params"]
        return {"params": {**params, "blocks": blocks, "head": head}}

    def apply(
        self, variables: Mapping[str, Any], latents: jax.Array, timestep: jax.Array, text: jax.Array
    ) -> jax.Array:
        """Velocity of noisy latents.

        Args:
            variables: ``{"params": nested dict}``, and ``"lora"`` for changes that are added to the parameters where
                these are used (:mod:`wanjax.models.lora`; the parameters stay as they are). Where stacked parameters or
                changes lie in host memory (:mod:`wanjax.offload`), they come to the device block by block, and the
                result cannot be differentiated.
            latents: [B, F, h, w, C in]; extra input channels come after the noise.
            timestep: [B] or, per token, [B, N]; in [0, 1000], may be fractional.
            text: [B, L, E], used as given: never padded, trimmed or masked.

        Returns:
            float32 [B, F, h, w, C out].

        Raises:
            ValueError: shapes that do not fit the config or each other, clips that do not divide over the mesh; changes
                that do not fit the parameters.
        """
        self._check(variables, np.shape(latents), np.shape(timestep), np.shape(text))
        return _forward(self, (), dict(variables), latents, timestep, text)[0]

    def apply_with_taps(
        self, variables: Mapping[str, Any], latents: jax.Array, timestep: jax.Array, text: jax.Array, *,
        taps: tuple[int, ...],
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:  # fmt: skip
        """What :meth:`apply` gives, and the hidden states after some of the blocks; no others are kept.

        Args:
            variables, latents, timestep, text: as for :meth:`apply`.
            taps: numbers of blocks, each from 1 to the number of layers, after which the state is wanted.

        Returns:
            The velocity, and one float32 [B, N, D] per tap.

        Raises:
            ValueError: a tap outside the stack, or as :meth:`apply`.
        """
        wrong = [tap for tap in taps if not 1 <= tap <= self.config.layers]
        if wrong or not taps:
            raise ValueError(f"taps {taps}: expected numbers of blocks from 1 to {self.config.layers}")
        self._check(variables, np.shape(latents), np.shape(timestep), np.shape(text))
        velocity, states = _forward(self, tuple(taps), dict(variables), latents, timestep, text)
        assert states is not None
        return velocity, tuple(states)

    def _check(
        self, variables: Mapping[str, Any], latents: tuple[int, ...], timestep: tuple[int, ...], text: tuple[int, ...]
    ) -> None:
        c = self.config
        if unknown := sorted(variables.keys() - {"params", "lora"}):
            raise ValueError(f"variables {unknown}: expected params and, if any, lora")
        lora.check(variables["params"], variables.get("lora", {}), stacked="blocks")
        if len(latents) != 5 or latents[-1] != c.in_channels:
            raise ValueError(f"latents {latents} must be [B, F, h, w, {c.in_channels}]")
        if len(text) != 3 or text[0] != latents[0] or text[2] != c.text_dim:
            raise ValueError(f"text {text} must be [B, L, E] = [{latents[0]}, L, {c.text_dim}]")
        tokens = math.prod(c.grid(latents[1:4]))
        if timestep not in ((latents[0],), (latents[0], tokens)):
            raise ValueError(f"timestep {timestep} must be [B] = [{latents[0]}] or [B, N] = [{latents[0]}, {tokens}]")
        if self.mesh is None:
            return
        ways = math.prod(self.mesh.shape[axis] for axis in partition.BATCH)
        if latents[0] % ways:
            raise ValueError(f"{latents[0]} clips do not divide over the {ways} devices of mesh axes data and fsdp")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    model: WanDiT, taps: tuple[int, ...], variables: Any, latents: Any, timestep: Any, text: Any
) -> tuple[jax.Array, jax.Array | None]:
    """The velocity, and the states [taps, B, N, D] (None without taps)."""
    c = model.config
    grid = c.grid(latents.shape[1:4])
    timestep = jnp.asarray(timestep, jnp.float32)
    timestep = timestep if timestep.ndim == 2 else timestep[:, None]
    tokens = math.prod(grid)
    padding = ((0, 0), (0, _padded(model, tokens) - tokens), (0, 0))  # cut off again behind the head
    params, changes = dict(variables["params"]), dict(variables.get("lora", {}))
    blocks, block_changes = params.pop("blocks"), changes.pop("blocks", {})
    params, factors = lora.changed(params, changes), lora.factors(changes)
    outside = {"params": {name: params[name] for name in _OUTSIDE},
               "lora": {name: factors[name] for name in _OUTSIDE if name in factors}}  # fmt: skip
    patches = jnp.pad(_patchify(jnp.asarray(latents), c.patch), padding)
    timestep = jnp.pad(timestep, padding[:2]) if timestep.shape[1] > 1 else timestep
    patches, timestep, text = _over_clips(model, patches), _over_clips(model, timestep), _over_clips(model, text)
    embedded = Embeddings(c, model.mesh).apply(outside, patches, timestep, text)
    x, text, time, projected = cast(tuple[jax.Array, jax.Array, jax.Array, jax.Array], embedded)
    text, time, projected = _over_clips(model, text), _over_clips(model, time), _over_clips(model, projected)
    angles = tuple(jnp.pad(table, padding[1:]) for table in rope.tables(grid, c.head_dim))
    x, states = stack.run(c, model.mesh, taps, blocks, block_changes, x, text, projected, angles, tokens)
    head = {"params": params["head"], "lora": factors.get("head", {})}
    head, x, time = _gradients_at_once((head, x, time))
    out = cast(jax.Array, Head(c).apply(head, x, time))
    return _unpatchify(out[:, :tokens], grid, c.patch), None if states is None else states[:, :, :tokens]


def _padded(model: WanDiT, tokens: int) -> int:
    """Tokens of a clip that the stack works on."""
    if model.mesh is None:
        return tokens
    c, platform = model.config, model.mesh.devices.flat[0].platform
    shape = (1, tokens, c.heads, c.head_dim)
    return sequence.padded(tokens, model.mesh.shape["seq"], tile(c.attention, platform, c.dtype, shape, shape))


@jax.custom_vjp
def _gradients_at_once(arrays: Any) -> Any:
    """The arrays as they are; none of their gradients is passed on before all are there.

    In front of the head: a compiler likes to compute its parameters' gradients last, and until then keeps two float32
    copies of all tokens.
    """
    return arrays


_gradients_at_once.defvjp(lambda arrays: (arrays, None), lambda _, found: (jax.lax.optimization_barrier(found),))


def _over_clips(model: WanDiT, x: Any) -> jax.Array:
    """Clips over the mesh's batch axes: without it the partitioner follows the parameters' shards instead."""
    return partition.constrain(jnp.asarray(x), model.mesh, partition.BATCH)


def _patchify(latents: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
    """[B, F, h, w, C] -> [B, N, patch·C], the channel last within a token."""
    b, f, h, w, c = latents.shape
    t, i, j = patch
    x = latents.reshape(b, f // t, t, h // i, i, w // j, j, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, -1, t * i * j * c)


def _unpatchify(x: jax.Array, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> jax.Array:
    """[B, N, patch·C] -> [B, F, h, w, C], inverse of :func:`_patchify`."""
    f, h, w = grid
    t, i, j = patch
    x = x.reshape(x.shape[0], f, h, w, t, i, j, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(x.shape[0], f * t, h * i, w * j, -1)
