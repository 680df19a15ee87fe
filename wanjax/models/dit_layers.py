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

from wanjax import partition, precision
from wanjax.models import lora, rope
from wanjax.models.attention import attention
from wanjax.models.dit_config import DiTConfig
from wanjax.models.sequence import Shards
from wanjax.models.timestep import timestep_features

_xavier = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(0.02)
# what jax.checkpoint knows results and statistics by
SELF_ATTENTION, CROSS_ATTENTION = "self_attention", "cross_attention"
Angles = tuple[jax.Array, jax.Array]  # rotary tables, [N, d/2] each


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


def _dense(
    config: DiTConfig, features: int, name: str | None = None, *, dtype: str | None = None, init: Any = _xavier
) -> nn.Dense:
    dtype = dtype or config.dtype
    return _Linear(features, dtype=dtype, param_dtype=config.param_dtype, precision=precision.of(dtype),
                   kernel_init=init, name=name)  # fmt: skip


class _Attention(nn.Module):
    """What stands around self- or cross-attention, with RMS norm of q and k over the full width."""

    config: DiTConfig

    def setup(self) -> None:
        c = self.config
        self.norm_q = self.param("norm_q", nn.initializers.ones, (c.width,), c.param_dtype)
        self.norm_k = self.param("norm_k", nn.initializers.ones, (c.width,), c.param_dtype)
        self.q, self.k, self.v, self.o = (_dense(c, c.width) for _ in range(4))

    def queries(self, x: jax.Array, angles: Angles | None = None) -> jax.Array:
        """x [B, N, D], rotary tables or None -> q [B, N, K, d]."""
        q = self._heads(rms_norm(self.q(x), self.norm_q, self.config.eps))
        return q if angles is None else rope.rotate(q, *angles)

    def keys_and_values(self, source: jax.Array, angles: Angles | None = None) -> tuple[jax.Array, jax.Array]:
        """source [B, M, D], rotary tables or None -> k and v [B, M, K, d]."""
        k = self._heads(rms_norm(self.k(source), self.norm_k, self.config.eps))
        return k if angles is None else rope.rotate(k, *angles), self._heads(self.v(source))

    def output(self, attended: jax.Array) -> jax.Array:
        """[B, N, K, d] -> [B, N, D]."""
        return self.o(attended.reshape(*attended.shape[:2], -1))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.heads, self.config.head_dim)


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
    """One transformer block, on ``mesh`` if any, over whose axis ``seq`` its tokens are sharded as ``shards`` says.

    :meth:`before`, :meth:`attend` and :meth:`after` are its parts: only :meth:`attend` lets tokens see each other.
    """

    config: DiTConfig
    shards: Shards | None = None
    mesh: Mesh | None = None

    def setup(self) -> None:
        c = self.config
        self.modulation = self.param("modulation", _table_init(c), (6, c.width), c.param_dtype)
        self.self_attention, self.cross_attention = _Attention(c), _Attention(c)
        self.cross_norm, self.ffn = _CrossNorm(c), _FeedForward(c)

    def __call__(self, x: jax.Array, text: jax.Array, time: jax.Array, angles: Angles) -> jax.Array:
        """x float32 [B, N, D], text [B, L, D], time float32 [B, 1 or N, 6, D], angles 2 × [N, d/2] -> [B, N, D]."""
        attended = self.attend(*self.before(x, time, angles))
        return self.after(x, attended, self.text(text), time)

    def before(self, x: jax.Array, time: jax.Array, angles: Angles) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q, k and v of self-attention, [B, N, K, d]."""
        shift, scale, _ = self._modulation(time, 0)
        y = (layer_norm(x, self.config.eps) * (1 + scale) + shift).astype(self.config.dtype)
        return self.self_attention.queries(y, angles), *self.self_attention.keys_and_values(y, angles)

    @nn.nowrap
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Self-attention over the tokens of all shards, [B, N, K, d]; has no parameters."""
        c = self.config
        over_tokens = attention if self.shards is None else self.shards.attention
        return over_tokens(q, k, v, implementation=c.attention, mesh=self.mesh, splash_blocks=c.splash_blocks,
                           name=SELF_ATTENTION)  # fmt: skip

    def text(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k and v of cross-attention, [B, L, K, d]."""
        return self.cross_attention.keys_and_values(text)

    def after(
        self, x: jax.Array, attended: jax.Array, text: tuple[jax.Array, jax.Array], time: jax.Array
    ) -> jax.Array:
        """The block's output [B, N, D] from its input, what :meth:`attend` and what :meth:`text` gave."""
        c = self.config
        _, _, gate_a = self._modulation(time, 0)
        shift, scale, gate_f = self._modulation(time, 3)
        x = x + gate_a * self.self_attention.output(attended)
        q = self.cross_attention.queries(self.cross_norm(x).astype(c.dtype))
        x = x + self.cross_attention.output(
            attention(q, *text, implementation=c.attention, mesh=self.mesh, splash_blocks=c.splash_blocks,
                      name=CROSS_ATTENTION)  # fmt: skip
        )
        y = (layer_norm(x, c.eps) * (1 + scale) + shift).astype(c.dtype)
        return x + gate_f * self.ffn(y)

    def _modulation(self, time: jax.Array, first: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Shift, scale and gate [B, 1 or N, D] from the six, of which the ``first`` is the shift."""
        table = self.modulation.astype(jnp.float32)
        shift, scale, gate = (table[i] + time[:, :, i] for i in range(first, first + 3))
        return shift, scale, gate


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
    """What stands before the stack, on ``mesh`` if any: tokens, text and time."""

    config: DiTConfig
    mesh: Mesh | None = None

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
        active = nn.silu(time)
        if self.mesh is not None and time.shape[1] == 1:  # products of the matrix's shards are less to send than it
            over = partition.spec(self.mesh, (None, None, "embed"), time.shape)
            # over whole rows, from clips to features in two steps that a partitioner knows
            active = partition.constrain(partition.constrain(active, self.mesh, None), self.mesh, *over)
        projected = _dense(c, 6 * c.width, "time_projection", dtype="float32")(active)
        return x, text, time, projected.reshape(*projected.shape[:-1], 6, c.width)


class _PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product; the kernel keeps its five axes."""

    config: DiTConfig

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1, 2, 3), out_axis=4)
        kernel = self.param("kernel", init, (*c.patch, c.in_channels, c.width), c.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c.width,), c.param_dtype)
        flat = kernel.reshape(-1, c.width).astype(c.dtype)
        x = jnp.dot(patches.astype(c.dtype), flat, precision=precision.of(c.dtype))
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
