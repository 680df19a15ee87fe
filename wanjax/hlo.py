"""The text of a compiled program (HLO) as computations of instructions.

Only what the readers of this library need: names, shapes, operands, attributes, and a walk over all that is executed.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s1": 1, "u1": 1, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
         "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64,
         "c128": 128, "f4e2m1fn": 4}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=\s]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|async_computation|called_computations=\{)=?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")


class HloError(ValueError):
    """Text that is not understood; nothing is guessed."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
        name: of its result.
        shape: of its result, as written.
        opcode: such as "all-gather-start".
        operands: names.
        literal: what stands between the brackets: the number of a parameter, the value of a constant.
        attributes: what stands behind them.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def base(self) -> str:
        """The opcode, of a pair of start and done that of the operation itself."""
        return self.opcode.removesuffix("-start")

    @property
    def finishes(self) -> bool:
        """Whether it is the rest of an operation that an earlier instruction has started."""
        return self.opcode.endswith(("-done", "-update"))

    def called(self) -> tuple[str, ...]:
        """Computations that it runs once; those of a loop and of branches are not among them."""
        return tuple(_CALLED.findall(self.attributes))

    def loop(self) -> tuple[str, str]:
        """Condition and body of a while.

        Raises: HloError.
        """
        found = _LOOP.search(self.attributes)
        if found is None:
            raise HloError(f"a while without condition and body: {self.attributes[:200]}")
        return found[1], found[2]

    def branches(self) -> list[str]:
        """Computations of a conditional."""
        named = [name for many, one in _BRANCHES.findall(self.attributes) for name in (many or one).split(",")]
        return [name.strip().lstrip("%") for name in named]

    def attribute(self, name: str) -> str:
        """``{...}`` or a word behind ``name=``, without its brackets; empty where it is absent."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([\w.\-]+))", self.attributes)
        return "" if found is None else found[1] if found[1] is not None else found[2]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Attributes:
    name: of it.
    instructions: by name, in the program's order.
    root: name of the one that is the result.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Module:
    """Attributes:
    entry: name of the computation that is the program.
    computations: by name.
    """

    entry: str
    computations: dict[str, Computation]

    @functools.cached_property
    def callers(self) -> dict[str, list[tuple[str, Instruction]]]:
        """By computation, all instructions that run it, with the computation that each stands in."""
        found: dict[str, list[tuple[str, Instruction]]] = collections.defaultdict(list)
        for computation in self.computations.values():
            for each in computation.instructions.values():
                loop = each.loop() if each.opcode == "while" else ()
                branches = each.branches() if each.opcode == "conditional" else ()
                for name in (*each.called(), *loop, *branches):
                    found[name].append((computation.name, each))
        return found


def parse(text: str) -> Module:
    """Of ``compiled.as_text()``, or of what XLA dumps.

    Raises: HloError.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", list[str]()
    for line in text.splitlines():
        if not name:
            if (header := _HEADER.match(line)) and not line.startswith("HloModule"):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line == "}" or line.startswith("}, execution_thread="):
            computations[name], name = _computation(name, lines), ""
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # what a kernel says of itself goes over several lines, some of which start with a bracket
            lines[-1] += " " + line.strip()
    if entry not in computations:
        raise HloError("the text has no ENTRY computation: expected that of a compiled program")
    return Module(entry, computations)


def _computation(name: str, lines: list[str]) -> Computation:
    found = [_INSTRUCTION.match(line) for line in lines]
    instructions = {own[2]: _instruction(own[2], own[3]) for own in found if own}
    roots = [own[2] for own in found if own and own[1]]
    return Computation(name, instructions, roots[0] if roots else next(reversed(instructions), ""))


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Type and dimensions of every array in a shape; layouts are no arrays."""
    found = _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape))
    return [(dtype, tuple(int(n) for n in re.findall(r"\d+", dims))) for dtype, dims in found]


def dimensions(shape: str) -> tuple[int, ...]:
    """Of the only array, or of a tuple's first one.

    Raises: HloError: a shape without arrays.
    """
    if not (found := arrays(shape)):
        raise HloError(f"expected arrays: {shape[:200]}")
    return found[0][1]


def sizes(shape: str) -> tuple[str, int]:
    """Types and bytes of all arrays of a shape.

    Raises: HloError: an unknown type, or no arrays.
    """
    names: list[str] = []
    total = 0
    for dtype, dims in arrays(shape):
        names += [dtype] if dtype not in names else []
        total += math.prod(dims) * bits(dtype) // 8
    if not names:
        raise HloError(f"expected arrays: {shape[:200]}")
    return "+".join(names), total


def bits(dtype: str) -> int:
    """Of one element.

    Raises: HloError: an unknown type.
    """
    found = _BITS.get(dtype, 8 if dtype.startswith("f8") else None)
    if found is None:
        raise HloError(f"the type {dtype!r} is not known")
    return found


def parts(shape: str) -> list[str]:
    """Shapes of a tuple's elements, and of theirs; of what is no tuple, itself."""
    return [part for each in elements(shape) for part in parts(each)] if shape.startswith("(") else [shape]


def elements(shape: str) -> list[str]:
    """Shapes of a tuple's elements.

    Raises: HloError: one that is no tuple.
    """
    if not shape.startswith("("):
        raise HloError(f"expected a tuple: {shape[:200]}")
    return [part.strip() for part in _split(shape[1:-1])]


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    found = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if found is None:
        raise HloError(f"an instruction is not understood: {rest[:200]}")
    start = end + found.end()
    close = _closing(rest, start - 1)
    literal = rest[start : close - 1]
    operands = () if found[1] in ("constant", "parameter") else tuple(_OPERAND.findall(literal))
    return Instruction(name, rest[:end], found[1], operands, literal, rest[close:])


def _closing(text: str, start: int = 0) -> int:
    """Position behind the bracket that closes the one at ``start``."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise HloError(f"a bracket is not closed: {text[start : start + 200]}")


def _split(text: str) -> Iterator[str]:
    """At commas outside brackets."""
    depth, start = 0, 0
    for found in re.finditer(r"[()\[\]{},]", text):
        if found[0] == ",":
            if depth == 0:
                yield text[start : found.start()]
                start = found.end()
        else:
            depth += 1 if found[0] in "([{" else -1
    yield text[start:]
