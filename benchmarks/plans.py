"""The A14B pair on TPUs and GPUs that are not there: plans by their compilers, and what making each plan took.

    python benchmarks/plans.py [--only v5p] [--again] [--idle] [--list]

Runs ``experiments.plan`` (with the compilers that ``make plans`` installs; seconds to minutes each) for every case
below, keeps the answers in benchmarks/results/plans.jsonl, a line per case, and writes from all that are there the
tables of benchmarks/results/plan.md and of docs/scaling.md. A case whose line answers the same question, with the same
compilers, is not made again, so that an interrupted run is gone on with. Nothing is run on any of these machines, and
none has ever been.
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
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import planner
from benchmarks.planner import ROOT
from wanjax import topology
from wanjax.plan import versions
from wanjax.plan_table import limit
from wanjax.source_digest import source_digest

LINES, PAGE = ROOT / "benchmarks/results/plans.jsonl", ROOT / "benchmarks/results/plan.md"
DOCS = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- plans: written by benchmarks/plans.py -->", "<!-- end of plans -->"
# resolution -> fields of the config; both have 81 frames
SIZES = {"480p": {"data.height": 480, "data.width": 832}, "720p": {"data.height": 720, "data.width": 1280}}
ON_DEVICE = {"model.remat": "attention", "model.chunk_tokens": 0}  # nothing on the hosts, all tokens at once
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
    fields: of the config beside.
    """

    topology: str
    program: str
    size: str
    mesh: dict[str, int]
    clips: int = 0
    options: tuple[str, ...] = ()
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        named = {**self.mesh, **{name.split(".")[-1]: value for name, value in self.fields.items()}}
        return f"{self.program} {self.size} {self.topology} {','.join(f'{k}={v}' for k, v in named.items())}"

    @property
    def arguments(self) -> list[str]:
        fields: dict[str, Any] = {**SIZES[self.size], **self.fields}
        fields |= {f"mesh.{axis}": size for axis, size in self.mesh.items()}
        if self.program == "train":
            fields |= {"data.batch": self.clips}
        return planner.arguments(self.topology, self.program, fields, self.options)


CASES = (
    # the four of the planner's own limits
    Case("v5p:4x4x4", "train", "720p", {"fsdp": 16, "seq": 4}, 16),
    Case("v6e:16x16", "train", "720p", {"fsdp": 32, "seq": 8}, 32),
    Case("tpu7x:4x4x4", "train", "720p", {"fsdp": 32, "seq": 4}, 32),
    Case("h100:8x8", "train", "720p", {"fsdp": 16, "seq": 4}, 16),
    Case("v5p:4x4x4", "train", "720p", {"fsdp": 64, "seq": 1}, 64),
    Case("h100:8x8", "train", "720p", {"fsdp": 16, "seq": 4}, 16, fields=ON_DEVICE),
    Case("v5p:4x4x4", "train", "720p", {"fsdp": 16, "seq": 4}, 16, fields=ON_DEVICE),
    Case("v5p:4x4x4", "train", "480p", {"fsdp": 64, "seq": 1}, 64),
    Case("v6e:16x16", "train", "480p", {"fsdp": 64, "seq": 4}, 64),
    Case("tpu7x:4x4x4", "train", "480p", {"fsdp": 128, "seq": 1}, 128),
    Case("h100:8x8", "train", "480p", {"fsdp": 64, "seq": 1}, 64),
    Case("h100:2x8", "train", "480p", {"fsdp": 4, "seq": 4}, 4),
    *(Case(topology, program, size, {"fsdp": 1, "seq": seq}, options=SAMPLE if program == "sample" else ())
      for program in ("sample", "encode", "decode") for size in SIZES
      for topology, seq in (("v5p:2x2x1", 4), ("v6e:2x4", 8), ("tpu7x:2x2x1", 8), ("h100:1x8", 8))),
)  # fmt: skip


def made(case: Case, *, idle: bool) -> dict[str, Any]:
    """The plan of a case, made in a process of its own, with what that took, ``idle`` of all other work or not; where
    it fails, the process's exit code."""
    answer = planner.ask([*case.arguments, "--no_cache"])
    took = {name: getattr(answer, name) for name in ("wall_seconds", "processor_seconds", "memory_gb")}
    plan = answer.plan or {"failed": answer.code}
    stamp = {"date": datetime.date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
             "idle": idle, "library": source_digest()[:12]}  # fmt: skip
    return {"name": case.name, "size": case.size, "arguments": case.arguments, **stamp, **took, "plan": plan}


def answered(case: Case, line: dict[str, Any] | None) -> bool:
    """Whether a line is the plan of this very question by the compilers that are here."""
    if line is None or "failed" in line["plan"]:
        return False
    here = versions(topology.parse(case.topology).platform)
    return line["arguments"] == case.arguments and line["plan"]["versions"] == here


def known() -> dict[str, dict[str, Any]]:
    """Lines that were kept, by the name of their case."""
    if not LINES.exists():
        return {}
    return {line["name"]: line for line in map(json.loads, LINES.read_text().splitlines())}


def keep(lines: dict[str, dict[str, Any]]) -> None:
    """Writes lines and tables; cases that are no more are dropped."""
    ordered = [lines[case.name] for case in CASES if case.name in lines]
    write(LINES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered))
    write(PAGE, page(ordered))
    write(DOCS, between(DOCS.read_text(), "\n".join(short_table(ordered))))


def write(file: Path, text: str) -> None:
    """Whole or not at all: a run may be stopped at any time."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    os.replace(part, file)


def between(text: str, table: str) -> str:
    """The text with another table between the marks.

    Raises: ValueError: the marks are not there.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{DOCS} has to have the lines {BEGIN!r} and {END!r} once, around the table")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def page(lines: list[dict[str, Any]]) -> str:
    """The tables, as Markdown."""
    good = _good(lines)
    text = ["What `experiments.plan` says of the A14B pair on machines that were not there; `make plans` writes it.",
            "Sizes in GB = 1e9 bytes of one device. Nothing here has run on a TPU or a GPU, and no time was compared",
            "with a run. Seconds are a lower bound by the makers' rates, per clip. docs/scaling.md explains them.", "",
            *_table(good), "",
            "What making them took, each in a process of its own and without a cache; the limit is that of two idle",
            "cores, 4 GB beside. Memory is the process's largest resident set.", "",
            *_costs(good)]  # fmt: skip
    failed = [f"- {line['name']}: the planner ended with {line['plan']['failed']}"
              for line in lines if "failed" in line["plan"]]  # fmt: skip
    return "\n".join([*text, *(["", *failed] if failed else [])]) + "\n"


def short_table(lines: list[dict[str, Any]]) -> list[str]:
    """What docs/scaling.md shows of the plans."""
    head = ("program", "size", "chips", "mesh", "remat", "clips", "memory, GB", "host, GB", "sent, GB", "executed",
            "s/clip", "MFU ≤")  # fmt: skip
    rows = []
    for line in _good(lines):
        plan = line["plan"]
        fits = "" if plan["fits"] else ", does not fit"
        memory = f"{plan['peak_bytes_per_device'] / 1e9:.1f} of {plan['hbm_bytes_per_device'] / 1e9:.1f}{fits}"
        rows.append((plan["program"], line["size"], plan["topology"], _axes(plan), _remat(plan), plan["clips"],
                     memory, _gb(plan["host_bytes"], 1), _gb(plan["collective_bytes"], 1), _executed(plan),
                     *_bound(plan)))
    return _markdown(head, rows)


def _good(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "failed" not in line["plan"]]


def _table(lines: list[dict[str, Any]]) -> list[str]:
    head = ("program", "size", "machine", "mesh", "remat", "clips", "fits", "peak", "of", "arguments", "temporary",
            "host", "sent", "least", "executed", "s/clip", "MFU ≤", "limited by")  # fmt: skip
    rows = []
    for line in lines:
        plan = line["plan"]
        rows.append((plan["program"], line["size"], plan["topology"], _axes(plan), _remat(plan), plan["clips"],
                     "yes" if plan["fits"] else "no",
                     *(_gb(plan[name]) for name in ("peak_bytes_per_device", "hbm_bytes_per_device", "argument_bytes",
                                                    "temp_bytes", "host_bytes", "collective_bytes",
                                                    "minimum_collective_bytes")),
                     _executed(plan), *_bound(plan), limit(plan)))  # fmt: skip
    return _markdown(head, rows)


def _costs(lines: list[dict[str, Any]]) -> list[str]:
    head = ("plan", "processor, s", "wall, s", "cores", "memory, GB", "limit, s", "versions", "date")
    rows = []
    for line in lines:
        plan = line["plan"]
        most = LIMITS[topology.parse(plan["topology"]).platform] * 60
        by = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
        slow = " (too long)" if line["idle"] and line["wall_seconds"] > most else ""
        large = "" if line["memory_gb"] <= MOST_MEMORY else " (too much)"
        rows.append((line["name"], line["processor_seconds"], f"{line['wall_seconds']}{slow}",
                     "idle" if line["idle"] else "shared", f"{line['memory_gb']}{large}", f"{most:.0f}", by,
                     line["date"]))  # fmt: skip
    return _markdown(head, rows)


def _axes(plan: dict[str, Any]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one"


def _remat(plan: dict[str, Any]) -> str:
    """Policy of training, and tokens of a device at a time where these are not all."""
    if plan["program"] != "train":
        return "–"
    model = plan["experiment"]["model"]
    return f"{model['remat']}, {model['chunk_tokens']:,}" if model["chunk_tokens"] else model["remat"]


def _executed(plan: dict[str, Any]) -> str:
    return f"{plan['executed_flops'] / plan['flops_per_step']:.2f} ×" if plan["executed_flops"] else "–"


def _bound(plan: dict[str, Any]) -> tuple[str, str]:
    """Seconds of one clip at least, and MFU at most."""
    estimate = plan["estimate"]
    return (f"{estimate['step_seconds'] / plan['clips']:.3g}", f"{estimate['mfu']:.0%}") if estimate else ("–", "–")


def _gb(size: int | None, digits: int = 2) -> str:
    return "–" if size is None else f"{size / 1e9:.{digits}f}" if size else "0"


def _markdown(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this regular expression in it")
    parser.add_argument("--again", action="store_true", help="make those, too, that are there")
    parser.add_argument("--idle", action="store_true", help="say in the lines that nothing else ran: wall time counts")
    parser.add_argument("--list", action="store_true", help="say what would be planned")
    given = parser.parse_args()
    lines = known()
    left = [case for case in CASES if re.search(given.only, case.name)
            and (given.again or not answered(case, lines.get(case.name)))]  # fmt: skip
    failed = 0
    for number, case in enumerate(left, start=1):
        print(f"== {number} of {len(left)}: {case.name}", flush=True)
        if not given.list:
            line = made(case, idle=given.idle)
            failed += "failed" in line["plan"]
            keep({**known(), case.name: line})
    if not given.list:
        keep(known())
    old = sum(line["library"] != source_digest()[:12] for line in known().values())
    print(f"{len(known())} of {len(CASES)} cases are there" + (
        f"; {old} of them are of another state of this library, which --again makes anew" if old else ""))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
