"""Frames per second that the scenes are rendered at, per family, on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.light_scenes_speed [--clips 8] [--size 64] [--passes [along|later]]

Each clip is another scene; seconds are those of this process (not the clock's), so that other work on the machine
counts little. The last line is for a table of results. Measured before:

| date | what, 64x64 | frames/s per core: least (family), median over families | per family, of the commit before |
|---|---|---|---|
| 2026-11-25 | video | 426 (street_lamp/moving), 659 | 0.88 to 1.9 times |
| 2026-11-25 | video and all passes | 240 (street_lamp/moving), 360 | 1.3 to 2.9 times |
| 2026-11-25 | video, then all passes | 172 (street_lamp/moving), 256 | 1.0 to 2.1 times |

Medians of three runs on a busy AMD EPYC (load 7 on 2 cores). Between them the commit before gave, on the same scenes:
video 281 (street_lamp/moving), 502; all passes, which it rendered after the video alone, 92 (street_lamp/moving), 178.
The video alone of ``sunrise_room`` and its blinds, the fastest, is 7 to 12 % slower than it was: larger pieces suit
scenes in which things move.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import statistics
import time

from data_pipelines.light_scenes import ALL, ClipSize, ClipSpec, render_clip
from data_pipelines.light_scenes.families import signs_of


def processor() -> str:
    """The processor's name where the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


PASSES = {"": "video", "along": "video and all passes", "later": "video, then all passes"}


def frames_per_second(kind: str, clips: int, size: ClipSize, passes: str) -> float:
    """Frames per second of ``clips`` scenes of a family, after one that is not counted; ``passes`` is of ``PASSES``."""
    family, _, variant = kind.partition("/")
    signs = dict.fromkeys(signs_of(family), 1)
    seconds = 0.0
    for scene in range(clips + 1):
        spec = ClipSpec(family, scene, variant=variant, **signs)
        start = time.process_time()
        clip = render_clip(spec, size, passes == "along")
        if passes:
            _ = clip.passes
        if scene:
            seconds += time.process_time() - start
    return clips * size.frames / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="scenes per family")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument(
        "--passes", nargs="?", const="along", default="", choices=("along", "later"),
        help="render every pass as well: along with the video, or when it is done and they are asked for",
    )
    arguments = parser.parse_args()
    size = ClipSize(height=arguments.size, width=arguments.size)
    rates = {}
    for kind in ALL:
        rates[kind] = frames_per_second(kind, arguments.clips, size, arguments.passes)
        print(f"{kind:22s} {rates[kind]:6.0f} frames/s", flush=True)
    what = PASSES[arguments.passes]
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(
        f"{datetime.date.today()}, {processor()}, {what}, {arguments.size}x{arguments.size}, "
        f"{arguments.clips} clips per family{load}: least {min(rates.values()):.0f} ({min(rates, key=rates.get)}), "
        f"median {statistics.median(rates.values()):.0f} frames/s per core"
    )


if __name__ == "__main__":
    main()
