"""Files of ``torch.save`` (.pth, .pt, .bin), read tensor by tensor without PyTorch and without running what is in them.

Such a file is an uncompressed zip archive of a pickle, which gives names, shapes and strides, and of one member of raw
bytes per storage. A pickle is a program, so this one is not trusted: only the instructions that build dictionaries,
tuples, numbers and text are carried out, and the few names that PyTorch writes for a tensor stand for records of ours.
Anything else is an error that names it.

Source of the format: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  numpy knows bfloat16 by name once it is imported
import numpy as np

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

_STORAGES = {
    "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "DoubleStorage": "float64",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
# What PyTorch's pickles of tensors are made of, in every protocol. Of these only GLOBAL and STACK_GLOBAL name anything
# outside the file, REDUCE calls what they gave, and BUILD sets the attributes of an OrderedDict.
_INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS BINPUT "
    "LONG_BINPUT MEMOIZE BINGET LONG_BINGET BINPERSID GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then at byte 26 the lengths of the name and of the extra field
_SAVE_AGAIN = "save the network's state_dict() alone with torch.save"


class _StorageType(NamedTuple):
    dtype: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int  # elements


class _Tensor(NamedTuple):
    """Where a tensor lies in its storage; offset and strides in elements."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _RebuildTensor:
    """Stands for ``torch._utils._rebuild_tensor_v2``. Without attributes, so that a pickle cannot change it."""

    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
    ) -> _Tensor:
        return _Tensor(storage, offset, shape, strides)


class _RebuildParameter:
    """Stands for ``torch._utils._rebuild_parameter``."""

    __slots__ = ()

    def __call__(self, data: Any, requires_grad: Any, hooks: Any) -> Any:
        return data


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise pickle.UnpicklingError(
            f"its pickle asks for {module}.{name}, which is no part of a tensor and is not run; {_SAVE_AGAIN}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(size)) if size >= 0:
                return _Storage(key, dtype, size)
        raise pickle.UnpicklingError(f"its pickle refers to {pid!r}, which is not a storage of PyTorch")


class _Member(NamedTuple):
    start: int  # of the bytes in the file
    size: int
    crc: int


class TorchFile:
    """Tensors of one file of ``torch.save``; only :meth:`read` touches their bytes, which stay mapped from the disk.

    Attributes:
        metadata: empty, such a file has none.

    Raises:
        ValueError: not such a file, cut short, damaged, or with anything in it but tensors by name.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.metadata: dict[str, str] = {}
        self._verified: set[str] = set()
        try:
            with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
                self._members = _members(archive, stream)
                pickled = [name for name in self._members if name.endswith("/data.pkl")]
                if len(pickled) != 1:
                    raise ValueError(f"{file} is not a file of torch.save: it has {len(pickled)} members data.pkl")
                self._folder = pickled[0].removesuffix("data.pkl")
                order = self._folder + "byteorder"
                if order in self._members and archive.read(order) != b"little":
                    raise ValueError(f"{file} was written on a big-endian machine: {_SAVE_AGAIN} on another")
                program = archive.read(pickled[0])
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file}: {_why_no_zip(file)} ({error})") from error
        self._tensors = _checked(_unpickled(program, file), self._members, self._folder, file)
        self._bytes = np.memmap(file, np.uint8, "r")

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype_of(self, name: str) -> str:
        return self._tensors[name].storage.dtype

    def read(self, name: str) -> np.ndarray:
        """A copy of one tensor, contiguous.

        Raises:
            ValueError: the storage's bytes do not have the CRC-32 that the archive records.
        """
        storage, offset, shape, strides = self._tensors[name]
        member = self._members[f"{self._folder}data/{storage.key}"]
        stored = self._bytes[member.start : member.start + member.size]
        if storage.key not in self._verified:
            if zlib.crc32(stored.data) != member.crc:
                raise ValueError(f"{self.file}: the bytes of tensor {name} are damaged (CRC-32): download it again")
            self._verified.add(storage.key)
        dtype = np.dtype(storage.dtype)
        if 0 in shape:
            return np.empty(shape, dtype)
        in_bytes = tuple(stride * dtype.itemsize for stride in strides)
        # A copy: JAX may use a host array in place, and these pages belong to a file that others can change.
        return np.ndarray(shape, dtype, stored, offset * dtype.itemsize, in_bytes).copy()


def _members(archive: zipfile.ZipFile, stream: io.BufferedReader) -> dict[str, _Member]:
    """Where each member's bytes lie.

    Raises:
        ValueError: a member is compressed.
        zipfile.BadZipFile: a member lies outside the file or has no header.
    """
    end = stream.seek(0, io.SEEK_END)
    found = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{archive.filename}: {info.filename} is compressed: {_SAVE_AGAIN}")
        stream.seek(info.header_offset)
        header = stream.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise zipfile.BadZipFile(f"no member where {info.filename} should be")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > end:
            raise zipfile.BadZipFile(f"{info.filename} reaches beyond the end of the file")
        found[info.filename] = _Member(start, info.file_size, info.CRC)
    return found


def _why_no_zip(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(b"PK"):
        return "the archive is cut short or damaged, download it again"
    if start.startswith(b"\x80"):
        return (
            "a bare pickle, as PyTorch before 1.6 wrote, cannot be read safely; write it anew with "
            "torch.save(torch.load(path, weights_only=True), path)"
        )
    return "not a file of torch.save"


def _unpickled(program: bytes, file: pathlib.Path) -> Any:
    """What the pickle builds."""
    try:
        for instruction, argument, _ in pickletools.genops(program):
            if instruction.name not in _INSTRUCTIONS:
                raise pickle.UnpicklingError(f"its pickle has the instruction {instruction.name}; {_SAVE_AGAIN}")
            # The memo is an array as long as the largest number in it.
            if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(program):
                raise pickle.UnpicklingError("its pickle numbers more values than it has bytes")
        return _Unpickler(io.BytesIO(program)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError) as error:
        raise ValueError(f"{file}: {error}") from error


def _checked(root: Any, members: dict[str, _Member], folder: str, file: pathlib.Path) -> dict[str, _Tensor]:
    """The tensors by name, each inside its storage and each storage as long as it says."""
    if not isinstance(root, dict) or not root:
        raise ValueError(f"{file} holds a {type(root).__name__}, expected tensors by name: {_SAVE_AGAIN}")
    for name, tensor in root.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(
                f"{file}: {name!r} is a {type(tensor).__name__.lstrip('_')}, expected tensors by name: {_SAVE_AGAIN}"
            )
        storage, offset, shape, strides = tensor
        if (
            not isinstance(storage, _Storage)
            or not _counts((offset,))
            or not _counts(shape)
            or not _counts(strides)
            or len(shape) != len(strides)
        ):
            raise ValueError(f"{file}: tensor {name} is not described as PyTorch does ({tensor!r:.200})")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise ValueError(f"{file}: tensor {name} reaches element {last} of a storage of {storage.size}")
        member = members.get(f"{folder}data/{storage.key}")
        size = storage.size * np.dtype(storage.dtype).itemsize
        if member is None or member.size != size:
            raise ValueError(
                f"{file}: tensor {name} needs {size} bytes of data/{storage.key}, the archive has "
                f"{'none' if member is None else member.size}: download it again"
            )
    return dict(root)


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)
