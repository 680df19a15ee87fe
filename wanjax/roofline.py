"""How long a step takes at least: work over the rates that the maker states. An estimate, no measurement.

The roofline model (Williams, Waterman and Patterson, 2009): of computing, reading memory and sending, which can go on
at the same time, the slowest decides. No rate is ever reached in full, so real steps are slower. :func:`expected` is
of machines whose kernels were measured.
"""

from __future__ import annotations

import dataclasses

from wanjax.timeline import Seconds
from wanjax.topology import Topology

# Forward passes that the backward pass makes again, of products with parameters and of attention. A policy that is not
# listed counts as making all again.
_AGAIN = {"none": (0, 0), "full": (1, 1), "dots": (0, 1), "attention": (1, 0), "offload": (1, 0)}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step at the stated rates.

    Attributes:
        matmul_seconds: matrix products and convolutions, those of recomputation included, and those of attention where
            it has no kernel.
        attention_seconds: attention's kernels, likewise.
        memory_seconds: arguments and results once, temporary memory and what arrives twice (written and read).
        network_seconds: bytes sent, within slices and nodes and between them one after the other; of a torus one axis
            at a time, in both its directions where it is a ring.
        step_seconds: the longest of computing, memory and network, as if they overlapped entirely.
        mfu: the model's own work (without recomputation) over what the devices could do in that time.
    """

    matmul_seconds: float
    attention_seconds: float
    memory_seconds: float
    network_seconds: float
    step_seconds: float
    mfu: float


@dataclasses.dataclass(frozen=True)
class Expected:
    """Seconds of one step by kernels that were measured.

    Attributes:
        matmul_seconds, attention_seconds, elementwise_seconds, host_seconds: of one device, see
            :class:`wanjax.timeline.Seconds`; they add up.
        network_seconds: as the lower bound has it; nothing that sends was measured.
        step_seconds: the sum of the former, or the latter where it is longer.
        mfu: the model's own work (without recomputation) over what the devices could do in that time, at the maker's
            rate.
    """

    matmul_seconds: float
    attention_seconds: float
    elementwise_seconds: float
    host_seconds: float
    network_seconds: float
    step_seconds: float
    mfu: float


def executed(
    remat: str, *, train: bool, kernels: bool, frozen: bool = False, chunked: bool = False
) -> tuple[float, float]:
    """How many forward passes' work one step is at least: products with parameters, and attention.

    A backward pass is two forward passes, of products with ``frozen`` parameters one; recomputation adds one of what is
    made again, which in chunks of tokens (``chunked``) all products with parameters are. Attention's kernels do not
    keep the weights: their backward pass makes one of the two forward products again, whatever is recomputed.
    """
    if not train:
        return 1, 1
    matmul, attention = _AGAIN.get(remat, (1, 1))
    matmul = max(matmul, int(chunked))
    return 3 - frozen + matmul, 3 + attention + (0.5 if kernels else 0)


def estimate(
    topology: Topology, *, model_flops: float, matmul_flops: float, attention_flops: float, memory_bytes: float,
    sent: dict[str, float],
) -> Estimate | None:  # fmt: skip
    """Of a step; None for simulated devices, which have no stated rates.

    Args:
        topology: the machine.
        model_flops: of the step over all devices, without recomputation.
        matmul_flops, attention_flops: what is executed over all devices.
        memory_bytes: read and written by one device.
        sent: bytes that one device sends, by link, of :attr:`wanjax.topology.Topology.links`; between slices or nodes,
            its share of what all members of a group in one of them send out.
    """
    chip = topology.chip
    if chip is None:
        return None
    rate = _rate(topology)
    matmul, attention = (flops / topology.devices / rate for flops in (matmul_flops, attention_flops))
    memory = memory_bytes / (chip.hbm_bandwidth / chip.devices)
    near, far = topology.links
    long = [ring for ring, size in zip(topology.rings, topology.shape, strict=False) if size > 1]
    speeds = {near: chip.link * (2 if chip.torus and all(long) else 1), far: chip.network}
    network = sum(size / (speeds[link] / chip.devices) for link, size in sent.items())
    step = max(matmul + attention, memory, network)
    return Estimate(matmul, attention, memory, network, step, model_flops / (topology.devices * rate * step))


def expected(topology: Topology, spent: Seconds, *, model_flops: float, network_seconds: float) -> Expected:
    """Of a step.

    Args:
        topology: the machine, of stated rates.
        spent: by the kernels of one device.
        model_flops: of the step over all devices, without recomputation.
        network_seconds: in which it sends, beside them.
    """
    step = max(spent.total, network_seconds)
    mfu = model_flops / (topology.devices * _rate(topology) * step)
    return Expected(spent.matmul, spent.attention, spent.elementwise, spent.host, network_seconds, step, mfu)


def _rate(topology: Topology) -> float:
    """Operations per second of one device, by the maker."""
    assert topology.chip
    return topology.chip.flops / topology.chip.devices
