"""A JobSet manifest for GKE that trains a config, or samples, on the machine of its plan, and starts again what was
interrupted.

    python -m experiments.launch.jobset --config configs/t2v_a14b.py --plan plan.json --workdir /runs/a14b \\
        --claim runs:/runs --image REGISTRY/wanjax:TAG --out job.yaml --config.data.cache_dir=/runs/cache
    python -m experiments.launch.jobset --config configs/t2v_a14b.py --plan sampling.json --claim runs:/runs \\
        --image REGISTRY/wanjax:TAG --out clips.yaml --sample=--checkpoint=/runs/Wan2.2-T2V-A14B \\
        --sample=--prompts=/runs/prompts.jsonl --sample=--out=/runs/clips

One pod for each host, with all of its chips. The plan has to be of this config and to fit; its program is the job's.
Needs JobSet 0.10 or newer in the cluster, and a volume that all pods share (``--claim``):
``kubectl apply -f job.yaml``.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import PurePosixPath
from typing import Any

import yaml
from absl import flags

from experiments.launch import starting
from experiments.launch.planned import Job, LaunchError
from experiments.launch.starting import STOPPED, WRONG
from wanjax import config as config_lib
from wanjax import config_flag
from wanjax.chips import GPUS
from wanjax.run_folder import is_remote

# Labels of GKE's nodes, by the planner's names.
# Source: docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, .../how-to/gpus
ACCELERATORS = {
    "v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb",
}  # fmt: skip
REMOTE = ("--workdir", "--checkpoint")  # what may be on an object store
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def manifest(job: Job, *, name: str, image: str, claim: str, mount: str, grace: int, max_restarts: int
             ) -> list[dict[str, Any]]:  # fmt: skip
    """The objects to apply: a JobSet, and for GPUs what JAX's detection may read of it.

    Args:
        job: with every path below ``mount``.
        name: of the JobSet.
        image: the container's, with wanjax and the extra of the machine: tpu, or cuda12 and k8s.
        claim, mount: persistent volume claim, and where all pods see it.
        grace: seconds that a pod has to save its state when it is to go.
        max_restarts: after failures; those after a request to stop do not count against it.
    Raises:
        LaunchError: a machine that is none of GKE's, or a name that Kubernetes does not take.
    """
    machine = job.machine
    if machine.kind not in ACCELERATORS:
        raise LaunchError(f"the plan is for {machine.topology}: a JobSet is made for {', '.join(ACCELERATORS)}")
    if not NAME.fullmatch(name) or len(name) > 40:
        raise LaunchError(f"--name {name!r}: expected up to 40 letters a-z, digits and hyphens, a letter first")
    gpu = machine.kind in GPUS
    pods = machine.hosts // machine.slices
    container = {
        "name": machine.program, "image": image, "command": job.command,
        "env": [{"name": "JAX_PLATFORMS", "value": "cuda,cpu" if gpu else "tpu,cpu"},
                {"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {"limits": {"nvidia.com/gpu" if gpu else "google.com/tpu": machine.chips_per_host}},
        "volumeMounts": [{"name": "runs", "mountPath": mount}],
    }  # fmt: skip
    pod: dict[str, Any] = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": grace,
        "nodeSelector": {"cloud.google.com/gke-accelerator" if gpu else "cloud.google.com/gke-tpu-accelerator":
                         ACCELERATORS[machine.kind]},
        "containers": [container],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}],
    }  # fmt: skip
    metadata: dict[str, Any] = {"name": name}
    if gpu:
        pod["serviceAccountName"] = name
        # NCCL's shared memory; a pod has 64 MB by default
        pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    else:
        pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] = machine.shape
        if pods > 1:  # a slice is a node pool
            metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    exits = [{"action": "FailJob", "onExitCodes": {"containerName": machine.program, "operator": "In",
                                                    "values": list(codes)}}
             for codes in (WRONG, (STOPPED,))]  # fmt: skip
    work = {"parallelism": pods, "completions": pods, "completionMode": "Indexed", "backoffLimit": 0,
            "podFailurePolicy": {"rules": exits}, "template": {"spec": pod}}  # fmt: skip
    # a Job that a rule of its pods has failed says "... failed with exit code 75 matching FailJob rule ..."
    rules = [
        {"name": "stopped", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"],
         "onJobFailureMessagePatterns": [rf"exit code {STOPPED}\b"]},
        {"name": "wrong", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
    ]  # fmt: skip
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata,
        "spec": {"failurePolicy": {"maxRestarts": max_restarts, "rules": rules},
                 "replicatedJobs": [{"name": "hosts", "replicas": machine.slices, "template": {"spec": work}}]},
    }  # fmt: skip
    return [*(_rights(name) if gpu else []), jobset]


def _rights(name: str) -> list[dict[str, Any]]:
    """An account that may read its pods, Jobs and services: JAX finds the other processes there."""
    rbac, subject = "rbac.authorization.k8s.io", {"kind": "ServiceAccount", "name": name}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": name}, "rules": [
            {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]}]},
        {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": name}, "subjects": [subject],
         "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name}},
    ]  # fmt: skip


def check_paths(job: Job, mount: str) -> None:
    """Refuses paths that pods do not share.

    Raises:
        LaunchError: naming them.
    """
    outside = [f"{name} = {path!r}" for name, path in (*job.folders, *job.files)
               if not PurePosixPath(path).is_relative_to(mount) and not (name in REMOTE and is_remote(path))]
    if outside:
        raise LaunchError(f"{', '.join(outside)}: not below the volume that all pods see at {mount}; put it there")


def make(experiment: config_lib.Experiment) -> str:
    """The manifest that the flags ask for, YAML.

    Raises:
        LaunchError, ConfigError: it cannot be made.
    """
    flag = flags.FLAGS
    job = starting.job(experiment)
    claim, _, mount = flag.claim.partition(":")
    if not claim or not mount.startswith("/"):
        raise LaunchError(f"--claim {flag.claim!r}: expected NAME:/path of a persistent volume claim")
    check_paths(job, mount)
    machine, name = job.machine, flag.name or re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")
    objects = manifest(job, name=name, image=flag.image, claim=claim, mount=mount, grace=flag.grace,
                       max_restarts=flag.max_restarts)  # fmt: skip
    head = (f"# {shlex.join(['python', '-m', 'experiments.launch.jobset', *sys.argv[1:]])}\n"
            f"# {machine.topology}, {machine.hosts} hosts of {machine.chips_per_host} chips, mesh "
            f"{' × '.join(f'{axis} {size}' for axis, size in machine.mesh.items())}; planned: {machine.memory}\n")
    return head + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def main() -> None:
    starting.run(make, start="start it with kubectl apply -f")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    starting.define_flags(workdir="below the mount of --claim", logs=", below the mount", out="manifest",
                          python="image", grace="that a pod has to save its state when it is to go",
                          restarted="JobSet")  # fmt: skip
    flags.adopt_module_key_flags(starting)  # so that --help shows them
    flags.DEFINE_string("claim", None, "NAME:/path of the persistent volume claim that all pods share.")
    flags.DEFINE_string("image", None, "Container image with wanjax.")
    flags.DEFINE_string("name", "", "Of the JobSet; by default the config's.")
    flags.mark_flags_as_required(["claim", "image"])
    config_flag.run(main)


if __name__ == "__main__":
    entry()
