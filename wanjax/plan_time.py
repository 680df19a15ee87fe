"""What the planner says of a step's time: a lower bound, and what is expected where kernels were measured."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from wanjax import collectives, executed, roofline, timeline
from wanjax.compiled_memory import Memory
from wanjax.hlo import Module
from wanjax.topology import Topology

NOTE = "an estimate from the maker's rates: a lower bound on the time, at which nothing has run"


def estimate(
    machine: Topology, module: Module, memory: Memory, found: collectives.Found, work: executed.Work, *,
    domain: Callable[[int], int], model_flops: float,
) -> dict[str, Any] | None:  # fmt: skip
    """The plan's ``estimate``; None for simulated devices.

    Args:
        machine: that the program is compiled for.
        module: the program.
        memory: of one device.
        found, work: what is counted in it.
        domain: slice or node of the program's devices, by their place.
        model_flops: of the step over all devices, without recomputation.
    Raises: HloError: a shape that is not understood.
    """
    sent: dict[str, float] = collections.defaultdict(float)
    near, far = machine.links
    for each in found.collectives:
        link = collectives.link_of(each.groups, domain, near, far)
        # the members of a group in one slice or node share what leaves it
        sent[link] += each.bytes if link == near else each.bytes / collectives.within(each.groups, domain)
    bound = roofline.estimate(
        machine,
        model_flops=model_flops,
        matmul_flops=machine.devices * work.products,
        attention_flops=machine.devices * work.attention,
        memory_bytes=memory.arguments + memory.results + 2 * (memory.temporary or 0) + 2 * found.bytes,
        sent=dict(sent),
    )
    if bound is None or machine.chip is None:
        return None
    expected = None
    if (rates := machine.chip.rates) is not None:
        spent = timeline.seconds(module, rates, machine.chip.hbm_bandwidth / machine.chip.devices)
        whole = roofline.expected(machine, spent, model_flops=model_flops, network_seconds=bound.network_seconds)
        expected = {**dataclasses.asdict(whole), "source": rates.source}
    return {**dataclasses.asdict(bound), "note": NOTE, "expected": expected}
