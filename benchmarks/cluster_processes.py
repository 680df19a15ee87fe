"""Four real processes on one machine against one: the same numbers, a process killed, a request to stop, a resume.

    python -m benchmarks.cluster_processes --folder runs/cluster [--result benchmarks/results/cluster_processes.md]

The launcher trains a tiny config on a mesh of four simulated devices, fsdp 2 x seq 2: in one process that has all of
them, and in four that have one each and talk through gloo on the loopback. Every phase is kept in the folder, and what
is there is not done again. Ends with an error where something does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")  # a process that it starts is told
# two cores run four processes: a second step in flight would take the cores from the first one's collectives
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests import launching
from wanjax import cluster, config, partition
from wanjax.checkpoint import Checkpoints
from wanjax.models.dit import WanDiT
from wanjax.train import make_optimizer, state_shapes

EXPERT, DEVICES = "high", 4
STEPS = 60
OVERRIDES = {"train.expert": EXPERT, "train.steps_high": STEPS, "train.keep": 1000, "mesh.fsdp": 2, "mesh.seq": 2,
             "optimizer.warmup_steps": 5}  # fmt: skip
LIMITS = {"params": 1e-6, "ema": 1e-6, "moments": 1e-4}


class DoesNotHold(SystemExit):
    """What was promised is not so."""


def launch(
    arguments: Sequence[str], processes: int, logs: pathlib.Path, own: Mapping[int, Sequence[str]] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Starts a command as one process that has all devices, or as several that share them.

    Args:
        own: process -> what it alone is told besides.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}"}
    out = []
    for i in range(processes):
        place = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"]
        with (logs / f"{i}.log").open("ab") as log:
            told = [*arguments, *(place if processes > 1 else []), *(own or {}).get(i, ())]
            out.append(subprocess.Popen(told, cwd=launching.ROOT, env=environment, stdout=log,
                                        stderr=subprocess.STDOUT))  # fmt: skip
    return out


def wait(running: Sequence[subprocess.Popen[bytes]], logs: pathlib.Path, codes: Sequence[int]) -> None:
    found = [process.wait() for process in running]
    if found != list(codes):
        tails = "\n".join(f"{file}:\n{file.read_text(errors='replace')[-2000:]}" for file in sorted(logs.iterdir()))
        raise DoesNotHold(f"exit codes {found}, expected {list(codes)}\n{tails}")


def trained(folder: pathlib.Path, name: str, processes: int, step: int, every: int) -> pathlib.Path:
    """A run's workdir, trained with a checkpoint every so many steps until that of a step is there, and then killed."""
    workdir, logs = folder / name, folder / "logs" / name
    if step not in saved(workdir):
        running = launch(train(folder, workdir, every), processes, logs)
        reach(running, workdir, lambda: step in saved(workdir))
        for process in running:
            process.kill()
            process.wait()
    return workdir


def train(folder: pathlib.Path, workdir: pathlib.Path, every: int) -> list[str]:
    """The launcher's command."""
    own = {**OVERRIDES, "train.checkpoint_every": every}
    return launching.command(workdir, launching.small_data(folder / "data"), folder / "cache", **own)


def reach(running: Sequence[subprocess.Popen[bytes]], workdir: pathlib.Path, there: Callable[[], bool]) -> None:
    """Waits until something is there that the processes of a run make."""
    while not there():
        if any(process.poll() is not None for process in running):
            raise DoesNotHold(f"a process of {workdir} ended too early: see its log")
        time.sleep(0.05)


def checkpoints(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / EXPERT / "checkpoints"


def saved(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that are whole; orbax gives a folder its name when it is."""
    return sorted(int(path.name) for path in checkpoints(workdir).glob("*") if path.name.isdigit())


def only(workdir: pathlib.Path, step: int, target: pathlib.Path) -> pathlib.Path:
    """A copy of a run that ends at a step."""
    if not target.exists():
        (checkpoints(target)).mkdir(parents=True)
        shutil.copy(workdir / "config.json", target)
        shutil.copytree(checkpoints(workdir) / str(step), checkpoints(target) / str(step))
    return target


def restored(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest state, as the processes that run this restore it over their mesh."""
    experiment = config.from_dict(config.completed(json.loads((workdir / "config.json").read_text())))
    asked = dataclasses.asdict(experiment.mesh).values()
    devices = jax.devices()[: None if -1 in asked else math.prod(asked)]
    mesh = partition.make_mesh(experiment.mesh.sizes(len(devices)), devices)
    model = WanDiT(experiment.model, mesh)
    shapes = state_shapes(model, make_optimizer(experiment.optimizer, experiment.train.steps(EXPERT), model), mesh)
    with Checkpoints(checkpoints(workdir), experiment=experiment, expert=EXPERT, keep=1000) as kept:
        found = kept.restore(shapes)
    assert found is not None
    state, position = found
    whole = multihost_utils.process_allgather(state, tiled=True) if jax.process_count() > 1 else state
    out = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}
    return {**out, "position": np.asarray(json.dumps(position, sort_keys=True, default=str))}


def at(folder: pathlib.Path, workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """The state of a step, restored by one process."""
    return restored(only(workdir, step, folder / "steps" / f"{workdir.name}_{step}"))


def read_by(processes: int, folder: pathlib.Path, workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """The state of a step, restored by so many processes and gathered."""
    target, logs = folder / "steps" / f"{workdir.name}_{step}_by_{processes}", folder / "logs" / f"read_{processes}"
    if (target / "state.npz").exists():
        with np.load(target / "state.npz") as arrays:
            return dict(arrays)
    only(workdir, step, target)
    command = [sys.executable, "-m", "benchmarks.cluster_processes", f"--read={target}", f"--folder={folder}"]
    wait(launch(command, processes, logs), logs, [0] * processes)
    with np.load(target / "state.npz") as arrays:
        return dict(arrays)


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Of each part of the state: |b - a| / |a| over all of it, and that of the worst tensor."""
    out = {}
    for part, starts in (("params", ".params"), ("ema", ".ema"), ("moments", ".opt_state")):
        names = [name for name in a if name.startswith(starts) and np.issubdtype(a[name].dtype, np.floating)]
        off = {name: float(np.linalg.norm(np.float64(b[name]) - a[name])) for name in names}
        size = {name: float(np.linalg.norm(np.float64(a[name]))) for name in names}
        whole = np.linalg.norm(list(off.values())) / np.linalg.norm(list(size.values()))
        out[part] = float(whole), max(off[name] / size[name] for name in names if size[name])
    return out


def check_close(a: dict[str, np.ndarray], b: dict[str, np.ndarray], what: str, rows: list[str]) -> None:
    found = differences(a, b)
    rows.append(f"| {what} | " + " | ".join(f"{whole:.1e} ({worst:.1e})" for whole, worst in found.values()) + " |")
    wrong = [part for part, (whole, _) in found.items() if whole > LIMITS[part]]
    if wrong:
        raise DoesNotHold(f"{what}: {', '.join(wrong)} differ too much: {found}")


def check_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], what: str) -> str:
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    if different or a.keys() != b.keys():
        raise DoesNotHold(f"{what}: {len(different)} of {len(a)} arrays differ, e.g. {different[:3]}")
    return f"{what}: {len(a)} arrays bit for bit"


def kill(folder: pathlib.Path, name: str, victim: int) -> str:
    """Kills one of four with SIGKILL a few steps after checkpoint 10, and checks how the others end."""
    workdir, logs = folder / name, folder / "logs" / name
    kept = folder / f"{name}.killed"
    if kept.exists():
        return kept.read_text()
    running = launch(train(folder, workdir, 10), 4, logs)
    reach(running, workdir, lambda: 10 in saved(workdir) and len(launching.log(workdir)) >= 12)
    step = len(launching.log(workdir))
    killed = time.monotonic()
    running[victim].kill()
    took = []
    for i, process in enumerate(running):
        process.wait()
        if i != victim:
            took.append(time.monotonic() - killed)
    lost = f"process {victim} (host {socket.gethostname()}, pid {running[victim].pid})"
    for i in range(4):
        said = [line for line in (logs / f"{i}.log").read_text(errors="replace").splitlines()
                if f" ends: {lost}" in line]  # fmt: skip
        if i != victim and not said:
            raise DoesNotHold(f"process {i} did not name {lost}: see {logs / f'{i}.log'}")
    if max(took) > 60:
        raise DoesNotHold(f"the others ended {max(took):.0f} s after process {victim} was killed")
    codes = [process.returncode for i, process in enumerate(running) if i != victim]
    text = (f"process {victim} killed after step {step}: the others ended within {max(took):.1f} s naming it, "
            f"exit codes {codes}")
    kept.write_text(text)
    return text


def stop(folder: pathlib.Path, name: str, asked: int, step: int) -> tuple[int, str]:
    """Sends SIGTERM to one of four; the step that all saved, and a line about it."""
    workdir, logs = folder / name, folder / "logs" / name
    kept = folder / f"{name}.stopped"
    if not kept.exists():
        running = launch([*train(folder, workdir, 100000), "--stopped_code=75"], 4, logs)
        reach(running, workdir, lambda: len(launching.log(workdir)) >= step)
        sent = time.monotonic()
        running[asked].send_signal(signal.SIGTERM)
        wait(running, logs, [75] * 4)
        took = time.monotonic() - sent
        [last] = saved(workdir)
        logged = [line["step"] for line in launching.log(workdir) if "loss" in line]
        if logged != list(range(1, last + 1)):
            raise DoesNotHold(f"the checkpoint is of step {last}, the log ends with {logged[-3:]}")
        kept.write_text(f"SIGTERM to process {asked} after step {step}: all saved step {last} and ended with exit code "
                        f"75 within {took:.1f} s")
    return saved(workdir)[0], kept.read_text()


def page(about: Sequence[str], found: Sequence[str], *versions: str) -> str:
    """What a proof found on this machine, a line each, below what it is about."""
    made = [datetime.date.today().isoformat(), platform.machine(), f"{os.cpu_count()} cores", f"jax {jax.__version__}"]
    return "\n".join([f"<!-- {', '.join([*made, *versions])} -->", *about, "", *(f"- {line}" for line in found), ""])


def prove(folder: pathlib.Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    lines = []
    one, four = trained(folder, "one", 1, 20, every=10), trained(folder, "four", 4, 20, every=10)
    check_close(at(folder, one, 20), at(folder, four, 20), "4 processes and 1, after 20 steps", rows)
    for victim in (2, 0):
        name = f"killed_{victim}"
        lines.append(kill(folder, name, victim))
        restart = trained(folder, name, 4, 20, every=10)
        lines.append(check_same(at(folder, four, 20), at(folder, restart, 20),
                                "restarted, and never killed, at step 20"))  # fmt: skip
    step, text = stop(folder, "stopped", 1, 5)
    lines.append(text)
    stopped, later = folder / "stopped", step + 20
    trained(folder, "four", 4, later, every=later)
    for processes in (2, 1):
        lines.append(check_same(read_by(4, folder, stopped, step), read_by(processes, folder, stopped, step),
                                f"restored by 4 and by {processes}"))  # fmt: skip
        resumed = only(stopped, step, folder / f"resumed_{processes}")
        trained(folder, resumed.name, processes, later, every=later)
        check_close(at(folder, four, later), at(folder, resumed, later),
                    f"resumed by {processes}, and never stopped by 4, 20 steps later", rows)  # fmt: skip
    return page([
        "`python -m benchmarks.cluster_processes`: `configs/light_scenes_tiny.py` cut down to 2 layers of width 32,",
        "clips of 9×32×32, batch 8, float32, mesh fsdp 2 × seq 2 of four simulated devices. |b − a| / |a| over all",
        "tensors of a part, in brackets of the worst tensor.", "",
        "| | parameters | EMA | moments |", "|---|---|---|---|", *rows,
    ], lines)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--result", type=pathlib.Path)
    parser.add_argument("--read", type=pathlib.Path, help=argparse.SUPPRESS)
    for name, kind in (("coordinator", str), ("processes", int), ("process", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        here = cluster.start(options.coordinator, options.processes, options.process)
        arrays = restored(options.read)
        if here.first:
            np.savez(options.read / "state.npz", **arrays)
        return
    text = prove(options.folder.absolute())
    print(text)
    if options.result:
        options.result.write_text(text)


if __name__ == "__main__":
    main()
