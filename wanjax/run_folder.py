"""Where the folder of a run lies: on a file system, or as ``gs://bucket/...`` on an object store."""
from __future__ import annotations

import importlib.util
import os
import pathlib
import re

from etils import epath

_SCHEME = re.compile(r"(\w+)://")


class FolderError(ValueError):
    """A folder cannot be used for this; the message names it and says what can."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names a place on an object store."""
    return _SCHEME.match(os.fspath(path)) is not None


def run_folder(path: str | os.PathLike[str]) -> epath.Path:
    """A folder that checkpoints are written to and read from: absolute, or untouched where it is ``gs://...``.

    Raises:
      FolderError: if checkpoints cannot be written there, or what reaches it is not installed; an empty name.
    """
    _check_named(path, "the folder of a run (--workdir, --checkpoint, --src)")
    scheme = _SCHEME.match(os.fspath(path))
    if scheme is None:
        return epath.Path(pathlib.Path(path).absolute())
    if scheme[1] != "gs":
        raise FolderError(f"{os.fspath(path)!r}: orbax writes checkpoints to gs:// and to file systems, not to "
                          f"{scheme[1]}://. Give a folder of a file system that all processes share, and copy its "
                          "checkpoints there as a whole")
    if not any(importlib.util.find_spec(module) for module in ("gcsfs", "tensorflow")):
        raise FolderError(f"{os.fspath(path)!r} is reached through gcsfs: pip install 'wanjax[gcs]'")
    return epath.Path(path)


def local_folder(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """A path on a file system of this machine.

    Args:
      path: that was given.
      what: it was given for, e.g. ``"--out"``.

    Raises:
      FolderError: if it is on an object store; an empty name.
    """
    _check_named(path, what)
    if is_remote(path):
        raise FolderError(f"{what} {os.fspath(path)!r} lies on an object store, and only a run's checkpoints are "
                          f"written and read there: give a folder of this machine")
    return pathlib.Path(path)


def _check_named(path: str | os.PathLike[str], what: str) -> None:
    """Refuses what an unset variable of a shell gives: it would be the folder that the command was started in."""
    if not os.fspath(path):
        raise FolderError(f"{what} is empty: give its name, \".\" for the folder that you are in")
