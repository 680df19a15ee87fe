"""Tells one version of this library from another, an edited one included."""

from __future__ import annotations

import hashlib
import pathlib


def source_digest() -> str:
    """64 hex digits that change with any line of this library, and of what it tells compilers of machines."""
    digest, library = hashlib.sha256(), pathlib.Path(__file__).parent
    for file in (*sorted(library.rglob("*.py")), *sorted((library / "assets" / "gpus").glob("*"))):
        digest.update(file.relative_to(library).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
