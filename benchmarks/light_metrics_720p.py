"""Time and memory of measuring the light of one 720p clip of 81 frames, the length that Wan makes.

    python benchmarks/light_metrics_720p.py

The clip (a textured picture that is panned, so that optical flow has work to do) is written to a file and then read and
measured frame by frame, as `experiments.evaluate` does; decoding is timed apart. Two threads at most.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import video
from wanjax.light.metrics import measure

FRAMES, HEIGHT, WIDTH, FPS = 81, 720, 1280, 16
BOUND_SECONDS, BOUND_BYTES = 40, 2e9
RESULT = Path(__file__).resolve().parent / "results" / "light_metrics_720p.md"


def panned() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (90, 200, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (WIDTH + 3 * FRAMES, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for t in range(FRAMES):
        yield np.ascontiguousarray(picture[:, 3 * t : 3 * t + WIDTH])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT, help="Markdown file")
    flags = parser.parse_args()
    cv2.setNumThreads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        video.write(path, panned(), FPS)
        start, used = time.perf_counter(), time.process_time()
        for _ in video.stream(path).frames:
            pass
        decoding = time.perf_counter() - start
        between, used_between = time.perf_counter(), time.process_time()
        metrics = measure(video.stream(path).frames, fps=FPS)
        seconds, processor = time.perf_counter() - between, time.process_time() - used_between
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = [
        f"<!-- {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"OpenCV {cv2.__version__} -->",
        f"{FRAMES} frames of {WIDTH} x {HEIGHT} read from a file and measured, 2 threads:",
        "",
        "| | measured | bound |",
        "|---|---|---|",
        f"| seconds | {seconds:.1f} (decoding alone {decoding:.1f}) | {BOUND_SECONDS} |",
        f"| processor seconds | {processor:.1f} (decoding alone {used_between - used:.1f}) | |",
        f"| peak memory of the process, encoder included | {peak / 1e9:.2f} GB | {BOUND_BYTES / 1e9:.0f} GB |",
        "",
        f"`local_flicker` of that pan: {metrics['local_flicker']:.4f} stops.",
    ]
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
