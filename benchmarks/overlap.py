"""How much of what devices send each other in a training step goes on beside products and kernels, as compiled.

    python benchmarks/overlap.py
    python benchmarks/overlap.py --machines v6e:16x16 --set xla_tpu_enable_async_all_to_all=true --set ...

Compiles (``pip install "wanjax[tpu]"``; a minute or two each) the launcher's own step of configs/t2v_a14b.py at
1280 × 720 × 81 until the compiler has written its schedule, and ends it there: code is not needed, and nothing is run.
An operation that sends stands in a schedule alone, and all wait for it, or it has a start and an end, and what stands
between them goes on meanwhile: the table has GB that are sent beside matrix products and attention's kernels, of all
GB, and seconds at the makers' rates, of sending one after the other, of waiting for it in the schedule's order, of
computing. ``--set`` adds options of the compiler to those of ``wanjax/compiler_options.py``, ``--bare`` leaves these
out.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import collectives, executed, hlo, hlo_loops
from wanjax.hlo import Computation, Instruction, Module

CONFIG = Path(__file__).resolve().parents[1] / "configs/t2v_a14b.py"
SIZE = {"data.height": 720, "data.width": 1280, "data.frames": 81}
# fields of the config beside
MACHINES: dict[str, dict[str, float]] = {
    "v5p:4x4x4": {"mesh.fsdp": 16, "mesh.seq": 4, "data.batch": 16, "optimizer.ema_decay": 0.0},
    "v6e:16x16": {"mesh.fsdp": 32, "mesh.seq": 8, "data.batch": 32},
    "tpu7x:4x4x4": {"mesh.fsdp": 32, "mesh.seq": 4, "data.batch": 32},
    "v5e:16x16": {"mesh.fsdp": 32, "mesh.seq": 8, "data.batch": 32},
}
SHOWN = ("all-gather", "reduce-scatter", "all-to-all")
COLUMNS = ("machine", *SHOWN, "others", "all, GB", "sending, s", "waiting", "computing", "temp, GB")
_AROUND = ("fusion", "call", "custom-call", "async-start")  # what a collective may be wrapped in
_TEMPORARY = re.compile(r"^allocation \d+: size (\d+), page \d+, preallocated-temp:", re.MULTILINE)


@dataclasses.dataclass
class Sending:
    """One operation between devices, in the order of its computation.

    Attributes:
        op: one of :data:`wanjax.collectives.OPS`.
        bytes: that a device sends.
        parts: names of the instructions that it is made of: one, or a start, an end and what is between.
        groups: devices that take part, which stand for the axis of the mesh.
        channels: numbers that the compiler gives to what it is.
        work: floating-point operations of products and kernels from its first part to its last.
    """

    op: str
    bytes: int
    parts: list[str]
    groups: tuple[tuple[int, ...], ...]
    channels: frozenset[str]
    work: int = 0


class Schedule:
    """What a scheduled program sends, and beside what.

    Args:
        module: the program.
        devices: that it runs on.
    """

    def __init__(self, module: Module, devices: int):
        self._module, self._devices = module, devices
        self._sendings = functools.cache(self._found)
        self._flops = functools.cache(lambda name: executed.count(dataclasses.replace(module, entry=name)).flops)
        self._wrapped = functools.cache(self._inside)

    def table(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Number and bytes by operation and by how it goes: "waited for" alone, "paired" with a start and an end and
        no work between, "beside work"; loops multiplied out."""

        def leaf(computation: Computation, each: Instruction) -> hlo_loops.Totals | None:
            of = self._sendings(computation.name).get(each.name)
            if of is None:
                return {} if collectives.beside_work(each) else None
            how = "waited for" if len(of.parts) == 1 else "beside work" if of.work else "paired"
            return {(of.op, how): (1, of.bytes)} if of.parts[0] == each.name else {}

        totals, _ = hlo_loops.fold(self._module, leaf, lambda totals: sum(size for _, size in totals.values()))
        return {(str(key[0]), str(key[1])): (numbers[0], numbers[1]) for key, numbers in totals.items()}

    def seconds(self, flops: float, sent: float) -> tuple[float, float]:
        """Of computing, and of waiting for what is sent, in the schedule's order.

        A device computes at ``flops`` operations/s, and reading its memory costs nothing. Along one axis of the mesh it
        sends one operation at a time at ``sent`` bytes/s, along several at once, as they have links of their own in a
        torus. Nothing is under way from one turn of a loop to the next.
        """

        @functools.cache
        def run(name: str) -> tuple[float, float]:
            computation, sendings = self._module.computations[name], self._sendings(name)
            computing = waiting = 0.0
            free = collections.defaultdict[Any, float](float)  # when links have sent what was started, by their groups
            arrives: dict[int, float] = {}
            for each in computation.instructions.values():
                now, of = computing + waiting, sendings.get(each.name)
                if of is not None and each.name == of.parts[0]:
                    free[of.groups] = arrives[id(of)] = max(now, free[of.groups]) + of.bytes / sent
                if of is None:
                    more, idle = self._block(computation, each, run, flops)
                    computing, waiting = computing + more, waiting + idle
                if of is not None and each.name == of.parts[-1]:
                    waiting += max(0.0, arrives[id(of)] - computing - waiting)
            return computing, waiting

        return run(self._module.entry)

    def _block(self, computation: Computation, each: Instruction, run: Any, flops: float) -> tuple[float, float]:
        if each.opcode == "while":
            turns = hlo_loops.turns(self._module, computation.name, each) or 1
            computing, waiting = (sum(part) for part in zip(*map(run, each.loop()), strict=True))
            return turns * computing, turns * waiting
        return self._work(computation, each) / flops, 0.0

    def _found(self, name: str) -> dict[str, Sending]:
        """By every instruction that is a part of one."""
        computation = self._module.computations[name]
        order, parts = list(computation.instructions.values()), dict[str, Sending]()
        for each in order:
            if each.finishes:
                before = parts.get(each.operands[0])
            elif each.name.startswith(collectives.ENDS):
                before = next(of for of in reversed(parts.values()) if of.channels & _channels(self._sends(each)))
            else:
                before = None
            if before is not None:
                before.parts.append(each.name)
                parts[each.name] = before
            elif not each.finishes and not collectives.beside_work(each) and (inside := self._sends(each)):
                (found,) = collectives.of(_alone(self._module, computation, each), self._devices).collectives[:1]
                parts[each.name] = Sending(found.op, found.bytes, [each.name], found.groups, _channels(inside))
        places = {each.name: place for place, each in enumerate(order)}
        for of in {id(of): of for of in parts.values()}.values():
            if len(of.parts) > 1:
                between = order[places[of.parts[0]] : places[of.parts[-1]] + 1]
                of.work = sum(self._work(computation, each) for each in between if each.name not in of.parts)
        return parts

    def _sends(self, each: Instruction) -> list[Instruction]:
        """The collectives that an instruction is, or is around."""
        if each.base in collectives.OPS:
            return [each]
        return [inner for name in each.called() for inner in self._wrapped(name)] if each.opcode in _AROUND else []

    def _inside(self, name: str) -> list[Instruction]:
        return [inner for each in self._module.computations[name].instructions.values() for inner in self._sends(each)]

    def _work(self, computation: Computation, each: Instruction) -> int:
        if each.opcode == "while":
            turns = hlo_loops.turns(self._module, computation.name, each) or 1
            return turns * sum(map(self._flops, each.loop()))
        if each.opcode == "conditional":
            return max(map(self._flops, each.branches()), default=0)
        if each.called():
            return sum(map(self._flops, each.called()))
        if each.base not in ("dot", "convolution", "custom-call"):
            return 0
        return executed.count(_alone(self._module, computation, each)).flops


def _alone(module: Module, computation: Computation, each: Instruction) -> Module:
    """A program of one instruction, which is given what it reads."""
    given = {name: dataclasses.replace(computation.instructions[name], opcode="parameter", attributes="")
             for name in each.operands if name in computation.instructions}  # fmt: skip
    only = Computation("only", {**given, each.name: each}, each.name)
    return Module("only", {**module.computations, "only": only})


def _channels(inside: list[Instruction]) -> frozenset[str]:
    return frozenset(number for each in inside for number in re.findall(r"\bchannel_id=(\d+)", each.attributes))


def scheduled(machine: str, options: dict[str, str], *, bare: bool) -> tuple[str, int | None]:
    """The text of a machine's step with its schedule, and bytes of temporary memory where the compiler states them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", machine, "--folder", folder, *(["--bare"] if bare else []),
                   *(f"--set={name}={value}" for name, value in options.items())]  # fmt: skip
        child = subprocess.Popen(command, start_new_session=True)
        try:
            # what is written next says that the text is whole
            while child.poll() is None and not list(Path(folder).glob("*after_optimizations_after_buffer*.txt")):
                time.sleep(1)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        texts = sorted(Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        if not texts:
            sys.exit(f"error: {machine} could not be compiled; the reason stands above")
        buffers = texts[-1].with_name(texts[-1].name.replace(".txt", "-buffer-assignment.txt"))
        sizes = _TEMPORARY.findall(buffers.read_text()) if buffers.exists() else []
        return texts[-1].read_text(), max(map(int, sizes), default=None)


def compile_into(machine: str, folder: str, options: dict[str, str], *, bare: bool) -> None:
    """Until somebody ends it."""
    from wanjax import compiler_options, config, programs, topology

    if bare:
        compiler_options.TRAINING = {}
    there = topology.parse(machine)
    topology.prepare(there)
    experiment, mesh = programs.lay_out(config.load(CONFIG, {**SIZE, **MACHINES[machine]}), topology.devices(there))
    lowered = programs.train(experiment, mesh).lower()
    lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True, **options})


def report(machine: str, text: str, temporary: int | None) -> str:
    """A line of the table: by operation GB beside work and GB in all, then seconds, and GB of temporary memory."""
    from wanjax import topology

    there = topology.parse(machine)
    assert there.chip
    schedule = Schedule(hlo.parse(text), there.devices)
    by_op = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    for (op, how), (_, size) in schedule.table().items():
        by_op[op if op in SHOWN else "others"][how] += size
    speed = there.chip.link * (2 if all(there.rings) else 1) / there.chip.devices
    computing, waiting = schedule.seconds(there.chip.flops / there.chip.devices, speed)
    ways = [by_op[op] for op in (*SHOWN, "others")]
    everything = sum(ways, collections.Counter[str]())
    shown = [f"{way['beside work'] / 1e9:.1f} of {way.total() / 1e9:.1f}" for way in (*ways, everything)]
    seconds = [f"{value:.2f}" for value in (everything.total() / speed, waiting, computing)]
    return "| " + " | ".join([machine, *shown, *seconds, "" if temporary is None else f"{temporary / 1e9:.2f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", default=",".join(MACHINES), help="some of these, with commas between")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the compiler")
    parser.add_argument("--bare", action="store_true", help="without the options of wanjax/compiler_options.py")
    parser.add_argument("--one", choices=MACHINES, help=argparse.SUPPRESS)  # of a child process: compiles
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if wrong := [word for word in given.set if "=" not in word]:
        parser.error(f"--set {wrong[0]}: expected NAME=VALUE")
    options = dict(word.split("=", 1) for word in given.set)
    if given.one:
        compile_into(given.one, given.folder, options, bare=given.bare)
        return
    names = given.machines.split(",")
    if unknown := sorted(set(names) - MACHINES.keys()):
        parser.error(f"--machines {','.join(unknown)}: expected some of {', '.join(MACHINES)}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in names:
        print(report(name, *scheduled(name, options, bare=given.bare)), flush=True)


if __name__ == "__main__":
    main()
