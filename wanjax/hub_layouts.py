"""Where the networks of a released pipeline lie: diffusers' folders and those of Wan's own releases."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

_PathLike = str | os.PathLike[str]
_LOADERS = {
    "transformer": "load_dit",
    "transformer_2": "load_dit",
    "vae": "load_vae",
    "text_encoder": "load_text_encoder",
}
_DIFFUSERS_PARTS = (*_LOADERS, "tokenizer", "scheduler")
_EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
_CODEC, _TEXT_ENCODER, _TOKENIZER = "Wan2.*_VAE", "models_t5_*", "google/umt5-xxl"
# of wan/configs/wan_t2v_A14B.py and wan_i2v_A14B.py: the official folders do not state it
_BOUNDARIES = {"t2v": 0.875, "i2v": 0.9}


def open_layout(folder: _PathLike) -> dict[str, Any]:
    """Parts of a pipeline's root, in the diffusers layout (the folder of ``model_index.json``) or in Wan's own.

    Wan's own is the folder of ``high_noise_model/`` and ``low_noise_model/`` (Wan2.2-A14B), or of a single transformer
    (Wan2.1, Wan2.2-TI2V-5B), beside ``Wan2.1_VAE.pth``, ``models_t5_umt5-xxl-enc-bf16.pth`` and ``google/umt5-xxl/``.

    Returns:
        The place (``pathlib.Path``) of each part that is there, among ``transformer`` (high noise), ``transformer_2``
        (low noise), ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``, and ``boundary_ratio`` (float, None
        where there is one expert).

    Raises:
        FileNotFoundError: neither layout, or a part that ``model_index.json`` names is missing.
        ValueError: several files for one part.
    """
    root = pathlib.Path(folder)
    index_file = root / "model_index.json"
    if not index_file.is_file():
        if is_official(root):
            return _official_parts(root)
        raise FileNotFoundError(
            f"{root} has no model_index.json and no {_CODEC}.pth beside high_noise_model/ and low_noise_model/: give "
            "a pipeline's root in the diffusers or the official layout"
        )
    index = json.loads(index_file.read_text(encoding="utf-8"))
    parts: dict[str, Any] = {"boundary_ratio": index.get("boundary_ratio")}
    for name in _DIFFUSERS_PARTS:
        if any(index.get(name) or ()):  # an absent part is [null, null]
            parts[name] = root / name
    missing = [name for name, part in parts.items() if isinstance(part, pathlib.Path) and not part.is_dir()]
    if missing:
        raise FileNotFoundError(f"{index_file} names parts that are not there: {', '.join(missing)}")
    return parts


def is_official(root: pathlib.Path) -> bool:
    """Whether this is the root of one of Wan's own releases."""
    return any((root / name).is_dir() for name in _EXPERTS.values()) or _only(root, _CODEC) is not None


def one_network(folder: _PathLike) -> pathlib.Path:
    """The path, if it is not a pipeline's root with its networks in folders of their own.

    Raises:
        ValueError: it is; the message says how each part is opened.
    """
    path = pathlib.Path(folder)
    found = {part: path / part for part in _LOADERS if (path / part).is_dir()}
    if any((path / name).is_dir() for name in _EXPERTS.values()):
        found |= {part: place for part, place in _official_parts(path).items() if part in _LOADERS}
    if found or (path / "model_index.json").is_file():
        calls = ", ".join(f"{_LOADERS[part]}({str(place)!r})" for part, place in found.items())
        raise ValueError(f"{path} is the root of a pipeline, not one network; its parts: {calls or 'none of ours'}")
    return path


def _official_parts(root: pathlib.Path) -> dict[str, Any]:
    parts: dict[str, Any] = {name: root / sub for name, sub in _EXPERTS.items() if (root / sub).is_dir()}
    parts["boundary_ratio"] = _BOUNDARIES[_task(root / _EXPERTS["transformer_2"])] if len(parts) == 2 else None
    if "transformer" not in parts and "transformer_2" not in parts and any(root.glob("diffusion_pytorch_model*")):
        parts["transformer"] = root
    for name, pattern in (("vae", _CODEC), ("text_encoder", _TEXT_ENCODER)):
        if (file := _only(root, pattern)) is not None:
            parts[name] = file
    if (root / _TOKENIZER).is_dir():
        parts["tokenizer"] = root / _TOKENIZER
    return parts


def _only(root: pathlib.Path, pattern: str) -> pathlib.Path | None:
    """The one weight file of this name; a safetensors file goes before a ``.pth``."""
    for suffix in (".safetensors", ".pth"):
        files = sorted(root.glob(pattern + suffix))
        if len(files) > 1:
            raise ValueError(f"{root} holds {', '.join(file.name for file in files)}: keep one of them")
        if files:
            return files[0]
    return None


def _task(expert: pathlib.Path) -> str:
    """"t2v" or "i2v", as an expert's ``config.json`` states it."""
    file = expert / "config.json"
    task = json.loads(file.read_text(encoding="utf-8")).get("model_type", "t2v") if file.is_file() else "t2v"
    if task not in _BOUNDARIES:
        raise ValueError(f"{file} has model_type {task!r}; two experts are known for {' and '.join(_BOUNDARIES)}")
    return task
