"""Clips and captions are encoded once; a cache of something else is refused; an interruption costs one file."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.encode import DataError, ensure_cache, open_source
from wanjax import hub, latent_cache
from wanjax.data import DataConfig, make_loader, validation_batches
from wanjax.latent_cache import CacheError, LatentCache
from wanjax.models.vae import WanVAE
from wanjax.models.vae_config import VAEConfig

T, H, W = 9, 16, 16


class FakeCodec:
    """Averages 4 × 8 × 8 blocks; counts how often it is compiled."""

    strides = (4, 8, 8)

    def __init__(self):
        self.traced = 0

    def apply(self, variables, video, method):
        assert method == "encode"
        self.traced += 1
        frames = jnp.concatenate([video[:, :1], video[:, 1:].reshape(len(video), -1, 4, H, W, 3).mean(2)], axis=1)
        b, f = frames.shape[:2]
        return frames.reshape(b, f, H // 8, 8, W // 8, 8, 3).mean((3, 5)) * variables["params"]["scale"]


class FakeText:
    """One token per word, its embedding the word's hash."""

    width = 4
    fingerprint = "text"
    opened = 0

    def open(self):
        self.opened += 1
        return self

    def embed(self, texts):
        return [np.stack([np.frombuffer(hashlib.sha256(w.encode()).digest()[:4], np.uint8).astype(np.float32)
                          for w in ["<s>", *text.split()]]) for text in texts]


@dataclasses.dataclass
class FakeClips:
    """In-memory clips that can be told to fail at one of them."""

    count: int = 11
    fail_at: int | None = None
    seed: int = 0
    captions: tuple[str, ...] = ("caption_en", "caption_zh")
    size: tuple[int, int, int] = (T, H, W)
    visibility_cell: int = 0
    reads: list[int] = dataclasses.field(default_factory=list)

    @property
    def fingerprint(self):
        return {"name": "fake", "seed": self.seed}

    def split(self, name):
        return _Examples(self, {"train": self.count, "validation": 3, "test": 2}[name])


@dataclasses.dataclass
class _Examples:
    clips: FakeClips
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.clips.fail_at:
            raise KeyboardInterrupt
        self.clips.reads.append(i)
        video = np.random.default_rng(i).integers(0, 256, (T, H, W, 3), np.uint8)
        example = {"video": video, "caption_en": f"clip number {i}".encode(), "caption_zh": f"第 {i} 个"}
        if self.clips.visibility_cell:
            example["visibility"] = video[..., 0]
        return example


def cached(folder, clips=None, **changes):
    arguments = {"source": clips or FakeClips(), "vae": FakeCodec(), "vae_params": {"scale": jnp.float32(2)},
                 "vae_fingerprint": "codec", "text": FakeText(), "clips_per_shard": 4}
    return ensure_cache(folder, **arguments | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.name[0] != "."}


def test_latents_and_captions_are_what_codec_and_text_encoder_say(tmp_path):
    cache = cached(tmp_path)
    clips = cache.split("train")
    assert len(clips) == 11 and len(cache.split("validation")) == 3
    assert cache.manifest.latent_shape == (3, 2, 2, 3)
    for i, clip in enumerate(clips):
        example = FakeClips().split("train")[i]
        video = example["video"].astype(np.float32)[None] / 127.5 - 1
        expected = FakeCodec().apply({"params": {"scale": 2.0}}, jnp.asarray(video), "encode")[0]
        np.testing.assert_allclose(clip.latents, expected, atol=1e-6)
        for text, name in zip(clip.texts, cache.manifest.captions, strict=True):
            caption = example[name] if isinstance(example[name], str) else example[name].decode()
            np.testing.assert_array_equal(text, FakeText().embed([caption])[0])
    np.testing.assert_array_equal(cache.null_text, FakeText().embed([""])[0])


def test_a_finished_cache_opens_no_text_encoder(tmp_path):
    text = FakeText()
    cached(tmp_path, text=text)
    assert text.opened == 1
    cached(tmp_path, text=text)
    assert text.opened == 1


def test_a_lost_embedding_of_the_empty_caption_is_made_again(tmp_path):
    whole = cached(tmp_path).null_text
    (tmp_path / latent_cache.NULL_TEXT).unlink()
    with pytest.raises(CacheError, match="delete it and run the encoder again"):
        _ = LatentCache(tmp_path).null_text
    clips = FakeClips()
    np.testing.assert_array_equal(cached(tmp_path, clips).null_text, whole)
    assert not clips.reads  # and nothing else


def test_a_cache_feeds_the_loader(tmp_path):
    cache = cached(tmp_path)
    batch = next(make_loader(tmp_path, "train", batch=2, seed=0, text_length=6, caption_dropout=0.1,
                             null_text=cache.null_text))
    assert batch["latents"].shape == (2, 3, 2, 2, 3) and batch["text"].shape == (2, 6, 4)


def test_visibility_is_averaged_over_cells_and_the_frames_of_a_latent(tmp_path):
    cache = cached(tmp_path, FakeClips(visibility_cell=4), visibility_cell=4)
    assert cache.manifest.visibility_cell == 4
    for i, clip in enumerate(cache.split("train")):
        seen = FakeClips().split("train")[i]["video"][..., 0].astype(np.float64)
        cells = seen.reshape(T, H // 4, 4, W // 4, 4).mean((2, 4))
        expected = np.stack([cells[0], cells[1:5].mean(0), cells[5:].mean(0)])
        assert clip.visibility.dtype == np.uint8 and clip.visibility.shape == (3, 4, 4)
        np.testing.assert_allclose(clip.visibility, expected, atol=0.51)
    loader = {"batch": 2, "text_length": 6}
    plain, seeing = (validation_batches(tmp_path, "validation", visibility_cell=cell, **loader)[0] for cell in (0, 4))
    assert "visibility" not in plain and seeing["visibility"].shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(seeing["visibility"][1] * 255, cache.split("validation")[1].visibility)
    np.testing.assert_array_equal(plain["latents"], seeing["latents"])
    more = next(make_loader(tmp_path, "train", seed=0, caption_dropout=0, null_text=cache.null_text, visibility_cell=4,
                            **loader))
    assert more["visibility"].dtype == np.float32 and 0 <= more["visibility"].min() < more["visibility"].max() <= 1


def test_visibility_that_is_not_there_is_refused_before_encoding_with_the_remedy(tmp_path):
    clips = FakeClips()
    with pytest.raises(CacheError, match="no feature 'visibility'.*config.objective.shadow.weight to 0"):
        cached(tmp_path, clips, visibility_cell=4)
    assert clips.reads == []
    cached(tmp_path / "other", FakeClips(visibility_cell=8))
    with pytest.raises(CacheError, match="cells of 8 pixels, config.data.visibility_cell = 4.*cache_dir"):
        cached(tmp_path / "other", FakeClips(visibility_cell=8), visibility_cell=4)


def test_a_cache_of_the_version_without_visibility_is_served_where_none_is_needed(tmp_path):
    cached(tmp_path, splits=("train",))
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["visibility_cell"]
    path.write_text(json.dumps(manifest | {"version": 1}))
    again = FakeClips(visibility_cell=4)
    cache = cached(tmp_path, again)  # goes on with the other split, in the cache's own way
    assert again.reads == [0, 1, 2] and cache.manifest.version == 1
    assert cache.split("train")[0].visibility is None and cache.split("validation")[0].visibility is None
    with pytest.raises(CacheError, match="made by a version that did not store it.*config.data.cache_dir"):
        cached(tmp_path, again, visibility_cell=4)
    with pytest.raises(CacheError, match="holds no visibility, which the shadow term needs"):
        validation_batches(tmp_path, "validation", batch=1, text_length=6, visibility_cell=4)


def test_image_latents_are_the_codecs_of_the_first_frame_and_grey(tmp_path):
    cache = cached(tmp_path, image=True)
    for i, clip in enumerate(cache.split("train")):
        video = FakeClips().split("train")[i]["video"].astype(np.float32)[None] / 127.5 - 1
        video[:, 1:] = 0
        expected = FakeCodec().apply({"params": {"scale": 2.0}}, jnp.asarray(video), "encode")[0]
        np.testing.assert_allclose(clip.image, expected, atol=1e-6)
        assert clip.image[0].std() > 0 and not np.array_equal(clip.image, clip.latents)
    loader = {"batch": 2, "text_length": 6}
    plain, seeing = (validation_batches(tmp_path, "validation", image=image, **loader)[0] for image in (False, True))
    assert "image" not in plain
    np.testing.assert_array_equal(seeing["image"][1], cache.split("validation")[1].image)
    more = next(make_loader(tmp_path, "train", seed=0, caption_dropout=0, null_text=cache.null_text, image=True,
                            **loader))
    assert more["image"].shape == more["latents"].shape and more["image"].dtype == np.float32


def test_image_latents_that_are_not_there_are_refused_before_encoding_with_the_remedy(tmp_path):
    cached(tmp_path, splits=("train",))
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["image"]
    path.write_text(json.dumps(manifest | {"version": 2}))
    again = FakeClips()
    with pytest.raises(CacheError, match="no image latents.*config.data.cache_dir to a new folder"):
        cached(tmp_path, again, image=True)
    assert again.reads == []
    cached(tmp_path, again)  # goes on with the other split, in the cache's own way
    with pytest.raises(CacheError, match="no image latents"):
        validation_batches(tmp_path, "validation", batch=1, text_length=6, image=True)


def test_the_codec_is_compiled_once(tmp_path):
    codec = FakeCodec()
    cached(tmp_path, vae=codec)
    assert codec.traced == 2  # once for its shape, once for the program


def test_a_finished_cache_is_not_encoded_again(tmp_path):
    cached(tmp_path)
    before = contents(tmp_path)
    again = FakeClips()
    cached(tmp_path, again)
    assert again.reads == [] and contents(tmp_path) == before


def test_an_interrupted_run_goes_on_with_the_first_unfinished_file(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    cached(whole)
    with pytest.raises(KeyboardInterrupt):
        cached(part, FakeClips(fail_at=6))
    with pytest.raises(CacheError, match="goes on where it stopped"):
        LatentCache(part).split("train")
    again = FakeClips()
    cached(part, again)
    assert again.reads[0] == 4
    assert contents(part) == contents(whole)


def test_a_deleted_file_alone_is_encoded_again(tmp_path):
    cached(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "train-00002-of-00003.array_record").unlink()
    again = FakeClips()
    cached(tmp_path, again)
    assert again.reads == [8, 9, 10] and contents(tmp_path) == before


def test_another_split_is_added(tmp_path):
    cached(tmp_path)
    again = FakeClips()
    cache = cached(tmp_path, again, splits=("test",))
    assert again.reads == [0, 1] and len(cache.split("test")) == 2 and len(cache.split("train")) == 11


def test_a_cache_of_something_else_is_refused(tmp_path):
    cached(tmp_path)
    other = FakeText()
    other.fingerprint = "another"
    for changes, named in [({"vae_fingerprint": "new"}, "codec weights"), ({"text": other}, "text encoder"),
                           ({"clips": FakeClips(seed=1)}, "data seed: cached 0, now 1")]:
        with pytest.raises(CacheError, match=named):
            cached(tmp_path, **changes)


def test_a_clip_of_another_size_is_named(tmp_path):
    with pytest.raises(DataError, match=r"clip 0 is uint8 \(9, 16, 16, 3\), config.data says"):
        cached(tmp_path, FakeClips(size=(5, 16, 16)))


class MadeUp(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set with the features of docs/data.md, three clips of it."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"video": tfds.features.Tensor(shape=(T, H, W, 3), dtype=np.uint8), "fps": np.float32,
                    "caption_en": tfds.features.Text(), "truth": tfds.features.Tensor(shape=(T,), dtype=np.float32)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download):
        return {"train": self._clips(), "validation": self._clips()}

    def _generate_examples(self):
        yield from self._clips()

    def _clips(self):
        for i in range(3):
            yield i, {"video": np.full((T, H, W, 3), 40 * i, np.uint8), "fps": 8.0, "caption_en": f"clip {i}",
                      "truth": np.zeros(T, np.float32)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of ``MadeUp``."""
    builder = MadeUp(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def made_up(prepared, **changes):
    return dataclasses.replace(DataConfig(source=str(prepared), frames=T, height=H, width=W, fps=8.0), **changes)


def test_a_tfds_data_set_is_read_without_its_code(prepared, tmp_path):
    source = open_source(made_up(prepared))
    assert source.captions == ("caption_en",) and len(source.split("train")) == 3
    cache = cached(tmp_path, source, splits=("train",))
    levels = {round((float(clip.latents.mean()) / 2 + 1) * 127.5) for clip in cache.split("train")}
    assert levels == {0, 40, 80}


def test_data_that_does_not_fit_is_refused(prepared, tmp_path):
    with pytest.raises(DataError, match="has 8 frames per second, config.data.fps = 16"):
        cached(tmp_path, open_source(made_up(prepared, fps=16.0)), splits=("train",))
    with pytest.raises(DataError, match="no split 'test', only train, validation"):
        open_source(made_up(prepared)).split("test")
    with pytest.raises(DataError, match="config.data.source = 'no_such_data_set'"):
        open_source(made_up(prepared, source="no_such_data_set"))


def test_an_unreadable_data_file_is_named(prepared, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in prepared.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (data,) = folder.glob("*train.array_record*")
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(DataError, match=f"{data.name}.*prepare the data again"):
        cached(tmp_path / "cache", open_source(made_up(folder)), splits=("train",))


def test_the_launcher_makes_the_cache_of_a_config(prepared, tmp_path):
    codec = WanVAE(VAEConfig(base_dim=2, num_res_blocks=1, dim_mult=(1, 1, 1, 1)))
    hub.save_vae(tmp_path / "codec", codec, jax.jit(codec.init)(jax.random.key(0))["params"])
    fields = {"codec": tmp_path / "codec", "data.source": prepared, "data.cache_dir": tmp_path / "cache",
              "data.frames": T, "data.height": H, "data.width": W}
    command = [sys.executable, "-m", "data_pipelines.encode", "--config", "configs/light_scenes_tiny.py",
               *(f"--config.{name}={value}" for name, value in fields.items())]
    said = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent.parent)
    assert said.returncode == 0, said.stderr
    assert "train 3, validation 3 clips" in said.stdout
    clip = LatentCache(tmp_path / "cache").split("train")[0]
    assert clip.latents.shape == (3, 2, 2, 16) and np.isfinite(clip.latents).all()
