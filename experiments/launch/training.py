"""The job that trains: the command of ``experiments.train`` for a plan, and the folders that it needs."""

from __future__ import annotations

from experiments.launch.planned import Job, LaunchError, Machine
from wanjax import config as config_lib
from wanjax.config import Experiment
from wanjax.run_folder import is_remote


def job(
    python: str, file: str, experiment: Experiment, machine: Machine, workdir: str, logs: str | None, *, stopped: int
) -> Job:
    """The config file, what was overridden, and the plan's mesh.

    Args:
        python: the job's interpreter.
        file: the config's.
        experiment: the config with its overrides.
        machine: the plan's.
        workdir: of the run.
        logs: folder for metrics and previews, where the workdir is on an object store.
        stopped: exit code after a request to stop.
    Raises:
        LaunchError: a run on an object store without a folder for what grows line by line.
    """
    if is_remote(workdir) and logs is None:
        raise LaunchError(f"--workdir {workdir!r} lies on an object store: give --logs, too, a folder that all see")
    # not as an experiment: a config may be one with its overrides only
    plain = config_lib.completed(config_lib.read(file).copy_and_resolve_references().to_dict())
    now = config_lib.to_dict(experiment)
    fields = {name: tuple(value) if isinstance(value, list) else value
              for name, (_, value) in config_lib.differences(plain, now).items()}  # fmt: skip
    fields |= {f"config.mesh.{axis}": size for axis, size in machine.mesh.items()}
    command = [python, "-m", "experiments.train", "--config", file, "--workdir", workdir,
               *(["--logs", logs] if logs else []), f"--stopped_code={stopped}",
               *(f"--{name}={value}" for name, value in fields.items())]  # fmt: skip
    folders = (("--workdir", workdir), *([("--logs", logs)] if logs else []),
               ("config.data.cache_dir", experiment.data.cache_dir), ("config.data.data_dir", experiment.data.data_dir)
               )  # fmt: skip
    return Job(experiment.name, machine, command, folders)
