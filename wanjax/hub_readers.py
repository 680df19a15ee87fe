"""Weights of a network under the names that its rows know, whatever a tool made of them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from wanjax.weight_files import Cut, TensorReader, whole

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_TIED_TABLE = "encoder.embed_tokens.weight"
VOCABULARY = "spiece_model"  # the tokenizer's file as a tensor of bytes, in text encoders of ComfyUI


class View(Mapping[str, np.ndarray]):
    """A reader whose tensors go by other names and are cast when read."""

    def __init__(self, reader: Reader, names: Mapping[str, str], dtype: str | None = None):
        self.source: pathlib.Path = reader.source
        self.metadata: dict[str, str] = reader.metadata
        self._reader, self._names, self._dtype = reader, names, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        """A copy, as of :class:`wanjax.weight_files.TensorReader`."""
        tensor = self.read(name, whole)
        return tensor if tensor.flags.owndata else tensor.copy()

    def read(self, name: str, cut: Cut) -> np.ndarray:
        """What ``cut`` takes of the stored tensor, then cast; without a cast it may share memory with the file."""
        part = self._reader.read(self._names[name], cut)
        return part if self._dtype is None else part.astype(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the tensor

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self._reader.shape_of(self._names[name])

    def dtype_of(self, name: str) -> str:
        return self._dtype or self._reader.dtype_of(self._names[name])


Reader = TensorReader | View


def unprefixed(reader: Reader) -> Reader:
    """Names without the prefix that ComfyUI's tools put before all of them."""
    for prefix in _PREFIXES:
        if reader and all(name.startswith(prefix) for name in reader):
            return View(reader, {name.removeprefix(prefix): name for name in reader})
    return reader


def untied(reader: Reader) -> Reader:
    """The token table under one name; transformers stores it under either of two, or both. Without a vocabulary."""
    shared, tied = "shared.weight", _TIED_TABLE
    names = {name: name for name in reader if name != VOCABULARY}
    if tied in names:
        if shared in names and not np.array_equal(reader.read(shared, whole), reader.read(tied, whole)):
            raise ValueError(f"{reader.source}: {shared} and {tied} differ, but umT5 has one table of tokens")
        names.setdefault(shared, tied)
        del names[tied]
    return View(reader, names)


def shapes(reader: Reader) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, none of them read."""
    return {name: reader.shape_of(name) for name in reader}
