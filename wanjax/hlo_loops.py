"""How often what stands in a compiled program runs: loops multiplied out.

A compiler may say how often a loop turns ("known_trip_count"). Where it does not, the condition is evaluated on the
scalars that it depends on, from their constant first values through the body, until it fails: whatever form compiler
and optimizer have given the counter. A scalar that is not known before the program runs makes the number unknown;
nothing is guessed.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable

from wanjax.hlo import Computation, Instruction, Module, arrays, bits

_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')
_MOST_TURNS = 1_000_000
_MOST_SCALARS = 64  # that a condition depends on

Key = tuple[object, ...]
Totals = dict[Key, tuple[int, ...]]  # numbers that add up, by what they are of
Path = tuple[int, ...]  # into nested tuples
# a number; of a parameter of the computation, which and where in it; or not known
Value = int | tuple[str, int, Path] | None

_PASSED_ON = {"copy", "bitcast", "reshape", "broadcast", "copy-start", "copy-done", "optimization-barrier",
              "opt-barrier", "domain"}  # fmt: skip
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip


def _quotient(a: int, b: int) -> int | None:
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int | None:
    return None if b == 0 else abs(a) % abs(b) * (-1 if a < 0 else 1)


_BINARY: dict[str, Callable[[int, int], int | None]] = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "and": operator.and_,
    "or": operator.or_, "xor": operator.xor, "maximum": max, "minimum": min, "divide": _quotient,
    "remainder": _remainder,
}  # fmt: skip


class Frame:
    """One run of a computation, of which scalars are computed as they are asked for.

    Args:
        module: the program.
        name: of the computation.
        argument: value at a path into a parameter of that number.
    """

    def __init__(self, module: Module, name: str, argument: Callable[[int, Path], Value]):
        self._module, self._name, self._argument = module, name, argument
        self._computation = module.computations[name]
        self._known: dict[tuple[str, Path], Value] = {}

    def result(self, path: Path = ()) -> Value:
        """Of the computation's root."""
        return self.value(self._computation.root, path)

    def value(self, name: str, path: Path = ()) -> Value:
        """Of an instruction, at a path into its tuple."""
        if (name, path) not in self._known:
            each = self._computation.instructions.get(name)
            self._known[name, path] = None if each is None else _wrapped(self._compute(each, path), each.shape, path)
        return self._known[name, path]

    def _compute(self, each: Instruction, path: Path) -> Value:
        opcode, operands = each.opcode, each.operands
        if opcode == "parameter":
            return self._argument(int(each.literal), path)
        if opcode == "constant":
            return _constant(each.literal)
        if opcode == "tuple" and path:
            return self.value(operands[path[0]], path[1:])
        if opcode == "get-tuple-element":
            return self.value(operands[0], (int(each.attribute("index")), *path))
        if opcode in _PASSED_ON:
            return self._same(each, path)
        if opcode in ("fusion", "call") and each.called():
            inner = Frame(self._module, each.called()[0], lambda number, path: self.value(operands[number], path))
            return inner.result(path)
        if opcode == "while":
            return self.value(operands[0], path) if _kept(self._module, each.loop()[1], path) else None
        if opcode == "convert":
            value = self.value(operands[0])
            return value if isinstance(value, int) else None
        return _applied(each, [self.value(operand) for operand in operands]) if operands and not path else None

    def _same(self, each: Instruction, path: Path) -> Value:
        """Of what passes its operand on; a start gives (destination, source, ...)."""
        if each.opcode == "copy-start":
            return self.value(each.operands[0], path[1:])
        if each.opcode == "copy-done":
            return self.value(each.operands[0], (0, *path))
        return self.value(each.operands[0], path)


def turns(module: Module, computation: str, loop: Instruction) -> int | None:
    """Of a while in a computation; None: it cannot be known from the text.

    Args:
        module: the program.
        computation: name of the one that the loop stands in.
        loop: the instruction.
    """
    if stated := _TRIPS.search(loop.attributes):
        return int(stated[1])
    condition, body = loop.loop()
    outside = Frame(module, computation, _outer(module, computation))
    state: dict[Path, int] = {}
    pending = _asked(module, condition, ())
    steps: dict[Path, set[Path]] = {}
    while pending:  # all scalars that the condition depends on, through the body
        path = pending.pop()
        first, needs = outside.value(loop.operands[0], path), _asked(module, body, path)
        if not isinstance(first, int) or len(steps) > _MOST_SCALARS:
            return None
        state[path], steps[path] = first, needs
        pending |= needs - steps.keys()
    for count in range(_MOST_TURNS):
        going = Frame(module, condition, _looked_up(state)).result()
        if not isinstance(going, int):
            return None
        if not going:
            return count
        one = Frame(module, body, _looked_up(state))
        after = {path: one.result(path) for path in state}
        if after == state or not all(isinstance(value, int) for value in after.values()):
            return None
        state = {path: value for path, value in after.items() if isinstance(value, int)}
    return None


def fold(
    module: Module, leaf: Callable[[Computation, Instruction], Totals | None], larger: Callable[[Totals], int]
) -> tuple[Totals, int]:
    """Numbers of all that one run of the program executes, loops multiplied out.

    Args:
        module: the program.
        leaf: numbers of an instruction; None: they are those of the computations that it calls.
        larger: of two branches of a conditional, the one of which this is larger counts.
    Returns: the sums, and how many loops with something in them have no known number of turns: they count once.
    """
    unknown: set[tuple[str, str]] = set()

    @functools.cache
    def total(name: str) -> Totals:
        computation = module.computations[name]
        totals: Totals = {}
        for each in computation.instructions.values():
            if each.finishes:
                continue
            found = leaf(computation, each)
            if found is not None:
                _add(totals, found, 1)
            elif each.opcode == "conditional":
                _add(totals, max(map(total, each.branches()), key=larger, default={}), 1)
            elif each.opcode == "while":
                condition, body = map(total, each.loop())
                if condition or body:
                    count = turns(module, name, each)
                    unknown.update([(name, each.name)] if count is None else [])
                    _add(totals, body, 1 if count is None else count)
                    _add(totals, condition, 1 if count is None else count + 1)
            else:
                for called in each.called():
                    _add(totals, total(called), 1)
        return totals

    return total(module.entry), len(unknown)


def _outer(module: Module, name: str) -> Callable[[int, Path], Value]:
    """Values of a computation's parameters: of a loop's body, those that no turn changes; else those of its caller."""
    callers = module.callers.get(name, [])
    if name == module.entry or len(callers) != 1:
        return lambda number, path: None
    caller, each = callers[0]

    def argument(number: int, path: Path) -> Value:
        if each.opcode == "while" and not _kept(module, each.loop()[1], path):
            return None
        if each.opcode not in ("while", "fusion", "call"):
            return None
        return Frame(module, caller, _outer(module, caller)).value(each.operands[number], path)

    return argument


def _looked_up(state: dict[Path, int]) -> Callable[[int, Path], Value]:
    return lambda number, path: state.get(path)


def _kept(module: Module, body: str, path: Path) -> bool:
    """Whether a loop's body leaves that part of its tuple as it is."""
    return Frame(module, body, lambda number, path: ("parameter", number, path)).result(path) == ("parameter", 0, path)


def _asked(module: Module, name: str, path: Path) -> set[Path]:
    """Paths into the one parameter of a computation that a part of its result may depend on."""
    asked: set[Path] = set()

    def argument(number: int, path: Path) -> Value:
        asked.add(path)
        return None

    Frame(module, name, argument).result(path)
    return asked


def _applied(each: Instruction, values: list[Value]) -> Value:
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) != len(values):
        return None
    if each.opcode == "compare":
        return int(_COMPARED[each.attribute("direction")](*numbers))
    if each.opcode in _BINARY:
        return _BINARY[each.opcode](*numbers)
    if each.opcode == "select":
        return numbers[1] if numbers[0] else numbers[2]
    if each.opcode == "clamp":
        return min(max(numbers[1], numbers[0]), numbers[2])
    if each.opcode == "not":
        return int(not numbers[0]) if each.shape.startswith("pred") else ~numbers[0]
    return -numbers[0] if each.opcode == "negate" else None


def _wrapped(value: Value, shape: str, path: Path) -> Value:
    """As an integer of the shape's type holds it; not known where that is no single integer."""
    if not isinstance(value, int) or path:
        return value
    found = arrays(shape)
    if len(found) != 1 or any(size != 1 for size in found[0][1]):
        return value if shape.startswith("(") else None
    dtype = found[0][0]
    if dtype == "pred":
        return int(bool(value))
    if dtype[0] not in "su":
        return None
    size = bits(dtype)
    value %= 1 << size
    return value - (1 << size) if dtype[0] == "s" and value >> (size - 1) else value


def _constant(literal: str) -> int | None:
    text = literal.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _add(totals: Totals, more: Totals, times: int) -> None:
    for key, numbers in more.items():
        before = totals.get(key) or (0,) * len(numbers)
        totals[key] = tuple(old + times * new for old, new in zip(before, numbers, strict=True))
