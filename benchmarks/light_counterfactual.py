"""What each measure of light ranks, on seeded clips that differ in one factor (wanjax/light/counterfactual.py).

    python benchmarks/light_counterfactual.py --seeds 20 --flow given
    python benchmarks/light_counterfactual.py --seeds 20 --flow dis
    python benchmarks/light_counterfactual.py --clips 'clips/*.mp4' --draws 20

Each writes a table with machine and date to benchmarks/results/. The first two render every scene at both levels, sound
and under every fault, and measure it with the exact flow or with one estimated from the pictures. The third lays
flicker of 2 % over filmed clips; a draw is white Gaussian noise of one gain per frame, in linear light.

Measures in use elsewhere, on the same clips, all made so that more is worse: VBench's temporal flickering (1 - score),
mean absolute difference of luminance, the original light-consistency penalty, and the warping error of Lai et al.
(Learning Blind Video Temporal Consistency, 2018) with the exact flow and occlusions.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import math
import os
import platform
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import video as files
from wanjax.light.counterfactual import LEVELS, SCENES, Fault, Scene, make_scene
from wanjax.light.metrics import measure
from wanjax.light.motion import Motion, given_motion, warp
from wanjax.light.photometry import linear_to_srgb, luminance, srgb_to_linear

RESULTS = Path(__file__).resolve().parent / "results"
STILL = ("constant", "ramp")
FAULTS = {
    "none": Fault(),
    **{f"flicker {size:.0%}": Fault("flicker", size) for size in (0.01, 0.02, 0.06, 0.12)},
    **{f"step {size:.0%}": Fault("step", size) for size in (0.1, 0.3)},
    "flash 60%": Fault("flash", 0.6),
}
OURS = ("global_flicker", "local_flicker", "common_flicker", "flicker_peak", "flash_rate")
ELSEWHERE = ("1 - VBench", "mean abs dY", "original penalty", "warping error")
Cells = dict[tuple[str, str, str], dict[str, np.ndarray]]  # (fault, scene, level) -> measure -> [seeds]


def warping_error(video: np.ndarray, motions: list[Motion]) -> float:
    """Mean squared distance of a frame to the next one warped to it, where it is seen in both."""
    errors = []
    for before, after, motion in zip(video[:-1], video[1:], motions, strict=True):
        gap = np.stack([warp(after[..., c], motion.forward) for c in range(3)], axis=-1) - before
        errors.append(np.square(gap).sum(-1)[motion.seen_next].mean())
    return float(np.mean(errors))


def measures(scene: Scene, motions: list[Motion], fault: Fault, exact: bool) -> dict[str, float]:
    video = scene.video(fault)
    found = measure(video, fps=24, flow=scene.flow if exact else None)
    y = luminance(srgb_to_linear(video))
    return {name: found[name] for name in OURS} | {
        "1 - VBench": 1 - found["vbench_temporal_flickering"],
        "mean abs dY": float(np.abs(np.diff(y, axis=0)).mean()),
        "original penalty": found["light_consistency"],
        "warping error": warping_error(video, motions),
    }


def measure_all(seeds: int, exact: bool) -> Cells:
    cells: Cells = {}
    for name in SCENES:
        for level in LEVELS:
            rows: dict[str, list[dict[str, float]]] = {fault: [] for fault in FAULTS}
            for seed in range(seeds):
                scene = make_scene(name, level, seed=seed)
                motions = list(given_motion(scene.flow, *scene.linear.shape[1:3]))
                for fault in FAULTS:
                    rows[fault].append(measures(scene, motions, FAULTS[fault], exact))
            for fault, found in rows.items():
                cells[fault, name, level] = {m: np.array([row[m] for row in found]) for m in (*OURS, *ELSEWHERE)}
            print(f"{name} at {level}: done", file=sys.stderr)
    return cells


def pooled(cells: Cells, measure_name: str, fault: str, scenes: tuple[str, ...] = ()) -> np.ndarray:
    """Readings of the clips that have the fault, of all scenes if none is named."""
    return np.concatenate([found[measure_name] for (of, name, _), found in cells.items()
                           if of == fault and (not scenes or name in scenes)])


def shown(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def cell_table(cells: Cells) -> list[str]:
    """Mean over seeds per scene and level, sound; and per fault over still and over moving scenes."""
    names = (*OURS, *ELSEWHERE)
    lines = ["| clips | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name in SCENES:
        for level in LEVELS:
            cell = cells["none", name, level]
            lines.append(f"| {name}, {level} | " + " | ".join(shown(cell[m].mean()) for m in names) + " |")
    moving = tuple(name for name in SCENES if name not in STILL)
    for fault in list(FAULTS)[1:]:
        for label, scenes in (("still", STILL), ("moving", moving)):
            values = [pooled(cells, m, fault, scenes).mean() for m in names]
            lines.append(f"| **{fault}**, {label} | " + " | ".join(map(shown, values)) + " |")
    return lines


def separation_table(cells: Cells) -> list[str]:
    """Per fault, the smallest reading of any clip that has it over the largest of any sound clip."""
    names = (*OURS, *ELSEWHERE)
    lines = ["| smallest faulty / largest sound | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    largest = {m: pooled(cells, m, "none").max() for m in names}
    lines.append("| largest sound reading | " + " | ".join(shown(largest[m]) for m in names) + " |")
    for fault in list(FAULTS)[1:]:
        ratios = []
        for m in names:
            smallest = pooled(cells, m, fault).min()
            ratios.append(shown(smallest / largest[m]) if largest[m] else "–")
        lines.append(f"| {fault} | " + " | ".join(ratios) + " |")
    return lines


def verdicts(cells: Cells) -> list[str]:
    """The bounds that the metrics have to hold, and what they read."""
    lines = []
    sustained = [fault for fault in FAULTS if fault.startswith("flicker")]
    for name, factor in (("global_flicker", 20), ("local_flicker", 7)):
        largest = pooled(cells, name, "none").max()
        smallest = min(pooled(cells, name, fault).min() for fault in sustained)
        strong = min(pooled(cells, name, fault).min() for fault in sustained[2:])
        lines.append(f"- `{name}`: every flicker from 1 % on ≥ {smallest / largest:.2f} × every sound clip (bound 1); "
                     f"from 6 % on ≥ {strong / largest:.1f} × (bound {factor})")
    moving = tuple(name for name in SCENES if name not in STILL)
    single = [fault for fault in FAULTS if fault.startswith(("step", "flash"))]
    still = min(pooled(cells, "flicker_peak", fault, STILL).min() for fault in single)
    move = min(pooled(cells, "flicker_peak", fault, moving).min() for fault in single)
    sound = pooled(cells, "flicker_peak", "none").max()
    lines.append(f"- `flicker_peak` of a step or a flash: ≥ {still:.1f} without motion (bound 5); ≥ {move:.1f} with "
                 f"motion, sound clips ≤ {sound:.2f}")
    flash = cells["flash 60%", "constant", "bright"]["flash_rate"]
    lines.append(f"- `flash_rate`: sound clips ≤ {shown(pooled(cells, 'flash_rate', 'none').max())}; of the one flash "
                 f"per {25 / 24:.2f} s in `constant`, bright: {(flash > 0).sum()} of {len(flash)} counted")
    return lines


def filmed(pattern: str, draws: int, size: float) -> list[str]:
    """`common_flicker` of filmed clips as they are, and under flicker, mean over draws."""
    lines = ["| clip | untouched | with flicker | ratio |", "|---|---|---|---|"]
    clean, faulty, ratios = [], [], []
    for path in sorted(glob.glob(pattern)):
        frames, fps, _ = files.read(path)
        linear = srgb_to_linear(frames.astype(np.float32) / 255)
        clean.append(measure(frames, fps=fps)["common_flicker"])
        reads = []
        for draw in range(draws):
            gains = 1 + size * np.random.default_rng(draw).standard_normal(len(linear))
            video = linear_to_srgb(linear * gains[:, None, None, None].astype(np.float32))
            reads.append(measure(video, fps=fps)["common_flicker"])
        faulty.append(float(np.mean(reads)))
        ratios.append(faulty[-1] / clean[-1] if clean[-1] else math.inf)
        lines.append(f"| {Path(path).stem} | {clean[-1]:.4f} | {faulty[-1]:.4f} | {ratios[-1]:.1f} |")
        print(lines[-1], file=sys.stderr)
    if not clean:
        raise SystemExit(f"--clips {pattern}: no file matches")
    overall = min(faulty) / max(clean) if max(clean) else math.inf
    lines += ["", f"Smallest with flicker over largest untouched: {overall:.2f} (bound 2.5); "
              f"smallest ratio of one clip: {min(ratios):.2f} (bound 3)"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="clips per scene, level and fault")
    parser.add_argument("--flow", choices=("given", "dis"), default="given")
    parser.add_argument("--clips", help="glob of filmed clips; measures these instead")
    parser.add_argument("--draws", type=int, default=20, help="draws of flicker per filmed clip")
    parser.add_argument("--out", type=Path, help="Markdown file; by default one in benchmarks/results/")
    flags = parser.parse_args()
    start, used = time.perf_counter(), time.process_time()
    if flags.clips:
        name = "light_filmed"
        lines = [f"`common_flicker` in stops, flicker of 2 %, mean over {flags.draws} draws.", ""]
        lines += filmed(flags.clips, flags.draws, 0.02)
    else:
        name = f"light_counterfactual_{flags.flow}"
        cells = measure_all(flags.seeds, flags.flow == "given")
        clips = flags.seeds * len(cells)
        lines = [f"{clips} float clips, {flags.seeds} seeds per cell, 25 frames of 96 x 128 at 24 fps, flow "
                 f"{'exact' if flags.flow == 'given' else 'estimated (DIS)'}.", ""]
        lines += [*verdicts(cells), "", *separation_table(cells), "", "Means:", "", *cell_table(cells)]
    out = flags.out or RESULTS / f"{name}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    stamp = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, OpenCV {cv2.__version__}"
    cost = f"{time.perf_counter() - start:.0f} s, {time.process_time() - used:.0f} processor seconds"
    out.write_text("\n".join([f"<!-- {stamp}; {cost} -->", *lines]) + "\n", encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
