"""The diffusion transformer of Wan2.1 and Wan2.2: noisy latents, noise level and text in, velocity out.

The inside of a block is a Linen module; the stack of blocks is plain JAX: one scan over stacked parameters, whose
body gathers its own block's parameters where they are sharded (see :func:`WanDiT.apply`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax import partition
from wanjax.models import rope, rows
from wanjax.models.attention import attention
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.models.timestep import timestep_features

__all__ = ["DiTConfig", "WanDiT", "timestep_features"]

_GATHERED = "gathered_parameter"
_OUTSIDE = ("patch_embedding", "text_embedding", "time_embedding", "time_projection")
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_xavier = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(0.02)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """(x − mean) / √(variance + eps) over the last axis, in float32, without weights."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / √(mean x² + eps) in float32, cast back to x's dtype before the weight multiplies."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight.astype(x.dtype)


def _dense(config: DiTConfig, features: int, name: str, *, dtype: str | None = None, init: Any = _xavier) -> nn.Dense:
    return nn.Dense(features, dtype=dtype or config.dtype, param_dtype=config.param_dtype, kernel_init=init, name=name)


class _Attention(nn.Module):
    """Self- or cross-attention with RMS norm of q and k over the full width."""

    config: DiTConfig
    seq_axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array, angles: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """x [B, N, D], source [B, M, D] (keys and values), angles = rotary tables or None -> [B, N, D]."""
        c = self.config
        ones = nn.initializers.ones
        norm_q = self.param("norm_q", ones, (c.width,), c.param_dtype)
        norm_k = self.param("norm_k", ones, (c.width,), c.param_dtype)
        q = rms_norm(_dense(c, c.width, "q")(x), norm_q, c.eps)
        k = rms_norm(_dense(c, c.width, "k")(source), norm_k, c.eps)
        v = _dense(c, c.width, "v")(source)
        q, k, v = (y.reshape(*y.shape[:-1], c.heads, c.head_dim) for y in (q, k, v))
        if angles is not None:
            q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
        if self.seq_axis is not None:  # every shard: all tokens of some heads, for the length of the attention
            q, k, v = (jax.lax.all_to_all(y, self.seq_axis, 2, 1, tiled=True) for y in (q, k, v))
        out = attention(q, k, v)
        if self.seq_axis is not None:
            out = jax.lax.all_to_all(out, self.seq_axis, 1, 2, tiled=True)
        return _dense(c, c.width, "o")(out.reshape(x.shape))


class _FeedForward(nn.Module):
    config: DiTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(_dense(self.config, self.config.ffn, "in")(x), approximate=True)
        return _dense(self.config, self.config.width, "out")(hidden)


class _CrossNorm(nn.Module):
    """LayerNorm with weights in front of cross-attention."""

    config: DiTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        scale = self.param("scale", nn.initializers.ones, (c.width,), c.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c.width,), c.param_dtype)
        return layer_norm(x, c.eps) * scale.astype(jnp.float32) + bias.astype(jnp.float32)


class Block(nn.Module):
    """One transformer block. ``seq_axis`` names the manual mesh axis over which the tokens are sharded, if any."""

    config: DiTConfig
    seq_axis: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, time: jax.Array, angles: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """x float32 [B, N, D], text [B, L, D], time float32 [B, 1 or N, 6, D], angles 2 × [N, d/2] -> [B, N, D]."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        table = self.param("modulation", _table_init(c), (6, c.width), c.param_dtype).astype(jnp.float32)
        modulation = table + time
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation[:, :, i] for i in range(6))
        y = (layer_norm(x, c.eps) * (1 + scale_a) + shift_a).astype(dtype)
        x = x + gate_a * _Attention(c, self.seq_axis, name="self_attention")(y, y, angles)
        y = _CrossNorm(c, name="cross_norm")(x).astype(dtype)
        x = x + _Attention(c, name="cross_attention")(y, text, None)
        y = (layer_norm(x, c.eps) * (1 + scale_f) + shift_f).astype(dtype)
        return x + gate_f * _FeedForward(c, name="ffn")(y)


class _Mlp(nn.Module):
    """Linear, activation, linear; the embeddings of text and time."""

    config: DiTConfig
    dtype: str
    activation: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.config.width
        hidden = self.activation(_dense(self.config, width, "in", dtype=self.dtype, init=_small)(x))
        return _dense(self.config, width, "out", dtype=self.dtype, init=_small)(hidden)


class _Embeddings(nn.Module):
    """What stands before the stack: tokens, text and time."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self, patches: jax.Array, timestep: jax.Array, text: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """patches [B, N, patch·C], timestep [B, 1 or N], text [B, L, E].

        Returns x [B, N, D], text [B, L, D], the time embedding [B, 1 or N, D] and its projection [B, 1 or N, 6, D].
        """
        c = self.config
        x = _PatchEmbedding(c, name="patch_embedding")(patches)
        gelu = functools.partial(nn.gelu, approximate=True)
        text = _Mlp(c, c.dtype, gelu, name="text_embedding")(text.astype(c.dtype))
        time = timestep_features(timestep, c.freq_dim)
        time = _Mlp(c, "float32", nn.silu, name="time_embedding")(time)
        projected = _dense(c, 6 * c.width, "time_projection", dtype="float32")(nn.silu(time))
        return x, text, time, projected.reshape(*projected.shape[:-1], 6, c.width)


class _PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product; the kernel keeps its five axes."""

    config: DiTConfig

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        c = self.config
        flat = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1, 2, 3), out_axis=4)
        kernel = self.param("kernel", flat, (*c.patch, c.in_channels, c.width), c.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c.width,), c.param_dtype)
        x = jnp.dot(patches.astype(c.dtype), kernel.reshape(-1, c.width).astype(c.dtype))
        return x.astype(jnp.float32) + bias.astype(jnp.float32)


class _Head(nn.Module):
    """Norm, modulation by the time embedding before its projection, linear; in float32."""

    config: DiTConfig

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """x [B, N, D], time [B, 1 or N, D] -> [B, N, patch·C]."""
        c = self.config
        table = self.param("modulation", _table_init(c), (2, c.width), c.param_dtype).astype(jnp.float32)
        y = layer_norm(x, c.eps) * (1 + table[1] + time) + (table[0] + time)
        features = c.patch_size * c.out_channels
        return _dense(c, features, "projection", dtype="float32", init=nn.initializers.zeros)(y)


def _table_init(config: DiTConfig) -> Any:
    return nn.initializers.normal(1.0 / math.sqrt(config.width))


@dataclass(frozen=True)
class WanDiT:
    """The transformer as a pair of pure functions.

    Attributes:
        config: shape and arithmetic.
        mesh: None for one device. With a mesh the stack is written per shard: it runs under ``jax.shard_map``, manual
            over those of ``data``, ``fsdp``, ``seq`` whose size is above 1, automatic over ``tensor``. Clips are
            sharded over ``data`` and ``fsdp``, tokens over ``seq``.

    Raises:
        ValueError: heads that do not divide over ``seq``.
    """

    config: DiTConfig
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.mesh is not None and self.config.heads % self.mesh.shape["seq"]:
            raise ValueError(
                f"{self.config.heads} heads do not divide over the mesh axis seq of size {self.mesh.shape['seq']};"
                f" choose a seq that divides the heads"
            )

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Random parameters as Wan initialises them (the head is zero), ``{"params": nested dict}``.

        A pure function: works under ``jax.jit`` with ``out_shardings`` and under ``jax.eval_shape``.
        """
        c = self.config
        embed_key, block_key, head_key = jax.random.split(rng, 3)
        tokens, time = jnp.zeros((1, 1, c.width)), jnp.zeros((1, 1, c.width))
        patches = jnp.zeros((1, 1, c.patch_size * c.in_channels))
        params = _Embeddings(c).init(embed_key, patches, jnp.zeros((1, 1)), jnp.zeros((1, 1, c.text_dim)))["params"]
        angles = (jnp.ones((1, c.head_dim // 2)), jnp.zeros((1, c.head_dim // 2)))
        text = jnp.zeros((1, 1, c.width), c.dtype)

        def block(key: jax.Array) -> Any:
            return Block(c).init(key, tokens, text, jnp.zeros((1, 1, 6, c.width)), angles)["params"]

        blocks = jax.vmap(block)(jax.random.split(block_key, c.layers))
        head = _Head(c).init(head_key, tokens, time)["params"]
        return {"params": {**params, "blocks": blocks, "head": head}}

    def apply(
        self, variables: Mapping[str, Any], latents: jax.Array, timestep: jax.Array, text: jax.Array
    ) -> jax.Array:
        """Velocity of noisy latents.

        Args:
            variables: ``{"params": nested dict}``.
            latents: [B, F, h, w, C in]; extra input channels come after the noise.
            timestep: [B] or, per token, [B, N]; in [0, 1000], may be fractional.
            text: [B, L, E], used as given: never padded, trimmed or masked.

        Returns:
            float32 [B, F, h, w, C out].

        Raises:
            ValueError: shapes that do not fit the config or each other, or do not divide over the mesh.
        """
        self._check(np.shape(latents), np.shape(timestep), np.shape(text))
        return _forward(self, (), variables["params"], latents, timestep, text)[0]

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
        self._check(np.shape(latents), np.shape(timestep), np.shape(text))
        velocity, states = _forward(self, tuple(taps), variables["params"], latents, timestep, text)
        assert states is not None
        return velocity, tuple(states)

    def _check(self, latents: tuple[int, ...], timestep: tuple[int, ...], text: tuple[int, ...]) -> None:
        c = self.config
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
        if tokens % self.mesh.shape["seq"]:
            raise ValueError(f"{tokens} tokens do not divide over the mesh axis seq of size {self.mesh.shape['seq']}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    model: WanDiT, taps: tuple[int, ...], params: Any, latents: Any, timestep: Any, text: Any
) -> tuple[jax.Array, jax.Array | None]:
    """The velocity, and the states [taps, B, N, D] (None without taps)."""
    c = model.config
    grid = c.grid(latents.shape[1:4])
    timestep = jnp.asarray(timestep, jnp.float32)
    timestep = timestep if timestep.ndim == 2 else timestep[:, None]
    outside = {name: params[name] for name in _OUTSIDE}
    patches = _patchify(jnp.asarray(latents), c.patch)
    patches, timestep, text = _over_clips(model, patches), _over_clips(model, timestep), _over_clips(model, text)
    embedded = _Embeddings(c).apply({"params": outside}, patches, timestep, text)
    x, text, time, projected = cast(tuple[jax.Array, jax.Array, jax.Array, jax.Array], embedded)
    text, time, projected = _over_clips(model, text), _over_clips(model, time), _over_clips(model, projected)
    angles = tuple(jnp.asarray(table) for table in rope.tables(grid, c.head_dim))
    x, states = _stack(model, taps, params["blocks"], x, text, projected, angles)
    out = cast(jax.Array, _Head(c).apply({"params": params["head"]}, x, time))
    return _unpatchify(out, grid, c.patch), states


def _over_clips(model: WanDiT, x: Any) -> jax.Array:
    """Clips over the mesh's batch axes: without it the partitioner follows the parameters' shards instead."""
    return partition.constrain(jnp.asarray(x), model.mesh, partition.BATCH)


def _stack(
    model: WanDiT, taps: tuple[int, ...], blocks: Any, x: jax.Array, text: jax.Array, time: jax.Array, angles: Any
) -> tuple[jax.Array, jax.Array | None]:
    """All blocks: x [B, N, D], text [B, L, D], time [B, 1 or N, 6, D] -> [B, N, D], and the states after ``taps``."""
    mesh = model.mesh
    manual = () if mesh is None else tuple(a for a in ("data", "fsdp", "seq") if mesh.shape[a] > 1)
    if mesh is None or not manual:
        return _scan(model.config, taps, blocks, x, text, time, angles, specs=None, manual=())
    axes = rows.logical_axes(dit_rows(model.config))["blocks"]
    specs = jax.tree.map(
        lambda names, w: _manual_part(partition.spec(mesh, names, w.shape), manual),
        axes, blocks, is_leaf=lambda node: isinstance(node, tuple),
    )  # fmt: skip
    batch = tuple(a for a in partition.BATCH if a in manual) or None
    seq = "seq" if "seq" in manual else None
    per_shard = jax.shard_map(
        lambda b, *args: _scan(model.config, taps, b, *args, specs=specs, manual=manual),
        mesh=mesh,
        in_specs=(specs, P(batch, seq), P(batch), P(batch, seq if time.shape[1] > 1 else None), P(seq)),
        out_specs=(P(batch, seq), P(None, batch, seq) if taps else None),
        axis_names=set(manual),
    )
    return per_shard(blocks, x, text, time, angles)


def _manual_part(spec: P, manual: tuple[str, ...]) -> P:
    """The spec without automatic axes: shard_map's in_specs may name manual axes only."""

    return P(*(tuple(name for name in _names(entry) if name in manual) or None for entry in spec))


def _names(entry: Any) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec, outermost first."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _scan(
    config: DiTConfig, taps: tuple[int, ...], blocks: Any, x: jax.Array, text: jax.Array, time: jax.Array,
    angles: Any, *, specs: Any, manual: tuple[str, ...],
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
    """The stack on one shard; ``specs`` says how the stacked parameters are sharded over ``manual`` axes."""
    block = Block(config, seq_axis="seq" if "seq" in manual else None)

    def body(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        if manual:
            own = jax.tree.map(functools.partial(_gather, config, manual), own, specs)
        return cast(jax.Array, block.apply({"params": own}, x, text, time, angles)), None

    if config.remat != "none":
        body = jax.checkpoint(body, policy=_POLICIES[config.remat], prevent_cse=False)
    elif manual:  # even then a gathered block is not kept: it would undo the sharding of the parameters
        keep = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
        body = jax.checkpoint(body, policy=keep, prevent_cse=False)
    if not taps:
        return jax.lax.scan(body, x, blocks)[0], None

    # Added, not selected: the backward pass then keeps one number per layer and tap, and no state. It stands outside
    # the rematerialised body for the same reason.
    def tapped(carry: tuple[jax.Array, jax.Array], own: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        (x, states), (block_params, here) = carry, own
        x, _ = body(x, block_params)
        return (x, states + here[:, None, None, None] * x), None

    here = np.asarray([[layer + 1 == tap for tap in taps] for layer in range(config.layers)], np.float32)
    states = jnp.stack([jnp.zeros_like(x)] * len(taps))
    return jax.lax.scan(tapped, (x, states), (blocks, here))[0]


def _gather(config: DiTConfig, manual: tuple[str, ...], w: jax.Array, spec: P) -> jax.Array:
    """One whole parameter of a block from its shards; the transpose reduce-scatters its gradient.

    Marked as varying over the axes that it is copied on *before* the gather, so that the gradient is reduce-scattered
    first and only the shard is summed over ``data``, in the parameters' dtype. Matrices travel in the compute dtype.
    Axis by axis, innermost first: one gather over several axes of a torus compiles to a padded all-reduce.
    """
    entries = [_names(entry) for entry in spec[1:]]
    sharded = {name for names in entries for name in names}
    copied = tuple(name for name in manual if name not in sharded)
    if copied:
        w = jax.lax.pcast(w, copied, to="varying")
    if w.ndim == 2 and w.shape[0] > 6:
        w = w.astype(config.dtype)
    for axis, names in enumerate(entries):
        for name in reversed(names):
            w = jax.lax.all_gather(w, name, axis=axis, tiled=True)
    return checkpoint_name(w, _GATHERED)


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
