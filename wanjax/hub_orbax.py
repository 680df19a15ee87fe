"""Our own layout: per network an orbax checkpoint of our parameter tree, with ``config.json`` and a manifest beside it.

Stacked rows stay stacked, in chunks of one layer or less, uncompressed (weights hardly compress), each a file of its
own: what a device needs is read without the rest, and a damaged file names its tensor and layer.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from orbax.checkpoint import v1 as ocp

from wanjax import array_files, hub_configs, manifest
from wanjax.hub_layouts import ORBAX_PARAMS
from wanjax.hub_networks import Index, Network, most_common, rows_of
from wanjax.hub_opening import config_from, read_config
from wanjax.models import rows as row_table
from wanjax.models.rows import Row
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae_config import VAEConfig

# bytes of one file: on a fast disk orbax holds 128 of them beside the array that they are of
_PIECE = 16 << 20
_GROUP = 256 << 20  # bytes; small rows are read and written together up to here
_CLASSES = {"WanTransformer3DModel": "transformer", "AutoencoderKLWan": "vae"}  # the third has none in its config


class OrbaxWeights:
    """Tensors of an orbax checkpoint; one group of rows is held in memory, the last that was asked for.

    Args:
        folder: of the checkpoint.
        rows: of the network, all of them in it.
        metadata: shape and dtype of each row's array.
        dtype: to read in; None keeps the stored ones.
    """

    def __init__(
        self, folder: pathlib.Path, rows: Sequence[Row], metadata: dict[tuple[str, ...], Any], dtype: str | None = None
    ):
        self._folder, self._metadata, self._dtype = folder, metadata, dtype
        self._groups = list(_groups(rows, lambda row: metadata[row.path].dtype))
        self._held: dict[tuple[str, ...], np.ndarray] = {}

    def name_of(self, row: Row) -> str:
        return "/".join(row.path)

    def dtype_of(self, row: Row, layer: int) -> str:
        return self._dtype or np.dtype(self._metadata[row.path].dtype).name

    def read(self, row: Row, layer: int, index: Index = ...) -> np.ndarray:
        if row.path not in self._held:
            self._held = {}  # before the next ones come
            group = next(group for group in self._groups if row.path in {one.path for one in group})
            self._held = self._load(group, lambda one: self._metadata[one.path])
        array = self._held[row.path]
        part = (array[layer] if row.stacked else array)[index]
        return part if self._dtype is None else part.astype(self._dtype)

    def placed(self, rows: tuple[Row, ...], shardings: list[Sharding] | None) -> list[jax.Array]:
        if shardings is None:
            return [jax.device_put(leaf) for leaf in self._each(rows)]
        places = {row.path: place for row, place in zip(rows, shardings, strict=True)}
        out: dict[tuple[str, ...], jax.Array] = {}
        for group in self._groups:
            out |= self._load(group, lambda row: jax.ShapeDtypeStruct(
                row.full_shape, self.dtype_of(row, 0), sharding=places[row.path]))  # fmt: skip
        return [out[row.path] for row in rows]

    def _each(self, rows: Iterable[Row]) -> Iterator[np.ndarray]:
        for row in rows:
            self.read(row, 0)
            array = self._held[row.path]
            yield array if self._dtype is None else array.astype(self._dtype)

    def _load(self, group: Sequence[Row], wanted: Any) -> dict[tuple[str, ...], Any]:
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        context.memory.read_concurrent_bytes = _GROUP if len(group) > 1 else None
        try:
            with context, array_files.quiet():
                tree = ocp.load(self._folder, row_table.tree(group, wanted))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self._folder} cannot be read ({str(error).strip()[:300]}): convert it again") from error
        return {row.path: row_table.pick(tree, row) for row in group}


def open_network(folder: pathlib.Path, kind: str | None = None, *, dtype: str | None = None) -> Network:
    """Opens the folder of one network; as :func:`wanjax.hub_opening.open_network`.

    Raises:
        ValueError: files that the manifest lists are missing or of another size, ``config.json`` describes another kind
            of network, or arrays missing, unexpected or of the wrong shape.
    """
    if problems := manifest.check_sizes(folder):
        raise ValueError(f"{folder} is damaged: {'; '.join(problems[:5])}: convert or copy it again")
    stored = read_config(folder)
    found = _CLASSES.get(stored.get("_class_name", ""), "text_encoder")
    if kind not in (None, found):
        raise ValueError(f"{folder} holds a network of the kind {found}, not {kind}")
    config = config_from(found, stored, folder)
    rows = rows_of(config)
    metadata = _metadata(folder)
    _check(rows, metadata, folder)
    cast = None if dtype is None else jnp.dtype(dtype).name
    network = Network(found, config, OrbaxWeights(folder.absolute() / ORBAX_PARAMS, rows, metadata, cast), str(folder))
    compute = most_common(network.specs("official"))
    return replace(network, config=replace(config, dtype=compute, param_dtype=compute))


def write_network(network: Network, folder: pathlib.Path, *, source: str) -> None:
    """Writes a network, a group of rows at a time: memory holds the largest row, or several small ones.

    Args:
        folder: made if absent.
        source: what the weights were made from, for the manifest.

    Raises:
        FileExistsError: weights in this layout are there already.
        ValueError: layers of one row that are stored in different types.
    """
    for row in network.rows:
        network.dtype_of(row)
    path = folder.absolute() / ORBAX_PARAMS
    if path.exists():
        raise FileExistsError(f"{path} exists: remove it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{ORBAX_PARAMS}.*"):  # of an interrupted write; orbax would go on from it
        shutil.rmtree(left)
    (folder / "config.json").write_text(json.dumps(_json(network), indent=2) + "\n", encoding="utf-8")
    with _saving(), array_files.quiet():
        for group in _groups(network.rows, network.dtype_of):
            ocp.partial.save(path, row_table.tree(group, network.stacked))
        ocp.partial.finalize(path)
    manifest.write(folder, layout="orbax", source=source)


def _json(network: Network) -> dict[str, Any]:
    """As of the diffusers layout: one way to state a network's sizes."""
    config = network.config
    if isinstance(config, VAEConfig):
        return hub_configs.vae_json(config)
    if isinstance(config, UMT5Config):
        return hub_configs.umt5_json(config)
    return hub_configs.dit_json(config, "diffusers")


def _groups(rows: Iterable[Row], dtype_of: Any) -> Iterator[list[Row]]:
    """Rows in order, in groups that are not larger than a row of their own or ``_GROUP``."""
    group: list[Row] = []
    filled = 0
    for row in rows:
        size = int(np.prod(row.full_shape, dtype=np.int64)) * np.dtype(dtype_of(row)).itemsize
        if group and filled + size > _GROUP:
            yield group
            group, filled = [], 0
        group.append(row)
        filled += size
    if group:
        yield group


def _saving() -> ocp.Context:
    context = array_files.context()
    context.array.saving.scoped_storage_options_creator = _storage
    context.memory.deepcopy_host_arrays = False  # nobody changes them meanwhile
    return context


def _storage(path: Any, array: np.ndarray) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    """Large arrays are split at their first axis first, which is that of layers."""
    if array.nbytes <= _PIECE:
        return None
    layers = (0,) if array.ndim > 2 else None
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=_PIECE, shard_axes=layers)


def _metadata(folder: pathlib.Path) -> dict[tuple[str, ...], Any]:
    try:
        with array_files.quiet():
            tree = ocp.metadata(folder.absolute() / ORBAX_PARAMS).metadata
    except (OSError, ValueError, KeyError, TypeError) as error:
        place = folder / ORBAX_PARAMS
        raise ValueError(f"{place} is no readable orbax checkpoint ({error}): convert it again") from error
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}


def _check(rows: Sequence[Row], found: dict[tuple[str, ...], Any], folder: pathlib.Path) -> None:
    wanted = {row.path: row.full_shape for row in rows}
    problems = [f"missing {'/'.join(path)}" for path in wanted.keys() - found.keys()]
    problems += [f"unexpected {'/'.join(path)}" for path in found.keys() - wanted.keys()]
    problems += [
        f"wrong shape {'/'.join(path)}: {tuple(found[path].shape)}, expected {shape}"
        for path, shape in wanted.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    if problems:
        raise ValueError(f"{folder}: the orbax checkpoint does not fit config.json:\n  " + "\n  ".join(problems[:40]))
