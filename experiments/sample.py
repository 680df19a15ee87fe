"""Samples clips from prompts, and from images, with a trained run or a released checkpoint.

    python -m experiments.sample --checkpoint runs/demo --prompt "the sun rises" --out clip.mp4
    python -m experiments.sample --checkpoint runs/demo --prompts prompts.jsonl --out runs/demo/samples --batch 8
    python -m experiments.sample --checkpoint Wan2.2-I2V-A14B --image room.png --prompt "the sun rises" --out clip.mp4

A prompt file is .txt (a prompt a line) or .jsonl (an object a line: "prompt", "seed" if it is to be a certain one,
"image" and "last_image", and anything else, which is passed on to samples.jsonl). The output folder receives
clip_000.mp4, clip_001.mp4, ... and samples.jsonl, one record per clip. Every clip's seed and settings are printed and
stored in the file itself, so that it can be made again; clips that are there already, from the same weights and
settings, are kept. Settings that are not given are the checkpoint's own. --correct takes flicker of exposure and colour
out of the clips (docs/correct.md). --lora_high and --lora_low add LoRA files to the experts' weights (docs/lora.md).
How the work is laid out in memory: docs/sampling.md. On several machines every process is started with the same command
by SLURM, Kubernetes or Cloud TPU; by hand each is told --coordinator, --processes and --process (docs/cluster.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags
from tqdm import tqdm

from experiments import processes, sample_flags
from wanjax import (
    generate,
    images,
    lora,
    partition,
    preflight,
    sample_records,
    video,
)
from wanjax.checkpoint import CheckpointError
from wanjax.cluster import Cluster, ClusterError
from wanjax.denoise import Execution, Step
from wanjax.estimate import estimate
from wanjax.generate import Pipeline
from wanjax.heartbeat import Watch
from wanjax.light import correct as corrector
from wanjax.lora_experts import with_loras
from wanjax.pipeline import open_pipeline
from wanjax.prompt_file import Line, read_prompts
from wanjax.run_folder import local_folder
from wanjax.sample_config import SampleConfig
from wanjax.sample_records import SIZES
from wanjax.stop import Stopped, StopRequests

RECORDS = "samples.jsonl"
_OTHER_FILES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".png", ".webm"}  # .mp4: in capitals
ERRORS = (CheckpointError, OSError, ValueError, FloatingPointError)
SETTINGS = tuple(field.name for field in dataclasses.fields(SampleConfig))
KEPT = "finished clips are kept, and the same command makes the others"


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """What is to be made, checked; nothing has been computed or written.

    Attributes:
      pipeline: at the asked size, with LoRAs.
      config: the settings.
      requests, records: of every clip.
      said: about it, for people.
    """

    pipeline: Pipeline
    config: SampleConfig
    requests: list[generate.Request]
    records: list[dict[str, Any]]
    said: list[str]


def sample(
    checkpoint: str,
    lines: Sequence[Line],
    out: str,
    *,
    weights: str = "ema",
    changes: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
    correct: bool = False,
    loras: Mapping[str, str] | None = None,
    lora_mode: str = "into",
    mesh: jax.sharding.Mesh | None = None,
    text_cache: pathlib.Path | None = None,
    cluster: Cluster | None = None,
) -> list[dict[str, Any]]:
    """Makes the clips of `lines` that are not there yet; returns every clip's record.

    Args:
      checkpoint, weights, mesh, text_cache: see `wanjax.pipeline.open_pipeline`.
      lines: what to make.
      out: a folder, or a file ending in .mp4 for one line.
      changes: fields of `SampleConfig` and frames, height, width, fps that replace the checkpoint's own.
      execution: how the work is laid out, see `wanjax.denoise`.
      correct: whether flicker of exposure and colour is taken out, see `wanjax.light.correct`.
      loras: "high" or "low" -> LoRA files that are added to that expert's weights, see `wanjax.lora.parse`.
      lora_mode: "into", merged as the weights are read, or "beside", added at every use, see `wanjax.lora_factors`.
      cluster: the processes whose devices the mesh has, all of which call this; process 0 alone writes and speaks.
    """
    cluster, execution = cluster or Cluster(), execution or Execution()
    if cluster.processes > 1:
        facts = {"--checkpoint": checkpoint, "--out": out, "--weights": weights, "--correct": correct,
                 "--lora_mode": lora_mode, **{f"--lora_{name}": text for name, text in (loras or {}).items()},
                 **{f"--{name}": value for name, value in dataclasses.asdict(execution).items()},
                 **{f"--{name}": value for name, value in (changes or {}).items()},
                 "prompts and seeds": _digest([(line.prompt, line.seed) for line in lines])}  # fmt: skip
        preflight.check_sampling(cluster, facts, mesh)
    targets = cluster.once("output", lambda: _targets(out, len(lines)), ERRORS) or []
    ready = cluster.each("checkpoint", lambda: _prepared(
        checkpoint, lines, weights, changes or {}, correct, loras or {}, lora_mode, mesh, text_cache, execution,
    ), ERRORS)  # fmt: skip
    if cluster.processes > 1:
        first = preflight.flat(ready.records[0]["checkpoint"], "checkpoint")
        cluster.agree("what was opened", {**first, **ready.records[0]["settings"], "clips": _digest(ready.records)})
    for message in ready.said:
        cluster.say(message)
    found = [i for i, target in enumerate(targets) if sample_records.is_there(target, ready.records[i])]
    done: set[int] = set(json.loads(cluster.gather("clips that are there", json.dumps(found))[0]))
    if done:
        cluster.say(f"{len(done)} of {len(lines)} clips are there already and are kept")
    folder = pathlib.Path(out) if targets and targets[0] != pathlib.Path(out) else None

    def finish(i: int, latents: Any) -> None:
        if not cluster.first:
            _decode_along(ready.pipeline, latents, correct)
            return
        _write_clip(targets[i], ready.pipeline, latents, ready.records[i], correct)
        done.add(i)
        if folder:
            _write_records(folder, targets, lines, ready.records, done)
        tqdm.write(f"{targets[i].name}  seed {lines[i].seed}  {lines[i].prompt}")

    pending = [i for i in range(len(lines)) if i not in done]
    if pending:
        _make(ready, [ready.requests[i] for i in pending], execution,
              lambda number, latents: finish(pending[number], latents), cluster)  # fmt: skip
    if folder:
        _write_records(folder, targets, lines, ready.records, done)
        others = sorted(set(folder.glob("clip_*.mp4")) - set(targets))
        if others:
            cluster.say(f"{len(others)} other clips in {folder} ({others[0].name} ...) are of other prompts")
    cluster.say(f"{len(lines)} clips in {out}; settings {json.dumps(ready.records[0]['settings'])}")
    cluster.gather("end", "")  # where process 0 fails to write the last of it, no process ends well
    names = [path.name for path in _places(out, len(lines))]
    return [_line(name, line, record) for name, line, record in zip(names, lines, ready.records, strict=True)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _prepared(
    checkpoint: str, lines: Sequence[Line], weights: str, changes: Mapping[str, Any], correct: bool,
    loras: Mapping[str, str], lora_mode: str, mesh: jax.sharding.Mesh | None, text_cache: pathlib.Path | None,
    execution: Execution,
) -> Prepared:  # fmt: skip
    """All that can be found wrong before work is spent; arguments as of `sample`."""
    files = {name: lora.parse(text) for name, text in loras.items()}
    pixels = [_pixels(line) for line in lines]
    opened = open_pipeline(checkpoint, weights=weights, mesh=mesh, text_cache=text_cache)
    pipeline, config = _configured(opened, changes, pixels)
    said = [f"found {pipeline.description}"]
    if pipeline.frames > opened.frames:
        said.append(f"warning: {pipeline.frames} frames, made for {opened.frames}: beyond that, models of this family "
                    "are known to burn or shift the brightness of the first frames")  # fmt: skip
    pipeline, merged = with_loras(pipeline, config, files, lora_mode)
    for name, named in merged.items():
        said += [f"{one['file']} {lora_mode} the {name}-noise expert's weights, weight {one['weight']}"
                 for one in named]  # fmt: skip
    requests = [generate.Request(line.prompt, line.seed, *given) for line, given in zip(lines, pixels, strict=True)]
    generate.check(pipeline, requests, config, execution)
    records = [
        sample_records.record(line, pipeline, config, checkpoint=checkpoint, weights=weights, correct=correct,
                              loras=merged)
        for line in lines
    ]  # fmt: skip
    return Prepared(pipeline, config, requests, records, said)


def _make(
    ready: Prepared,
    requests: Sequence[generate.Request],
    execution: Execution,
    finish: Callable[[int, Any], None],
    cluster: Cluster,
) -> None:
    """Latents of the requests, each handed on as it comes, with an estimate and a progress bar.

    Raises:
      Stopped: after SIGTERM or SIGINT to any of several processes, when all have finished the same step.
    """
    pipeline, config = ready.pipeline, ready.config
    models = {name: expert.model for name, expert in pipeline.experts.items()}
    clips = -(-len(requests) // execution.batch) * execution.batch
    if cluster.first:
        print(estimate(models, config, pipeline.latent_shape, pipeline.text.length, clips), flush=True)
    total, stop = config.steps * -(-len(requests) // execution.batch), StopRequests() if cluster.processes > 1 else None
    with (stop.listening() if stop else contextlib.nullcontext(),
          tqdm(total=total, unit="step", disable=not cluster.first) as bar):  # fmt: skip

        def on_step(step: Step) -> None:
            bar.total = step.total  # requests with and without images do not share a batch
            bar.set_postfix_str(f"{step.expert} expert, {step.seconds:.3f} s/step")
            bar.update()
            if stop and stop():
                raise Stopped(f"stopped after step {step.done} of {step.total}; {KEPT}")

        made = generate.latents(
            pipeline, requests, config=config, execution=execution, on_step=on_step,
            on_read=lambda name: bar.set_postfix_str(f"reading the {name}-noise expert"),
            on_ready=lambda: cluster.gather("embeddings and images", "made"),
        )  # fmt: skip
        for number, latents in enumerate(made):
            finish(number, latents)


def _write_clip(
    target: pathlib.Path, pipeline: Pipeline, latents: Any, record: Mapping[str, Any], correct: bool
) -> None:
    """Decodes into the file, frame by frame. To be corrected, a clip is decoded twice: measured, then written."""

    def frames() -> Any:
        return generate.frames(pipeline.vae, pipeline.vae_params, latents)

    if not correct:
        video.write(target, frames(), pipeline.fps, record)
        return
    correction = corrector.estimate(frames(), fps=pipeline.fps)
    corrected = (correction.apply(frame, i) for i, frame in enumerate(frames()))
    video.write(target, corrected, pipeline.fps, record)


def _decode_along(pipeline: Pipeline, latents: Any, correct: bool) -> None:
    """A process's part in what process 0 writes: its devices decode, as often as there."""
    for _ in range(2 if correct else 1):
        for _ in generate.frames(pipeline.vae, pipeline.vae_params, latents):
            pass


def _pixels(line: Line) -> tuple[Any, Any]:
    """First and last image of a clip, uint8 [H0, W0, 3] or None."""
    first, last = (None if file is None else images.read_image(file) for file in (line.image, line.last_image))
    return first, last


def _places(out: str, count: int) -> list[pathlib.Path]:
    """The file of every clip."""
    path = local_folder(out, "--out")
    return [path] if path.suffix == ".mp4" else [path / f"clip_{i:03d}.mp4" for i in range(count)]


def _targets(out: str, count: int) -> list[pathlib.Path]:
    """The file of every clip; folders are made."""
    path = local_folder(out, "--out")
    if path.suffix == ".mp4":
        if count > 1:
            raise ValueError(f"--out {out!r} is one file, but there are {count} prompts: give a folder")
        if path.is_dir():
            raise ValueError(f"--out {out!r} is a folder whose name ends in .mp4: give the name of a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        return _places(out, count)
    if path.suffix.lower() in _OTHER_FILES and not path.is_dir():
        raise ValueError(f"--out {out!r}: clips are written as .mp4; give a name that ends in .mp4, or a folder")
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {out!r} is a file: expected a folder, or for one prompt a name that ends in .mp4")
    path.mkdir(parents=True, exist_ok=True)
    return _places(out, count)


def _configured(
    pipeline: Pipeline, changes: Mapping[str, Any], pixels: Sequence[tuple[Any, Any]]
) -> tuple[Pipeline, SampleConfig]:
    """The pipeline at the asked size and the settings; a change that would do nothing is refused."""
    unknown = sorted(set(changes) - {*SETTINGS, *SIZES})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: expected settings among {', '.join((*SETTINGS, *SIZES))}")
    sizes = _size_of_images(pipeline, pixels) if not {"height", "width"} & set(changes) else {}
    sizes |= {name: value for name, value in changes.items() if name in SIZES}
    pipeline = dataclasses.replace(pipeline, **sizes)
    config = dataclasses.replace(
        pipeline.config, **{name: value for name, value in changes.items() if name in SETTINGS}
    )
    scales = {config.guidance(name) for name, count in config.expert_steps.items() if count}
    for name, count in config.expert_steps.items():
        if f"guidance_{name}" in changes and not count:
            raise ValueError(f"guidance_{name} would do nothing: no step falls to the {name}-noise expert here")
    if "negative_prompt" in changes and scales == {1.0}:
        raise ValueError("negative_prompt would do nothing: guidance is 1, which does not use it")
    if not pipeline.fps > 0:
        raise ValueError(f"fps = {pipeline.fps}: expected frames per second above 0")
    return pipeline, config


def _size_of_images(pipeline: Pipeline, pixels: Sequence[tuple[Any, Any]]) -> dict[str, int]:
    """Height and width that keep the checkpoint's area and take the images' shape; nothing without images."""
    steps = dict(zip(("step_h", "step_w"), pipeline.steps_of_size, strict=True))
    area = pipeline.height * pipeline.width
    found = {images.size_like(*one.shape[:2], area=area, **steps) for given in pixels for one in given
             if one is not None}  # fmt: skip
    if len(found) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(found))
        raise ValueError(f"the images have different shapes, which would make clips of {shown} pixels: give height and "
                         "width for all, or make clips of one shape at a time")  # fmt: skip
    return dict(zip(("height", "width"), found.pop(), strict=True)) if found else {}


def _line(name: str, line: Line, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": name, **record, **line.carried}


def _write_records(
    folder: pathlib.Path,
    targets: Sequence[pathlib.Path],
    lines: Sequence[Line],
    records: Sequence[Mapping[str, Any]],
    done: set[int],
) -> None:
    """samples.jsonl with the clips that are finished, whole at any time."""
    written = [json.dumps(_line(targets[i].name, lines[i], records[i]), ensure_ascii=False) for i in sorted(done)]
    part = folder / f".{RECORDS}.part"
    part.write_text("".join(f"{line}\n" for line in written), encoding="utf-8")
    os.replace(part, folder / RECORDS)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --")
    logging.getLogger("absl").setLevel(logging.WARNING)
    given = flags.FLAGS
    cluster = processes.join()
    if cluster.processes == 1:  # nobody waits for it: at once
        signal.signal(signal.SIGTERM, _stop)
    with Watch(cluster) as watch:
        try:
            sample(**cluster.each("command line", lambda: _arguments(given), ERRORS), cluster=cluster)
        except Stopped as stopped:
            cluster.say(str(stopped))
            sys.exit(given.stopped_code)
        except ClusterError as error:  # all processes have the same one
            sys.exit(f"error: {error}" if cluster.first else 1)
        except ERRORS as error:
            watch.fail(f"error: {error}")


def _stop(*_: object) -> None:
    raise Stopped(f"stopped; {KEPT}")


def _arguments(given: flags.FlagValues) -> dict[str, Any]:
    """Those of `sample` that the flags give."""
    changes = {name: given[name].value for name in (*SETTINGS, *SIZES) if given[name].value is not None}
    loras = {name: given[f"lora_{name}"].value for name in ("high", "low") if given[f"lora_{name}"].value is not None}
    if given.prompts is not None:
        for name in ("image", "last_image"):
            if given[name].value is not None:
                raise ValueError(f"--{name} goes with --prompt; with --prompts, name it in a .jsonl file's lines")
        lines = read_prompts(given.prompts, given.seed)
    elif given.prompt.strip():
        first, last = (None if file is None else pathlib.Path(file) for file in (given.image, given.last_image))
        lines = [Line(given.prompt, given.seed, first, last)]
    else:
        raise ValueError("--prompt is empty")
    return dict(
        checkpoint=given.checkpoint, lines=lines, out=given.out, weights=given.weights, changes=changes,
        correct=given.correct, loras=loras, lora_mode=given.lora_mode,
        execution=Execution(given.batch, given.holding, given.passes, given.group), mesh=_mesh(given.mesh),
        text_cache=pathlib.Path(given.text_cache) if given.text_cache else None,
    )  # fmt: skip


def _mesh(text: str) -> jax.sharding.Mesh | None:
    """The mesh that "seq=4,tensor=2" asks for; None for "", which is one device."""
    if not text:
        return None
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.removeprefix("-").isdigit():
            raise ValueError(f"--mesh {text!r}: expected sizes of mesh axes such as seq=4 or fsdp=2,seq=-1")
        if axis.strip() in sizes:
            raise ValueError(f"--mesh {text!r}: {axis.strip()} is given twice")
        sizes[axis.strip()] = int(size)
    return partition.make_mesh(sizes)


def entry() -> None:
    """Console entry point. The flags are defined here so that importing this module leaves absl's alone."""
    sample_flags.define()
    app.run(main)


if __name__ == "__main__":
    entry()
