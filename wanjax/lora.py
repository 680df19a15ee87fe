"""LoRA files of other software, read for one transformer and merged into its weights.

:mod:`wanjax.lora_factors` keeps them beside the weights instead.

Every way of naming that is in use for Wan is read, of each key: a prefix (``diffusion_model.``, ``transformer.``,
``base_model.model.``, ``lora_unet_`` with underscores for dots), a tensor's name in the official or in the diffusers
layout, which are read off the network's rows, and what the tensor is (:data:`_ROLES`). W' = W + weight · scale · up ·
down, scale = alpha / rank and 1 where no alpha is stored (Hu et al. 2021, arXiv:2106.09685); ``.diff`` and
``.diff_b`` are added to the weight and the bias as they are.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wanjax.models import rows as row_table
from wanjax.models.rows import Row, Shape
from wanjax.weight_files import SUFFIX, TensorReader, open_weights

# end of a key -> what the tensor is. "default" is the name that peft gives an adapter which was given none.
_ROLES = {
    ".lora_A.weight": "down", ".lora_A.default.weight": "down", ".lora_down.weight": "down",
    ".lora_B.weight": "up", ".lora_B.default.weight": "up", ".lora_up.weight": "up",
    ".lora_B.bias": "up_bias", ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha", ".diff": "diff", ".diff_b": "diff_b",
}  # fmt: skip
_PREFIX = re.compile(r"(base_model\.model\.)?(model\.)?(diffusion_model\.|transformer(_2)?\.)?")
_LOW_NOISE = re.compile(r"(base_model\.model\.)?transformer_2\.")  # what diffusers calls the low-noise expert
_UNDERSCORED = "lora_unet_"
_MATRICES = ("linear", "conv2d", "conv3d")  # layouts of weights that factors of low rank can change
_SHOWN = 40

_log = logging.getLogger(__name__)

Place = tuple[tuple[str, ...], int]  # a row's path and the layer, 0 in a row that is not stacked


@dataclasses.dataclass(frozen=True)
class Factors:
    """``scale`` · up [O, r] · down [r, ...], the names of two tensors of the file."""

    down: str
    up: str
    scale: float


@dataclasses.dataclass(frozen=True)
class Whole:
    """``scale`` · a tensor of the shape of what it changes."""

    name: str
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA whose every tensor has found its place; its arrays are read when they are merged.

    Attributes:
        file: where it lies, or the run that it was trained in.
        sha256: of its bytes, hexadecimal.
        tensors: the open file, or what would be in it.
        changes: what it does, for each tensor of the network that it changes.
    """

    file: pathlib.Path
    sha256: str
    tensors: Mapping[str, np.ndarray]
    changes: Mapping[Place, tuple[Factors | Whole, ...]]

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32. Raises: ValueError where it is not finite."""
        array = self.tensors[name].astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.file}: tensor {name} holds values that are not finite: download it again")
        return array


def parse(text: str) -> list[tuple[pathlib.Path, float]]:
    """Files and weights from ``file[:weight],file[:weight],...``; a file without a weight gets 1.

    Raises:
        ValueError: a part that is not of this form, or a file that is named twice.
    """
    found: list[tuple[pathlib.Path, float]] = []
    for part in text.split(","):
        name, suffix, rest = part.strip().rpartition(SUFFIX)
        try:
            weight = float(rest[1:]) if rest else 1.0
        except ValueError:
            weight = math.nan
        if not name or not suffix or (rest and rest[0] != ":") or not math.isfinite(weight):
            raise ValueError(f"LoRA {part.strip()!r}: expected a {SUFFIX} file, or file:weight such as a{SUFFIX}:0.8")
        found.append((pathlib.Path(name + suffix), weight))
    twice = [str(file) for i, (file, _) in enumerate(found) if file in [earlier for earlier, _ in found[:i]]]
    if twice:
        raise ValueError(f"LoRA {', '.join(twice)} is named twice: name it once, with the sum of the weights")
    return found


def read_lora(file: pathlib.Path, rows: Sequence[Row], *, expert: str | None = None) -> Lora:
    """Opens a LoRA file for the network of ``rows``.

    Args:
        expert: "high" or "low" noise, which the network is; None where there is one network or nobody knows. It decides
            where keys begin with ``transformer_2.``: they are for "low" alone, and of a file that has others beside
            them "low" takes these and "high" the others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file; or one error that lists every tensor which has no place in the
            network (with the nearest name that has), half of a pair, ranks that disagree and wrong shapes.
    """
    if not file.is_file():
        raise FileNotFoundError(f"LoRA {str(file)!r} is not a file: give the {SUFFIX} file itself")
    tensors = open_weights(file)
    if not tensors:
        raise ValueError(f"LoRA {str(file)!r} holds no tensors")
    names = _Names(rows)
    places: dict[Place, dict[str, str]] = defaultdict(dict)  # of weights -> role -> key
    modules: dict[Place, str] = {}
    problems: list[tuple[str, str]] = []  # key, what is wrong with it
    keys, prefix = _of_expert(tensors, file, expert)
    for key in sorted(keys):
        role, module = _role(key)
        place = names.place(module) if role else None
        if role is None or place is None:
            problems.append((key, names.describe(module)))
        elif role in places[place]:
            problems.append((key, f"the same tensor as {places[place][role]}"))
        else:
            if role != "alpha":
                tensors.dtype_of(key)  # refuses quantised ones
            places[place][role] = key
            modules[place] = _PREFIX.sub("", module, count=1)
    scale_of = _peft_scale(tensors, file, prefix)
    changes: dict[Place, list[Factors | Whole]] = defaultdict(list)
    for place, roles in places.items():
        _resolve(place, roles, tensors, names, functools.partial(scale_of, modules[place]), changes, problems)
    if problems:
        shown = "\n  ".join(f"{key}: {what}" for key, what in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(
            f"LoRA {str(file)!r} does not fit the network ({len(problems)} of its {len(tensors)} tensors):\n"
            f"  {shown}{more}"
        )
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Lora(file, sha256, tensors, {place: tuple(found) for place, found in changes.items()})


def merge(params: Any, rows: Sequence[Row], loras: Sequence[tuple[Lora, float]], *, donate: bool = False) -> Any:
    """Parameters with LoRAs added: W' = W + Σ weight · scale · up · down, summed in float32, rounded once.

    Layer by layer: beside the parameters there are one layer's factors and product, in float32.

    Args:
        params: tree of the network's arrays, which may be sharded.
        rows: of the network that the LoRAs were read for.
        loras: each with its weight.
        donate: whether ``params`` is given up; each changed leaf is then written in place. Otherwise it stays as it
            is, and the result holds a copy of each changed leaf.
    Returns: tree like ``params``, in the same dtypes and shardings; leaves that no LoRA changes are the same arrays.
    Raises: ValueError where the parameters are not those of ``rows``, a weight or a factor is not finite.
    """
    check(rows, loras)

    def merged(row: Row) -> Any:
        leaf = row_table.pick(params, row)
        if tuple(leaf.shape) != row.full_shape:
            raise ValueError(f"parameter {'/'.join(row.path)} has shape {leaf.shape}, expected {row.full_shape}")
        own = not donate
        for layer in range(max(row.stacked, 1)):
            up, down, whole = summed(row, layer, loras)
            if up is None and whole is None:
                continue
            leaf = jnp.asarray(leaf)
            if jax.typeof(leaf).memory_space == jax.memory.Space.Host:
                raise ValueError(f"parameter {'/'.join(row.path)} lies in host memory, where nothing is merged: merge "
                                 "before it is placed there, or keep the LoRA beside the parameters")  # fmt: skip
            add = _adder(row.layout, row.foreign_shape, bool(row.stacked), leaf.sharding, not own)
            leaf, own = add(leaf, layer, up, down, whole), False
        return leaf

    return row_table.tree(rows, merged)


def merge_files(
    params: Any,
    rows: Sequence[Row],
    files: Iterable[tuple[pathlib.Path, float]],
    *,
    expert: str | None = None,
    donate: bool = False,
) -> tuple[Any, list[dict[str, Any]]]:
    """As :func:`merge`, from files with their weights; ``expert`` as for :func:`read_lora`.

    Returns: the parameters, and for each file what identifies it: {"file": its name, "sha256", "weight"}.
    """
    loras, records = read_files(files, rows, expert=expert)
    return merge(params, rows, loras, donate=donate), records


def read_files(
    files: Iterable[tuple[pathlib.Path, float]], rows: Sequence[Row], *, expert: str | None = None
) -> tuple[list[tuple[Lora, float]], list[dict[str, Any]]]:
    """Opens files, with their weights, for the network of ``rows``; ``expert`` and errors as for :func:`read_lora`.

    Returns: the LoRAs with their weights, and for each what identifies it: {"file": its name, "sha256", "weight"}.
    """
    loras = [(read_lora(file, rows, expert=expert), weight) for file, weight in files]
    return loras, [{"file": lora.file.name, "sha256": lora.sha256, "weight": weight} for lora, weight in loras]


def check(rows: Sequence[Row], loras: Sequence[tuple[Lora, float]]) -> None:
    """Raises ValueError for a weight that is not finite, or a LoRA that was read for another network."""
    known = {row.path for row in rows}
    for lora, weight in loras:
        if not math.isfinite(weight):
            raise ValueError(f"LoRA {str(lora.file)!r}: weight {weight}, expected a finite number")
        strange = [path for path, _ in lora.changes if path not in known]
        if strange:
            raise ValueError(f"LoRA {str(lora.file)!r} was read for another network: no parameter {strange[0]}")


def summed(
    row: Row, layer: int, loras: Sequence[tuple[Lora, float]]
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """All that changes one foreign tensor: up [O, R] and down [R, I] side by side over the ranks, and their rest, which
    has the tensor's shape; scales and weights are in up and in the rest. None where there is nothing."""
    ups, downs, whole = [], [], None
    for lora, weight in loras:
        for change in lora.changes.get((row.path, layer), ()):
            if isinstance(change, Factors):
                down, up = lora.read(change.down), lora.read(change.up)
                downs.append(down.reshape(len(down), -1))
                ups.append(up.reshape(len(up), -1) * np.float32(weight * change.scale))
            else:
                part = lora.read(change.name) * np.float32(weight * change.scale)
                whole = part if whole is None else whole + part
    if not ups:
        return None, None, whole
    return np.concatenate(ups, axis=1), np.concatenate(downs), whole


@functools.cache
def _adder(
    layout: str, shape: Shape, stacked: bool, sharding: jax.sharding.Sharding, donate: bool
) -> Callable[..., jax.Array]:
    """Compiled once for all tensors that look alike; ``shape`` is the foreign one."""

    def add(leaf: jax.Array, layer: Any, up: Any, down: Any, whole: Any) -> jax.Array:
        delta = jnp.zeros(shape, jnp.float32) if whole is None else whole
        if up is not None:
            delta += jnp.matmul(up, down, precision=jax.lax.Precision.HIGHEST).reshape(shape)
        delta = row_table.LAYOUTS[layout].to_ours(delta)
        if not stacked:
            return (leaf.astype(jnp.float32) + delta).astype(leaf.dtype)
        return leaf.at[layer].set((leaf[layer].astype(jnp.float32) + delta).astype(leaf.dtype))

    return jax.jit(add, out_shardings=sharding, donate_argnums=(0,) if donate else ())


class _Names:
    """Where a module's name leads: tables of the names that the rows have in either layout, with dots and without."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = {row.path: row for row in rows}
        self._dotted: dict[str, set[Place]] = defaultdict(set)
        self._flat: dict[str, set[Place]] = defaultdict(set)
        self._bias_of: dict[Place, Place] = {}
        for naming in row_table.NAMES:
            weights: dict[str, Place] = {}
            biases: dict[str, Place] = {}
            for row in rows:
                for layer, name in enumerate(row.foreign_names(naming) if getattr(row, naming) else ()):
                    place = (row.path, layer)
                    module = name.removesuffix(".weight")
                    weights[module] = place  # a bias or a table goes by its whole name
                    if name.endswith(".bias"):
                        biases[name.removesuffix(".bias")] = place
            for module, place in weights.items():
                self._dotted[module].add(place)
                self._flat[module.replace(".", "_")].add(place)
                if module in biases:
                    self._bias_of[place] = biases[module]

    def place(self, module: str) -> Place | None:
        """The weight that a module's name leads to; None if there is none, or more than one."""
        found = self._find(module)
        return next(iter(found)) if len(found) == 1 else None

    def bias_of(self, place: Place) -> Place | None:
        """The bias beside a weight."""
        return self._bias_of.get(place)

    def describe(self, module: str) -> str:
        """Why a name has no place, with the nearest that has."""
        found = self._find(module)
        if len(found) > 1:
            return f"may be any of {', '.join(sorted('/'.join(path) for path, _ in found))}"
        if found:
            return f"not one of the known endings {', '.join(_ROLES)}"
        table, name = self._table(module)
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.6)
        return f"no such tensor in the network{f' (nearest: {near[0]})' if near else ''}"

    def _find(self, module: str) -> set[Place]:
        table, name = self._table(module)
        return table.get(name, set())

    def _table(self, module: str) -> tuple[dict[str, set[Place]], str]:
        if module.startswith(_UNDERSCORED):
            return self._flat, module.removeprefix(_UNDERSCORED)
        return self._dotted, _PREFIX.sub("", module, count=1)


def _role(key: str) -> tuple[str | None, str]:
    """What a tensor is, by the end of its key, and the rest of the key."""
    for ending, role in _ROLES.items():
        if key.endswith(ending):
            return role, key.removesuffix(ending)
    return None, re.sub(r"\.[^.]*$", "", key)


def _of_expert(tensors: TensorReader, file: pathlib.Path, expert: str | None) -> tuple[list[str], str]:
    """The keys that are meant for an expert, and what its settings in the header begin with."""
    if expert not in (None, "high", "low"):
        raise ValueError(f"expert {expert!r}: expected 'high', 'low' or None")
    low = [key for key in tensors if _LOW_NOISE.match(key)]
    if not low:
        return list(tensors), "transformer."
    others = [key for key in tensors if not _LOW_NOISE.match(key)]
    if expert is None or not (low if expert == "low" else others):
        also = f"; the other {len(others)} are the high-noise expert's" if others else ""
        raise ValueError(
            f"LoRA {str(file)!r}: {len(low)} of its {len(tensors)} tensors are named transformer_2., diffusers' name "
            f"of the low-noise expert: give it to that one (--lora_low, expert='low'){also}"
        )
    if others:
        _log.info("LoRA %s: %d tensors are for the low-noise expert, %d for the high-noise one; %s takes its own",
                  file, len(low), len(others), expert)  # fmt: skip
    return (low, "transformer_2.") if expert == "low" else (others, "transformer.")


def _resolve(
    place: Place,
    roles: Mapping[str, str],
    tensors: TensorReader,
    names: _Names,
    scale_of: Callable[[int], float],
    changes: dict[Place, list[Factors | Whole]],
    problems: list[tuple[str, str]],
) -> None:
    """What the tensors of one module change; or what is wrong with them."""
    row, bias = names.rows[place[0]], names.bias_of(place)
    shape, scale = row.foreign_shape, 1.0

    def whole(role: str, target: Place | None, scale: float = 1.0) -> None:
        key = roles[role]
        if target is None:
            problems.append((key, f"{'/'.join(place[0])} has no bias"))
            return
        found, expected = tensors.shape_of(key), names.rows[target[0]].foreign_shape
        if found != expected:
            problems.append((key, f"wrong shape {found}, expected {expected}"))
        changes[target].append(Whole(key, scale))

    pair = [role for role in ("down", "up") if role in roles]
    if len(pair) == 1:
        problems.append((roles[pair[0]], f"the {'up' if pair == ['down'] else 'down'} factor beside it is missing"))
    elif pair:
        down, up = tensors.shape_of(roles["down"]), tensors.shape_of(roles["up"])
        if row.layout not in _MATRICES:
            problems.append((roles["down"], f"{'/'.join(place[0])} is not a matrix and has no factors"))
        elif down[1:] != shape[1:] or up[:1] != shape[:1] or len(up) < 2 or set(up[2:]) - {1}:
            problems.append((roles["down"], f"wrong shapes, down {down} and up {up}, expected (rank, "
                             f"{', '.join(map(str, shape[1:]))}) and ({shape[0]}, rank)"))  # fmt: skip
        elif down[0] != up[1]:
            problems.append((roles["down"], f"ranks disagree: {down[0]} here, {up[1]} in {roles['up']}"))
        else:
            scale = _stored_scale(roles["alpha"], down[0], tensors, problems) if "alpha" in roles else scale_of(down[0])
            changes[place].append(Factors(roles["down"], roles["up"], scale))
    elif "alpha" in roles:
        problems.append((roles["alpha"], "the factors beside it are missing"))
    if "up_bias" in roles:
        if len(pair) == 2:
            whole("up_bias", bias, scale)
        else:
            problems.append((roles["up_bias"], "the factors beside it are missing"))
    if "diff" in roles:
        whole("diff", place)
    if "diff_b" in roles:
        whole("diff_b", bias)


def _stored_scale(key: str, rank: int, tensors: TensorReader, problems: list[tuple[str, str]]) -> float:
    alpha = tensors[key]
    if alpha.size != 1 or not np.isfinite(alpha.astype(np.float64)).all():
        problems.append((key, f"expected one finite number, found {alpha.tolist()}"))
        return 1.0
    return float(alpha.reshape(())) / rank


def _peft_scale(tensors: TensorReader, file: pathlib.Path, prefix: str) -> Callable[[str, int], float]:
    """Scale by module and rank from peft's settings, which diffusers writes into the header of the file, each after
    ``prefix``, and peft into ``adapter_config.json`` beside its ``adapter_model.safetensors``; 1 where there are none.

    Raises:
        ValueError: settings that are not JSON, or of another method than LoRA.
    """
    beside = file.with_name("adapter_config.json")
    if "lora_adapter_metadata" in tensors.metadata:
        text, where = tensors.metadata["lora_adapter_metadata"], f"header of {file}"
    elif file.stem == "adapter_model" and beside.is_file():
        text, where = beside.read_text(encoding="utf-8"), str(beside)
    else:
        return lambda module, rank: 1.0
    try:
        stored = {key.removeprefix(prefix): value for key, value in json.loads(text).items()}
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{where}: expected peft's settings as a JSON object ({error})") from error
    if stored.get("use_dora") or stored.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{where}: DoRA and methods other than LoRA are not read; merge it with the tool that made it")
    patterns: Mapping[str, float] = stored.get("alpha_pattern") or {}

    def scale(module: str, rank: int) -> float:
        alphas = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
        alpha = alphas[0] if alphas else stored.get("lora_alpha")
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if stored.get("use_rslora") else rank)

    return scale
