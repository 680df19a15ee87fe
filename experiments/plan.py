"""What a config needs on a machine that need not be there: memory, bytes sent, and a lower bound on the time.

    python -m experiments.plan --config configs/t2v_a14b.py --program train --topology v5p:4x4x4 --json plan.json \\
        --config.mesh.fsdp=16 --config.mesh.seq=4 --config.data.batch=16
    python -m experiments.plan --config configs/light_scenes_tiny.py --program sample --topology cpu:8
    python -m experiments.plan --config configs/t2v_a14b.py --program train --topology h100:8x8 --search --plot p.svg

The program is the launcher's own, compiled from shapes by the machine's compiler and never run; a TPU's needs
``pip install "wanjax[tpu]"`` and no TPU, a GPU's ``pip install "wanjax[cuda12]"`` and no GPU. Topologies: cpu:N
simulated devices; h100:NxG and h200:NxG nodes and GPUs of each; v4, v5p or tpu7x:AxBxC and v5e or v6e:AxB chips;
2*v5p:4x4x4 two slices.
``--search`` tries meshes, remat policies and what is held where, in place of the config's. The same question is
answered from a cache the next time. Exit code 0 says that there is a plan; whether it fits is in the plan.
docs/scaling.md explains every figure.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import jax
from absl import flags

from wanjax import config as config_lib
from wanjax import config_flag, plan_cache, plan_search, topology
from wanjax.compiled_memory import CompileError
from wanjax.plan import PlanError, Settings, plan
from wanjax.plan_chart import chart
from wanjax.plan_table import search_table, table
from wanjax.programs import HOLDING, PASSES, PROGRAMS


def run(experiment: config_lib.Experiment, machine: topology.Topology, settings: Settings, *, cached: bool = True
        ) -> dict[str, Any]:
    """The plan; where ``cached``, from the cache if it is there, and kept in it if it is not."""
    if not cached:
        return {**plan(experiment, machine, settings), "from_cache": False}
    key = plan_cache.key(experiment, machine, settings)
    try:
        if (found := plan_cache.load(key)) is not None:
            return {**found, "from_cache": True}
        plan_cache.folder().mkdir(parents=True, exist_ok=True)  # before minutes are spent
    except OSError as error:
        raise PlanError(f"plans cannot be kept in {plan_cache.folder()} ({error.strerror}): set XDG_CACHE_HOME, or "
                        "give --no_cache") from error  # fmt: skip
    made = plan(experiment, machine, settings)
    plan_cache.store(key, made)
    return {**made, "from_cache": False}


def write(file: str, text: str) -> None:
    """Writes a file; whole or not at all."""
    path = pathlib.Path(file)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def searched(experiment: config_lib.Experiment, machine: topology.Topology, settings: Settings, *, cached: bool,
             tries: int) -> plan_search.Search:  # fmt: skip
    """Plans of what can be chosen, told on standard error as they are made."""
    def make(chosen: config_lib.Experiment, own: Settings) -> dict[str, Any]:
        made = run(chosen, machine, own, cached=cached)
        jax.clear_caches()  # programs of these sizes
        return made

    return plan_search.search(
        experiment, machine, settings, topology.devices(machine), make, tries=tries, refusals=(CompileError,),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip


def main() -> None:
    given = flags.FLAGS
    try:
        machine = topology.parse(given.topology)
        settings = Settings(given.program, given.clips, given.holding, given.passes, given.param_dtype)
        for name, file in (("json", given.json), ("plot", given.plot)):
            if file and not pathlib.Path(file).absolute().parent.is_dir():
                raise PlanError(f"--{name} {file!r}: its folder does not exist")
        if not given.search and (given.plot or given["tries"].present):
            raise PlanError("--plot and --tries: only with --search")
        if given.tries < 1:
            raise PlanError(f"--tries {given.tries}: expected at least 1")
        topology.prepare(machine)
        experiment, cached = config_flag.experiment(), not given.no_cache
        if given.search:
            found = searched(experiment, machine, settings, cached=cached, tries=given.tries)
            title = f"{settings.program} of {experiment.name} on {machine.name}"
            text, answer = f"{title}\n{search_table(found)}", dataclasses.asdict(found)
            if given.plot:
                write(given.plot, chart(found, title))
        else:
            answer = run(experiment, machine, settings, cached=cached)
            text = table(answer) + ("\nfrom the cache; --no_cache compiles again" if answer["from_cache"] else "")
        if given.json:
            write(given.json, json.dumps(answer, indent=1) + "\n")
    except (config_lib.ConfigError, topology.TopologyError, PlanError, CompileError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text, flush=True)


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    config_flag.define()
    flags.DEFINE_string("program", None, f"What is planned, one step of it: {' or '.join(PROGRAMS)}.")
    flags.DEFINE_string("topology", None, f"The machine: {topology.FORMS}.")
    flags.DEFINE_string("json", "", "File that receives the plan as JSON.")
    flags.DEFINE_boolean("no_cache", False, "Compile even where the answer is cached, and keep nothing.")
    flags.DEFINE_integer("clips", None, "Of sampling and encoding: clips at a time; by default one for each part of "
                         "the mesh that clips are split over.")  # fmt: skip
    flags.DEFINE_boolean("search", False, "Try meshes, remat policies and what is held where; keep what fits.")
    flags.DEFINE_integer("tries", 12, "Of --search: plans at most.")
    flags.DEFINE_string("plot", "", "Of --search: SVG file that shows time and memory of the plans.")
    flags.DEFINE_string("holding", None, f"Of sampling, what the devices hold: {' or '.join(HOLDING)}.")
    flags.DEFINE_string("passes", None, f"Of sampling with guidance: {' or '.join(PASSES)}.")
    flags.DEFINE_string("param_dtype", None, "Of sampling: type of the parameters, by default that of the config; "
                        "released ones are held as they are stored, mostly in bfloat16.")  # fmt: skip
    flags.mark_flags_as_required(["config", "program", "topology"])
    config_flag.run(main)


if __name__ == "__main__":
    entry()
