"""How a shipped codec gives back one sudden step of the whole frame's brightness, by where it falls.

    python benchmarks/codec_steps.py [--codec light_scenes_all] [--height 0.6]

Even grey clips of 13 frames step once, up or down, before every frame in turn. Per frame of the step: the share of its
height that the decoded clip makes at that frame, the largest share that it makes at another, and whether the largest
change is at the right one; means over up and down. 1.00, 0.00 and yes is perfect.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax.codec import open_codec

FRAMES, SIDE = 13, 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="light_scenes_all", help="name of a shipped one, or a folder")
    parser.add_argument("--height", type=float, default=0.6, help="of the step, in pixels' range of [-1, 1]")
    options = parser.parse_args(argv)
    opened = open_codec(options.codec)
    up = np.where(np.arange(FRAMES) >= np.arange(1, FRAMES)[:, None], 0.5, -0.5) * options.height
    levels = np.stack([up, -up]).astype(np.float32)  # [2, where, T]
    shares = []
    for direction in levels:
        clips = np.broadcast_to(direction[:, :, None, None, None], (*direction.shape, SIDE, SIDE, 3))
        variables = {"params": opened.params}
        latents = opened.model.apply(variables, clips)
        made = np.asarray(opened.model.apply(variables, latents, method="decode")).mean((2, 3, 4))
        shares.append(np.diff(made, axis=1) / (direction[:, -1:] - direction[:, :1]))
    print("| frame of the step | its place in the latent | share there | largest elsewhere | largest is there |")
    print("|---" * 5 + "|")
    for index, changes in enumerate(np.swapaxes(shares, 0, 1)):
        there, elsewhere = changes[:, index], np.abs(np.delete(changes, index, 1)).max(1)
        found = "yes" if (there > elsewhere).all() else "no"
        print(f"| {index + 1} | {index % 4 + 1} of 4 | {there.mean():.2f} | {elsewhere.mean():.2f} | {found} |")


if __name__ == "__main__":
    main()
