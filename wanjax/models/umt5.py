"""umT5: the text encoder of Wan, an encoder-only T5 whose every layer has its own relative-position bias.

The reference is transformers' ``UMT5EncoderModel``; the architecture is Raffel et al. 2019 (arXiv:1910.10683)
with the gated feed-forward of Shazeer 2020 (arXiv:2002.05202) and the per-layer bias of Chung et al. 2023
(arXiv:2304.09151). ``B`` texts, ``L`` tokens, ``E`` width, ``K`` heads.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from wanjax import partition, precision
from wanjax.models import rows as row_table
from wanjax.models.rows import Row
from wanjax.models.rows.umt5 import umt5_rows

Params = dict[str, Any]


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of a umT5 encoder; the defaults are umT5-XXL as Wan2.2 uses it.

    ``dtype`` is what matrices are multiplied in, ``param_dtype`` what parameters are stored in; the residual
    stream, the norms and the softmax are float32 either way.
    """

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ValueError(f"UMT5Config.{field.name} must be a positive integer, got {value!r}")
        if not self.layer_norm_epsilon > 0:
            raise ValueError(f"UMT5Config.layer_norm_epsilon must be positive, got {self.layer_norm_epsilon!r}")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4 or distance <= buckets // 4:
            raise ValueError(
                "UMT5Config needs relative_attention_num_buckets divisible by 4 (two directions, half of each "
                f"exact) and relative_attention_max_distance above a quarter of it; got {buckets} and {distance}"
            )
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16", "float16"):
                raise ValueError(
                    f"UMT5Config.{name} must be float32, bfloat16 or float16, got {getattr(self, name)!r}"
                )


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query, key) pair: int32 ``[L, L]`` in [0, num_buckets).

    Keys after the query use the upper half of the buckets. Within a half, distances below a quarter of
    ``num_buckets`` have a bucket each, larger ones share logarithmic buckets up to ``max_distance``. The edges of
    the logarithmic buckets are decided in integers, because a float32 logarithm may fall on either side of them:
    ``n log(d/e) / log(m/e) >= k`` exactly when ``d^n e^k >= m^k e^n``.
    """
    half = num_buckets // 2
    exact = half // 2
    steps = half - exact

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        reached = [
            k for k in range(steps) if distance**steps * exact**k >= max_distance**k * exact**steps
        ]
        return exact + reached[-1]

    per_distance = np.array([bucket(d) for d in range(length)], np.int32)
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    return (per_distance[np.abs(offset)] + half * (offset > 0)).astype(np.int32)


class _RMSNorm(nn.Module):
    """``x / rms(x)`` over the last axis in float32, cast to ``dtype``, then times a learned scale."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(config.param_dtype))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.layer_norm_epsilon)
        return x.astype(config.dtype) * scale.astype(config.dtype)


class _Attention(nn.Module):
    """Self-attention with a relative-position bias and without the usual 1/sqrt(d_kv)."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: jax.Array, buckets: jax.Array, key_bias: jax.Array) -> jax.Array:
        config = self.config
        inner = config.num_heads * config.d_kv
        q = _dense(config, inner, "q")(x)
        k = _dense(config, inner, "k")(x)
        v = _dense(config, inner, "v")(x)
        q, k, v = (a.reshape(*a.shape[:2], config.num_heads, config.d_kv) for a in (q, k, v))  # [B, L, K, d_kv]
        table = self.param(
            "relative_bias",
            nn.initializers.zeros,
            (config.relative_attention_num_buckets, config.num_heads),
            jnp.dtype(config.param_dtype),
        )
        bias = jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 0)  # [K, L, L]
        logits = jnp.einsum(
            "bqkd,bskd->bkqs", q, k, precision=precision.of(config.dtype), preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits + bias + key_bias[:, None, None, :], axis=-1).astype(config.dtype)
        out = jnp.einsum("bkqs,bskd->bqkd", weights, v, precision=precision.of(config.dtype))
        return _dense(config, config.d_model, "o")(out.reshape(*out.shape[:2], inner))


class _FeedForward(nn.Module):
    """``down(gelu_tanh(gate(x)) * up(x))``."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        gate = nn.gelu(_dense(config, config.d_ff, "gate")(x), approximate=True)
        return _dense(config, config.d_model, "down")(gate * _dense(config, config.d_ff, "up")(x))


class _Block(nn.Module):
    """One pre-norm layer; ``x`` is the float32 residual stream ``[B, L, E]``."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: jax.Array, buckets: jax.Array, key_bias: jax.Array) -> jax.Array:
        config = self.config
        attended = _Attention(config, name="attention")(
            _RMSNorm(config, name="attention_norm")(x), buckets, key_bias
        )
        x = x + attended.astype(jnp.float32)
        fed = _FeedForward(config, name="mlp")(_RMSNorm(config, name="mlp_norm")(x))
        return x + fed.astype(jnp.float32)


@dataclass(frozen=True)
class UMT5Encoder:
    """A umT5 encoder. Parameters of all layers are stacked on a leading axis and the stack is one ``lax.scan``.

    Attributes:
        config: sizes and arithmetic.
        mesh: None for one device. With a mesh each device holds its shard of the parameters and gathers one layer at a
            time, as it is needed; the arithmetic is that of one device, and so are the features.
    """

    config: UMT5Config
    mesh: Mesh | None = None

    def init(self, rng: jax.Array) -> dict[str, Params]:
        """Random parameters ``{"params": tree}``, made to be useful without training.

        Token embeddings have unit variance and every matrix keeps variance (standard deviation 1/sqrt(fan-in)),
        while the relative biases are large enough to outweigh the content part of attention. So each head looks
        at a few definite offsets, and the features of a token describe the characters around it.
        """
        rows = umt5_rows(self.config)
        # One draw for all of them: a random draw per tensor takes several times as long to compile.
        noise = jax.random.normal(rng, (row_table.count(rows),), jnp.float32)
        starts = dict(zip((row.path for row in rows), np.cumsum([0, *map(_size, rows)]).tolist(), strict=False))

        def leaf(row: Row) -> jax.Array:
            if row.path[-1] == "scale":
                return jnp.ones(row.full_shape, self.config.param_dtype)
            draw = noise[starts[row.path] : starts[row.path] + _size(row)].reshape(row.full_shape)
            return (_initial_std(self.config, row) * draw).astype(self.config.param_dtype)

        return {"params": row_table.tree(rows, leaf)}

    def apply(self, variables: dict[str, Params], ids: ArrayLike, mask: ArrayLike) -> jax.Array:
        """Features of each token.

        Args:
            variables: ``{"params": tree}`` as ``init`` gives it.
            ids: token numbers ``[B, L]``, integers in [0, vocab_size).
            mask: ``[B, L]``, true (or 1) for tokens, false (or 0) for padding.

        Returns:
            float32 ``[B, L, E]``; rows of padding are zero.
        """
        config = self.config
        params = variables["params"]
        ids, mask = jnp.asarray(ids), jnp.asarray(mask).astype(bool)
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise ValueError(f"ids and mask must both be [B, L], got {ids.shape} and {mask.shape}")
        manual = () if self.mesh is None else tuple(name for name, size in self.mesh.shape.items() if size > 1)
        if self.mesh is None or not manual:
            return _features(config, None, params, ids, mask)
        specs = row_table.tree(umt5_rows(config), functools.partial(_spec, self.mesh))
        # the devices compute the same; only a gather brings together what differs
        per_shard = jax.shard_map(functools.partial(_features, config, specs), mesh=self.mesh, axis_names=set(manual),
                                  in_specs=(specs, P(), P()), out_specs=P(), check_vma=False)  # fmt: skip
        return per_shard(params, ids, mask)


def _features(config: UMT5Config, specs: Any, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """As :meth:`UMT5Encoder.apply`, on one shard; ``specs`` says how parameters are sharded, None for whole ones."""
    buckets = jnp.asarray(
        relative_position_buckets(
            ids.shape[1], config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
    )
    key_bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)
    block, final_norm = _Block(config), _RMSNorm(config)

    def body(x: jax.Array, layer: Params) -> tuple[Any, None]:
        if specs is not None:
            layer = jax.tree.map(lambda w, spec: _gathered(w, spec[1:]), layer, specs["blocks"])
        return block.apply({"params": layer}, x, buckets, key_bias), None

    x = jnp.asarray(params["token_embedding"]["embedding"])[ids]
    if specs is not None:  # of the largest table, only what is looked up
        x = _gathered(x, (None, *specs["token_embedding"]["embedding"]))
    x, _ = jax.lax.scan(body, x.astype(jnp.float32), params["blocks"])
    features: Any = final_norm.apply({"params": params["final_norm"]}, x)
    return jnp.where(mask[..., None], features.astype(jnp.float32), 0.0)


def _spec(mesh: Mesh, row: Row) -> P:
    """How one tensor is sharded; the table of tokens over its features alone, so that each device has all tokens."""
    axes = tuple(None if axis == "vocab" else axis for axis in row.axes)
    return partition.spec(mesh, ("layers", *axes) if row.stacked else axes, row.full_shape)


def _gathered(x: jax.Array, spec: Iterable[Any]) -> jax.Array:
    """The whole array from its shards."""
    for axis, entry in enumerate(spec):
        for name in reversed(partition.names_of(entry)):
            x = jax.lax.all_gather(x, name, axis=axis, tiled=True)
    return x


def _size(row: Row) -> int:
    return row_table.count([row])


def _initial_std(config: UMT5Config, row: Row) -> float:
    """Deviation of a tensor's initial values."""
    if row.path[-1] == "embedding":
        return 1.0
    if row.path[-1] == "relative_bias":
        return 3.0
    if row.path[-2:] == ("q", "kernel"):  # T5 folds 1/sqrt(d_kv) into the weights instead of into the attention
        return float(config.d_model * config.d_kv) ** -0.5
    return float(row.shape[0]) ** -0.5


def _dense(config: UMT5Config, features: int, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        precision=precision.of(config.dtype),
        name=name,
    )
