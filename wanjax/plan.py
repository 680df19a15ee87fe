"""What a program of a config needs on a machine: memory, bytes sent, and the least time; compiled, never run.

:func:`plan` gives a dict of JSON types, whose keys docs/scaling.md explains.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import time
from typing import Any

from wanjax import collectives, flops, programs, roofline, topology, traffic
from wanjax.compiled_memory import Memory, compile_with_memory, text_of
from wanjax.config import Experiment, to_dict
from wanjax.models import rows
from wanjax.models.dit_config import DTYPES
from wanjax.programs import Program
from wanjax.topology import Topology

NOTE = "an estimate from the maker's rates: a lower bound on the time, at which nothing has run"


class PlanError(ValueError):
    """Something is asked for that cannot be planned."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for beside config and topology.

    Attributes:
        program: one of :data:`wanjax.programs.PROGRAMS`.
        clips, holding, passes, param_dtype: of sampling, see :func:`wanjax.programs.sample`; None: its default.
    """

    program: str
    clips: int | None = None
    holding: str | None = None
    passes: str | None = None
    param_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.program not in programs.PROGRAMS:
            raise PlanError(f"--program {self.program!r}: expected one of {', '.join(programs.PROGRAMS)}; the codec's "
                            "encode and decode cannot be planned yet")  # fmt: skip
        names = ("clips", "holding", "passes", "param_dtype")
        given = [f"--{name}" for name in names if getattr(self, name) is not None]
        if given and self.program != "sample":
            raise PlanError(f"{', '.join(given)}: only for --program sample; a training step takes config.data.batch "
                            "clips")  # fmt: skip
        for name, known in (("holding", programs.HOLDING), ("passes", programs.PASSES), ("param_dtype", DTYPES)):
            if getattr(self, name) not in (None, *known):
                raise PlanError(f"--{name} {getattr(self, name)!r}: expected one of {', '.join(known)}")


def versions() -> dict[str, str]:
    """Of what a plan depends on beside this library."""
    found = {}
    for name in ("jax", "jaxlib", "flax", "optax", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plan(experiment: Experiment, machine: Topology, settings: Settings) -> dict[str, Any]:
    """Compiles the program for the machine and reads off what it needs.

    Raises:
        TopologyError, ConfigError, ValueError: what is asked for does not exist or does not go together.
        CompileError: the compiler refuses for another reason than memory.
    """
    experiment, mesh = programs.lay_out(experiment, topology.devices(machine))
    if settings.program == "train":
        program = programs.train(experiment, mesh)
    else:
        program = programs.sample(experiment, mesh, clips=settings.clips, holding=settings.holding or "one",
                                  passes=settings.passes or "batched", param_dtype=settings.param_dtype)  # fmt: skip
    started = time.perf_counter()
    compiled, memory = compile_with_memory(program.lower(), program.arguments)
    seconds = time.perf_counter() - started
    limit = memory.available or machine.hbm_bytes()
    found, lines, estimate = None, None, None
    text = None if compiled is None else text_of(compiled)
    if text is not None:
        found = collectives.parse(text, mesh.size)
        slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
        lines = _lines(found, dict(mesh.shape), slices)
        estimate = _estimate(experiment, machine, program, memory, lines)
    result: dict[str, Any] = {
        "program": settings.program,
        "config": experiment.name,
        "experiment": to_dict(experiment),
        "topology": machine.name,
        "params": rows.count(program.rows),
        "chips": machine.chips,
        "devices": machine.devices,
        "hosts": machine.hosts,
        "mesh": dict(mesh.shape),
        "clips": program.work.clips,
        "tokens": program.work.tokens,
        "fits": memory.peak <= limit,
        "hbm_bytes_per_device": limit,
        "peak_bytes_per_device": memory.peak,
        "argument_bytes": memory.arguments,
        "temp_bytes": memory.temporary,
        "host_bytes": memory.host,
        "flops_per_step": program.flops,
        "flops_formula": program.formula,
        "collectives": lines,
        "collective_bytes": found and found.bytes,
        "minimum_collective_bytes": traffic.minimum(experiment.model, program.rows, mesh, program.work),
        "compile_seconds": round(seconds, 1),
        "estimate": estimate,
        "versions": versions(),
    }
    result["warnings"] = [*program.warnings, *_warnings(machine, found, compiled is None)]
    if not result["fits"]:
        result["warnings"].append(_too_much(experiment, result, settings, memory, program))
    return result


def _lines(found: collectives.Found, mesh: dict[str, int], slices: list[int]) -> list[dict[str, Any]]:
    """One entry for all operations of one kind along the same axes, most bytes first."""
    merged: dict[tuple[Any, ...], list[int]] = {}
    for each in found.collectives:
        link = collectives.link_of(each.groups, slices.__getitem__, "ici", "dcn")
        kind = (each.op, each.dtype, collectives.axes_of(each.groups, mesh), each.group, link)
        total = merged.setdefault(kind, [0, 0])
        total[0] += each.count
        total[1] += each.bytes
    lines = [{"op": op, "dtype": dtype, "axes": list(axes), "group": group, "count": count, "bytes": size, "link": link}
             for (op, dtype, axes, group, link), (count, size) in merged.items()]  # fmt: skip
    return sorted(lines, key=lambda line: -line["bytes"])


def _estimate(
    experiment: Experiment, machine: Topology, program: Program, memory: Memory, lines: list[dict[str, Any]]
) -> dict[str, Any] | None:
    work, model, sent = program.work, experiment.model, collections.Counter[str]()
    for line in lines:
        sent[line["link"]] += line["bytes"]
    matmul, attention = roofline.executed(model.remat, train=work.train)
    calls, size = work.clips * work.forwards, (work.tokens, work.text_tokens)
    found = roofline.estimate(
        machine,
        model_flops=program.flops,
        matmul_flops=calls * matmul * flops.matmul(model, *size),
        attention_flops=calls * attention * flops.attention(model, *size),
        memory_bytes=memory.arguments + memory.results + 2 * (memory.temporary or 0) + 2 * sent.total(),
        sent=dict(sent),
    )
    return None if found is None else {**dataclasses.asdict(found), "note": NOTE}


def _warnings(machine: Topology, found: collectives.Found | None, refused: bool) -> list[str]:
    out = []
    if machine.chip is None:
        out.append("simulated devices share this machine's memory, have no stated rates, and their compiler is not a "
                   "TPU's: memory and bytes differ there")  # fmt: skip
    if found is None and not refused:
        out.append("this jaxlib cannot read the program that the compiler wrote: memory is known, bytes sent and an "
                   "estimate are not; try versions of jax and libtpu that were released together")  # fmt: skip
    elif found is None:
        out.append("the compiler refused the program: temporary memory, bytes sent and an estimate are not known")
    elif found.unknown_loops:
        out.append(f"{found.unknown_loops} loops that send have no known number of turns and are counted once: "
                   "bytes are too few")  # fmt: skip
    return out


def _too_much(
    experiment: Experiment, result: dict[str, Any], settings: Settings, memory: Memory, program: Program
) -> str:
    """By how much it does not fit, and what changes that, the cheapest first."""
    over, mesh, out = memory.peak - result["hbm_bytes_per_device"], result["mesh"], []
    state_alone = memory.arguments > result["hbm_bytes_per_device"]
    shards, heads = mesh["data"] * mesh["fsdp"], experiment.model.heads
    if settings.program == "train":
        if experiment.model.remat != "full":
            out.append("config.model.remat=full")
        if result["clips"] > shards * experiment.train.accumulate:
            out.append(f"config.train.accumulate={result['clips'] // shards} or a smaller config.data.batch")
    else:
        if (settings.holding or "one") == "one" and memory.arguments > over:
            out.append("--holding blocks")
        if (settings.passes or "batched") == "batched" and program.work.forwards > 1:
            out.append("--passes two")
        if result["clips"] > shards:
            out.append(f"--clips {shards}")
    if mesh["data"] > 1:
        out.append("config.mesh.fsdp in the place of data, which holds copies of the parameters")
    larger = [n for n in range(2 * mesh["seq"], result["devices"] + 1)
              if result["devices"] % n == 0 and heads % n == 0 and result["tokens"] % n == 0]  # fmt: skip
    if larger and not state_alone:
        out.append(f"config.mesh.seq={larger[0]}, which splits tokens" +
                   (f" (and config.data.batch a multiple of {result['devices'] // larger[0]})"
                    if settings.program == "train" else ""))  # fmt: skip
    elif not state_alone:
        out.append("more chips, and a larger config.mesh.seq over them")
    out.append("more chips, or chips with more memory" if state_alone else "shorter or smaller clips")
    return f"does not fit: {over / 1e9:.2f} GB too much on each device; what helps: {'; '.join(out)}"

