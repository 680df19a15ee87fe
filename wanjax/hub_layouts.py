"""Where the networks of a pipeline lie: diffusers' folders, those of Wan's own releases, of ComfyUI, and our own."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from wanjax.expert_boundary import BOUNDARIES
from wanjax.weight_files import SUFFIX, open_weights

_PathLike = str | os.PathLike[str]
_LOADERS = {
    "transformer": "load_dit",
    "transformer_2": "load_dit",
    "vae": "load_vae",
    "text_encoder": "load_text_encoder",
}
PARTS = (*_LOADERS, "tokenizer", "scheduler")
INDEX = "model_index.json"
ORBAX_PARAMS = "params"  # the orbax checkpoint in a network's folder, beside config.json
_ORBAX_MARK = "_CHECKPOINT_METADATA"
EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
_CODEC, _TEXT_ENCODER, TOKENIZER = "Wan2.*_VAE", "models_t5_*", "google/umt5-xxl"
# folders of a ComfyUI installation under models/, and what the file names of the two experts hold
COMFYUI_FOLDERS = {
    "transformer": "diffusion_models",
    "transformer_2": "diffusion_models",
    "vae": "vae",
    "text_encoder": "text_encoders",
}
_COMFYUI_EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}
_ENDS = ("patch_embedding.weight", "head.head.weight")


def open_layout(folder: _PathLike) -> dict[str, Any]:
    """Parts of a pipeline's root, in the diffusers layout or our own (the folder of ``model_index.json``), in Wan's own
    or in ComfyUI's.

    Wan's own is the folder of ``high_noise_model/`` and ``low_noise_model/`` (Wan2.2-A14B), or of a single transformer
    (Wan2.1, Wan2.2-TI2V-5B), beside ``Wan2.1_VAE.pth``, ``models_t5_umt5-xxl-enc-bf16.pth`` and ``google/umt5-xxl/``.
    ComfyUI's is the folder of ``diffusion_models/``, ``vae/`` and ``text_encoders/``, one file in each but for two
    experts, whose names say ``high_noise`` and ``low_noise``.

    Returns:
        The place (``pathlib.Path``) of each part that is there, among ``transformer`` (high noise), ``transformer_2``
        (low noise), ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``, and ``boundary_ratio`` (float, None
        where there is one expert).

    Raises:
        FileNotFoundError: none of these layouts, or a part that ``model_index.json`` names is missing.
        ValueError: several files for one part.
    """
    root = pathlib.Path(folder)
    match layout_of(root):
        case "official":
            return _official_parts(root)
        case "comfyui":
            return _comfyui_parts(root)
        case None:
            raise FileNotFoundError(
                f"{root} has no {INDEX}, no {_CODEC}.pth beside high_noise_model/ and low_noise_model/, and no "
                "diffusion_models/: give a pipeline's root in the diffusers, official, ComfyUI or orbax layout"
            )
    index = read_index(root)
    parts: dict[str, Any] = {"boundary_ratio": index.get("boundary_ratio")}
    for name in PARTS:
        if any(index.get(name) or ()):  # an absent part is [null, null]
            parts[name] = root / name
    missing = [name for name, part in parts.items() if isinstance(part, pathlib.Path) and not part.is_dir()]
    if missing:
        raise FileNotFoundError(f"{root / INDEX} names parts that are not there: {', '.join(missing)}")
    return parts


def layout_of(root: pathlib.Path) -> str | None:
    """"diffusers", "official", "comfyui" or "orbax", of a pipeline's root; None where it is none."""
    if (root / INDEX).is_file():
        return "orbax" if any(is_orbax(root / name) for name in _LOADERS) else "diffusers"
    if is_official(root):
        return "official"
    return "comfyui" if (root / COMFYUI_FOLDERS["transformer"]).is_dir() else None


def read_index(root: pathlib.Path) -> dict[str, Any]:
    """``model_index.json`` of a root.

    Raises:
        ValueError: it is not JSON.
    """
    file = root / INDEX
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): download or write it again") from error


def is_official(root: pathlib.Path) -> bool:
    """Whether this is the root of one of Wan's own releases."""
    return any((root / name).is_dir() for name in EXPERTS.values()) or _only(root, _CODEC) is not None


def is_orbax(folder: pathlib.Path) -> bool:
    """Whether this is the folder of one network in our own layout."""
    return (folder / ORBAX_PARAMS / _ORBAX_MARK).is_file()


def one_network(folder: _PathLike) -> pathlib.Path:
    """The path, if it is not a pipeline's root with its networks in folders of their own.

    Raises:
        ValueError: it is; the message says how each part is opened.
    """
    path = pathlib.Path(folder)
    found = {part: path / part for part in _LOADERS if (path / part).is_dir()}
    if any((path / name).is_dir() for name in EXPERTS.values()):
        found |= {part: place for part, place in _official_parts(path).items() if part in _LOADERS}
    elif layout_of(path) == "comfyui":
        found |= {part: place for part, place in _comfyui_parts(path).items() if part in _LOADERS}
    if found or (path / INDEX).is_file():
        calls = ", ".join(f"{_LOADERS[part]}({str(place)!r})" for part, place in found.items())
        raise ValueError(f"{path} is the root of a pipeline, not one network; its parts: {calls or 'none of ours'}")
    return path


def _official_parts(root: pathlib.Path) -> dict[str, Any]:
    parts: dict[str, Any] = {name: root / sub for name, sub in EXPERTS.items() if (root / sub).is_dir()}
    parts["boundary_ratio"] = BOUNDARIES[_task(root / EXPERTS["transformer_2"])] if len(parts) == 2 else None
    if "transformer" not in parts and "transformer_2" not in parts and any(root.glob("diffusion_pytorch_model*")):
        parts["transformer"] = root
    for name, pattern in (("vae", _CODEC), ("text_encoder", _TEXT_ENCODER)):
        if (file := _only(root, pattern)) is not None:
            parts[name] = file
    if (root / TOKENIZER).is_dir():
        parts["tokenizer"] = root / TOKENIZER
    return parts


def _comfyui_parts(root: pathlib.Path) -> dict[str, Any]:
    folder = root / COMFYUI_FOLDERS["transformer"]
    parts: dict[str, Any] = {}
    for name, mark in _COMFYUI_EXPERTS.items():
        if (file := _only(folder, f"*{mark}*")) is not None:
            parts[name] = file
    parts["boundary_ratio"] = _boundary_by_channels(parts["transformer_2"]) if len(parts) == 2 else None
    if "transformer" not in parts and "transformer_2" not in parts and (file := _only(folder, "*")) is not None:
        parts["transformer"] = file
    for name in ("vae", "text_encoder"):
        if (file := _only(root / COMFYUI_FOLDERS[name], "*")) is not None:
            parts[name] = file
    if (root / "tokenizer").is_dir():  # ComfyUI needs none
        parts["tokenizer"] = root / "tokenizer"
    return parts


def _only(root: pathlib.Path, pattern: str) -> pathlib.Path | None:
    """The one weight file of this name; a safetensors file goes before a ``.pth``."""
    for suffix in (SUFFIX, ".pth"):
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
    if task not in BOUNDARIES:
        raise ValueError(f"{file} has model_type {task!r}; two experts are known for {' and '.join(BOUNDARIES)}")
    return task


def _boundary_by_channels(expert: pathlib.Path) -> float:
    """ComfyUI's files state no task: an expert that reads more channels than it predicts is given an image."""
    reader = open_weights(expert)
    shapes = {end: next((reader.shape_of(name) for name in reader if name.endswith(end)), (0,) * 5) for end in _ENDS}
    embedding, head = (shapes[end] for end in _ENDS)  # [D, C, pt, ph, pw] and [C pt ph pw, D]
    return BOUNDARIES["i2v" if math.prod(embedding[1:]) > head[0] else "t2v"]
