"""What a folder that we wrote holds: SHA-256 and size of every file, its layout and what it was made from.

A folder inside it that has a manifest of its own is taken over from there, not hashed again. :func:`verify` checks
files against it, or against what huggingface_hub recorded of its downloads.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import wanjax

NAME = "wanjax_manifest.json"
_HUB_RECORDS = pathlib.PurePath(".cache", "huggingface", "download")  # of a download to a chosen folder
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class Report(NamedTuple):
    """What came of checking a folder.

    Attributes:
        against: what it was checked against.
        checked: names of the files whose sum was compared.
        problems: a sentence for each file that is missing or not as recorded.
        unrecorded: names of files of which no sum is known.
    """

    against: str
    checked: list[str]
    problems: list[str]
    unrecorded: list[str]


def write(folder: pathlib.Path, *, layout: str, source: str, **about: Any) -> None:
    """Hashes every file under ``folder`` and writes its manifest.

    Args:
        layout: of the folder.
        source: what it was made from.
        about: anything else that says how.
    """
    files: dict[str, dict[str, Any]] = {}
    inner = sorted(path.parent for path in folder.rglob(NAME) if path.parent != folder)
    for part in inner:
        files |= {(part.relative_to(folder) / name).as_posix(): entry for name, entry in _read(part)["files"].items()}
    for name in _files(folder):
        if name not in files:
            path = folder / name
            files[name] = {"sha256": _sum(path, hashlib.sha256()), "size": path.stat().st_size}
    record = {"layout": layout, "source": source, **about, "wanjax": wanjax.__version__,
              "files": dict(sorted(files.items()))}  # fmt: skip
    temporary = folder / f".{NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / NAME)


def check_sizes(folder: pathlib.Path) -> list[str]:
    """A sentence for each file of a folder's manifest that is missing or of another size; none without a manifest."""
    if not (folder / NAME).is_file():
        return []
    problems = []
    for name, entry in _read(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{name} has {path.stat().st_size} bytes, {entry['size']} are recorded")
    return problems


def verify(folder: pathlib.Path) -> Report:
    """Reads every file of which a sum is recorded and compares.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing is recorded of any of its files, or the manifest cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give one that was written by convert or downloaded")
    if (folder / NAME).is_file():
        recorded = {name: entry["sha256"] for name, entry in _read(folder)["files"].items()}
        against = NAME
    else:
        recorded = dict(_hub_sums(folder))
        against = "the sums that huggingface_hub recorded"
    if not recorded:
        raise ValueError(
            f"{folder} has no {NAME}, and nothing that huggingface_hub recorded of a download: there is nothing to "
            "check it against"
        )
    problems = []
    for name, expected in recorded.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := _sum_like(path, expected)) != expected:
            problems.append(f"{name} is damaged: its sum is {found}, recorded is {expected}")
    rest = [name for name in _files(folder) if name not in recorded]
    return Report(against, list(recorded), problems, rest)


def _read(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / NAME
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        for entry in record["files"].values():
            entry["sha256"], entry["size"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): convert the folder again") from error
    return record


def _files(folder: pathlib.Path) -> Iterator[str]:
    """Every file under a folder but its manifest and the hub's records."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() != NAME and name.parts[:1] != (".cache",):
            yield name.as_posix()


def _hub_sums(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Name and sum of each file that huggingface_hub downloaded: SHA-256 of large files, git's SHA-1 of others.

    In its cache a file is a link to a blob that is called by its sum; beside a chosen folder the sum is the second line
    of a file of metadata.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.parent != path.resolve().parent and path.resolve().parent.name == "blobs":
            if _is_sum(path.resolve().name):
                yield path.relative_to(folder).as_posix(), path.resolve().name
    records = folder / _HUB_RECORDS
    for path in sorted(records.rglob("*.metadata")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > 1 and _is_sum(lines[1].strip()):
            yield path.relative_to(records).as_posix().removesuffix(".metadata"), lines[1].strip()


def _is_sum(text: str) -> bool:
    return bool(_SHA256.fullmatch(text) or _GIT_SHA1.fullmatch(text))


def _sum_like(path: pathlib.Path, expected: str) -> str:
    """The sum of a file of the kind that ``expected`` is."""
    if _SHA256.fullmatch(expected):
        return _sum(path, hashlib.sha256())
    return _sum(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))  # as git names its blobs


def _sum(path: pathlib.Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
