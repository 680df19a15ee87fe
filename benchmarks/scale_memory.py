"""What training and sampling an A14B expert at 1280 × 720 × 81 take of pods that are not there, beside their targets.

    python benchmarks/scale_memory.py --json scale_memory.json
    python benchmarks/scale_memory.py --peer CHECKOUT --peer_python VENV/bin/python

Compiles (``pip install "wanjax[tpu]"``; minutes each) the launchers' own programs of configs/t2v_a14b.py and reads all
figures off what the compiler made; nothing is run. The moving average of the weights is off, as in what it is compared
with; what it adds is a line of its own.

The peer is MaxDiffusion. Its lines are quoted, as they were measured with its commit 7cfb8801 and the same compiler,
unless ``--peer`` names a checkout of it: then its own programs are compiled, too, which takes an interpreter with all
that they need; ``scale_memory_peer.py`` says how.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import planner

SIZE = {"data.height": 720, "data.width": 1280, "data.frames": 81}
POD = {**SIZE, "optimizer.ema_decay": 0.0}
# one forward pass: no guidance; nothing waits for a backward pass
FORWARD = {**SIZE, "mesh.fsdp": 1, "model.remat": "full", "model.chunk_tokens": 2048, "sample.guidance_high": 1.0}
LAYERS = HEADS = 40
# of the peer, fields of its config beside those of a case: with its default attention, and where tokens are shared also
# with the one that turns them to heads
PEER_WAYS = {"a": ("", "attention=ulysses"), "b": ("",), "d_v6e": ("", "attention=ulysses"),
             "d_v5p": ("", "attention=ulysses")}  # fmt: skip
PEER_MODEL = "src/maxdiffusion/models/wan/transformers/transformer_wan.py"
SELF, BOTH, EXECUTED = "self-attention forwards", "forwards of both attentions", "FLOPs executed / model"


@dataclasses.dataclass(frozen=True)
class Case:
    """Attributes:
    title, topology, program: what is compiled.
    overrides: of the config.
    limits: by figure, GB per chip; FLOPs as a multiple of the model's.
    peer: the peer's line: figures in the order of :data:`COLUMNS`, empty where there is none.
    """

    title: str
    topology: str
    program: str
    overrides: dict[str, Any]
    limits: dict[str, float]
    peer: tuple[str, ...] = ()


COLUMNS = ("state", "temp", "HBM", "host", "wire", SELF, BOTH, EXECUTED)
CASES = {
    "a": Case("a clip per 4 chips, fsdp 16 × seq 4", "v5p:4x4x4", "train",
              {**POD, "mesh.fsdp": 16, "mesh.seq": 4, "data.batch": 16},
              {"HBM": 12.2, "host": 16, "wire": 158, SELF: LAYERS, EXECUTED: 1.25},
              ("1.4", "19.0", "20.4", "0", "632", "", "160", "")),
    "a_ema": Case("the same with its moving average", "v5p:4x4x4", "train",
                  {**SIZE, "mesh.fsdp": 16, "mesh.seq": 4, "data.batch": 16}, {}),
    "b": Case("a clip per chip, fsdp 64", "v5p:4x4x4", "train", {**POD, "mesh.fsdp": 64, "data.batch": 64},
              {"HBM": 26, "host": 63, "wire": 90, SELF: LAYERS, EXECUTED: 1.25},
              ("1.4", "24.6", "26.1", "94.0", "192", "", "82", "")),
    "d_v6e": Case("one forward, seq 8", "v6e:2x4", "sample", {**FORWARD, "mesh.seq": 8}, {"temp": 0.97, "wire": 42.5},
                  ("3.66", "2.43", "6.09", "0", "85", "", "", "")),
    "d_v5p": Case("one forward, seq 4", "v5p:2x2x1", "sample", {**FORWARD, "mesh.seq": 4}, {"temp": 1.46, "wire": 46},
                  ("7.29", "2.92", "10.21", "0", "61", "", "", "")),
}  # fmt: skip


def planned(name: str) -> dict[str, Any]:
    """The plan of a case, made anew, with the processor time that this took."""
    case = CASES[name]
    options = ["--no_cache", *(["--param_dtype", "bfloat16"] if case.program == "sample" else [])]
    answer = planner.ask(planner.arguments(case.topology, case.program, case.overrides, options), quiet=True)
    return {**planner.needed(answer, name), "processor_seconds": round(answer.processor_seconds)}


def figures(made: dict[str, Any]) -> dict[str, float]:
    """By column, GB of one chip; runs of a kernel count as the share that they are of a chip's heads and tokens."""
    forwards = {SELF: 0.0, BOTH: 0.0}
    whole = made["clips"] * HEADS * made["tokens"] / made["devices"]
    for kernel in made["attention_kernels"]:
        if kernel["way"] == "forward":
            share = kernel["count"] * kernel["heads"] * kernel["queries"] / whole
            forwards[BOTH] += share
            forwards[SELF] += share if kernel["keys"] >= made["tokens"] else 0
    return {
        "state": made["argument_bytes"] / 1e9,
        "temp": made["temp_bytes"] / 1e9,
        "HBM": made["peak_bytes_per_device"] / 1e9,
        "host": made["host_bytes"] / 1e9,
        "wire": made["collective_bytes"] / 1e9,
        **{name: round(share) for name, share in forwards.items()},  # kernels work on whole blocks of tokens
        **({EXECUTED: made["executed_flops"] / made["flops_per_step"]} if made["executed_flops"] else {}),
    }


def line(title: str, of: str, values: list[str]) -> str:
    return "| " + " | ".join([title, of, *values]) + " |"


def ratios(found: dict[str, float], other: dict[str, float]) -> list[str]:
    """Ours by the peer's, where both have a figure; numbers of kernels are no sizes."""
    return [f"{found[column] / other[column]:.2f}" if other.get(column) and column not in (SELF, BOTH) else ""
            for column in COLUMNS]  # fmt: skip


def table(made: dict[str, dict[str, Any]], peers: dict[str, dict[str, dict[str, Any] | None]]) -> str:
    """Markdown; ``peers``: what ``scale_memory_peer.py`` gave, by case and field of the peer's config, if it did."""
    out = ["| what | of | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 2)]
    for name, plan_ in made.items():
        case, found = CASES[name], figures(plan_)
        out.append(line(f"{case.topology}, {case.title}", "wanjax", [f"{found[column]:.4g}" for column in COLUMNS]))
        if case.limits:
            limits = [f"≤ {case.limits[column]:g}" if column in case.limits else "" for column in COLUMNS]
            out.append(line("", "target", limits))
        for way, theirs in peers.get(name, {}).items():
            if theirs is None:
                out.append(line("", f"peer {way}".strip(), ["not compiled", *[""] * (len(COLUMNS) - 1)]))
                continue
            other = figures({**theirs, "flops_per_step": plan_["flops_per_step"]})
            shown = [f"{other[column]:.4g}" if column in other else "" for column in COLUMNS]
            out.append(line("", " ".join(("peer at", theirs["commit"][:8], way)).strip(), shown))
            out.append(line("", "wanjax / peer", ratios(found, other)))
        if case.peer and not any(peers.get(name, {}).values()):
            out.append(line("", "peer, quoted", list(case.peer)))
    return "\n".join(out)


def missed(made: dict[str, dict[str, Any]]) -> list[str]:
    """Targets that are not met, each in a sentence."""
    return [f"{name}: {column} is {figures(plan_)[column]:.4g}, the target is {most:g}"
            for name, plan_ in made.items() for column, most in CASES[name].limits.items()
            if figures(plan_)[column] > most]  # fmt: skip


def printed(command: list[str], name: str) -> dict[str, Any] | None:
    """The JSON in the last line of what the peer's process prints; None where its program was not compiled."""
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        print(f"{name} could not be compiled; the reason stands above", file=sys.stderr, flush=True)
        return None
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="some of these, with commas between")
    parser.add_argument("--json", type=Path, default=None, help="receives the plans, case by case as they are made")
    parser.add_argument("--peer", type=Path, help="folder with a checkout of MaxDiffusion, to be compiled beside")
    parser.add_argument("--peer_python", type=Path, help="interpreter with what it needs; this one without")
    given = parser.parse_args()
    names = given.cases.split(",")
    if unknown := sorted(set(names) - CASES.keys()):
        parser.error(f"--cases {','.join(unknown)}: expected some of {', '.join(CASES)}")
    if given.peer_python and not given.peer:
        parser.error("--peer_python is of --peer FOLDER: give that, too")
    if given.peer and not (given.peer / PEER_MODEL).is_file():
        parser.error(f"--peer {given.peer}: expected a checkout of MaxDiffusion, with {PEER_MODEL}")
    made: dict[str, dict[str, Any]] = {}
    peers: dict[str, dict[str, dict[str, Any] | None]] = {}
    for name in names:
        made[name] = planned(name)
        for way in PEER_WAYS.get(name, ()) if given.peer else ():
            beside = Path(__file__).with_name("scale_memory_peer.py")
            command = [given.peer_python or sys.executable, beside, given.peer, name, *way.split()]
            peers.setdefault(name, {})[way] = printed([str(word) for word in command], f"the peer's {name} {way}")
        if given.json:
            given.json.write_text(json.dumps({**made, **({"peer": peers} if peers else {})}, indent=1) + "\n")
    print(planner.heading(next(iter(made.values()))))
    print(table(made, peers))
    print("\n".join(missed(made)) or "all targets are met")


if __name__ == "__main__":
    main()
