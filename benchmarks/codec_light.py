"""What coding does to picture and light of held-out scenes, per family.

    python benchmarks/codec_light.py [--codec light_scenes_all] [--clips 4] [--families all]

PSNR, the error of a frame's light in stops, and the flicker that coding adds (of the coded clip less that of the
rendered one, in stops), means over clips.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.light_scenes import parse_families
from experiments.train_codec import rendered
from wanjax import hub
from wanjax.codec import find_codec
from wanjax.codec_finish import frame_error
from wanjax.compare import FLICKER
from wanjax.generate import to_uint8
from wanjax.light.metrics import measure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="light_scenes_all", help="name of a shipped one, or a folder")
    parser.add_argument("--clips", type=int, default=4, help="test clips of each family")
    parser.add_argument("--families", type=parse_families, default=parse_families("all"))
    options = parser.parse_args(argv)
    model, params = hub.load_vae(find_codec(options.codec))
    print("| family | PSNR, dB | frame's light, stops | " + " | ".join(f"added {name}" for name in FLICKER) + " |")
    print("|---" * (3 + len(FLICKER)) + "|")
    rows = []
    for family in options.families:
        found = []
        for clip in rendered([family], "test", options.clips):
            latents = model.apply({"params": params}, clip[None] / np.float32(127.5) - 1)
            video = np.asarray(model.apply({"params": params}, latents, method="decode_chunked"))[0]
            made = to_uint8(video)
            psnr = 10 * np.log10(255**2 / np.mean((made.astype(np.float64) - clip) ** 2))
            coded, original = measure(made, fps=8.0), measure(clip, fps=8.0)
            found.append([psnr, np.abs(frame_error(video, clip)).mean(), *(coded[n] - original[n] for n in FLICKER)])
        rows.append(np.mean(found, axis=0))
        print(_row(f"`{family}`", rows[-1]), flush=True)
    print(_row("mean", np.mean(rows, axis=0)))


def _row(name: str, values: np.ndarray) -> str:
    return f"| {name} | {values[0]:.1f} | {values[1]:.4f} | " + " | ".join(f"{v:+.4f}" for v in values[2:]) + " |"


if __name__ == "__main__":
    main()
