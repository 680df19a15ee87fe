"""A latent cache gives back what was written, and says what is wrong when it cannot."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from wanjax import latent_cache
from wanjax.latent_cache import CacheError, Clip, LatentCache, Manifest, Shard


def make_clips(count, seed=0, tokens=(3, 5)):
    rng = np.random.default_rng(seed)
    return [Clip(rng.standard_normal((2, 3, 4, 16), np.float32),
                 tuple(rng.standard_normal((n, 8), np.float32) for n in tokens)) for _ in range(count)]


def make_cache(folder, clips, per_shard=4, split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [clips[i : i + per_shard] for i in range(0, len(clips), per_shard)]
    shards = tuple(latent_cache.write_shard(folder / f"{split}-{i:05d}-of-{len(chunks):05d}.array_record", chunk)
                   for i, chunk in enumerate(chunks))
    manifest = Manifest(codec="c" * 64, text="t" * 64, data={"name": "made_up", "clips": len(clips)},
                        captions=("caption_en", "caption_zh"), latent_shape=(2, 3, 4, 16), text_width=8,
                        splits={split: shards})
    latent_cache.write_manifest(folder, manifest)
    latent_cache.write_null_text(folder, np.full((1, 8), 7, np.float32))
    return LatentCache(folder)


def test_every_clip_comes_back_bit_for_bit(tmp_path):
    clips = make_clips(10)
    read = make_cache(tmp_path, clips).split("train")
    assert len(read) == 10
    for wanted, got in zip(clips, read, strict=True):
        np.testing.assert_array_equal(wanted.latents, got.latents)
        assert len(got.texts) == 2
        for a, b in zip(wanted.texts, got.texts, strict=True):
            np.testing.assert_array_equal(a, b)


def test_visibility_comes_back_and_hardly_adds_to_a_record():
    rng = np.random.default_rng(0)
    plain = Clip(rng.standard_normal((5, 8, 8, 16), np.float32), (rng.standard_normal((40, 64), np.float32),) * 2)
    seeing = plain._replace(visibility=rng.integers(0, 256, (5, 16, 16), np.uint8))
    records = [latent_cache.encode_record(clip) for clip in (plain, seeing)]
    assert latent_cache.decode_record(records[0]).visibility is None
    back = latent_cache.decode_record(records[1])
    np.testing.assert_array_equal(back.visibility, seeing.visibility)
    assert back.visibility.dtype == np.uint8 and len(back.texts) == 2
    assert len(records[1]) < 1.05 * len(records[0])


def test_image_latents_come_back():
    clip = make_clips(1)[0]
    assert latent_cache.decode_record(latent_cache.encode_record(clip)).image is None
    shown = clip._replace(image=clip.latents + 1)
    back = latent_cache.decode_record(latent_cache.encode_record(shown))
    np.testing.assert_array_equal(back.image, shown.image)
    assert len(back.texts) == 2 and back.visibility is None


def test_visibility_follows_the_codecs_stride_in_time():
    frames = (10 * np.arange(9, dtype=np.uint8))[:, None, None] * np.ones((1, 4, 4), np.uint8)
    np.testing.assert_array_equal(latent_cache.visibility_cells(frames, 4)[:, 0, 0], [0, 25, 65])
    np.testing.assert_array_equal(latent_cache.visibility_cells(frames, 4, time=8)[:, 0, 0], [0, 45])


def test_the_manifest_comes_back_equal(tmp_path):
    cache = make_cache(tmp_path, make_clips(5))
    assert latent_cache.read_manifest(tmp_path) == cache.manifest
    assert cache.manifest.clips("train") == 5
    assert [shard.clips for shard in cache.manifest.splits["train"]] == [4, 1]
    np.testing.assert_array_equal(cache.null_text, np.full((1, 8), 7, np.float32))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, damage):
    make_cache(tmp_path, make_clips(8))
    path = tmp_path / "train-00001-of-00002.array_record"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[3000:5000] = bytes(2000)  # inside a record, not in the padding at the end
        path.write_bytes(content)
    with pytest.raises(CacheError, match=r"train-00001-of-00002.*delete it and run"):
        list(LatentCache(tmp_path).split("train"))


def test_an_unfinished_file_is_refused(tmp_path):
    cache = make_cache(tmp_path, make_clips(4))
    unfinished = {"train": (*cache.manifest.splits["train"], Shard("train-x.array_record", 4))}
    latent_cache.write_manifest(tmp_path, dataclasses.replace(cache.manifest, splits=unfinished))
    with pytest.raises(CacheError, match="goes on where it stopped"):
        LatentCache(tmp_path).split("train")


def test_what_changed_is_named(tmp_path):
    manifest = make_cache(tmp_path, make_clips(4)).manifest
    same = {"codec": manifest.codec, "text": manifest.text, "data": dict(manifest.data)}
    latent_cache.check(tmp_path, manifest, **same)
    with pytest.raises(CacheError, match="codec weights: cached cccccccccccc, now dddddddddddd"):
        latent_cache.check(tmp_path, manifest, **same | {"codec": "d" * 64})
    with pytest.raises(CacheError, match="text encoder"):
        latent_cache.check(tmp_path, manifest, **same | {"text": "u" * 64})
    with pytest.raises(CacheError, match="data clips: cached 4, now 5[^~]*config.data.cache_dir"):
        latent_cache.check(tmp_path, manifest, **same | {"data": {"name": "made_up", "clips": 5}})


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": 1}'])
def test_an_unreadable_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        LatentCache(tmp_path)


def test_an_absent_cache_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(CacheError, match="data_pipelines.encode"):
        LatentCache(tmp_path / "nowhere")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options):
            open(path, "wb").close()

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(latent_cache, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match="No space left"):
        latent_cache.write_shard(tmp_path / "train.array_record", make_clips(1))
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_sees_values_dtypes_shapes_and_names():
    tree = {"a": np.arange(6, dtype=np.float32), "b": {"c": jnp.ones((2, 2), jnp.bfloat16)}}
    reference = latent_cache.fingerprint(tree)
    assert reference == latent_cache.fingerprint({"b": dict(tree["b"]), "a": tree["a"].copy()})
    others = [{**tree, "a": tree["a"] + np.float32(1e-6)}, {**tree, "a": tree["a"].reshape(2, 3)},
              {**tree, "a": tree["a"].astype(np.float64)}, {"z": tree["a"], "b": tree["b"]}]
    assert len({reference, *map(latent_cache.fingerprint, others)}) == 5
