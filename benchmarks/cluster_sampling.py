"""Two real processes on one machine sample what one process does: the same latents and pixels, files by one of them,
a process killed or asked to stop and the rest made by the next call.

    python -m benchmarks.cluster_sampling --folder runs/cluster [--result benchmarks/results/cluster_sampling.md]

The launcher samples from a tiny release on four simulated devices: in one process that has all of them, and in two that
have two each and talk through gloo on the loopback. Ends with an error where something does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cluster_processes import DoesNotHold, launch, page, wait  # first: it sets what jax reads at its start

import jax  # isort: skip
import numpy as np

from tests import tiny_release
from wanjax import cluster, generate, partition, video
from wanjax.denoise import Execution
from wanjax.pipeline import open_pipeline
from wanjax.sample_records import SIZES

PROMPTS = ("dawn", "a lamp is lit")
# latent rows that four devices do not divide, and guidance
SETTINGS = {"solver": "unipc", "steps": 4, "shift": 3.0, "guidance_high": 2.0, "guidance_low": 2.0, "frames": 9,
            "height": 48, "width": 32}  # fmt: skip
CASES = {  # checkpoint, options
    "a release, a clip on each process": ("release", ["--mesh=fsdp=2,seq=2", "--batch=2"]),
    "both on one clip, blocks from the host": ("release", ["--mesh=seq=4", "--holding=blocks", "--passes=two"]),
    "a run, heads split too, flicker taken out": ("run", ["--mesh=seq=2,tensor=2", "--holding=one", "--correct"]),
}
LIMIT = 1e-5  # of latents, and of pixels in [-1, 1]
TURNED = 0.1  # of 255, see same_files
CLIPS = 6  # of the calls that are interrupted
STOPPED = 75


class Begun(NamedTuple):
    """A call that is at work: its command, its processes, what they write, and what one wrote that was left alone."""

    command: list[str]
    running: list[subprocess.Popen[bytes]]
    out: pathlib.Path
    logs: pathlib.Path
    whole: pathlib.Path


def sample(checkpoint: pathlib.Path, out: pathlib.Path, prompts: pathlib.Path, options: Sequence[str]) -> list[str]:
    """The launcher's command."""
    return [sys.executable, "-m", "experiments.sample", f"--checkpoint={checkpoint}", f"--prompts={prompts}",
            f"--out={out}", "--text_cache=", *options,
            *(f"--{name}={value}" for name, value in SETTINGS.items())]  # fmt: skip


def made_by(processes: int, folder: pathlib.Path, name: str, command: list[str]) -> None:
    """Runs the command to its end as so many processes."""
    logs = folder / "logs" / f"sample_{name}_{processes}"
    wait(launch(command, processes, logs), logs, [0] * processes)


def same_files(one: pathlib.Path, two: pathlib.Path, what: str) -> str:
    """Compares the folders of two calls: the names, every record, every pixel.

    Hidden is what a process that was killed had begun to write. Rounding may turn a pixel by 1 of 255, after which
    H.264 codes that frame differently: between one process and two, and now and then between two calls of two.
    """
    names = [sorted(path.name for path in folder.glob("[!.]*")) for folder in (one, two)]
    if names[0] != names[1] or not any(name.endswith(".mp4") for name in names[0]):
        raise DoesNotHold(f"{what}: {names[0]} and {names[1]}")
    if (one / "samples.jsonl").read_text() != (two / "samples.jsonl").read_text():
        raise DoesNotHold(f"{what}: samples.jsonl differs")
    clips = [name for name in names[0] if name.endswith(".mp4")]
    apart, equal = 0.0, 0
    for name in clips:
        a, b = (video.read(folder / name) for folder in (one, two))
        if a.metadata != b.metadata or a.frames.std() < 5:
            raise DoesNotHold(f"{what}: {name} has another record, or shows nothing")
        apart = max(apart, float(np.abs(a.frames.astype(int) - b.frames).mean()))
        equal += (one / name).read_bytes() == (two / name).read_bytes()
    if apart > TURNED:
        raise DoesNotHold(f"{what}: pixels of a clip differ by {apart} of 255 on average")
    return (f"{what}: the same records; {equal} of {len(clips)} files byte for byte, pixels of a clip differ by "
            f"{apart:.2g} of 255 on average")


def numbers(release: pathlib.Path, mesh: str, file: pathlib.Path) -> None:
    """Latents and decoded frames, as floats, of the processes that run this; process 0 writes them."""
    sizes = {axis: int(size) for axis, size in (part.split("=") for part in mesh.split(","))}
    opened = open_pipeline(release, mesh=partition.make_mesh(sizes))
    pipeline = dataclasses.replace(opened, **{k: v for k, v in SETTINGS.items() if k in SIZES})
    config = dataclasses.replace(opened.config, **{k: v for k, v in SETTINGS.items() if k not in SIZES})
    requests = [generate.Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    latents = list(generate.latents(pipeline, requests, config=config, execution=Execution(batch=2)))
    params = {"params": partition.put(pipeline.vae_params, partition.replicated(pipeline.vae.mesh))}
    frames = [partition.to_host(chunk) for one in latents for chunk in pipeline.vae.stream(params, one[None])]
    if jax.process_index() == 0:
        np.savez(file, latents=np.stack(latents), frames=np.concatenate(frames, axis=1))


def same_numbers(folder: pathlib.Path, release: pathlib.Path, mesh: str) -> str:
    found = []
    for processes in (1, 2):
        file = folder / f"sampled_by_{processes}.npz"
        worker = [sys.executable, "-m", "benchmarks.cluster_sampling", f"--folder={folder}", f"--numbers={file}",
                  f"--release={release}", f"--mesh={mesh}"]  # fmt: skip
        made_by(processes, folder, "numbers", worker)
        with np.load(file) as arrays:
            found.append(dict(arrays))
    off = {name: float(np.abs(found[0][name] - found[1][name]).max()) for name in found[0]}
    if max(off.values()) > LIMIT:
        raise DoesNotHold(f"{mesh}: {off}, expected {LIMIT} at most")
    return f"mesh {mesh}, largest difference: " + ", ".join(f"{name} {value:.1e}" for name, value in off.items())


def begun(folder: pathlib.Path, release: pathlib.Path, name: str, *options: str) -> Begun:
    """A call of two processes that has finished its first clip and not its last; one that was left alone is there."""
    whole, out, logs = folder / "sampled_whole", folder / f"sampled_{name}", folder / "logs" / f"sample_{name}"
    prompts = write_prompts(folder / "many.txt", [f"dawn of day {i}" for i in range(CLIPS)])
    options = ("--mesh=seq=4", *options)
    if not whole.exists():
        made_by(2, folder, "whole", sample(release, whole, prompts, options))
    command = sample(release, out, prompts, options)
    running = launch(command, 2, logs)
    while not (out / "samples.jsonl").exists():
        if any(process.poll() is not None for process in running):
            raise DoesNotHold(f"a process ended too early: see {logs}")
        time.sleep(0.02)
    return Begun(command, running, out, logs, whole)


def gone_on(folder: pathlib.Path, call: Begun, name: str) -> tuple[int, str]:
    """Calls again what was interrupted: how many clips were there, and that the rest is as in one call."""
    kept = {path: path.stat().st_mtime_ns for path in call.out.glob("clip_*.mp4")}
    records = len((call.out / "samples.jsonl").read_text().splitlines())
    if not 0 < records <= len(kept) < CLIPS:
        raise DoesNotHold(f"{len(kept)} clips and {records} records were there when it was interrupted")
    made_by(2, folder, f"again_{name}", call.command)
    if changed := [path.name for path, when in kept.items() if path.stat().st_mtime_ns != when]:
        raise DoesNotHold(f"finished clips were made again: {changed}")
    return len(kept), same_files(call.whole, call.out, "made by two calls, and by one")


def kill(folder: pathlib.Path, release: pathlib.Path, victim: int) -> list[str]:
    """Kills one of two after the first clip; the other names it, and the next call makes what is missing."""
    call = begun(folder, release, f"killed_{victim}", "--holding=both")
    killed, other = call.running[victim], call.running[1 - victim]
    killed.kill()
    began = time.monotonic()
    code = other.wait()
    took = time.monotonic() - began
    killed.wait()
    lost = f"process {victim} (host {socket.gethostname()}, pid {killed.pid})"
    if f" ends: {lost}" not in (call.logs / f"{1 - victim}.log").read_text(errors="replace") or took > 60 or not code:
        raise DoesNotHold(f"process {1 - victim} ended after {took:.0f} s with {code}: see {call.logs}")
    kept, same = gone_on(folder, call, f"killed_{victim}")
    return [f"process {victim} killed after clip {kept} of {CLIPS}: the other ended within {took:.1f} s naming it, "
            f"exit code {code}", same]  # fmt: skip


def stop(folder: pathlib.Path, release: pathlib.Path) -> list[str]:
    """Asks one of two to stop after the first group of clips; both end, and the next call makes what is missing."""
    call = begun(folder, release, "stopped", "--holding=one", "--group=2", f"--stopped_code={STOPPED}")
    call.running[1].terminate()
    wait(call.running, call.logs, [STOPPED] * 2)
    said = re.search(r"stopped after step \d+ of \d+", (call.logs / "0.log").read_text(errors="replace"))
    if not said:
        raise DoesNotHold(f"it does not say where it stopped: see {call.logs}")
    kept, same = gone_on(folder, call, "stopped")
    return [f"SIGTERM to process 1 after clip {kept} of {CLIPS}, one expert at a time and two clips in a group: both "
            f"{said[0]}, exit code {STOPPED}", same]  # fmt: skip


def write_prompts(file: pathlib.Path, prompts: Sequence[str]) -> pathlib.Path:
    file.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return file


def disagree(folder: pathlib.Path, release: pathlib.Path, prompts: pathlib.Path) -> str:
    """One of two is told another number of steps."""
    logs, out = folder / "logs" / "sample_disagree", folder / "sampled_disagree"
    command = sample(release, out, prompts, ["--mesh=seq=4"])
    running = launch(command, 2, logs, own={1: ["--steps=5"]})
    wait(running, logs, [1, 1])
    said = (logs / "0.log").read_text()
    if "--steps: 4 on process 0; 5 on process 1" not in said or out.exists():
        raise DoesNotHold(f"what differs was not named: see {logs}")
    return "one told another number of steps: both end with exit code 1, naming it, and nothing is written"


def prove(folder: pathlib.Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sampled_*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.rmtree(folder / "logs", ignore_errors=True)
    for name in ("release", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    release = tiny_release.write_release(folder / "release")
    tiny_release.write_run(folder / "run")
    prompts = write_prompts(folder / "prompts.txt", PROMPTS)
    lines = [same_numbers(folder, release, mesh) for mesh in ("fsdp=2,seq=2", "seq=4")]
    for i, (what, (checkpoint, options)) in enumerate(CASES.items()):
        outs = []
        for processes in (1, 2):
            outs.append(folder / f"sampled_{i}_{processes}")
            made_by(processes, folder, str(i), sample(folder / checkpoint, outs[-1], prompts, options))
        lines.append(same_files(*outs, what))
    lines.append(disagree(folder, release, prompts))
    for victim in (1, 0):
        lines += kill(folder, release, victim)
    lines += stop(folder, release)
    return page([
        "`python -m benchmarks.cluster_sampling`: a tiny release and a tiny run of two experts, "
        f"{json.dumps({**SETTINGS, 'prompts': len(PROMPTS)})},",
        "four simulated devices: of one process, and of two with two each, over gloo on the loopback.",
    ], lines)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--result", type=pathlib.Path)
    for name, kind in (("numbers", pathlib.Path), ("release", pathlib.Path), ("mesh", str), ("coordinator", str),
                       ("processes", int), ("process", int)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.numbers:
        cluster.start(options.coordinator, options.processes, options.process)
        numbers(options.release, options.mesh, options.numbers)
        return
    text = prove(options.folder.absolute() / "sampling")
    print(text)
    if options.result:
        options.result.write_text(text)


if __name__ == "__main__":
    main()
