"""From a latent cache to batches: a grain iterator whose position can be saved, and global arrays.

The order is a pure function of the seed: every epoch is shuffled anew, and for every clip of every epoch one of its
captions is picked, or none. The global batch of step k is the same for any number of processes; each process
reads only the rows of it that its devices hold.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from wanjax.latent_cache import CacheError, Clips, LatentCache, check_image, check_visibility

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
      source: name of a TFDS builder (``"light_scenes"``, ``"name/config:version"``) with the features described in
        docs/data.md, or the folder of a prepared data set.
      train_clips: training clips that ``light_scenes`` renders, rounded down to whole groups (docs/data.md); 0: its
        default. Other data sets have the size they have.
      data_dir: where the data set lies or is made.
      cache_dir: where latents and caption embeddings are cached.
      frames, height, width, fps: size of a clip, T × H × W pixels, and its frames per second.
      batch: clips per step, over all devices.
      caption_dropout: probability that a clip is shown without its caption (for classifier-free guidance).
      visibility_cell: side, in pixels, of the cells that the light's visibility is averaged over (``shadow`` term).
      seed: of order, captions and dropout.
    """

    source: str = "light_scenes"
    train_clips: int = 0
    data_dir: str = "runs/data"
    cache_dir: str = "runs/cache"
    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float = 8.0
    batch: int = 32
    caption_dropout: float = 0.1
    visibility_cell: int = 4
    seed: int = 0


class _Pick(NamedTuple):
    clip: int
    caption: int | None  # None: the empty caption


def make_loader(
    cache_dir: str | os.PathLike[str],
    split: str,
    *,
    batch: int,
    seed: int,
    text_length: int,
    caption_dropout: float,
    null_text: np.ndarray,
    visibility_cell: int = 0,
    image: bool = False,
    rows: Sequence[int] | None = None,
    repeat: bool = True,
) -> grain.DatasetIterator[Batch]:
    """An iterator over shuffled batches.

    ``next()`` gives ``{"latents": [b, F, h, w, C], "text": [b, L, E]}``, float32, text zero-padded to ``text_length``
    (= L), b = the number of ``rows``. ``get_state()`` and ``set_state()``
    (and orbax, which stores the iterator as a checkpointable) keep the position: restored, the iterator gives
    bit-identical batches. With a ``visibility_cell`` also ``"visibility"`` [b, F, H/cell, W/cell] float32 in [0, 1],
    with ``image`` also ``"image"`` [b, F, h, w, C] float32.

    Args:
      cache_dir: a folder made by ``data_pipelines.encode``.
      split: e.g. ``"train"``.
      batch: clips per step over all processes.
      seed: the same on every process.
      caption_dropout: probability of the empty caption.
      text_length: L.
      null_text: embedding [n, E] of the empty caption (``LatentCache.null_text``).
      visibility_cell: pixels along a side of the visibility's cells; 0: no visibility is given.
      image: whether image latents are given.
      rows: of the global batch that this process reads, all by default (``rows_of_process``).
      repeat: without end, over epochs; else one epoch, leaving out the last clips that do not fill a batch.

    Raises:
      CacheError: naming the damaged file, or the caption that is longer than ``text_length``; also from ``next()``.
        If visibility is asked for and the cache has none, or in other cells; if image latents are and it has none.
      ValueError: if the batch has not all of the rows, or is larger than one epoch (no repeat).
    """
    cache = LatentCache(cache_dir)
    clips, captions = cache.split(split), cache.manifest.captions
    if not repeat and batch > len(clips):
        raise ValueError(f"batch = {batch} is larger than split {split!r} of {cache_dir}, which has {len(clips)} clips")
    read = _Reader(cache, clips, text_length, null_text, visibility_cell, image)
    own = _rows(batch, rows)

    def pick(clip: int, rng: np.random.Generator) -> _Pick:
        dropped, caption = rng.random() < caption_dropout, int(rng.integers(len(captions)))
        return _Pick(int(clip), None if dropped else caption)

    picks = grain.MapDataset.range(len(clips)).seed(seed).shuffle().repeat(None if repeat else 1).random_map(pick)
    batches = picks.batch(batch, drop_remainder=True, batch_fn=lambda chosen: read([chosen[row] for row in own]))
    # a batch is one element: few are kept ready, since at full size each has hundreds of megabytes
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


def validation_batches(
    cache_dir: str | os.PathLike[str],
    split: str,
    *,
    batch: int,
    text_length: int,
    limit: int | None = None,
    visibility_cell: int = 0,
    image: bool = False,
    rows: Sequence[int] | None = None,
) -> list[Batch]:
    """The same batches at every call: clips in their order, caption i mod (number of captions) for clip i, no dropout.

    Args:
      limit: at most so many clips. The last clips that do not fill a batch are left out.
      Others as in ``make_loader``.

    Raises:
      CacheError: for a damaged file or a caption longer than ``text_length``.
      ValueError: if the split does not fill one batch, or the batch has not all of the rows.
    """
    cache = LatentCache(cache_dir)
    clips, captions = cache.split(split), cache.manifest.captions
    count = len(clips) if limit is None else min(limit, len(clips))
    if count < batch:
        raise ValueError(f"split {split!r} of {cache_dir} has {len(clips)} clips, of which {count} are asked for: too "
                         f"few for one batch of {batch}. Make the batch smaller or the split larger")
    read = _Reader(cache, clips, text_length, cache.null_text, visibility_cell, image)
    own = _rows(batch, rows)
    return [read([_Pick(start + row, (start + row) % len(captions)) for row in own])
            for start in range(0, count - batch + 1, batch)]


def rows_of_process(sharding: jax.sharding.Sharding, batch: int) -> tuple[int, ...]:
    """Rows of a global batch that this process's devices hold, in their order; ``sharding`` splits axis 0.

    Where ``seq`` or ``tensor`` reach over processes, several processes hold the same rows; where the mesh follows a
    torus, those of one process need not lie side by side.
    """
    held = [part for part in sharding.addressable_devices_indices_map((batch,)).values() if part is not None]
    return tuple(sorted({row for (part,) in held for row in range(batch)[part]}))


def to_global(batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding, clips: int) -> dict[str, jax.Array]:
    """Arrays [clips, ...] over all processes' devices from this process's rows of them (``rows_of_process``)."""
    place = {row: i for i, row in enumerate(rows_of_process(sharding, clips))}

    def array(own: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # asked for this process's devices alone
            wanted = range(clips)[index[0]]
            return own[place[wanted[0]] : place[wanted[-1]] + 1]

        return jax.make_array_from_callback((clips, *own.shape[1:]), sharding, shard)

    return {name: array(own) for name, own in batch.items()}


def _rows(batch: int, rows: Sequence[int] | None) -> Sequence[int]:
    if rows is None:
        return range(batch)
    if not rows or min(rows) < 0 or max(rows) >= batch:
        raise ValueError(f"rows {tuple(rows)} of a batch of {batch}: expected some of 0 … {batch - 1}")
    return rows


class _Reader:
    """Reads picked clips into one batch."""

    def __init__(self, cache: LatentCache, clips: Clips, length: int, null_text: np.ndarray, visibility_cell: int,
                 image: bool):
        if visibility_cell:
            check_visibility(cache.folder, cache.manifest, visibility_cell)
        if image:
            check_image(cache.folder, cache.manifest)
        width = cache.manifest.text_width
        if null_text.ndim != 2 or null_text.shape[1] != width:
            raise ValueError(f"null_text has shape {null_text.shape}, the captions of {cache.folder} are {width} wide: "
                             "expected [n, E] from the same text encoder")
        self._clips, self._captions, self._length, self._null_text = clips, cache.manifest.captions, length, null_text
        self._with_visibility, self._with_image = bool(visibility_cell), image

    def __call__(self, picks: Sequence[_Pick]) -> Batch:
        clips = [self._clips[pick.clip] for pick in picks]
        text = np.zeros((len(picks), self._length, self._null_text.shape[-1]), np.float32)
        for row, pick, clip in zip(text, picks, clips, strict=True):
            tokens = self._null_text if pick.caption is None else clip.texts[pick.caption]
            if len(tokens) > self._length:
                name = "the empty caption" if pick.caption is None else self._captions[pick.caption]
                raise CacheError(f"clip {pick.clip}: {name} has {len(tokens)} tokens, config.text.length is "
                                 f"{self._length}: raise it or shorten the caption")
            row[: len(tokens)] = tokens
        batch = {"latents": np.stack([clip.latents for clip in clips]), "text": text}
        if self._with_visibility:
            batch["visibility"] = np.stack([clip.visibility for clip in clips]).astype(np.float32) / 255
        if self._with_image:
            batch["image"] = np.stack([clip.image for clip in clips])
        return batch
