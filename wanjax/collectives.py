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

import numpy as np

OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
       "ragged-all-to-all")  # fmt: skip
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
         "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|async_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')


class HloError(ValueError):
    """Text that is not understood; nothing is guessed."""


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
    groups: tuple[tuple[int, ...], ...]
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


@dataclasses.dataclass
class _Computation:
    lines: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # name, rest


_Key = tuple[str, str, tuple[tuple[int, ...], ...]]
_Totals = dict[_Key, tuple[int, int, int]]  # count, payload, sent


def parse(text: str, devices: int) -> Found:
    """All collectives of a compiled program.

    Args:
        text: ``compiled.as_text()``.
        devices: that the program runs on.
    Raises: HloError: text without an entry, or a replica group, type or operand that is not understood.
    """
    entry, computations = _split(text)
    reader = _Reader(computations, devices)
    totals = reader.total(entry)
    collectives_ = [
        Collective(op, dtype, max(map(len, groups), default=1), groups, *numbers)
        for (op, dtype, groups), numbers in totals.items()
    ]
    return Found(tuple(sorted(collectives_, key=lambda each: (-each.bytes, each.op))), reader.unknown_loops)


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
    """``far`` where some group has members of several domains (slices), else ``near``."""
    return far if any(len({domain(member) for member in group}) > 1 for group in groups) else near


def _split(text: str) -> tuple[str, dict[str, _Computation]]:
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is None:
            if (header := _HEADER.match(line)) and not line.startswith("HloModule"):
                current = computations.setdefault(header[2], _Computation())
                entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            current.lines.append((instruction[1], instruction[2]))
    if not entry:
        raise HloError("the text has no ENTRY computation: expected that of a compiled program")
    return entry, computations


class _Reader:
    def __init__(self, computations: dict[str, _Computation], devices: int):
        self._computations, self._devices = computations, devices
        self._done: dict[str, _Totals] = {}
        self.unknown_loops = 0

    def total(self, name: str) -> _Totals:
        """Of one run of a computation, with all that it calls."""
        if name in self._done:
            return self._done[name]
        totals: _Totals = collections.defaultdict(lambda: (0, 0, 0))
        for _, rest in self._computations[name].lines:
            self._add(totals, rest)
        self._done[name] = totals
        return totals

    def _add(self, totals: _Totals, rest: str) -> None:
        shape, opcode, arguments = _operation(rest)
        base, _, phase = opcode.rpartition("-")
        if phase in ("done", "update"):
            return
        kind = base if phase == "start" and base in OPS else opcode
        if kind in OPS:
            self._merge(totals, self._collective(kind, shape, phase == "start", arguments), 1)
            return
        if opcode == "conditional":
            named = [name for many, one in _BRANCHES.findall(rest) for name in (many or one).split(",")]
            branches = [self.total(name.strip().lstrip("%")) for name in named]
            self._merge(totals, max(branches, key=_sent, default={}), 1)
            return
        for name in _CALLED.findall(rest):
            inner, turns = self.total(name), 1
            if not inner or opcode in OPS:
                continue
            if opcode == "while":
                turns = self._turns(rest)
            elif opcode == "fusion" and (scattered := self._fused_scatter(name, shape)):
                inner = scattered
            self._merge(totals, inner, turns)

    def _turns(self, rest: str) -> int:
        if found := _TRIPS.search(rest):
            return int(found[1])
        counted = self._counted(*_LOOP.search(rest).groups())  # type: ignore[union-attr]  # every while has both
        self.unknown_loops += counted is None
        return counted or 1

    def _counted(self, condition: str, body: str) -> int | None:
        """Turns of a loop whose condition is ``counter < constant`` and whose body adds a constant to the counter.

        The counter starts at 0, as that of every loop of jax's scan; a TPU's compiler writes no number of turns.
        """
        test, body_lines = dict(self._computations[condition].lines), dict(self._computations[body].lines)
        last = self._computations[condition].lines[-1][1]
        compared = re.search(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", last)
        if compared is None:
            return None
        place = re.search(r"get-tuple-element\(.*\), index=(\d+)", test.get(compared[1], ""))
        limit = _constant(test.get(compared[2], ""))
        _, _, root = _operation(self._computations[body].lines[-1][1])
        if place is None or limit is None or int(place[1]) >= root.count("%"):
            return None
        added = re.search(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)",
                          body_lines.get(re.findall(r"%([\w.\-]+)", root)[int(place[1])], ""))  # fmt: skip
        steps = [_constant(body_lines.get(name, "")) for name in (added.groups() if added else ())]
        step = next((step for step in steps if step), None)
        return None if step is None else -(-limit // step)

    def _fused_scatter(self, name: str, shape: str) -> _Totals | None:
        """A TPU's reduce-scatter is a fusion of an all-reduce and the slice that a device keeps."""
        inner = self.total(name)
        if not name.startswith("all-reduce-scatter") or len(inner) != 1:
            return None
        ((_, _, groups),) = inner
        dtype, size = _sizes(shape)
        group = max(map(len, groups))
        return {("reduce-scatter", dtype, groups): (1, size * group, sent("reduce-scatter", size, group))}

    def _collective(self, op: str, shape: str, started: bool, arguments: str) -> _Totals:
        if started and op != "all-reduce":  # (operands, results, and what the runtime keeps)
            shape = _elements(shape)[1]
        dtype, size = _sizes(shape)
        groups = _pairs(arguments) if op == "collective-permute" else self._groups(arguments)
        group = max(map(len, groups), default=1)
        payload = size * group if op == "reduce-scatter" else size
        return {(op, dtype, groups): (1, payload, sent(op, size, group))}

    def _groups(self, arguments: str) -> tuple[tuple[int, ...], ...]:
        everyone = (tuple(range(self._devices)),)
        if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", arguments):
            return _rows(_ids(found[2]).reshape([int(n) for n in found[1].split(",")]))
        if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", arguments):
            return _numbers(found[1]) or everyone
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", arguments):
            return _along(*found.groups())
        if "replica_groups=" in arguments:
            raise HloError(f"replica groups are not understood in: {arguments[:300]}")
        return everyone

    @staticmethod
    def _merge(totals: _Totals, more: _Totals, turns: int) -> None:
        for key, numbers in more.items():
            before = totals.get(key, (0, 0, 0))
            count, payload, out = (old + turns * new for old, new in zip(before, numbers, strict=True))
            totals[key] = (count, payload, out)


def _constant(rest: str) -> int | None:
    found = re.search(r" constant\((\d+)\)", rest)
    return int(found[1]) if found else None


def _sent(totals: _Totals) -> int:
    return sum(out for _, _, out in totals.values())


def _operation(rest: str) -> tuple[str, str, str]:
    """Shape, opcode and what follows it, of the right side of an instruction."""
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    found = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if found is None:
        raise HloError(f"an instruction is not understood: {rest[:200]}")
    return rest[:end], found[1], rest[end + found.end() :]


def _closing(text: str) -> int:
    """Position behind the bracket that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise HloError(f"a bracket is not closed: {text[:200]}")


def _elements(shape: str) -> list[str]:
    """Shapes of a tuple's elements."""
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        if depth == 1 and letter == "," or place == len(shape) - 1:
            parts.append(shape[start:place])
            start = place + 1
        depth += (letter in "([{") - (letter in ")]}")
    if len(parts) < 2:
        raise HloError(f"expected a tuple of operand and result: {shape[:200]}")
    return parts


def _sizes(shape: str) -> tuple[str, int]:
    """Types and bytes of all arrays of a shape; layouts are no arrays."""
    names, total = [], 0
    for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape)):
        bits = 8 if dtype.startswith("f8") else _BITS.get(dtype)
        if bits is None:
            raise HloError(f"the type {dtype!r} is not known, in {shape[:200]}")
        names += [dtype] if dtype not in names else []
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    if not names:
        raise HloError(f"expected arrays: {shape[:200]}")
    return "+".join(names), total


def _pairs(arguments: str) -> tuple[tuple[int, ...], ...]:
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


def _along(mesh: str, ids: str | None, along: str) -> tuple[tuple[int, ...], ...]:
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


def _rows(numbers: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in row) for row in numbers)


def _numbers(groups: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", groups))
