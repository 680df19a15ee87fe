"""The formula of a step's memory: close below what compilers say, and never above."""

import dataclasses
import json
import pathlib

import pytest
from jax.sharding import AbstractMesh

from wanjax import config as config_lib
from wanjax import plan_memory, programs, topology
from wanjax.models.rows.dit import dit_rows
from wanjax.plan import Settings, plan
from wanjax.plan_memory import Copies
from wanjax.traffic import Work

ROOT = pathlib.Path(__file__).parents[1]
MADE = [line for line in map(json.loads, (ROOT / "benchmarks/results/plans.jsonl").read_text().splitlines())
        if line["plan"].get("program") in ("train", "sample")]  # fmt: skip
SMALL = {"model.width": 32, "model.layers": 2, "model.ffn": 64, "data.batch": 8, "data.frames": 9, "data.height": 32,
         "data.width": 32, "optimizer.name": "adamw", "mesh.fsdp": 4, "mesh.seq": 2}  # fmt: skip
CPU = topology.parse("cpu:8")


def bound(found):
    """By formula, of what a plan was made for; of its arguments only their sum is taken from it."""
    experiment, sizes = config_lib.from_dict(found["experiment"]), found["mesh"]
    mesh, machine = AbstractMesh(tuple(sizes.values()), tuple(sizes)), topology.parse(found["topology"])
    model, given = experiment.model, found["argument_bytes"]
    if found["program"] == "train":
        copies = Copies(given / plan_memory.shard(dit_rows(model), mesh))
        return plan_memory.training(experiment, mesh, programs.training_work(experiment), machine=machine,
                                    copies=copies)  # fmt: skip
    forwards = 1 if experiment.sample.guidance_high == 1.0 else 2
    work = Work(found["clips"], found["tokens"], experiment.text.length, forwards, forwards)  # --passes two
    return plan_memory.sampling(model, mesh, work, machine=machine, arguments=given)


@pytest.mark.parametrize("line", MADE, ids=[line["name"] for line in MADE])
def test_it_is_close_below_what_compilers_said_of_the_large_network(line):
    """Within a quarter: the closer, the fewer choices of a search are compiled in vain; above, one might be missed."""
    found = line["plan"]
    # the compiler of a tpu7x copies 16-bit weights into other tiles at every step: all of them once more
    copied = found["argument_bytes"] if found["program"] == "sample" and found["topology"].startswith("tpu7x") else 0
    assert bound(found) < found["peak_bytes_per_device"]
    assert 0.75 < (bound(found) + copied) / found["peak_bytes_per_device"] < 1


@pytest.fixture(scope="module")
def small():
    return config_lib.load(ROOT / "configs/light_scenes_tiny.py", SMALL)


@pytest.mark.parametrize("remat,chunk", [("none", 0), ("offload", 2)])
def test_it_is_below_what_simulated_devices_take(small, remat, chunk):
    model = dataclasses.replace(small.model, remat=remat, chunk_tokens=chunk)
    found = plan(dataclasses.replace(small, model=model), CPU, Settings("train"))
    assert 0 < bound(found) < found["peak_bytes_per_device"]


def of(experiment, **fields):
    """Bytes of a training step of the large network, or of one that differs in these fields."""
    model = dataclasses.replace(experiment.model, **fields)
    changed = dataclasses.replace(experiment, model=model)
    mesh = AbstractMesh((1, 16, 4, 1), ("data", "fsdp", "seq", "tensor"))
    machine = topology.parse("v6e:8x8")
    return plan_memory.training(changed, mesh, programs.training_work(changed), machine=machine, copies=Copies(16.0))


def test_it_tells_policies_and_chunks_apart():
    """18,900 tokens on a device: what a policy keeps of 40 blocks is on the device, or on its host."""
    large = config_lib.load(ROOT / "configs/t2v_a14b.py", {"data.height": 720, "data.width": 1280, "data.batch": 16})
    policies = [of(large, remat=remat) for remat in ("offload", "full", "attention")]
    stream, value = 40 * 18900 * 5120 * 4, 40 * 18900 * 5120 * 2
    assert policies[1] - policies[0] == stream and policies[2] - policies[1] == value
    assert of(large, remat="dots") > policies[2] and of(large, remat="none") > of(large, remat="dots")
    sizes = [of(large, chunk_tokens=size) for size in (1024, 2048, 4096, 8192, 0)]
    assert sizes == sorted(sizes) and sizes[2] < sizes[3] < sizes[4]
    assert of(large, chunk_tokens=18900) == of(large, chunk_tokens=0)  # all tokens of a device


@pytest.mark.parametrize(("chips", "fsdp", "seq", "fields", "needed", "arguments", "host"), [
    ("v5p:4x4x4", 16, 4, {"data.batch": 16, "optimizer.ema_decay": 0.0}, 9.74e9, 2.75e9, 0.0),
    ("v5p:4x4x4", 16, 4, {"data.batch": 16, "optimizer.ema_decay": 0.0}, 8.05e9, 0.99e9, 17.44e9 - 15.68e9),
    ("v6e:2x4", 8, 1, {"data.batch": 8, "model.chunk_tokens": 8192}, 29.99e9, 7.57e9, 21.08e9),
])  # fmt: skip
def test_state_on_the_hosts_is_not_on_the_devices(chips, fsdp, seq, fields, needed, arguments, host):
    """benchmarks/results/state_memory.md: an expert on 64 chips, with state on either, and on 8."""
    large = config_lib.load(ROOT / "configs/t2v_a14b.py", {
        "data.height": 720, "data.width": 1280, **fields, "optimizer.state_memory": "host" if host else "device",
    })  # fmt: skip
    mesh, machine = AbstractMesh((1, fsdp, seq, 1), ("data", "fsdp", "seq", "tensor")), topology.parse(chips)
    own, work = plan_memory.shard(dit_rows(large.model), mesh), programs.training_work(large)
    least = plan_memory.training(large, mesh, work, machine=machine, copies=Copies(arguments / own, host / own))
    assert 0.75 < least / needed < 1
    # two layers of it are, beside the gradient: here more than the activations, which are gone by then
    most = plan_memory.training(large, mesh, work, machine=machine, copies=Copies(0, 1000.0))
    assert most == 4 * own + 2 * 1000 * own // 40


def test_gradients_of_several_micro_batches_are_summed_beside_those_of_one():
    mesh = AbstractMesh((1, 16, 4, 1), ("data", "fsdp", "seq", "tensor"))
    config = ROOT / "configs/t2v_a14b.py"
    once, twice = (config_lib.load(config, {"data.batch": 32 * n, "train.accumulate": n}) for n in (1, 2))
    sizes = [plan_memory.training(each, mesh, programs.training_work(each), machine=topology.parse("h100:8x8"),
                                  copies=Copies(16.0)) for each in (once, twice)]  # fmt: skip
    assert sizes[1] - sizes[0] == 4 * plan_memory.shard(dit_rows(once.model), mesh)
