"""Opens one network of any layout: found, told apart by its tensors' names and checked, none of its weights read."""

from __future__ import annotations

import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from wanjax import hub_configs, hub_float8, manifest
from wanjax.file_digest import sampled_digest
from wanjax.hub_layouts import is_orbax, one_network
from wanjax.hub_names import resolve_network
from wanjax.hub_networks import Config, ForeignWeights, Network, most_common, rows_of
from wanjax.hub_readers import Reader, View, shapes, unprefixed, untied
from wanjax.models import rows as row_table
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae_config import VAEConfig
from wanjax.torch_files import SUFFIXES as TORCH_SUFFIXES
from wanjax.weight_files import FLOAT8, TensorReader, open_weights

DTYPES = ("float32", "bfloat16", "float16")

_log = logging.getLogger(__name__)
_PathLike = str | os.PathLike[str]
_Shapes = Mapping[str, tuple[int, ...]]


class _Kind(NamedTuple):
    """How networks of one kind are opened.

    Attributes:
        what: in messages.
        rows: of any network of the kind; foreign names do not depend on sizes.
        named: the reader with the names that rows know.
        config: (stored config, naming, shapes, path) -> config and the settings in it that mean nothing to us.
    """

    what: str
    rows: Sequence[row_table.Row]
    named: Callable[[Reader], Reader]
    config: Callable[[Mapping[str, Any], str, _Shapes, pathlib.Path], tuple[Config, list[str]]]


_KINDS: dict[str, _Kind] = {
    "transformer": _Kind(
        "a Wan transformer",
        dit_rows(DiTConfig(width=128, heads=1, layers=1, ffn=128)),
        unprefixed,
        hub_configs.dit_config,
    ),
    "vae": _Kind(
        "a Wan codec",
        vae_rows(VAEConfig()),
        lambda reader: reader,
        lambda stored, naming, found, path: hub_configs.vae_config(
            stored or hub_configs.vae_sizes(naming, found), path
        ),
    ),
    "text_encoder": _Kind(
        "a umT5 encoder",
        umt5_rows(UMT5Config(num_layers=1)),
        untied,
        lambda stored, naming, found, path: hub_configs.umt5_config(
            stored or hub_configs.umt5_sizes(naming, found), path
        ),
    ),
}


def open_network(folder: _PathLike, kind: str | None = None, *, dtype: str | None = None) -> Network:
    """Opens a network in any layout.

    Args:
        folder: of one network, or its single file; or its name on the Hugging Face Hub, see `wanjax.hub_names`.
        kind: "transformer", "vae" or "text_encoder"; None tells it from the tensors' names.
        dtype: in which to read and compute; None keeps the stored types, bfloat16 for 8-bit floats, and computes in the
            one in which most weights are stored.

    Raises:
        FileNotFoundError: no such folder, no weights in it, or shards missing.
        ValueError: a pipeline's root (the message lists its parts), a damaged file, a config that describes another
            network, or tensors missing, unexpected or of the wrong shape (all in one message).
    """
    path = one_network(resolve_network(folder))
    if dtype is not None and jnp.dtype(dtype).name not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if is_orbax(path):
        from wanjax import hub_orbax  # importing orbax takes a second that other layouts need not wait

        return hub_orbax.open_network(path, kind, dtype=dtype)
    raw = open_weights(path)
    kind = kind or _kind_of(raw)
    known = _KINDS[kind]
    reader = hub_float8.widened(known.named(raw), dtype)
    naming, _ = _naming(reader, known)
    found = shapes(reader)
    config, unused = known.config(_stored_config(path, reader), naming, found, path)
    if unused:
        _log.warning("%s: config.json has settings that have no meaning here: %s", path, ", ".join(unused))
    if dtype is not None:
        reader = View(reader, {name: name for name in reader}, jnp.dtype(dtype).name)
    try:
        row_table.check(rows_of(config), found, naming)
    except ValueError as error:
        raise ValueError(f"{reader.source}: {error}") from error
    network = Network(kind, config, ForeignWeights(reader, naming), str(reader.source))
    compute = most_common(network.specs(naming))
    return replace(network, config=replace(config, dtype=compute, param_dtype=compute))


def digest(folder: _PathLike) -> str:
    """Tells one network's weights from others without reading them all, wherever the folder or file lies.

    See :func:`wanjax.file_digest.sampled_digest`; ``config.json`` is part of it where it is the network's own.
    """
    path = one_network(folder)
    if is_orbax(path):
        files = [file for file in path.rglob("*") if file.is_file() and file.name != manifest.NAME]
        return sampled_digest((str(file.relative_to(path)), file) for file in files)
    files = list(open_weights(path).files)
    if path.is_dir() and (path / "config.json").is_file():
        files.append(path / "config.json")
    return sampled_digest((file.name, file) for file in files)


def holds_float8(path: pathlib.Path) -> bool:
    """Whether some of a network's weights are stored as 8-bit floats."""
    if is_orbax(path):
        return False
    raw = open_weights(path)
    return any(raw.stored_as(name) in FLOAT8 for name in raw)


def config_from(kind: str, stored: Mapping[str, Any], path: pathlib.Path) -> Config:
    """The config of an orbax folder, whose ``config.json`` is that of the diffusers layout and states all sizes."""
    return _KINDS[kind].config(stored, "diffusers", {}, path)[0]


def config_from_shapes(kind: str, found: _Shapes, path: pathlib.Path) -> Config:
    """The config of official tensors that nothing is stored beside."""
    return _KINDS[kind].config({}, "official", found, path)[0]


def _kind_of(reader: TensorReader) -> str:
    """What a set of weights is, by the names of its tensors."""
    known = {}
    for kind, known_kind in _KINDS.items():
        try:
            known[kind] = _naming(known_kind.named(reader), known_kind)[1]
        except ValueError:
            continue
    if not known:
        raise ValueError(
            f"{reader.source} is neither {', '.join(kind.what for kind in _KINDS.values())}: found tensors such as "
            f"{', '.join(sorted(reader)[:3]) or 'none'}"
        )
    return max(known, key=lambda kind: known[kind])


def _naming(reader: Reader, kind: _Kind) -> tuple[str, int]:
    """The naming that the tensors follow, and how many of them have such names."""
    names = {naming: {name for row in kind.rows for name in row.foreign_names(naming)} for naming in row_table.NAMES}
    shared = set.intersection(*names.values())
    known = {naming: len((of_this - shared) & set(reader)) for naming, of_this in names.items()}
    best = max(known, key=lambda naming: known[naming])
    if not known[best]:
        expected = " or ".join(min(of_this - shared) for of_this in names.values())
        raise ValueError(
            f"{reader.source} is not {kind.what}: expected tensors such as {expected}, found "
            f"{', '.join(sorted(reader)[:3]) or 'none'}"
        )
    return best, known[best]


def _stored_config(path: pathlib.Path, reader: Reader) -> dict[str, Any]:
    """Settings in the file's own header, or else in ``config.json``; a ``.pth`` has none."""
    own: dict[str, Any] = json.loads(reader.metadata.get("config", "{}"))
    # beside a .pth of Wan's releases lies the transformer's config.json
    return own or ({} if path.suffix in TORCH_SUFFIXES else read_config(path))


def read_config(path: pathlib.Path) -> dict[str, Any]:
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
