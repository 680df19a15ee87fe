"""Samples clips from prompts with a trained run or a released checkpoint.

    python -m experiments.sample --checkpoint runs/demo --prompt "the sun rises" --out clip.mp4
    python -m experiments.sample --checkpoint runs/demo --prompts prompts.jsonl --out runs/demo/samples --batch 8

A prompt file is .txt (a prompt a line) or .jsonl (an object a line: "prompt", "seed" if it is to be a certain one,
and anything else, which is passed on to samples.jsonl). The output folder receives clip_000.mp4, clip_001.mp4, ...
and samples.jsonl, one record per clip. Every clip's seed and settings are printed and stored in the file itself, so
that it can be made again; clips that are there already, from the same weights and settings, are kept. Settings that
are not given are the checkpoint's own. --correct takes flicker of exposure and colour out of the clips
(docs/correct.md). --lora_high and --lora_low merge LoRA files into the experts' weights (docs/lora.md).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from wanjax import generate, lora, solvers, video
from wanjax.checkpoint import CheckpointError
from wanjax.generate import Pipeline, SampleConfig
from wanjax.light.correct import correct as without_flicker
from wanjax.models.rows.dit import dit_rows
from wanjax.pipeline import open_pipeline

RECORDS = "samples.jsonl"
OURS = ("file", "settings", "checkpoint")  # fields of a record that a prompt file cannot set
SIZES = ("frames", "height", "width", "fps")
SETTINGS = tuple(field.name for field in dataclasses.fields(SampleConfig))


@dataclasses.dataclass(frozen=True)
class Request:
    """One clip to be made: prompt, seed, and fields of the prompt file that are passed on."""

    prompt: str
    seed: int
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_prompts(path: str | os.PathLike[str], seed: int) -> list[Request]:
    """The requests of a .txt or .jsonl file; the i-th without a seed of its own gets `seed` + i.

    Raises: FileNotFoundError; ValueError naming the line and what is wrong with it, or a file without prompts.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"prompt file {str(path)!r}: expected .txt (a prompt a line) or .jsonl (an object a line)")
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {str(path)!r} does not exist")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {str(path)!r} is not UTF-8 ({error.reason} at byte {error.start})") from error
    requests: list[Request] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            requests.append(Request(line.strip(), seed + len(requests)))
        else:
            requests.append(_from_json(line, seed + len(requests), f"{path}, line {number}"))
    if not requests:
        raise ValueError(f"prompt file {str(path)!r} holds no prompt")
    return requests


def _from_json(line: str, seed: int, where: str) -> Request:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str) or not fields["prompt"].strip():
        raise ValueError(f'{where}: expected an object with a "prompt" that is text, for example {{"prompt": "dawn"}}')
    taken = [name for name in OURS if name in fields]
    if taken:
        raise ValueError(f"{where}: {', '.join(taken)} is written by this command and cannot be set; remove it")
    prompt, own = fields.pop("prompt"), fields.pop("seed", seed)
    if isinstance(own, bool) or not isinstance(own, int):
        raise ValueError(f"{where}: seed {own!r}: expected a whole number")
    return Request(prompt, own, fields)


def sample(
    checkpoint: str,
    requests: Sequence[Request],
    out: str,
    *,
    weights: str = "ema",
    changes: Mapping[str, Any] | None = None,
    batch: int = 1,
    correct: bool = False,
    loras: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Makes the clips of `requests` that are not there yet; returns every clip's record.

    Args:
      checkpoint, weights: see `wanjax.pipeline.open_pipeline`.
      out: a folder, or a file ending in .mp4 for one request.
      changes: fields of `SampleConfig` and frames, height, width, fps that replace the checkpoint's own.
      batch: clips that are denoised together.
      correct: whether flicker of exposure and colour is taken out, see `wanjax.light.correct`.
      loras: "high" or "low" -> LoRA files that are merged into that expert's weights, see `wanjax.lora.parse`.
    """
    files = {name: lora.parse(text) for name, text in (loras or {}).items()}
    targets = _targets(out, len(requests))
    pipeline, config = _configured(open_pipeline(checkpoint, weights=weights), changes or {})
    print(f"found {pipeline.description}", flush=True)
    pipeline, merged = _with_loras(pipeline, config, files)
    records = [_record(request, pipeline, config, checkpoint, weights, correct, merged) for request in requests]
    done = {i for i, target in enumerate(targets) if _is_there(target, records[i])}
    if done:
        print(f"{len(done)} of {len(requests)} clips are there already and are kept", flush=True)
    folder = None if targets[0] == pathlib.Path(out) else pathlib.Path(out)
    for i, frames in _clips(pipeline, requests, [i for i in range(len(requests)) if i not in done], config, batch):
        finished = without_flicker(frames, fps=pipeline.fps) if correct else frames
        video.write(targets[i], finished, pipeline.fps, records[i])
        done.add(i)
        if folder:
            _write_records(folder, targets, requests, records, done)
        tqdm.write(f"{targets[i].name}  seed {requests[i].seed}  {requests[i].prompt}")
    if folder:
        _write_records(folder, targets, requests, records, done)
        others = sorted(set(folder.glob("clip_*.mp4")) - set(targets))
        if others:
            print(f"{len(others)} other clips in {folder} ({others[0].name} ...) are of other prompts", flush=True)
    print(f"{len(requests)} clips in {out}; settings {json.dumps(records[0]['settings'])}", flush=True)
    return [_line(target, request, record) for target, request, record in zip(targets, requests, records, strict=True)]


def _clips(
    pipeline: Pipeline, requests: Sequence[Request], pending: Sequence[int], config: SampleConfig, batch: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The pending requests and their clips [T, H, W, 3], with a progress bar that shows the time of a step."""
    if not pending:
        return
    prompts, seeds = [requests[i].prompt for i in pending], [requests[i].seed for i in pending]
    clips = generate.generate(pipeline, prompts, seeds, config=config, batch=batch)
    started = time.perf_counter()
    with tqdm(total=len(pending), unit="clip") as bar:
        for number, (i, frames) in enumerate(zip(pending, clips, strict=True)):
            if number % batch == 0:
                bar.set_postfix_str(f"{(time.perf_counter() - started) / config.steps:.3f} s/step")
            yield i, frames
            bar.update()
            if number % batch == batch - 1:
                started = time.perf_counter()


def _targets(out: str, count: int) -> list[pathlib.Path]:
    """The file of every clip; folders are made."""
    path = pathlib.Path(out)
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


def _configured(pipeline: Pipeline, changes: Mapping[str, Any]) -> tuple[Pipeline, SampleConfig]:
    """The pipeline at the asked size and the settings; a change that would do nothing is refused."""
    unknown = sorted(set(changes) - {*SETTINGS, *SIZES})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: expected settings among {', '.join((*SETTINGS, *SIZES))}")
    pipeline = dataclasses.replace(pipeline, **{name: value for name, value in changes.items() if name in SIZES})
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


def _with_loras(
    pipeline: Pipeline, config: SampleConfig, files: Mapping[str, list[tuple[pathlib.Path, float]]]
) -> tuple[Pipeline, dict[str, list[dict[str, Any]]]]:
    """The pipeline with LoRAs merged, its own weights given up; and what was merged, by expert."""
    experts, records = dict(pipeline.experts), {}
    for name in files:
        if name not in experts:
            raise ValueError(f"lora_{name}: there is no {name}-noise expert here, only {', '.join(experts)}")
        if not config.expert_steps[name]:
            raise ValueError(f"lora_{name} would do nothing: no step falls to the {name}-noise expert here")
    for name, named in files.items():
        model, params = experts[name]
        params, records[name] = lora.merge_files(params, dit_rows(model.config), named, donate=True)
        experts[name] = (model, params)
        for record in records[name]:
            print(f"merged {record['file']} into the {name}-noise expert, weight {record['weight']}", flush=True)
    return dataclasses.replace(pipeline, experts=experts), records


def _record(
    request: Request,
    pipeline: Pipeline,
    config: SampleConfig,
    checkpoint: str,
    weights: str,
    correct: bool,
    loras: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """What is stored in a clip's file: all it takes to make the clip again.

    The setting "correct" and the checkpoint's "loras" are there only where they are in use, so that clips from before
    they existed are still known.
    """
    sizes = {name: getattr(pipeline, name) for name in SIZES}
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "settings": dataclasses.asdict(config) | sizes | ({"correct": True} if correct else {}),
        "checkpoint": {
            "path": checkpoint,
            "found": pipeline.description,
            "weights": weights,
            "fingerprint": pipeline.fingerprint,
        }
        | ({"loras": dict(loras)} if loras else {}),
    }


def _is_there(target: pathlib.Path, record: Mapping[str, Any]) -> bool:
    """Whether a clip has been made from the same prompt, seed, settings and weights, wherever these lay."""
    if not target.exists():
        return False
    try:
        stored = video.stream(target).metadata
    except video.VideoError:
        return False
    found = stored.get("checkpoint")
    return (
        all(stored.get(name) == record[name] for name in ("prompt", "seed", "settings"))
        and isinstance(found, dict)
        and found.get("fingerprint") == record["checkpoint"]["fingerprint"]
        and _lora_bytes(found) == _lora_bytes(record["checkpoint"])
    )


def _lora_bytes(checkpoint: Mapping[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """The LoRAs of a record, whatever their files are called. The fingerprint reads a sample of the weights, which a
    LoRA may leave as it is."""
    return {
        name: [(one["sha256"], one["weight"]) for one in merged]
        for name, merged in checkpoint.get("loras", {}).items()
    }


def _line(target: pathlib.Path, request: Request, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": target.name, **record, **request.carried}


def _write_records(
    folder: pathlib.Path,
    targets: Sequence[pathlib.Path],
    requests: Sequence[Request],
    records: Sequence[Mapping[str, Any]],
    done: set[int],
) -> None:
    """samples.jsonl with the clips that are finished, whole at any time."""
    lines = [json.dumps(_line(targets[i], requests[i], records[i]), ensure_ascii=False) for i in sorted(done)]
    part = folder / f".{RECORDS}.part"
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
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
            requests = read_prompts(given.prompts, given.seed)
        elif given.prompt.strip():
            requests = [Request(given.prompt, given.seed)]
        else:
            raise ValueError("--prompt is empty")
        sample(
            given.checkpoint, requests, given.out,
            weights=given.weights, changes=changes, batch=given.batch, correct=given.correct,
            loras=loras,
        )  # fmt: skip
    except (CheckpointError, OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def entry() -> None:
    """Console entry point. The flags are defined here so that importing this module leaves absl's alone."""
    flags.DEFINE_string("checkpoint", None, "A workdir, one expert's or step's folder, or a diffusers root.")
    flags.DEFINE_string("prompt", None, "One prompt.")
    flags.DEFINE_string("prompts", None, "File of prompts, .txt or .jsonl.")
    flags.DEFINE_string("out", None, "Folder of the clips; for one prompt also a file that ends in .mp4.")
    flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged over training, or as they are.")
    flags.DEFINE_integer("seed", 0, "Of the first clip; the next ones count up.", lower_bound=0)
    flags.DEFINE_integer("batch", 1, "Clips denoised together; more is faster and takes more memory.", lower_bound=1)
    flags.DEFINE_bool("correct", False, "Take flicker of exposure and colour out of each clip.")
    flags.DEFINE_string("lora_high", None, "LoRA files to merge into the high-noise expert: file[:weight],...")
    flags.DEFINE_string("lora_low", None, "LoRA files to merge into the low-noise expert: file[:weight],...")
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
