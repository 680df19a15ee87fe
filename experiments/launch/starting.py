"""What both launchers do: their flags, the job that these ask for, and the file that starts it."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

from absl import flags

from experiments.launch import planned, sampling, training
from experiments.launch.planned import Job, LaunchError
from wanjax import config as config_lib
from wanjax import config_flag
from wanjax.config import Experiment

# exit codes of experiments.train and experiments.sample: asked to stop, what is done saved (EX_TEMPFAIL of
# sysexits.h); an error that would come again, of the launcher and of its command line
STOPPED, WRONG = 75, (1, 2)


def define_flags(*, workdir: str, logs: str, out: str, python: str, grace: str, restarted: str) -> None:
    """The flags that every kind of job has; the arguments say what each means for it."""
    config_flag.define()
    flags.DEFINE_string("plan", None, "JSON of experiments.plan --program train or sample, which says what the job is.")
    flags.DEFINE_string("workdir", None, f"To train: folder of the run, {workdir}, or gs://... with --logs.")
    flags.DEFINE_string("logs", None, f"To train: folder for metrics and previews{logs}; that of the run by default.")
    flags.DEFINE_multi_string("sample", [], "To sample: an option of experiments.sample, such as "
                              "--sample=--checkpoint=DIR; repeated.")  # fmt: skip
    flags.DEFINE_string("out", None, f"File that receives the {out}.")
    flags.DEFINE_string("python", "python", f"The {python}'s interpreter.")
    flags.DEFINE_integer("grace", 300, f"Seconds {grace}.")
    flags.DEFINE_integer("max_restarts", 10, f"How often the {restarted} is started again after failures.")
    flags.mark_flags_as_required(["config", "plan", "out"])


def job(experiment: Experiment) -> Job:
    """The job that the flags ask for.

    Raises:
        LaunchError, ConfigError: it cannot be made.
    """
    flag = flags.FLAGS
    machine = planned.agreed(experiment, planned.read_plan(flag.plan))
    if machine.program == "sample":
        if flag.workdir or flag.logs:
            raise LaunchError("--workdir and --logs are of training, and the plan is of --program sample: give "
                              "--sample=--checkpoint=DIR, --sample=--prompts=FILE and --sample=--out=DIR")  # fmt: skip
        return sampling.job(flag.python, experiment, machine, flag.sample, stopped=STOPPED)
    if flag.sample:
        raise LaunchError(f"--sample={flag.sample[0]}: the plan is of --program train")
    if not flag.workdir:
        raise LaunchError("--workdir is missing: the folder of the run that is trained")
    return training.job(flag.python, flag.config, experiment, machine, flag.workdir, flag.logs, stopped=STOPPED)


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
