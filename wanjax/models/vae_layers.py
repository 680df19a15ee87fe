"""Layers of Wan's codecs: causal in time, one frame at a time in space.

Every layer is a pure function of its parameters and ``x [B, T, H, W, channels]``. What it sees of the clip outside x
comes from a :class:`Memory`: frames before x, and rows beside x where frames are split over devices. So a whole clip,
a clip cut into chunks and a part of its rows run the same lines: a whole clip is one first chunk of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wanjax.models.vae_config import Block
from wanjax.models.vae_split import RowSplit

Params = Mapping[str, Any]
LOGITS = 1 << 24  # of attention, held at a time: 64 MiB in float32; those of a frame of 720p would be 830 MB


class Memory:
    """Frames that causal layers carry from one chunk to the next, in the order in which the layers run.

    Args:
        frames: what the layers kept in the chunk before; None on the first chunk, which holds the first frame.
        split: how the rows of a frame are split over devices, of which x is one part; None where x has all rows.
    """

    def __init__(self, frames: Sequence[jax.Array] | None, split: RowSplit | None = None) -> None:
        self.first = frames is None
        self.split = split
        self._before: Iterator[jax.Array] = iter(frames or ())
        self.kept: list[jax.Array] = []

    def recall(self) -> jax.Array | None:
        """What the layer that asks kept in the chunk before, or None on the first chunk."""
        return None if self.first else next(self._before)

    def keep(self, frames: jax.Array) -> None:
        """Store what the same layer will recall in the next chunk."""
        self.kept.append(frames)


def _last(past: jax.Array | None, x: jax.Array, count: int) -> jax.Array:
    """Last ``count`` frames of ``past`` followed by ``x``; zeros stand before the first frame."""
    if past is not None:
        x = jnp.concatenate([past, x], axis=1)
    missing = max(count - x.shape[1], 0)
    return jnp.pad(x, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))[:, missing + x.shape[1] - count :]


def _bordered(x: jax.Array, kernel: jax.Array, split: RowSplit | None, *, stride: int = 1) -> jax.Array:
    """x with the rows of its neighbours that the kernel ``[..., kh, kw, I, O]`` reaches; unsplit frames as they are."""
    if split is None or kernel.shape[-4] == 1:
        return x
    return split.with_neighbours(x, above=1 if stride == 1 else 0, below=1)


def _per_frame(x: jax.Array, kernel: jax.Array, *, stride: int = 1, split: RowSplit | None = None) -> jax.Array:
    """2-D convolution of every frame with ``kernel [kh, kw, I, O]``.

    Stride 1 pads all sides; stride 2 pads right and bottom only, as Wan does. Rows that :func:`_bordered` has added
    stand for the padding above and below.
    """
    B, T, H, W, channels = x.shape
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    across = (1, 1) if stride == 1 else (0, 1)
    padding = (across if split is None else (0, 0), across)
    y = jax.lax.conv_general_dilated(
        x.reshape(B * T, H, W, channels), kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(B, T, *y.shape[1:])


def _over_time(params: Params, x: jax.Array, past: jax.Array | None, split: RowSplit | None = None) -> jax.Array:
    """Causal 3-D convolution as one 2-D convolution per time tap; zeros stand before the first frame.

    XLA's 3-D convolution on CPU runs at a third of the speed of this sum, forward and backward (measured at 8 to 32
    channels). On the first chunk each tap skips the frames for which it would only see zeros.
    """
    kernel, frames = params["kernel"], x.shape[1]
    y = jnp.zeros((), x.dtype)
    if past is not None:
        x = jnp.concatenate([past, x], axis=1)
    x = _bordered(x, kernel, split)
    if past is None:
        for tap, weights in enumerate(kernel):
            shift = kernel.shape[0] - 1 - tap
            if shift < frames:
                seen = _per_frame(x[:, : frames - shift], weights, split=split)
                y = y + jnp.pad(seen, ((0, 0), (shift, 0), (0, 0), (0, 0), (0, 0)))
    else:
        for tap, weights in enumerate(kernel):
            y = y + _per_frame(x[:, tap : tap + frames], weights, split=split)
    return y + params["bias"]


def causal_conv(params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Convolution with ``kernel [kt, kh, kw, I, O]`` that sees this frame and the ``kt - 1`` frames before it."""
    reach = params["kernel"].shape[0] - 1
    if reach == 0:
        return _over_time(params, x, None, memory.split)
    past = memory.recall()
    memory.keep(_last(past, x, reach))
    return _over_time(params, x, past, memory.split)


def rms_norm(gamma: jax.Array, x: jax.Array) -> jax.Array:
    """x / ||x|| over channels, times sqrt(channels) and gamma; float32 inside (Wan's RMS_norm)."""
    wide = x.astype(jnp.float32)
    # 1e-12 bounds the norm itself in the reference, hence its square under the root.
    scale = jax.lax.rsqrt(jnp.maximum(jnp.sum(wide * wide, -1, keepdims=True), 1e-24)) * x.shape[-1] ** 0.5
    return (wide * scale).astype(x.dtype) * gamma


def residual(params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Two times norm, SiLU, causal 3x3x3 convolution; a 1x1x1 convolution beside it where the width changes."""
    short = causal_conv(params["shortcut"], x, memory) if "shortcut" in params else x
    y = causal_conv(params["conv1"], jax.nn.silu(rms_norm(params["norm1"], x)), memory)
    return short + causal_conv(params["conv2"], jax.nn.silu(rms_norm(params["norm2"], y)), memory)


def frame_attention(params: Params, x: jax.Array, split: RowSplit | None = None) -> jax.Array:
    """Single-head self-attention among the pixels of each frame, with a residual connection.

    A part of a frame attends to the keys and values of all parts.
    """
    B, T, H, W, channels = x.shape
    y = rms_norm(params["norm"], x)
    query, key, value = jnp.split(y @ params["to_qkv"]["kernel"][0, 0] + params["to_qkv"]["bias"], 3, axis=-1)
    if split is not None:
        key, value = split.gathered(key), split.gathered(value)
    y = attend(*(z.reshape(B * T, -1, channels) for z in (query, key, value)))
    y = y @ params["proj"]["kernel"][0, 0] + params["proj"]["bias"]
    return x + y.reshape(x.shape)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, limit: int = LOGITS) -> jax.Array:
    """softmax(q kᵀ / √c) v with the softmax in float32, in blocks of queries where the logits are many.

    A block sees all keys at once, so that its softmax is that of the whole.

    Args:
        query: ``[N, Q, c]``; ``key``, ``value``: ``[N, M, c]``.
        limit: logits held at a time (at least those of one query per frame); up to so many there are no blocks.

    Returns:
        ``[N, Q, c]``.
    """
    frames, queries, channels = query.shape

    def block(query: jax.Array) -> jax.Array:
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32) * channels**-0.5
        return jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(logits).astype(value.dtype), value)

    count = -(-queries // max(limit // (frames * key.shape[1]), 1))
    if count == 1:
        return block(query)
    size = -(-queries // count)
    query = jnp.pad(query, ((0, 0), (0, count * size - queries), (0, 0)))
    blocks = jax.lax.map(block, jnp.moveaxis(query.reshape(frames, count, size, channels), 1, 0))
    return jnp.moveaxis(blocks, 0, 1).reshape(frames, count * size, channels)[:, :queries]


def downsample(params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Halve height and width; with a ``time`` convolution also halve time, where the clip's first frame passes by."""
    kernel = params["space"]["kernel"]
    x = _bordered(x, kernel, memory.split, stride=2)
    x = _per_frame(x, kernel, stride=2, split=memory.split) + params["space"]["bias"]
    if "time" not in params:
        return x
    past = memory.recall()
    memory.keep(x[:, -1:])
    seen = x if past is None else jnp.concatenate([past, x], axis=1)
    kernel = params["time"]["kernel"]
    frames = (seen.shape[1] - 1) // 2
    halved = jnp.zeros((), x.dtype)
    for tap in range(3):
        halved = halved + seen[:, tap : tap + 2 * frames - 1 : 2][:, :frames] @ kernel[tap, 0, 0]
    halved = halved + params["time"]["bias"]
    if past is not None:
        return halved
    return jnp.concatenate([x[:, :1], halved], axis=1) if frames else x


def upsample(params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Double height and width (nearest, then a convolution that halves the channels).

    With a ``time`` convolution it first doubles time: the clip's first frame comes out once, and that convolution
    never sees it (zeros stand in its place); of the doubled channels the first half is the earlier frame.
    """
    if "time" in params:
        past = memory.recall()
        alone, rest = (x[:, :1], x[:, 1:]) if memory.first else (x[:, :0], x)
        memory.keep(_last(past, rest, 2))
        if rest.shape[1]:
            B, frames, H, W, channels = rest.shape
            pairs = _over_time(params["time"], rest, past, memory.split).reshape(B, frames, H, W, 2, channels)
            rest = jnp.moveaxis(pairs, 4, 2).reshape(B, 2 * frames, H, W, channels)
        x = jnp.concatenate([alone, rest], axis=1)
    kernel = params["space"]["kernel"]
    x = _bordered(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), kernel, memory.split)
    return _per_frame(x, kernel, split=memory.split) + params["space"]["bias"]


def run_block(block: Block, params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """One block of the plan."""
    if block.kind == "residual":
        return residual(params, x, memory)
    return downsample(params, x, memory) if block.kind.startswith("down") else upsample(params, x, memory)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """``[B, T, H, W, c]`` -> ``[B, T, H / p, W / p, c p p]``, each square's channels in the order c, width, height."""
    if patch == 1:
        return x
    B, T, H, W, channels = x.shape
    x = x.reshape(B, T, H // patch, patch, W // patch, patch, channels).transpose(0, 1, 2, 4, 6, 5, 3)
    return x.reshape(B, T, H // patch, W // patch, channels * patch * patch)


def unpatchify(x: jax.Array, patch: int) -> jax.Array:
    """Inverse of :func:`patchify`."""
    if patch == 1:
        return x
    B, T, H, W, channels = x.shape
    x = x.reshape(B, T, H, W, -1, patch, patch).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(B, T, H * patch, W * patch, channels // patch**2)


def average_down(x: jax.Array, outputs: int, time: int, space: int) -> jax.Array:
    """Shortcut of a resolution on the way down: each cell's values, by channel, frame, row and column, averaged in
    ``outputs`` groups of neighbours.

    Args:
        x: ``[B, T, H, W, channels]``.
        time, space: how much smaller the result is. Where T does not divide, zeros stand before the first frame.

    Returns:
        ``[B, ceil(T / time), H / space, W / space, outputs]``.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    B, T, H, W, channels = x.shape
    cells = x.reshape(B, T // time, time, H // space, space, W // space, space, channels)
    cells = cells.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return cells.reshape(*cells.shape[:4], outputs, -1).mean(-1)


def duplicate_up(x: jax.Array, outputs: int, time: int, space: int, *, first: bool) -> jax.Array:
    """Shortcut of a resolution on the way up: each channel repeated, then spread over channel, frame, row and column.

    Args:
        x: ``[B, T, H, W, channels]``.
        time, space: how much larger the result is.
        first: x begins with the clip's first frame, of which only the last copy comes out.

    Returns:
        ``[B, T time (less time - 1 if first), H space, W space, outputs]``.
    """
    B, T, H, W, channels = x.shape
    x = jnp.repeat(x, outputs * time * space * space // channels, axis=-1)
    x = x.reshape(B, T, H, W, outputs, time, space, space).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(B, T * time, H * space, W * space, outputs)
    return x[:, time - 1 :] if first else x


def run_stage(stage: Sequence[Block], params: Params, x: jax.Array, memory: Memory, *, shortcut: bool) -> jax.Array:
    """The blocks of one resolution, with the shortcut around them if the codec has any."""
    y = x
    for block in stage:
        y = run_block(block, params[block.name], y, memory)
    if not shortcut:
        return y
    last = stage[-1]
    size = (last.outputs, 2 if last.kind.endswith("time") else 1, 1 if last.kind == "residual" else 2)
    if last.kind.startswith("up"):
        return y + duplicate_up(x, *size, first=memory.first)
    return y + average_down(x, *size)


def middle(params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Residual block, attention per frame, residual block, at the lowest resolution."""
    x = frame_attention(params["mid_attention"], residual(params["mid_0"], x, memory), memory.split)
    return residual(params["mid_1"], x, memory)


def head(params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Norm, SiLU and the last convolution of encoder or decoder."""
    return causal_conv(params["conv_out"], jax.nn.silu(rms_norm(params["norm_out"], x)), memory)
