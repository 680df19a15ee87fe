"""What a job asks for: the machine of a plan, for a config that the plan is of."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from wanjax import config as config_lib
from wanjax import config_flag
from wanjax.chips import CHIPS
from wanjax.config import Experiment
from wanjax.run_folder import is_remote

# exit codes of experiments.train: asked to stop, the state saved (EX_TEMPFAIL of sysexits.h); an error that would come
# again, of the launcher and of its command line
STOPPED, WRONG = 75, (1, 2)
# fields that change no shape, no program and no byte
NO_MATTER = ("config.name", "config.seed", "config.codec", "config.sample.", "config.data.source", "config.data.seed",
             "config.data.train_clips", "config.data.data_dir", "config.data.cache_dir", "config.data.fps",
             "config.data.caption_dropout", "config.text.tokenizer", "config.text.encoder", "config.text.seed",
             "config.text.model.", "config.train.steps_", "config.train.log_every", "config.train.checkpoint_every",
             "config.train.keep", "config.train.validate_every", "config.train.validation_bins",
             "config.train.preview_every", "config.train.init_from", "config.train.batch_timeout",
             "config.train.profile_")  # fmt: skip


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
    """

    topology: str
    kind: str
    shape: str
    slices: int
    hosts: int
    chips: int
    mesh: Mapping[str, int]
    memory: str

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts


def read_plan(file: str) -> dict[str, Any]:
    """A plan that ``experiments.plan --json`` has written.

    Raises:
        LaunchError: none is there.
    """
    try:
        plan = json.loads(pathlib.Path(file).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise LaunchError(f"--plan {file!r} cannot be read ({error}): make it with python -m experiments.plan "
                          "--program train --json") from error  # fmt: skip
    missing = {"program", "topology", "hosts", "chips", "devices", "mesh", "fits", "experiment"} - {*plan}
    if missing:
        raise LaunchError(f"--plan {file!r} has no {', '.join(sorted(missing))}: make it again with python -m "
                          "experiments.plan --program train --json")  # fmt: skip
    return plan


def agreed(experiment: Experiment, plan: Mapping[str, Any]) -> Machine:
    """The plan's machine, for the config that it was made of.

    Raises:
        LaunchError: the plan is of another program or config, or says that it does not fit.
    """
    if plan["program"] != "train":
        raise LaunchError(f"the plan is of --program {plan['program']}: a job trains, plan --program train")
    sizes = experiment.mesh.sizes(plan["devices"])
    filled = dataclasses.replace(experiment, mesh=config_lib.MeshConfig(**sizes))
    config_lib.validate(filled)
    planned = config_lib.completed(plan["experiment"])
    changed = {name: values for name, values in config_lib.differences(planned, config_lib.to_dict(filled)).items()
               if not name.startswith(NO_MATTER)}  # fmt: skip
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
    return Machine(plan["topology"], kind, shape, int(slices or 1), plan["hosts"], plan["chips"], plan["mesh"], memory)


def command(
    python: str, file: str, experiment: Experiment, machine: Machine, workdir: str, logs: str | None = None
) -> list[str]:
    """The launcher's command line: the config file, what was overridden, and the plan's mesh.

    Args:
        python: the job's interpreter.
        file: the config's.
        experiment: the config with its overrides.
        machine: the plan's.
        workdir: of the run.
        logs: folder for metrics and previews, where the workdir is on an object store.
    """
    # not as an experiment: a config may be one with its overrides only
    plain = config_lib.completed(config_lib.read(file).copy_and_resolve_references().to_dict())
    now = config_lib.to_dict(experiment)
    fields = {name: tuple(value) if isinstance(value, list) else value
              for name, (_, value) in config_lib.differences(plain, now).items()}  # fmt: skip
    fields |= {f"config.mesh.{axis}": size for axis, size in machine.mesh.items()}
    return [python, "-m", "experiments.train", "--config", file, "--workdir", workdir,
            *(["--logs", logs] if logs else []), f"--stopped_code={STOPPED}",
            *(f"--{name}={value}" for name, value in fields.items())]  # fmt: skip


def check_logs(workdir: str, logs: str | None) -> None:
    """Refuses a run on an object store without a folder for what grows line by line.

    Raises:
        LaunchError: that says so.
    """
    if is_remote(workdir) and logs is None:
        raise LaunchError(f"--workdir {workdir!r} lies on an object store: give --logs, too, a folder that all see")


def define_flags(*, workdir: str, logs: str, out: str, python: str, grace: str, restarted: str) -> None:
    """The flags that every kind of job has; the arguments say what each means for it."""
    config_flag.define()
    flags.DEFINE_string("plan", None, "JSON of experiments.plan --program train.")
    flags.DEFINE_string("workdir", None, f"Folder of the run, {workdir}, or gs://... with --logs.")
    flags.DEFINE_string("logs", None, f"Folder for metrics and previews{logs}; that of the run by default.")
    flags.DEFINE_string("out", None, f"File that receives the {out}.")
    flags.DEFINE_string("python", "python", f"The {python}'s interpreter.")
    flags.DEFINE_integer("grace", 300, f"Seconds {grace}.")
    flags.DEFINE_integer("max_restarts", 10, f"How often the {restarted} is started again after failures.")
    flags.mark_flags_as_required(["config", "plan", "workdir", "out"])


def run(make: Callable[[Experiment], str], *, start: str, executable: bool = False) -> None:
    """Writes what ``make`` gives for the config of the flags, and says how it is started."""
    flag = flags.FLAGS
    try:
        write(flag.out, make(config_flag.experiment()), executable=executable)
    except (LaunchError, config_lib.ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{flag.out}: {start} {flag.out}", flush=True)


def write(file: str, text: str, *, executable: bool = False) -> None:
    """Writes a job's file, whole or not at all.

    Raises:
        LaunchError: its folder is not there.
    """
    path = pathlib.Path(file)
    if not path.absolute().parent.is_dir():
        raise LaunchError(f"--out {file!r}: its folder does not exist")
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.chmod(0o755 if executable else 0o644)
    part.replace(path)
