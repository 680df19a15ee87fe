"""The corrector beside ffmpeg's deflicker filter, on the same clips with the same flicker.

    python benchmarks/corrector.py --videos '../shared/clips/*.mp4' --out benchmarks/results/corrector.json

G is a frame's log2 mean linear luminance (+ 0.001). Per clip:

- removed: white Gaussian gains (sigma 0.06 per frame, in linear light, clipped and rounded to 8 bits like any video)
  are put on the clip; the share of the mean absolute second difference over t of G(corrected) - G(untouched) that is
  gone, mean over seeds and the worst of them.
- moved: mean over frames of abs(G(corrected) - G(untouched)) in stops, of the untouched clip.

deflicker runs on the same 8-bit frames as yuv444p, at its default and at every size and mode of a grid; "best" is the
setting that removes most on that very clip, "stillest" the one that moves the untouched clip least. Then rendered
sunrises: how far the slope of G moves. And what else flickers: colour (in cct_jitter) and a lamp at one side of the
picture (in local_flicker), as the share of the injected excess that is gone.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.filter import Graph

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.light_scenes import ClipSize, ClipSpec, render_clip
from wanjax import video
from wanjax.light.correct import correct
from wanjax.light.metrics import measure
from wanjax.light.photometry import linear_to_srgb, luminance, srgb_to_linear

SIGMA = 0.06
SIZES = (2, 3, 5, 7, 9, 12, 16)  # of no more frames than a clip has, or the filter reads what it never wrote
MODES = ("am", "gm", "hm", "qm", "cm", "pm", "median")
DEFAULT = (5, "am")
LINEAR = srgb_to_linear(np.arange(256, dtype=np.float32) / 255)

Clip = np.ndarray  # [T, H, W, 3] uint8 sRGB


def exposure(clip: Clip) -> np.ndarray:
    """G [T] in stops."""
    counts = [[cv2.calcHist([frame], [c], None, [256], [0, 256]).ravel() for c in range(3)] for frame in clip]
    mean = np.array(counts, np.float64) @ LINEAR.astype(np.float64) / clip[0, ..., 0].size
    return np.log2(luminance(mean) + 1e-3)


def lit(linear: np.ndarray, gain: np.ndarray) -> Clip:
    """``linear [T, H, W, 3]`` under ``gain`` (broadcasts), as 8-bit video."""
    frames = (linear_to_srgb(frame * g) for frame, g in zip(linear, gain.astype(np.float32), strict=True))
    return np.stack([np.rint(255 * frame).astype(np.uint8) for frame in frames])


def gains(count: int, seed: int) -> np.ndarray:
    """[T, 1, 1, 1] white Gaussian gains around 1."""
    return 1 + SIGMA * np.random.default_rng(seed).standard_normal((count, 1, 1, 1))


def deflicker(clip: Clip, size: int, mode: str, fps: float) -> Clip:
    """ffmpeg's filter through PyAV."""
    graph = Graph()
    height, width = clip.shape[1:3]
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1)
    nodes = [source, graph.add("format", "yuv444p"), graph.add("deflicker", f"size={size}:mode={mode}")]
    nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()

    def drained() -> Iterator[np.ndarray]:
        while True:
            try:
                yield graph.pull().to_ndarray()
            except (av.BlockingIOError, av.EOFError):
                return

    out: list[np.ndarray] = []
    for index, pixels in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = index, 1
        graph.push(frame)
        out += drained()
    graph.push(None)
    out += drained()
    if len(out) != len(clip):
        raise RuntimeError(f"deflicker gave {len(out)} of {len(clip)} frames")
    return np.stack(out)


def acceleration(values: np.ndarray) -> float:
    return float(np.abs(np.diff(values, n=2)).mean())


def scored(method: Callable[[Clip], Clip], clip: Clip, flickering: list[Clip]) -> dict[str, float]:
    """Removed shares and the move of the untouched clip."""
    steady = exposure(clip)
    removed = [1 - acceleration(exposure(method(f)) - steady) / acceleration(exposure(f) - steady) for f in flickering]
    moved = float(np.abs(exposure(method(clip)) - steady).mean())
    return {"removed": float(np.mean(removed)), "removed_worst": min(removed), "moved": moved}


def one_clip(path: str, seeds: int) -> dict[str, Any]:
    """Ours and deflicker on one clip."""
    clip, fps, _ = video.read(path)
    linear = LINEAR[clip]
    flickering = [lit(linear, gains(len(clip), seed)) for seed in range(seeds)]
    row: dict[str, Any] = {"clip": Path(path).stem, "frames": len(clip)}
    row["ours"] = scored(lambda c: correct(c, fps=fps), clip, flickering)
    # rounding to 8 bits hides a move of a fraction of a code: ours is judged on floats
    unrounded = correct(clip.astype(np.float32) / 255, fps=fps)
    mean = srgb_to_linear(unrounded).mean((1, 2), dtype=np.float64)
    row["ours"]["moved_8_bit"] = row["ours"]["moved"]
    row["ours"]["moved"] = float(np.abs(np.log2(luminance(mean) + 1e-3) - exposure(clip)).mean())
    grid = {
        (size, mode): scored(lambda c, s=size, m=mode: deflicker(c, s, m, fps), clip, flickering[:2])
        for size in SIZES
        if size <= len(clip)
        for mode in MODES
    }
    best = max(grid, key=lambda setting: grid[setting]["removed"])
    still = min(grid, key=lambda setting: grid[setting]["moved"])
    for name, (size, mode) in (("default", DEFAULT), ("best", best), ("stillest", still)):
        row[name] = {"size": size, "mode": mode}
        row[name] |= scored(lambda c, s=size, m=mode: deflicker(c, s, m, fps), clip, flickering)
    return row


def one_sunrise(scene: int, best: tuple[int, str]) -> dict[str, Any]:
    """Slopes of G, in stops per second, of a rendered sunrise."""
    size = ClipSize()
    spec = ClipSpec("sunrise_room", scene, 1, 1 if scene % 2 else -1, split="test", seed=1)
    clip = render_clip(spec, size).video
    row: dict[str, Any] = {"scene": scene}
    for name, method in (
        ("untouched", lambda c: c),
        ("ours", lambda c: correct(c, fps=size.fps)),
        ("default", lambda c: deflicker(c, *DEFAULT, size.fps)),
        ("best", lambda c: deflicker(c, *best, size.fps)),
    ):
        row[name] = measure(method(clip), fps=size.fps)["exposure_slope"]
    return row


def other_flicker(path: str) -> dict[str, Any]:
    """Share of what colour flicker and a lamp at one side add to two metrics that the corrector takes away."""
    clip, fps, _ = video.read(path)
    linear, rng = LINEAR[clip], np.random.default_rng(0)
    ramp = np.cos(np.pi * (np.arange(clip.shape[2]) + 0.5) / clip.shape[2])[:, None]
    colour = 1 + 0.5 * SIGMA * rng.standard_normal((len(clip), 1, 1, 3))
    side = 1 + SIGMA * rng.standard_normal((len(clip), 1, 1, 1)) * ramp
    row: dict[str, Any] = {"clip": Path(path).stem}
    for name, metric, gain in (("colour", "cct_jitter", colour), ("side", "local_flicker", side)):
        flickering = lit(linear, gain)
        steady, before, after = (
            measure(c, fps=fps)[metric] for c in (clip, flickering, correct(flickering, fps=fps))
        )
        row[name] = {"untouched": steady, "flickering": before, "corrected": after}
        row[name]["removed"] = (before - after) / (before - steady)
    return row


def printed(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = ["| clip | ours: removed (worst seed) | moved | deflicker, default: removed | moved "]
    lines[0] += "| best setting | removed | moved | stillest setting: moved |"
    lines += ["|" + "---|" * 9]
    for row in results["clips"]:
        ours, default, best, still = (row[name] for name in ("ours", "default", "best", "stillest"))
        lines.append(
            f"| {row['clip']} | {ours['removed']:.1%} ({ours['removed_worst']:.1%}) | {ours['moved']:.4f} "
            f"| {default['removed']:.1%} | {default['moved']:.4f} | {best['size']}, {best['mode']} "
            f"| {best['removed']:.1%} | {best['moved']:.4f} | {still['moved']:.4f} ({still['size']}, {still['mode']}) |"
        )
    size, mode = results["best_overall"]
    lines += ["", f"| sunrise | slope | ours | deflicker, default | {size}, {mode} |", "|" + "---|" * 5]
    for row in results["sunrises"]:
        kept = (f"{row[name] / row['untouched']:.2%}" for name in ("ours", "default", "best"))
        lines.append(f"| {row['scene']} | {row['untouched']:.3f} stops/s | {' | '.join(kept)} |")
    states = ("untouched", "flickering", "corrected")
    lines += ["", "| clip | `cct_jitter` untouched, with colour flicker, corrected | removed "]
    lines[-1] += "| `local_flicker` untouched, with a side lamp's flicker, corrected | removed |"
    lines += ["|" + "---|" * 5]
    for row in results["other"]:
        cells = [
            f"{', '.join(f'{row[name][state]:.3f}' for state in states)} | {row[name]['removed']:.0%}"
            for name in ("colour", "side")
        ]
        lines.append(f"| {row['clip']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", default="../shared/clips/*.mp4")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--out", help="JSON file for the results")
    options = parser.parse_args()
    paths = sorted(glob.glob(options.videos))
    if not paths:
        sys.exit(f"error: --videos {options.videos!r}: no file matches")
    began, results = time.perf_counter(), {}
    results["machine"] = {
        "date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "python": platform.python_version(),
        "machine": platform.machine(), "av": av.__version__,
        "libavfilter": ".".join(map(str, av.library_versions["libavfilter"])),
    }  # fmt: skip
    results["sigma"], results["seeds"] = SIGMA, options.seeds
    results["clips"] = []
    for path in paths:
        results["clips"].append(one_clip(path, options.seeds))
        print(json.dumps(results["clips"][-1]), file=sys.stderr, flush=True)
    winners = [(row["best"]["size"], row["best"]["mode"]) for row in results["clips"]]
    results["best_overall"] = best = max(winners, key=winners.count)
    results["sunrises"] = [one_sunrise(scene, best) for scene in range(options.scenes)]
    results["other"] = [other_flicker(path) for path in paths]
    results["seconds"] = round(time.perf_counter() - began)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(printed(results))


if __name__ == "__main__":
    main()
