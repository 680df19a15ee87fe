"""Saving and restoring a state of gigabytes against a plain copy of the same bytes: time, processor time, memory.

    python benchmarks/checkpoint_speed.py --folder SCRATCH                     # 4.3 GB; the disk holds them three times
    python benchmarks/checkpoint_speed.py --folder SCRATCH --devices 8 --layers 2    # a try, on 8 simulated devices

The state is a transformer's with EMA and both moments in float32, random, saved and restored through
``wanjax.checkpoint.Checkpoints`` in processes of their own. Each round, in alternating order: ours, ``cp`` of the
checkpoint's files, and what a program does at least with the same bytes: writing them from memory, or reading them into
memory that it has already. Everything is cold (the page cache is dropped, which takes root; files of the round are
deleted) and everything written has reached the disk (fsync). Ratios are medians over rounds of speeds within a round.
Seconds of a shared machine say little; processor seconds say what the work is. Linux only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WIDTH = 1024
SAMPLE = 0.005  # seconds between two looks at the process's memory
BLOCK = 32 << 20  # bytes of a plain read or write


def anonymous() -> int:
    """Bytes of memory of this process that are no mapped file's."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon")


def cold(folder: pathlib.Path) -> None:
    """Writes what is dirty and drops the page cache."""
    subprocess.run(["sync", "-f", folder], check=True)
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("1\n")


def measured(folder: pathlib.Path, work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, processor seconds of this process and its children, and peak of memory above the start's."""
    cold(folder)
    start, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun, cpu = time.perf_counter(), sum(os.times()[:4])
    more = work() or {}
    seconds, cpu = time.perf_counter() - begun, sum(os.times()[:4]) - cpu
    done.set()
    watcher.join()
    return {"seconds": seconds, "cpu": cpu, "extra": max(peak[0] - start, 0), **more}


def shapes(layers: int, devices: int) -> Any:
    import jax

    from wanjax import config, partition, train
    from wanjax.models.dit import DiTConfig, WanDiT

    mesh = partition.make_mesh({"fsdp": devices}, devices=jax.devices()[:devices])
    model = WanDiT(DiTConfig(width=WIDTH, heads=8, layers=layers, ffn=4 * WIDTH), mesh)
    experiment = config.load(ROOT / "configs/light_scenes_tiny.py")
    return train.state_shapes(model, train.make_optimizer(experiment.optimizer, 10, model), mesh), experiment


def opened(folder: pathlib.Path, experiment: Any) -> Any:
    from wanjax import checkpoint

    return checkpoint.Checkpoints(folder, experiment=experiment, expert="high", keep=1)


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)


def digests(state: Any) -> list[int]:
    import jax
    import numpy as np

    return [zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8)) for x in jax.tree.leaves(state)]


def save_rounds(flags: argparse.Namespace) -> dict[str, Any]:
    """All rounds of saving, in this process; the last checkpoint stays for those of restoring."""
    import jax
    import numpy as np

    abstract, experiment = shapes(flags.layers, flags.devices)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jax.device_put(
        rng.random(x.shape, np.float32) if x.dtype == np.float32 else np.ones(x.shape, x.dtype), x.sharding),
        abstract)  # fmt: skip
    jax.block_until_ready(state)
    folder, other = flags.folder / "checkpoints", flags.folder / "other"
    step = [0]

    def ours() -> dict[str, float]:
        begun, cpu = time.perf_counter(), time.thread_time()
        step[0] += 1
        saved.save(step[0], state, {"position": step[0]})
        held, own = time.perf_counter() - begun, time.thread_time() - cpu
        saved.wait()
        subprocess.run(["sync", "-f", folder], check=True)
        return {"held": held, "own": own}

    def plain() -> None:
        other.mkdir()
        for i, leaf in enumerate(jax.tree.leaves(state)):
            for j, shard in enumerate(s.data for s in leaf.addressable_shards if s.replica_id == 0):
                data = memoryview(np.ascontiguousarray(shard).reshape(-1).view(np.uint8))
                with open(other / f"{i}.{j}", "wb", buffering=0) as stream:
                    for begin in range(0, len(data), BLOCK):
                        stream.write(data[begin : begin + BLOCK])
                    os.fsync(stream.fileno())

    rounds = []
    with opened(folder, experiment) as saved:
        ours()  # what copies read in the first round
        works = {"ours": ours, "copy": lambda: copy(folder / str(step[0]), other), "plain": plain}
        for i in range(flags.rounds):
            order = list(works)[i % 3 :] + list(works)[: i % 3]
            found = {}
            for name in order:
                found[name] = measured(flags.folder, works[name])
                shutil.rmtree(other, ignore_errors=True)
            rounds.append(found)
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {"rounds": rounds, "bytes": sum(x.nbytes for x in jax.tree.leaves(state)), "digests": digests(state),
            "largest": max(x.nbytes for x in jax.tree.leaves(state)),
            "stored": sum(p.stat().st_size for p in files), "files": len(files)}  # fmt: skip


def restore_round(flags: argparse.Namespace) -> dict[str, Any]:
    """One round of restoring; in a process of its own, as a restart is."""
    import jax
    import numpy as np

    abstract, experiment = shapes(flags.layers, flags.devices)
    folder, kept, buffer = flags.folder / "checkpoints", [], np.ones(BLOCK, np.uint8)
    (newest,) = (p for p in folder.iterdir() if p.name.isdigit())

    def ours() -> None:
        with opened(folder, experiment) as saved:
            kept.append(jax.block_until_ready(saved.restore(abstract)[0]))

    def plain() -> None:
        for file in newest.rglob("*"):
            if file.is_file():
                with open(file, "rb", buffering=0) as stream:
                    while stream.readinto(buffer):
                        pass

    works = {"ours": ours, "copy": lambda: copy(newest, flags.folder / "other"), "plain": plain}
    order = list(works)[flags.number % 3 :] + list(works)[: flags.number % 3]
    found: dict[str, Any] = {}
    for name in order:
        found[name] = measured(flags.folder, works[name])
        shutil.rmtree(flags.folder / "other", ignore_errors=True)
    found["ours"]["extra"] -= sum(x.nbytes for x in jax.tree.leaves(kept[0]))  # beyond the state itself
    return {"round": found, "digests": digests(kept[0]) if flags.number == 0 else None}


def part(flags: argparse.Namespace, name: str, number: int = 0) -> dict[str, Any]:
    """Runs one part in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={flags.devices}"}  # fmt: skip
    command = [sys.executable, __file__, "--folder", flags.folder, "--devices", flags.devices, "--layers", flags.layers,
               "--rounds", flags.rounds, "--part", name, "--number", number]  # fmt: skip
    command += ["--defaults"] if flags.defaults else []
    done = subprocess.run([str(word) for word in command], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(title: str, rounds: list[dict[str, Any]], size: int) -> list[str]:
    """Medians; the ratio of speeds is that within each round."""
    lines = [f"| {title} | MB/s, median (least–most) | processor s per GB | speed of ours / of it, median (least–most) "
             "| peak extra memory, MB |", "|---|---|---|---|---|"]  # fmt: skip
    for name, words in (("ours", "`Checkpoints`"), ("copy", "`cp`, fsync"), ("plain", "bytes to or from memory")):
        speed = [size / r[name]["seconds"] / 1e6 for r in rounds]
        ratio = [r[name]["seconds"] / r["ours"]["seconds"] for r in rounds]
        cpu = statistics.median(r[name]["cpu"] for r in rounds) / size * 1e9
        extra = f"{max(r[name]['extra'] for r in rounds) / 1e6:.0f}" if name == "ours" else "–"
        of = "–" if name == "ours" else f"{statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f})"
        lines.append(f"| {words} | {statistics.median(speed):.0f} ({min(speed):.0f}–{max(speed):.0f}) | {cpu:.2f} | "
                     f"{of} | {extra} |")  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="scratch; emptied")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--defaults", action="store_true", help="with orbax's options instead of ours, to compare")
    parser.add_argument("--part", choices=("save", "restore"), help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        if flags.defaults:
            from orbax.checkpoint import v1 as ocp

            from wanjax import array_files

            array_files.context = lambda largest=None: ocp.Context()
        print(json.dumps(save_rounds(flags) if flags.part == "save" else restore_round(flags)))
        return
    if not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        sys.exit("error: dropping the page cache (/proc/sys/vm/drop_caches) needs root")
    import jax

    flags.folder = flags.folder.absolute() / "checkpoint_speed"
    shutil.rmtree(flags.folder, ignore_errors=True)
    flags.folder.mkdir(parents=True)
    saved = part(flags, "save")
    restored = [part(flags, "restore", number) for number in range(flags.rounds)]
    if restored[0]["digests"] != saved["digests"]:
        sys.exit("error: what was restored is not what was saved")
    held, own = ([r["ours"][name] for r in saved["rounds"]] for name in ("held", "own"))
    print(f"<!-- {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} -->")
    print(f"A state of {saved['bytes'] / 1e9:.2f} GB on {flags.devices} device(s), the largest array "
          f"{saved['largest'] / 1e6:.0f} MB; {saved['stored'] / 1e9:.2f} GB in {saved['files']} files. {flags.rounds} "
          f"rounds. `save` holds the caller for {statistics.median(held):.3f} s (at most {max(held):.3f}), of which "
          f"{statistics.median(own):.3f} s are processor time of its thread; the rest is written in the background. "
          "Restored bits equal saved ones.\n")  # fmt: skip
    print(*table("saving", saved["rounds"], saved["bytes"]), "", sep="\n")
    print(*table("restoring", [r["round"] for r in restored], saved["bytes"]), sep="\n")
    shutil.rmtree(flags.folder)


if __name__ == "__main__":
    main()
