"""The parts of the diffusion transformer as Linen modules: embeddings, block, head.

Each linear layer adds what the collection ``lora``, if given, has for its kernel (:mod:`wanjax.models.lora`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wanjax.models import lora, rope
from wanjax.models.attention import attention
from wanjax.models.dit_config import DiTConfig
from wanjax.models.sequence import Shards
from wanjax.models.timestep import timestep_features

_xavier = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(0.02)
SELF_ATTENTION = "self_attention"  # what jax.checkpoint knows its result and statistics by


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


class _Linear(nn.Dense):
    """A linear layer, and what factors of low rank in the collection ``lora`` add to it, where there are any."""

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if self.has_variable("lora", "kernel"):
            y = y + lora.product(x, self.get_variable("lora", "kernel"), y.dtype)
        return y


def _dense(config: DiTConfig, features: int, name: str, *, dtype: str | None = None, init: Any = _xavier) -> nn.Dense:
    return _Linear(features, dtype=dtype or config.dtype, param_dtype=config.param_dtype, kernel_init=init, name=name)


class _Attention(nn.Module):
    """Self- or cross-attention with RMS norm of q and k over the full width."""

    config: DiTConfig
    shards: Shards | None = None
    mesh: Mesh | None = None

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
        over_tokens = attention if self.shards is None else self.shards.attention
        out = over_tokens(q, k, v, implementation=c.attention, mesh=self.mesh, splash_blocks=c.splash_blocks,
                          name="" if angles is None else SELF_ATTENTION)  # fmt: skip
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
    """One transformer block, on ``mesh`` if any, over whose axis ``seq`` its tokens are sharded as ``shards`` says."""

    config: DiTConfig
    shards: Shards | None = None
    mesh: Mesh | None = None

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
        x = x + gate_a * _Attention(c, self.shards, self.mesh, name="self_attention")(y, y, angles)
        y = _CrossNorm(c, name="cross_norm")(x).astype(dtype)
        x = x + _Attention(c, mesh=self.mesh, name="cross_attention")(y, text, None)
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


class Embeddings(nn.Module):
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
        if self.has_variable("lora", "kernel"):
            x = x + lora.product(patches, self.get_variable("lora", "kernel"), x.dtype)
        return x.astype(jnp.float32) + bias.astype(jnp.float32)


class Head(nn.Module):
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
