"""Checkpoints of several real processes on one machine: who writes what, who reads what, damage, a process that dies.

    python -m benchmarks.checkpoint_processes --folder runs/cluster [--result FILE]

Two processes with two simulated devices each, which talk through gloo on the loopback, save a state of 134 MB through
``wanjax.checkpoint.Checkpoints``. It is restored by one, two and four processes on the same and on other meshes; every
shard is compared bit by bit, and what each process writes and reads is counted by the kernel (``/proc/self/io``: bytes
passed to read and write, from the cache or not). Ends with an error where something does not hold. Linux only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
STACK = (8, 1024, 1024)
SPARE = 2e6  # bytes beyond the arrays: descriptions, and modules that are imported meanwhile
DIES, WAITS = 7, 120  # exit code of the process that dies; seconds until processes have to be done


def transferred(kind: str) -> int:
    """Bytes that this process has passed to read (``rchar``) or write (``wchar``)."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)[kind])


def abstract(sizes: dict[str, int]) -> Any:
    """A state of one stacked matrix, its average and moments, over fsdp and tensor, and counts on all devices."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from wanjax import partition, train

    mesh = partition.make_mesh(sizes)
    spec = PartitionSpec(None, *(axis if sizes.get(axis, 1) > 1 else None for axis in ("fsdp", "tensor")))

    def tree() -> Any:
        return {"kernel": jax.ShapeDtypeStruct(STACK, jnp.float32, sharding=NamedSharding(mesh, spec))}

    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=partition.replicated(mesh))
    return train.TrainState(count, tree(), tree(), {"mu": tree(), "nu": tree(), "count": count})


def values(leaf: int, shape: tuple[int, ...], dtype: Any, first: int) -> Any:
    """What a leaf of a state holds, the same in every process."""
    import numpy as np

    rng = np.random.default_rng(100 * first + leaf)
    return rng.standard_normal(shape, np.float32) if shape else np.asarray(first, dtype)


def worker(flags: argparse.Namespace) -> dict[str, Any]:
    """One process of those that save or restore together."""
    import jax
    import numpy as np

    if flags.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{flags.port}", flags.processes, flags.process)
    from wanjax import checkpoint, config

    experiment = config.load(ROOT / "configs/light_scenes_tiny.py")
    shapes = abstract(json.loads(flags.mesh))
    leaves, tree = jax.tree.flatten(shapes)
    folder = flags.folder / "checkpoints"
    if flags.work == "save":
        written = 0
        with checkpoint.Checkpoints(folder, experiment=experiment, expert="high", keep=3) as saved:
            for step in range((saved.latest or 0) + 1, flags.steps + 1):
                whole = [values(i, x.shape, x.dtype, step) for i, x in enumerate(leaves)]
                state = jax.tree.unflatten(tree, [jax.make_array_from_callback(x.shape, x.sharding, w.__getitem__)
                                                  for x, w in zip(leaves, whole, strict=True)])  # fmt: skip
                before = transferred("wchar")
                saved.save(step, state, {"position": step})
                if flags.dies == step and flags.process == 1:
                    os._exit(DIES)  # as if by kill -9, what it has to write not yet on disk
                saved.wait()
                written = transferred("wchar") - before
        return {"written": written}
    with checkpoint.Checkpoints(folder, experiment=experiment, expert="high", keep=3) as saved:
        before = transferred("rchar")
        restored, position = saved.restore(shapes)
        read = transferred("rchar") - before
    step = int(restored.step)
    for i, (array, shape) in enumerate(zip(jax.tree.leaves(restored), leaves, strict=True)):
        whole = values(i, array.shape, array.dtype, step)
        same = all(np.array_equal(np.asarray(s.data), whole[s.index]) for s in array.addressable_shards)
        if not same or not array.sharding.is_equivalent_to(shape.sharding, array.ndim):
            sys.exit(f"error: leaf {i} of step {step} is not what was saved")
    return {"read": read, "step": step, "position": position["position"]}


def together(flags: argparse.Namespace, work: str, processes: int, mesh: dict[str, int], *, steps: int = 0,
             dies: int = 0) -> list[dict[str, Any]]:
    """Runs a work in so many processes, which share four devices, or as many as the mesh has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    devices = 1
    for size in mesh.values():
        devices *= size
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
                   "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}"}  # fmt: skip
    running = []
    for process in range(processes):
        own = {"folder": flags.folder, "work": work, "processes": processes, "process": process, "port": port,
               "mesh": json.dumps(mesh), "steps": steps, "dies": dies}  # fmt: skip
        command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in own.items())]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True))  # fmt: skip
    try:
        if dies:
            if (code := running[1].wait(WAITS)) != DIES:
                sys.exit(f"error: the process that was to die ended with {code}:\n{running[1].stdout.read()}")
            time.sleep(1.0)  # the other goes on with what it has to write
            return []
        outputs = [process.communicate(timeout=WAITS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    if any(process.returncode for process in running):
        sys.exit("error: " + "\n".join(outputs))
    return [json.loads(next(line for line in output.splitlines() if line.startswith("{"))) for output in outputs]


def hold(said: str, true: bool) -> None:
    if not true:
        sys.exit(f"error: does not hold: {said}")
    print(f"holds: {said}", flush=True)


def prove(flags: argparse.Namespace) -> list[str]:
    """All of it; returns the lines of a table."""
    size, lines = 4 * 4 * STACK[0] * STACK[1] * STACK[2], []

    def line(what: str, moved: list[int]) -> None:
        lines.append(f"| {what} | {', '.join(f'{n / 1e6:.1f}' for n in moved)} | {sum(moved) / size:.2f} |")

    four = {"fsdp": 4}
    written = [found["written"] for found in together(flags, "save", 2, four, steps=2)]
    line("2 processes save, fsdp 4", written)
    hold("each of two processes writes its half of the state, and nobody more",
         all(size / 2 <= n <= size / 2 + SPARE for n in written))  # fmt: skip
    for processes, mesh, most in ((1, four, 1.0), (2, four, 0.5), (4, four, 0.25), (1, {"fsdp": 1}, 1.0),
                                  (2, {"fsdp": 8}, 0.5), (2, {"fsdp": 2}, 0.5),
                                  (4, {"fsdp": 2, "tensor": 2}, 0.5)):  # fmt: skip
        found = together(flags, "restore", processes, mesh)
        name = " × ".join(f"{axis} {n}" for axis, n in mesh.items())
        line(f"{processes} restore, {name}", [one["read"] for one in found])
        hold(f"{processes} process(es) on {name} restore the same bits, each reading at most {most} of the state",
             all(one["step"] == one["position"] == 2 and one["read"] <= most * size + SPARE
                 for one in found))  # fmt: skip
    together(flags, "save", 2, four, steps=3, dies=3)
    found = together(flags, "restore", 2, four)
    hold("a process that dies in a save leaves nothing that looks whole: both go on from the one before",
         all(one["step"] == 2 for one in found))  # fmt: skip
    last = flags.folder / "checkpoints/2/params/kernel/c/0/3/0"  # of a device of process 1
    last.write_bytes(last.read_bytes()[:-100])
    found = together(flags, "restore", 2, four)
    hold("what one of the processes cannot read, all pass over: both go on from the one before",
         all(one["step"] == 1 for one in found) and (flags.folder / "unreadable_2").is_dir())  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="scratch")
    parser.add_argument("--result", type=pathlib.Path, help="file that the table is written to")
    parser.add_argument("--work", choices=("save", "restore"), help=argparse.SUPPRESS)
    parser.add_argument("--mesh", help=argparse.SUPPRESS)
    for name in ("processes", "process", "port", "steps", "dies"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        print(json.dumps(worker(flags)), flush=True)
        return
    import jax

    flags.folder = flags.folder.absolute() / "checkpoint_processes"
    shutil.rmtree(flags.folder, ignore_errors=True)
    flags.folder.mkdir(parents=True)
    lines = prove(flags)
    shutil.rmtree(flags.folder)
    text = "\n".join((
        f"<!-- {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} -->",
        "A state of 134 MB, saved by two processes with two devices each. What each process passed to read or write, "
        "in MB, and\nthe sum as a multiple of the state. Every restored shard equals the saved one bit by bit.\n",
        "| | each process, MB | all, of the state |", "|---|---|---|", *lines, ""))  # fmt: skip
    if flags.result:
        flags.result.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
