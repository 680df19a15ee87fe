"""The job that samples: the command of ``experiments.sample`` for a plan, and the files that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import sample_flags
from experiments.launch.planned import Job, LaunchError, Machine
from wanjax import config_flag, lora
from wanjax.config import Experiment
from wanjax.sample_config import SampleConfig
from wanjax.sample_records import SIZES

# options that say what plan and scheduler say
SETTLED = ("mesh", "batch", "holding", "passes", "stopped_code", "coordinator", "processes", "process")


def job(python: str, experiment: Experiment, machine: Machine, options: Sequence[str], *, stopped: int) -> Job:
    """The plan's mesh and way of holding the experts, the config's sizes and settings, and what is asked for beside.

    Args:
        python: the job's interpreter.
        experiment: the config with its overrides.
        machine: the plan's.
        options: of ``experiments.sample``: checkpoint, prompts, output, and others.
        stopped: exit code after a request to stop.
    Raises:
        LaunchError: options that the command does not take, that say what is settled already, or that are missing; a
            machine of several slices.
    """
    if machine.slices > 1:
        raise LaunchError(f"the plan is for {machine.topology}: the codec works on the devices of one slice; plan one, "
                          "and start a job on each with prompts of its own")  # fmt: skip
    given = _parsed(options)
    settings = _settings(experiment)
    for name in (*(field.name for field in dataclasses.fields(SampleConfig)), *SIZES):
        if given[name].present:
            field = f"config.{'data' if name in SIZES else 'sample'}.{name}"
            raise LaunchError(f"--sample=--{name}: give --{field}, of which the plan has to be, too")
    if taken := [name for name in SETTLED if given[name].present]:
        raise LaunchError(f"--sample=--{taken[0]}: that follows from the plan and the scheduler; plan it otherwise")
    mesh = ",".join(f"{axis}={size}" for axis, size in machine.mesh.items() if size > 1)
    settled = {**({"mesh": mesh} if mesh else {}), "batch": machine.clips, "holding": machine.holding,
               "passes": machine.passes, "stopped_code": stopped, **settings}  # fmt: skip
    command = [python, "-m", "experiments.sample", *options, *(f"--{name}={value}" for name, value in settled.items())]
    cache = given.text_cache if given["text_cache"].present else ""
    folders, files = [("--checkpoint", given.checkpoint), ("--text_cache", cache)], []
    (files if given.out.endswith(".mp4") else folders).append(("--out", given.out))
    files += [(f"--{name}", given[name].value) for name in ("prompts", "image", "last_image")]
    files += [(f"--{name}", str(file)) for name in ("lora_high", "lora_low") for file, _ in _loras(given[name].value)]
    return Job(f"{experiment.name}-sample", machine, command, tuple(pair for pair in folders if pair[1]),
               tuple(pair for pair in files if pair[1]))  # fmt: skip


def _parsed(options: Sequence[str]) -> flags.FlagValues:
    """The options as ``experiments.sample`` reads them.

    Raises:
        LaunchError: it would not take them.
    """
    values = flags.FlagValues()
    sample_flags.define(values)
    try:
        rest = values(["experiments.sample", *options])
    except flags.Error as error:
        raise LaunchError(f"--sample: {config_flag.in_one_line(error)} (python -m experiments.sample --help lists the "
                          "options)") from error  # fmt: skip
    if len(rest) > 1:
        raise LaunchError(f"--sample={rest[1]}: expected an option of experiments.sample, such as --sample=--correct")
    return values


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Options for what the config states; those that would do nothing, which are refused there, are left out."""
    config, sizes = experiment.sample, {name: getattr(experiment.data, name) for name in SIZES}
    settings = dataclasses.asdict(config)
    at_work = [name for name, steps in config.expert_steps.items() if steps]
    for name in {"high", "low"} - {*at_work}:
        del settings[f"guidance_{name}"]
    if not config.negative_prompt or all(config.guidance(name) == 1.0 for name in at_work):
        del settings["negative_prompt"]
    return sizes | settings


def _loras(text: str | None) -> list[tuple[Any, float]]:
    try:
        return lora.parse(text) if text else []
    except ValueError as error:
        raise LaunchError(f"--sample: {error}") from error
