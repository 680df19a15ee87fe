"""What a program of a config needs on a machine: memory, bytes sent, and the least time; compiled, never run.

:func:`plan` gives a dict of JSON types, whose keys docs/scaling.md explains.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import tempfile
import time
from typing import Any

from jax.sharding import Mesh

from wanjax import collectives, executed, hlo, plan_remedies, plan_time, programs, topology
from wanjax.compiled_memory import compile_with_memory, text_of
from wanjax.config import Experiment, to_dict
from wanjax.models import rows
from wanjax.models.dit_config import DTYPES
from wanjax.programs import Program
from wanjax.topology import Topology

# settings that a program takes, and how many clips it works on
_TAKEN = {"train": (), "sample": ("clips", "holding", "passes", "param_dtype"), "encode": ("clips",), "decode": ()}
_CLIPS = {"train": "a training step takes config.data.batch clips", "encode": "it takes --clips alone",
          "decode": "clips are decoded one at a time", "sample": ""}  # fmt: skip


_PREALLOCATED = 0.75  # docs.jax.dev/en/latest/gpu_memory_allocation.html


class PlanError(ValueError):
    """Something is asked for that cannot be planned."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for beside config and topology.

    Attributes:
        program: one of :data:`wanjax.programs.PROGRAMS`.
        clips: of sampling and encoding, at a time; None: one for each part of the mesh that clips are split over.
        holding, passes, param_dtype: of sampling, see :func:`wanjax.programs.sample`; None: its default.
    """

    program: str
    clips: int | None = None
    holding: str | None = None
    passes: str | None = None
    param_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.program not in programs.PROGRAMS:
            raise PlanError(f"--program {self.program!r}: expected one of {', '.join(programs.PROGRAMS)}")
        names = ("clips", "holding", "passes", "param_dtype")
        given = [name for name in names if getattr(self, name) is not None]
        wrong = [f"--{name}" for name in given if name not in _TAKEN[self.program]]
        if wrong:
            raise PlanError(f"{', '.join(wrong)}: not of --program {self.program}; {_CLIPS[self.program]}")
        for name, known in (("holding", programs.HOLDING), ("passes", programs.PASSES), ("param_dtype", DTYPES)):
            if getattr(self, name) not in (None, *known):
                raise PlanError(f"--{name} {getattr(self, name)!r}: expected one of {', '.join(known)}")


_COMPILERS = {"cpu": (), "tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin")}


def versions(platform: str) -> dict[str, str]:
    """Of what a plan for this platform depends on beside this library."""
    found = {}
    for name in ("jax", "jaxlib", "flax", "optax", *_COMPILERS[platform]):
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
    program = plan_program(experiment, mesh, settings)
    mesh = program.mesh
    started = time.perf_counter()
    lowered = program.lower()
    with tempfile.TemporaryDirectory() as folder:
        dump = pathlib.Path(folder) if machine.chip and machine.chip.dumped else None
        compiled, memory = compile_with_memory(lowered, program.arguments, dump=dump)
        seconds = time.perf_counter() - started
        text = None if compiled is None else text_of(compiled, dump)
    limit = memory.available or machine.hbm_bytes()
    found, lines, estimate, work = None, None, None, None
    if text is not None:
        module = hlo.parse(text)
        found, work = collectives.of(module, mesh.size), executed.count(module)
        domains = [machine.domain(device) for device in mesh.devices.flat]
        lines = _lines(found, dict(mesh.shape), machine, domains)
        estimate = plan_time.estimate(machine, module, memory, found, work, domain=domains.__getitem__,
                                      model_flops=program.flops)  # fmt: skip
    sampling = settings.program == "sample"
    holding, passes = settings.holding or "one", settings.passes or "batched"
    result: dict[str, Any] = {
        "program": settings.program,
        "config": experiment.name,
        "experiment": to_dict(experiment),
        "topology": machine.name,
        "params": rows.count(program.rows) + rows.count(program.frozen),
        "frozen_params": rows.count(program.frozen),
        "chips": machine.chips,
        "devices": machine.devices,
        "hosts": machine.hosts,
        "mesh": dict(mesh.shape),
        "clips": program.work.clips,
        "tokens": program.work.tokens,
        "holding": holding if sampling else None,
        "passes": passes if sampling else None,
        "param_dtype": settings.param_dtype or experiment.model.param_dtype if sampling else None,
        "fits": memory.peak <= limit,
        "hbm_bytes_per_device": limit,
        "peak_bytes_per_device": memory.peak,
        "argument_bytes": memory.arguments,
        "temp_bytes": memory.temporary,
        "host_bytes": memory.host,
        "host_memory_bytes": machine.host_memory,
        "flops_per_step": program.flops,
        "flops_formula": program.formula,
        "executed_flops": work and work.flops * mesh.size,
        "attention_kernels": work and [dataclasses.asdict(kernel) for kernel in work.kernels],
        "collectives": lines,
        "collective_bytes": found and found.bytes,
        "minimum_collective_bytes": program.minimum,
        "compile_seconds": round(seconds, 1),
        "estimate": estimate,
        "versions": versions(machine.platform),
    }
    result["warnings"] = [*program.warnings, *_warnings(machine, found, work, compiled is None)]
    if machine.platform == "gpu" and result["fits"] and memory.peak > _PREALLOCATED * limit:
        result["warnings"].append(f"jax takes {_PREALLOCATED:.0%} of a GPU's memory unless it is told otherwise: set "
                                  "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 there")  # fmt: skip
    if estimate and program.dtype == "float32":
        slow = "its matrix products are float32, several times slower than the bfloat16 rate of the estimate"
        maker = "; the expected time takes the maker's rate of float32 for them, of which none was measured"
        result["warnings"].append(slow + (maker if estimate["expected"] else ""))
    if estimate and estimate["expected"] and machine.devices > 1:
        result["warnings"].append("kernels were measured on one device, and none that sends: for what is sent, the "
                                  "expected time takes the lower bound, as if it overlapped with all else")  # fmt: skip
    if excess := plan_remedies.of_hosts(experiment, result, holding=holding):
        result["warnings"].append(excess)
    if not result["fits"]:
        result["warnings"].append(
            plan_remedies.of_devices(experiment, result, memory, forwards=program.work.forwards,
                                     holding=holding, passes=passes)
        )  # fmt: skip
    return result


def plan_program(experiment: Experiment, mesh: Mesh, settings: Settings) -> Program:
    """What is to be compiled."""
    if settings.program == "train":
        return programs.train(experiment, mesh)
    if settings.program == "encode":
        return programs.encode(experiment, mesh, clips=settings.clips)
    if settings.program == "decode":
        return programs.decode(experiment, mesh)
    return programs.sample(experiment, mesh, clips=settings.clips, holding=settings.holding or "one",
                           passes=settings.passes or "batched", param_dtype=settings.param_dtype)  # fmt: skip


def _lines(found: collectives.Found, mesh: dict[str, int], machine: Topology, domains: list[int]
           ) -> list[dict[str, Any]]:
    """One entry for all operations of one kind along the same axes, most bytes first."""
    merged: dict[tuple[Any, ...], list[int]] = {}
    for each in found.collectives:
        link = collectives.link_of(each.groups, domains.__getitem__, *machine.links)
        within = collectives.within(each.groups, domains.__getitem__)
        kind = (each.op, each.dtype, collectives.axes_of(each.groups, mesh), each.group, link, within)
        total = merged.setdefault(kind, [0, 0])
        total[0] += each.count
        total[1] += each.bytes
    lines = [{"op": op, "dtype": dtype, "axes": list(axes), "group": group, "count": count, "bytes": size, "link": link,
              "within": within}
             for (op, dtype, axes, group, link, within), (count, size) in merged.items()]  # fmt: skip
    return sorted(lines, key=lambda line: -line["bytes"])


def _warnings(machine: Topology, found: collectives.Found | None, work: executed.Work | None, refused: bool
              ) -> list[str]:
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
    if work and work.unknown_loops:
        out.append(f"{work.unknown_loops} loops with matrix products have no known number of turns and are counted "
                   "once: operations are too few")  # fmt: skip
    if work and work.unknown_calls:
        out.append(f"what these kernels compute is not known and not counted: {', '.join(work.unknown_calls)}")
    return out
