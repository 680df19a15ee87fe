"""The cases for GPUs run at a small size here, and are refused where there is no GPU or too little memory."""

import json

import jax
import pytest

from benchmarks.gpu import cases, exactness, run
from wanjax import device_memory, flops
from wanjax.models.dit_config import DiTConfig


def test_every_case_runs_and_stands_beside_what_was_planned(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    # the CPU takes an H200's place, so that there is a prediction
    monkeypatch.setattr(run, "PLANNED_AS", {jax.devices()[0].device_kind: "h200"})
    asked = ["block", "lora", "decode"]  # "train" is built as "lora" is
    for name in asked:
        few = ["--set", "lora.targets=('blocks/ffn/out/kernel',)", "--layers", "1"] if name == "lora" else []
        assert run.main(["--tiny", "--tokens", "12", "--calls", "1", "--json", str(tmp_path / "found.jsonl"), "--case",
                         name, *few]) == 0  # fmt: skip
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [each["case"] for each in found] == asked
    for each in found:
        assert each["seconds"] > 0 and each["predicted_peak_bytes"] > 0 and each["model_flops"] > 0
        assert each["mfu"] is None and each["peak_bytes"] is None  # a CPU's are not known
        assert 0 < each["predicted_seconds_at_least"] < each["predicted_seconds"] < each["seconds"]
    block, lora, decode = (each["what"] for each in found)
    assert "one block, 12 tokens" in block and "9 frames of 32 × 32" in decode
    assert "factors of rank 4, 1 blocks, 1 clips of 12 tokens" in lora
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "case" not in line]
    for line, each in zip(lines, found, strict=True):
        least, expected = each["predicted_seconds_at_least"], each["predicted_seconds"]
        assert line.endswith(f"| {least:.4g} | {expected:.4g} ({expected / each['seconds'] - 1:+.1%}) |")


def test_a_device_without_figures_has_no_prediction(capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert run.main(["--tiny", "--case", "block", "--tokens", "12", "--calls", "1"]) == 0
    assert capsys.readouterr().out.endswith("| – | – |\n")


def test_gpus_that_are_not_here_are_planned_for_and_not_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run.topology, "prepare", lambda machine: None)
    monkeypatch.setattr(run.topology, "devices", lambda machine: jax.local_devices()[:1])
    times = {"step_seconds": 2, "expected": {"step_seconds": 3}}
    monkeypatch.setattr(run.plan_time, "estimate", lambda *_, **__: times)
    file = tmp_path / "found.jsonl"
    assert run.main(["--topology", "h200:1x1", "--tiny", "--case", "block", "--tokens", "12", "--json", str(file)]) == 0
    (found,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (found["predicted_seconds_at_least"], found["predicted_seconds"]) == (2, 3) and "seconds" not in found
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| forward of one block, 12 tokens | – | – | – | – | ") and last.endswith(" | 2 | 3 |")

    def strange(*_, **__):
        raise run.hlo.HloError("a shape that nobody knows")

    monkeypatch.setattr(run.plan_time, "estimate", strange)
    assert run.main(["--topology", "h200:1x1", "--tiny", "--case", "block", "--tokens", "12"]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("| – | – |\n") and "no time is predicted: a shape that nobody knows" in told.err
    for wrong, message in (("v5p:2x1x1", "expected GPUs, such as h200:1x1"), ("h200", "expected one of")):
        with pytest.raises(SystemExit):
            run.main(["--topology", wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["--topology", "h200:1x1", "--calls", "3"])
    assert "nothing is called with --topology" in capsys.readouterr().err


def test_a_training_step_of_all_weights_is_built_too():
    one = cases.case("train", 12, layers=1, changes={"model.remat": "full"}, tiny=True, devices=jax.devices())
    assert "all weights, 1 blocks, 8 clips of 12 tokens, remat full" in one.what
    assert one.flops == 8 * 3 * flops.forward(DiTConfig(32, 2, 1, 64), 12, 8)


def test_without_a_gpu_the_cases_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["--case", "block"])
    assert stopped.value.code == 1 and "no GPU here: jax sees 'cpu'" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_it_runs(capsys, monkeypatch):
    monkeypatch.setattr(run, "free_bytes", lambda devices: 1000)
    assert run.main(["--tiny", "--case", "block", "--tokens", "12"]) == 1
    assert "needs 0.0 GB of each device" in capsys.readouterr().err
    assert device_memory.free_bytes(jax.devices()) > 1000


@pytest.mark.parametrize("arguments,message", [
    (["--tokens", "13"], "--tokens 13: expected one of 12, 80"),
    (["--tokens", "12", "--case", "block", "--set", "model.remat=full"], "--set is of a config"),
    (["--tokens", "12", "--case", "train", "--set", "remat"], "--set 'remat': expected field=value"),
    (["--tokens", "12", "--case", "train", "--set", "model.remt=full"], "did you mean 'remat'"),
])  # fmt: skip
def test_a_mistake_is_named(arguments, message, capsys):
    assert run.main(["--tiny", *arguments]) >= 1
    assert message in capsys.readouterr().err


def test_what_a_gpu_computes_is_compared_with_the_formulas(capsys, monkeypatch):
    monkeypatch.setattr(exactness, "TINY_LENGTHS", ((65, 31),))
    assert exactness.main(["--tiny", "--only", "attention", "--seed", "1"]) == 0
    assert "| attention blockwise, float32, 65 × 31 | d q |" in capsys.readouterr().out
    right = exactness.attention.attention
    off = {"blockwise": 3e-4, "plain": 0.0}
    wrong = lambda *x, implementation: right(*x, implementation=implementation) * (1 + off[implementation])
    monkeypatch.setattr(exactness.attention, "attention", wrong)  # as TF32 would
    assert exactness.main(["--tiny", "--only", "attention", "--seed", "1"]) == 4
    assert capsys.readouterr().out.count("**exceeded**") == 4
    assert exactness.error([1.0, float("nan")], [1.0, 2.0]) == float("inf")
