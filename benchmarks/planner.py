"""Asks ``experiments.plan`` about configs/t2v_a14b.py; each plan in a process of its own, as a compiler keeps what it
took."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/t2v_a14b.py"


@dataclasses.dataclass(frozen=True)
class Answer:
    """Attributes:
    plan: None where there is none; the reason stands on standard error.
    code: exit code of the process.
    wall_seconds, processor_seconds, memory_gb: what it took; memory is its largest resident set.
    """

    plan: dict[str, Any] | None
    code: int
    wall_seconds: float
    processor_seconds: float
    memory_gb: float


def arguments(topology: str, program: str, fields: Mapping[str, Any], options: Sequence[str] = ()) -> list[str]:
    """The planner's command line.

    Args:
        topology, program: what is planned.
        fields: of the config, in the place of its own.
        options: of the planner beside.
    """
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", CONFIG, "--program", program, "--topology", topology, *options, *overrides]


def ask(given: Sequence[str], *, quiet: bool = False) -> Answer:
    """Starts the planner and waits for it.

    Args:
        given: its command line.
        quiet: without its table.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "experiments.plan", *given, "--json", str(file)], cwd=ROOT,
                                   env={**os.environ, "JAX_PLATFORMS": "cpu"},
                                   stdout=subprocess.DEVNULL if quiet else None)  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        plan = json.loads(file.read_text()) if file.exists() else None
    return Answer(plan, process.returncode, round(wall, 1), round(used.ru_utime + used.ru_stime, 1),
                  round(used.ru_maxrss * 1024 / 1e9, 2))  # fmt: skip


def needed(answer: Answer, name: str) -> dict[str, Any]:
    """The plan, without which this process ends."""
    if answer.plan is None:
        sys.exit(f"error: {name} could not be planned; the reason stands above")
    return answer.plan


def heading(plan: Mapping[str, Any]) -> str:
    """When, where and with what a plan was made."""
    made = (f"{name} {number}" for name, number in plan["versions"].items())
    return ", ".join([time.strftime("%Y-%m-%d"), platform.machine(), f"{os.cpu_count()} cores", *made])
