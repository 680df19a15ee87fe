"""Writes the experts of a run, or of a released checkpoint, in a layout that others open.

    python -m experiments.convert --src runs/demo --dst runs/demo_diffusers --layout diffusers --dtype bfloat16

Transformers only; of a run its EMA weights, or with ``--weights raw`` the others. ``--lora_high`` and ``--lora_low``
merge LoRA files into the experts on the way (docs/lora.md). The folder appears once it is whole.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from wanjax import checkpoint, hub, lora, warm_start
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows

FOLDERS = {"diffusers": warm_start.DIFFUSERS_FOLDERS, "official": warm_start.OFFICIAL_FOLDERS,
           "comfyui": warm_start.OFFICIAL_FOLDERS}


def experts(src: Path, weights: str, needed: Collection[str] = ()) -> Iterator[tuple[str, WanDiT, Any]]:
    """Name, model and parameters of each expert in ``src``.

    Raises:
      ValueError: if there is none, or not all that are ``needed``, or raw weights are asked of a release.
    """
    if checkpoint.is_run(src):
        run = checkpoint.open_run(src, weights)
        print(run.description)
        _check_needed(needed, run.experts, src)
        for name, params in run.experts.items():
            yield name, WanDiT(run.config.model), params
        return
    if weights == "raw":
        raise ValueError(f"--weights raw: the release {src} has one set of weights; leave the flag out")
    folders = [(name, src / folder) for layout in ("diffusers", "official") for name, folder in FOLDERS[layout].items()]
    found = [(name, folder) for name, folder in folders if folder.is_dir()]
    if not found:
        raise ValueError(f"--src {src} is neither a run nor a folder with {', '.join(f.name for _, f in folders)}")
    _check_needed(needed, [name for name, _ in found], src)
    for name, folder in found:
        yield name, *hub.load_dit(folder)


def _check_needed(needed: Collection[str], found: Collection[str], src: Path) -> None:
    for name in needed:
        if name not in found:
            raise ValueError(f"--lora_{name}: {src} has no {name}-noise expert, only {', '.join(found)}")


def run(src: Path, dst: Path, *, layout: str = "diffusers", weights: str = "ema", dtype: str | None = None,
        loras: Mapping[str, str] | None = None) -> None:
    """Converts; see the flags. ``loras``: "high" or "low" -> what :func:`wanjax.lora.parse` takes.

    Raises:
      FileExistsError: if ``dst`` exists.
      ValueError: as :func:`experts`, or a LoRA that does not fit.
    """
    files = {name: lora.parse(text) for name, text in (loras or {}).items()}
    if dst.exists():
        raise FileExistsError(f"--dst {dst} exists: remove it or name another")
    part = dst.with_name(dst.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name, model, params in experts(src, weights, files):
        if name in files:
            params, merged = lora.merge_files(params, dit_rows(model.config), files[name], donate=True)
            print(f"{name} expert: merged {', '.join('{file} x {weight}'.format(**one) for one in merged)}")
        cast = params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params)
        hub.save_dit(part / FOLDERS[layout][name], model, cast, layout=layout)
        print(f"{name} expert: {sum(x.size for x in jax.tree.leaves(cast))} parameters in {FOLDERS[layout][name]}/")
    part.rename(dst)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    loras = {name: values[f"lora_{name}"].value for name in ("high", "low") if values[f"lora_{name}"].value is not None}
    try:
        run(Path(values.src), Path(values.dst), layout=values.layout, weights=values.weights, dtype=values.dtype,
            loras=loras)
    except (OSError, ValueError, checkpoint.CheckpointError) as error:
        sys.exit(f"error: {error}")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    flags.DEFINE_string("src", None, "A run's workdir, or the root of a released checkpoint.", required=True)
    flags.DEFINE_string("dst", None, "Folder to write; it must not exist.", required=True)
    flags.DEFINE_enum("layout", "diffusers", list(FOLDERS), "Names and files to write.")
    flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Which weights of a run.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "What to store; as it is by default.")
    flags.DEFINE_string("lora_high", None, "LoRA files to merge into the high-noise expert: file[:weight],...")
    flags.DEFINE_string("lora_low", None, "LoRA files to merge into the low-noise expert: file[:weight],...")
    app.run(main)


if __name__ == "__main__":
    entry()
