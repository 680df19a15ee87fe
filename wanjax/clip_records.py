"""Which clips are to be measured, and what is known of each before it is looked at."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "ANSWERS",
    "OPTIONAL_ANSWERS",
    "SAMPLES",
    "ClipRecord",
    "Reference",
    "check_answers",
    "records_of_samples",
    "records_of_videos",
]

ANSWERS = ("exposure_change", "sweep")
"""What is read off a clip and held against its caption; each is -1, 0 or 1."""

OPTIONAL_ANSWERS = ("color_change", "glints", "shadow_follows")
"""Also read off a clip whose facts state them other than 0, beside both of :data:`ANSWERS`.

``color_change``: +1 the light turns warmer, -1 cooler. ``glints``: +1 those of water run to the right, -1 to the left.
``shadow_follows``: 1 the shadow of a walker is his.
"""

SAMPLES = "samples.jsonl"
"""The listing that ``experiments.sample`` leaves beside its clips."""


@dataclass(frozen=True)
class Reference:
    """A rendered clip to show and measure beside a sampled one: ``frames [T, H, W, 3]`` uint8."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class ClipRecord:
    """A clip to be measured.

    Attributes:
      path: its file.
      facts: what is known of it: any of ``prompt``, ``language``, ``family``, ``scenario``, ``exposure_change``,
        ``sweep``, those of :data:`OPTIONAL_ANSWERS`, ``seed``, ``settings``, ``truth`` (see
        :func:`wanjax.light.metrics.measure`).
      reference: gives the rendered clip that the caption was written for, if there is one.
    """

    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[[], Reference] | None = None


def check_answers(facts: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, beginning with ``where``, for an answer that cannot be one."""
    for name in (*ANSWERS, *OPTIONAL_ANSWERS):
        allowed = (0, 1) if name == "shadow_follows" else (-1, 0, 1)
        if name in facts and facts[name] not in allowed:
            words = " or ".join(filter(None, (", ".join(map(str, allowed[:-1])), str(allowed[-1]))))
            raise ValueError(f"{where}{name} = {facts[name]!r}: expected {words}")


def records_of_videos(pattern: str, *, flag: str = "--videos") -> list[ClipRecord]:
    """The clips of a glob (``**`` for folders below), with the facts stored in them.

    Raises FileNotFoundError, which names ``flag``, where nothing matches.
    """
    paths = sorted(Path(p) for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p))
    if not paths and os.path.isdir(os.path.expanduser(pattern)):
        raise FileNotFoundError(f"{flag} {pattern}: a folder; give a glob of its files such as '{pattern}/*.mp4'")
    if not paths:
        raise FileNotFoundError(f"{flag} {pattern}: no file matches; quote the pattern and check the folder")
    return [ClipRecord(path) for path in paths]


def records_of_samples(
    folder: str | os.PathLike[str], reference: Callable[[Mapping[str, Any]], Callable[[], Reference] | None]
) -> list[ClipRecord]:
    """The clips that ``experiments.sample`` left in a folder, one per line of its ``samples.jsonl``.

    Args:
      folder: where they are.
      reference: given a line's record, what gives the clip's reference (None where there is none).

    Raises:
      FileNotFoundError: no ``samples.jsonl``.
      ValueError: a line that is not a record with a ``file``, or answers that are not -1, 0 or 1.
    """
    listing = Path(folder) / SAMPLES
    if not listing.is_file():
        raise FileNotFoundError(f"{listing}: no such file; run experiments.sample --out {folder} first")
    records = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            facts = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{listing}:{number}: not JSON ({error.msg}); sample again or remove the line") from error
        if not isinstance(facts, dict) or not isinstance(facts.get("file"), str):
            raise ValueError(f'{listing}:{number}: expected an object with a "file"')
        check_answers(facts, f"{listing}:{number}: ")
        records.append(ClipRecord(Path(folder) / facts.pop("file"), facts, reference(facts)))
    if not records:
        raise ValueError(f"{listing}: holds no clip; run experiments.sample --out {folder} again")
    return records
