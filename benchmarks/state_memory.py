"""What optimizer state in the hosts' memory saves on the devices, and which machines train an expert only with it.

    python benchmarks/state_memory.py [--only v6e] [--json state_memory.json]

Plans (``pip install "wanjax[tpu]"``; minutes each) one training step of configs/t2v_a14b.py at
1280 × 720 × 81 with ``config.optimizer.state_memory`` on the device and on the host, and prints a table of what the
compiler states. Nothing is run on any of these machines. For GPUs there is no such plan: what describes one that is not
there lists no memory of its host.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import planner

SIZE = {"data.height": 720, "data.width": 1280, "data.frames": 81}
MEMORIES = ("device", "host")
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name: topology, fields
    "v5p:4x4x4": ("v5p:4x4x4", {"mesh.fsdp": 16, "mesh.seq": 4, "data.batch": 16, "optimizer.ema_decay": 0.0}),
    "v5p:4x4x4 averaged": ("v5p:4x4x4", {"mesh.fsdp": 16, "mesh.seq": 4, "data.batch": 16}),
    "v6e:2x4": ("v6e:2x4", {"mesh.fsdp": 1, "mesh.seq": 8, "data.batch": 1, "optimizer.ema_decay": 0.0}),
}
COLUMNS = ("machine", "mesh, clips", "average", "moments, average", "arguments", "temporary", "needed", "there is",
           "host, per device", "host, of its memory", "sent")  # fmt: skip


def line(plan: dict[str, Any]) -> str:
    """GB = 1e9 bytes of one device; of a host all its devices."""
    def gb(size: int | None) -> str:
        return "unknown" if size is None else f"{size / 1e9:.2f}"

    axes = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    optimizer, each = plan["experiment"]["optimizer"], plan["devices"] // plan["hosts"]
    pinned = f"{each * plan['host_bytes'] / 1e9:.0f} of {plan['host_memory_bytes'] / 1e9:.0f}"
    return "| " + " | ".join([
        plan["topology"], f"{axes}, {plan['clips']}", "yes" if optimizer["ema_decay"] else "no",
        optimizer["state_memory"], gb(plan["argument_bytes"]), gb(plan["temp_bytes"]),
        gb(plan["peak_bytes_per_device"]) + ("" if plan["fits"] else ", too much"), gb(plan["hbm_bytes_per_device"]),
        gb(plan["host_bytes"]), pinned, gb(plan["collective_bytes"])]) + " |"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, default=None, help="receives the plans, case by case as they are made")
    given = parser.parse_args()
    chosen = {name: case for name, case in CASES.items() if given.only in name}
    if not chosen:
        parser.error(f"--only {given.only}: expected a part of one of {', '.join(CASES)}")
    made: dict[str, dict[str, Any]] = {}
    for name, (topology, fields) in chosen.items():
        for memory in MEMORIES:
            chosen_fields = {**SIZE, **fields, "optimizer.state_memory": memory}
            answer = planner.ask(planner.arguments(topology, "train", chosen_fields), quiet=True)
            made[f"{name} {memory}"] = planner.needed(answer, topology)
            if given.json:
                given.json.write_text(json.dumps(made, indent=1) + "\n")
    print(planner.heading(next(iter(made.values()))))
    print("\n".join(["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(line, made.values())]))


if __name__ == "__main__":
    main()
