"""A LoRA is trained beside frozen weights: its state, what it starts from, and the clips and files that come of it."""

import dataclasses
import json
import re

import chex
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments import convert
from tests.test_train import ALONE, lines, make_mesh
from tests.tiny_release import DIT, QUICK, TEXT, VAE, randomised
from wanjax import (
    checkpoint,
    config,
    generate,
    hub,
    lora,
    lora_experts,
    lora_factors,
    objectives,
    partition,
    pipeline,
    train,
    warm_start,
)
from wanjax.experts import Expert
from wanjax.lora_config import LoraConfig
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.vae import WanVAE
from wanjax.optim import MEMORIES
from wanjax.run_log import RunLog

TABLE = dit_rows(DIT)
LORA = {"lora.rank": 2, "lora.alpha": 400.0, "lora.base_dtype": "float32",
        "lora.targets": ("blocks/*_attention/q/kernel", "blocks/ffn/out/kernel", "patch_embedding/kernel",
                         "head/projection/kernel")}  # fmt: skip
Q = ("blocks", "self_attention", "q", "kernel")


class Batches:
    """Endless random batches whose position is a number."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        rng = np.random.default_rng(self.position)
        self.position += 1
        return {"latents": rng.standard_normal((4, 2, 4, 4, 4), np.float32),
                "text": rng.standard_normal((4, 32, 16), np.float32)}  # fmt: skip

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A frozen network in the diffusers layout, and a codec."""
    folder = tmp_path_factory.mktemp("base")
    hub.save_dit(folder / "transformer", WanDiT(DIT), randomised(WanDiT(DIT), 0, 0.15))
    hub.save_vae(folder / "codec", WanVAE(VAE), randomised(WanVAE(VAE), 3, 0.3))
    return folder


def experiment(base, **overrides):
    return config.load("configs/light_scenes_tiny.py", {
        "model": dataclasses.asdict(DIT), "codec": str(base / "codec"), "text.length": 32,
        "text.model": dataclasses.asdict(TEXT), "data.frames": 5, "data.height": 32, "data.width": 32, "data.batch": 4,
        "objective.light.weight": 0.0, "objective.light.orders": (1,), "train.init_from": str(base),
        "train.steps_high": 4, "train.checkpoint_every": 2, "train.validate_every": 2,
        "train.validation_bins": 1, "optimizer.name": "adamw", "optimizer.learning_rate": 1e-4,
        "optimizer.warmup_steps": 0, "train.boundary": 0.0, "sample.boundary": 0.0, **LORA,
        **{f"sample.{name}": value for name, value in QUICK.items()}, **overrides,
    })  # fmt: skip


def run(folder, asked, *, sizes=ALONE, on_step=None):
    """Trains the LoRA of the one expert as the launcher does, on batches of noise."""
    mesh = make_mesh(sizes)
    model, start = WanDiT(asked.model, mesh), warm_start.open_start(asked.train.init_from, "high", asked.model)
    places = rows.shardings(TABLE, mesh)
    expert = train.Expert(
        "high", model, objectives.make_objective(asked.objective, None), asked.optimizer, asked.train, mesh, asked.seed,
        lambda: start.read(places, asked.lora.base_dtype), Batches(), [next(Batches())], None,
        lambda batch: jax.device_put(batch, partition.batch_sharding(mesh)), lora=asked.lora,
    )  # fmt: skip
    with (RunLog(folder / "high", name="high", steps=4, log_every=2, progress=False) as log,
          checkpoint.Checkpoints(folder / "high/checkpoints", experiment=asked, expert="high", keep=2,
                                 about=start.record) as saved):  # fmt: skip
        return train.train_expert(expert, saved, log, on_step=on_step)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A run: its folder and final state."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder, experiment(base))


def test_the_state_holds_factors_alone_and_the_checkpoint_names_what_they_are_beside(base, trained):
    folder, state = trained
    table = LoraConfig(**{name.removeprefix("lora."): value for name, value in LORA.items()}).rows(TABLE)
    for tree in (state.params, state.ema):
        assert {path: leaf.dtype for path, leaf in _flat(tree).items()} == {row.path: np.float32 for row in table}
    assert len(table) == 2 * (2 + 1 + 2) and _flat(state.params)[*Q, "down"].shape == (1, 24, 2)
    assert all(np.any(leaf) for leaf in _flat(state.params).values())
    opened = checkpoint.open_run(folder)
    assert "high expert at step 4 (ema, LoRA)" in opened.description
    record = opened.experts["high"].about["base"]
    assert record == {"source": str(base), "fingerprint": hub.digest(base / "transformer")}
    files = (file for file in (folder / "high/checkpoints/4/params").rglob("*") if file.is_file())
    stored = sum(file.stat().st_size for file in files)
    assert stored < 4 * rows.count(TABLE)  # all of the network would not go into it
    assert [line["step"] for line in lines(folder / "high") if "validation/velocity" in line] == [2, 4]


def _flat(tree):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_training_starts_from_no_change_and_lowers_the_loss(base, trained):
    first = experiment(base).lora.init(jax.random.key(0), TABLE)
    assert _flat(first)[*Q, "down"].std() == pytest.approx(24**-0.5 / 3**0.5, rel=0.3)
    assert not any(np.any(leaf) for path, leaf in _flat(first).items() if path[-1] == "up")
    after = [line["loss/velocity"] for line in lines(trained[0] / "high") if "loss/velocity" in line]
    assert after[-1] < 0.98 * after[0]


def test_an_interrupted_run_goes_on_to_the_same_bits_and_the_weights_stay_as_they_were(base, trained, tmp_path):
    done, before = [], hub.digest(base / "transformer")

    def crash():
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, experiment(base), on_step=crash)
    chex.assert_trees_all_equal(run(tmp_path, experiment(base)), trained[1])
    assert lines(tmp_path / "high") == lines(trained[0] / "high") and hub.digest(base / "transformer") == before


def test_factors_are_refused_beside_other_weights(base, trained, tmp_path):
    saved = checkpoint.open_run(trained[0]).experts["high"]
    assert warm_start.base_of(saved).fingerprint == hub.digest(base / "transformer")
    hub.save_dit(tmp_path / "transformer", WanDiT(DIT), randomised(WanDiT(DIT), 7, 0.15))
    moved = dataclasses.replace(saved.config.train, init_from=str(tmp_path))
    other = dataclasses.replace(saved, config=dataclasses.replace(saved.config, train=moved))
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(f"those of {base} had") + ".*Put those back"):
        warm_start.base_of(other)
    start = warm_start.open_start(tmp_path, "high", DIT)
    with checkpoint.Checkpoints(saved.folder.parent, experiment=saved.config, expert="high", keep=2) as found:
        with pytest.raises(checkpoint.CheckpointError, match="trained beside other weights"):
            warm_start.check_base(start, found.about, found.folder)


def latents(opened, **settings):
    return next(generate.latents(opened, [generate.Request("dawn", 3, None, None)], **settings))


def beside_files(opened, base, files, mode):
    """The pipeline with the frozen networks as its experts, and LoRA files in or beside them."""
    experts = {}
    for name, expert in opened.experts.items():
        frozen = warm_start.open_start(base, name, DIT)
        experts[name] = Expert(expert.model, lambda places, own=frozen: own.read(places, "float32"), name, "float32")
    plain = dataclasses.replace(opened, experts=experts)
    return plain, lora_experts.with_loras(plain, plain.config, files, mode)[0]


@pytest.mark.parametrize("layout,mode", [("diffusers", "beside"), ("comfyui", "into")])
def test_a_run_samples_what_the_written_file_makes_of_the_frozen_weights(base, trained, tmp_path, layout, mode):
    opened = pipeline.open_pipeline(trained[0])
    own = latents(opened)
    convert.run(trained[0], tmp_path / "loras", only=["lora"], layout=layout)
    files = {"high": [(tmp_path / "loras/high.safetensors", 1.0)]}
    plain, with_files = beside_files(opened, base, files, mode)
    np.testing.assert_allclose(latents(with_files), own, rtol=0, atol=1e-5 * np.abs(own).max())
    assert np.abs(latents(plain) - own).max() > 0.1
    key = {"diffusers": "transformer.blocks.0.attn1.to_q.lora_A.weight",
           "comfyui": "diffusion_model.blocks.0.self_attn.q.lora_down.weight"}[layout]  # fmt: skip
    stored = lora.read_lora(files["high"][0][0], TABLE)
    assert stored.tensors.shape_of(key) == (2, 24) and len(stored.changes) == 5
    assert json.loads(stored.tensors.metadata["base"])["source"] == str(base)
    with pytest.raises(ValueError, match="the run's own LoRA is beside the high-noise expert's weights already"):
        lora_experts.with_loras(opened, opened.config, files, "beside")


def test_another_layout_writes_the_weights_with_the_factors_merged(base, trained, tmp_path):
    convert.run(trained[0], tmp_path / "merged")
    found = hub.load_dit(tmp_path / "merged/transformer")[1]
    saved = checkpoint.open_run(trained[0]).experts["high"]
    frozen, own = warm_start.open_start(base, "high", DIT).read(None, "float32"), saved.read()[0]
    down, up = (np.asarray(_flat(own)[*Q, part][0], np.float64) for part in ("down", "up"))
    expected = _flat(frozen)[Q][0] + 200.0 * down @ up
    np.testing.assert_allclose(_flat(found)[Q][0], expected, rtol=0, atol=2e-6)
    assert np.abs(_flat(found)[Q] - _flat(frozen)[Q]).max() > 0.01
    # what is written is what training applied
    applied = train.variables_of(own, frozen, saved.config.lora)["lora"]
    chex.assert_trees_all_equal(lora_factors.factors(TABLE, [(warm_start.lora_of(saved), 1.0)]), applied)
    # so does a run that starts from this one
    started = warm_start.open_start(trained[0], "high", DIT)
    chex.assert_trees_all_equal(started.read(None, "float32"), found)
    assert started.fingerprint not in (saved.fingerprint, hub.digest(base / "transformer"))


@pytest.mark.parametrize("options,message", [
    ({"layout": "official"}, "--only lora --layout official: LoRA files have the names of diffusers or comfyui"),
    ({"fp8": True, "layout": "comfyui"}, "--only lora writes the factors alone: leave out --fp8"),
    ({"only": ["lora", "vae"]}, "leave out other parts"),
])  # fmt: skip
def test_options_that_a_lora_file_has_no_use_for_are_refused(trained, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert.run(trained[0], tmp_path / "loras", **{"only": ["lora"], **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_mesh_and_micro_batches_go_on_as_one_device_did(base, trained, memory):
    asked, mesh = experiment(base), make_mesh({**ALONE, "fsdp": 2, "seq": 2})
    model = WanDiT(DIT, mesh)
    optimizer = train.make_optimizer(asked.optimizer, 4, model, lora=asked.lora)
    shapes = train.state_shapes(model, optimizer, mesh, lora=asked.lora, memory=memory)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves((shapes.ema["blocks"], shapes.opt_state))}
    assert ("pinned_host" in kinds) == (memory == "host")
    assert not shapes.params["blocks"]["self_attention"]["q"]["kernel"]["down"].sharding.is_fully_replicated
    loaded = ocp.load_checkpointables(trained[0] / "high/checkpoints/2", {
        "params": shapes.params, "ema": shapes.ema,
        "optimizer": {"step": shapes.step, "state": shapes.opt_state}})  # fmt: skip
    state = train.TrainState(loaded["optimizer"]["step"], loaded["params"], loaded["ema"], loaded["optimizer"]["state"])
    step = train.jit_train_step(train.make_train_step(
        model, objectives.make_objective(asked.objective, None), optimizer, timesteps=(0.0, 1000.0),
        shift=asked.train.shift, accumulate=2, ema_decay=asked.optimizer.ema_decay, lora=asked.lora,
    ), shapes)  # fmt: skip
    frozen = warm_start.open_start(base, "high", DIT).read(rows.shardings(TABLE, mesh), "float32")
    _, key, _ = jax.random.split(jax.random.fold_in(jax.random.key(asked.seed), 0), 3)
    batches = Batches()
    batches.set_state({"position": 2})
    for _ in range(2):
        batch = jax.device_put(next(batches), partition.batch_sharding(mesh))
        state, metrics = jax.block_until_ready(step(state, batch, key, None, frozen))
    for (path, one), other in zip(_flat(trained[1].ema).items(), jax.tree.leaves(state.ema), strict=True):
        assert np.linalg.norm(np.asarray(other) - one) <= 1e-5 * np.linalg.norm(one), path
    last = [line["loss"] for line in lines(trained[0] / "high") if "loss" in line][-1]
    assert float(metrics["loss"]) == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("overrides,words", [
    ({"lora.targets": ("blocks/self_atention/*/kernel",)},
     ["config.lora.targets: 'blocks/self_atention/*/kernel' names no parameter", "blocks/self_attention/"]),
    ({"lora.targets": ("blocks/ffn/*/*",)}, ["'blocks/ffn/*/*' names blocks/ffn/in/bias, which is no matrix"]),
    ({"lora.targets": ()}, ["config.lora: targets is empty"]),
    ({"lora.rank": 25}, ["config.lora.rank = 25 is more than the matrix blocks/self_attention/q/kernel"]),
    ({"lora.rank": -1}, ["config.lora: rank = -1"]),
    ({"lora.alpha": 0.0}, ["config.lora: alpha = 0.0"]),
    ({"lora.base_dtype": "int8"}, ["config.lora: base_dtype 'int8'"]),
    ({"train.init_from": ""}, ["config.lora.rank = 2, but config.train.init_from is empty"]),
    ({"optimizer.state_memory": "host", "lora.targets": ("head/projection/kernel",)},
     ["config.optimizer.state_memory = 'host'", "('head/projection/kernel',)", "set it to 'device'"]),
    ({"optimizer.name": "muon"}, ["config.optimizer.name = 'muon' with config.lora.rank = 2", "'adamw'"]),
])  # fmt: skip
def test_what_cannot_be_trained_is_named(base, overrides, words):
    with pytest.raises(config.ConfigError) as error:
        experiment(base, **overrides)
    for word in words:
        assert word in str(error.value)
