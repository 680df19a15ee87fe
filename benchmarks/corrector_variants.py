"""What each part of the corrector is worth, and which periods it takes away.

    python benchmarks/corrector_variants.py --out benchmarks/results/corrector_variants.json

Every variant replaces one part by the simpler thing. Clips are at a quarter of their size; removed and moved as in
benchmarks/corrector.py. Periods: a made-up pan of 81 frames at 16 frames per second under gains of several kinds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import glob
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corrector import LINEAR, acceleration, exposure, gains, lit

from wanjax import video
from wanjax.light import correct as corrector
from wanjax.light import exposure as tone
from wanjax.light import light_track, trend
from wanjax.light.motion import Motion, dis_motion
from wanjax.light.photometry import linear_to_srgb, luminance, srgb_to_linear


def raw_flow(before: np.ndarray, after: np.ndarray) -> Motion:
    greys = [np.round(255 * linear_to_srgb(y)).astype(np.uint8) for y in (before, after)]
    return dis_motion(*greys)


def no_motion(before: np.ndarray, after: np.ndarray) -> Motion:
    still, seen = np.zeros((*before.shape, 2), np.float32), np.ones(before.shape, bool)
    return Motion(still, still, seen, seen)


VARIANTS: dict[str, tuple[Any, str, Any]] = {
    "as it is": (corrector, "PERIOD", corrector.PERIOD),
    "plain median": (light_track, "_weighted_median", lambda values, weights: float(np.median(values))),
    "flow on the frames as they are": (light_track, "_motion", raw_flow),
    "no motion": (light_track, "_motion", no_motion),
    "whites kept white": (corrector, "_share_of_whites_that_stay", lambda clipped, *rest: np.ones_like(clipped)),
    "bend from 0.85": (tone, "_KNEE", 0.85),
    "always beside the field": (corrector, "_frame_track", lambda track, which, reach: track.beside_field[:, which]),
    "no gate": (corrector, "_NOISE", {"exposure": (1e-9, 1e-9), "colour": (1e-9, 1e-9)}),
    "period of 14 frames": (corrector, "SHORTEST_PERIOD", 14.0),
    "no steps": (trend, "_STEP_EVIDENCE", np.inf),
}


@contextlib.contextmanager
def variant(name: str) -> Iterator[None]:
    module, attribute, value = VARIANTS[name]
    with mock.patch.object(module, attribute, value):
        yield


def exposure_of_floats(frames: np.ndarray) -> np.ndarray:
    return np.log2(luminance(srgb_to_linear(frames).mean((1, 2), dtype=np.float64)) + 1e-3)


def scored(clip: np.ndarray, fps: float, seeds: int) -> dict[str, float]:
    """Removed share and move of one clip [T, H, W, 3] uint8."""
    linear, steady = LINEAR[clip], exposure(clip)
    left = []
    for seed in range(seeds):
        flickering = lit(linear, gains(len(clip), seed))
        found = corrector.correct(flickering.astype(np.float32) / 255, fps=fps)
        left.append(acceleration(exposure_of_floats(found) - steady) / acceleration(exposure(flickering) - steady))
    same = corrector.correct(clip.astype(np.float32) / 255, fps=fps)
    return {"removed": 1 - float(np.mean(left)), "moved": float(np.abs(exposure_of_floats(same) - steady).mean())}


def periods() -> dict[str, float]:
    """Share of the second difference that is left, by the kind of gain."""
    rng, t = np.random.default_rng(0), np.arange(81)
    y, x = np.mgrid[:96, :300] / 40
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(-4, 4, (30, 3))]
    picture = np.sum(waves[:24], 0)[..., None] + np.stack([waves[24], waves[25], waves[26]], -1)
    wide = 0.03 + 0.57 * (picture - picture.min()) / np.ptp(picture)
    pan = np.stack([wide[:, 2 * i : 2 * i + 96] for i in t]).astype(np.float32)
    kinds = {"white, 6 %": 1 + 0.06 * rng.standard_normal(81), "white, 1 %": 1 + 0.01 * rng.standard_normal(81)}
    kinds |= {f"sine of {p} frames, 6 %": 1 + 0.06 * np.sin(2 * np.pi * t / p) for p in (3, 8, 16, 32)}
    kinds["held for 4 frames, 6 %"] = 1 + 0.06 * np.repeat(rng.standard_normal(21), 4)[:81]
    steady = exposure_of_floats(linear_to_srgb(pan))
    left = {}
    for name, gain in kinds.items():
        flickering = linear_to_srgb(np.clip(pan * gain[:, None, None, None].astype(np.float32), 0, 1))
        after = exposure_of_floats(corrector.correct(flickering, fps=16))
        left[name] = acceleration(after - steady) / acceleration(exposure_of_floats(flickering) - steady)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", default="../shared/clips/*.mp4")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", help="JSON file for the results")
    options = parser.parse_args()
    paths = sorted(glob.glob(options.videos))
    if not paths:
        sys.exit(f"error: --videos {options.videos!r}: no file matches")
    results: dict[str, Any] = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count()}
    results |= {"seeds": options.seeds, "periods": periods(), "variants": {}}
    for name, left in results["periods"].items():
        print(f"left of {name}: {left:.3f}", flush=True)
    clips = [(Path(path).stem, *video.read(path)[:2]) for path in paths]
    print("| | removed: mean | worst clip | moved: mean | worst clip |\n|---|---|---|---|---|")
    for name in VARIANTS:
        with variant(name):
            rows = {stem: scored(frames[:, ::4, ::4], fps, options.seeds) for stem, frames, fps in clips}
        results["variants"][name] = rows
        removed, moved = ([row[key] for row in rows.values()] for key in ("removed", "moved"))
        print(f"| {name} | {np.mean(removed):.1%} | {min(removed):.1%} | {np.mean(moved):.4f} | {max(moved):.4f} |",
              flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
