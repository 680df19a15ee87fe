"""Times the cases of benchmarks/gpu/cases.py on this machine's GPUs, beside what the planner says of them.

    python -m benchmarks.gpu.run                                          all cases, at both sizes
    python -m benchmarks.gpu.run --case lora --tokens 75600 --set model.remat=full
    python -m benchmarks.gpu.run --case train --layers 4                  one GPU holds no state of 40 blocks
    JAX_PLATFORMS=cpu python -m benchmarks.gpu.run --tiny                 the code itself, on a CPU
    python -m benchmarks.gpu.run --topology h200:1x1                      what the planner says alone, without a GPU

Of each case: seconds of a call (median of --calls, after one), model FLOP/s and MFU (the model's own work over the
dense bfloat16 peak of all devices, whatever the type; docs/training.md), the peak of the device's memory, and beside
it what the planner reads off the compiled program before it runs: memory, a lower bound on the time, and the time that
it expects, with how much more or less that is than what was measured. What does not fit is refused with the size, and
not run. --json adds a line for each to a file.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # jax takes three quarters of a GPU unless told

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import cases
from wanjax import collectives, executed, hlo, plan_time, topology
from wanjax.compiled_memory import Memory, compile_with_memory
from wanjax.device_memory import free_bytes
from wanjax.throughput import peak

# by jax.Device.device_kind, what the planner calls it
PLANNED_AS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}


class Refused(ValueError):
    """A case that cannot run here; the message says why and what to do."""


def planned(
    case: cases.Case, machine: topology.Topology | None, free: int
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Compiles a case, and what the planner says of it.

    Args:
        case: what.
        machine: where; None: one that the planner has no figures of, and says no times of.
        free: bytes of each device.
    Raises: Refused: it does not fit.
    """
    started = time.perf_counter()
    compiled, memory = compile_with_memory(case.lowered, case.arguments)
    if compiled is None or memory.peak > free:
        raise Refused(f"{case.what}: needs {memory.peak / 1e9:.1f} GB of each device, {free / 1e9:.1f} are free; take "
                      "fewer --layers or more GPUs, or --set model.remat=full")  # fmt: skip
    found = {
        "case": case.name, "what": case.what, "device": case.devices[0].device_kind, "devices": len(case.devices),
        "jax": jax.__version__, "date": datetime.date.today().isoformat(), "model_flops": case.flops,
        "predicted_peak_bytes": memory.peak, "predicted_seconds_at_least": None, "predicted_seconds": None,
        "compile_seconds": time.perf_counter() - started,
    }  # fmt: skip
    if machine is not None:
        try:
            estimate = _estimate(case, machine, compiled.as_text(), memory)
        except hlo.HloError as error:  # what can be measured is
            print(f"warning: {case.what}: no time is predicted: {error}", file=sys.stderr, flush=True)
        else:
            expected = estimate["expected"]
            found |= {"predicted_seconds_at_least": estimate["step_seconds"],
                      "predicted_seconds": expected and expected["step_seconds"]}  # fmt: skip
    return compiled, found


def _estimate(case: cases.Case, machine: topology.Topology, text: str, memory: Memory) -> dict[str, Any]:
    own = machine if len(case.devices) > 1 else topology.parse(f"{machine.kind}:1x1")
    module, domains = hlo.parse(text), [own.domain(device) for device in case.devices]
    found = plan_time.estimate(own, module, memory, collectives.of(module, len(domains)), executed.count(module),
                               domain=domains.__getitem__, model_flops=case.flops)  # fmt: skip
    assert found  # a machine that is not simulated has one
    return found


def measured(case: cases.Case, machine: topology.Topology | None, calls: int) -> dict[str, Any]:
    """What the planner says of a case, and what it does.

    Raises: Refused: it does not fit.
    """
    compiled, found = planned(case, machine, free_bytes(case.devices))
    arguments, seconds = case.make(), []
    for _ in range(calls + 1):
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
        arguments = case.following(result, arguments)
        del result
    own = float(np.median(seconds[1:]))
    stats = [device.memory_stats() or {} for device in case.devices]
    used = max((each.get("peak_bytes_in_use", 0) for each in stats), default=0) or None
    rate = peak(case.devices)
    return {
        **found, "seconds": own, "calls": calls, "slowest": max(seconds[1:]), "flops_per_second": case.flops / own,
        "mfu": None if rate is None else case.flops / own / rate, "peak_bytes": used,
    }  # fmt: skip


def here() -> topology.Topology | None:
    """This machine as the planner knows it, or None."""
    devices = jax.devices()
    kind = PLANNED_AS.get(devices[0].device_kind)
    if kind is None:
        return None
    return topology.parse(f"{kind}:{jax.process_count()}x{len(devices) // jax.process_count()}")


def described(parser: argparse.ArgumentParser, name: str) -> tuple[topology.Topology, list[Any]]:
    """GPUs that are not here, and devices to compile for."""
    try:
        machine = topology.parse(name)
        if machine.platform != "gpu":
            raise topology.TopologyError(f"--topology {name!r}: expected GPUs, such as h200:1x1")
        topology.prepare(machine)
        return machine, topology.devices(machine)
    except topology.TopologyError as error:
        parser.exit(1, f"error: {error}\n")


def line(found: dict[str, Any]) -> str:
    """One line of the table; of what has not run, what is planned alone."""
    own, used, mfu = (found.get(name) for name in ("seconds", "peak_bytes", "mfu"))
    least, expected = found["predicted_seconds_at_least"], found["predicted_seconds"]
    rate = None if own is None else found["flops_per_second"] / 1e12
    cells = [found["what"], _number(own), _number(rate), "–" if mfu is None else f"{mfu:.1%}",
             "–" if used is None else f"{used / 1e9:.2f}", _beside(found["predicted_peak_bytes"], used, 1e9),
             _number(least), _beside(expected, own)]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _beside(predicted: float | None, real: float | None, unit: float = 1.0) -> str:
    """A prediction, and how much more it is than what was measured."""
    if predicted is None:
        return "–"
    return f"{predicted / unit:.4g}" + ("" if real is None else f" ({predicted / real - 1:+.1%})")


def changes_of(words: list[str]) -> dict[str, Any]:
    """``field=value`` of --set."""
    out = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Refused(f"--set {word!r}: expected field=value, such as model.remat=full")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line asks for; the number of cases that were refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=cases.NAMES, help="one or more; all by default")
    parser.add_argument("--tokens", action="append", type=int, help="of a clip: 32760 or 75600; both by default")
    parser.add_argument("--layers", type=int, help="blocks of what is trained; 40 by default")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the config, to train")
    parser.add_argument("--calls", type=int, help="of each case, after one that is not counted; 5 by default")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to test this code")
    parser.add_argument("--topology", help="of GPUs that need not be there, such as h200:1x1: nothing is run")
    parser.add_argument("--json", help="file that receives a line for each case")
    asked = parser.parse_args(arguments)
    if asked.calls is not None and (asked.calls < 1 or asked.topology):
        parser.error(f"--calls {asked.calls}: " + ("nothing is called with --topology" if asked.topology else
                                                   "expected at least 1"))  # fmt: skip
    if asked.topology:
        machine, devices = described(parser, asked.topology)
    elif jax.default_backend() != "gpu" and not asked.tiny:
        parser.exit(1, f"error: no GPU here: jax sees {jax.devices()[0].device_kind!r}. These cases are for one; "
                       "--tiny runs them at the size of a test, --topology h200:1x1 plans them\n")  # fmt: skip
    else:
        machine, devices = here(), jax.devices()
    print(f"<!-- {datetime.date.today()}, {len(devices)} × {devices[0].device_kind}, jax {jax.__version__} -->\n"
          "| case | seconds | TFLOP/s | MFU | peak, GB | planned, GB | at least, seconds | expected, seconds |\n"
          "|---|---|---|---|---|---|---|---|")  # fmt: skip
    refused = 0
    for tokens in asked.tokens or (cases.TINY if asked.tiny else cases.SIZES):
        for name in asked.case or cases.NAMES:
            try:
                one = cases.case(name, tokens, layers=asked.layers or (2 if asked.tiny else 40),
                                 changes=changes_of(asked.set), tiny=asked.tiny, devices=devices)  # fmt: skip
                found = planned(one, machine, machine.hbm_bytes())[1] if asked.topology and machine else measured(
                    one, machine, asked.calls or 5)  # fmt: skip
            except ValueError as error:
                refused += 1
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            print(line(found), flush=True)
            if asked.json:
                with Path(asked.json).open("a") as file:
                    file.write(json.dumps(found) + "\n")
    return refused


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
