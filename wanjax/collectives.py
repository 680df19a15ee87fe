"""What a compiled program sends between devices, read from its HLO text.

Loops are multiplied by their number of turns, pairs of start and done count once, and replica groups say who takes
part, so that bytes are those that one device sends with ring algorithms.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from wanjax import hlo, hlo_loops
from wanjax.hlo import Computation, HloError, Instruction, Module
from wanjax.hlo_loops import Totals

OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
       "ragged-all-to-all")  # fmt: skip
# A v5e's compiler fuses the parts of a gather with what goes on meanwhile, in loops, too: a fusion that starts it,
# fusions of work (:func:`beside_work`), and one that ends it, all with the operation in them.
ENDS = "async-collective-done"
_Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind.

    Attributes:
        op: one of :data:`OPS`.
        dtype: of what travels, such as "bf16"; joined by "+" where one operation carries several.
        group: devices that take part in each.
        groups: numbers of the devices in each group, in the program's order.
        count: how often a device takes part in a step, loops multiplied out.
        payload: bytes of the whole array, gathered or before it is scattered, of all of them.
        bytes: that one device sends, of all of them.
    """

    op: str
    dtype: str
    group: int
    groups: _Groups
    count: int
    payload: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Found:
    """Attributes:
    collectives: by kind, most bytes first.
    unknown_loops: loops with collectives whose number of turns is not known: counted once.
    """

    collectives: tuple[Collective, ...]
    unknown_loops: int

    @property
    def bytes(self) -> int:
        """That one device sends in a step."""
        return sum(each.bytes for each in self.collectives)


def parse(text: str, devices: int) -> Found:
    """:func:`of` a program's text, ``compiled.as_text()``."""
    return of(hlo.parse(text), devices)


def of(module: Module, devices: int) -> Found:
    """All collectives of a compiled program.

    Args:
        module: the program.
        devices: that it runs on.
    Raises: HloError: a replica group, type or operand that is not understood.
    """

    def leaf(_: Computation, each: Instruction) -> Totals | None:
        if each.base in OPS:
            return _collective(each, devices)
        if beside_work(each) or each.name.startswith(ENDS):
            return {}
        return _fused_scatter(module, each, devices) if each.opcode == "fusion" else None

    totals, unknown = hlo_loops.fold(module, leaf, lambda totals: sum(out for _, _, out in totals.values()))
    found = [_named(key, numbers) for key, numbers in totals.items()]
    return Found(tuple(sorted(found, key=lambda each: (-each.bytes, each.op))), unknown)


def beside_work(each: Instruction) -> bool:
    """Whether it is work with a part of a collective in it, which another instruction has started."""
    return each.opcode == "fusion" and each.called()[0].startswith("async_collective_fusion")


def sent(op: str, result: int, group: int) -> int:
    """Bytes that one device sends for an operation whose result has so many bytes on each, with ring algorithms."""
    if op == "all-reduce":
        return 2 * result * (group - 1) // group
    if op == "reduce-scatter":
        return result * (group - 1)
    if op in ("all-gather", "all-to-all", "ragged-all-to-all"):
        return result * (group - 1) // group
    return result if group > 1 else 0


def axes_of(groups: Sequence[Sequence[int]], mesh: dict[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the members of a group differ; the program's devices are the mesh's, in order."""
    shape, found = tuple(mesh.values()), set()
    for group in groups:
        places = np.asarray(np.unravel_index(np.asarray(group), shape))
        found |= {axis for axis, own in zip(mesh, places, strict=True) if len(set(own.tolist())) > 1}
    return tuple(axis for axis in mesh if axis in found)


def link_of(groups: Iterable[Sequence[int]], domain: Callable[[int], int], near: str, far: str) -> str:
    """``far`` where some group has members of several domains (slices, nodes), else ``near``."""
    return far if any(len({domain(member) for member in group}) > 1 for group in groups) else near


def within(groups: Iterable[Sequence[int]], domain: Callable[[int], int]) -> int:
    """Members that a group has in one domain at least: as many adapters carry what it sends to others."""
    return min((min(collections.Counter(map(domain, group)).values()) for group in groups if group), default=1)


def _named(key: tuple[Any, ...], numbers: tuple[int, ...]) -> Collective:
    op, dtype, groups = key
    count, payload, out = numbers
    return Collective(op, dtype, max(map(len, groups), default=1), groups, count, payload, out)


def _collective(each: Instruction, devices: int) -> Totals:
    shape, op = each.shape, each.base
    if each.opcode != op and op != "all-reduce":  # (operands, results, and what the runtime keeps)
        shape = hlo.elements(shape)[1]
    dtype, size = hlo.sizes(shape)
    groups = _pairs(each.attributes) if op == "collective-permute" else _groups(each.attributes, devices)
    group = max(map(len, groups), default=1)
    payload = size * group if op == "reduce-scatter" else size
    return {(op, dtype, groups): (1, payload, sent(op, size, group))}


def _fused_scatter(module: Module, each: Instruction, devices: int) -> Totals | None:
    """A TPU's reduce-scatter is a fusion of an all-reduce and the slice that a device keeps."""
    (name,) = each.called()
    inside = [inner for inner in module.computations[name].instructions.values() if inner.base in OPS]
    if not name.startswith("all-reduce-scatter") or len(inside) != 1:
        return None
    groups = _groups(inside[0].attributes, devices)
    dtype, size = hlo.sizes(each.shape)
    group = max(map(len, groups))
    return {("reduce-scatter", dtype, groups): (1, size * group, sent("reduce-scatter", size, group))}


def _groups(attributes: str, devices: int) -> _Groups:
    everyone = (tuple(range(devices)),)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _rows(_ids(found[2]).reshape([int(n) for n in found[1].split(",")]))
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        return _numbers(found[1]) or everyone
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", attributes):
        return _along(*found.groups())
    if "replica_groups=" in attributes:
        raise HloError(f"replica groups are not understood in: {attributes[:300]}")
    return everyone


def _pairs(arguments: str) -> _Groups:
    found = re.search(r"source_target_pairs=\{((?:\{[\d,]*\},?)*)\}", arguments)
    if found is None:
        raise HloError(f"expected source_target_pairs: {arguments[:300]}")
    return _numbers(found[1])


def _ids(text: str) -> np.ndarray:
    """Device numbers of ``[2,4]T(1,0)``: counted up in that shape, its axes then permuted; or of a plain list."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        return np.asarray([int(n) for n in text.split(",")])
    shape = [int(n) for n in found[1].split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose([int(n) for n in found[2].split(",")]) if found[2] else numbers


def _along(mesh: str, ids: str | None, along: str) -> _Groups:
    """Groups along axes of a mesh: ``'a'=2,'b'=4`` with the groups along ``'b'``, or along ``'b':(2)2``, the part of b
    that has 2 before it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh)}
    wanted = {name: (int(before or 1), int(size or sizes[name]))
              for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", along)}  # fmt: skip
    shape: list[int] = []
    inside: list[int] = []
    for name, size in sizes.items():
        before, own = wanted.get(name, (1, 1))
        inside += [len(shape) + 1] if name in wanted else []
        shape += [before, own, size // before // own]
    numbers = np.arange(math.prod(shape)) if ids is None else _ids(ids)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    turned = numbers.reshape(shape).transpose(outside + inside)
    return _rows(turned.reshape(-1, math.prod(shape[axis] for axis in inside)))


def _rows(numbers: np.ndarray) -> _Groups:
    return tuple(tuple(int(n) for n in row) for row in numbers)


def _numbers(groups: str) -> _Groups:
    return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", groups))
