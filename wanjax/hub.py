"""Foreign checkpoints in and out: config.json and safetensors of the diffusers and of Wan's own layout.

What each tensor is called and how it is laid out stands in :mod:`wanjax.models.rows`; here are the folders and the
configs. Every ``load_*`` takes one network's folder (or its single file) and returns ``(model, params)`` for
``model.apply({"params": params}, ...)``.
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

from wanjax import hub_configs, partition
from wanjax.models import rows as row_table
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config, UMT5Encoder
from wanjax.models.vae import VAEConfig, WanVAE
from wanjax.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM, TensorReader, open_weights, write_weights

LAYOUTS = ("diffusers", "official", "comfyui")
DTYPES = ("float32", "bfloat16", "float16")

_log = logging.getLogger(__name__)
_PathLike = str | os.PathLike[str]
_COMFYUI_STEM = "diffusion_model"
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_PARTS = {
    "transformer": "load_dit",
    "transformer_2": "load_dit",
    "high_noise_model": "load_dit",
    "low_noise_model": "load_dit",
    "vae": "load_vae",
    "text_encoder": "load_text_encoder",
}


def load_dit(folder: _PathLike, *, dtype: str | None = None, mesh: Mesh | None = None) -> tuple[WanDiT, Any]:
    """Opens a transformer in the diffusers or the official layout, told apart by its tensors' names.

    Sizes that ``config.json`` omits (the official one omits several) are read from the tensors' shapes. A single
    ``.safetensors`` file with official names, as ComfyUI keeps it, opens as well.

    Args:
        folder: ``transformer/``, ``high_noise_model/`` ..., or one safetensors file.
        dtype: of parameters and compute; None takes the stored one.
        mesh: devices to spread the parameters over; None is one device.

    Raises:
        FileNotFoundError: no such folder, no weights in it, or shards missing.
        ValueError: a pipeline's root (the message lists its parts), a config that describes another network, or
            tensors missing, unexpected or of the wrong shape (all in one message).
    """
    path = _one_network(folder)
    reader = _unprefixed(open_weights(path))
    naming = _naming(reader, dit_rows(DiTConfig(width=128, heads=1, layers=1, ffn=128)), "a Wan transformer")
    stored = _read_config(path) or json.loads(reader.metadata.get("config", "{}"))
    config, unused = hub_configs.dit_config(stored, naming, _shapes(reader), path)
    _warn_unused(path, unused)
    compute = _dtype(reader, dtype)
    model = WanDiT(replace(config, dtype=compute, param_dtype=compute), mesh)
    return model, _import(dit_rows(model.config), reader, naming, dtype, mesh)


def load_vae(path_or_folder: _PathLike, *, dtype: str | None = None) -> tuple[WanVAE, Any]:
    """Opens a codec in the diffusers layout (``vae/``) or a single safetensors file of it.

    A file without ``config.json`` beside it is taken for Wan2.1's codec, with the published statistics of its latents.

    Args and errors as for :func:`load_dit`.
    """
    path = _one_network(path_or_folder)
    reader = open_weights(path)
    naming = _naming(reader, vae_rows(VAEConfig()), "a Wan codec")
    config, unused = hub_configs.vae_config(_read_config(path), path)
    _warn_unused(path, unused)
    compute = _dtype(reader, dtype)
    model = WanVAE(replace(config, dtype=compute, param_dtype=compute))
    return model, _import(vae_rows(model.config), reader, naming, dtype, None)


def load_text_encoder(folder: _PathLike, *, dtype: str | None = None) -> tuple[UMT5Encoder, Any]:
    """Opens a umT5 encoder in the diffusers layout (``text_encoder/``, transformers' files).

    Args and errors as for :func:`load_dit`; ``config.json`` must be there, its sizes cannot be told from shapes.
    """
    path = _one_network(folder)
    reader = _untied(open_weights(path))
    naming = _naming(reader, umt5_rows(UMT5Config(num_layers=1)), "a umT5 encoder")
    stored = _read_config(path)
    if not stored:
        raise FileNotFoundError(f"{path}: no config.json; a text encoder's heads cannot be told from its tensors")
    config, unused = hub_configs.umt5_config(stored, path)
    _warn_unused(path, unused)
    compute = _dtype(reader, dtype)
    model = UMT5Encoder(replace(config, dtype=compute, param_dtype=compute))
    return model, _import(umt5_rows(model.config), reader, naming, dtype, None)


def open_layout(folder: _PathLike) -> dict[str, Any]:
    """Parts of a pipeline's root in the diffusers layout (the folder of ``model_index.json``).

    Returns:
        The folder (``pathlib.Path``) of each part that is there, among ``transformer`` (high noise),
        ``transformer_2`` (low noise), ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``, and
        ``boundary_ratio`` (float, None where there is one expert).

    Raises:
        FileNotFoundError: no ``model_index.json``, or a part that it names is missing.
    """
    root = pathlib.Path(folder)
    index_file = root / "model_index.json"
    if not index_file.is_file():
        raise FileNotFoundError(f"{root} has no model_index.json: give a pipeline's root in the diffusers layout")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    parts: dict[str, Any] = {"boundary_ratio": index.get("boundary_ratio")}
    for name in ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler"):
        if any(index.get(name) or ()):  # an absent part is [null, null]
            parts[name] = root / name
    missing = [name for name, part in parts.items() if isinstance(part, pathlib.Path) and not part.is_dir()]
    if missing:
        raise FileNotFoundError(f"{index_file} names parts that are not there: {', '.join(missing)}")
    return parts


def save_dit(
    folder: _PathLike,
    model: WanDiT,
    params: Any,
    *,
    layout: str = "diffusers",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a transformer; the parameters' own dtype is what is stored.

    Args:
        folder: made if absent; files of an earlier save are replaced once the new ones are complete.
        layout: "diffusers" (opened by ``WanTransformer3DModel.from_pretrained``), "official" (as in
            ``high_noise_model/``) or "comfyui" (``diffusion_model.safetensors`` alone, official names).
        max_shard_bytes: larger weights are split, with an index; ComfyUI's single file never is.

    Raises:
        ValueError: an unknown layout, or parameters that are not this model's.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    naming = "diffusers" if layout == "diffusers" else "official"
    config = hub_configs.dit_json(model.config, naming)
    single = layout == "comfyui"
    write_weights(
        pathlib.Path(folder),
        _export(dit_rows(model.config), params, naming),
        None if single else config,
        stem=_COMFYUI_STEM if single else DIFFUSERS_STEM,
        max_shard_bytes=2**62 if single else max_shard_bytes,
        metadata={"config": json.dumps(config)} if single else None,  # ComfyUI itself reads sizes from shapes
    )


def save_vae(folder: _PathLike, model: WanVAE, params: Any) -> None:
    """Writes a codec in the diffusers layout, as ``AutoencoderKLWan.from_pretrained`` opens it."""
    write_weights(
        pathlib.Path(folder),
        _export(vae_rows(model.config), params, "diffusers"),
        hub_configs.vae_json(model.config),
    )


def save_text_encoder(
    folder: _PathLike, model: UMT5Encoder, params: Any, *, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a text encoder in the diffusers layout, as ``UMT5EncoderModel.from_pretrained`` opens it."""
    write_weights(
        pathlib.Path(folder),
        _export(umt5_rows(model.config), params, "diffusers"),
        hub_configs.umt5_json(model.config),
        stem=TRANSFORMERS_STEM,
        max_shard_bytes=max_shard_bytes,
    )


class _View(Mapping[str, np.ndarray]):
    """A reader whose tensors go by other names and are cast when read."""

    def __init__(self, reader: TensorReader | _View, names: Mapping[str, str], dtype: str | None = None):
        self._reader, self._names, self._dtype = reader, names, dtype
        self.metadata: dict[str, str] = reader.metadata

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._reader[self._names[name]]
        return tensor if self._dtype is None else tensor.astype(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self._reader.shape_of(self._names[name])

    def dtype_of(self, name: str) -> str:
        return self._reader.dtype_of(self._names[name])


_Reader = TensorReader | _View


def _one_network(folder: _PathLike) -> pathlib.Path:
    """The path, if it is not a pipeline's root."""
    path = pathlib.Path(folder)
    parts = [name for name in _PARTS if (path / name).is_dir()]
    if parts or (path / "model_index.json").is_file():
        calls = ", ".join(f"{_PARTS[name]}({str(path / name)!r})" for name in parts)
        raise ValueError(f"{path} is the root of a pipeline, not one network; its parts: {calls or 'none of ours'}")
    return path


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


def _naming(reader: _Reader, rows: Sequence[Row], what: str) -> str:
    """The naming that the tensors follow; ``rows`` are those of any network of the kind."""
    names = {naming: {name for row in rows for name in row.foreign_names(naming)} for naming in row_table.NAMES}
    shared = set.intersection(*names.values())
    known = {naming: len((of_this - shared) & set(reader)) for naming, of_this in names.items()}
    best = max(known, key=lambda naming: known[naming])
    if not known[best]:
        expected = " or ".join(min(of_this - shared) for of_this in names.values())
        raise ValueError(
            f"{_source(reader)} is not {what}: expected tensors such as {expected}, found "
            f"{', '.join(sorted(reader)[:3]) or 'none'}"
        )
    return best


def _unprefixed(reader: TensorReader) -> _Reader:
    """Names without the prefix that ComfyUI's tools put before all of them."""
    for prefix in _PREFIXES:
        if reader and all(name.startswith(prefix) for name in reader):
            return _View(reader, {name.removeprefix(prefix): name for name in reader})
    return reader


def _untied(reader: TensorReader) -> _Reader:
    """The token table under one name; transformers stores it under either of two, or both."""
    shared, tied = "shared.weight", "encoder.embed_tokens.weight"
    names = {name: name for name in reader}
    if tied in names:
        if shared in names and not np.array_equal(reader[shared], reader[tied]):
            raise ValueError(f"{reader.source}: {shared} and {tied} differ, but umT5 has one table of tokens")
        names.setdefault(shared, tied)
        del names[tied]
    return _View(reader, names)


def _source(reader: _Reader) -> pathlib.Path:
    while isinstance(reader, _View):
        reader = reader._reader
    return reader.source


def _shapes(reader: _Reader) -> dict[str, tuple[int, ...]]:
    return {name: reader.shape_of(name) for name in reader}


def _dtype(reader: _Reader, dtype: str | None) -> str:
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


def _import(rows: Sequence[Row], reader: _Reader, naming: str, dtype: str | None, mesh: Mesh | None) -> Any:
    """Parameters on the device, or spread over the mesh; host memory is given back leaf by leaf."""
    if dtype is not None:
        reader = _View(reader, {name: name for name in reader}, jnp.dtype(dtype).name)
    try:
        params = row_table.import_tensors(rows, reader, naming)
    except ValueError as error:
        raise ValueError(f"{_source(reader)}: {error}") from error
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
