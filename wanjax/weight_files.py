"""Weight files of one network: found in a folder, read tensor by tensor, written without half-written results.

Knows files and their names, nothing of networks; :mod:`wanjax.hub` gives tensors their meaning. Safetensors and the
files of ``torch.save`` are read, safetensors are written.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wanjax.torch_files import SUFFIXES as TORCH_SUFFIXES
from wanjax.torch_files import TorchFile

SUFFIX = ".safetensors"
SUFFIXES = (SUFFIX, *TORCH_SUFFIXES)  # of what is read
INDEX_SUFFIX = ".safetensors.index.json"
DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"
FLOAT8 = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}

# diffusers' and transformers' loaders refuse a file that does not say this.
_METADATA = {"format": "pt"}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


class _File(Protocol):
    """What is asked of one file of tensors."""

    metadata: dict[str, str]

    def keys(self) -> Iterable[str]: ...

    def shape_of(self, name: str) -> tuple[int, ...]: ...

    def dtype_of(self, name: str) -> str: ...

    def read(self, name: str) -> np.ndarray: ...


class _SafetensorsFile:
    def __init__(self, file: pathlib.Path):
        self.file = file
        try:
            self._handle = safe_open(file, "np")
        except SafetensorError as error:
            raise ValueError(
                f"{file} is not a readable safetensors file ({error}): download or write it again"
            ) from error
        self.metadata: dict[str, str] = self._handle.metadata() or {}

    def keys(self) -> Iterable[str]:
        return self._handle.keys()

    def shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle.get_slice(name).get_shape())

    def dtype_of(self, name: str) -> str:
        stored = self._handle.get_slice(name).get_dtype()
        return _DTYPES.get(stored, stored)

    def read(self, name: str) -> np.ndarray:
        dtype = self.dtype_of(name)
        return self._read_float8(name, dtype) if dtype in FLOAT8 else self._handle.get_tensor(name)

    def _read_float8(self, name: str, dtype: str) -> np.ndarray:
        """safetensors gives numpy no 8-bit floats. It has checked the header, from which the bytes are found."""
        start, end = self._offsets[name]
        with self.file.open("rb") as stream:
            stream.seek(start)
            return np.frombuffer(stream.read(end - start), FLOAT8[dtype]).reshape(self.shape_of(name))

    @functools.cached_property
    def _offsets(self) -> dict[str, tuple[int, int]]:
        """First byte of each tensor in the file and the one after its last."""
        with self.file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        return {name: (8 + length + start, 8 + length + end) for name, (start, end) in spans.items()}


class TensorReader(Mapping[str, np.ndarray]):
    """Tensors of one or several files by name; only ``reader[name]`` reads data.

    Args:
        files: safetensors, or files of ``torch.save``.
        source: what to call this in errors.
        index: tensor name -> the name of the file that holds it; None where any file may hold it.

    Attributes:
        files, source: as given.
        metadata: of the files' headers.
    """

    def __init__(self, files: list[pathlib.Path], source: pathlib.Path, index: Mapping[str, str] | None = None):
        self.files, self.source = tuple(files), source
        self.metadata: dict[str, str] = {}
        self._files: dict[str, _File] = {}
        for path in files:
            file: _File = TorchFile(path) if path.suffix in TORCH_SUFFIXES else _SafetensorsFile(path)
            self.metadata.update(file.metadata)
            for name in file.keys():
                if name in self._files and index is None:
                    raise ValueError(f"{source}: tensor {name} is in more than one file")
                if index is None or index.get(name) == path.name:
                    self._files[name] = file
        if index is not None and (lost := sorted(set(index) - set(self._files))):
            raise ValueError(
                f"{source}: {len(lost)} tensors are not in the files that the index names, the first is {lost[0]} in "
                f"{index[lost[0]]}: download those files again"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files  # Mapping's own would read the tensor

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._files[name].shape_of(name)

    def dtype_of(self, name: str) -> str:
        """"float32", "float16", "bfloat16", "float8_e4m3fn" or "float8_e5m2", without reading the tensor.

        Raises:
            ValueError: another type, such as the integers of some quantised checkpoints.
        """
        stored = self._files[name].dtype_of(name)
        if stored not in _DTYPES.values():
            raise ValueError(
                f"{self.source}: tensor {name} is stored as {stored}; expected {', '.join(_DTYPES.values())}: take "
                "another version of the checkpoint"
            )
        return stored


def open_weights(path: pathlib.Path) -> TensorReader:
    """Opens the one set of weights that ``path`` is or holds: a file, or an index with its shards.

    A folder's safetensors go before a file of ``torch.save`` in it.

    Raises:
        FileNotFoundError: nothing there, or shards that the index names are missing.
        ValueError: several candidates, or an unreadable file.
    """
    if path.is_file():
        if path.name.endswith(INDEX_SUFFIX):
            return _open_index(path)
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"{path}: expected a {SUFFIX} file or one of torch.save ({', '.join(TORCH_SUFFIXES)}); "
                f"{path.suffix or 'such'} files are not read"
            )
        return TensorReader([path], path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: give a network's folder or its {SUFFIX} file")
    indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    listed = {shard for index in indices for shard in _weight_map(index).values()}
    singles = [file for file in sorted(path.glob(f"*{SUFFIX}")) if file.name not in listed]
    for stem in (DIFFUSERS_STEM, TRANSFORMERS_STEM):  # a variant such as X.fp16.safetensors may lie beside these
        named = [file for file in (*indices, *singles) if file.name in (stem + SUFFIX, stem + INDEX_SUFFIX)]
        if named:
            indices, singles = [f for f in named if f in indices], [f for f in named if f in singles]
            break
    candidates = [*indices, *singles]
    if not candidates:
        candidates = singles = [file for file in sorted(path.iterdir()) if file.suffix in TORCH_SUFFIXES]
    if not candidates:
        raise FileNotFoundError(f"{path} holds no {SUFFIX} file and none of torch.save ({', '.join(TORCH_SUFFIXES)})")
    if len(candidates) > 1:
        raise ValueError(
            f"{path} holds several sets of weights and no single index over them "
            f"({', '.join(file.name for file in candidates)}): keep one, or give its file"
        )
    return _open_index(indices[0]) if indices else TensorReader(singles, path)


def write_weights(
    folder: pathlib.Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    config: Mapping[str, Any] | None,
    *,
    stem: str = DIFFUSERS_STEM,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a network: one file, or shards and their index above ``max_shard_bytes``, and ``config.json``.

    Everything is written under temporary names and renamed at the end, so an interruption or a full disk leaves what
    was there before. Weights of the same ``stem`` that are not part of the new set are removed: a loader would mix
    them up with the new ones.

    Args:
        folder: made if absent.
        tensors: name and array, taken one at a time; no more than one shard is held in memory.
        config: contents of ``config.json``, None to write none.
        stem: file name without ``.safetensors``.
        metadata: of each file's header, instead of the one that diffusers and transformers ask for. With one entry the
            same tensors give the same bytes; safetensors writes several in no fixed order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[pathlib.Path, list[str]]] = []
    side = [folder / f".{os.getpid()}.partial.{name}" for name in ("index.json", "config.json")]
    total = 0
    try:
        shard: dict[str, np.ndarray] = {}
        shard_bytes = 0

        def flush() -> None:
            part = folder / f".{os.getpid()}.partial.{len(parts)}{SUFFIX}"
            parts.append((part, list(shard)))
            save_file(shard, part, metadata=dict(metadata or _METADATA))
            shard.clear()

        for name, array in tensors:
            if shard and shard_bytes + array.nbytes > max_shard_bytes:
                flush()
                shard_bytes = 0
            shard[name] = np.asarray(array, order="C")  # save_file writes the buffer whatever the strides are
            shard_bytes += array.nbytes
            total += array.nbytes
        flush()
        names = _shard_names(stem, len(parts))
        if len(parts) > 1:
            weight_map = {t: name for name, (_, tensors_in) in zip(names, parts, strict=True) for t in tensors_in}
            side[0].write_text(
                json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
                + "\n",
                encoding="utf-8",
            )
        if config is not None:
            side[1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _rename_into_place(folder, stem, parts, names, side)
    finally:
        for path in (*side, *(part for part, _ in parts)):
            path.unlink(missing_ok=True)


def _rename_into_place(
    folder: pathlib.Path,
    stem: str,
    parts: list[tuple[pathlib.Path, list[str]]],
    names: list[str],
    side: list[pathlib.Path],
) -> None:
    index = folder / f"{stem}{INDEX_SUFFIX}"
    stale = {index, folder / f"{stem}{SUFFIX}", *folder.glob(f"{stem}-*-of-*{SUFFIX}")}
    index.unlink(missing_ok=True)  # never an index over a mixture of old and new shards
    for name, (part, _) in zip(names, parts, strict=True):
        part.replace(folder / name)
    for old in stale - {folder / name for name in names}:
        old.unlink(missing_ok=True)
    if side[1].exists():
        side[1].replace(folder / "config.json")
    if side[0].exists():
        side[0].replace(index)


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [stem + SUFFIX]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}{SUFFIX}" for i in range(count)]


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: expected JSON with a weight_map of tensor names to files ({error})") from error
    return weight_map


def _open_index(index: pathlib.Path) -> TensorReader:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {len(shards)} files, {len(missing)} of them are missing: {', '.join(missing)}"
        )
    return TensorReader([index.parent / name for name in shards], index.parent, weight_map)
