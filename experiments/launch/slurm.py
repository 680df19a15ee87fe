"""An sbatch script that trains a config, or samples, on the machine of its plan, and starts again what was interrupted.

    python -m experiments.launch.slurm --config configs/t2v_a14b.py --plan plan.json --workdir runs/a14b \\
        --out job.sbatch --sbatch=--time=24:00:00 --sbatch=--partition=gpu --config.mesh.fsdp=16
    python -m experiments.launch.slurm --config configs/t2v_a14b.py --plan sampling.json --out clips.sbatch \\
        --sample=--checkpoint=Wan2.2-T2V-A14B --sample=--prompts=prompts.jsonl --sample=--out=runs/clips

One task for each GPU, as JAX's detection of SLURM expects. The plan has to be of this config and to fit; its program is
the job's. The job is submitted in the folder that the paths start from: ``sbatch job.sbatch``.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import PurePosixPath

from absl import flags

from experiments.launch import starting
from experiments.launch.planned import Job, LaunchError
from experiments.launch.starting import STOPPED, WRONG
from wanjax import config as config_lib
from wanjax import config_flag
from wanjax.chips import GPUS
from wanjax.run_folder import is_remote

# seconds between the first task's end and the end of all: a lost one is named before that
WAIT = 120
# what is settled here and must not be asked for again
SETTLED = ("--nodes", "-N", "--ntasks", "-n", "--gpus", "-G", "--gres", "--requeue", "--no-requeue", "--signal",
           "--open-mode")  # fmt: skip
# what the programs make where it is missing; a container can only be shown what is there
MADE = ("--workdir", "--logs", "--out", "--text_cache", "config.data.cache_dir")


def script(job: Job, *, made_by: str, options: list[str], image: str, grace: int, max_restarts: int) -> str:
    """The script's text.

    Args:
        job: on the machine of its plan.
        made_by: a line that says how to make it again.
        options: of sbatch, beside those that follow from the plan.
        image: container that tasks run in (pyxis and enroot), which sees the job's folders under the same paths; ""
            for none.
        grace: seconds before the time limit at which the tasks are asked to stop.
        max_restarts: after failures; those after a request to stop do not count against it.
    Raises:
        LaunchError: a machine that SLURM does not start, options that say what the plan says, or folders that no
            container could see.
    """
    machine = job.machine
    if machine.kind not in ("cpu", *GPUS):
        raise LaunchError(f"the plan is for {machine.topology}: TPUs are started by experiments.launch.jobset")
    for option in options:
        if option.partition("=")[0] in SETTLED or option.startswith("--ntasks-per"):
            raise LaunchError(f"--sbatch={option}: that follows from the plan; plan another machine")
        if not option.startswith("-"):
            raise LaunchError(f"--sbatch={option!r}: expected an option of sbatch, such as --time=24:00:00")
    gpu = machine.kind in GPUS
    settled = [f"--job-name={job.name}", f"--nodes={machine.hosts}",
               f"--ntasks-per-node={machine.chips_per_host}",
               *([f"--gpus-per-node={machine.chips_per_host}"] if gpu else []),
               "--requeue", "--open-mode=append", "--output=%x-%j.log", f"--signal=TERM@{grace}"]  # fmt: skip
    if gpu:
        environment = "export JAX_PLATFORMS=cuda,cpu"
    else:
        environment = "export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=1"
    steps = ["srun", "--kill-on-bad-exit=0", f"--wait={WAIT}", "--label", "--unbuffered"]
    # each task takes the GPU of its local number, so all tasks have to see all of them
    steps += ["--gpu-bind=none"] if gpu else []
    before = []
    if image:
        shown = mounts(job)
        mounted = ",".join(f"{folder}:{folder}" for folder in dict.fromkeys(folder for _, folder in shown))
        steps += [f"--container-image={image}", f"--container-mounts={mounted}"]
        before = [shlex.join(["mkdir", "-p", *(folder for name, folder in shown if name in MADE)])]
    lines = [
        "#!/usr/bin/env bash",
        f"# {made_by}",
        f"# {machine.topology}, {machine.hosts} hosts of {machine.chips_per_host}, mesh "
        f"{' × '.join(f'{axis} {size}' for axis, size in machine.mesh.items())}; planned: {machine.memory}",
        *(f"#SBATCH {option}" for option in [*settled, *options]),
        "set -u",
        environment,
        "export PYTHONUNBUFFERED=1",
        *before,
        "",
        "code=0",
        f"{shlex.join(steps)} \\",
        f"    {shlex.join(job.command)} || code=$?",
        "",
        "case $code in",
        "  0) exit 0 ;;",
        f"  {STOPPED}) why='was asked to stop, what is done saved' ;;",
        f"  {'|'.join(map(str, WRONG))}) echo \"exit code $code: an error that would come again, the job ends\" >&2; "
        "exit $code ;;",
        "  *)",
        "    why=\"was interrupted, exit code $code\"",
        f"    if [ \"${{SLURM_RESTART_COUNT:-0}}\" -ge {max_restarts} ]; then",
        f"      echo \"$why, and the job was started again {max_restarts} times: it ends\" >&2; exit $code",
        "    fi ;;",
        "esac",
        "echo \"$why: the job goes on from what is saved\" >&2",
        "scontrol requeue \"$SLURM_JOB_ID\"",
        "exit $code",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def mounts(job: Job) -> list[tuple[str, str]]:
    """Folders that a container has to see, each with what asks for it.

    Raises:
        LaunchError: one that is not absolute, such as the name of a checkpoint on the Hub.
    """
    files = [(name, str(PurePosixPath(file).parent)) for name, file in job.files]
    local = [(name, folder) for name, folder in (*job.folders, *files) if not is_remote(folder)]
    for name, folder in local:
        if not folder.startswith("/"):
            raise LaunchError(f"{name} is in {folder!r}: with --image, expected an absolute path, under which the "
                              "container is to see it")  # fmt: skip
    return local


def make(experiment: config_lib.Experiment) -> str:
    """The script that the flags ask for.

    Raises:
        LaunchError, ConfigError: it cannot be made.
    """
    flag = flags.FLAGS
    return script(starting.job(experiment),
                  made_by=shlex.join(["python", "-m", "experiments.launch.slurm", *sys.argv[1:]]),
                  options=flag.sbatch, image=flag.image, grace=flag.grace, max_restarts=flag.max_restarts)  # fmt: skip


def main() -> None:
    starting.run(make, start="submit it with sbatch", executable=True)


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    starting.define_flags(workdir="which all nodes see", logs="", out="script", python="job",
                         grace="before the time limit at which the run is asked to stop", restarted="job")  # fmt: skip
    flags.adopt_module_key_flags(starting)  # so that --help shows them
    flags.DEFINE_string("image", "", "Container that tasks run in (pyxis); none by default.")
    flags.DEFINE_multi_string("sbatch", [], "An option of sbatch, such as --sbatch=--time=24:00:00; may be repeated.")
    config_flag.run(main)


if __name__ == "__main__":
    entry()
