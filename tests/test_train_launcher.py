"""The training launcher, run as a user runs it: both experts, resume, kills, wrong input."""
import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from experiments import train
from tests import launching
from wanjax import codec, config, hub
from wanjax.cluster import Cluster
from wanjax.light.luminance import LuminanceFit
from wanjax.models.dit import WanDiT
from wanjax.models.vae import WAN22, WanVAE
from wanjax.pipeline import open_pipeline
from wanjax.stop import Stopped

BOTH = {"train.steps_high": 40, "train.steps_low": 6, "train.preview_every": 20, "sample.steps": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return launching.small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "latents"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source, cache):
    workdir = tmp_path_factory.mktemp("run")
    code, output = launching.finish(launching.command(workdir, source, cache, **BOTH))
    assert code == 0, output
    return workdir


def test_both_experts_are_trained_validated_and_shown(whole):
    for expert, steps in (("high", 40), ("low", 6)):
        lines = launching.log(whole, expert)
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
        assert lines[-1]["step"] == steps and "validation/velocity" in lines[-1]
        assert list((whole / expert / "preview").glob("*.png"))
        assert list((whole / expert / "tensorboard").glob("events*"))
    assert json.loads((whole / "config.json").read_text())["model"]["width"] == 32


def test_a_finished_run_is_left_as_it_is(whole, source, cache):
    before = (whole / "high/metrics.jsonl").read_bytes()
    fewer = BOTH | {"train.steps_high": 30}
    code, output = launching.finish(launching.command(whole, source, cache, **fewer))
    assert code == 0 and "all 30 steps are done; its state is that of step 40" in output
    assert "all 6 steps are done\n" in output
    assert (whole / "high/metrics.jsonl").read_bytes() == before


def test_a_run_that_is_told_to_stop_and_one_that_is_killed_end_with_the_same_bits(whole, source, cache, tmp_path):
    arguments = launching.command(tmp_path, source, cache, **BOTH, **{"train.expert": "high"})
    process = launching.launch([*arguments, "--config.train.checkpoint_every=1000"])
    launching.wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    steps = [line["step"] for line in launching.log(tmp_path)]
    assert process.returncode == 0 and "its state is saved" in output
    assert steps[-1] < 40 and [int(p.name) for p in (tmp_path / "high/checkpoints").iterdir()] == [steps[-1]]
    launching.kill_and_resume(arguments, tmp_path, 40, kills=1, seed=1)
    launching.check_same(tmp_path, whole, 40)


def test_a_request_in_the_last_step_of_an_expert_keeps_the_next_one_from_beginning(
    whole, source, cache, tmp_path, monkeypatch
):  # fmt: skip
    began = []

    def asked_late(name, *rest):
        began.append(name)
        codec, requests = rest[3], rest[-1]
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(codec.params))  # no device holds it
        with requests.listening():
            assert not requests()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "_train", asked_late)
    experiment = config.load(launching.ROOT / "configs/light_scenes_tiny.py",
                             launching.SMALL | {"data.source": source, "data.cache_dir": str(cache)})  # fmt: skip
    with pytest.raises(Stopped, match="low expert: asked to stop before it began"):
        train.run(experiment, str(tmp_path), Cluster())
    assert began == ["high"]


@pytest.mark.parametrize(("overrides", "words"), [
    ({"model.widht": 64}, ["error: unknown field 'config.model.widht'; did you mean 'width'?"]),
    ({"data.frames": 10}, ["config.data.frames = 10", "4n+1"]),
    ({"codec": "no_such_codec"}, ["no_such_codec", "light_scenes_tiny"]),
    ({"codec_strides": (4, 16, 16)}, ["config.codec_strides = (4, 16, 16)", "'light_scenes_tiny' has (4, 8, 8)"]),
    ({"data.source": "no_such_data"}, ["no_such_data"]),
])
def test_wrong_input_is_one_error_and_leaves_no_checkpoint(source, cache, tmp_path, overrides, words):
    code, output = launching.finish(launching.command(tmp_path, source, cache, **overrides))
    assert code == 1 and "Traceback" not in output
    for word in words:
        assert word in output
    assert not list(tmp_path.rglob("checkpoints"))


def test_attention_of_other_devices_is_refused_before_anything_is_made(tmp_path):
    overrides = {"model.attention": "splash", "data.data_dir": str(tmp_path / "data")}
    experiment = config.load(launching.ROOT / "configs/light_scenes_tiny.py", overrides)
    with pytest.raises(config.ConfigError, match="config.model.attention = 'splash': .* compiled for cpu"):
        train.run(experiment, str(tmp_path / "run"), Cluster())
    assert not list(tmp_path.iterdir())


def test_a_term_that_is_not_for_an_expert_is_left_out_and_said(capsys):
    experiment = config.load(launching.ROOT / "configs/light_scenes_tiny.py",
                             {"objective.temporal_luminance.weight": 0.1})
    opened = codec.open_codec(experiment.codec)
    assert train.objective_for("high", experiment, opened).names == ("velocity", "light")
    assert "high expert: config.objective.temporal_luminance applies to the low-noise expert" in capsys.readouterr().out
    low = train.objective_for("low", experiment, opened)
    assert low.names == ("velocity", "light", "temporal_luminance") and not capsys.readouterr().out
    single = config.override(config.read(launching.ROOT / "configs/light_scenes_tiny.py"), {
        "objective.temporal_luminance.weight": 0.1, "train.boundary": 0.0, "sample.boundary": 0.0})
    assert train.objective_for("high", config.from_config_dict(single), opened).names == low.names
    assert not capsys.readouterr().out
    assert low.decoder.apply(low.decoder.params, np.zeros((1, 2, 2, 2, 16), np.float32)).shape == (1, 5, 16, 16, 3)


RELEASED = {  # without what lies beside a published checkpoint
    "codec": "light_scenes_tiny", "text.tokenizer": "byt5", "text.encoder": "seeded", "text.length": 64,
    "text.model.vocab_size": 384, "text.model.d_model": 64, "text.model.d_kv": 16, "text.model.d_ff": 128,
    "text.model.num_heads": 4, "text.model.num_layers": 2, "model.text_dim": 64, "data.fps": 8.0,
    "train.init_from": "",
}
CUT_DOWN = {
    **{name: {"data.train_clips": 0} for name in ("showcase", "showcase_ci", "showcase_overnight")},
    **dict.fromkeys(("t2v_a14b", "t2v_a14b_lora", "i2v_a14b", "ti2v_5b", "t2v_14b", "t2v_1_3b"), RELEASED),
}


# cut down, these are another config, which takes the step for them
ALIKE = {"showcase_ci": "showcase", "showcase_overnight": "showcase", "t2v_1_3b": "t2v_14b"}
NUMBERS = {"config.name", "config.sample.steps", "config.train.steps_high", "config.train.steps_low"}


@pytest.mark.parametrize("name", ALIKE)
def test_a_config_whose_step_is_not_taken_is_another_one_but_for_numbers(name):
    here = launching.SMALL | {"data.source": "clips", "data.cache_dir": "latents"}
    one, other = (
        config.to_dict(config.load(launching.ROOT / f"configs/{which}.py", here | CUT_DOWN[which]))
        for which in (name, ALIKE[name])
    )  # fmt: skip
    assert set(config.differences(one, other)) <= NUMBERS


@pytest.mark.parametrize(
    "name", sorted({p.stem for p in (launching.ROOT / "configs").glob("[!_]*.py")} - {*ALIKE, "light_scenes_tiny"})
)
def test_every_config_takes_a_step(name, source, tmp_path):
    adapts = name == "t2v_a14b_lora"  # weights that have to be there
    experiment = config.load(launching.ROOT / f"configs/{name}.py")
    expert = "low" if experiment.train.boundary else "high"
    overrides = {"train.expert": expert, f"train.steps_{expert}": 1, **CUT_DOWN[name]}
    terms = {"loss/velocity"}
    if adapts:
        shape = {field: launching.SMALL[f"model.{field}"] for field in ("width", "heads", "layers", "ffn")}
        frozen = WanDiT(dataclasses.replace(experiment.model, **shape, text_dim=64, dtype="float32"))
        hub.save_dit(tmp_path / "transformer_2", frozen, frozen.init(jax.random.key(0))["params"])
        overrides |= {"train.init_from": tmp_path, "train.preview_every": 1}
    if name == "ti2v_5b":
        overrides["train.preview_every"] = 1
    if experiment.codec_strides == (4, 16, 16):  # whose cells the terms of light and shadow have to know
        codec22 = WanVAE(dataclasses.replace(WAN22, base_dim=4, decoder_base_dim=8, num_res_blocks=1))
        hub.save_vae(tmp_path / "codec", codec22, codec22.init(jax.random.key(0))["params"])
        LuminanceFit(tuple(np.linspace(-1, 1, 48)), 0.0, 0.5).save(tmp_path / "codec/luminance.json")
        overrides |= {"codec": tmp_path / "codec", "objective.light.weight": 0.1, "objective.shadow.weight": 0.1,
                      "objective.shadow.head.depths": "(0.5, 1.0)"}
        terms |= {"loss/light", "loss/shadow"}
    code, output = launching.finish(launching.command(tmp_path / "run", source, tmp_path / "cache", config=name,
                                                      **overrides))
    assert code == 0, output
    steps = [line for line in launching.log(tmp_path / "run", expert) if "loss" in line]
    assert [line["step"] for line in steps] == [1] and terms <= set(steps[0])
    if "train.preview_every" in overrides:
        assert list((tmp_path / f"run/{expert}/preview").glob("*.png"))
    opened = open_pipeline(tmp_path / "run")
    assert bool(opened.experts[expert].changes) == adapts
    assert opened.kind == {"i2v_a14b": "i2v", "ti2v_5b": "ti2v"}.get(name, "t2v")


def test_a_run_continues_the_weights_of_another(whole, source, cache, tmp_path):
    arguments = launching.command(tmp_path, source, cache, **{
        "train.expert": "high", "train.steps_high": 1, "optimizer.learning_rate": 1e-12, "train.init_from": whole})
    code, output = launching.finish(arguments)
    assert code == 0 and f"continues the weights of {whole}" in output, output
    before, after = launching.final_state(whole), launching.final_state(tmp_path)
    name = next(k for k in after if k.startswith("['params']") and "kernel" in k)
    np.testing.assert_allclose(after[name], before[name.replace("params", "ema", 1)], atol=1e-9)
