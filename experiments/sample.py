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
How the work is laid out in memory: docs/sampling.md.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags
from tqdm import tqdm

from wanjax import (
    generate,
    images,
    lora,
    lora_factors,
    offload,
    partition,
    prompt_embeddings,
    sample_records,
    solvers,
    video,
)
from wanjax.checkpoint import CheckpointError
from wanjax.denoise import HOLDING, PASSES, Execution, Step
from wanjax.estimate import estimate
from wanjax.experts import Expert
from wanjax.generate import Pipeline
from wanjax.light import correct as corrector
from wanjax.models.rows.dit import dit_rows
from wanjax.pipeline import open_pipeline
from wanjax.prompt_file import Line, read_prompts
from wanjax.run_folder import local_folder
from wanjax.sample_config import SampleConfig
from wanjax.sample_records import SIZES

RECORDS = "samples.jsonl"
LORA_MODES = ("into", "beside")
SETTINGS = tuple(field.name for field in dataclasses.fields(SampleConfig))


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
    """
    if lora_mode not in LORA_MODES:
        raise ValueError(f"lora_mode = {lora_mode!r}: expected one of {', '.join(LORA_MODES)}")
    files = {name: lora.parse(text) for name, text in (loras or {}).items()}
    targets = _targets(out, len(lines))
    pixels = [_pixels(line) for line in lines]
    opened = open_pipeline(checkpoint, weights=weights, mesh=mesh, text_cache=text_cache)
    pipeline, config = _configured(opened, changes or {}, pixels)
    print(f"found {pipeline.description}", flush=True)
    if pipeline.frames > opened.frames:
        print(f"warning: {pipeline.frames} frames, made for {opened.frames}: beyond that, models of this family are "
              "known to burn or shift the brightness of the first frames", flush=True)  # fmt: skip
    pipeline, merged = _with_loras(pipeline, config, files, lora_mode)
    requests = [generate.Request(line.prompt, line.seed, *given) for line, given in zip(lines, pixels, strict=True)]
    generate.check(pipeline, requests, config)
    records = [
        sample_records.record(line, pipeline, config, checkpoint=checkpoint, weights=weights, correct=correct,
                              loras=merged)
        for line in lines
    ]  # fmt: skip
    done = {i for i, target in enumerate(targets) if sample_records.is_there(target, records[i])}
    if done:
        print(f"{len(done)} of {len(lines)} clips are there already and are kept", flush=True)
    folder = None if targets[0] == pathlib.Path(out) else pathlib.Path(out)

    def finish(i: int, latents: Any) -> None:
        _write_clip(targets[i], pipeline, latents, records[i], correct)
        done.add(i)
        if folder:
            _write_records(folder, targets, lines, records, done)
        tqdm.write(f"{targets[i].name}  seed {lines[i].seed}  {lines[i].prompt}")

    pending = [i for i in range(len(lines)) if i not in done]
    if pending:
        _make(pipeline, [requests[i] for i in pending], config, execution or Execution(),
              lambda number, latents: finish(pending[number], latents))  # fmt: skip
    if folder:
        _write_records(folder, targets, lines, records, done)
        others = sorted(set(folder.glob("clip_*.mp4")) - set(targets))
        if others:
            print(f"{len(others)} other clips in {folder} ({others[0].name} ...) are of other prompts", flush=True)
    print(f"{len(lines)} clips in {out}; settings {json.dumps(records[0]['settings'])}", flush=True)
    return [_line(target, line, record) for target, line, record in zip(targets, lines, records, strict=True)]


def _make(
    pipeline: Pipeline,
    requests: Sequence[generate.Request],
    config: SampleConfig,
    execution: Execution,
    finish: Callable[[int, Any], None],
) -> None:
    """Latents of the requests, each handed on as it comes, with an estimate and a progress bar."""
    models = {name: expert.model for name, expert in pipeline.experts.items()}
    clips = -(-len(requests) // execution.batch) * execution.batch
    print(estimate(models, config, pipeline.latent_shape, pipeline.text.length, clips), flush=True)
    with tqdm(total=config.steps * -(-len(requests) // execution.batch), unit="step") as bar:

        def on_step(step: Step) -> None:
            bar.total = step.total  # requests with and without images do not share a batch
            bar.set_postfix_str(f"{step.expert} expert, {step.seconds:.3f} s/step")
            bar.update()

        made = generate.latents(
            pipeline, requests, config=config, execution=execution, on_step=on_step,
            on_read=lambda name: bar.set_postfix_str(f"reading the {name}-noise expert"),
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


def _pixels(line: Line) -> tuple[Any, Any]:
    """First and last image of a clip, uint8 [H0, W0, 3] or None."""
    first, last = (None if file is None else images.read_image(file) for file in (line.image, line.last_image))
    return first, last


def _targets(out: str, count: int) -> list[pathlib.Path]:
    """The file of every clip; folders are made."""
    path = local_folder(out, "--out")
    if path.suffix == ".mp4":
        if count > 1:
            raise ValueError(f"--out {out!r} is one file, but there are {count} prompts: give a folder")
        if path.is_dir():
            raise ValueError(f"--out {out!r} is a folder whose name ends in .mp4: give the name of a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        return [path]
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {out!r} is a file: expected a folder, or for one prompt a name that ends in .mp4")
    path.mkdir(parents=True, exist_ok=True)
    return [path / f"clip_{i:03d}.mp4" for i in range(count)]


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


def _with_loras(
    pipeline: Pipeline, config: SampleConfig, files: Mapping[str, list[tuple[pathlib.Path, float]]], mode: str
) -> tuple[Pipeline, dict[str, list[dict[str, Any]]]]:
    """The pipeline whose experts have LoRAs in or beside their weights; and which, by expert."""
    experts, records = dict(pipeline.experts), {}
    for name in files:
        if name not in experts:
            raise ValueError(f"lora_{name}: there is no {name}-noise expert here, only {', '.join(experts)}")
        if not config.expert_steps[name]:
            raise ValueError(f"lora_{name} would do nothing: no step falls to the {name}-noise expert here")
    for name, named in files.items():
        model = experts[name].model
        table = dit_rows(model.config)
        opened, records[name] = lora.read_files(named, table, expert=name)
        if mode == "beside" and experts[name].changes:
            raise ValueError(f"lora_{name}: the run's own LoRA is beside the {name}-noise expert's weights already: "
                             "merge files into them (--lora_mode into), or write the run's as a file "
                             "(experiments.convert --only lora) and give all to what it is for")  # fmt: skip
        if mode == "beside":
            beside = lora_factors.factors(table, opened, mesh=model.mesh)
            experts[name] = dataclasses.replace(experts[name], changes=beside)
        else:
            experts[name] = _merged(experts[name], opened)
        for record in records[name]:
            print(f"{record['file']} {mode} the {name}-noise expert's weights, weight {record['weight']}", flush=True)
    return dataclasses.replace(pipeline, experts=experts), records


def _merged(expert: Expert, loras: Sequence[tuple[lora.Lora, float]]) -> Expert:
    """The expert whose parameters are changed as they are read."""

    def read(places: Any) -> Any:
        if any(place.memory_kind == offload.HOST for place in jax.tree.leaves(places)):
            raise ValueError("LoRAs cannot be merged into weights that are streamed from the host block by block: keep "
                             "them beside (--lora_mode beside), or hold a whole expert (--holding one)")  # fmt: skip
        return lora.merge(expert.read(places), dit_rows(expert.model.config), loras, donate=True)

    return dataclasses.replace(expert, read=read)


def _line(target: pathlib.Path, line: Line, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": target.name, **record, **line.carried}


def _write_records(
    folder: pathlib.Path,
    targets: Sequence[pathlib.Path],
    lines: Sequence[Line],
    records: Sequence[Mapping[str, Any]],
    done: set[int],
) -> None:
    """samples.jsonl with the clips that are finished, whole at any time."""
    written = [json.dumps(_line(targets[i], lines[i], records[i]), ensure_ascii=False) for i in sorted(done)]
    part = folder / f".{RECORDS}.part"
    part.write_text("".join(f"{line}\n" for line in written), encoding="utf-8")
    os.replace(part, folder / RECORDS)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --")
    logging.getLogger("absl").setLevel(logging.WARNING)
    given = flags.FLAGS
    changes = {name: given[name].value for name in (*SETTINGS, *SIZES) if given[name].value is not None}
    loras = {name: given[f"lora_{name}"].value for name in ("high", "low") if given[f"lora_{name}"].value is not None}
    try:
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
        sample(
            given.checkpoint, lines, given.out,
            weights=given.weights, changes=changes, correct=given.correct, loras=loras, lora_mode=given.lora_mode,
            execution=Execution(given.batch, given.holding, given.passes), mesh=_mesh(given.mesh),
            text_cache=pathlib.Path(given.text_cache) if given.text_cache else None,
        )  # fmt: skip
    except (CheckpointError, OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def _mesh(text: str) -> jax.sharding.Mesh | None:
    """The mesh that "seq=4,tensor=2" asks for; None for "", which is one device."""
    if not text:
        return None
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.removeprefix("-").isdigit():
            raise ValueError(f"--mesh {text!r}: expected sizes of mesh axes such as seq=4 or fsdp=2,seq=-1")
        sizes[axis.strip()] = int(size)
    return partition.make_mesh(sizes)


def entry() -> None:
    """Console entry point. The flags are defined here so that importing this module leaves absl's alone."""
    flags.DEFINE_string("checkpoint", None, "A workdir, one expert's or step's folder, or a released pipeline's root.")
    flags.DEFINE_string("prompt", None, "One prompt.")
    flags.DEFINE_string("prompts", None, "File of prompts, .txt or .jsonl.")
    flags.DEFINE_string("image", None, "Picture that the clip starts from, for image-to-video checkpoints.")
    flags.DEFINE_string("last_image", None, "Picture that the clip ends with.")
    flags.DEFINE_string("out", None, "Folder of the clips; for one prompt also a file that ends in .mp4.")
    flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged over training, or as they are.")
    flags.DEFINE_integer("seed", 0, "Of the first clip; the next ones count up.", lower_bound=0)
    flags.DEFINE_integer("batch", 1, "Clips denoised together; more is faster and takes more memory.", lower_bound=1)
    flags.DEFINE_enum("holding", "auto", HOLDING, "What is on the devices at a time: experts, or blocks of one.")
    flags.DEFINE_enum("passes", "auto", PASSES, "With guidance: both answers at once, or in two passes.")
    flags.DEFINE_string("mesh", "", "Devices by axis, such as seq=4; one device by default.")
    flags.DEFINE_string("text_cache", str(prompt_embeddings.default_cache()), "Folder of embeddings; empty for none.")
    flags.DEFINE_bool("correct", False, "Take flicker of exposure and colour out of each clip.")
    flags.DEFINE_string("lora_high", None, "LoRA files for the high-noise expert: file[:weight],...")
    flags.DEFINE_string("lora_low", None, "LoRA files for the low-noise expert: file[:weight],...")
    flags.DEFINE_enum("lora_mode", "into", LORA_MODES, "Merged into the weights, or kept beside and added at use.")
    flags.DEFINE_enum("solver", None, solvers.NAMES, "Default: the checkpoint's own, as for all settings below.")
    flags.DEFINE_enum("grid", None, solvers.GRIDS, "Noise levels of the solver; distilled for few-step weights.")
    flags.DEFINE_integer("steps", None, "Calls of the networks.")
    flags.DEFINE_float("shift", None, "Of the noise levels; higher spends more steps at high noise.")
    flags.DEFINE_float("guidance_high", None, "Guidance scale of the high-noise expert; 1 is none.")
    flags.DEFINE_float("guidance_low", None, "Guidance scale of the low-noise expert; 1 is none.")
    flags.DEFINE_float("boundary", None, "Noise level from which on the high-noise expert is at work.")
    flags.DEFINE_string("negative_prompt", None, "What guidance leads away from.")
    flags.DEFINE_integer("frames", None, "Frames per clip, 4n + 1.")
    flags.DEFINE_integer("height", None, "Height in pixels.")
    flags.DEFINE_integer("width", None, "Width in pixels.")
    flags.DEFINE_float("fps", None, "Frames per second of the file.")
    flags.mark_flags_as_required(["checkpoint", "out"])
    flags.mark_flags_as_mutual_exclusive(["prompt", "prompts"], required=True)
    app.run(main)


if __name__ == "__main__":
    entry()
