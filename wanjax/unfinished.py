"""A folder that is there once it is whole: it is written beside its place under another name, and renamed."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

UNFINISHED = ".unfinished"  # marks a folder whose writing was interrupted


@contextmanager
def beside(dst: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside ``dst`` that is gone afterwards, unless it has been renamed.

    Raises:
        FileExistsError: a folder of that name was not left by an interruption.
    """
    part = dst.with_name(dst.name + ".part")
    if part.exists() and not (part / UNFINISHED).is_file():
        raise FileExistsError(f"{part} exists and was not left by a conversion: remove it or name another --dst")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / UNFINISHED).touch()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
