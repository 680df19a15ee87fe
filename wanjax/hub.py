"""Foreign checkpoints in and out: the networks of the diffusers layout, of Wan's own and of ComfyUI.

What each tensor is called and how it is laid out stands in :mod:`wanjax.models.rows`. Every ``load_*`` takes one
network's folder (or its single file) and returns ``(model, params)`` for ``model.apply({"params": params}, ...)``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wanjax import hub_configs, hub_float8, partition
from wanjax.hub_layouts import is_official, one_network, open_layout
from wanjax.hub_readers import Reader, View, shapes, unprefixed, untied
from wanjax.models import rows as row_table
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config, UMT5Encoder
from wanjax.models.vae import VAEConfig, WanVAE
from wanjax.torch_files import SUFFIXES as TORCH_SUFFIXES
from wanjax.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM, open_weights, write_weights

__all__ = [
    "DTYPES", "LAYOUTS", "NETWORK_LAYOUTS", "dit_config", "is_official", "load_dit", "load_text_encoder", "load_vae",
    "open_layout", "save_dit", "save_text_encoder", "save_vae",
]  # fmt: skip

LAYOUTS = ("diffusers", "official", "comfyui")  # of a transformer
NETWORK_LAYOUTS = ("diffusers", "official")  # of the codec and of the text encoder
DTYPES = ("float32", "bfloat16", "float16")

_log = logging.getLogger(__name__)
_PathLike = str | os.PathLike[str]
_COMFYUI_STEM = "diffusion_model"
_OFFICIAL_TEXT_STEM = "models_t5_umt5-xxl-enc-"
_SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_dit(folder: _PathLike, *, dtype: str | None = None, mesh: Mesh | None = None) -> tuple[WanDiT, Any]:
    """Opens a transformer in the diffusers or the official layout, told apart by its tensors' names.

    Sizes that ``config.json`` omits (the official one omits several) are read from the tensors' shapes. A single
    ``.safetensors`` file with official names, as ComfyUI keeps it, opens as well, ``fp8_scaled`` included: 8-bit
    weights are read times their scale.

    Args:
        folder: ``transformer/``, ``high_noise_model/`` ..., or one file.
        dtype: of parameters and compute; None takes the stored one, bfloat16 for 8-bit floats.
        mesh: devices to spread the parameters over; None is one device.

    Raises:
        FileNotFoundError: no such folder, no weights in it, or shards missing.
        ValueError: a pipeline's root (the message lists its parts), a damaged file, a config that describes another
            network, or tensors missing, unexpected or of the wrong shape (all in one message).
    """
    config, reader, naming = _open_dit(folder, dtype)
    model = WanDiT(config, mesh)
    return model, _import(dit_rows(config), reader, naming, dtype, mesh)


def dit_config(folder: _PathLike, *, dtype: str | None = None) -> DiTConfig:
    """Of the transformer that :func:`load_dit` opens; reads headers, no weights. Args and errors as there."""
    return _open_dit(folder, dtype)[0]


def _open_dit(folder: _PathLike, dtype: str | None) -> tuple[DiTConfig, Reader, str]:
    """Shape, tensors and naming of a transformer."""
    path = one_network(folder)
    reader = hub_float8.widened(unprefixed(open_weights(path)), dtype)
    naming = _naming(reader, dit_rows(DiTConfig(width=128, heads=1, layers=1, ffn=128)), "a Wan transformer")
    stored = _stored_config(path, reader)
    config, unused = hub_configs.dit_config(stored, naming, shapes(reader), path)
    _warn_unused(path, unused)
    compute = _dtype(reader, dtype)
    return replace(config, dtype=compute, param_dtype=compute), reader, naming


def load_vae(path_or_folder: _PathLike, *, dtype: str | None = None) -> tuple[WanVAE, Any]:
    """Opens a codec: diffusers' ``vae/``, a single safetensors file, or the official ``Wan2.1_VAE.pth``.

    What no config states is read from the tensors; the statistics of latents are then the published ones.

    Args and errors as for :func:`load_dit`.
    """
    path = one_network(path_or_folder)
    reader = hub_float8.widened(open_weights(path), dtype)
    naming = _naming(reader, vae_rows(VAEConfig()), "a Wan codec")
    stored = _stored_config(path, reader) or hub_configs.vae_sizes(naming, shapes(reader))
    config, unused = hub_configs.vae_config(stored, path)
    _warn_unused(path, unused)
    compute = _dtype(reader, dtype)
    model = WanVAE(replace(config, dtype=compute, param_dtype=compute))
    return model, _import(vae_rows(model.config), reader, naming, dtype, None)


def load_text_encoder(folder: _PathLike, *, dtype: str | None = None) -> tuple[UMT5Encoder, Any]:
    """Opens a umT5 encoder: diffusers' ``text_encoder/``, or the official ``models_t5_umt5-xxl-enc-bf16.pth``.

    Without a config, sizes are read from the tensors and the rest is umT5's (128 as the farthest distance told apart).

    Args and errors as for :func:`load_dit`.
    """
    path = one_network(folder)
    reader = hub_float8.widened(untied(open_weights(path)), dtype)
    naming = _naming(reader, umt5_rows(UMT5Config(num_layers=1)), "a umT5 encoder")
    stored = _stored_config(path, reader) or hub_configs.umt5_sizes(naming, shapes(reader))
    config, unused = hub_configs.umt5_config(stored, path)
    _warn_unused(path, unused)
    compute = _dtype(reader, dtype)
    model = UMT5Encoder(replace(config, dtype=compute, param_dtype=compute))
    return model, _import(umt5_rows(model.config), reader, naming, dtype, None)


def save_dit(
    folder: _PathLike,
    model: WanDiT,
    params: Any,
    *,
    layout: str = "diffusers",
    max_shard_bytes: int = 5_000_000_000,
    fp8: bool = False,
) -> float:
    """Writes a transformer; the parameters' own dtype is what is stored.

    Args:
        folder: made if absent; files of an earlier save are replaced once the new ones are complete.
        layout: "diffusers" (opened by ``WanTransformer3DModel.from_pretrained``), "official" (as in
            ``high_noise_model/``) or "comfyui" (``diffusion_model.safetensors`` alone, official names).
        max_shard_bytes: larger weights are split, with an index; ComfyUI's single file never is.
        fp8: of the "comfyui" layout: the matrices of all blocks in 8 bits with a scale each (``fp8_scaled``).

    Returns:
        Root mean square of what 8 bits changed relative to that of the matrices; 0.0 without ``fp8``.

    Raises:
        ValueError: an unknown layout, ``fp8`` in another layout, or parameters that are not this model's.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    single = layout == "comfyui"
    if fp8 and not single:
        raise ValueError(f"fp8 is of the layout 'comfyui' alone; layout {layout!r} keeps the parameters' own type")
    naming = "diffusers" if layout == "diffusers" else "official"
    config = hub_configs.dit_json(model.config, naming)
    table = dit_rows(model.config)
    matrices = [name for row in table if row.stacked and len(row.shape) == 2 and row.layout == "linear"
                for name in row.foreign_names(naming)]  # fmt: skip
    scaled = hub_float8.ScaledFloat8(matrices)
    tensors = _export(table, params, naming)
    write_weights(
        pathlib.Path(folder),
        scaled(tensors) if fp8 else tensors,
        None if single else config,
        stem=_COMFYUI_STEM if single else DIFFUSERS_STEM,
        max_shard_bytes=2**62 if single else max_shard_bytes,
        metadata={"config": json.dumps(config)} if single else None,  # ComfyUI itself reads sizes from shapes
    )
    return scaled.relative_error


def save_vae(folder: _PathLike, model: WanVAE, params: Any, *, layout: str = "diffusers") -> None:
    """Writes a codec.

    Args:
        folder: made if absent.
        layout: "diffusers" (as ``AutoencoderKLWan.from_pretrained`` opens it) or "official": ``Wan2.1_VAE.safetensors``
            or ``Wan2.2_VAE.safetensors`` with the names of the ``.pth`` file, its sizes in the file's header.

    Raises:
        ValueError: an unknown layout, or parameters that are not this model's.
    """
    official = "Wan2.2_VAE" if model.config.residual else "Wan2.1_VAE"
    _write_network(folder, vae_rows(model.config), params, layout, hub_configs.vae_json(model.config),
                   {"diffusers": DIFFUSERS_STEM, "official": official})  # fmt: skip


def save_text_encoder(
    folder: _PathLike,
    model: UMT5Encoder,
    params: Any,
    *,
    layout: str = "diffusers",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a text encoder.

    Args:
        folder: made if absent.
        layout: "diffusers" (as ``UMT5EncoderModel.from_pretrained`` opens it) or "official": one file
            ``models_t5_umt5-xxl-enc-bf16.safetensors`` (or fp16, fp32) with the names of the ``.pth`` called so.
        max_shard_bytes: larger weights are split, with an index; the official file never is.

    Raises:
        ValueError: an unknown layout, or parameters that are not this model's.
    """
    official = _OFFICIAL_TEXT_STEM + _SHORT_DTYPES[model.config.param_dtype]
    _write_network(folder, umt5_rows(model.config), params, layout, hub_configs.umt5_json(model.config),
                   {"diffusers": TRANSFORMERS_STEM, "official": official}, max_shard_bytes)  # fmt: skip


def _write_network(
    folder: _PathLike,
    rows: Sequence[Row],
    params: Any,
    layout: str,
    config: Mapping[str, Any],
    stems: Mapping[str, str],
    max_shard_bytes: int = 2**62,
) -> None:
    """A codec or a text encoder; the official layout has no ``config.json`` for them."""
    if layout not in NETWORK_LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(NETWORK_LAYOUTS)}")
    official = layout == "official"
    write_weights(
        pathlib.Path(folder),
        _export(rows, params, layout),
        None if official else config,
        stem=stems[layout],
        max_shard_bytes=2**62 if official else max_shard_bytes,
        metadata={"config": json.dumps(config)} if official else None,
    )


def _stored_config(path: pathlib.Path, reader: Reader) -> dict[str, Any]:
    """Settings in the file's own header, or else in ``config.json``; a ``.pth`` has none."""
    own: dict[str, Any] = json.loads(reader.metadata.get("config", "{}"))
    # beside a .pth of Wan's releases lies the transformer's config.json
    return own or ({} if path.suffix in TORCH_SUFFIXES else _read_config(path))


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    """``config.json`` of a folder or beside a file; empty where there is none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, expected an object of settings")
    return config


def _naming(reader: Reader, rows: Sequence[Row], what: str) -> str:
    """The naming that the tensors follow; ``rows`` are those of any network of the kind."""
    names = {naming: {name for row in rows for name in row.foreign_names(naming)} for naming in row_table.NAMES}
    shared = set.intersection(*names.values())
    known = {naming: len((of_this - shared) & set(reader)) for naming, of_this in names.items()}
    best = max(known, key=lambda naming: known[naming])
    if not known[best]:
        expected = " or ".join(min(of_this - shared) for of_this in names.values())
        raise ValueError(
            f"{reader.source} is not {what}: expected tensors such as {expected}, found "
            f"{', '.join(sorted(reader)[:3]) or 'none'}"
        )
    return best


def _dtype(reader: Reader, dtype: str | None) -> str:
    """The asked compute type, or the one in which most of the weights are stored."""
    if dtype is not None:
        name = jnp.dtype(dtype).name
        if name not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return name
    sizes: Counter[str] = Counter()
    for name in reader:
        sizes[reader.dtype_of(name)] += math.prod(reader.shape_of(name))
    return sizes.most_common(1)[0][0]


def _warn_unused(path: pathlib.Path, unused: Sequence[str]) -> None:
    if unused:
        _log.warning("%s: config.json has settings that have no meaning here: %s", path, ", ".join(unused))


def _import(rows: Sequence[Row], reader: Reader, naming: str, dtype: str | None, mesh: Mesh | None) -> Any:
    """Parameters on the device, or spread over the mesh; host memory is given back leaf by leaf."""
    if dtype is not None:
        reader = View(reader, {name: name for name in reader}, jnp.dtype(dtype).name)
    else:
        _refuse_mixed(rows, reader, naming)
    try:
        params = row_table.import_tensors(rows, reader, naming)
    except ValueError as error:
        raise ValueError(f"{reader.source}: {error}") from error
    leaves, structure = jax.tree.flatten(params)
    del params
    if mesh is None:
        places: list[Any] = [None] * len(leaves)
    else:
        # No type matters for placement, so the shapes may carry any.
        shapes = row_table.shapes(rows, np.float32)
        places = jax.tree.leaves(partition.shardings(mesh, row_table.logical_axes(rows), shapes))
    for i, (leaf, place) in enumerate(zip(leaves, places, strict=True)):
        if place is None:
            leaves[i] = jnp.asarray(leaf)
        else:
            leaves[i] = jax.make_array_from_callback(leaf.shape, place, leaf.__getitem__)
    return jax.tree.unflatten(structure, leaves)


def _refuse_mixed(rows: Sequence[Row], reader: Reader, naming: str) -> None:
    """Layers of one row become one array, which would round those stored in a wider type than the first."""
    for row in rows:
        stored = {reader.dtype_of(name) for name in row.foreign_names(naming) if name in reader}
        if len(stored) > 1:
            raise ValueError(
                f"{reader.source}: {getattr(row, naming)} is stored as {' and '.join(sorted(stored))} in different "
                "layers: name the type to read all of them in, such as dtype='float32'"
            )


def _export(rows: Sequence[Row], params: Any, naming: str) -> Iterator[tuple[str, np.ndarray]]:
    """Foreign tensors one row after the other.

    Raises:
        ValueError: before the first tensor, if the parameters are not the network's.
    """
    expected = row_table.shapes(rows, np.float32)
    found, wanted = ({jax.tree_util.keystr(at) for at, _ in jax.tree.leaves_with_path(t)} for t in (params, expected))
    if found != wanted:
        raise ValueError(
            f"these parameters are not this network's: unexpected {sorted(found - wanted)[:5]}, missing "
            f"{sorted(wanted - found)[:5]}"
        )
    for row in rows:
        array = row_table.pick(params, row)
        if tuple(np.shape(array)) != row.full_shape:
            raise ValueError(
                f"parameter {'/'.join(row.path)} has shape {tuple(np.shape(array))}, the network's config asks for "
                f"{row.full_shape}"
            )
    for row in rows:
        yield from row_table.to_foreign(row, np.asarray(row_table.pick(params, row)), naming).items()
