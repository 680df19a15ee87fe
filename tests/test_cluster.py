"""Several processes: how one knows that it is one of them, and what they tell each other."""

import pytest

from tests.fake_store import clusters, together
from wanjax import cluster
from wanjax.cluster import Cluster, ClusterError, detected, disagreements, start

TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "3",
        "SLURM_LOCALID": "3"}  # fmt: skip
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(("environment", "tpu", "found"), [
    ({}, False, None),
    (TASK, False, "SLURM"),
    (TASK | {"SLURM_NTASKS": "1"}, False, None),  # srun of one task, which may have many GPUs
    ({name: TASK[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}, False, None),  # a batch script itself
    ({}, True, "Cloud TPU"),
    (POD | {"JOB_COMPLETION_INDEX": "0"}, True, "Cloud TPU"),
    (POD | {"JOB_COMPLETION_INDEX": "0"}, False, "Kubernetes"),
    (POD, False, None),  # a notebook in a cluster
])  # fmt: skip
def test_what_says_that_a_process_is_one_of_several(environment, tpu, found):
    assert detected(environment, tpu=tpu) == found


@pytest.fixture
def joined(monkeypatch):
    """Arguments of jax.distributed.initialize, which does nothing; no cluster around."""
    calls = []
    monkeypatch.setattr(cluster.jax.distributed, "initialize", lambda **given: calls.append(given))
    for name in (*TASK, *POD, "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster.cloud_tpu_init, "running_in_cloud_tpu_vm", False)
    return calls


def test_without_a_cluster_nothing_is_set_up(joined, monkeypatch):
    assert start() == Cluster() and not joined
    # a TPU's machine, told to use its processor (as the tests are)
    monkeypatch.setattr(cluster.cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    assert start() == Cluster() and not joined


def test_one_process_is_alone_whatever_the_environment_says(joined, monkeypatch):
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert start(processes=1) == Cluster() and not joined


def test_under_slurm_jax_finds_the_others_itself(joined, monkeypatch):
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    start()
    assert joined == [{"initialization_timeout": cluster.START_SECONDS,
                       "heartbeat_timeout_seconds": cluster.HEARTBEAT_SECONDS}]  # fmt: skip


def test_told_where_the_others_are_nothing_is_looked_for(joined):
    start("localhost:1234", 4, 2)
    assert joined[0] | {"coordinator_address": "localhost:1234", "num_processes": 4, "process_id": 2,
                        "cluster_detection_method": "deactivate"} == joined[0]  # fmt: skip


@pytest.mark.parametrize(("given", "words"), [
    ({"coordinator": "localhost:1234"}, ["--coordinator without --processes and --process"]),
    ({"processes": 4, "process": 0}, ["--processes, --process without --coordinator"]),
    ({"coordinator": "localhost", "processes": 4, "process": 0}, ["host:port"]),
    ({"coordinator": "localhost:http", "processes": 4, "process": 0}, ["host:port"]),
    ({"coordinator": "localhost:1", "processes": 0, "process": 0}, ["--processes 0"]),
    ({"coordinator": "localhost:1", "processes": 4, "process": 4}, ["--process 4", "from 0"]),
])  # fmt: skip
def test_what_is_missing_or_wrong_is_named(joined, given, words):
    with pytest.raises(ClusterError) as error:
        start(**given)
    assert not joined and all(word in str(error.value) for word in words)


def test_a_pod_without_the_package_that_jax_asks_names_it(joined, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"wanjax\[k8s\]"):
        start()
    assert not joined


def test_one_that_does_not_come_is_an_error(joined, monkeypatch):
    def late(**given):
        raise RuntimeError("DEADLINE_EXCEEDED: 1/4 tasks")

    monkeypatch.setattr(cluster.jax.distributed, "initialize", late)
    with pytest.raises(ClusterError, match=r"did not come together \(--coordinator\): DEADLINE_EXCEEDED: 1/4"):
        start("localhost:1234", 4, 2)


def test_a_disagreement_names_values_and_processes_the_majority_first():
    same = {"jax": "0.10.2", "config.model.width": 64}
    assert disagreements([same] * 4) == []
    assert disagreements([same, same | {"jax": "0.11.0"}, same, same]) == [
        "jax: '0.10.2' on processes 0, 2, 3; '0.11.0' on process 1"]  # fmt: skip
    assert disagreements([{}, *[{"flags": ""}] * 5]) == ["flags: '' on processes 1 … 5; absent on process 0"]
    assert disagreements([{"a": 1.0}, {"a": 1}]) == ["a: 1.0 on process 0; 1 on process 1"]


def test_all_processes_have_one_and_the_same_error_about_what_differs():
    several = clusters(3)
    errors = together(*[lambda c=c: c.agree("the program", {"jax": "0.10.2", "config.seed": int(c.process == 2)})
                        for c in several])  # fmt: skip
    assert len({str(error) for error in errors}) == 1 and isinstance(errors[0], ClusterError)
    assert "do not agree on the program" in str(errors[0]) and "jax" not in str(errors[0])
    assert "config.seed: 0 on processes 0, 1; 1 on process 2" in str(errors[0])
    assert "process 2 (host h2, pid 102)" in str(errors[0])
    assert together(*[lambda c=c: c.agree("the data", {"a": [1, None]}) for c in several]) == [None] * 3
    Cluster().agree("nothing", {"with": "whom"})


def test_what_is_done_once_is_done_by_process_0_before_the_others_go_on():
    done = []

    def make(process):
        done.append(process)
        return "made"

    assert together(*[lambda c=c: (c.once("cache", lambda: make(c.process), (OSError,)), len(done))
                      for c in reversed(clusters(3))]) == [(None, 1), (None, 1), ("made", 1)]  # fmt: skip
    assert done == [0]


def test_what_fails_on_process_0_fails_everywhere_with_its_words():
    def full():
        raise OSError("the disk is full")

    errors = together(*[lambda c=c: c.once("cache", full, (OSError,)) for c in clusters(3)])
    assert [type(error) for error in errors] == [ClusterError] * 3
    assert [str(error) for error in errors] == ["the disk is full",
                                                *["process 0 (host h0, pid 100): the disk is full"] * 2]  # fmt: skip
    with pytest.raises(OSError, match="the disk is full"):  # a single process has its own error
        Cluster().once("cache", full, (OSError,))


def test_what_each_does_counts_once_all_have_done_it():
    assert together(*[lambda c=c: c.each("read", lambda: c.process, (OSError,)) for c in clusters(3)]) == [0, 1, 2]


@pytest.mark.parametrize(("failing", "words"), [
    ([1], "process 1 (host h1, pid 101): no file a"),  # on one machine alone
    ([0, 1, 2], "no file a"),  # everywhere: a mistake, said once
])  # fmt: skip
def test_what_fails_on_some_fails_everywhere_with_whose_it_is(failing, words):
    def read(process):
        if process in failing:
            raise OSError("no file a")

    errors = together(*[lambda c=c: c.each("read", lambda: read(c.process), (OSError,)) for c in clusters(3)])
    assert [(type(error), str(error)) for error in errors] == [(ClusterError, words)] * 3
    with pytest.raises(OSError, match="no file a"):
        Cluster().each("read", lambda: read(1), (OSError,))
