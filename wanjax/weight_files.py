"""Weight files of one network: found in a folder, read tensor by tensor, written without half-written results.

Knows files and their names, nothing of networks; :mod:`wanjax.hub` gives tensors their meaning. Safetensors and the
files of ``torch.save`` are read, safetensors are written.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from wanjax.torch_files import SUFFIXES as TORCH_SUFFIXES
from wanjax.torch_files import TorchFile
from wanjax.transposing import contiguous

SUFFIX = ".safetensors"
SUFFIXES = (SUFFIX, *TORCH_SUFFIXES)  # of what is read
INDEX_SUFFIX = ".safetensors.index.json"
DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"
FLOAT8 = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}

# diffusers' and transformers' loaders refuse a file that does not say this.
_METADATA = {"format": "pt"}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
           "U8": "uint8"}  # fmt: skip
_BYTES = "uint8"  # of what is no weight, such as the vocabulary in ComfyUI's text encoders
_CODES = {name: code for code, name in _DTYPES.items()}
_ALIGNMENT = 8  # bytes; where a safetensors file's tensors begin
_CHUNK = 1 << 24  # bytes written at once

Cut = Callable[[np.ndarray], np.ndarray]  # what is wanted of a stored tensor: a view of it, transposed or sliced


def whole(stored: np.ndarray) -> np.ndarray:
    """The :data:`Cut` that takes all of a tensor."""
    return stored


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


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
        """The tensor where it lies in the file: mapped, read-only, and of the disk only what is then looked at."""
        dtype = self.dtype_of(name)
        if dtype not in _CODES:  # no weight, but a number such as alpha of a LoRA
            return self._handle.get_tensor(name)
        start, end = self._offsets[name]
        return self._bytes[start:end].view(dtype).reshape(self.shape_of(name))

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return np.asarray(np.memmap(self.file, np.uint8, "r"))

    @functools.cached_property
    def _offsets(self) -> dict[str, tuple[int, int]]:
        """First byte of each tensor in the file and the one after its last; safetensors has checked the header."""
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
        """A copy: JAX may use a host array in place, and a mapped one belongs to a file that others can change."""
        stored = self.read(name, whole)
        return stored if stored.flags.owndata else stored.copy()

    def read(self, name: str, cut: Cut) -> np.ndarray:
        """What ``cut`` takes of a tensor; it may share memory with the file, so copy what is to stay.

        Only the part of a safetensors file that is then looked at is read; a tensor of ``torch.save`` is read whole.
        """
        return cut(self._files[name].read(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files  # Mapping's own would read the tensor

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._files[name].shape_of(name)

    def stored_as(self, name: str) -> str:
        """As :meth:`dtype_of`, of any type."""
        return self._files[name].dtype_of(name)

    def dtype_of(self, name: str) -> str:
        """"float32", "float16", "bfloat16", "float8_e4m3fn" or "float8_e5m2", without reading the tensor.

        Raises:
            ValueError: another type, such as the integers of some quantised checkpoints.
        """
        stored = self.stored_as(name)
        if stored not in _CODES or stored == _BYTES:
            known = ", ".join(dtype for dtype in _CODES if dtype != _BYTES)
            raise ValueError(
                f"{self.source}: tensor {name} is stored as {stored}; expected {known}: take another version of the "
                "checkpoint"
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
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, np.ndarray]],
    config: Mapping[str, Any] | None,
    *,
    stem: str = DIFFUSERS_STEM,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a network: one file, or shards and their index above ``max_shard_bytes``, and ``config.json``.

    Each tensor goes to its place on the disk as it comes, and no second one is held in memory. Everything is written
    under temporary names and renamed at the end, so an interruption or a full disk leaves what was there before.
    Weights of the same ``stem`` that are not part of the new set are removed: a loader would mix them up with the new
    ones.

    Args:
        folder: made if absent.
        specs: every tensor by name, in the order in which shards are filled.
        tensors: name and array, in any order, taken one at a time.
        config: contents of ``config.json``, None to write none.
        stem: file name without ``.safetensors``.
        metadata: of each file's header, instead of the one that diffusers and transformers ask for.

    Raises:
        ValueError: ``tensors`` are not those of ``specs``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(specs, max_shard_bytes)
    parts = [folder / f".{os.getpid()}.partial.{i}{SUFFIX}" for i in range(len(shards))]
    side = [folder / f".{os.getpid()}.partial.{name}" for name in ("index.json", "config.json")]
    names = _shard_names(stem, len(shards))
    try:
        places: dict[str, tuple[pathlib.Path, int]] = {}
        for part, shard in zip(parts, shards, strict=True):
            places |= _begin(part, {name: specs[name] for name in shard}, metadata or _METADATA)
        for name, array in tensors:
            if name not in places or TensorSpec(array.shape, array.dtype.name) != specs[name]:
                expected = specs[name] if name in places else "no such tensor, or only once"
                raise ValueError(f"tensor {name} {array.shape} {array.dtype}: expected {expected}")
            _put(*places.pop(name), array)
        if places:
            raise ValueError(f"{len(places)} tensors did not come, the first is {next(iter(places))}")
        if len(parts) > 1:
            total = sum(spec.nbytes for spec in specs.values())
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            side[0].write_text(
                json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
                + "\n",
                encoding="utf-8",
            )
        if config is not None:
            side[1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _rename_into_place(folder, stem, parts, names, side)
    finally:
        for path in (*side, *parts):
            path.unlink(missing_ok=True)


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[list[str]]:
    """Names of the tensors of each file."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.nbytes
    return shards


def _begin(
    file: pathlib.Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> dict[str, tuple[pathlib.Path, int]]:
    """Writes the header of a safetensors file and gives it its length; where each tensor goes, by name.

    safetensors' own writer wants all of a file's tensors in memory. Format: github.com/huggingface/safetensors.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets: dict[str, int] = {}
    end = 0
    # the widest first, so that every tensor begins at a multiple of its elements' size
    for name, spec in sorted(specs.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize):
        offsets[name], end = end, end + spec.nbytes
        header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = _ALIGNMENT + len(text)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(_ALIGNMENT, "little") + text)
        stream.truncate(start + end)
    return {name: (file, start + offset) for name, offset in offsets.items()}


def _put(file: pathlib.Path, offset: int, array: np.ndarray) -> None:
    """Writes a tensor, whatever its strides are, at its place in the file."""
    data = contiguous(array).reshape(-1).view(np.uint8)
    with file.open("r+b") as stream:
        stream.seek(offset)
        for begin in range(0, data.size, _CHUNK):
            stream.write(data[begin : begin + _CHUNK].data)


def _rename_into_place(
    folder: pathlib.Path, stem: str, parts: list[pathlib.Path], names: list[str], side: list[pathlib.Path]
) -> None:
    index = folder / f"{stem}{INDEX_SUFFIX}"
    stale = {index, folder / f"{stem}{SUFFIX}", *folder.glob(f"{stem}-*-of-*{SUFFIX}")}
    index.unlink(missing_ok=True)  # never an index over a mixture of old and new shards
    for name, part in zip(names, parts, strict=True):
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
