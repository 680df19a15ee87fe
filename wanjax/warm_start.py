"""Weights to start from: another run, or any layout that the hub opens; and those of a run that started from them."""
from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from wanjax import checkpoint, hub, hub_names, lora, lora_export
from wanjax.checkpoint import CheckpointError, SavedExpert
from wanjax.models import rows
from wanjax.models.dit import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.run_folder import is_remote, run_folder

DIFFUSERS_FOLDERS = {"high": "transformer", "low": "transformer_2"}
OFFICIAL_FOLDERS = {"high": "high_noise_model", "low": "low_noise_model"}
BASE = "base"  # of a checkpoint's record: the frozen weights beside which its LoRA was trained


SHIPPED = pathlib.Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True)
class Weights:
    """One expert's weights, not read yet.

    Attributes:
      source: where they lie.
      fingerprint: tells them from others, found without reading them all.
      read: tree of shardings (None: one device), dtype -> the transformer's parameters.
    """

    source: str
    fingerprint: str
    read: Callable[[Any, str], Any]

    @property
    def record(self) -> dict[str, dict[str, str]]:
        """What a checkpoint of factors beside them says of them."""
        return {BASE: {"source": self.source, "fingerprint": self.fingerprint}}


def find_experts(name_or_folder: str | os.PathLike[str]) -> pathlib.Path | epath.Path:
    """The folder of shipped experts (``"light_scenes_tiny"``), the given folder, or that of a repository.

    Of object stores runs are opened, and nothing else.

    Raises:
      FileNotFoundError: naming the shipped ones.
    """
    if is_remote(name_or_folder):
        run = run_folder(name_or_folder)
        if not checkpoint.is_run(run):
            raise FileNotFoundError(f"config.train.init_from: {str(run)!r} holds no checkpoint of a run")
        return run
    shipped, folder = SHIPPED / f"experts_{name_or_folder}", pathlib.Path(name_or_folder)
    if "/" not in str(name_or_folder) and shipped.is_dir():
        return shipped
    if folder.exists():
        return folder
    try:
        return hub_names.resolve(name_or_folder, parts=tuple(DIFFUSERS_FOLDERS.values()))
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.name.removeprefix("experts_") for p in SHIPPED.glob("experts_*"))) or "none"
        raise FileNotFoundError(f"config.train.init_from: {error}. Give a run, a folder that the hub opens, a "
                                f"repository's name, or shipped experts ({names})") from error


def open_start(source: str | os.PathLike[str], expert: str, config: DiTConfig) -> Weights:
    """One expert's weights to start from.

    Args:
      source: a run's workdir (its EMA weights are taken, a LoRA merged into what it was trained beside), a pipeline's
        root or one network's folder or file in any layout that the hub opens, or the name of shipped experts.
      expert: "high" or "low".
      config: of the transformer that will take them.

    Raises:
      ValueError: if the source has no such expert, or another architecture.
    """
    source = find_experts(source)
    if checkpoint.is_run(source):
        run = checkpoint.open_run(source, "ema")
        if expert not in run.experts:
            raise ValueError(f"config.train.init_from = {str(source)!r} has no {expert} expert, only "
                             f"{', '.join(run.experts)}: set config.train.expert to that, or give another source")
        found, weights = run.config.model, weights_of(run.experts[expert])
    else:
        source = pathlib.Path(source)
        part = DIFFUSERS_FOLDERS[expert]
        parts = hub.open_layout(source) if hub.layout_of(source) else {}
        folders = [source / names[expert] for names in (DIFFUSERS_FOLDERS, OFFICIAL_FOLDERS)]
        folder = parts.get(part) or next((f for f in folders if f.is_dir()), source)
        found = hub.open_network(folder, "transformer", dtype="float32").config
        weights = Weights(str(source), hub.digest(folder), lambda places, dtype: hub.open_network(
            folder, "transformer", dtype=dtype).place(places))
    shape_fields = ("width", "heads", "layers", "ffn", "in_channels", "out_channels", "patch", "freq_dim", "text_dim",
                    "eps")
    wrong = [f"{n}: {getattr(found, n)} there, {getattr(config, n)} in config.model" for n in shape_fields
             if getattr(found, n) != getattr(config, n)]
    if wrong:
        raise ValueError(f"config.train.init_from = {str(source)!r} is another architecture: {'; '.join(wrong)}")
    return weights


def weights_of(saved: SavedExpert) -> Weights:
    """The transformer's weights of a run: as they were trained, or a LoRA's merged into what it was trained beside."""
    config, where = saved.config, str(saved.folder)
    if not config.lora.rank:
        return Weights(where, saved.fingerprint, lambda places, dtype: jax.tree.map(
            lambda leaf: leaf.astype(dtype), saved.read(places)[0]))
    base = base_of(saved)

    def merged(places: Any, dtype: str) -> Any:
        return lora.merge(base.read(places, dtype), dit_rows(config.model), [(lora_of(saved), 1.0)], donate=True)

    return Weights(where, joint_fingerprint(base, saved), merged)


def joint_fingerprint(base: Weights, saved: SavedExpert) -> str:
    """Tells a run's LoRA beside its frozen weights from others."""
    return hashlib.sha256(f"{base.fingerprint} {saved.fingerprint}".encode()).hexdigest()


def base_of(saved: SavedExpert) -> Weights:
    """The frozen weights that a run's LoRA was trained beside.

    Raises:
      CheckpointError: if what lies there is not what it was trained beside.
      FileNotFoundError, ValueError: as :func:`open_start`.
    """
    base = open_start(saved.config.train.init_from, saved.expert, saved.config.model)
    check_base(base, saved.about, saved.folder)
    return base


def check_base(base: Weights, about: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Refuses frozen weights that are not those of a checkpoint's record.

    Raises:
      CheckpointError: naming both.
    """
    recorded = about.get(BASE, {})
    if recorded.get("fingerprint") != base.fingerprint:
        raise CheckpointError(f"the LoRA in {folder} was trained beside other weights: those of "
                              f"{recorded.get('source')} had the fingerprint {recorded.get('fingerprint', '?')[:16]}, "
                              f"{base.source} now has {base.fingerprint[:16]}. Put those back, or start a new run")


def lora_of(saved: SavedExpert) -> lora.Lora:
    """What a run trained beside frozen weights, as if read from a file."""
    factors, _ = saved.read()
    table = dit_rows(saved.config.model)
    return lora_export.as_lora(factors, table, saved.config.lora, saved.folder, saved.fingerprint)


def initial_params(source: str | os.PathLike[str], expert: str, config: DiTConfig, mesh: jax.sharding.Mesh,
                   dtype: str = "float32") -> Any:
    """One expert's weights, placed on ``mesh``; arguments and errors as of :func:`open_start`."""
    return open_start(source, expert, config).read(rows.shardings(dit_rows(config), mesh), dtype)
