"""Writes one network under the names and in the files of a foreign layout, tensor by tensor."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from wanjax import hub_configs
from wanjax.hub_float8 import ScaledFloat8
from wanjax.hub_networks import Network, most_common
from wanjax.hub_opening import config_from_shapes
from wanjax.hub_readers import VOCABULARY
from wanjax.models.dit_config import DiTConfig
from wanjax.models.vae_config import VAEConfig
from wanjax.pth_writing import require_torch, write_pth
from wanjax.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM, TensorSpec, write_weights

LAYOUTS = ("diffusers", "official", "comfyui")
SHARD_BYTES = 5_000_000_000
_WHOLE = 2**62  # bytes; of a file that is never split
_COMFYUI_STEM = "diffusion_model"
_SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class _Files(NamedTuple):
    """How a network lies in a layout.

    Attributes:
        naming: of its tensors.
        stem: of its file or files.
        config: what to state of its sizes.
        inside: whether that stands in the one file's header; otherwise in config.json, beside shards.
    """

    naming: str
    stem: str
    config: dict[str, Any]
    inside: bool


def write_network(
    network: Network,
    folder: str | os.PathLike[str],
    *,
    layout: str,
    stem: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    fp8: bool = False,
    vocabulary: bytes | None = None,
    pth: bool = False,
) -> float:
    """Writes a network in its stored types; memory holds one tensor at a time.

    Args:
        folder: made if absent; files of an earlier save are replaced once the new ones are complete.
        layout: "diffusers", "official" or "comfyui".
        stem: of the file, instead of the layout's own.
        max_shard_bytes: larger weights are split, with an index; a file that states its sizes itself never is.
        fp8: of a transformer in the "comfyui" layout: the matrices of all blocks in 8 bits with a scale each.
        vocabulary: of a text encoder in the "comfyui" layout: the tokenizer's spiece.model, which ComfyUI looks for
            among the tensors.
        pth: of a codec or text encoder in the "official" layout: a ``.pth``, as Wan's own code opens it, which takes
            PyTorch and holds all of it in memory.

    Returns:
        Root mean square of what 8 bits changed relative to that of the matrices; 0.0 without ``fp8``.

    Raises:
        ImportError: ``pth`` without PyTorch.
        ValueError: an unknown layout, ``fp8`` or ``pth`` where it does not apply, or settings of the network that a
            ``.pth`` has no place for.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if fp8 and layout != "comfyui":
        raise ValueError(f"fp8 is of the layout 'comfyui' alone; layout {layout!r} keeps the parameters' own type")
    if fp8 and network.kind != "transformer":
        raise ValueError(f"fp8 is of transformers alone; {network.source} is of the kind {network.kind}")
    files = _files(network, layout)
    if pth:
        check_pth(network, layout)
        write_pth(pathlib.Path(folder) / f"{stem or files.stem}.pth", network.tensors(files.naming))
        return 0.0
    scaled = ScaledFloat8(_matrices(network, files.naming))
    specs: Mapping[str, TensorSpec] = network.specs(files.naming)
    tensors: Iterable[tuple[str, np.ndarray]] = network.tensors(files.naming)
    if fp8:
        specs, tensors = scaled.specs(specs), scaled(tensors)
    if vocabulary is not None and layout == "comfyui" and network.kind == "text_encoder":
        specs = {**specs, VOCABULARY: TensorSpec((len(vocabulary),), "uint8")}
        tensors = _followed_by(tensors, VOCABULARY, np.frombuffer(vocabulary, np.uint8))
    write_weights(
        pathlib.Path(folder),
        specs,
        tensors,
        None if files.inside else files.config,
        stem=stem or files.stem,
        max_shard_bytes=_WHOLE if files.inside else max_shard_bytes,
        metadata={"config": json.dumps(files.config)} if files.inside else None,
    )
    return scaled.relative_error


def check_pth(network: Network, layout: str) -> None:
    """Raises as :func:`write_network` with ``pth``, before anything is written."""
    require_torch()
    if layout != "official" or network.kind == "transformer":
        raise ValueError(
            f"pth is of the codec and the text encoder in the layout 'official' alone, not of a {network.kind} in "
            f"{layout!r}"
        )
    shapes = {name: spec.shape for name, spec in network.specs("official").items()}
    read = replace(config_from_shapes(network.kind, shapes, pathlib.Path(network.source)),
                   dtype=network.config.dtype, param_dtype=network.config.param_dtype)  # fmt: skip
    lost = [field for field, value in vars(network.config).items() if getattr(read, field) != value]
    if lost:
        raise ValueError(
            f"{network.source}: a .pth holds tensors alone, from which {', '.join(lost)} of this network cannot be "
            "read; write safetensors"
        )


def written_bytes(network: Network, *, fp8: bool = False) -> int:
    """Bytes that the weights will take."""
    specs: Mapping[str, TensorSpec] = network.specs("official")
    if fp8 and network.kind == "transformer":
        specs = ScaledFloat8(_matrices(network, "official")).specs(specs)
    return sum(spec.nbytes for spec in specs.values())


def _matrices(network: Network, naming: str) -> list[str]:
    """Tensors of a transformer's blocks that are stored in 8 bits on request."""
    return [name for row in network.rows if row.stacked and len(row.shape) == 2 and row.layout == "linear"
            for name in row.foreign_names(naming)]  # fmt: skip


def _files(network: Network, layout: str) -> _Files:
    single = layout != "diffusers"
    match network.config:
        case DiTConfig() as config:
            naming = "official" if single else "diffusers"
            comfyui = layout == "comfyui"
            stem = _COMFYUI_STEM if comfyui else DIFFUSERS_STEM
            return _Files(naming, stem, hub_configs.dit_json(config, naming), comfyui)
        case VAEConfig() as config:
            names = {"official": ("Wan2.1_VAE", "Wan2.2_VAE"), "comfyui": ("wan_2.1_vae", "wan2.2_vae")}
            stem = names[layout][config.residual] if single else DIFFUSERS_STEM
            return _Files("official" if single else "diffusers", stem, hub_configs.vae_json(config), single)
        case config:
            dtype = _SHORT_DTYPES[most_common(network.specs("official"))]
            stems = {"diffusers": TRANSFORMERS_STEM, "official": f"models_t5_umt5-xxl-enc-{dtype}",
                     "comfyui": f"umt5_xxl_{dtype}"}  # fmt: skip
            naming = "official" if layout == "official" else "diffusers"  # ComfyUI knows transformers' names
            return _Files(naming, stems[layout], hub_configs.umt5_json(config), single)


def _followed_by(
    tensors: Iterable[tuple[str, np.ndarray]], name: str, array: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    yield from tensors
    yield name, array
