"""What a latent cache looks like on disk, and how it is read back.

Latents and caption embeddings do not change while a model trains, so each clip is encoded once
(``data_pipelines/encode.py``) and training reads the results. A cache is one folder::

    manifest.json                           what was encoded, by which codec and text encoder, into which files
    null_text.safetensors                   embedding of the empty caption, [n, E]
    train-00000-of-00008.array_record       clips in the order of their source, one record per clip

A record holds the bytes of one safetensors file: ``latents`` [F, h, w, C] float32, normalised, and ``text_0``,
``text_1``, … [n, E] float32, the clip's captions in the order of ``Manifest.captions``, without padding. Where the data
has it, ``visibility`` [F, H/cell, W/cell] uint8 is how much of the key light is seen, 255 = all, averaged over cells of
``Manifest.visibility_cell`` pixels and over the frames of a latent (frame 0 alone, then groups of 4). Where the
transformer reads image latents, ``image`` [F, h, w, C] float32 are those of the clip whose first frame alone is known,
grey after it (``wanjax.first_frame``). Records and files are hashed by ArrayRecord, so a damaged file is noticed when
it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource

FORMAT_VERSION = 3  # 1 had no visibility, 2 no image latents; both are still read and gone on with
READABLE_VERSIONS = (1, 2, 3)
MANIFEST = "manifest.json"
NULL_TEXT = "null_text.safetensors"
# one record per group: clips are read in random order, and float latents do not compress
_WRITER_OPTIONS = "group_size:1,uncompressed"


class CacheError(RuntimeError):
    """A cache that cannot be used; the message names the file or field and what to do."""


class Clip(NamedTuple):
    """One record. ``latents`` [F, h, w, C] float32; ``texts`` one [n, E] float32 array per caption; ``visibility``
    [F, H/cell, W/cell] uint8, or None; ``image`` [F, h, w, C] float32, or None."""

    latents: np.ndarray
    texts: tuple[np.ndarray, ...]
    visibility: np.ndarray | None = None
    image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its name, the clips it holds, and its size in bytes (0 until it is written)."""

    file: str
    clips: int
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache holds.

    Attributes:
      codec: fingerprint of the codec's weights.
      text: fingerprint of the text encoder.
      data: fingerprint of the data: names, versions, sizes and seeds, as JSON values.
      captions: names of the caption features, in the order of a record's ``text_i``.
      latent_shape: (F, h, w, C).
      text_width: E.
      splits: the files of each split.
      visibility_cell: side in pixels of the cells of the records' visibility; 0: they have none.
      image: whether the records have image latents.
      version: format of the folder.
    """

    codec: str
    text: str
    data: Mapping[str, Any]
    captions: tuple[str, ...]
    latent_shape: tuple[int, int, int, int]
    text_width: int
    splits: Mapping[str, tuple[Shard, ...]]
    visibility_cell: int = 0
    image: bool = False
    version: int = FORMAT_VERSION

    def clips(self, split: str) -> int:
        """Number of clips in a split."""
        return sum(shard.clips for shard in self.splits[split])


def fingerprint(tree: Any) -> str:
    """sha256 over the paths, dtypes, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(tree), key=lambda item: jax.tree_util.keystr(item[0])):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.hexdigest()


def encode_record(clip: Clip) -> bytes:
    """The bytes of one record."""
    tensors = {"latents": np.ascontiguousarray(clip.latents, np.float32)}
    tensors |= {f"text_{i}": np.ascontiguousarray(text, np.float32) for i, text in enumerate(clip.texts)}
    if clip.visibility is not None:
        tensors["visibility"] = np.ascontiguousarray(clip.visibility, np.uint8)
    if clip.image is not None:
        tensors["image"] = np.ascontiguousarray(clip.image, np.float32)
    return safetensors.numpy.save(tensors)


def decode_record(record: bytes) -> Clip:
    """Inverts ``encode_record``."""
    tensors = safetensors.numpy.load(record)
    latents, visibility, image = tensors.pop("latents"), tensors.pop("visibility", None), tensors.pop("image", None)
    return Clip(latents, tuple(tensors[f"text_{i}"] for i in range(len(tensors))), visibility, image)


def visibility_cells(visibility: np.ndarray, cell: int, *, time: int = 4) -> np.ndarray:
    """Visibility per latent frame and cell.

    Args:
      visibility: uint8 [T, H, W], 255 = the light is seen in full; T = time·n + 1, H and W multiples of ``cell``.
      cell: pixels.
      time: frames of a latent, the codec's stride; the first latent frame stands for the first frame alone.

    Returns:
      [F, H/cell, W/cell] uint8, rounded means.
    """
    frames, height, width = visibility.shape
    cells = visibility.reshape(frames, height // cell, cell, width // cell, cell).mean((2, 4), dtype=np.float32)
    rest = cells[1:].reshape(-1, time, *cells.shape[1:]).mean(1)
    return np.round(np.concatenate([cells[:1], rest])).astype(np.uint8)


def write_shard(path: pathlib.Path, clips: Sequence[Clip]) -> Shard:
    """Writes one file completely or not at all: under a temporary name, read back, then renamed.

    Raises:
      OSError: if it cannot be written, a full disk included.
    """
    # the process id keeps two writers of the same cache out of each other's file
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
            for clip in clips:
                writer.write(encode_record(clip))
            writer.close()
            written = len(ArrayRecordDataSource(str(temporary)))
        except RuntimeError as error:
            raise OSError(f"cannot write {path}: {error}. Free the disk or choose another folder, then run again: "
                          "finished files are kept") from error
        if written != len(clips):
            raise OSError(f"cannot write {path}: {len(clips)} clips were written but {written} read back")
        shard = Shard(path.name, len(clips), temporary.stat().st_size)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Replaces the folder's manifest in one step."""
    _replace(folder / MANIFEST, (json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n").encode())


def write_null_text(folder: pathlib.Path, embedding: np.ndarray) -> None:
    """Stores the embedding [n, E] of the empty caption."""
    _replace(folder / NULL_TEXT, safetensors.numpy.save({"text": np.ascontiguousarray(embedding, np.float32)}))


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Reads the folder's manifest.

    Raises:
      CacheError: if there is none, or it is not one of this version.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values["version"] not in READABLE_VERSIONS:
            raise CacheError(f"{path} has format version {values['version']}, this wanjax reads {READABLE_VERSIONS}: "
                             f"delete {path.parent} and run the encoder again")
        splits = {name: tuple(Shard(**shard) for shard in shards) for name, shards in values.pop("splits").items()}
        captions, shape = tuple(values.pop("captions")), tuple(values.pop("latent_shape"))
        return Manifest(**values, captions=captions, latent_shape=shape, splits=splits)
    except FileNotFoundError as error:
        raise CacheError(f"{path} does not exist: make the cache with `python -m data_pipelines.encode --config FILE`, "
                         "or correct config.data.cache_dir") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CacheError(f"{path} is not a readable manifest ({error!r}): delete {path.parent} and run the encoder "
                         "again") from error


def check(
    folder: str | os.PathLike[str], manifest: Manifest, *, codec: str, text: str, data: Mapping[str, Any]
) -> None:
    """Refuses a cache that was made by another codec, by another text encoder or from other data.

    Raises:
      CacheError: naming everything that changed.
    """
    changed = []
    if manifest.codec != codec:
        changed.append(f"codec weights: cached {manifest.codec[:12]}, now {codec[:12]}")
    if manifest.text != text:
        changed.append(f"text encoder: cached {manifest.text[:12]}, now {text[:12]}")
    now = json.loads(json.dumps(data))
    changed += [f"data {name}: cached {manifest.data.get(name)!r}, now {now.get(name)!r}"
                for name in sorted({*manifest.data, *now}) if manifest.data.get(name) != now.get(name)]
    if changed:
        raise CacheError(f"the latent cache {os.fspath(folder)} does not belong to this config. Changed:\n  "
                         + "\n  ".join(changed)
                         + "\nSet config.data.cache_dir to a new folder, or delete this one, and it is encoded again")


def check_visibility(folder: str | os.PathLike[str], manifest: Manifest, cell: int) -> None:
    """Refuses a cache whose records have no visibility, or in cells of another size than ``cell`` pixels.

    Raises:
      CacheError: saying what to do.
    """
    if manifest.visibility_cell == cell:
        return
    remedy = "Set config.data.cache_dir to a new folder, or delete this one, and it is encoded again"
    if manifest.visibility_cell:
        raise CacheError(f"the latent cache {os.fspath(folder)} holds visibility in cells of "
                         f"{manifest.visibility_cell} pixels, config.data.visibility_cell = {cell}. {remedy}")
    why = ("it was made by a version that did not store it" if manifest.version == 1 else
           "the data that it was made from has no feature 'visibility' (docs/data.md)")
    raise CacheError(f"the latent cache {os.fspath(folder)} holds no visibility, which the shadow term needs: {why}. "
                     f"{remedy if manifest.version == 1 else 'Set config.objective.shadow.weight to 0'}")


def check_image(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Refuses a cache whose records have no image latents.

    Raises:
      CacheError: saying what to do.
    """
    if not manifest.image:
        raise CacheError(f"the latent cache {os.fspath(folder)} holds no image latents, which a transformer with "
                         "config.model.in_channels above out_channels reads: it was made for another config. Set "
                         "config.data.cache_dir to a new folder, or delete this one, and it is encoded again")


class LatentCache:
    """An open cache folder.

    Attributes:
      folder: where it is.
      manifest: what it holds.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Raises CacheError if there is no readable manifest."""
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(self.folder)

    @property
    def null_text(self) -> np.ndarray:
        """Embedding [n, E] of the empty caption, float32."""
        path = self.folder / NULL_TEXT
        try:
            return safetensors.numpy.load_file(path)["text"]
        except (OSError, safetensors.SafetensorError, KeyError) as error:
            raise CacheError(f"cannot read {path} ({error}): delete it and run the encoder again") from error

    def split(self, name: str) -> Clips:
        """The clips of a split, in the order of their source.

        Raises:
          CacheError: for an unknown or unfinished split or a damaged file.
        """
        if name not in self.manifest.splits:
            raise CacheError(f"the latent cache {self.folder} has no split {name!r}, only "
                             f"{', '.join(sorted(self.manifest.splits))}: run the encoder with that split")
        return Clips(self.folder, self.manifest.splits[name])


class Clips(Sequence[Clip]):
    """Random access to the clips of one split; safe to read from several threads."""

    def __init__(self, folder: pathlib.Path, shards: Sequence[Shard]):
        self._paths = [folder / shard.file for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum([shard.clips for shard in shards], dtype=np.int64)])
        self._files = [_open(path, shard) for path, shard in zip(self._paths, shards, strict=True)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a split of {len(self)} clips")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = int(index - self._starts[shard])
        try:
            return decode_record(self._files[shard][record])
        except (RuntimeError, ValueError, KeyError, IndexError, safetensors.SafetensorError) as error:
            raise CacheError(damaged(self._paths[shard], f"record {record}: {error}")) from error


def damaged(path: pathlib.Path, reason: str) -> str:
    """The message for a file that cannot be read."""
    return (f"cannot read {path} ({reason}). The file is damaged: delete it and run `python -m data_pipelines.encode` "
            "with the same config; only this file is encoded again")


def _open(path: pathlib.Path, shard: Shard) -> ArrayRecordDataSource:
    if not shard.bytes:
        raise CacheError(f"{path} was never finished: run `python -m data_pipelines.encode` with the same config, it "
                         "goes on where it stopped")
    size = path.stat().st_size if path.exists() else 0
    if size != shard.bytes:
        raise CacheError(damaged(path, f"it has {size} bytes, {shard.bytes} were written"))
    try:
        source = ArrayRecordDataSource(str(path))
    except (RuntimeError, ValueError) as error:
        raise CacheError(damaged(path, str(error))) from error
    if len(source) != shard.clips:
        raise CacheError(damaged(path, f"it has {len(source)} records, {shard.clips} were written"))
    return source
