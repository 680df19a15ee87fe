"""Jobs for schedulers agree with config and plan, and start again what was interrupted."""

import copy
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jsonschema
import pytest
import yaml

from experiments import sample_flags
from experiments.launch import jobset, planned, sampling, slurm, starting, training
from experiments.launch.planned import Job, LaunchError
from wanjax import config
from wanjax.sample_config import SampleConfig

ROOT = pathlib.Path(__file__).parents[1]
TINY = str(ROOT / "configs/light_scenes_tiny.py")
A14B = str(ROOT / "configs/t2v_a14b.py")
SCHEMA = json.loads((ROOT / "tests/jobset/jobset-v0.12.0.schema.json").read_text())


def given(file, **overrides):
    return config.override(config.read(file), overrides)


def plan_of(values, topology, hosts, chips, devices, changes=()):
    """What experiments.plan writes, as far as a job reads it; test_plan.py has those that it makes."""
    experiment = config.from_config_dict(values)
    mesh = experiment.mesh.sizes(devices)
    filled = config.to_dict(experiment) | {"mesh": mesh}
    return {"program": "train", "config": experiment.name, "experiment": filled, "topology": topology, "chips": chips,
            "devices": devices, "hosts": hosts, "mesh": mesh, "clips": 16, "fits": True,
            "hbm_bytes_per_device": 80 * 10**9, "peak_bytes_per_device": 40 * 10**9, "warnings": [],
            **dict(changes)}  # fmt: skip


V5P = given(A14B, **{"mesh.fsdp": 16, "mesh.seq": 4, "data.batch": 16, "data.cache_dir": "/runs/cache",
                     "data.data_dir": "/runs/data"})  # fmt: skip
H100 = given(A14B, **{"mesh.data": 4, "mesh.fsdp": 4, "mesh.seq": 4, "data.batch": 16, "data.cache_dir": "/runs/cache",
                      "data.data_dir": "/runs/data"})  # fmt: skip
PLANS = {
    "v5p:4x4x4": (V5P, (16, 64, 64)), "2*v6e:4x8": (V5P, (16, 64, 64)), "tpu7x:2x4x4": (V5P, (8, 32, 64)),
    "v5e:2x4": (given(A14B, **{"data.batch": 8, "data.cache_dir": "/runs/c", "data.data_dir": "/runs/d"}), (1, 8, 8)),
    "h100:8x8": (H100, (8, 64, 64)),
}  # fmt: skip


POD = {"name": "a14b", "image": "registry/wanjax:1", "claim": "runs", "mount": "/runs", "grace": 300,
       "max_restarts": 10}  # fmt: skip
SCRIPT = {"made_by": "test", "options": [], "image": "", "grace": 120, "max_restarts": 3}


def machine_of(topology):
    values, sizes = PLANS[topology]
    if topology.startswith("2*"):
        values = config.override(values, {"mesh.data": 2, "mesh.fsdp": 8})
    return values, planned.agreed(config.from_config_dict(values), plan_of(values, topology, *sizes))


def trains(values, machine, workdir="/runs/a14b", logs=None, file=A14B):
    return training.job("python", file, config.from_config_dict(values), machine, workdir, logs, stopped=75)


def objects(topology):
    values, machine = machine_of(topology)
    return machine, jobset.manifest(trains(values, machine), **POD)


def strict(schema):
    """Kubernetes drops what it does not know; kubectl refuses it, and so does this."""
    if isinstance(schema, dict):
        out = {key: {name: strict(each) for name, each in value.items()} if key == "properties" else strict(value)
               for key, value in schema.items()}  # fmt: skip
        return out | ({"additionalProperties": False} if "properties" in out else {})
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


VALIDATOR = jsonschema.Draft7Validator(strict({**SCHEMA, "properties": {
    **SCHEMA["properties"], "metadata": {"type": "object"}}}))  # fmt: skip


@pytest.mark.parametrize("topology", [*PLANS, "sampling"])
def test_the_manifest_is_a_jobset_by_its_schema(topology):
    made = jobset.manifest(samples("h100:1x8"), **POD) if topology == "sampling" else objects(topology)[1]
    read = yaml.safe_load(yaml.safe_dump(made[-1]))
    assert not list(VALIDATOR.iter_errors(read))
    # the schema sees what is wrong
    for path, value in ((("spec", "replicatedJobs", 0, "replicas"), "two"),
                        (("spec", "replicatedJobs", 0, "template", "spec", "paralelism"), 2),
                        (("spec", "failurePolicy", "rules", 0, "action"), "Restart")):  # fmt: skip
        wrong = copy.deepcopy(read)
        node = wrong
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        assert list(VALIDATOR.iter_errors(wrong)), path


@pytest.mark.parametrize(("topology", "slices", "pods", "limits", "labels"), [
    ("v5p:4x4x4", 1, 16, {"google.com/tpu": 4}, {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
                                                 "cloud.google.com/gke-tpu-topology": "4x4x4"}),
    ("2*v6e:4x8", 2, 8, {"google.com/tpu": 4}, {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
                                                "cloud.google.com/gke-tpu-topology": "4x8"}),
    ("tpu7x:2x4x4", 1, 8, {"google.com/tpu": 4}, {"cloud.google.com/gke-tpu-accelerator": "tpu7x",
                                                  "cloud.google.com/gke-tpu-topology": "2x4x4"}),
    ("v5e:2x4", 1, 1, {"google.com/tpu": 8}, {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
                                              "cloud.google.com/gke-tpu-topology": "2x4"}),
    ("h100:8x8", 1, 8, {"nvidia.com/gpu": 8}, {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}),
])  # fmt: skip
def test_the_manifest_asks_for_the_plans_machine(topology, slices, pods, limits, labels):
    machine, [*rights, made] = objects(topology)
    [hosts] = made["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert (hosts["replicas"], job["parallelism"], job["completions"]) == (slices, pods, pods)
    assert pod["nodeSelector"] == labels and container["resources"]["limits"] == limits
    assert {f"--config.mesh.{axis}={size}" for axis, size in machine.mesh.items()} <= {*container["command"]}
    assert job["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    # JAX asks Kubernetes where the other processes are, but on TPUs
    kinds = [each["kind"] for each in rights]
    assert kinds == (["ServiceAccount", "Role", "RoleBinding"] if topology.startswith("h100") else [])
    exits = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"]]
    assert exits == [[1, 2], [75]] and "--stopped_code=75" in container["command"]


def test_the_command_is_the_config_and_what_was_overridden():
    values, machine = machine_of("v5p:4x4x4")
    command = trains(values, machine).command
    assert command[:7] == ["python", "-m", "experiments.train", "--config", A14B, "--workdir", "/runs/a14b"]
    fields = dict(field.removeprefix("--").split("=", 1) for field in command[8:])
    assert fields == {"config.data.batch": "16", "config.data.cache_dir": "/runs/cache",
                      "config.data.data_dir": "/runs/data", "config.mesh.data": "1", "config.mesh.fsdp": "16",
                      "config.mesh.seq": "4", "config.mesh.tensor": "1"}  # fmt: skip


def test_the_command_has_what_makes_an_experiment_of_a_config(tmp_path):
    """Fields that the file leaves out, too, to defaults or to the command line."""
    file = tmp_path / "bare.py"
    file.write_text("from configs import light_scenes_tiny\n\n\ndef get_config(name):\n"
                    "    config = light_scenes_tiny.get_config()\n    config.name = name\n    del config['codec']\n"
                    "    config.lora.rank = 4\n    return config\n")  # fmt: skip
    overrides = {"codec": "mine", "model.attention": "blockwise", "train.init_from": "here", "optimizer.name": "adamw"}
    experiment = config.load(f"{file}:x", overrides)
    machine = machine_of("v5p:4x4x4")[1]
    command = training.job("python", f"{file}:x", experiment, machine, "runs/x", None, stopped=75).command
    fields = {field for field in command if field.startswith("--config.") and ".mesh." not in field}
    assert fields == {f"--config.{name}={value}" for name, value in overrides.items()}


def shell(code, restarts, tmp_path):
    """Runs the script's own shell with an srun that ends with a code: its exit code, and what it asked of scontrol."""
    values = given(TINY, **{"data.batch": 16})
    machine = planned.agreed(config.from_config_dict(values), plan_of(values, "cpu:2", 1, 2, 2))
    text = slurm.script(trains(values, machine, file=TINY), **{**SCRIPT, "options": ["--time=1:00:00"]})
    (tmp_path / "job.sh").write_text(text)
    for name, body in (("srun", f'echo "$@" > {tmp_path}/srun.args; exit {code}'),
                       ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.args')):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", str(tmp_path / "job.sh")], capture_output=True, text=True,
                          env={"PATH": path, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)})  # fmt: skip
    asked = tmp_path / "scontrol.args"
    return done.returncode, asked.read_text().strip() if asked.exists() else None, text, done.stderr


@pytest.mark.parametrize(("code", "restarts", "requeued"), [
    (0, 0, False), (1, 0, False), (2, 0, False),  # done; an error that would come again
    (75, 0, True), (75, 99, True),  # asked to stop
    (137, 2, True), (69, 0, True), (134, 3, False),  # a process was lost, now and then and too often
])  # fmt: skip
def test_the_script_starts_what_was_interrupted_again_and_nothing_else(code, restarts, requeued, tmp_path):
    found, asked, _, said = shell(code, restarts, tmp_path)
    assert found == code and asked == ("requeue 7" if requeued else None), said


def test_the_script_asks_for_the_plans_machine(tmp_path):
    _, _, text, _ = shell(0, 0, tmp_path)
    head = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert head == ["--job-name=light_scenes_tiny", "--nodes=1", "--ntasks-per-node=2", "--requeue",
                    "--open-mode=append", "--output=%x-%j.log", "--signal=TERM@120", "--time=1:00:00"]  # fmt: skip
    assert "--kill-on-bad-exit=0" in (tmp_path / "srun.args").read_text()
    values, machine = machine_of("h100:8x8")
    text = slurm.script(trains(values, machine), **{**SCRIPT, "image": "registry/wanjax:1"})
    for words in ("--nodes=8\n", "--ntasks-per-node=8\n", "--gpus-per-node=8\n", "--gpu-bind=none",
                  "--container-image=registry/wanjax:1", "--container-mounts=/runs/a14b:/runs/a14b,/runs/cache:",
                  "JAX_PLATFORMS=cuda,cpu"):  # fmt: skip
        assert words in text


def test_a_plan_that_is_not_of_this_config_is_refused():
    values, sizes = PLANS["v5p:4x4x4"]
    plan = plan_of(values, "v5p:4x4x4", *sizes)
    assert planned.agreed(config.from_config_dict(values), plan).chips_per_host == 4
    for change, words in (({"data.batch": 32}, "config.data.batch: 16 in the plan, 32 in the config"),
                          ({"mesh.fsdp": 64, "mesh.seq": 1, "data.batch": 64}, "config.mesh.seq: 4 in the plan, 1"),
                          ({"model.remat": "full"}, "config.model.remat: ")):  # fmt: skip
        if change.get("model.remat") == values.model.remat:
            change = {"model.remat": "none"}
        with pytest.raises(LaunchError, match=words):
            planned.agreed(config.from_config_dict(config.override(values, change)), plan)
    later = config.override(values, {"train.steps_high": 7, "train.keep": 7, "data.cache_dir": "/elsewhere"})
    planned.agreed(config.from_config_dict(later), plan)  # nothing that was planned


@pytest.mark.parametrize(("changes", "words"), [
    ({"fits": False, "warnings": ["does not fit: 3.00 GB too much"]}, "does not fit its machine.*3.00 GB too much"),
    ({"program": "encode"}, "--program encode: a job trains or samples"),
    ({"topology": "abacus:3"}, "abacus"),
])  # fmt: skip
def test_a_plan_that_no_job_can_be_made_of_is_refused(changes, words):
    values, sizes = PLANS["v5p:4x4x4"]
    with pytest.raises(LaunchError, match=words):
        planned.agreed(config.from_config_dict(values), plan_of(values, "v5p:4x4x4", *sizes, changes))


def test_a_machine_goes_to_the_scheduler_that_has_it():
    with pytest.raises(LaunchError, match="TPUs are started by experiments.launch.jobset"):
        slurm.script(Job("a", machine_of("v5p:4x4x4")[1], []), **SCRIPT)
    tiny = given(TINY, **{"data.batch": 16})
    cpu = planned.agreed(config.from_config_dict(tiny), plan_of(tiny, "cpu:2", 1, 2, 2))
    with pytest.raises(LaunchError, match="a JobSet is made for v4"):
        jobset.manifest(Job("a", cpu, []), **POD)
    with pytest.raises(LaunchError, match="--sbatch=--nodes=3: that follows from the plan"):
        slurm.script(Job("a", cpu, []), **{**SCRIPT, "options": ["--nodes=3"]})


def test_folders_that_pods_do_not_share_are_named():
    values, machine = machine_of("v5p:4x4x4")

    def check(workdir, mount, logs=None):
        jobset.check_paths(trains(values, machine, workdir, logs), mount)

    check("/runs/a14b", "/runs")
    with pytest.raises(LaunchError, match="--workdir = 'runs/a14b': not below the volume that all pods see at /runs"):
        check("runs/a14b", "/runs")
    with pytest.raises(LaunchError, match="config.data.cache_dir = '/runs/cache'"):
        check("/data/a14b", "/data")
    check("gs://bucket/a14b", "/runs", "/runs/logs")
    with pytest.raises(LaunchError, match="lies on an object store: give --logs"):
        check("gs://bucket/a14b", "/runs")
    with pytest.raises(LaunchError, match="--logs = '/tmp/logs': not below"):
        check("gs://bucket/a14b", "/runs", "/tmp/logs")


# -- sampling ---------------------------------------------------------------------------------------------

CLIPS = ["--checkpoint=/runs/Wan2.2-T2V-A14B", "--prompts=/runs/asked/prompts.jsonl", "--out=/runs/clips"]
SAMPLING = given(A14B, **{"mesh.fsdp": 1, "mesh.seq": 8, "data.height": 720, "data.width": 1280, "sample.steps": 30,
                          "sample.guidance_low": 1.0})  # fmt: skip
HELD = {"program": "sample", "clips": 1, "holding": "one", "passes": "two", "param_dtype": "bfloat16"}


def samples(topology="h100:1x8", sizes=(1, 8, 8), options=CLIPS, values=SAMPLING, changes=()):
    plan = plan_of(values, topology, *sizes, {**HELD, **dict(changes)})
    machine = planned.agreed(config.from_config_dict(values), plan)
    return sampling.job("python", config.from_config_dict(values), machine, options, stopped=75)


def read_by_the_command(job):
    """Its flags, as the command itself parses them."""
    values = sample_flags.flags.FlagValues()
    sample_flags.define(values)
    assert job.command[:3] == ["python", "-m", "experiments.sample"] and len(values(job.command[2:])) == 1
    return {name: values[name].value for name in values if values[name].present}


def test_a_job_samples_as_planned_and_as_the_config_says():
    found = read_by_the_command(samples(options=[*CLIPS, "--correct", "--group=64"]))
    assert found == {
        "checkpoint": "/runs/Wan2.2-T2V-A14B", "prompts": "/runs/asked/prompts.jsonl", "out": "/runs/clips",
        "correct": True, "group": 64, "mesh": "seq=8", "batch": 1, "holding": "one", "passes": "two",
        "stopped_code": 75, "frames": 81, "height": 720, "width": 1280, "fps": 16.0, "solver": "unipc",
        "grid": "official", "steps": 30, "shift": 12.0, "guidance_high": 4.0, "guidance_low": 1.0, "boundary": 0.875,
    }  # fmt: skip
    # what the command would refuse as without effect is not said
    alone = config.override(SAMPLING, {"sample.boundary": 0.0, "train.boundary": 0.0, "sample.negative_prompt": "dark"})
    assert read_by_the_command(samples(values=alone))["negative_prompt"] == "dark"
    assert "guidance_low" not in read_by_the_command(samples(values=alone))
    plain = config.override(alone, {"sample.guidance_high": 1.0})
    assert "negative_prompt" not in read_by_the_command(samples(values=plain))


def test_a_sampling_job_asks_for_the_plans_machine_and_is_started_again_like_training():
    text = slurm.script(samples(options=[*CLIPS, "--lora_low=/loras/warm.safetensors:0.5,/more/a.safetensors"]),
                        **{**SCRIPT, "image": "registry/wanjax:1"})  # fmt: skip
    for words in ("#SBATCH --job-name=t2v_a14b-sample\n", "--nodes=1\n", "--ntasks-per-node=8\n", "--requeue\n",
                  "--container-mounts=/runs/Wan2.2-T2V-A14B:/runs/Wan2.2-T2V-A14B,/runs/clips:/runs/clips,"
                  "/runs/asked:/runs/asked,/loras:/loras,/more:/more ", "GB on each device, parameters in bfloat16",
                  "75) why='was asked to stop", "\nmkdir -p /runs/clips\n"):  # fmt: skip
        assert words in text
    with pytest.raises(LaunchError, match="--checkpoint is in 'Wan-AI/Wan2.2': with --image, expected an abs"):
        slurm.script(samples(options=["--checkpoint=Wan-AI/Wan2.2", *CLIPS[1:]]), **{**SCRIPT, "image": "a"})
    [made] = jobset.manifest(samples("v5p:2x2x1", (1, 4, 4), values=config.override(SAMPLING, {"mesh.seq": 4})), **POD)
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert container["name"] == "sample" and {"--mesh=seq=4", "--stopped_code=75"} <= {*container["command"]}
    assert {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"]} == {"sample"}


@pytest.mark.parametrize(("options", "words"), [
    (CLIPS[1:], "--sample: --checkpoint is missing"),
    (CLIPS[::2], "--sample: .*Exactly one of \\(prompt, prompts\\) must"),
    ([*CLIPS, "--corect"], "--sample: Unknown command line flag 'corect'"),
    ([*CLIPS, "--group=some"], "--sample: .*group=some"),
    ([*CLIPS, "dawn"], "--sample=dawn: expected an option of experiments.sample"),
    ([*CLIPS, "--lora_high=a.bin"], "--sample: LoRA 'a.bin': expected a .safetensors file"),
    ([*CLIPS, "--steps=30"], "--sample=--steps: give --config.sample.steps, of which the plan has to be, too"),
    ([*CLIPS, "--height=720"], "--sample=--height: give --config.data.height"),
    ([*CLIPS, "--holding=both"], "--sample=--holding: that follows from the plan and the scheduler"),
    ([*CLIPS, "--processes=2"], "--sample=--processes: that follows from the plan"),
])  # fmt: skip
def test_options_that_the_command_would_not_take_or_that_are_settled_are_refused(options, words):
    with pytest.raises(LaunchError, match=words) as caught:
        samples(options=options)
    assert "\n" not in str(caught.value)


def test_every_setting_of_a_config_reaches_the_command():
    """A new field of SampleConfig without an option of its own would be ignored by a job."""
    values = sample_flags.flags.FlagValues()
    sample_flags.define(values)
    assert {field.name for field in dataclasses.fields(SampleConfig)} <= {*values}


def test_a_sampling_plan_of_another_config_or_of_several_slices_is_refused():
    plan = plan_of(SAMPLING, "h100:1x8", 1, 8, 8, HELD)
    for change in ({"sample.guidance_low": 3.0}, {"data.height": 480}, {"model.attention": "plain"},
                   {"mesh.seq": 4, "mesh.tensor": 2}):  # fmt: skip
        other = config.from_config_dict(config.override(SAMPLING, change))
        with pytest.raises(LaunchError, match="the plan is of another config:\n  config." + next(iter(change))):
            planned.agreed(other, plan)
    apart = {"train.expert": "low", "optimizer.ema_decay": 0.0, "data.batch": 3, "lora.rank": 4}
    planned.agreed(config.from_config_dict(config.override(SAMPLING, apart)), plan)  # nothing that samples
    with pytest.raises(LaunchError, match="2\\*v5p:2x2x1: the codec works on the devices of one slice"):
        samples("2*v5p:2x2x1", (2, 8, 8), values=config.override(SAMPLING, {"mesh.data": 2, "mesh.seq": 4}))


def test_files_that_pods_do_not_share_are_named():
    jobset.check_paths(samples(), "/runs")
    jobset.check_paths(samples(options=["--checkpoint=gs://bucket/a14b", *CLIPS[1:]]), "/runs")
    given = ["--checkpoint=Wan-AI/Wan2.2", "--prompts=p.txt", "--out=/runs/clips", "--lora_high=/l/a.safetensors"]
    with pytest.raises(LaunchError, match="--checkpoint = 'Wan-AI/Wan2.2', --prompts = 'p.txt', --lora_high = '/l/a"):
        jobset.check_paths(samples(options=given), "/runs")


# -- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("program", "given", "words"), [
    ("train", {"sample": CLIPS}, "--sample=--checkpoint=/runs/Wan2.2-T2V-A14B: the plan is of --program train"),
    ("train", {}, "--workdir is missing"),
    ("sample", {"workdir": "/runs/a14b"}, "--workdir and --logs are of training, and the plan is of --program sample"),
    ("sample", {"sample": CLIPS}, None), ("train", {"workdir": "/runs/a14b"}, None),
])  # fmt: skip
def test_the_plan_says_what_the_job_is(program, given, words, tmp_path, monkeypatch):
    values, *sizes = (V5P, "v5p:4x4x4", 16, 64, 64) if program == "train" else (SAMPLING, "h100:1x8", 1, 8, 8)
    (tmp_path / "plan.json").write_text(json.dumps(plan_of(values, *sizes, HELD if program == "sample" else ())))
    asked = {"plan": str(tmp_path / "plan.json"), "config": A14B, "python": "python", "workdir": None, "logs": None,
             "sample": [], **given}  # fmt: skip
    monkeypatch.setattr(starting.flags, "FLAGS", types.SimpleNamespace(**asked))
    if words is None:
        assert starting.job(config.from_config_dict(values)).command[2] == f"experiments.{program}"
    else:
        with pytest.raises(LaunchError, match=words):
            starting.job(config.from_config_dict(values))


def test_it_is_made_from_the_command_line(tmp_path):
    values = PLANS["v5p:4x4x4"][0]
    (tmp_path / "plan.json").write_text(json.dumps(plan_of(values, "v5p:4x4x4", 16, 64, 64)))
    arguments = ["--config", A14B, f"--plan={tmp_path}/plan.json", "--workdir=/runs/a14b", "--config.data.batch=16",
                 "--config.data.cache_dir=/runs/cache", "--config.data.data_dir=/runs/data", "--config.mesh.fsdp=16",
                 "--config.mesh.seq=4"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "experiments.launch.jobset", *arguments, f"--out={tmp_path}/job.yaml",
                           "--claim=runs:/runs", "--image=registry/wanjax:1"], cwd=ROOT, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "job.yaml").read_text()
    assert text.startswith("# python -m experiments.launch.jobset --config") and "planned: 40.00 of 80.00 GB" in text
    [made] = yaml.safe_load_all(text)
    assert not list(VALIDATOR.iter_errors(made)) and made["metadata"]["name"] == "t2v-a14b"
