"""Runs the training launcher as a user does, in a process of its own, at a size of seconds; kills it where asked to.

By hand, with more kills than the tests have time for:  python -m tests.launching --kills 6
"""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from data_pipelines.light_scenes import LightScenesConfig, prepare
from tests import forked, xla_flags

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "model.width": 32, "model.heads": 2, "model.layers": 2, "model.ffn": 64, "data.batch": 8, "data.frames": 9,
    "data.height": 32, "data.width": 32, "train.validation_bins": 2, "train.validate_every": 1000,
    "train.preview_every": 0, "train.checkpoint_every": 7, "train.log_every": 5, "optimizer.warmup_steps": 5,
}


def small_data(folder: pathlib.Path) -> str:
    """A data set of 16 clips, 9×32×32; returns its folder, a ``data.source``."""
    scenes = LightScenesConfig(frames=9, height=32, width=32, train=16, validation=8, test=8)
    return str(prepare(folder, config=scenes).data_path)


def command(workdir: pathlib.Path, source: str, cache: pathlib.Path, *, config: str = "light_scenes_tiny",
            **overrides: object) -> list[str]:
    """The launcher's command line for a run of a config cut down to ``SMALL``."""
    values = {**SMALL, "data.source": source, "data.cache_dir": str(cache), **overrides}
    return [sys.executable, "-m", "experiments.train", "--config", str(ROOT / f"configs/{config}.py"),
            "--workdir", str(workdir), *(f"--config.{k}={v}" for k, v in values.items())]


def launch(arguments: list[str]) -> forked.Command:
    """Starts a launcher on one simulated device; it compiles quickly and computes slowly."""
    return forked.Command(arguments, {**os.environ, "XLA_FLAGS": xla_flags.QUICK}, merged=True)


def finish(arguments: list[str]) -> tuple[int, str]:
    """Runs a launcher to its end: exit code and what it printed."""
    process = launch(arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def log(workdir: pathlib.Path, expert: str = "high") -> list[dict[str, float]]:
    """The run's JSON lines; a torn last line is left out."""
    path = workdir / expert / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def final_state(workdir: pathlib.Path, expert: str = "high") -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path."""
    folder = max((workdir / expert / "checkpoints").glob("*"), key=lambda p: int(p.name))
    parts = ocp.load_checkpointables(folder)
    arrays = {name: parts[name] for name in ("params", "ema", "optimizer")}
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}


def wait_for_step(process: forked.Command, workdir: pathlib.Path, step: int) -> None:
    """Returns when the run has logged so many lines, or has ended."""
    while process.poll() is None and len(log(workdir)) < step:
        time.sleep(0.02)


def kill_and_resume(arguments: list[str], workdir: pathlib.Path, steps: int, kills: int, seed: int) -> list[int]:
    """Runs to the end with ``kills`` SIGKILLs at random steps; returns the steps at which they hit."""
    draw, hit = random.Random(seed), []
    while len(hit) < kills:
        done = len(log(workdir))
        target = draw.randint(done + 1, max(done + 1, steps * (len(hit) + 1) // (kills + 1)))
        process = launch(arguments)
        wait_for_step(process, workdir, target)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the run ended by itself before it was killed:\n{output}")
        hit.append(len(log(workdir)))
    code, output = finish(arguments)
    if code:
        raise RuntimeError(f"the last launch failed:\n{output}")
    return hit


def check_same(killed: pathlib.Path, whole: pathlib.Path, steps: int) -> None:
    """Asserts that a killed run's parameters, EMA, optimizer state and log are those of the run that was not."""
    a, b = final_state(killed), final_state(whole)
    assert a.keys() == b.keys()
    different = [name for name in a if not np.array_equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} arrays differ, e.g. {different[:3]}"
    assert log(killed) == log(whole)
    assert [line["step"] for line in log(killed) if "loss" in line] == list(range(1, steps + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        source = small_data(root / "data")
        run = {"train.expert": "high", "train.steps_high": options.steps}
        finish(command(root / "whole", source, root / "cache", **run))
        hit = kill_and_resume(command(root / "killed", source, root / "cache", **run), root / "killed", options.steps,
                              options.kills, options.seed)
        check_same(root / "killed", root / "whole", options.steps)
        print(f"killed at steps {hit} of {options.steps}: {len(final_state(root / 'whole'))} arrays and "
              f"{len(log(root / 'whole'))} log lines are bit-identical to the run that was not killed")


if __name__ == "__main__":
    main()
