"""Files of prompts: which clips are to be made.

A prompt file is .txt (a prompt a line) or .jsonl (an object a line: "prompt"; "seed" if it is to be a certain one;
"image" and "last_image", picture files beside the prompt file; and anything else, which is passed on).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

OURS = ("file", "settings", "checkpoint", "images")  # fields of a record that a prompt file cannot set
IMAGES = ("image", "last_image")


@dataclasses.dataclass(frozen=True)
class Line:
    """What one clip is to be made from.

    Attributes:
        prompt, seed: what it is made from.
        image, last_image: picture files that it starts from and ends with, None for none.
        carried: fields of the prompt file that are passed on.
    """

    prompt: str
    seed: int
    image: pathlib.Path | None = None
    last_image: pathlib.Path | None = None
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_prompts(path: str | os.PathLike[str], seed: int) -> list[Line]:
    """The lines of a .txt or .jsonl file; the i-th without a seed of its own gets `seed` + i.

    Raises: FileNotFoundError; ValueError naming the line and what is wrong with it, or a file without prompts.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"prompt file {str(path)!r}: expected .txt (a prompt a line) or .jsonl (an object a line)")
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {str(path)!r} does not exist")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {str(path)!r} is not UTF-8 ({error.reason} at byte {error.start})") from error
    found: list[Line] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            found.append(Line(line.strip(), seed + len(found)))
        else:
            found.append(_from_json(line, seed + len(found), path.parent, f"{path}, line {number}"))
    if not found:
        raise ValueError(f"prompt file {str(path)!r} holds no prompt")
    return found


def _from_json(line: str, seed: int, folder: pathlib.Path, where: str) -> Line:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str) or not fields["prompt"].strip():
        raise ValueError(f'{where}: expected an object with a "prompt" that is text, for example {{"prompt": "dawn"}}')
    taken = [name for name in OURS if name in fields]
    if taken:
        raise ValueError(f"{where}: {', '.join(taken)} is written by this command and cannot be set; remove it")
    prompt, own = fields.pop("prompt"), fields.pop("seed", seed)
    if isinstance(own, bool) or not isinstance(own, int):
        raise ValueError(f"{where}: seed {own!r}: expected a whole number")
    images = {}
    for name in IMAGES:
        file = fields.pop(name, None)
        if file is not None and not (isinstance(file, str) and file):
            raise ValueError(f"{where}: {name} {file!r}: expected the name of a picture file")
        images[name] = None if file is None else folder / file
    return Line(prompt, own, images["image"], images["last_image"], fields)
