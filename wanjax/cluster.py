"""Several processes that run one program: how they come together, and what they tell each other outside the devices.

A process is one of several where SLURM, Kubernetes or Cloud TPU started it as one, or where it is told so; JAX's own
cluster detection then finds the others. Everywhere else nothing is set up, and what is here is immediate.

Words go through the key-value store of JAX's coordination service, which process 0 holds: they arrive where devices
differ, and while another process takes hours for what it does alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import jax
from jax._src import cloud_tpu_init, distributed  # the store has no public name yet (jax 0.10, 0.11)

T = TypeVar("T")

START_SECONDS = 600  # for the first process to wait for the last: machines of one job start at different times
# JAX's own heartbeat; the watch (wanjax.heartbeat), which knows names, is quicker
HEARTBEAT_SECONDS = 50
_DAYS = 7 * 24 * 3600  # of waiting: what ends a wait for a process that is gone is the watch
_DONE, _FAILED = "done", "failed: "
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class ClusterError(RuntimeError):
    """Processes that cannot come together, or do not agree; the message says which, and what to do."""


class Store(Protocol):
    """What is used of the coordination service's client."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run, seen from one of them.

    Attributes:
        process: this one's index; 0 writes what is written once.
        processes: how many there are.
        names: of each, for messages: index, host and process id.
        store: None for a single process.
        coordinator: host:port at which process 0 holds the store.
    """

    process: int = 0
    processes: int = 1
    names: tuple[str, ...] = ("process 0",)
    store: Store | None = None
    coordinator: str = ""

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.process == 0

    def say(self, message: str) -> None:
        """Prints once, however many processes there are."""
        if self.first:
            print(message, flush=True)

    def gather(self, what: str, value: str) -> list[str]:
        """Every process's value, in their order, once all have given theirs.

        Args:
            what: a name that is used once in a run.
        """
        if self.store is None:
            return [value]
        self.store.key_value_set(f"wanjax/{what}/{self.process}", value)
        return [self.store.blocking_key_value_get(f"wanjax/{what}/{i}", 1000 * _DAYS) for i in range(self.processes)]

    def once(self, what: str, make: Callable[[], T], errors: tuple[type[Exception], ...]) -> T | None:
        """What ``make`` returns on process 0; None on the others, after it is done there.

        Args:
            what: a name that is used once in a run.
            errors: that ``make`` may raise.

        Raises:
            ClusterError: on all, when it raised one of ``errors`` on process 0; a single process raises that itself.
        """
        key = f"wanjax/{what}"
        if self.store is None:
            return make()
        if not self.first:
            said = self.store.blocking_key_value_get(key, 1000 * _DAYS)
            if said != _DONE:
                raise ClusterError(f"{self.names[0]}: {said.removeprefix(_FAILED)}")
            return None
        try:
            made = make()
        except errors as error:
            self.store.key_value_set(key, f"{_FAILED}{error}")
            raise ClusterError(str(error)) from error
        self.store.key_value_set(key, _DONE)
        return made

    def each(self, what: str, make: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
        """What ``make`` returns on this process, once it is done on all of them.

        Args:
            what: a name that is used once in a run.
            errors: that ``make`` may raise.

        Raises:
            ClusterError: on all, when it raised one of ``errors`` on some; a single process raises that itself.
        """
        if self.store is None:
            return make()
        made, said = None, _DONE
        try:
            made = make()
        except errors as error:
            said = f"{_FAILED}{error}"
        failed: dict[str, list[int]] = {}
        for i, one in enumerate(self.gather(what, said)):
            if one != _DONE:
                failed.setdefault(one.removeprefix(_FAILED), []).append(i)
        if failed:
            raise ClusterError("\n".join(f"{self._whose(own)}{message}" for message, own in failed.items()))
        return cast(T, made)

    def _whose(self, own: list[int]) -> str:
        """Before a message: nothing where it is everybody's."""
        return "" if len(own) == self.processes else f"{', '.join(self.names[i] for i in own)}: "

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Compares facts, JSON types by name, that have to be the same on every process.

        Raises:
            ClusterError: naming each that differs, with its values and whose they are.
        """
        found = [json.loads(each) for each in self.gather(what, json.dumps(facts))]
        if wrong := disagreements(found):
            raise ClusterError(f"the processes do not agree on {what}:\n" + "\n".join(f"  {line}" for line in wrong) +
                               "\n" + "\n".join(self.names) + "\nStart all of them with the same code, config and "
                               "data")  # fmt: skip


def disagreements(found: list[dict[str, Any]]) -> list[str]:
    """One line for each fact that differs: its values, and the processes that have them.

    Args:
        found: the facts of each process.
    """
    out = []
    for name in sorted({name for facts in found for name in facts}):
        groups: dict[str, list[int]] = {}
        for i, facts in enumerate(found):
            groups.setdefault(repr(facts[name]) if name in facts else "absent", []).append(i)
        if len(groups) > 1:
            # what most have comes first: the others are the ones to look at
            ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
            out.append(f"{name}: " + "; ".join(f"{value} on {processes(own)}" for value, own in ordered))
    return out


def processes(indices: list[int]) -> str:
    """"process 3", "processes 0, 2", "processes 0 … 63"; sorted indices."""
    if len(indices) == 1:
        return f"process {indices[0]}"
    if len(indices) > 2 and indices[-1] - indices[0] == len(indices) - 1:
        return f"processes {indices[0]} … {indices[-1]}"
    return f"processes {', '.join(map(str, indices))}"


def detected(environment: Mapping[str, str], *, tpu: bool) -> str | None:
    """What says that this process is one of several: "SLURM", "Cloud TPU", "Kubernetes", or None.

    A batch script or a shell under SLURM, a task that is alone, and a pod of no indexed Job are single processes.

    Args:
        environment: variables.
        tpu: whether this is a machine of Cloud TPU.
    """
    if all(name in environment for name in _SLURM):
        return "SLURM" if int(environment["SLURM_NTASKS"]) > 1 else None
    if tpu:
        return "Cloud TPU"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return None


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Cluster:
    """Joins the other processes; before anything has looked for devices.

    Args:
        coordinator: host:port that process 0 listens on and all can reach; None: what JAX detects.
        processes: how many there are; 1 is a single process whatever the environment says.
        process: which of them this is, from 0.

    Raises:
        ClusterError: some of the three are missing, or the others do not come.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if processes == 1 and len(missing) == 2:
        return Cluster()
    if len(missing) in (1, 2):
        raise ClusterError(f"{', '.join(n for n in given if n not in missing)} without {' and '.join(missing)}: give "
                           "all three on each process, or none where SLURM, Kubernetes or Cloud TPU starts "
                           "them")  # fmt: skip
    kind, arguments = "--coordinator", dict[str, Any]()
    if not missing:
        assert coordinator is not None and processes is not None and process is not None
        if not re.fullmatch(r".+:\d+", coordinator) or not 0 <= process < processes:
            raise ClusterError(f"--coordinator {coordinator!r}, --processes {processes}, --process {process}: expected "
                               "host:port, and a process from 0 to one less than their number")  # fmt: skip
        arguments = dict(coordinator_address=coordinator, num_processes=processes, process_id=process,
                         cluster_detection_method="deactivate")  # fmt: skip
    else:
        # on a TPU's machine that is told to use its processor there is nothing to be several of
        tpu = cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
        found = detected(os.environ, tpu=tpu)
        if found is None:
            return Cluster()
        kind = found
        if kind == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
            raise ClusterError("this is a pod of an indexed Job, and JAX finds the others with the package kubernetes, "
                               "which is not installed: pip install \"wanjax[k8s]\", or give --processes=1 if it is "
                               "alone")  # fmt: skip
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=START_SECONDS,
                                   heartbeat_timeout_seconds=HEARTBEAT_SECONDS)  # fmt: skip
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise ClusterError(f"the processes did not come together ({kind}): {error}") from error
    state = distributed.global_state
    if state.num_processes == 1:
        return Cluster()
    assert state.coordinator_address is not None
    alone = Cluster(state.process_id, state.num_processes, (), state.client, state.coordinator_address)
    own = f"process {state.process_id} (host {socket.gethostname()}, pid {os.getpid()})"
    return dataclasses.replace(alone, names=tuple(alone.gather("names", own)))
