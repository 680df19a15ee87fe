"""The least that devices must send each other for one step, by formula: what a compiled program is compared with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from wanjax import partition
from wanjax.models import sequence
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step computes.

    Attributes:
        clips: B, over all devices.
        tokens, text_tokens: N and L.
        forwards: calls of the network on each clip; 1 in training.
        gathers: times that a block's parameters are needed in a forward direction: the calls that are not batched.
        micro: micro-batches of a training step.
        train: whether gradients are taken.
    """

    clips: int
    tokens: int
    text_tokens: int
    forwards: int = 1
    gathers: int = 1
    micro: int = 1
    train: bool = False


def minimum(
    config: DiTConfig, rows: Sequence[Row], mesh: Mesh, work: Work, frozen: Sequence[Row] = (),
    frozen_dtype: str = "float32",
) -> int:  # fmt: skip
    """Bytes that one device sends in a step, with ring algorithms.

    A parameter that is split n ways is gathered, (n − 1) / n of it: that of a block for every use, in a forward and in
    a backward pass of every micro-batch, another one once; its gradient is reduce-scattered as often as there are
    micro-batches, another's once. The shards' gradients are summed over the axes that hold copies, once in a step.
    Matrices and their gradients travel in the compute dtype. The projection of the timesteps counts for nothing: the
    products of its shards are summed instead.

    Where h devices of ``seq`` share heads, each block turns q, k, v and the output of self-attention from tokens to
    heads and back, (h − 1) / h of each, in training once more backward. In a ring of r such groups k and v pass by,
    (r − 1) of each, in training once more together with their gradients. Over ``tensor`` of size t the outputs of both
    attentions and of the feed-forward are summed, 2 (t − 1) / t of each.

    Args:
        config: of the network.
        rows: of all that is trained or applied.
        mesh: where it lies.
        work: how much there is to do.
        frozen, frozen_dtype: of what is gathered and has no gradient.
    """
    total, sizes = 0.0, dict(mesh.shape)
    for row in (*rows, *frozen):
        if row.path[0] == "time_projection":
            continue
        trained = work.train and row not in frozen
        held = frozen_dtype if row in frozen else config.param_dtype
        axes = ("layers", *row.axes) if row.stacked else row.axes
        spec = partition.spec(mesh, axes, row.full_shape)
        used = {name for entry in spec for name in partition.names_of(entry)}
        split = math.prod(sizes[name] for name in used - {"tensor"})
        own = math.prod(row.full_shape) / (sizes["tensor"] if "tensor" in used else 1)
        wire = own * (itemsize(config.dtype) if len(row.shape) > 1 else itemsize(held))
        uses = work.micro * (work.gathers + work.train + trained) if row.stacked else 1 + trained
        total += uses * wire * (split - 1) / split
        copies = math.prod(sizes[name] for name in ("data", "fsdp", "seq") if name not in used)
        if trained:
            total += 2 * own / split * itemsize(config.param_dtype) * (copies - 1) / copies
    s, t = sizes["seq"], sizes["tensor"]
    clips = work.clips * work.forwards / (sizes["data"] * sizes["fsdp"])
    state = clips * sequence.padded(work.tokens, s) / s * config.width * itemsize(config.dtype)
    directions = 2 if work.train else 1
    shards = sequence.Shards.of(config.sequence, config.heads, mesh, work.tokens)
    total += directions * config.layers * 4 * state / t * (shards.heads - 1) / shards.heads
    total += (3 if work.train else 1) * config.layers * 2 * state / t * (shards.ring - 1)
    total += directions * config.layers * 3 * state * 2 * (t - 1) / t
    return round(total)


def itemsize(dtype: str) -> int:
    """Bytes of a value."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
