"""Tells large files apart without reading all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from etils import epath

_ENDS = 64 * 1024  # bytes at either end: headers, and the check sums at the end of torch.save's archives
_SAMPLES, _SAMPLE = 256, 1024  # samples in between, and the bytes of each


def sampled_digest(files: Iterable[tuple[str, str | os.PathLike[str]]]) -> str:
    """sha256 over a sample of each file: its name and size, 64 KiB at either end and 256 KiB spread evenly between.

    For telling sets of weights apart: training, rounding or converting changes nearly every value, so nearly every
    sample. It does not prove that nothing was altered between two samples. A file of up to 384 KiB is read whole; of
    larger ones 384 KiB, whatever their size.

    Args:
        files: (name, path). Names enter the digest and paths do not: give names relative to the folder, and it does not
            depend on where the folder lies. The order does not matter.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: two files of one name.
    """
    named = sorted((name, epath.Path(path)) for name, path in files)
    if twice := sorted({a for (a, _), (b, _) in zip(named, named[1:], strict=False) if a == b}):
        raise ValueError(f"several files are called {', '.join(twice)}: a digest needs a name for each")
    digest = hashlib.sha256()
    for name, path in named:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            digest.update(f"{len(name.encode())} {name} {size}\n".encode())
            for piece in _samples(stream, size):
                digest.update(piece)
    return digest.hexdigest()


def _samples(stream: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= 2 * _ENDS + _SAMPLES * _SAMPLE:
        spans = [(0, size)]
    else:
        first, last = _ENDS, size - _ENDS - _SAMPLE
        between = [(first + (last - first) * i // (_SAMPLES - 1), _SAMPLE) for i in range(_SAMPLES)]
        spans = [(0, _ENDS), *between, (size - _ENDS, _ENDS)]
    for start, length in spans:
        stream.seek(start)
        yield stream.read(length)
