"""Checkpoints of a run: pieces on disk, meshes, parts that a state has, damage, room, places that are refused."""
import dataclasses
import json
import logging
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from wanjax import array_files, checkpoint, config, partition, train
from wanjax.run_folder import FolderError, is_remote, local_folder, run_folder
from wanjax.workdir import Workdir, WorkdirError

EXPERIMENT = config.load("configs/light_scenes_tiny.py")
ONE, EIGHT = {"fsdp": 1}, {"data": 2, "fsdp": 2, "tensor": 2}


def mesh_of(sizes):
    return partition.make_mesh(sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def shapes_on(sizes, ema=True):
    """A state of one stacked matrix [6, 16, 8] over fsdp and tensor, a bias, their moments and a count."""
    mesh = mesh_of(sizes)

    def abstract(shape, dtype, *axes):
        spec = PartitionSpec(*(a if sizes.get(a, 1) > 1 else None for a in axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def tree():
        return {"blocks": {"kernel": abstract((6, 16, 8), jnp.float32, None, "fsdp", "tensor"),
                           "bias": abstract((6, 8), jnp.float32)}}

    return train.TrainState(abstract((), jnp.int32), tree(), tree() if ema else None,
                            {"mu": tree(), "nu": tree(), "count": abstract((), jnp.int32)})


def state_on(sizes, ema=True, first=0.0):
    leaves, tree = jax.tree.flatten(shapes_on(sizes, ema))
    made = [jax.device_put(first + i + np.arange(x.size).reshape(x.shape).astype(x.dtype), x.sharding)
            for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, made)


def opened(folder, keep=2):
    return checkpoint.Checkpoints(folder, experiment=EXPERIMENT, expert="high", keep=keep)


def save(folder, *states, keep=2):
    with opened(folder, keep) as saved:
        for step, state in enumerate(states, start=1):
            saved.save(step, state, {"position": step})


def pieces(folder):
    """Bytes of the files that hold pieces of the state's arrays."""
    return [p.stat().st_size for part in ("params", "ema", "optimizer") for p in (folder / part).rglob("*")
            if p.is_file() and "c" in p.relative_to(folder).parts]


@pytest.mark.parametrize(("there", "here"), [(ONE, EIGHT), (EIGHT, ONE), (EIGHT, {"seq": 2, "fsdp": 4})])
def test_a_state_comes_back_bit_for_bit_on_another_mesh(tmp_path, there, here):
    state = state_on(there)
    save(tmp_path, state)
    with opened(tmp_path) as saved:
        restored, position = saved.restore(shapes_on(here))
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    for array, shape in zip(jax.tree.leaves(restored), jax.tree.leaves(shapes_on(here)), strict=True):
        assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)
    assert position == {"position": 1}


def test_moments_in_the_hosts_memory_come_back_there(tmp_path):
    shapes, state = shapes_on(EIGHT), state_on(EIGHT)
    host = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), shapes.opt_state)
    shapes = dataclasses.replace(shapes, opt_state=jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes.opt_state, host))
    save(tmp_path, dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, host)))
    with opened(tmp_path) as saved:
        restored, _ = saved.restore(shapes)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(restored.opt_state)} == {"pinned_host"}
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))


def test_what_lies_in_the_hosts_memory_is_copied_before_a_save_returns(tmp_path):
    """A step that is donated the state after that has it to itself: nothing that is being written is overwritten."""
    state = state_on(EIGHT)
    host = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), state.opt_state)
    state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, host))
    for x in jax.tree.leaves(state.opt_state):
        copy = checkpoint._kept_apart(x)
        assert copy.sharding == x.sharding
        np.testing.assert_array_equal(copy, x)
        at = [{shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards} for array in (x, copy)]
        assert not at[0] & at[1]
    assert checkpoint._kept_apart(state.step) is state.step


def test_an_array_lies_uncompressed_in_pieces_of_its_shards_each_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "_SMALL", 64)
    save(tmp_path, state_on(EIGHT))
    folder = tmp_path / "1"
    description = json.loads((folder / "params/blocks.kernel/zarr.json").read_text())
    piece = description["chunk_grid"]["configuration"]["chunk_shape"]
    assert piece == [6, 2, 4]  # of shards [6, 8, 4]: four, of the axis that is split already and is the longest
    assert "zstd" not in json.dumps(description)
    state = sum(x.nbytes for x in jax.tree.leaves(state_on(EIGHT)))
    files = pieces(folder)
    index = 20  # bytes, with its check sum, beside every piece
    assert sum(files) == state + index * len(files) and len(files) == 4 * (4 * 4 + 4) + 2
    assert not list(folder.rglob("manifest.ocdbt"))


def test_a_process_reads_little_beyond_its_own_parts(tmp_path, monkeypatch):
    """An eighth of the largest array is asked for, and not much more than that is read."""
    monkeypatch.setattr(array_files, "_SMALL", 1 << 16)
    whole = {"fsdp": NamedSharding(mesh_of({"fsdp": 8}), PartitionSpec(None, "fsdp"))}
    value = jax.device_put(np.random.default_rng(0).standard_normal((4, 512, 512), np.float32), whole["fsdp"])
    state = dataclasses.replace(state_on(ONE), params={"kernel": value})
    save(tmp_path, state)
    part = jax.ShapeDtypeStruct((4, 512, 512), jnp.float32, sharding=NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",)), PartitionSpec()))
    assert read_bytes(tmp_path / "1/params/kernel", None, part) >= value.nbytes
    own = read_bytes(tmp_path / "1/params/kernel", value.sharding.shard_shape(value.shape), part)
    assert value.nbytes / 8 <= own <= 1.1 * value.nbytes / 8


def read_bytes(array, shape, part):
    """What reading the first ``shape`` of an array takes from its files, by the pieces that it touches."""
    description = json.loads((array / "zarr.json").read_text())
    chunk = description["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-n // c) for n, c in zip(shape or part.shape, chunk, strict=True)]
    return sum(array.joinpath("c", *map(str, i)).stat().st_size for i in np.ndindex(*counts))


def test_parts_are_those_of_the_state(tmp_path):
    state = state_on(ONE, ema=False)
    save(tmp_path, state)
    assert not (tmp_path / "1/ema").exists()
    with opened(tmp_path) as saved:
        restored, _ = saved.restore(shapes_on(ONE, ema=False))
    assert restored.ema is None
    chex.assert_trees_all_equal(restored, state)


def test_a_checkpoint_of_orbax_s_own_layout_is_still_read(tmp_path):
    """As runs of earlier versions left it: compressed, in an OCDBT database."""
    state = state_on(ONE)
    with ocp.training.Checkpointer(tmp_path) as manager:
        manager.save_checkpointables(1, {
            "params": state.params, "ema": state.ema, "optimizer": {"step": state.step, "state": state.opt_state},
            "position": {"position": 1}})
    assert list((tmp_path / "1/params").glob("manifest.ocdbt"))
    with opened(tmp_path) as saved:
        chex.assert_trees_all_equal(saved.restore(shapes_on(EIGHT))[0], state_on(EIGHT))


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(("damage", "file"), [
    (cut, "ema/blocks.kernel/c/0/0/0"), (Path.unlink, "optimizer/state.mu.blocks.kernel/c/0/0/0"),
    (Path.unlink, "params/blocks.bias/zarr.json"), (Path.unlink, "params/_METADATA")])
def test_damage_is_named_set_aside_and_the_checkpoint_before_is_taken(tmp_path, caplog, damage, file):
    folder = tmp_path / "checkpoints"
    before = state_on(ONE)
    save(folder, before, state_on(ONE, first=100.0))
    damage(folder / "2" / file)
    with opened(folder) as saved:
        restored, position = saved.restore(shapes_on(ONE))
        assert saved.latest == 1
    chex.assert_trees_all_equal(restored, before)
    assert position == {"position": 1} and f"checkpoint {folder / '2'} cannot be read" in caplog.text
    assert (tmp_path / "unreadable_2").is_dir() and not (folder / "2").exists()
    assert f"{Path(file).name}" in caplog.text or str(folder / "2" / Path(file).parent) in caplog.text
    damage(folder / "1" / file)
    with opened(folder) as saved, pytest.raises(checkpoint.CheckpointError, match="none of the checkpoints") as error:
        saved.restore(shapes_on(ONE))
    assert "  step 1: " in str(error.value) and "Give a new --workdir" in str(error.value)


def test_what_is_half_written_is_no_checkpoint(tmp_path):
    """A write that was killed leaves a folder of another name; the next launch removes it."""
    save(tmp_path, state_on(ONE))
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    (tmp_path / "1").rename(torn)
    assert not checkpoint.is_run(tmp_path.parent)
    with opened(tmp_path) as saved:
        assert saved.latest is None and saved.restore(shapes_on(ONE)) is None
        saved.save(2, state_on(ONE), {"position": 2})
    assert not torn.exists() and (tmp_path / "2").is_dir()


def test_on_an_object_store_a_checkpoint_is_whole_with_its_mark_alone(tmp_path, monkeypatch):
    save(tmp_path / "high/checkpoints", state_on(ONE), state_on(ONE))
    monkeypatch.setattr(checkpoint, "is_remote", lambda path: True)
    assert checkpoint.open_run(tmp_path).experts["high"].step == 2
    (tmp_path / "high/checkpoints/2" / checkpoint.COMMITTED).unlink()
    assert checkpoint.open_run(tmp_path).experts["high"].step == 1


def test_the_next_step_may_take_the_memory_of_a_state_that_is_being_written(tmp_path):
    """Saved bits are those at the time of saving, whatever is computed in place of them meanwhile."""
    state = state_on(ONE)
    kept = jax.device_get(jax.tree.map(jnp.copy, state))
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with opened(tmp_path) as saved:
        saved.save(1, state, {"position": 1})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
    with opened(tmp_path) as saved:
        chex.assert_trees_all_equal(jax.device_get(saved.restore(shapes_on(ONE))[0]), kept)


def test_room_is_asked_for_what_all_processes_write(tmp_path, monkeypatch):
    """A replicated array is written once, a sharded one in all its shards."""
    state, asked = state_on(EIGHT), []
    need = 1.05 * sum(x.nbytes for x in jax.tree.leaves(state)) + checkpoint.METADATA
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda p: usage._replace(free=asked[-1]))
    with opened(tmp_path) as saved:
        asked.append(need - 1)
        with pytest.raises(checkpoint.CheckpointError, match="MB free and a checkpoint takes"):
            saved.save(1, state, {"position": 1})
        assert saved.latest is None
        asked.append(need + 1)
        saved.save(1, state, {"position": 1})
        saved.wait()
        assert saved.latest == 1


def test_a_save_that_waits_for_the_one_before_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "WAITED", -1.0)
    with caplog.at_level(logging.WARNING):
        save(tmp_path, state_on(ONE))
    assert "checkpoint of step 1 waited 0 s for the one before to be written: raise config.train.check" in caplog.text


def test_orbax_s_diary_is_not_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        save(tmp_path, state_on(ONE), state_on(ONE))
        with opened(tmp_path) as saved:
            saved.restore(shapes_on(ONE))
    assert not caplog.text


def test_places_on_an_object_store_stay_as_they_are_and_others_become_absolute(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "gcsfs")
    monkeypatch.chdir(tmp_path)
    assert str(run_folder("gs://bucket/run") / "high") == "gs://bucket/run/high"
    assert str(run_folder("runs/one")) == str(tmp_path / "runs/one")
    assert is_remote("s3://bucket") and not is_remote("/a//b") and not is_remote(tmp_path)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: run_folder("s3://bucket/run"), "orbax writes checkpoints to gs:// and to file systems, not to s3://"),
    (lambda: run_folder("gs://bucket/run"), "is reached through gcsfs: pip install"),
    (lambda: run_folder(""), "--workdir, --checkpoint, --src"),
    (lambda: local_folder("", "--out"), "--out is empty"),
    (lambda: local_folder("gs://bucket/clip.mp4", "--out"), "--out 'gs://bucket/clip.mp4' lies on an object store"),
    (lambda: opened("s3://bucket/run"), "not to s3://"),
    (lambda: checkpoint.open_run("s3://bucket/run"), "not to s3://"),
    (lambda: config.load("configs/light_scenes_tiny.py", {"data.cache_dir": "gs://bucket/latents"}),
     "config.data.cache_dir = 'gs://bucket/latents' lies on an object store"),
])
def test_what_cannot_be_on_an_object_store_is_refused_by_name(monkeypatch, call, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises((FolderError, config.ConfigError)) as error:
        call()
    assert words in str(error.value)


def test_a_run_on_an_object_store_needs_a_folder_for_its_logs(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "gcsfs")
    with pytest.raises(WorkdirError, match="give --logs, too"):
        Workdir("gs://bucket/run", EXPERIMENT)
    with pytest.raises(FolderError, match="--logs 'gs://bucket/logs' lies on an object store"):
        Workdir("gs://bucket/run", EXPERIMENT, "gs://bucket/logs")
    place = Workdir("gs://bucket/run", EXPERIMENT, tmp_path / "logs")
    assert str(place.path) == "gs://bucket/run" and place.logs == tmp_path / "logs"


def test_logs_may_lie_elsewhere_and_hold_the_lock(tmp_path):
    with Workdir(tmp_path / "run", EXPERIMENT, tmp_path / "logs") as place:
        assert (place.logs / ".lock").exists() and (tmp_path / "run/config.json").exists()
        with pytest.raises(WorkdirError, match="in use by process"):
            Workdir(tmp_path / "run", EXPERIMENT, tmp_path / "logs").__enter__()
