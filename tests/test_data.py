"""Batches are a pure function of the seed, and the position in them survives a restart exactly."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from tests.test_latent_cache import make_cache, make_clips
from wanjax.data import make_loader, rows_of_process, to_global, validation_batches
from wanjax.latent_cache import CacheError, Clip

CLIPS = 20
NULL = np.full((1, 8), 99, np.float32)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """Clip i holds i everywhere; its first caption holds i, its second -i (i from 1)."""
    clips = [Clip(np.full((2, 3, 4, 16), i, np.float32),
                  (np.full((3, 8), i, np.float32), np.full((5, 8), -i, np.float32))) for i in range(1, CLIPS + 1)]
    folder = tmp_path_factory.mktemp("cache")
    make_cache(folder, clips)
    return folder


def loader(cache_dir, **changes):
    settings = {"batch": 4, "seed": 3, "text_length": 6, "caption_dropout": 0.25, "null_text": NULL}
    return make_loader(cache_dir, "train", **settings | changes)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def clip_ids(batches):
    return [int(clip[0, 0, 0, 0]) for batch in batches for clip in batch["latents"]]


def test_a_batch_has_latents_and_padded_text(cache_dir):
    batch = next(loader(cache_dir))
    assert batch["latents"].shape == (4, 2, 3, 4, 16) and batch["latents"].dtype == np.float32
    assert batch["text"].shape == (4, 6, 8) and batch["text"].dtype == np.float32
    assert not batch["text"][:, 5:].any()


def test_the_seed_alone_decides(cache_dir):
    first, again, other = (list(itertools.islice(loader(cache_dir, seed=s), 12)) for s in (3, 3, 4))
    assert all(map(equal, first, again))
    assert not all(map(equal, first, other))


def test_every_epoch_shows_every_clip_once_in_a_new_order(cache_dir):
    epochs = np.array(clip_ids(itertools.islice(loader(cache_dir), 15))).reshape(3, CLIPS)
    for epoch in epochs:
        assert sorted(epoch) == list(range(1, CLIPS + 1))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_one_epoch_without_repeat(cache_dir):
    assert len(list(loader(cache_dir, batch=8, repeat=False))) == CLIPS // 8


def test_captions_belong_to_their_clip_and_both_languages_and_the_empty_one_occur(cache_dir):
    seen = {"first": 0, "second": 0, "null": 0}
    for batch in itertools.islice(loader(cache_dir), 100):
        for clip, text in zip(batch["latents"], batch["text"], strict=True):
            i, value = clip[0, 0, 0, 0], text[0, 0]
            kind = {i: "first", -i: "second", 99: "null"}[value]
            seen[kind] += 1
            tokens = {"first": 3, "second": 5, "null": 1}[kind]
            assert (text[:tokens] == value).all() and not text[tokens:].any()
    assert 60 < seen["null"] < 140 and 110 < seen["first"] < 190 and 110 < seen["second"] < 190


def test_without_dropout_every_clip_has_its_caption(cache_dir):
    for batch in itertools.islice(loader(cache_dir, caption_dropout=0.0), 20):
        np.testing.assert_array_equal(np.abs(batch["text"][:, 0, 0]), batch["latents"][:, 0, 0, 0, 0])


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_restored_position_gives_bit_identical_batches(cache_dir, steps):
    ours = loader(cache_dir)
    for _ in range(steps):
        next(ours)
    state = ours.get_state()
    wanted = [next(ours) for _ in range(9)]
    restored = loader(cache_dir)
    restored.set_state(state)
    assert all(map(equal, wanted, itertools.islice(restored, 9)))


def test_the_position_is_stored_with_the_state_by_orbax(cache_dir, tmp_path):
    ours = loader(cache_dir)
    for _ in range(5):
        next(ours)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(5, {"state": {"w": np.ones(3)}, "data": ours})
    wanted = [next(ours) for _ in range(6)]
    restored = loader(cache_dir)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.load_checkpointables(5, {"state": {"w": np.zeros(3)}, "data": restored})
    assert all(map(equal, wanted, itertools.islice(restored, 6)))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(cache_dir, processes):
    whole = list(itertools.islice(loader(cache_dir), 8))
    size = len(next(loader(cache_dir))["latents"]) // processes
    parts = [list(itertools.islice(loader(cache_dir, rows=range(p * size, (p + 1) * size)), 8))
             for p in range(processes)]
    for step, batch in enumerate(whole):
        joined = {k: np.concatenate([part[step][k] for part in parts]) for k in batch}
        assert equal(batch, joined)


def test_a_batch_becomes_global_arrays(cache_dir):
    batch = next(loader(cache_dir, batch=8))
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    arrays = to_global(batch, sharding, 8)
    assert all(a.sharding == sharding and len(a.addressable_shards) == 8 for a in arrays.values())
    assert equal(batch, {k: np.asarray(a) for k, a in arrays.items()})


class Held:
    """Stands for a sharding over several processes: the slices that this one's devices hold."""

    def __init__(self, *parts):
        self._parts = parts

    def addressable_devices_indices_map(self, shape):
        return {i: (part,) for i, part in enumerate(self._parts)}


def test_a_process_has_the_rows_of_its_devices_wherever_they_lie():
    assert rows_of_process(Held(slice(None)), 4) == (0, 1, 2, 3)
    assert rows_of_process(Held(slice(2, 4), slice(2, 4)), 4) == (2, 3)  # devices that split tokens hold the same clips
    assert rows_of_process(Held(slice(4, 6), slice(0, 2)), 8) == (0, 1, 4, 5)  # on a torus


def test_rows_come_to_the_devices_that_hold_them(cache_dir):
    batch = next(loader(cache_dir, batch=8))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices())[[3, 6, 0, 1, 7, 2, 5, 4]].reshape(4, 2), ("data", "seq"))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    assert equal(batch, {k: np.asarray(a) for k, a in to_global(batch, sharding, 8).items()})


def test_validation_batches_are_fixed_and_alternate_captions(cache_dir):
    batches = validation_batches(cache_dir, "train", batch=8, text_length=6)
    assert clip_ids(batches) == list(range(1, 17))
    signs = np.concatenate([np.sign(batch["text"][:, 0, 0]) for batch in batches])
    np.testing.assert_array_equal(signs, [1, -1] * 8)
    assert all(map(equal, batches, validation_batches(cache_dir, "train", batch=8, text_length=6)))
    assert clip_ids(validation_batches(cache_dir, "train", batch=4, text_length=6, limit=9)) == list(range(1, 9))


def test_a_caption_longer_than_the_text_length_is_named(cache_dir):
    with pytest.raises(CacheError, match="caption_zh has 5 tokens, config.text.length is 4"):
        for _ in itertools.islice(loader(cache_dir, text_length=4), 20):
            pass


def test_batches_that_cannot_be_made_are_refused(cache_dir):
    with pytest.raises(ValueError, match=r"rows \(3, 4\) of a batch of 4"):
        loader(cache_dir, rows=(3, 4))
    with pytest.raises(ValueError, match="20 clips"):
        loader(cache_dir, batch=21, repeat=False)
    with pytest.raises(ValueError, match="20 clips"):
        validation_batches(cache_dir, "train", batch=32, text_length=6)
    with pytest.raises(ValueError, match="captions of .* are 8 wide"):
        loader(cache_dir, null_text=np.zeros((1, 16), np.float32))
    with pytest.raises(CacheError, match="no split 'test', only train"):
        validation_batches(cache_dir, "test", batch=4, text_length=6)


def test_a_damaged_record_reaches_the_caller_as_one_clear_error(tmp_path):
    make_cache(tmp_path, make_clips(8))
    path = tmp_path / "train-00000-of-00002.array_record"
    content = bytearray(path.read_bytes())
    content[3000:9000] = bytes(6000)
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"train-00000-of-00002.*delete it and run"):
        for _ in itertools.islice(loader(tmp_path), 4):
            pass
