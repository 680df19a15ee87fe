"""How much memory of a device a step takes at least, by formula: what does not fit so need not be compiled.

State, gradients and what waits for the backward pass are counted. What a block works with beside them only its
compiler knows: it is taken as a little less than any compiler has been seen to need, in bytes per token and feature
(``tests/test_plan_memory.py`` holds the formula to the plans of ``benchmarks/results/plans.jsonl``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh, NamedSharding

from wanjax import partition
from wanjax.config import Experiment
from wanjax.models import chunks, sequence, splash
from wanjax.models.attention import chosen
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows
from wanjax.topology import Topology
from wanjax.traffic import Work, itemsize

_STREAM = 4  # bytes of a value of the stream from block to block: float32
# Values of the compute dtype that a policy keeps of each block and token, beside the stream: of width and of ffn.
# "none": the outputs of the linear layers and of attention (on several devices more); "dots": the former alone;
# "attention": the result of self-attention. With "offload" they are in the hosts' memory, and the stream with them.
_KEPT = {"none": (10, 1), "dots": (7, 1), "full": (0, 0), "attention": (1, 0)}
# What is there at once, in values of the compute dtype per token and width: around the backward pass of self-attention
# the block's input, q, k, v, the result, its gradient and those of q, k and v, four of them in two layouts; while
# chunks are worked on input, q, k, v, the result and its gradient; in a forward pass q, k, v and one more, on a GPU
# each of them twice.
_ATTENTION, _AROUND = 13, 6
_FORWARD = {"gpu": 8}
# Bytes per token of a chunk, or of all tokens without chunks, that its linear layers, norms and their gradients take:
# per width and, of the compute dtype, per hidden feature.
_LAYERS, _HIDDEN = 40, 6
# Blocks whose matrices, or gradients of these, travel beside the work of another one, where a kind of chip or a
# platform has such options (wanjax.compiler_options).
_AHEAD = {"gpu": 2, "v5p": 1, "v6e": 1}


class Copies(NamedTuple):
    """Bytes of a training state per parameter of the network: on the devices, and in their hosts' memory."""

    device: float
    host: float = 0.0


def training(experiment: Experiment, mesh: Mesh, work: Work, *, machine: Topology, copies: Copies) -> int:
    """Bytes of one device in a training step, at least.

    With state in the hosts' memory two layers of it are on the device, but when the activations are gone.

    Args:
        experiment: what is trained.
        mesh: over which; the sizes of its axes are all that counts.
        work: of a step.
        machine: whose kernels work on attention, and whose compiler has its habits.
        copies: of parameters and what is trained with them, as ``experiment.optimizer.state_memory`` places them.
    """
    model, table = experiment.model, dit_rows(experiment.model)
    trained = experiment.lora.trained(table)
    gradients = itemsize(model.param_dtype) * shard(trained, mesh) * (2 if work.micro > 1 else 1)
    clips = work.clips / (work.micro * mesh.shape["data"] * mesh.shape["fsdp"])
    tokens, size, tensor = clips * tokens_of_device(work, mesh), itemsize(model.dtype), mesh.shape["tensor"]
    own = size / tensor  # of a value that tensor splits
    stream = _STREAM * tokens * model.width
    width, hidden = _KEPT.get(model.remat, (0, 0))
    kept = 0.0 if model.remat == "offload" else stream + tokens * own * (width * model.width + hidden * model.ffn)
    attention = stream + _ATTENTION * own * tokens * model.width
    attention += clips * _partial_gradients(model, mesh, work, machine.platform)
    layers = tokens * (_LAYERS * model.width + _HIDDEN * own * model.ffn)
    count, each, matrices = tokens_of_device(work, mesh), 1.0, own  # gathered, of one block
    if 0 < model.chunk_tokens < count:
        each = chunks.cut(count, model.chunk_tokens)[1] / count
        # and, if they are trained, their gradients of one chunk, and the sums over chunks in float32
        matrices += 0 if experiment.lora.rank else own + _STREAM / tensor
    around = stream + _AROUND * own * tokens * model.width
    peak = max(attention, around + layers * each + matrices * _late_matrices(model))
    ahead = 0 if mesh.size == tensor else _AHEAD.get(machine.kind, _AHEAD.get(machine.platform, 0))
    peak += ahead * own * _matrices(model)
    parameters = shard(table, mesh)
    update = 2 * copies.host * parameters / model.layers
    return round(copies.device * parameters + gradients + max(model.layers * kept + peak, update))


def sampling(model: DiTConfig, mesh: Mesh, work: Work, *, machine: Topology, arguments: int) -> int:
    """Bytes of one device in a denoising step, at least.

    Args:
        model: the network.
        mesh: over which.
        work: of a step.
        machine: whose compiler has its habits.
        arguments: bytes of parameters on a device.
    """
    clips = work.clips * work.forwards / (work.gathers * mesh.shape["data"] * mesh.shape["fsdp"])
    own = itemsize(model.dtype) / mesh.shape["tensor"]
    state = clips * tokens_of_device(work, mesh) * model.width
    ahead = _AHEAD["gpu"] if machine.platform == "gpu" and mesh.size > mesh.shape["tensor"] else 0
    return round(arguments + ahead * own * _matrices(model)
                 + (_STREAM + _FORWARD.get(machine.platform, 4) * own) * state)  # fmt: skip


def shard(table: Sequence[Row], mesh: Mesh) -> int:
    """Parameters of one device."""
    total = 0
    for row in table:
        axes = ("layers", *row.axes) if row.stacked else row.axes
        place = NamedSharding(mesh, partition.spec(mesh, axes, row.full_shape))
        total += math.prod(place.shard_shape(row.full_shape))
    return total


def tokens_of_device(work: Work, mesh: Mesh) -> int:
    """Of one clip."""
    seq = mesh.shape["seq"]
    return sequence.padded(work.tokens, seq) // seq


def _matrices(model: DiTConfig) -> int:
    """Parameters of one block."""
    return 8 * model.width**2 + 2 * model.width * model.ffn


def _late_matrices(model: DiTConfig) -> int:
    """Those of one block behind self-attention, that work on tokens."""
    return 3 * model.width**2 + 2 * model.width * model.ffn


def _partial_gradients(model: DiTConfig, mesh: Mesh, work: Work, platform: str) -> float:
    """Bytes of what splash's backward pass sums afterwards, of one clip (:func:`wanjax.models.splash.backward`)."""
    tensor, seq = mesh.shape["tensor"], mesh.shape["seq"]
    group = sequence.shared(model.sequence, model.heads, seq, tensor)
    ring, heads = seq // group, model.heads // (group * (tensor if model.heads % (group * tensor) == 0 else 1))
    tokens = -(-work.tokens // ring)
    shape = (1, tokens, heads, model.head_dim)
    if chosen(model.attention, platform, model.dtype, shape, shape) != "splash":
        return 0
    partial = tokens * model.head_dim * itemsize(model.dtype) * -(-tokens // model.splash_backward[1])
    return partial * splash.at_once(heads, partial)
