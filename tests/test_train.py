"""One step, the loop, and what survives an interruption, on a model of a few thousand parameters."""
import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import time
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from wanjax import checkpoint, config, objectives, optim, partition, train
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.shadow_head import KEY, ShadowHeadConfig
from wanjax.run_log import RunLog

MODEL = DiTConfig(width=16, heads=2, layers=2, ffn=32, in_channels=4, out_channels=4, freq_dim=16, text_dim=8)
SHAPE = (2, 4, 4, 4)  # F, h, w, C
OPTIMIZER = optim.OptimizerConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
OBJECTIVE = objectives.ObjectiveConfig(light=objectives.LightTerm(0.1, pools=("frame",), orders=(1,)))


DECODER = objectives.Decoder(lambda params, x: jnp.tanh(x @ params), np.eye(4, 3, dtype=np.float32))


class Batches:
    """Endless random batches whose position is a number."""

    def __init__(self, poison_at=None, stop_at=None, visibility=False):
        self.position, self.poison_at, self.stop_at, self.visibility = 0, poison_at, stop_at, visibility

    def __next__(self):
        rng = np.random.default_rng(self.position)
        self.position += 1
        if self.position == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        latents = rng.standard_normal((4, *SHAPE), np.float32)
        if self.position == self.poison_at:
            latents[0, 0, 0, 0, 0] = np.nan
        batch = {"latents": latents, "text": rng.standard_normal((4, 3, 8), np.float32)}
        if self.visibility:
            batch["visibility"] = (latents[..., :1] > 0).repeat(2, 2).repeat(2, 3)[..., 0].astype(np.float32)
        return batch

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


ALONE = dict.fromkeys(partition.AXES, 1)


def make_mesh(sizes):
    return partition.make_mesh(sizes, devices=jax.devices()[: math.prod(sizes.values())])


def run(folder, *, steps=6, batches=None, keep=3, every=2, accumulate=1, on_step=None, sizes=ALONE,
        optimizer=OPTIMIZER, experiment=None, params=None, **more):
    """Trains with ``OBJECTIVE``, or with that of an experiment whose model is ``MODEL``."""
    mesh = make_mesh(sizes)
    model = WanDiT(MODEL, mesh)
    settings = train.TrainConfig(expert="high", steps_high=steps, checkpoint_every=every, keep=keep, validate_every=3,
                                 validation_bins=2, log_every=2, accumulate=accumulate, **more)
    terms = experiment.objective if experiment else OBJECTIVE
    objective = objectives.make_objective(terms, np.ones(4, np.float32), DECODER)
    expert = train.Expert("high", model, objective, optimizer,
                          settings, mesh, 0, params, batches or Batches(), [next(Batches())], None,
                          lambda b: jax.device_put(b, partition.batch_sharding(mesh)),
                          experiment.shadow_head(model) if experiment else None)
    experiment = experiment or config.load("configs/light_scenes_tiny.py")
    with (RunLog(folder, name="high", steps=steps, log_every=2, progress=False) as log,
          checkpoint.Checkpoints(folder / "checkpoints", experiment=experiment, expert="high", keep=keep) as saved):
        return train.train_expert(expert, saved, log, on_step=on_step)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_weights_to_start_from_are_not_kept_beside_the_state(tmp_path):
    given, left = [], []

    def params():
        made = jax.jit(WanDiT(MODEL).init)(jax.random.key(3))["params"]
        given.extend(map(weakref.ref, jax.tree.leaves(made)))
        return made

    run(tmp_path, steps=1, params=params, on_step=lambda: left.extend(leaf() is not None for leaf in given))
    assert left and not any(left)


def test_every_step_is_logged_once_with_each_term(whole):
    folder, state = whole
    steps = [line for line in lines(folder) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6] and int(state.step) == 6
    assert all({"loss", "loss/velocity", "loss/light", "grad_norm"} <= set(line) for line in steps)
    validations = [line for line in lines(folder) if "validation/velocity" in line]
    assert [line["step"] for line in validations] == [3, 6]
    assert {"validation/velocity/875-938", "validation/velocity/938-1000"} <= set(validations[0])


def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path):
    folder, state = whole
    with pytest.raises(train.Stopped, match="after step 3 of 6; its state is saved"):
        run(tmp_path, batches=Batches(stop_at=3))
    resumed = run(tmp_path)
    chex.assert_trees_all_equal(resumed, state)
    assert lines(tmp_path) == lines(folder)


def test_a_crash_between_checkpoints_goes_on_to_the_same_bits(whole, tmp_path):
    folder, state = whole
    done = []

    def crash():
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt  # step 5: one past the checkpoint of step 4

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_step=crash)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    chex.assert_trees_all_equal(run(tmp_path, keep=1), state)
    assert lines(tmp_path) == lines(folder)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]  # only the newest stay


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The folder of a run of four steps."""
    run(folder := tmp_path_factory.mktemp("four"), steps=4)
    return folder


@pytest.mark.parametrize("part", ["params", "ema", "optimizer"])
def test_a_truncated_newest_checkpoint_is_named_and_passed_over(four, tmp_path, caplog, part):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints/4"
    largest = max((p for p in (newest / part).glob("*/c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    resumed = run(tmp_path)
    assert str(newest) in caplog.text and "going on from the one before" in caplog.text
    assert int(resumed.step) == 6 and [x["step"] for x in lines(tmp_path) if "loss" in x] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "unreadable_4").is_dir()


def every_term():
    """An experiment with all terms on, which trains ``MODEL``."""
    experiment = config.load("configs/light_scenes_tiny.py")
    terms = objectives.ObjectiveConfig(
        light=objectives.LightTerm(0.1, pools=("frame",), orders=(1,)),
        light_consistency=objectives.LightConsistencyTerm(0.1),
        temporal_luminance=objectives.TemporalLuminanceTerm(0.1, every=2),
        shadow=objectives.ShadowTerm(((0, 0.5), (4, 1.0)), ShadowHeadConfig(depths=(0.5, 1.0), width=4)),
        change_weight=objectives.ChangeWeightTerm(0.1))
    text = dataclasses.replace(experiment.text, model=dataclasses.replace(experiment.text.model, d_model=8, d_kv=8,
                                                                          num_heads=1))
    return dataclasses.replace(experiment, model=MODEL, text=text, objective=terms)


def test_with_every_term_the_head_is_saved_with_the_state_and_sampling_leaves_it_out(tmp_path):
    experiment = every_term()
    state = run(tmp_path, batches=Batches(visibility=True), experiment=experiment, accumulate=2, steps=2)
    steps = [line for line in lines(tmp_path) if "loss" in line]
    terms = {f"loss/{name}" for name in experiment.objective.active}
    assert [terms - set(line) for line in steps] == [{"loss/temporal_luminance"}, set()]
    assert np.any(state.params[KEY]["out"]["kernel"]) and np.any(state.ema[KEY]["out"]["kernel"])

    model = WanDiT(MODEL, make_mesh(ALONE))
    head = experiment.shadow_head(model)
    shapes = train.state_shapes(model, train.make_optimizer(OPTIMIZER, 2, model, head), model.mesh, head=head)
    with checkpoint.Checkpoints(tmp_path / "checkpoints", experiment=experiment, expert="high", keep=3) as saved:
        restored, position = saved.restore(shapes)
    chex.assert_trees_all_equal(restored, state)
    assert position == {"position": 2}

    opened = checkpoint.open_run(tmp_path / "checkpoints/2", "raw")
    params, own_head = opened.experts["high"].read()
    chex.assert_trees_all_equal(own_head, jax.device_get(state.params[KEY]))
    assert "without its shadow head" in opened.description
    alone = jax.tree.structure(rows.shapes(dit_rows(MODEL), "float32"))
    assert jax.tree.structure(params) == alone


def test_another_mesh_goes_on_from_the_same_bits(tmp_path):
    optimizer = dataclasses.replace(OPTIMIZER, learning_rate=1e-4)
    sizes = {"data": 2, "fsdp": 2, "seq": 1, "tensor": 2}
    first = run(tmp_path / "one", steps=10, every=10, optimizer=optimizer)
    shutil.copytree(tmp_path / "one", tmp_path / "eight")
    model = WanDiT(MODEL, make_mesh(sizes))
    shapes = train.state_shapes(model, train.make_optimizer(optimizer, 30, model), model.mesh)
    with checkpoint.Checkpoints(tmp_path / "eight/checkpoints", experiment=config.load("configs/light_scenes_tiny.py"),
                                expert="high", keep=3) as saved:
        restored, _ = saved.restore(shapes)
    assert any(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(restored.params))
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(first))

    one = run(tmp_path / "one", steps=30, every=30, optimizer=optimizer)
    eight = run(tmp_path / "eight", steps=30, every=30, optimizer=optimizer, sizes=sizes)
    assert [x["step"] for x in lines(tmp_path / "eight") if "loss" in x] == list(range(1, 31))
    for part, bound in (("params", 1e-6), ("ema", 1e-6), ("opt_state", 1e-4)):
        pairs = zip(*(map(np.asarray, jax.tree.leaves(getattr(state, part))) for state in (one, eight)), strict=True)
        for a, b in pairs:
            assert np.linalg.norm(b - a) <= bound * np.linalg.norm(a), part


def test_state_in_host_memory_goes_on_as_on_the_device_and_back(whole, four, tmp_path):
    """Validated and saved on the way; a run goes on from either with the other."""
    host = dataclasses.replace(OPTIMIZER, state_memory="host")
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    with pytest.raises(train.Stopped):
        run(tmp_path, batches=Batches(stop_at=5), optimizer=host)
    last = run(tmp_path / "last", optimizer=host)
    far = [x.sharding.memory_kind for x in jax.tree.leaves((last.ema, last.opt_state))].count("pinned_host")
    assert far == 3 * 10  # matrices of a block: of each the average and two moments
    assert {x.sharding.memory_kind for x in jax.tree.leaves(last.params)} == {"device"}
    for state in (last, run(tmp_path)):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole[1]), strict=True):
            assert np.linalg.norm(np.asarray(a) - b) <= 1e-6 * np.linalg.norm(b)
    for found, expected in zip(lines(tmp_path / "last"), lines(whole[0]), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_nan_names_step_and_term_and_overwrites_nothing(tmp_path):
    with pytest.raises(train.Diverged) as error:
        run(tmp_path, batches=Batches(poison_at=5))
    for words in ("high expert, step 5", "loss/velocity = nan", "checkpoint of step 4 is untouched"):
        assert words in str(error.value)
    assert [x["step"] for x in lines(tmp_path) if "loss" in x] == [1, 2, 3, 4]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    real = checkpoint.shutil.disk_usage
    done = []
    monkeypatch.setattr(checkpoint.shutil, "disk_usage",
                        lambda p: real(p)._replace(free=100 if len(done) >= 3 else 10**12))
    with pytest.raises(checkpoint.CheckpointError, match="MB free and a checkpoint takes") as error:
        run(tmp_path, on_step=lambda: done.append(1))
    assert "checkpoint of step 2 is untouched" in str(error.value)
    monkeypatch.undo()
    assert int(run(tmp_path).step) == 6


def whole_on_disk(folder, seconds=60):
    """Waits for a checkpoint that is written in the background."""
    end = time.monotonic() + seconds
    while not (folder / "commit_success.txt").exists():
        assert time.monotonic() < end, f"{folder} is not written"
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_in_the_background_is_said_and_harms_none_before_it(whole, tmp_path):
    done = []

    def shrink():
        done.append(1)
        if len(done) == 3:
            whole_on_disk(tmp_path / "checkpoints/2")
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as a disk that others fill meanwhile

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(checkpoint.CheckpointError, match="could not be written .*Free disk space and launch again"):
            run(tmp_path, on_step=shrink)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # read, not gone on from: in this process the failed save's threads may still be at work
    kept, expected = (ocp.load_checkpointables(folder / "checkpoints/2") for folder in (tmp_path, whole[0]))
    chex.assert_trees_all_equal(jax.device_get(kept["params"]), jax.device_get(expected["params"]))


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    model, objective = WanDiT(MODEL), objectives.make_objective(objectives.ObjectiveConfig(), None)
    tx = train.make_optimizer(OPTIMIZER, 10, model)
    mesh = make_mesh(ALONE)
    batch = jax.tree.map(jnp.asarray, next(Batches()))
    results = []
    for accumulate in (1, 2):
        state = train.init_state(model, tx, train.state_shapes(model, tx, mesh), jax.random.key(0))
        step = jax.jit(train.make_train_step(model, objective, tx, timesteps=(875.0, 1000.0), shift=5.0,
                                             accumulate=accumulate, ema_decay=0.9))
        results.append(step(state, batch, jax.random.key(1)))
    # Adam divides by the gradient's size, so the moments are compared, not the update
    chex.assert_trees_all_close(results[0][0].opt_state, results[1][0].opt_state, rtol=1e-4, atol=1e-8)
    chex.assert_trees_all_close(results[0][1], results[1][1], rtol=1e-5)


def test_shapes_of_the_14b_state_are_built_without_allocating():
    model = WanDiT(config.load("configs/t2v_a14b.py").model)
    tx = train.make_optimizer(OPTIMIZER, 10, model)
    mesh = make_mesh(ALONE)
    shapes = train.state_shapes(model, tx, mesh)
    sizes = {k: sum(x.size for x in jax.tree.leaves(getattr(shapes, k))) for k in ("params", "ema", "opt_state")}
    assert sizes["params"] == sizes["ema"] == 14_288_491_584
    assert sizes["opt_state"] >= 2 * sizes["params"]


def test_decay_applies_to_matrices_alone():
    mask = train.decay_mask(WanDiT(MODEL))
    flat = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(mask)}
    assert any(flat.values()) and not all(flat.values())
    assert not any(v for k, v in flat.items() if "bias" in k)


def test_without_an_average_the_parameters_are_what_is_shown_kept_and_sampled(whole, tmp_path):
    experiment = dataclasses.replace(config.load("configs/light_scenes_tiny.py", {"optimizer.ema_decay": 0.0}),
                                     objective=OBJECTIVE)
    options = {"optimizer": dataclasses.replace(OPTIMIZER, ema_decay=0.0), "experiment": experiment}
    with pytest.raises(train.Stopped):
        run(tmp_path, batches=Batches(stop_at=3), **options)
    state = run(tmp_path, **options)
    assert state.ema is None and state.shown is state.params
    chex.assert_trees_all_equal(state.params, whole[1].params)
    assert not list((tmp_path / "checkpoints" / "6").glob("ema*"))
    opened = checkpoint.open_run(tmp_path)
    assert opened.experts["high"].part == "params" and "(raw)" in opened.description
