"""Writes a pipeline, one network or the experts of a run in another layout, and checks folders against their sums.

    python -m experiments.convert --src Wan2.2-T2V-A14B --dst wan_diffusers --layout diffusers
    python -m experiments.convert --src runs/demo --dst runs/demo_diffusers --dtype bfloat16
    python -m experiments.convert --verify --src wan_diffusers

Of a run its EMA weights, or with ``--weights raw`` the others. ``--lora_high`` and ``--lora_low`` merge LoRA files into
the experts on the way, and ``--only lora`` writes what a run trained beside frozen weights as LoRA files
(docs/lora.md). The folder appears once it is whole, with a manifest (docs/checkpoints.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from wanjax import checkpoint, hub, hub_names, manifest
from wanjax.convert import convert as run
from wanjax.hub_layouts import PARTS
from wanjax.run_folder import local_folder

__all__ = ["main", "run", "verify"]


def verify(src: Path) -> bool:
    """Checks a folder against its recorded sums and says what came of it; whether all is as recorded."""
    report = manifest.verify(src)
    for problem in report.problems:
        print(f"error: {src / problem}")
    print(f"{src}: {len(report.checked)} files checked against {report.against}, {len(report.problems)} wrong")
    if report.unrecorded:
        print(f"no sum is recorded of {len(report.unrecorded)} others: {', '.join(report.unrecorded[:5])}")
    return not report.problems


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    loras = {name: values[f"lora_{name}"].value for name in ("high", "low") if values[f"lora_{name}"].value is not None}
    try:
        if values.verify:
            given = [name for name in _OF_CONVERSIONS if values[name].present]
            if given:
                raise ValueError(f"--verify takes --src alone: leave out --{', --'.join(given)}")
            if not verify(hub_names.resolve(values.src)):
                sys.exit(1)
            return
        if values.dst is None:
            raise ValueError("--dst: name the folder to write")
        run(values.src, local_folder(values.dst, "--dst"), layout=values.layout, weights=values.weights,
            dtype=values.dtype, fp8=values.fp8, loras=loras, only=values.only, pth=values.pth)
    except (ImportError, OSError, ValueError, checkpoint.CheckpointError) as error:
        sys.exit(f"error: {error}")


_OF_CONVERSIONS = ("dst", "layout", "weights", "dtype", "fp8", "only", "pth", "lora_high", "lora_low")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    flags.DEFINE_string("src", None, "A run's workdir, a pipeline's root, one network's folder or file, or the name "
                        "of a repository on the Hugging Face Hub.", required=True)  # fmt: skip
    flags.DEFINE_string("dst", None, "Folder to write; it must not exist.")
    flags.DEFINE_enum("layout", "diffusers", list(hub.LAYOUTS), "Names and files to write.")
    flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Which weights of a run.")
    flags.DEFINE_enum("dtype", None, list(hub.DTYPES), "What to store; as it is by default.")
    flags.DEFINE_bool("fp8", False, "With --layout comfyui: the transformers' matrices in 8 bits (fp8_scaled).")
    flags.DEFINE_list("only", [], f"Parts to convert, among {', '.join(PARTS)}; all by default. lora: a "
                      "run's factors, as files.")  # fmt: skip
    flags.DEFINE_bool("pth", False, "With --layout official: codec and text encoder as .pth, which takes PyTorch.")
    flags.DEFINE_bool("verify", False, "Check --src against its manifest, or the sums that the hub recorded.")
    flags.DEFINE_string("lora_high", None, "LoRA files to merge into the high-noise expert: file[:weight],...")
    flags.DEFINE_string("lora_low", None, "LoRA files to merge into the low-noise expert: file[:weight],...")
    app.run(main)


if __name__ == "__main__":
    entry()
