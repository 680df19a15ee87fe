"""What is stored with a sampled clip, so that it can be made again and is known when it is there already."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from wanjax import video
from wanjax.generate import Pipeline
from wanjax.prompt_file import IMAGES, Line
from wanjax.sample_config import SampleConfig

SIZES = ("frames", "height", "width", "fps")


def record(
    line: Line,
    pipeline: Pipeline,
    config: SampleConfig,
    *,
    checkpoint: str,
    weights: str,
    correct: bool = False,
    loras: Mapping[str, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """All it takes to make a clip again.

    The setting "correct", the checkpoint's "loras" and "images" are there only where they are in use, so that clips
    from before they existed are still known.

    Args:
        line: what the clip is made from.
        pipeline: with the sizes in use.
        config: the settings in use.
        checkpoint, weights: what was opened.
        correct: whether flicker was taken out.
        loras: by expert, "file", "sha256" and "weight" of each.
    """
    sizes = {name: getattr(pipeline, name) for name in SIZES}
    images = {name: _image(file) for name in IMAGES if (file := getattr(line, name)) is not None}
    found = {
        "path": checkpoint, "found": pipeline.description, "weights": weights, "fingerprint": pipeline.fingerprint,
    } | ({"loras": dict(loras)} if loras else {})  # fmt: skip
    settings = dataclasses.asdict(config) | sizes | ({"correct": True} if correct else {})
    made = {"prompt": line.prompt, "seed": line.seed, "settings": settings, "checkpoint": found}
    return made | ({"images": images} if images else {})


def is_there(target: pathlib.Path, record: Mapping[str, Any]) -> bool:
    """Whether a clip has been made from the same prompt, seed, images, settings and weights, wherever these lay."""
    if not target.exists():
        return False
    try:
        stored = video.stream(target).metadata
    except video.VideoError:
        return False
    found = stored.get("checkpoint")
    return (
        all(stored.get(name) == record[name] for name in ("prompt", "seed", "settings"))
        and isinstance(found, dict)
        and found.get("fingerprint") == record["checkpoint"]["fingerprint"]
        and _lora_bytes(found) == _lora_bytes(record["checkpoint"])
        and _image_bytes(stored) == _image_bytes(record)
    )


def _image(file: pathlib.Path) -> dict[str, str]:
    with file.open("rb") as stream:
        return {"file": file.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _image_bytes(record: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of a record, whatever their files are called."""
    return {name: one["sha256"] for name, one in record.get("images", {}).items()}


def _lora_bytes(checkpoint: Mapping[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """The LoRAs of a record, whatever their files are called."""
    return {
        name: [(one["sha256"], one["weight"]) for one in merged]
        for name, merged in checkpoint.get("loras", {}).items()
    }
