"""A full-size expert from the diffusers layout to orbax and back: peak memory, time, and every bit of it.

    python benchmarks/convert_full_size.py --folder SCRATCH                 # 28.6 GB twice, 3 files of them at a time
    python benchmarks/convert_full_size.py --folder SCRATCH --blocks 2      # a try

Writes a synthetic expert of Wan2.2-T2V-A14B (14,288,491,584 parameters in bfloat16, random bits of finite numbers) in
shards, as a released one lies on disk, and runs ``experiments.convert`` on it in processes of their own while their
``RssAnon`` is sampled from ``/proc``: anonymous memory, without the pages of mapped files. The way back has to give
every tensor's bytes again. A plain copy of the same bytes on the same disk is the measure of speed. Linux only.

The disk has to hold the expert twice; with less room as many blocks are written as fit, at least 20, and the result
says how many. Everything in the folder is deleted at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from wanjax import hub_configs
from wanjax.family import MEMBERS
from wanjax.models import rows
from wanjax.models.rows.dit import dit_rows
from wanjax.weight_files import TensorSpec, open_weights, whole, write_weights

ROOT = pathlib.Path(__file__).resolve().parents[1]
FEWEST = 20  # blocks, of a result
SPARE = 3e9  # bytes of the disk that stay free
SAMPLE = 0.05  # seconds between two looks at a process's memory


def expert(blocks: int):
    return dataclasses.replace(MEMBERS["Wan2.2-T2V-A14B"].model, layers=blocks, param_dtype="bfloat16")


def size(blocks: int) -> int:
    return 2 * rows.count(dit_rows(expert(blocks)))


def tensors(blocks: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in the diffusers naming, of random bits with small exponents: no two alike, none infinite."""
    for row in dit_rows(expert(blocks)):
        for name in row.foreign_names():
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
            count = int(np.prod(row.foreign_shape))
            bits = np.frombuffer(rng.bytes(2 * count), np.uint16) & np.uint16(0xBFFF)
            yield name, bits.view(ml_dtypes.bfloat16).reshape(row.foreign_shape)


def write_expert(folder: pathlib.Path, blocks: int) -> None:
    specs = {name: TensorSpec(row.foreign_shape, "bfloat16") for row in dit_rows(expert(blocks))
             for name in row.foreign_names()}  # fmt: skip
    write_weights(folder, specs, tensors(blocks), hub_configs.dit_json(expert(blocks), "diffusers"))


def digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    reader = open_weights(folder)
    return {name: hashlib.sha256(reader.read(name, whole).reshape(-1).view(np.uint8)).hexdigest() for name in reader}


def anonymous(pid: int) -> int:
    """Bytes of a process that no file backs; 0 once it is gone."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def converted(src: pathlib.Path, dst: pathlib.Path, layout: str) -> tuple[float, int]:
    """Seconds of one conversion in a process of its own, and its peak of anonymous memory."""
    command = [sys.executable, "-m", "experiments.convert", "--src", src, "--dst", dst, "--layout", layout]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(SAMPLE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"the conversion to {layout} failed with exit code {code}")
    return time.perf_counter() - start, peak


def copied(src: pathlib.Path, dst: pathlib.Path) -> float:
    start = time.perf_counter()
    shutil.copytree(src, dst)
    os.sync()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="scratch, on the disk to measure")
    parser.add_argument("--blocks", type=int, help="of the expert; default: all 40, or as many as the disk holds twice")
    parser.add_argument("--result", type=pathlib.Path, help="file to write the result to")
    options = parser.parse_args()
    folder: pathlib.Path = options.folder
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: it would be deleted; name another")
    folder.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(folder).free - SPARE
    whole_expert = MEMBERS["Wan2.2-T2V-A14B"].model.layers
    fitting = max((n for n in range(1, whole_expert + 1) if 2 * size(n) < room), default=0)
    blocks = options.blocks or fitting
    if blocks > fitting or (options.blocks is None and blocks < FEWEST):
        raise SystemExit(f"{folder} has room for {fitting} blocks twice: make room, or name fewer with --blocks")
    largest = max(2 * int(np.prod(row.full_shape)) for row in dit_rows(expert(blocks)))
    limit = 1.5 * largest + 1e9
    try:
        write_expert(folder / "diffusers", blocks)
        expected = digests(folder / "diffusers")
        os.sync()
        # the first of the copies may still find pages in memory, so the copy goes first
        copy = copied(folder / "diffusers", folder / "copy")
        shutil.rmtree(folder / "copy")
        out, out_peak = converted(folder / "diffusers", folder / "orbax", "orbax")
        shutil.rmtree(folder / "diffusers")  # the disk holds two copies, not three
        back, back_peak = converted(folder / "orbax", folder / "back", "diffusers")
        found = digests(folder / "back")
        wrong = [name for name in expected if found.get(name) != expected[name]]
        if wrong or found.keys() != expected.keys():
            raise SystemExit(f"{len(wrong)} of {len(expected)} tensors came back otherwise, the first is {wrong[:1]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = [
        f"{rows.count(dit_rows(expert(blocks))):,} parameters ({blocks} of {whole_expert} blocks), bfloat16, "
        f"{size(blocks) / 1e9:.2f} GB; {datetime.date.today().isoformat()}, {os.cpu_count()} cores "
        f"({platform.machine()}), {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory",
        f"largest stacked array {largest / 1e9:.2f} GB; limit of anonymous memory 1.5 x that + 1 GB = "
        f"{limit / 1e9:.2f} GB",
        "",
        "| | seconds | GB/s | of a plain copy | peak RssAnon, GB |",
        "|---|---|---|---|---|",
        f"| plain copy | {copy:.0f} | {size(blocks) / 1e9 / copy:.2f} | 1 | |",
        *(f"| {name} | {seconds:.0f} | {size(blocks) / 1e9 / seconds:.2f} | {copy / seconds:.2f} | {peak / 1e9:.2f} |"
          for name, seconds, peak in (("diffusers to orbax", out, out_peak), ("orbax to diffusers", back, back_peak))),
        "",
        f"All {len(expected)} tensors came back bit for bit (SHA-256 of each).",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if options.result:
        options.result.write_text(text, encoding="utf-8")
    if max(out_peak, back_peak) >= limit:
        raise SystemExit("anonymous memory went over the limit")


if __name__ == "__main__":
    main()
