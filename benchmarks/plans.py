"""The A14B pair on TPUs and GPUs that are not there: plans by their compilers, and what making each plan took.

    python benchmarks/plans.py [--only v5p] [--list]

Runs ``experiments.plan`` (``pip install "wanjax[tpu,cuda12]"``; seconds to minutes each) for every case below, keeps
the answers in benchmarks/results/plans.jsonl, a line per case, and writes the tables of benchmarks/results/plan.md from
all that are there. Nothing is run on any of these machines, and none has ever been.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax.plan_table import limit

ROOT = Path(__file__).resolve().parents[1]
LINES, PAGE = ROOT / "benchmarks/results/plans.jsonl", ROOT / "benchmarks/results/plan.md"
# resolution -> fields of the config; both have 81 frames
SIZES = {"480p": {"data.height": 480, "data.width": 832}, "720p": {"data.height": 720, "data.width": 1280}}
TRAIN = {"model.remat": "attention"}
SAMPLE = ("--param_dtype", "bfloat16", "--passes", "two")
# what making a plan may take on two idle cores: minutes by compiler, and GB
LIMITS = {"tpu": 8.0, "gpu": 1.0}
MOST_MEMORY = 4.0


@dataclasses.dataclass(frozen=True)
class Case:
    """Attributes:
    topology, program: what is planned.
    size: of the clips, a key of :data:`SIZES`.
    mesh: sizes of its axes.
    clips: of a training step.
    options: of ``experiments.plan`` beside.
    """

    topology: str
    program: str
    size: str
    mesh: dict[str, int]
    clips: int = 0
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        axes = ",".join(f"{axis}={size}" for axis, size in self.mesh.items())
        return f"{self.program} {self.size} {self.topology} {axes}"

    @property
    def arguments(self) -> list[str]:
        fields: dict[str, Any] = {**SIZES[self.size], **{f"mesh.{axis}": size for axis, size in self.mesh.items()}}
        if self.program == "train":
            fields |= {**TRAIN, "data.batch": self.clips}
        overrides = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["--config", "configs/t2v_a14b.py", "--program", self.program, "--topology", self.topology,
                *self.options, *overrides]  # fmt: skip


CASES = (
    # the four of the planner's own limits
    Case("v5p:4x4x4", "train", "720p", {"fsdp": 16, "seq": 4}, 16),
    Case("v6e:16x16", "train", "720p", {"fsdp": 32, "seq": 8}, 32),
    Case("tpu7x:4x4x4", "train", "720p", {"fsdp": 32, "seq": 4}, 32),
    Case("h100:8x8", "train", "720p", {"fsdp": 16, "seq": 4}, 16),
    Case("v5p:4x4x4", "train", "480p", {"fsdp": 64, "seq": 1}, 64),
    Case("v6e:16x16", "train", "480p", {"fsdp": 64, "seq": 4}, 64),
    Case("tpu7x:4x4x4", "train", "480p", {"fsdp": 128, "seq": 1}, 128),
    Case("h100:8x8", "train", "480p", {"fsdp": 64, "seq": 1}, 64),
    Case("h100:2x8", "train", "480p", {"fsdp": 4, "seq": 4}, 4),
    *(Case(topology, "sample", size, {"fsdp": 1, "seq": seq}, options=SAMPLE)
      for size in SIZES for topology, seq in (("v5p:2x2x1", 4), ("v6e:2x4", 8), ("tpu7x:2x2x1", 8), ("h100:1x8", 8))),
    *(Case(topology, program, "720p", {"fsdp": 1, "seq": seq})
      for program in ("encode", "decode") for topology, seq in (("v5p:2x2x1", 4), ("h100:1x8", 8))),
)  # fmt: skip


def made(case: Case) -> dict[str, Any]:
    """The plan of a case, made in a process of its own, with what that took; the process's message where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        command = [sys.executable, "-m", "experiments.plan", *case.arguments, "--json", str(file), "--no_cache"]
        started = time.perf_counter()
        process = os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": _path()})
        _, status, used = os.wait4(process, 0)
        took = {"wall_seconds": round(time.perf_counter() - started, 1),
                "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
                "memory_gb": round(used.ru_maxrss * 1024 / 1e9, 2)}  # fmt: skip
        answer = json.loads(file.read_text()) if file.exists() else {"failed": os.waitstatus_to_exitcode(status)}
    stamp = {"date": datetime.date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    return {"name": case.name, "size": case.size, **stamp, **took, "plan": answer}


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def known() -> dict[str, dict[str, Any]]:
    """Lines that were kept, by the name of their case."""
    if not LINES.exists():
        return {}
    return {line["name"]: line for line in map(json.loads, LINES.read_text().splitlines())}


def keep(lines: dict[str, dict[str, Any]]) -> None:
    """Writes lines and page; cases that are no more are dropped."""
    ordered = [lines[case.name] for case in CASES if case.name in lines]
    LINES.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered))
    PAGE.write_text(page(ordered))


def page(lines: list[dict[str, Any]]) -> str:
    """The tables, as Markdown."""
    good = [line for line in lines if "failed" not in line["plan"]]
    text = ["What `experiments.plan` says of the A14B pair on machines that were not there; `make plans` writes it.",
            "Sizes in GB = 1e9 bytes of one device. Nothing here has run on a TPU or a GPU, and no time was compared",
            "with a run. Seconds are a lower bound by the makers' rates, per clip. docs/scaling.md explains them.", "",
            *_table(good), "", "What making them took; the limit is that of two idle cores, 4 GB beside.", "",
            *_costs(good)]  # fmt: skip
    failed = [f"- {line['name']}: the planner ended with {line['plan']['failed']}"
              for line in lines if "failed" in line["plan"]]  # fmt: skip
    return "\n".join([*text, *(["", *failed] if failed else [])]) + "\n"


def _table(lines: list[dict[str, Any]]) -> list[str]:
    head = ("program", "size", "machine", "mesh", "clips", "fits", "peak", "of", "host", "sent", "least", "executed",
            "s/clip", "MFU ≤", "limited by")  # fmt: skip
    rows = []
    for line in lines:
        plan, estimate = line["plan"], line["plan"]["estimate"]
        axes = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one"
        executed = plan["executed_flops"] and plan["executed_flops"] / plan["flops_per_step"]
        rows.append((plan["program"], line["size"], plan["topology"], axes, plan["clips"],
                     "yes" if plan["fits"] else "no",
                     _gb(plan["peak_bytes_per_device"]), _gb(plan["hbm_bytes_per_device"]), _gb(plan["host_bytes"]),
                     _gb(plan["collective_bytes"]), _gb(plan["minimum_collective_bytes"]),
                     "–" if executed is None else f"{executed:.2f} ×",
                     f"{estimate['step_seconds'] / plan['clips']:.3g}" if estimate else "–",
                     f"{estimate['mfu']:.0%}" if estimate else "–", limit(plan)))  # fmt: skip
    return _markdown(head, rows)


def _costs(lines: list[dict[str, Any]]) -> list[str]:
    head = ("plan", "processor, s", "wall, s (cores were shared)", "memory, GB", "limit, s", "versions", "date")
    rows = []
    for line in lines:
        plan = line["plan"]
        most = LIMITS["gpu" if plan["topology"].startswith("h100") else "tpu"] * 60
        versions = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
        over = "" if line["memory_gb"] <= MOST_MEMORY else " (too much)"
        rows.append((line["name"], line["processor_seconds"], line["wall_seconds"], f"{line['memory_gb']}{over}",
                     f"{most:.0f}", versions, line["date"]))  # fmt: skip
    return _markdown(head, rows)


def _gb(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e9:.2f}" if size else "0"


def _markdown(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this regular expression in it")
    parser.add_argument("--list", action="store_true", help="say what would be planned")
    given = parser.parse_args()
    chosen = [case for case in CASES if re.search(given.only, case.name)]
    failed = 0
    for number, case in enumerate(chosen, start=1):
        print(f"== {number} of {len(chosen)}: {case.name}", flush=True)
        if not given.list:
            line = made(case)
            failed += "failed" in line["plan"]
            keep({**known(), case.name: line})
    return min(failed, 1)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
