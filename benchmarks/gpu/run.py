"""Times the cases of benchmarks/gpu/cases.py on this machine's GPUs, beside what the planner says of them.

    python -m benchmarks.gpu.run                                          all cases, at both sizes
    python -m benchmarks.gpu.run --case lora --tokens 75600 --set model.remat=full
    python -m benchmarks.gpu.run --case train --layers 4                  one GPU holds no state of 40 blocks
    JAX_PLATFORMS=cpu python -m benchmarks.gpu.run --tiny                 the code itself, on a CPU

Of each case: seconds of a call (median of --calls, after one), model FLOP/s and MFU (the model's own work over the
dense bfloat16 peak of all devices, whatever the type; docs/training.md), the peak of the device's memory, and beside
it what the planner reads off the compiled program before it runs, and its lower bound on the time. What does not fit is
refused with the size, and not run. --json adds a line for each to a file.
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
from wanjax import roofline, topology
from wanjax.compiled_memory import Memory, compile_with_memory
from wanjax.device_memory import free_bytes
from wanjax.throughput import peak

# by jax.Device.device_kind, what the planner calls it
PLANNED_AS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}


class Refused(ValueError):
    """A case that cannot run here; the message says why and what to do."""


def measured(case: cases.Case, calls: int) -> dict[str, Any]:
    """Compiles a case, predicts, runs it.

    Raises: Refused: it does not fit.
    """
    devices = jax.devices()
    started = time.perf_counter()
    compiled, memory = compile_with_memory(case.lowered, case.arguments)
    compile_seconds = time.perf_counter() - started
    free = free_bytes(devices)
    if compiled is None or memory.peak > free:
        raise Refused(f"{case.what}: needs {memory.peak / 1e9:.1f} GB of each device, {free / 1e9:.1f} are free; take "
                      "fewer --layers or more GPUs, or --set model.remat=full")  # fmt: skip
    arguments, seconds = case.make(), []
    for _ in range(calls + 1):
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
        arguments = case.following(result, arguments)
        del result
    own = float(np.median(seconds[1:]))
    stats = [device.memory_stats() or {} for device in devices]
    used = max((each.get("peak_bytes_in_use", 0) for each in stats), default=0) or None
    rate = peak(devices)
    return {
        "case": case.name, "what": case.what, "device": devices[0].device_kind, "devices": len(devices),
        "jax": jax.__version__, "date": datetime.date.today().isoformat(), "seconds": own, "calls": calls,
        "slowest": max(seconds[1:]), "model_flops": case.flops, "flops_per_second": case.flops / own,
        "mfu": None if rate is None else case.flops / own / rate, "peak_bytes": used,
        "predicted_peak_bytes": memory.peak, "predicted_seconds_at_least": least_seconds(case, memory),
        "compile_seconds": compile_seconds,
    }  # fmt: skip


def least_seconds(case: cases.Case, memory: Memory) -> float | None:
    """The planner's lower bound: the model's own work and the program's memory at the maker's rates; None for a device
    that the planner has no figures of."""
    devices = jax.devices()
    kind = PLANNED_AS.get(devices[0].device_kind)
    if kind is None:
        return None
    machine = topology.parse(f"{kind}:{jax.process_count()}x{len(devices) // jax.process_count()}")
    moved = memory.arguments + memory.results + 2 * (memory.temporary or 0)
    found = roofline.estimate(machine, model_flops=case.flops, matmul_flops=case.flops, attention_flops=0.0,
                              memory_bytes=moved, sent={})  # fmt: skip
    return None if found is None else found.step_seconds


def line(found: dict[str, Any]) -> str:
    """One line of the table."""
    mfu = "–" if found["mfu"] is None else f"{found['mfu']:.1%}"
    used, planned = found["peak_bytes"], found["predicted_peak_bytes"]
    memory = f"– | {planned / 1e9:.4g}"
    if used is not None:
        memory = f"{used / 1e9:.2f} | {planned / 1e9:.2f} ({planned / used - 1:+.1%})"
    least = found["predicted_seconds_at_least"]
    return (f"| {found['what']} | {found['seconds']:.4g} | {found['flops_per_second'] / 1e12:.4g} | {mfu} | {memory} | "
            f"{'–' if least is None else f'{least:.4g}'} |")  # fmt: skip


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
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to test this code")
    parser.add_argument("--json", help="file that receives a line for each case")
    asked = parser.parse_args(arguments)
    if asked.calls < 1:
        parser.error(f"--calls {asked.calls}: expected at least 1")
    if jax.default_backend() != "gpu" and not asked.tiny:
        parser.exit(1, f"error: no GPU here: jax sees {jax.devices()[0].device_kind!r}. These cases are for one; "
                       "--tiny runs them at the size of a test\n")  # fmt: skip
    print(f"<!-- {datetime.date.today()}, {jax.device_count()} × {jax.devices()[0].device_kind}, jax "
          f"{jax.__version__} -->\n| case | seconds | TFLOP/s | MFU | peak, GB | planned, GB | at least, seconds |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    refused = 0
    for tokens in asked.tokens or (cases.TINY if asked.tiny else cases.SIZES):
        for name in asked.case or cases.NAMES:
            try:
                one = cases.case(name, tokens, layers=asked.layers or (2 if asked.tiny else 40),
                                 changes=changes_of(asked.set), tiny=asked.tiny)  # fmt: skip
                found = measured(one, asked.calls)
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
