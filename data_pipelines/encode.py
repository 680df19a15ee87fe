"""Encodes clips and captions once, before training: `python -m data_pipelines.encode --config configs/X.py`.

Reads a TFDS data set (docs/data.md names the features), runs the codec and the frozen text encoder over it and writes
the folder that wanjax/latent_cache.py describes. Interrupted, it goes on with the first unfinished file. A cache made
by another codec, another text encoder or from other data is refused, never silently used.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from tqdm import tqdm

from data_pipelines import light_scenes
from wanjax import first_frame, latent_cache
from wanjax.data import DataConfig
from wanjax.latent_cache import Clip, LatentCache, Manifest, Shard
from wanjax.models.vae import WanVAE
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.text import TextEncoder

SPLITS = ("train", "validation")
CLIPS_PER_SHARD = 128  # an interruption costs at most so many clips
_PIXELS_PER_CALL = 1 << 20  # clips are batched up to here: larger calls are not faster and cost memory
_PIXELS_IN_ONE_PIECE = 1 << 23  # longer or larger clips are encoded chunk by chunk: same result, bounded memory


class DataError(RuntimeError):
    """Data that cannot be read or does not fit the config; the message names it and what to do."""


class ClipSource(Protocol):
    """Where clips come from: examples with ``video`` uint8 [T, H, W, 3] and one string per name in ``captions``.

    With a ``visibility_cell`` above 0 also ``visibility`` uint8 [T, H, W].
    """

    captions: tuple[str, ...]
    size: tuple[int, int, int]  # T, H, W
    visibility_cell: int
    fingerprint: Mapping[str, Any]

    def split(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The examples of a split, in a fixed order."""


def ensure_cache(
    cache_dir: str | os.PathLike[str],
    *,
    source: DataConfig | ClipSource,
    vae: WanVAE,
    vae_params: Any,
    vae_fingerprint: str,
    text: PromptEmbedder,
    splits: Sequence[str] = SPLITS,
    visibility_cell: int = 0,
    image: bool = False,
    clips_per_shard: int = CLIPS_PER_SHARD,
) -> LatentCache:
    """Opens the cache of these clips, after encoding what is not there yet.

    A finished cache is only checked, not read, and opens no text encoder. Processes that ask for the same folder at the
    same time wait for one another; on many machines run ``python -m data_pipelines.encode`` once before training.

    Args:
      source: where the clips are; a DataConfig is opened with ``open_source``.
      vae_fingerprint: changes whenever the codec's weights do.
      splits: what must be there in the end; splits already in the cache stay.
      visibility_cell: refuses, before anything is encoded, a cache without visibility in cells of so many pixels; 0
        takes any.
      image: a new cache gets image latents, one without them is refused before anything is encoded.

    Raises:
      CacheError: if the folder belongs to another codec, text encoder or data set, naming what changed, or lacks the
        visibility or the image latents that are asked for.
      DataError: if a clip cannot be read or has another size than the config says.
      OSError: if the disk is full; finished files are kept.
    """
    clips = open_source(source) if isinstance(source, DataConfig) else source
    folder = pathlib.Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        manifest = _plan(folder, clips, vae, vae_params, vae_fingerprint, text, splits, clips_per_shard, image)
        if visibility_cell:
            latent_cache.check_visibility(folder, manifest, visibility_cell)
        if image:
            latent_cache.check_image(folder, manifest)
        unfinished = any(not shard.bytes for shards in manifest.splits.values() for shard in shards)
        if unfinished or not (folder / latent_cache.NULL_TEXT).exists():
            opened = text.open()
            latent_cache.write_null_text(folder, opened.embed([""])[0])
        if unfinished:
            for leftover in folder.glob(".*.array_record.*"):
                leftover.unlink()
            encoder = _Encoder(clips, vae, vae_params, opened, manifest.visibility_cell, manifest.image)
            for split in manifest.splits:
                manifest = _encode_split(folder, manifest, split, clips, encoder)
    return LatentCache(folder)


def _plan(folder: pathlib.Path, clips: ClipSource, vae: WanVAE, vae_params: Any, vae_fingerprint: str,
          text: PromptEmbedder, splits: Sequence[str], per_shard: int, image: bool) -> Manifest:
    """The folder's manifest, or a new one; files that are not there have ``bytes = 0``."""
    if (folder / latent_cache.MANIFEST).exists():
        manifest = latent_cache.read_manifest(folder)
        latent_cache.check(folder, manifest, codec=vae_fingerprint, text=text.fingerprint,
                           data=clips.fingerprint)
    else:
        video = jax.ShapeDtypeStruct((1, *clips.size, 3), jnp.float32)
        encode = functools.partial(vae.apply, method="encode")
        _, f, h, w, c = jax.eval_shape(encode, {"params": vae_params}, video).shape
        manifest = Manifest(vae_fingerprint, text.fingerprint, dict(clips.fingerprint), clips.captions, (f, h, w, c),
                            text.width, {}, clips.visibility_cell, image)
    planned = {name: tuple(s if (folder / s.file).exists() else dataclasses.replace(s, bytes=0) for s in shards)
               for name, shards in manifest.splits.items()}
    for split in splits:
        if split not in planned:
            planned[split] = _shards(split, len(clips.split(split)), per_shard)
    return dataclasses.replace(manifest, splits=planned)


def _shards(split: str, clips: int, per_shard: int) -> tuple[Shard, ...]:
    count = -(-clips // per_shard)
    return tuple(Shard(f"{split}-{i:05d}-of-{count:05d}.array_record", min(per_shard, clips - i * per_shard))
                 for i in range(count))


def _encode_split(folder: pathlib.Path, manifest: Manifest, split: str, clips: ClipSource,
                  encoder: _Encoder) -> Manifest:
    """Writes the missing files of a split, and the manifest after each of them."""
    shards = list(manifest.splits[split])
    if all(shard.bytes for shard in shards):
        return manifest
    examples, start = clips.split(split), 0
    done = sum(shard.clips for shard in shards if shard.bytes)
    with tqdm(total=manifest.clips(split), initial=done, desc=f"encode {split}", unit="clip") as bar:
        for i, shard in enumerate(shards):
            if not shard.bytes:
                encoded = encoder.encode(examples, range(start, start + shard.clips), bar)
                shards[i] = latent_cache.write_shard(folder / shard.file, encoded)
                manifest = dataclasses.replace(manifest, splits={**manifest.splits, split: tuple(shards)})
                latent_cache.write_manifest(folder, manifest)
            start += shard.clips
    return manifest


class _Encoder:
    """Runs codec and text encoder; one compiled program, and one for image latents, whatever the number of clips."""

    def __init__(self, clips: ClipSource, vae: WanVAE, params: Any, text: TextEncoder, visibility_cell: int,
                 image: bool):
        pixels = int(np.prod(clips.size))
        method = "encode" if pixels <= _PIXELS_IN_ONE_PIECE else "encode_chunked"
        self._clips, self._params, self._text = clips, params, text
        self._cell, self._time = visibility_cell, vae.strides[0]
        self._batch = max(1, min(16, _PIXELS_PER_CALL // pixels))

        @jax.jit
        def encode(params: Any, video: jax.Array) -> jax.Array:
            return vae.apply({"params": params}, video.astype(jnp.float32) / 127.5 - 1.0, method=method)

        @jax.jit
        def encode_image(params: Any, first: jax.Array) -> jax.Array:
            alone = first_frame.alone(first.astype(jnp.float32) / 127.5 - 1.0, clips.size[0])
            return vae.apply({"params": params}, alone, method=method)

        self._encode, self._encode_image = encode, encode_image if image else None

    def _visible(self, example: Mapping[str, Any]) -> np.ndarray:
        return latent_cache.visibility_cells(example["visibility"], self._cell, time=self._time)

    def encode(self, examples: Sequence[Mapping[str, Any]], numbers: range, bar: tqdm) -> list[Clip]:
        """The clips ``examples[numbers]``, encoded."""
        videos: list[np.ndarray] = []
        captions: list[str] = []
        latents: list[np.ndarray] = []
        images: list[np.ndarray] = []
        seen: list[np.ndarray | None] = []
        for i in numbers:
            example = examples[i]
            video = np.asarray(example["video"])
            if video.shape != (*self._clips.size, 3) or video.dtype != np.uint8:
                raise DataError(f"clip {i} is {video.dtype} {video.shape}, config.data says uint8 "
                                f"{(*self._clips.size, 3)} (frames, height, width, 3)")
            videos.append(video)
            seen.append(self._visible(example) if self._cell else None)
            captions += [_string(example[name]) for name in self._clips.captions]
            if len(videos) == self._batch or i == numbers[-1]:
                # the last call is filled up, so that it does not compile a second program
                filled = np.stack(videos + [videos[-1]] * (self._batch - len(videos)))
                latents += list(np.asarray(self._encode(self._params, filled), np.float32)[: len(videos)])
                if self._encode_image:
                    made = self._encode_image(self._params, filled[:, :1])
                    images += list(np.asarray(made, np.float32)[: len(videos)])
                bar.update(len(videos))
                videos = []
        distinct = list(dict.fromkeys(captions))
        embeddings = dict(zip(distinct, self._text.embed(distinct), strict=True))
        width = len(self._clips.captions)
        texts = [tuple(embeddings[caption] for caption in captions[n : n + width])
                 for n in range(0, len(captions), width)]
        return [Clip(*parts) for parts in zip(latents, texts, seen, images or [None] * len(latents), strict=True)]


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock; a killed process loses it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that encodes into {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_source(config: DataConfig) -> TFDSSource:
    """The data set that a config names: ``light_scenes`` is rendered if it is not there yet, others must be prepared.

    ``light_scenes:all`` has every family, ``light_scenes:street_lamp,water_glitter`` those named (docs/data.md).

    Raises:
      DataError: if it is not prepared, cannot be read at random, or lacks a feature of docs/data.md.
    """
    name, _, families = config.source.partition(":")
    if name == "light_scenes":
        try:
            chosen = light_scenes.parse_families(families) if families else light_scenes.FAMILIES
        except ValueError as error:
            raise DataError(f"config.data.source = {config.source!r}: {error}") from error
        clips = {"train": config.train_clips} if config.train_clips else {}
        scenes = light_scenes.LightScenesConfig.balanced(**clips, frames=config.frames, height=config.height,
                                                         width=config.width, fps=config.fps, families=chosen)
        builder = light_scenes.prepare(config.data_dir, config=scenes)
    else:
        try:
            if pathlib.Path(config.source).is_dir():
                builder = tfds.builder_from_directory(config.source)
            else:
                builder = tfds.builder(config.source, data_dir=config.data_dir)
        except (tfds.core.registered.DatasetNotFoundError, FileNotFoundError) as error:
            raise DataError(f"config.data.source = {config.source!r} is neither a prepared folder nor a TFDS data set "
                            f"in config.data.data_dir = {config.data_dir!r}: {error}") from error
    return TFDSSource(builder, config)


class TFDSSource:
    """A prepared TFDS data set with the features of docs/data.md, read without TensorFlow."""

    def __init__(self, builder: tfds.core.DatasetBuilder, config: DataConfig):
        """Raises DataError if the data set is not prepared or lacks a feature."""
        if not builder.info.splits:
            raise DataError(f"data set {builder.info.full_name} is not prepared in {builder.data_dir}: run its "
                            "builder's download_and_prepare with file_format='array_record'")
        features = builder.info.features
        self.captions = tuple(sorted(name for name in features if name.startswith("caption_")))
        missing = [name for name in ("video", "fps") if name not in features] + ["caption_…"] * (not self.captions)
        if missing:
            raise DataError(f"data set {builder.info.full_name} has no feature {', '.join(missing)}, only "
                            f"{', '.join(sorted(features))}: docs/data.md names what is needed")
        self.size = (config.frames, config.height, config.width)
        self.visibility_cell = config.visibility_cell if "visibility" in features else 0
        self.builder, self._fps = builder, config.fps
        self.fingerprint = {
            "name": builder.info.full_name,
            "clip": f"{config.frames} x {config.height} x {config.width} at {config.fps:g} fps",
            **{f"split {name}": f"{info.num_examples} clips, {int(info.num_bytes)} bytes"
               for name, info in builder.info.splits.items()},
        }

    def split(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The examples of a split, in the order of its files.

        Raises:
          DataError: for an unknown split or an unreadable file.
        """
        info = self.builder.info
        if name not in info.splits:
            raise DataError(f"data set {info.full_name} has no split {name!r}, only {', '.join(sorted(info.splits))}")
        wanted = ("video", "fps", *self.captions, *["visibility"] * bool(self.visibility_cell))
        unread = {feature: tfds.decode.SkipDecoding() for feature in info.features if feature not in wanted}
        try:
            records = self.builder.as_data_source(name, decoders=unread)
        except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
            raise DataError(f"cannot open split {name!r} of {info.full_name} in {self.builder.data_dir}: "
                            f"{error}") from error
        return _Examples(records, info.splits[name], self._fps)


class _Examples(Sequence[Mapping[str, Any]]):
    """The examples of one split; what goes wrong in reading one names its file."""

    def __init__(self, records: Any, info: Any, fps: float):
        self._records, self._fps = records, fps
        self._files, self._starts = list(info.filepaths), [0, *np.cumsum(info.shard_lengths)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a split of {len(self)} clips")
        try:
            example = self._records[index]
        except (RuntimeError, IndexError, OSError) as error:
            file = self._files[bisect.bisect_right(self._starts, index) - 1]
            raise DataError(f"cannot read clip {index} from {file} ({error}). The file is damaged: delete the folder "
                            f"{os.path.dirname(file)} and prepare the data again") from error
        if abs(float(example["fps"]) - self._fps) > 1e-3:
            raise DataError(f"clip {index} has {float(example['fps']):g} frames per second, config.data.fps = "
                            f"{self._fps:g}: make them equal")
        return example


def main() -> None:
    """Makes the cache that the training of a config needs."""
    # only this launcher knows whole experiments; what it calls knows data, codec and text encoder
    from wanjax import codec, config, config_flag

    try:
        experiment = config_flag.experiment()
        opened = codec.open_codec(experiment.codec)
        config.check_codec(experiment, opened.model)
        cache = ensure_cache(experiment.data.cache_dir, source=experiment.data, vae=opened.model,
                             vae_params=opened.params, vae_fingerprint=opened.fingerprint,
                             text=PromptEmbedder.of_config(experiment.text),
                             image=first_frame.reads_image(experiment.model))
    except (DataError, latent_cache.CacheError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    clips = ", ".join(f"{name} {cache.manifest.clips(name)}" for name in cache.manifest.splits)
    print(f"latent cache {cache.folder}: {clips} clips; latents {list(cache.manifest.latent_shape)}")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    from wanjax import config_flag

    config_flag.define()
    flags.mark_flag_as_required("config")
    config_flag.run(main)


if __name__ == "__main__":
    entry()
