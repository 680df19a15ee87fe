"""Measures the light of clips: JSON, and one HTML page with the clips playing, their curves and tables.

    python -m experiments.evaluate --workdir runs/demo --json runs/demo/report.json --report runs/demo/report.html
    python -m experiments.evaluate --videos 'clips/*.mp4' --report report.html

``--workdir`` reads what ``experiments.sample`` left in its folder ``samples`` and scores every clip against its
caption. ``--references`` names the folder of the rendered scenes: each clip is then shown beside the rendered clip
that its caption was written for, and the estimator is checked on rendered held-out clips first, forwards and played
backwards. ``--videos`` measures any clips; nothing is scored where no caption's answers are known.

Files that cannot be read are named, in the report too, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from data_pipelines import light_scenes
from wanjax import evaluate, report

_VIDEOS = flags.DEFINE_string("videos", None, "Glob of clips to measure (quote it; ** reaches folders below).")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run whose sampled clips (WORKDIR/samples/samples.jsonl) to measure.")
_JSON = flags.DEFINE_string("json", None, "File for the measurements as JSON.")
_REPORT = flags.DEFINE_string("report", None, "File for the self-contained HTML report.")
_SHEET = flags.DEFINE_string("sheet", None, "PNG file for frames of the first twelve clips.")
_REFERENCES = flags.DEFINE_string("references", None, "Data folder of the rendered scenes, to compare with.")
_REFERENCE_CLIPS = flags.DEFINE_integer(
    "reference_clips", 32, "Rendered held-out clips the estimator is checked on; 0 for none.", lower_bound=0
)
_TITLE = flags.DEFINE_string("title", None, "Headline of the report.")


def rendered(source: Any, count: int) -> Iterator[tuple[np.ndarray, float, Mapping[str, Any]]]:
    """Frames, rate and facts of the first ``count`` rendered held-out clips."""
    for index in range(min(count, len(source))):
        example = source[index]
        family = example["family"]
        facts = {
            "family": family.decode() if isinstance(family, bytes) else str(family),
            "exposure_change": int(example["exposure_change"]),
            "sweep": int(example["sweep"]),
        }
        yield example["video"], float(example["fps"]), facts


def reference_of(source: Any, facts: Mapping[str, Any]) -> Callable[[], evaluate.Reference] | None:
    """What opens the rendered clip that a sample's caption was written for; None where it names no scene."""
    scene = facts.get("scene")
    if source is None or scene is None:
        return None
    if not (isinstance(scene, int) and 0 <= scene < len(source)):
        raise ValueError(
            f"scene {scene!r} of {facts.get('prompt')!r}: --references holds {len(source)} test clips; name the data "
            "that the prompts came from"
        )

    def open_reference() -> evaluate.Reference:
        example = source[scene]
        return evaluate.Reference(example["video"], float(example["fps"]))

    return open_reference


def headline(summary: Mapping[str, Any]) -> list[str]:
    """The figures to print."""
    lines = [f"clips measured: {summary['clips_measured']}"]
    if check := summary["estimator"]:
        parts = ", ".join(
            f"{family} {c['forward']}/{c['clips']} (backwards {c['backward']}/{c['clips']})"
            for family, c in check.items()
        )
        lines.append(f"estimator on rendered clips: {parts}")
    if score := summary["score"]:
        shuffled = summary["shuffled_captions"]
        lines += [
            f"captions followed: {score['correct']} of {score['of']} "
            f"(brightness {score['exposure_change']}, sweep {score['sweep']})",
            f"against shuffled captions: {shuffled['correct']} of {shuffled['of']}",
        ]
    for name in ("global_flicker", "local_flicker", "common_flicker", "exposure_slope_error", "sweep_rate_error"):
        if entry := summary["metrics"].get(name):
            known = f", rendered {entry['reference_mean']:.4f}" if "reference_mean" in entry else ""
            lines.append(f"{name}: {entry['mean']:.4f} {entry['unit']}{known}")
    return lines


def run(command: str) -> int:
    """Measures and writes; the exit code."""
    source = light_scenes.open_split(_REFERENCES.value, "test") if _REFERENCES.value else None
    if _WORKDIR.value:
        records = evaluate.records_of_samples(Path(_WORKDIR.value) / "samples", functools.partial(reference_of, source))
        title = _TITLE.value or f"Light in the clips of {Path(_WORKDIR.value).resolve().name}"
    else:
        records = evaluate.records_of_videos(_VIDEOS.value)
        title = _TITLE.value or "Light, measured"
    estimator = None
    if source is not None and _REFERENCE_CLIPS.value:
        estimator = evaluate.check_estimator(rendered(source, _REFERENCE_CLIPS.value))
    evaluation = evaluate.evaluate_clips(
        records, estimator=estimator, report=lambda line: print(line, file=sys.stderr, flush=True)
    )
    summary = evaluation.summary()
    if _JSON.value:
        evaluate.write_text(_JSON.value, json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False))
    if _REPORT.value:
        evaluate.write_text(_REPORT.value, report.render(evaluation, title=title, command=command))
        print(f"report: {_REPORT.value}")
    if _SHEET.value:
        Path(_SHEET.value).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(report.contact_sheet(evaluation)).save(_SHEET.value, format="PNG")
    print("\n".join(headline(summary)))
    if evaluation.unreadable:
        print(f"error: {len(evaluation.unreadable)} of {len(records)} clips could not be measured:", file=sys.stderr)
        for file in evaluation.unreadable:
            print(f"  {file['error']}", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --, and a glob needs quotes")
    if bool(_VIDEOS.value) == bool(_WORKDIR.value):
        raise app.UsageError("give either --videos GLOB or --workdir DIR")
    try:
        code = run("python -m experiments.evaluate " + " ".join(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


def entry() -> None:
    """Console entry point."""
    app.run(main)


if __name__ == "__main__":
    entry()
