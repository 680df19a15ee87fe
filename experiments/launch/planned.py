"""What a job asks for: the machine of a plan, for a config that the plan is of."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from wanjax import config as config_lib
from wanjax.chips import CHIPS
from wanjax.config import Experiment

PROGRAMS = ("train", "sample")  # whose jobs are made
# fields that change no shape, no program and no byte of training
_TRAINING_APART = (
    "config.name", "config.seed", "config.codec", "config.sample.", "config.data.source", "config.data.seed",
    "config.data.train_clips", "config.data.data_dir", "config.data.cache_dir", "config.data.fps",
    "config.data.caption_dropout", "config.text.tokenizer", "config.text.encoder", "config.text.seed",
    "config.text.model.", "config.train.steps_", "config.train.log_every", "config.train.checkpoint_every",
    "config.train.keep", "config.train.validate_every", "config.train.validation_bins", "config.train.preview_every",
    "config.train.init_from", "config.train.batch_timeout", "config.train.profile_",
)  # fmt: skip
# all that the shapes and the program of sampling come from
_SAMPLED = ("config.codec_strides", "config.data.frames", "config.data.height", "config.data.width", "config.mesh.",
            "config.model.", "config.sample.", "config.text.length")  # fmt: skip


class LaunchError(ValueError):
    """A job that cannot be made; the message says what does not go together, and what to do."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a plan was made for.

    Attributes:
        topology: by its name.
        kind: "cpu", or a key of :data:`wanjax.chips.CHIPS`.
        shape: chips along the axes of a slice, as in the name.
        slices: how many.
        hosts: of all slices.
        chips: of all slices.
        mesh: sizes by axis.
        memory: a line about it.
        program: that is planned, "train" or "sample".
        clips: of one step over all devices.
        holding, passes: of sampling, as the options of ``experiments.sample``; "" in training.
    """

    topology: str
    kind: str
    shape: str
    slices: int
    hosts: int
    chips: int
    mesh: Mapping[str, int]
    memory: str
    program: str
    clips: int
    holding: str = ""
    passes: str = ""

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts


@dataclasses.dataclass(frozen=True)
class Job:
    """A program on its machine.

    Attributes:
        name: for people.
        machine: of the plan.
        command: one process's, the same for all.
        folders, files: that all processes have to see, each with the name of the option or field that it is given by.
    """

    name: str
    machine: Machine
    command: list[str]
    folders: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()


def read_plan(file: str) -> dict[str, Any]:
    """A plan that ``experiments.plan --json`` has written.

    Raises:
        LaunchError: none is there.
    """
    try:
        plan = json.loads(pathlib.Path(file).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise LaunchError(f"--plan {file!r} cannot be read ({error}): make it with python -m experiments.plan "
                          "--json") from error  # fmt: skip
    missing = {"program", "topology", "hosts", "chips", "devices", "mesh", "clips", "fits", "experiment"} - {*plan}
    if plan.get("program") == "sample":
        missing |= {"holding", "passes", "param_dtype"} - {*plan}
    if missing:
        raise LaunchError(f"--plan {file!r} has no {', '.join(sorted(missing))}: make it again with python -m "
                          "experiments.plan --json")  # fmt: skip
    return plan


def agreed(experiment: Experiment, plan: Mapping[str, Any]) -> Machine:
    """The plan's machine, for the config that it was made of.

    Raises:
        LaunchError: the plan is of another program or config, or says that it does not fit.
    """
    program = plan["program"]
    if program not in PROGRAMS:
        raise LaunchError(f"the plan is of --program {program}: a job trains or samples, plan --program train or "
                          "sample")  # fmt: skip
    sizes = experiment.mesh.sizes(plan["devices"])
    filled = dataclasses.replace(experiment, mesh=config_lib.MeshConfig(**sizes))
    if program == "train":
        config_lib.validate(filled)
    planned = config_lib.completed(plan["experiment"])
    changed = {name: values for name, values in config_lib.differences(planned, config_lib.to_dict(filled)).items()
               if (name.startswith(_SAMPLED) if program == "sample" else not name.startswith(_TRAINING_APART))
               }  # fmt: skip
    if changed:
        lines = "\n".join(f"  {name}: {was!r} in the plan, {now!r} in the config"
                          for name, (was, now) in changed.items())  # fmt: skip
        raise LaunchError(f"the plan is of another config:\n{lines}\nPlan this one, or give the fields of the plan")
    if not plan["fits"]:
        raise LaunchError(f"the plan does not fit its machine, {plan['topology']}: {'; '.join(plan['warnings'][-1:])}")
    slices, _, rest = plan["topology"].rpartition("*")
    kind, _, shape = rest.partition(":")
    if kind not in ("cpu", *CHIPS):
        raise LaunchError(f"the plan's topology is {plan['topology']!r}: jobs are made for cpu, "
                          f"{', '.join(CHIPS)}")  # fmt: skip
    memory = f"{plan['peak_bytes_per_device'] / 1e9:.2f} of {plan['hbm_bytes_per_device'] / 1e9:.2f} GB on each device"
    held = {}
    if program == "sample":
        memory += f", parameters in {plan['param_dtype']}"
        held = {"holding": plan["holding"], "passes": plan["passes"]}
    return Machine(plan["topology"], kind, shape, int(slices or 1), plan["hosts"], plan["chips"], plan["mesh"], memory,
                   program, plan["clips"], **held)  # fmt: skip
