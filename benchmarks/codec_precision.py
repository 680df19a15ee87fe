"""What a shorter type in a codec's encoder, in its decoder, or in its file does to picture and light.

    python benchmarks/codec_precision.py [--codec light_scenes_all] [--clips 2] [--families all] [--videos 'DIR/*.mp4']
    python benchmarks/codec_precision.py --random

Everything is compared with the same codec in float32, not with the clip: root mean square error of the latents
(normalised, so of deviation 1), PSNR of the decoded frames, error of a frame's light in stops (mean over frames, and
the worst frame), and the flicker that the type adds, in stops. Means over clips; the worst frame is of all clips.

``--videos`` takes files as well, at 128 x 128 pixels. ``--random`` takes Wan2.1's codec at its full width and depth
with random weights, for which light means nothing, and gives relative errors of latents and frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.light_scenes import parse_families
from experiments.train_codec import rendered
from wanjax import video
from wanjax.codec import open_codec
from wanjax.codec_finish import frame_error
from wanjax.generate import to_uint8
from wanjax.light.metrics import measure
from wanjax.models.vae import VAEConfig, WanVAE

SIZE = 128  # of files' frames
TYPES = {  # compute types of encoder and decoder, and the type that the weights are rounded to
    "encoder bfloat16": ("bfloat16", "float32", "float32"),
    "encoder float16": ("float16", "float32", "float32"),
    "decoder bfloat16": ("float32", "bfloat16", "float32"),
    "decoder float16": ("float32", "float16", "float32"),
    "file bfloat16, computed in float32": ("float32", "float32", "bfloat16"),
    "file float16, computed in float32": ("float32", "float32", "float16"),
    "all bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
}


def coded(config: VAEConfig, params: Any, clip: np.ndarray, types: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Latents and decoded frames of ``clip [T, H, W, 3]`` uint8 (or float in [-1, 1])."""
    encoder, decoder, stored = types
    model = WanVAE(dataclasses.replace(config, encoder_dtype=encoder, dtype=decoder))
    variables = {"params": jax.tree.map(lambda x: x.astype(stored).astype(jnp.float32), params)}
    pixels = clip / np.float32(127.5) - 1 if clip.dtype == np.uint8 else clip
    latents = np.asarray(model.apply(variables, pixels[None], method="encode_chunked"))
    return latents[0], np.asarray(model.apply(variables, latents, method="decode_chunked"))[0]


def filmed(pattern: str) -> Iterator[np.ndarray]:
    """Clips of 4n + 1 frames of the files, uint8."""
    for path in sorted(glob.glob(pattern)):
        frames = list(itertools.islice(video.stream(path).frames, 17))
        frames = frames[: (len(frames) - 1) // 4 * 4 + 1]
        yield np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in frames])


def table(codec: str, clips: Sequence[np.ndarray]) -> None:
    """One row per type."""
    opened = open_codec(codec, dtype="float32")
    exact = [coded(opened.model.config, opened.params, clip, ["float32"] * 3) for clip in clips]
    before = [measure(to_uint8(frames), fps=8.0)["global_flicker"] for _, frames in exact]
    print("| in a short type | latents, rms | PSNR, dB | frame's light, stops | worst frame | added global_flicker |")
    print("|---" * 6 + "|")
    for name, types in TYPES.items():
        rows, worst = [], 0.0
        for clip, (latents, frames), flicker in zip(clips, exact, before, strict=True):
            found, made = coded(opened.model.config, opened.params, clip, types)
            light = np.abs(frame_error(made, clip) - frame_error(frames, clip))
            worst = max(worst, float(light.max()))
            rows.append([np.sqrt(np.mean((found - latents) ** 2)), 10 * np.log10(4 / np.mean((made - frames) ** 2)),
                         light.mean(), measure(to_uint8(made), fps=8.0)["global_flicker"] - flicker])
        rms, psnr, mean, added = np.mean(rows, axis=0)
        print(f"| {name} | {rms:.4f} | {psnr:.1f} | {mean:.5f} | {worst:.5f} | {added:+.5f} |", flush=True)


def random_table() -> None:
    """Wan2.1's sizes with random weights: errors over the deviation of what float32 gives."""
    model = WanVAE(VAEConfig())
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    for side in ("encoder", "decoder"):  # init switches it off
        proj = params[side]["mid_attention"]["proj"]["kernel"]
        params[side]["mid_attention"]["proj"]["kernel"] = jax.random.normal(jax.random.key(1), proj.shape) / 384**0.5
    clip = np.random.default_rng(0).uniform(-1, 1, (5, 64, 64, 3)).astype(np.float32)
    exact = coded(model.config, params, clip, ["float32"] * 3)
    print("| in a short type | latents, relative | frames, relative |")
    print("|---" * 3 + "|")
    for name, types in TYPES.items():
        made = coded(model.config, params, clip, types)
        latents, frames = (np.sqrt(np.mean((a - b) ** 2)) / b.std() for a, b in zip(made, exact, strict=True))
        print(f"| {name} | {latents:.5f} | {frames:.5f} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="light_scenes_all", help="name of a shipped one, or a folder")
    parser.add_argument("--clips", type=int, default=2, help="test clips of each family")
    parser.add_argument("--families", type=parse_families, default=parse_families("all"))
    parser.add_argument("--videos", help="a glob of files, which take the place of rendered scenes")
    parser.add_argument("--random", action="store_true", help="Wan2.1's sizes with random weights instead")
    options = parser.parse_args(argv)
    if options.random:
        random_table()
    elif options.videos:
        table(options.codec, list(filmed(options.videos)))
    else:
        table(options.codec, list(rendered(options.families, "test", options.clips)))


if __name__ == "__main__":
    main()
