"""How long a compiled program's kernels take, one after the other in the order that its compiler has put them in.

A kernel takes as long as its operations at the rate that such kernels were measured at, or its bytes at the memory's
rate, whichever is longer. Copies from and to the host run beside the kernels, those of one direction one after the
other, until the program waits for one. What is sent between devices takes no time here; launching a kernel neither.
"""

from __future__ import annotations

import dataclasses
import functools

from wanjax import hlo_loops, kernels
from wanjax.chips import Rates
from wanjax.hlo import Instruction, Module
from wanjax.kernels import Cost


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one run of a program on one device.

    Attributes:
        matmul: of kernels with matrix products or convolutions.
        attention: of attention's kernels.
        elementwise: of all other kernels.
        host: in which the device waits for copies from and to its host.
    """

    matmul: float
    attention: float
    elementwise: float
    host: float

    @property
    def total(self) -> float:
        return self.matmul + self.attention + self.elementwise + self.host


def seconds(module: Module, rates: Rates, bandwidth: float) -> Seconds:
    """Of a program whose text is in the order in which it runs, as those of GPUs are.

    A loop whose number of turns is not known counts once; of two branches the longer one counts.

    Args:
        module: the program.
        rates: of its kernels.
        bandwidth: of the device's memory, bytes/s.
    Raises: HloError: a shape that is not understood.
    """
    found = _Runs(module, rates, bandwidth).of(module.entry)
    return Seconds(**found)


_Spent = dict[str, float]  # by the fields of Seconds


class _Runs:
    """What each computation takes."""

    def __init__(self, module: Module, rates: Rates, bandwidth: float):
        self._module, self._rates, self._bandwidth = module, rates, bandwidth
        self.of = functools.cache(self._of)

    def _of(self, name: str) -> _Spent:
        computation = self._module.computations[name]
        spent = dict.fromkeys((field.name for field in dataclasses.fields(Seconds)), 0.0)
        idle = {"from": 0.0, "to": 0.0}  # when the last copy of a direction ends
        ends: dict[str, float] = {}  # of copies that were started, by name
        for each in computation.instructions.values():
            if each.opcode.endswith("-done"):
                _wait(spent, ends.get(each.operands[0], 0.0))
            elif (inner := self._run(name, each)) is not None:
                _add(spent, inner)
            elif (cost := kernels.cost(self._module, computation, each)) is not None:
                for way, size in (("from", cost.from_host), ("to", cost.to_host)):
                    if size:
                        idle[way] = max(idle[way], sum(spent.values())) + size / self._rates.host
                        ends[each.name] = idle[way]
                if each.name not in ends:
                    kind, own = self._kernel(cost)
                    spent[kind] += own
                elif each.opcode == each.base:  # nothing goes on beside it
                    _wait(spent, ends[each.name])
        _wait(spent, max(idle.values()))
        return spent

    def _run(self, name: str, each: Instruction) -> _Spent | None:
        """What an instruction runs as it stands there; None: it is no such instruction."""
        if each.opcode == "while":
            condition, body = map(self.of, each.loop())
            turns = hlo_loops.turns(self._module, name, each)
            count = 1 if turns is None else turns
            return {kind: count * body[kind] + (count + 1) * condition[kind] for kind in body}
        if each.opcode == "conditional":
            return max(map(self.of, each.branches()), key=lambda spent: sum(spent.values()))
        return self.of(each.called()[0]) if each.opcode == "call" else None

    def _kernel(self, cost: Cost) -> tuple[str, float]:
        rates, moving = self._rates, cost.memory / self._bandwidth
        if cost.forward or cost.backward:
            return "attention", max(cost.forward / rates.attention_forward + cost.backward / rates.attention_backward,
                                    moving)  # fmt: skip
        if cost.products or cost.wide:
            return "matmul", max(cost.products / rates.products + cost.wide / rates.float32, moving)
        return "elementwise", moving


def _add(spent: _Spent, more: _Spent) -> None:
    for kind, own in more.items():
        spent[kind] += own


def _wait(spent: _Spent, until: float) -> None:
    spent["host"] += max(0.0, until - sum(spent.values()))
