"""Takes flicker of exposure and colour out of clips and keeps their slow change of light.

    python -m experiments.correct --videos 'clips/*.mp4' --out corrected

Each clip is written to the folder --out under its own name as .mp4, with its frame rate and the facts stored in it,
and one more, "corrected"; sound is not carried over. Nothing is written over a clip that is read.
Files that cannot be read or written are named and the others go on; the exit code is then 1. Each file is read twice,
a frame at a time: memory does not grow with its length.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from wanjax import video
from wanjax.light.correct import Correction, estimate


def targets(videos: str, out: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """Pairs of a clip to read and the file to write, which lies under --out as the clip does below the folder
    that all have in common.

    Raises:
      FileNotFoundError: no file matches.
      ValueError: --out is a file.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file: expected a folder")
    sources = sorted(Path(name) for name in glob.glob(videos, recursive=True) if Path(name).is_file())
    if not sources:
        raise FileNotFoundError(f"--videos {videos!r}: no file matches")
    root = Path(os.path.commonpath([source.absolute().parent for source in sources]))
    return [(source, folder / source.absolute().relative_to(root).with_suffix(".mp4")) for source in sources]


def refuse_collisions(source: Path, target: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raises ValueError where ``target`` is a clip that is read, or is another clip's target too."""
    for other, its_target in pairs:
        if target.exists() and target.samefile(other):
            raise ValueError(f"{source}: not written over {other}, which is read: name another folder with --out")
        if its_target == target and other != source:
            raise ValueError(f"{source}: {other} would be written to {target} too: correct them into two folders")


def correct_file(source: Path, target: Path, period: float | None) -> str:
    """Corrects one clip into ``target``; returns a line that says what was done.

    Raises:
      ValueError, OSError: the clip cannot be read or the file not be written; what was there is then kept.
    """
    clip = video.stream(source)
    correction = estimate(clip.frames, fps=clip.fps, period=period)
    frames = (correction.apply(frame, index) for index, frame in enumerate(video.stream(source).frames))
    done = {"period": round(correction.period, 6), **_extent(correction)}
    video.write(target, frames, clip.fps, {**clip.metadata, "corrected": done})
    return (
        f"{target}: {len(correction.stops)} frames, exposure moved by {done['mean_stops']:.4f} stops in the mean, "
        f"{done['largest_stops']:.4f} at most"
    )


def _extent(correction: Correction) -> dict[str, float]:
    """How much was done to the whole picture, in stops."""
    moved = np.abs(correction.stops[:, :, 0])
    return {"mean_stops": round(float(moved.mean()), 4), "largest_stops": round(float(moved.max()), 4)}


def run(videos: str, out: str, period: float | None = None) -> int:
    """Corrects the clips that match; returns how many could not be. Raises what :func:`targets` raises."""
    pairs = targets(videos, out)
    failed = 0
    for source, target in pairs:
        try:
            refuse_collisions(source, target, pairs)
            print(correct_file(source, target, period), flush=True)
        except (ValueError, OSError) as error:
            named = str(error) if source.name in str(error) else f"{source}: {error}"
            failed += 1
            print(f"error: {named}", file=sys.stderr, flush=True)
    if failed:
        print(f"error: {failed} of {len(pairs)} clips could not be corrected", file=sys.stderr)
    return failed


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --, and a glob needs quotes")
    given = flags.FLAGS
    try:
        failed = run(given.videos, given.out, given.period)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if failed else 0)


def entry() -> None:
    """Console entry point. The flags are defined here so that importing this module leaves absl's alone."""
    flags.DEFINE_string("videos", None, "Glob of clips to correct (quote it; ** reaches folders below).", required=True)
    flags.DEFINE_string("out", None, "Folder of the corrected clips; made if it is not there.", required=True)
    flags.DEFINE_float("period", None, "Seconds, at least ten frames: light that comes and goes faster is flicker. "
                       "Default: 1, or ten frames where that is longer.", lower_bound=0.0)
    app.run(main)


if __name__ == "__main__":
    entry()
