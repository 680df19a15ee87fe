"""The LoRAs that a run trained, written as files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from etils import epath

from wanjax import checkpoint, lora_export, manifest, warm_start
from wanjax.models.rows.dit import dit_rows
from wanjax.unfinished import UNFINISHED, beside
from wanjax.weight_files import TensorSpec, write_weights

LORA = "lora"  # what of a run is no part of a pipeline


def write_loras(
    src: epath.Path, dst: pathlib.Path, layout: str, weights: str, dtype: str | None, say: Callable[[str], None]
) -> None:
    """Writes the factors of a run, a file for each expert, named after it.

    Args:
        src: the run's workdir, or one expert's folder in it.
        dst: folder to write.
        layout: a key of :data:`wanjax.lora_export.NAMINGS`.
        weights: "ema" or "raw".
        dtype: to store in; None is float32, as they were trained.
        say: where lines of progress go.

    Raises:
        FileExistsError: ``dst`` is there.
        ValueError: another layout, ``src`` is no run, or one that trained whole experts.
    """
    if layout not in lora_export.NAMINGS:
        raise ValueError(f"--only {LORA} --layout {layout}: LoRA files have the names of "
                         f"{' or '.join(lora_export.NAMINGS)}")  # fmt: skip
    if dst.exists():
        raise FileExistsError(f"--dst {dst} exists: remove it or name another")
    if not checkpoint.is_run(src):
        raise ValueError(f"--only {LORA}: {src} is no run of experiments.train")
    run = checkpoint.open_run(src, weights)
    trained = {name: saved for name, saved in run.experts.items() if saved.config.lora.rank}
    if not trained:
        raise ValueError(f"--only {LORA}: {src} trained whole experts (config.lora.rank = 0); leave --only out")
    say(run.description)
    with beside(dst) as folder:
        for name, saved in trained.items():
            config, table = saved.config.lora, dit_rows(saved.config.model)
            found = {key: array if array.ndim == 0 else array.astype(dtype or array.dtype)
                     for key, array in lora_export.tensors(saved.read()[0], table, config, layout).items()}
            specs = {key: TensorSpec(array.shape, array.dtype.name) for key, array in found.items()}
            about = {"base": json.dumps(saved.about[warm_start.BASE]), "expert": name, "step": str(saved.step)}
            write_weights(folder, specs, found.items(), None, stem=name, metadata={"format": "pt", **about})
            say(f"{name}: {len(config.adapted(table))} matrices, rank {config.rank}, in {name}.safetensors")
        (folder / UNFINISHED).unlink()
        manifest.write(folder, layout=layout, source=str(src), dtype=dtype, weights=weights)
        folder.rename(dst)
