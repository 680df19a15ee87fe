"""Weights to start from: another run, or any layout that the hub opens."""
from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
from etils import epath

from wanjax import checkpoint, hub, hub_names
from wanjax.models import rows
from wanjax.models.dit import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.run_folder import is_remote, run_folder

DIFFUSERS_FOLDERS = {"high": "transformer", "low": "transformer_2"}
OFFICIAL_FOLDERS = {"high": "high_noise_model", "low": "low_noise_model"}


SHIPPED = pathlib.Path(__file__).parent / "assets"


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


def initial_params(source: str | os.PathLike[str], expert: str, config: DiTConfig, mesh: jax.sharding.Mesh) -> Any:
    """One expert's weights, placed on ``mesh``.

    Args:
      source: a run's workdir (its EMA weights are taken), a pipeline's root or one network's folder or file in any
        layout that the hub opens, or the name of shipped experts.
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
        found, (params, _) = run.config.model, run.experts[expert].read(rows.shardings(dit_rows(config), mesh))
    else:
        source = pathlib.Path(source)
        part = DIFFUSERS_FOLDERS[expert]
        parts = hub.open_layout(source) if hub.layout_of(source) else {}
        folders = [source / names[expert] for names in (DIFFUSERS_FOLDERS, OFFICIAL_FOLDERS)]
        folder = parts.get(part) or next((f for f in folders if f.is_dir()), source)
        model, params = hub.load_dit(folder, dtype="float32", mesh=mesh)
        found = model.config
    shape_fields = ("width", "heads", "layers", "ffn", "in_channels", "out_channels", "patch", "freq_dim", "text_dim",
                    "eps")
    wrong = [f"{n}: {getattr(found, n)} there, {getattr(config, n)} in config.model" for n in shape_fields
             if getattr(found, n) != getattr(config, n)]
    if wrong:
        raise ValueError(f"config.train.init_from = {str(source)!r} is another architecture: {'; '.join(wrong)}")
    return params
