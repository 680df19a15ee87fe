"""A SLURM of its own on this machine, and two jobs of two tasks, one that trains and one that samples what it trained:
each is killed, stopped, and started again by it, and has made what a job made that was not.

    python -m benchmarks.cluster_slurm --folder runs/cluster_slurm [--result benchmarks/results/cluster_slurm.md]

Needs the distribution's packages: ``apt-get install slurmctld slurmd slurm-client munge``; without them it says so and
ends with code 0. The daemons are children of this process, with their files in the folder, and end with it. The jobs
are the scripts that ``experiments.launch.slurm`` makes of the tiny config and its plans for ``cpu:2``; what an earlier
call made is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.cluster_processes import DoesNotHold, at, check_same, checkpoints, page, saved
from benchmarks.cluster_sampling import same_files, write_prompts
from tests import launching

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
TASKS, STEPS, EXPERT = 2, 40, "high"
OVERRIDES = {**launching.SMALL, "train.expert": EXPERT, "train.steps_high": STEPS, "train.checkpoint_every": 2,
             "train.keep": 1000, "train.boundary": 0.0, "sample.boundary": 0.0}  # fmt: skip
CLIPS = 24
CONF = """\
ClusterName=proof
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a job that is put back waits until the credential of its last start is no longer good, 120 s by default
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=60
KillWait=30
NodeName={host} CPUs={tasks} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """A cluster of one node; gives the environment in which its commands find it."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("", 0))
            ports.append(probe.getsockname()[1])
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().split(".")[0]
    conf, key = folder / "slurm.conf", folder / "munge.key"
    conf.write_text(CONF.format(host=host, user=getpass.getuser(), folder=folder, ports=ports, tasks=TASKS))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"],
        ["slurmctld", "-D", "-c", "-f", str(conf)],
        ["slurmd", "-D", "-c", "-f", str(conf), "-N", host],
    ]  # fmt: skip
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("wb")
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(1.0)
        until(lambda: "idle" in ask(["sinfo", "-h", "-o", "%T"], environment), "the node is not ready", 120)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def ask(command: list[str], environment: dict[str, str]) -> str:
    """What a command of SLURM prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise DoesNotHold(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def until(condition, what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise DoesNotHold(f"{what} after {seconds:g} s")
        time.sleep(0.2)


def job(
    folder: pathlib.Path, name: str, environment: dict[str, str], program: str, *options: str
) -> tuple[str, pathlib.Path]:
    """Makes and submits the script of a job; its number, and its log."""
    plan, file = folder / f"{program}.json", folder / f"{name}.sbatch"
    config = ["--config", str(launching.ROOT / "configs/light_scenes_tiny.py"),
              *(f"--config.{field}={value}" for field, value in overrides(folder).items())]  # fmt: skip
    if not plan.exists():
        run(["experiments.plan", f"--program={program}", f"--topology=cpu:{TASKS}", f"--json={plan}", *config])
    run(["experiments.launch.slurm", f"--plan={plan}", f"--out={file}", f"--python={sys.executable}",
         f"--sbatch=--output={folder}/{name}.log", *options, *config])
    number = ask(["sbatch", "--parsable", f"--chdir={launching.ROOT}", str(file)], environment).strip()
    return number, folder / f"{name}.log"


def trains(folder: pathlib.Path, name: str, environment: dict[str, str]) -> tuple[str, pathlib.Path, pathlib.Path]:
    """Submits a job that trains; its number, its log, and its workdir."""
    return *job(folder, name, environment, "train", f"--workdir={folder / name}"), folder / name


def samples(
    folder: pathlib.Path, name: str, environment: dict[str, str], workdir: pathlib.Path
) -> tuple[str, pathlib.Path, pathlib.Path]:
    """Submits a job that samples what a run has trained; its number, its log, and the folder of its clips."""
    prompts = write_prompts(folder / "prompts.txt", [f"dawn of day {i}" for i in range(CLIPS)])
    options = [f"--checkpoint={workdir}", f"--prompts={prompts}", f"--out={folder / name}", f"--group={TASKS}"]
    made = job(folder, name, environment, "sample", *(f"--sample={option}" for option in options))
    return *made, folder / name


def overrides(folder: pathlib.Path) -> dict[str, object]:
    return {**OVERRIDES, "data.source": launching.small_data(folder / "data"), "data.cache_dir": folder / "cache"}


def run(module: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *module], cwd=launching.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise DoesNotHold(f"{module[0]} failed:\n{done.stderr[-2000:]}")


def state(number: str, environment: dict[str, str]) -> dict[str, str]:
    """What scontrol says of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", ask(["scontrol", "show", "job", number], environment)))


def steps(workdir: pathlib.Path) -> int:
    return max(saved(workdir), default=0) if checkpoints(workdir).is_dir() else 0


def task_of(log: pathlib.Path, process: int, start: int) -> int:
    """The process id of a task, as the log says it at the beginning of its ``start``-th start."""
    found = re.findall(rf"process {process} \(host \S+, pid (\d+)\)", log.read_text(errors="replace"))
    return int(list(dict.fromkeys(found))[start])


def clips(out: pathlib.Path) -> int:
    """How many are listed."""
    listing = out / "samples.jsonl"
    return len(listing.read_text().splitlines()) if listing.exists() else 0


def finished(number: str, environment: dict[str, str], seconds: float) -> dict[str, str]:
    until(lambda: state(number, environment)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"),
          f"job {number} has not ended", seconds)  # fmt: skip
    found = state(number, environment)
    if found["JobState"] != "COMPLETED":
        raise DoesNotHold(f"job {number} ended as {found['JobState']}, exit code {found['ExitCode']}")
    return found


def killed(number: str, log: pathlib.Path, environment: dict[str, str]) -> str:
    """Kills a task of a running job: the other names it, and the job is put back."""
    victim = task_of(log, 1, 0)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: state(number, environment).get("Restarts") == "1", "the killed job was not put back", 120)
    back = time.monotonic() - began
    lost = f"process 1 (host {socket.gethostname()}, pid {victim})"
    if f" ends: {lost}" not in log.read_text(errors="replace"):
        raise DoesNotHold(f"{lost} is not named in {log}")
    return f"task 1 killed with SIGKILL: the other ended naming it, and the job was put back {back:.0f} s later"


def stopped(number: str, log: pathlib.Path, environment: dict[str, str], words: str) -> re.Match[str]:
    """Asks a job that was put back once to stop: its tasks say so in these words, and it is put back."""
    ask(["scancel", "--signal=TERM", number], environment)
    until(lambda: state(number, environment).get("Restarts") == "2", "the stopped job was not put back", 120)
    if not (said := re.search(words, log.read_text(errors="replace"))):
        raise DoesNotHold(f"the job was put back without having stopped: see {log}")
    return said


def prove_training(
    folder: pathlib.Path, patience: float, environment: dict[str, str]
) -> tuple[list[str], pathlib.Path]:
    """A run that is interrupted twice and one that is not; the latter's workdir."""
    number, log, workdir = trains(folder, "interrupted", environment)
    until(lambda: steps(workdir) >= 6, "no checkpoint of step 6", patience)
    lines = [f"training, {killed(number, log, environment)}"]
    done = steps(workdir)
    until(lambda: steps(workdir) >= done + 4, f"no step after {done}", patience)
    said = stopped(number, log, environment, r"stopped after step (\d+) of \d+; its state is saved")
    if int(said[1]) not in saved(workdir):
        raise DoesNotHold(f"no step was saved when the job was asked to stop: see {log}")
    lines.append(f"training, SIGTERM to its tasks: step {said[1]} was saved, and the job was put back")
    found = finished(number, environment, patience)
    lines.append(f"started {1 + int(found['Restarts'])} times, it trained to step {steps(workdir)} of {STEPS}")
    number, _, whole = trains(folder, "whole", environment)
    finished(number, environment, patience)
    return [*lines, check_same(at(folder, whole, STEPS), at(folder, workdir, STEPS),
                               f"interrupted twice and not at all, at step {STEPS}")], whole  # fmt: skip


def prove_sampling(
    folder: pathlib.Path, patience: float, environment: dict[str, str], workdir: pathlib.Path
) -> list[str]:
    """Clips of a job that is interrupted twice, and of one that is not."""
    number, log, out = samples(folder, "clips", environment, workdir)
    until(lambda: clips(out) >= TASKS, "no clip", patience)
    lines = [f"sampling, {killed(number, log, environment)}"]
    kept = {path: path.stat().st_mtime_ns for path in out.glob("clip_*.mp4")}
    until(lambda: clips(out) > len(kept), f"no clip after {len(kept)}", patience)
    stopped(number, log, environment, r"stopped after step \d+ of \d+; finished clips are kept")
    lines.append(f"sampling, SIGTERM to its tasks: it stopped with {clips(out)} of {CLIPS} clips, and was put back")
    kept |= {path: path.stat().st_mtime_ns for path in out.glob("clip_*.mp4") if path not in kept}
    if not len(kept) < CLIPS:
        raise DoesNotHold("all clips were there when the job was asked to stop")
    found = finished(number, environment, patience)
    if changed := [path.name for path, when in kept.items() if path.stat().st_mtime_ns != when]:
        raise DoesNotHold(f"finished clips were made again: {changed}")
    lines.append(f"started {1 + int(found['Restarts'])} times, it made {clips(out)} of {CLIPS} clips, none of them "
                 "twice")  # fmt: skip
    number, _, whole = samples(folder, "clips_whole", environment, workdir)
    finished(number, environment, patience)
    return [*lines, same_files(whole, out, "clips of a job interrupted twice and of one not at all")]


def prove(folder: pathlib.Path, patience: float) -> str:
    for job_name in ("interrupted", "whole", "clips", "clips_whole"):
        shutil.rmtree(folder / job_name, ignore_errors=True)
        (folder / f"{job_name}.log").unlink(missing_ok=True)
        shutil.rmtree(folder / "steps" / f"{job_name}_{STEPS}", ignore_errors=True)
    for program in ("train", "sample"):
        (folder / f"{program}.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "slurm", ignore_errors=True)
    with slurm(folder / "slurm") as environment:
        version = ask(["sinfo", "--version"], environment).strip()
        lines, workdir = prove_training(folder, patience, environment)
        lines += prove_sampling(folder, patience, environment, workdir)
    return page([
        "`python -m benchmarks.cluster_slurm`: one node, two tasks of one simulated device each, the scripts that",
        "`experiments.launch.slurm` makes of plans to train and to sample `configs/light_scenes_tiny.py` cut down to 2",
        "layers of width 32 in one expert.",
    ], lines, version)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--result", type=pathlib.Path)
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds that a phase may take")
    options = parser.parse_args()
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        print(f"cluster_slurm was skipped: {', '.join(missing)} are not installed (on Debian and Ubuntu: apt-get "
              "install slurmctld slurmd slurm-client munge)")
        return
    os.environ["PATH"] += ":/usr/sbin"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the daemons end with it
    text = prove(options.folder.absolute(), options.patience)
    print(text)
    if options.result:
        options.result.write_text(text)


if __name__ == "__main__":
    main()
