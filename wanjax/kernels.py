"""What each instruction of a compiled program makes a GPU do: operations, and bytes of memory that it reads and writes.

An instruction outside a fusion is a kernel, which reads its operands from memory and writes its result. Of an operand
that is sliced, the slice is read; of a result that an operand is updated to in place, the update is written. What
several kernels read counts for each of them: the cache between them is left out.
"""

from __future__ import annotations

import collections
import dataclasses
import math

from wanjax import executed, hlo
from wanjax.collectives import OPS
from wanjax.hlo import Computation, Instruction, Module

_HOST = "S(5)"  # XLA's memory space of the host, in a layout
# They name, group or look at what is there; a while, a conditional and a call are what they run.
_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
            "opt-barrier", "optimization-barrier", "domain", "add-dependency", *OPS}  # fmt: skip
_SLICES = {"slice", "dynamic-slice", "gather"}  # read as much as they give
# Of their first operand, what is not replaced stays where it is; the place of the operand that replaces the rest.
_UPDATED = {"dynamic-update-slice": 1, "scatter": 2}
_SAME_PLACE = {"bitcast", "reshape"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a kernel.

    Attributes:
        products: operations of matrix products and convolutions of operands of 16 bits and less.
        wide: the same of operands of 32 bits and more.
        forward, backward: operations of attention's kernels.
        memory: bytes that it reads and writes in the device's memory.
        from_host, to_host: bytes that it reads, and writes, in its host's.
    """

    products: int = 0
    wide: int = 0
    forward: int = 0
    backward: int = 0
    memory: int = 0
    from_host: int = 0
    to_host: int = 0


def cost(module: Module, computation: Computation, each: Instruction) -> Cost | None:
    """Of an instruction that is no loop, branch or call, what a fusion computes included; None where nothing runs, and
    for what is sent between devices, which :mod:`wanjax.collectives` counts.

    Raises: HloError: a shape that is not understood.
    """
    if each.base in _NOTHING or each.finishes or "AllocateBuffer" in each.attributes:
        return None
    inside = module.computations[each.called()[0]] if each.base in ("fusion", "async") and each.called() else None
    if inside and any(one.base in OPS for one in inside.instructions.values()):
        return None
    work = collections.Counter[str]()
    for where, one in _computed(module, computation, each, inside):
        for key, (_, operations) in (executed.of_instruction(where, one) or {}).items():
            work[_kind(key)] += operations
    moved = _moved(computation, each) if inside is None else _moved_by_fusion(computation, each, inside)
    return Cost(**{name: work[name] for name in ("products", "wide", "forward", "backward")}, **moved)


def _computed(
    module: Module, computation: Computation, each: Instruction, inside: Computation | None
) -> list[tuple[Computation, Instruction]]:
    """An instruction, or those of its fusion, and of the fusions in it."""
    if inside is None:
        return [(computation, each)]
    found = []
    for one in inside.instructions.values():
        nested = module.computations[one.called()[0]] if one.opcode in ("fusion", "call") and one.called() else None
        found += _computed(module, inside, one, nested)
    return found


def _kind(key: tuple[object, ...]) -> str:
    if isinstance(key, executed.Kind):
        return "forward" if key.way == "forward" else "backward"
    return "unknown" if key[0] == "unknown" else "wide" if hlo.bits(str(key[1])) >= 32 else "products"


def result(each: Instruction) -> str:
    """Shape of what an operation gives, of one that is started, too."""
    if each.opcode == each.base:
        return each.shape
    destination, *rest = hlo.elements(each.shape)
    return destination if each.base == "copy" else rest[0]


def _moved(computation: Computation, each: Instruction) -> dict[str, int]:
    """By an instruction that is no fusion."""
    operands = [computation.instructions[name].shape for name in each.operands]
    found = collections.Counter[str]()
    if each.base in _SLICES:
        _read(found, operands[0], _elements(result(each)))
        _written(found, result(each), _elements(result(each)))
    elif each.base in _UPDATED:
        update = operands[_UPDATED[each.base]]
        _read(found, update, _elements(update))
        _written(found, result(each), _elements(update))
    else:
        for shape in operands:
            _read(found, shape, _elements(shape))
        _written(found, result(each), _elements(result(each)))
    return dict(found)


def _moved_by_fusion(computation: Computation, each: Instruction, inside: Computation) -> dict[str, int]:
    """Each parameter as far as what the fusion gives depends on it; what is updated in place, as far as it is.

    Loops of a compiled fusion compute what they write, so that of an operand that is sliced behind an element by
    element operation, the slice alone is read, too (as XLA counts it in its GpuHloCostAnalysis).
    """
    found = collections.Counter[str]()
    root = inside.instructions[inside.root]
    names = root.operands if root.opcode == "tuple" else (root.name,)
    wanted: dict[str, int] = {}
    for name, shape in zip(names, hlo.parts(result(each)), strict=True):
        replaced = _in_place(inside, name)
        number = _elements(shape) if replaced is None else replaced
        wanted[name] = max(wanted.get(name, 0), number)
        _written(found, shape, number)
    reached = _reached(inside, wanted)
    for one in inside.instructions.values():
        if one.opcode == "parameter":
            _read(found, computation.instructions[each.operands[int(one.literal)]].shape, reached.get(one.name, 0))
    return dict(found)


def _in_place(inside: Computation, name: str) -> int | None:
    """Elements of a result that are written, where it is an operand with some of them replaced."""
    each = inside.instructions[name]
    while each.opcode in _SAME_PLACE:
        each = inside.instructions[each.operands[0]]
    if each.opcode not in _UPDATED:
        return None
    return _replaced(inside, each)


def _replaced(inside: Computation, each: Instruction) -> int:
    """Elements that an update replaces."""
    return _elements(inside.instructions[each.operands[_UPDATED[each.opcode]]].shape)


def _reached(inside: Computation, wanted: dict[str, int]) -> dict[str, int]:
    """Elements that are computed or read, by instruction, where so many of the results are wanted."""
    once, apart = dict(wanted), collections.Counter[str]()  # slices of one array lie apart, and add up
    total: dict[str, int] = {}
    for each in reversed(inside.instructions.values()):
        size = _elements(each.shape)
        number = total[each.name] = min(size, once.get(each.name, 0) + apart[each.name])
        if not number:
            continue
        for place, name in enumerate(each.operands):
            whole = _elements(inside.instructions[name].shape)
            if each.opcode in _SLICES and place == 0:
                apart[name] += number
                continue
            if each.opcode in _UPDATED:
                own = max(0, number - _replaced(inside, each)) if place == 0 else min(whole, number)
            elif each.opcode in ("reduce", "reduce-window", "dot", "convolution", "fusion", "call", "sort"):
                own = -(-whole * number // size)
            else:
                own = min(whole, number)
            once[name] = max(once.get(name, 0), own)
    return total


def _elements(shape: str) -> int:
    return sum(math.prod(dims) for _, dims in hlo.arrays(shape))


def _read(found: collections.Counter[str], shape: str, number: int) -> None:
    found["from_host" if _HOST in shape else "memory"] += _bytes(shape, number)


def _written(found: collections.Counter[str], shape: str, number: int) -> None:
    found["to_host" if _HOST in shape else "memory"] += _bytes(shape, number)


def _bytes(shape: str, number: int) -> int:
    """Of so many elements of a shape, of a tuple in proportion."""
    whole = _elements(shape)
    return hlo.sizes(shape)[1] * number // whole if whole else 0
