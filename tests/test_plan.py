"""The planner: what it says of the default config on simulated devices, of what does not fit, and a second time."""

import dataclasses
import json
import math
import os
import pathlib
import sys

import jax
import numpy as np
import pytest

from experiments import plan as launcher
from tests import forked, xla_flags
from wanjax import codec_work, hub, offload, optim, plan_cache, plan_remedies, plan_search, programs, topology
from wanjax import config as config_lib
from wanjax.codec import find_codec
from wanjax.compiled_memory import Memory, argument_bytes
from wanjax.config import ConfigError
from wanjax.models import rows
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.plan import PlanError, Settings, plan
from wanjax.plan_table import table

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "configs/light_scenes_tiny.py"
SMALL = {"model.width": 32, "model.layers": 2, "model.ffn": 64, "data.batch": 8, "data.frames": 9, "data.height": 32,
         "data.width": 32, "optimizer.name": "adamw"}  # fmt: skip
CPU = topology.parse("cpu:8")
KEYS = {"params", "chips", "devices", "mesh", "fits", "hbm_bytes_per_device", "peak_bytes_per_device", "argument_bytes",
        "temp_bytes", "host_bytes", "flops_per_step", "executed_flops", "attention_kernels", "collectives",
        "collective_bytes", "minimum_collective_bytes",
        "compile_seconds", "estimate", "warnings"}  # fmt: skip


def small(**overrides):
    return config_lib.load(TINY, {**SMALL, **overrides})


@pytest.fixture(scope="module")
def tiny():
    return plan(config_lib.load(TINY), CPU, Settings("train"))


def test_the_default_config_is_planned_on_eight_devices(tiny):
    experiment = config_lib.load(TINY)
    assert KEYS <= tiny.keys() and json.loads(json.dumps(tiny)) == tiny
    assert (tiny["chips"], tiny["devices"], tiny["mesh"]["fsdp"], tiny["tokens"]) == (8, 8, 8, 5 * 4 * 4)
    assert tiny["params"] == rows.count(dit_rows(experiment.model))
    assert tiny["fits"] and tiny["peak_bytes_per_device"] > tiny["argument_bytes"] > 0
    # parameters, EMA and Muon's one moment, in float32: a little more than an eighth of each, AdamW's part has two
    share = 3 * 4 * tiny["params"] / 8
    assert share < tiny["argument_bytes"] < 1.5 * share
    assert tiny["temp_bytes"] > 0 and tiny["host_bytes"] == 0 and tiny["estimate"] is None


def test_a_step_gathers_every_block_twice_and_scatters_its_gradient(tiny):
    layers = 6
    found = {(line["op"], line["dtype"]): line for line in tiny["collectives"] if line["axes"] == ["fsdp"]}
    matrices = sum(bool(row.stacked) and len(row.shape) == 2 for row in dit_rows(config_lib.load(TINY).model))
    assert found["all-gather", "f32"]["count"] >= 2 * layers * 10 and matrices >= 10
    assert found["reduce-scatter", "f32"]["count"] >= layers
    assert tiny["minimum_collective_bytes"] <= tiny["collective_bytes"]
    assert tiny["collective_bytes"] == sum(line["bytes"] for line in tiny["collectives"])


def test_executed_operations_are_those_of_the_model_and_some_more(tiny):
    """Muon multiplies matrices, too, and a block is computed again where the config says so."""
    assert 1 <= tiny["executed_flops"] / tiny["flops_per_step"] < 2
    assert tiny["attention_kernels"] == []  # a CPU has none


def test_a_table_has_the_figures(tiny):
    text = table(tiny)
    for part in ("cpu:8: fits", f"{tiny['params']:,} parameters", "16 clips of 80 tokens", "mesh fsdp 8", "all-gather",
                 "warning: simulated devices"):  # fmt: skip
        assert part in text, part


def test_sampling_is_the_launcher_s_step_on_the_mesh():
    found = plan(small(**{"mesh.fsdp": 2, "mesh.seq": 2, "mesh.data": 2, "data.batch": 4}), CPU, Settings("sample"))
    assert (found["clips"], found["mesh"]) == (4, {"data": 2, "fsdp": 2, "seq": 2, "tensor": 1})
    assert found["flops_formula"].startswith("2 × clips")
    assert {line["op"] for line in found["collectives"]} >= {"all-gather", "all-to-all"}
    turned = {tuple(line["axes"]): line["count"] for line in found["collectives"] if line["op"] == "all-to-all"}
    assert turned["seq",] >= 4 * 2  # q, k, v and the output of self-attention, in two blocks


def test_two_passes_gather_twice_and_without_guidance_there_is_one():
    once = plan(small(**{"sample.guidance_high": 1.0}), CPU, Settings("sample", clips=16))
    twice = plan(small(), CPU, Settings("sample", clips=16, passes="two"))
    gathered = [sum(line["count"] for line in found["collectives"] if line["op"] == "all-gather")
                for found in (once, twice)]  # fmt: skip
    assert gathered[0] >= 2 * 10 and gathered[1] >= gathered[0] + 2 * 10  # ten matrices in each of two blocks
    for found, passes in ((once, 1), (twice, 2)):
        assert found["flops_formula"].startswith(f"{passes} × clips")
        assert found["flops_per_step"] == passes * once["flops_per_step"]
    # what stands outside the blocks is gathered once
    assert once["minimum_collective_bytes"] < twice["minimum_collective_bytes"] < 2 * once["minimum_collective_bytes"]


def test_decoding_is_planned_over_rows_of_frames():
    """Of 4 latent rows on 8 devices: the lower half of them has none."""
    found = plan(small(**{"mesh.fsdp": 4, "mesh.seq": 2}), CPU, Settings("decode"))
    codec = hub.open_network(find_codec(small().codec), "vae").config
    assert (found["clips"], found["mesh"]["seq"], found["tokens"]) == (1, 8, 16)
    assert found["flops_per_step"] == codec_work.chunk_flops(codec, "decode", 4, 4)
    assert 1 < found["executed_flops"] / found["flops_per_step"] < 2.1
    assert found["params"] == rows.count(vae_rows(codec)) and found["fits"]
    assert {line["op"] for line in found["collectives"]} >= {"collective-permute", "all-gather"}
    assert {tuple(line["axes"]) for line in found["collectives"]} == {("seq",)}
    assert 0 < found["minimum_collective_bytes"] < found["collective_bytes"]


def test_encoding_takes_clips_over_the_config_s_mesh():
    experiment, mesh = programs.lay_out(small(**{"mesh.fsdp": 4, "mesh.seq": 2}), jax.devices())
    program = programs.encode(experiment, mesh, clips=8)
    codec = hub.open_network(find_codec(experiment.codec), "vae").config
    assert program.flops == 8 * codec_work.clip_flops(codec, "encode", 3, 4, 4)
    chunks = ((True, 1), (False, 2))
    assert program.minimum == 2 * sum(count * codec_work.chunk_bytes(codec, "encode", 4, 4, 2, 4, first=first)
                                      for first, count in chunks)  # fmt: skip
    (_, video), _ = program.lower().args_info
    assert (video.shape, video.dtype.name) == ((8, 9, 32, 32, 3), "uint8")
    with pytest.raises(ConfigError, match="--clips = 3: expected a multiple of 4"):
        programs.encode(experiment, mesh, clips=3)


def test_parameters_in_host_memory_are_the_host_s():
    one, blocks = (plan(small(), CPU, Settings("sample", holding=holding)) for holding in ("one", "blocks"))
    matrices = sum(math.prod(row.full_shape) for row in dit_rows(small().model) if offload.is_streamed(row))
    assert (one["host_bytes"], blocks["host_bytes"]) == (0, matrices * 4 // 8)
    assert blocks["argument_bytes"] < one["argument_bytes"]
    short = plan(small(), CPU, Settings("sample", holding="blocks", param_dtype="bfloat16"))
    assert [[each[name] for name in ("holding", "passes", "param_dtype")] for each in (one, short)] == [
        ["one", "batched", "float32"], ["blocks", "batched", "bfloat16"]]  # what a job of it is started with
    assert short["host_bytes"] == matrices * 2 // 8


def test_state_in_host_memory_is_the_host_s():
    device, host = (programs.train(*programs.lay_out(small(**{"optimizer.state_memory": memory}), jax.devices()))
                    for memory in optim.MEMORIES)  # fmt: skip
    matrices = sum(math.prod(row.full_shape) for row in dit_rows(small().model) if offload.is_streamed(row))
    moved = argument_bytes(device.arguments) - argument_bytes(host.arguments)
    assert moved == 3 * 4 * matrices // 8  # the average and two moments
    assert pinned(host) == moved and pinned(device) == 0
    copies = [plan_search._copies(program) for program in (device, host)]
    assert copies[1].host == pytest.approx(12 * matrices / rows.count(device.rows)) and copies[0].host == 0
    assert copies[0].device == pytest.approx(sum(copies[1]))


def pinned(program):
    """Bytes of one device's arguments in its host's memory."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(program.arguments) if leaf.sharding.memory_kind == offload.HOST)  # fmt: skip


def test_a_time_is_expected_where_kernels_were_measured(monkeypatch):
    """Of a program that is compiled for a CPU here: it is the planner that is tested."""
    monkeypatch.setattr("wanjax.topology.devices", lambda machine: jax.devices())
    found = plan(small(), topology.parse("h200:1x8"), Settings("sample"))
    expected = found["estimate"]["expected"]
    parts = [expected[f"{name}_seconds"] for name in ("matmul", "attention", "elementwise", "host")]
    assert expected["step_seconds"] == pytest.approx(max(sum(parts), expected["network_seconds"]))
    assert expected["network_seconds"] == found["estimate"]["network_seconds"] > 0 and parts[0] > 0 and parts[2] > 0
    assert any("none that sends: for what is sent" in warning for warning in found["warnings"])
    assert any("float32 for them, of which none was measured" in warning for warning in found["warnings"])
    assert f"expected  {expected['step_seconds']:.3g} s a step" in table(found)
    without = {**found, "estimate": {**found["estimate"], "expected": None}}
    assert "expected  –: no kernels were measured" in table(without)


def test_what_does_not_fit_into_a_host_says_by_how_much(monkeypatch):
    monkeypatch.setattr("wanjax.topology.devices", lambda machine: jax.devices())
    monkeypatch.setattr("wanjax.plan.compile_with_memory", lambda lowered, arguments, dump: (
        None, Memory(10_000_000_000, 2_000_000_000, host=60_000_000_000)))  # fmt: skip
    experiment = small(**{"model.remat": "offload", "optimizer.state_memory": "host"})
    found = plan(experiment, topology.parse("v5e:2x4"), Settings("train"))
    (said,) = (warning for warning in found["warnings"] if "host" in warning)
    assert said.startswith("does not fit into its hosts: 480.0 GB pinned for the 8 devices of each are 96.0 GB more")
    for remedy in ("config.model.remat=attention", "config.optimizer.state_memory=device"):
        assert remedy in said
    assert found["fits"] and "60.000 GB per device, 480.000 GB of each host, which has 384 GB" in table(found)
    for memory in (480_000_000_000, None):  # enough, and not known
        assert plan_remedies.of_hosts(experiment, {**found, "host_memory_bytes": memory}, holding="one") is None


def test_every_condition_and_term_of_a_config_can_be_planned():
    image = {"model.in_channels": 36, "train.first_frame": 1.0}
    assert plan(small(**image), CPU, Settings("sample"))["params"] > plan(small(), CPU, Settings("sample"))["params"]
    pixels = {"train.expert": "low", "objective.temporal_luminance.weight": 0.1, "objective.shadow.weight": 0.1,
              "objective.shadow.head.depths": (0.5, 1.0)}  # fmt: skip
    _, mesh = programs.lay_out(small(), jax.devices())
    absent = small(**image, **pixels, **{"codec": "not/here", "mesh.fsdp": 8})
    (warning,) = programs.train(absent, mesh).warnings
    assert "config.codec = 'not/here' is not here: planned with the published codec" in warning
    shipped = programs.train(dataclasses.replace(absent, codec="light_scenes_tiny"), mesh)
    assert shipped.warnings == ()
    _, batch, _, decoder = shipped.lower().args_info[0]
    shapes = {name: leaf.shape for name, leaf in batch.items()}
    assert shapes == {"latents": (8, 3, 4, 4, 16), "text": (8, 64, 64), "visibility": (8, 3, 8, 8),
                      "image": (8, 3, 4, 4, 16)}  # fmt: skip
    assert jax.tree.leaves(decoder)


def test_the_step_is_the_one_that_trains():
    """Shapes of the state and the batch are those that the launcher makes."""
    experiment, mesh = programs.lay_out(small(), jax.devices())
    lowered = programs.train(experiment, mesh).lower()
    state, batch, key, decoder = lowered.args_info[0]
    assert {name: leaf.shape for name, leaf in batch.items()} == {"latents": (8, 3, 4, 4, 16), "text": (8, 64, 64)}
    assert decoder is None and key.shape == ()
    assert all(leaf.donated for leaf in jax.tree.leaves(state))
    assert not any(leaf.donated for leaf in jax.tree.leaves(batch))


def test_a_lora_is_planned_beside_weights_that_stay():
    whole = programs.train(*programs.lay_out(small(**{"mesh.fsdp": 8}), jax.devices()))
    rank = {"lora.rank": 4, "train.init_from": "anywhere", "mesh.fsdp": 8, "optimizer.state_memory": "host"}
    program = programs.train(*programs.lay_out(small(**rank), jax.devices()))
    state, batch, _, decoder, base = program.lower().args_info[0]
    assert all(leaf.donated for leaf in jax.tree.leaves(state))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(base)} == {"bfloat16"}
    assert not any(leaf.donated for leaf in jax.tree.leaves(base))
    assert rows.count(program.frozen) == rows.count(whole.rows) > 3 * rows.count(program.rows)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == rows.count(program.rows)
    found = plan(small(**rank), CPU, Settings("train"))
    assert (found["params"], found["frozen_params"]) == (rows.count((*program.rows, *program.frozen)),
                                                        rows.count(program.frozen))  # fmt: skip
    batch = 4 * (3 * 4 * 4 * 16 + 64 * 64)  # a clip and its text
    assert found["argument_bytes"] == pytest.approx(argument_bytes(program.arguments) + batch, abs=64)
    assert found["host_bytes"] == pinned(program) > 0
    assert found["host_memory_bytes"] is None  # simulated devices have none apart from their own
    # of the gradients, those of factors alone travel
    summed = sum(line["bytes"] for line in found["collectives"] if line["op"] in ("reduce-scatter", "all-reduce"))
    assert 0 < summed < 2.1 * 4 * rows.count(program.rows) < 4 * rows.count(whole.rows)
    assert rows.count(program.frozen) < found["minimum_collective_bytes"] < found["collective_bytes"]


def test_what_does_not_fit_says_by_how_much_and_what_helps(monkeypatch):
    monkeypatch.setattr("wanjax.plan.compile_with_memory", lambda lowered, arguments, dump: (
        None, Memory(30_000_000_000, 2_000_000_000, available=16_000_000_000)))  # fmt: skip
    training = plan(small(**{"model.remat": "dots", "data.batch": 16}), CPU, Settings("train"))
    assert not training["fits"] and training["collectives"] is training["estimate"] is None
    last = training["warnings"][-1]
    assert last.startswith("does not fit: 14.00 GB too much on each device; what helps: config.model.remat=offload")
    for remedy in ("config.optimizer.state_memory=host", "config.train.accumulate=2", "config.mesh.seq=2",
                   "batch a multiple of 4"):
        assert remedy in last, remedy
    sampling = plan(small(), CPU, Settings("sample", clips=16))["warnings"][-1]
    assert "--holding" not in sampling  # parameters are 2 GB of the 14 that are too much
    for remedy in ("--passes two", "--clips 8", "config.mesh.seq=2"):
        assert remedy in sampling, remedy
    least = plan(small(), CPU, Settings("sample", holding="blocks", passes="two"))["warnings"][-1]
    assert "--passes" not in least and "--clips" not in least
    split = {"mesh.fsdp": 4, "mesh.seq": 2}
    longer = plan(small(**split), CPU, Settings("sample"))["warnings"][-1]
    assert "config.mesh.seq=4" in longer
    heads = dataclasses.replace(small(**split), model=dataclasses.replace(small().model, sequence="heads"))
    whole = plan(heads, CPU, Settings("sample"))["warnings"][-1]
    assert "more chips, and a larger config.mesh.seq" in whole  # two heads go over no more than two
    assert "DOES NOT FIT" in table(training) and "unknown" in table(training)


def test_state_alone_that_is_too_large_wants_more_chips(monkeypatch):
    monkeypatch.setattr("wanjax.plan.compile_with_memory", lambda lowered, arguments, dump: (
        None, Memory(30_000_000_000, 20_000_000_000, available=16_000_000_000)))  # fmt: skip
    found = plan(small(**{"mesh.data": 2}), CPU, Settings("train"))["warnings"][-1]
    assert "more chips, or chips with more" in found and "config.mesh.fsdp in the place of data" in found
    assert "seq" not in found
    held = [plan(small(), CPU, Settings("sample", holding=holding))["warnings"][-1] for holding in ("one", "blocks")]
    assert ["--holding blocks" in text for text in held] == [True, False]


def test_a_gpu_whose_memory_jax_does_not_take_by_itself_is_told_of(monkeypatch):
    monkeypatch.setattr("wanjax.topology.devices", lambda machine: jax.devices())
    for peak, told in ((70_000_000_000, True), (60_000_000_000, False)):
        monkeypatch.setattr("wanjax.plan.compile_with_memory", lambda lowered, arguments, dump, peak=peak: (
            None, Memory(peak, 2_000_000_000)))  # fmt: skip
        found = plan(small(), topology.parse("h100:1x8"), Settings("sample"))
        assert found["fits"] and any("MEM_FRACTION=0.95" in warning for warning in found["warnings"]) == told


@pytest.mark.parametrize("settings,message", [
    ({"program": "serve"}, "--program 'serve': expected one of train, sample, encode, decode"),
    ({"program": "decode", "clips": 2}, "--clips: not of --program decode; clips are decoded one at a time"),
    ({"program": "encode", "holding": "one"}, "--holding: not of --program encode; it takes --clips alone"),
    ({"program": "train", "clips": 4, "passes": "two"}, "--clips, --passes: not of --program train; a training step"),
    ({"program": "sample", "holding": "both"}, "--holding 'both': expected one of one, blocks"),
    ({"program": "sample", "param_dtype": "int8"}, "--param_dtype 'int8': expected one of float32, bfloat16"),
    ({"program": "sample", "passes": "three"}, "--passes 'three': expected one of batched, two"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(PlanError, match=message):
        Settings(**settings)


def test_what_does_not_divide_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match="--clips = 3: expected a multiple of 8 = mesh data·fsdp"):
        plan(small(), CPU, Settings("sample", clips=3))
    with pytest.raises(ConfigError, match="config.data.batch = 12: expected a multiple of 8"):
        plan(small(**{"data.batch": 12}), CPU, Settings("train"))
    with pytest.raises(ConfigError, match="needs a multiple of 3 devices, but there are 8"):
        plan(small(**{"mesh.tensor": 3, "model.heads": 6, "model.width": 36}), CPU, Settings("train"))


def test_the_same_question_is_answered_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(launcher, "plan", lambda *question: asked.append(question) or {"fits": True, "n": len(asked)})
    settings = Settings("sample")
    assert launcher.run(small(), CPU, settings) == {"fits": True, "n": 1, "from_cache": False}
    assert launcher.run(small(), CPU, settings) == {"fits": True, "n": 1, "from_cache": True}
    assert launcher.run(small(), CPU, settings, cached=False)["n"] == 2
    for other in ((small(seed=1), CPU, settings), (small(), topology.parse("cpu:4"), settings),
                  (small(), CPU, Settings("sample", clips=8))):  # fmt: skip
        assert not launcher.run(*other)["from_cache"]
    monkeypatch.setattr("wanjax.plan_cache.versions", lambda platform: {"jax": "another"})
    assert not launcher.run(small(), CPU, settings)["from_cache"]
    (tmp_path / "wanjax/plans" / f"{plan_cache.key(small(), CPU, settings)}.json").write_text('{"fits": tr')
    assert not launcher.run(small(), CPU, settings)["from_cache"]


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(launcher, "plan", lambda *question: {"fits": True})
    with pytest.raises(PlanError, match="plans cannot be kept in .*/file/wanjax/plans .*XDG_CACHE_HOME, or give --"):
        launcher.run(small(), CPU, Settings("sample"))
    assert launcher.run(small(), CPU, Settings("sample"), cached=False) == {"fits": True, "from_cache": False}


def command(tmp_path, *arguments):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": xla_flags.QUICK}
    return forked.run([sys.executable, "-m", "experiments.plan", "--config", str(TINY), *map(str, arguments)],
                      env=environment)  # fmt: skip


def test_the_command_prints_a_table_and_writes_the_plan(tmp_path):
    fields = [f"--config.{name}={value}" for name, value in SMALL.items()]
    file = tmp_path / "plan.json"
    done = command(tmp_path, "--program", "sample", "--topology", "cpu:4", "--json", file, *fields)
    assert done.returncode == 0, done.stderr
    assert "sample of light_scenes_tiny on cpu:4: fits" in done.stdout
    made = json.loads(file.read_text())
    assert (made["devices"], made["mesh"]["fsdp"], made["clips"]) == (4, 4, 4)
    assert np.isfinite(made["collective_bytes"]) and os.listdir(tmp_path / "cache/wanjax/plans")


def test_the_command_refuses_in_one_line(tmp_path):
    done = command(tmp_path, "--program", "sample", "--topology", "h100:8x9")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().startswith("error: --topology 'h100:8x9': expected h100:NxG")
