"""Measures the light of clips: JSON, and one HTML page with the clips playing, their curves and tables.

    python -m experiments.evaluate --workdir runs/demo --json runs/demo/report.json --report runs/demo/report.html
    python -m experiments.evaluate --videos 'clips/*.mp4' --report report.html
    python -m experiments.evaluate --videos 'ours/*.mp4' --against 'theirs/*.mp4' --report compared.html
    python -m experiments.evaluate --videos 'corrected/*.mp4' --against 'clips/*.mp4' --against_is original

``--workdir`` reads what ``experiments.sample`` left in its folder ``samples`` and scores every clip against its
caption. ``--references`` names the folder of the rendered scenes, ``--references_families`` which of its data sets the
captions are of: each clip is then shown beside the rendered clip that its caption was written for, and the estimator is
checked on rendered held-out clips first, forwards and played backwards. ``--videos`` measures any clips; nothing is
scored where no caption's answers are known.

``--against`` pairs the clips with another set (a glob, or a run) and says whether they are better: flicker has to fall
and the light's path has to be kept. docs/evaluate.md explains the report, the JSON and what is done with which file.

Files that cannot be measured are named, in the report too, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from data_pipelines import light_scenes
from wanjax import compare, evaluate, report, scoring
from wanjax.clip_records import SAMPLES
from wanjax.run_folder import local_folder

_VIDEOS = flags.DEFINE_string("videos", None, "Glob of clips to measure (quote it; ** reaches folders below).")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run whose sampled clips (WORKDIR/samples/samples.jsonl) to measure.")
_JSON = flags.DEFINE_string("json", None, "File for the measurements as JSON.")
_REPORT = flags.DEFINE_string("report", None, "File for the self-contained HTML report.")
_SHEET = flags.DEFINE_string("sheet", None, "PNG file for frames of the first twelve clips.")
_REFERENCES = flags.DEFINE_string("references", None, "Data folder of the rendered scenes, to compare with.")
_REFERENCES_FAMILIES = flags.DEFINE_string(
    "references_families",
    ",".join(light_scenes.FAMILIES),
    "Families of that data set, as it was made with --families: 'all', or names separated by commas.",
)
_REFERENCE_CLIPS = flags.DEFINE_integer(
    "reference_clips", 32, "Rendered held-out clips the estimator is checked on; 0 for none.", lower_bound=0
)
_ESTIMATOR_CLIPS = flags.DEFINE_integer(
    "estimator_clips",
    0,
    "Held-out clips of each family of the clips, and controls, that are rendered to check the estimator on, in place "
    "of --reference_clips; more is surer, 100 take minutes.",
    lower_bound=0,
)
_AGAINST = flags.DEFINE_string("against", None, "Clips to compare with: a glob, a run, or a folder of samples.")
_AGAINST_IS = flags.DEFINE_enum(
    "against_is",
    "rival",
    ["rival", "original"],
    "rival: other clips of the same captions. original: the clips that these were made from, whose light's path is to "
    "be kept.",
)
_PAIR_BY = flags.DEFINE_enum(
    "pair_by",
    "auto",
    ["auto", "name", "prompt"],
    "What makes a pair: the file's name, or prompt and seed; auto takes these where every clip has them.",
)
_NAME = flags.DEFINE_string("name", None, "What these clips are called in the report.")
_AGAINST_NAME = flags.DEFINE_string("against_name", None, "What those of --against are called.")
_PAGE_MB = flags.DEFINE_integer(
    "page_mb", report.PAGE_LIMIT >> 20, "MiB that the cards of single clips may take in the report.", lower_bound=1
)
_TITLE = flags.DEFINE_string("title", None, "Headline of the report.")


def open_references(folder: str, families: str) -> Any:
    """The test split of the data set of ``families`` in a folder.

    Raises:
      ValueError: unknown families.
      FileNotFoundError: no such data set; names those that are there.
    """
    config = light_scenes.LightScenesConfig.balanced(families=light_scenes.parse_families(families))
    try:
        return light_scenes.open_split(folder, "test", config=config)
    except FileNotFoundError as error:
        there = sorted(path.name for path in Path(folder).expanduser().glob("light_scenes/*") if path.is_dir())
        held = f"it holds {', '.join(there)}" if there else "it holds no data set"
        raise FileNotFoundError(
            f"--references {folder} --references_families {families}: {config.name} is not there; {held}. Name the "
            "families that the captions' data set was made with ('all' for names that end in _all), or render it"
        ) from error


def facts_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a rendered clip, under the names of the facts of a sample."""

    def text(name: str) -> str:
        value = example.get(name, "")
        return value.decode() if isinstance(value, bytes) else str(value)

    facts = {"family": text("family"), "variant": text("variant")}
    facts |= {name: int(example[name]) for name in ("exposure_change", "sweep", "glints") if name in example}
    if "cct_slope" in example:
        facts["color_change"] = int(np.sign(example["cct_slope"])) if facts["exposure_change"] else 0
    if scoring.kind_of(facts) == "street_lamp":
        facts["shadow_follows"] = 1
    return facts


def check(records: Sequence[evaluate.ClipRecord], source: Any) -> dict[str, dict[str, Any]] | None:
    """The estimator's check that was asked for; None without one."""
    if _ESTIMATOR_CLIPS.value:
        kinds = dict.fromkeys(scoring.kind_of(record.facts) for record in records)
        known = [kind for kind in kinds if kind in light_scenes.ALL]
        families = known or light_scenes.parse_families(_REFERENCES_FAMILIES.value)
        return evaluate.check_estimator(light_scenes.rendered_checks(families, _ESTIMATOR_CLIPS.value))
    if source is not None and _REFERENCE_CLIPS.value:
        return evaluate.check_estimator(rendered(source, _REFERENCE_CLIPS.value))
    return None


def rendered(source: Any, count: int) -> Iterator[tuple[np.ndarray, float, Mapping[str, Any]]]:
    """Frames, rate and facts of the first ``count`` rendered held-out clips."""
    for index in range(min(count, len(source))):
        example = source[index]
        yield example["video"], float(example["fps"]), facts_of(example)


def reference_of(source: Any, facts: Mapping[str, Any]) -> Callable[[], evaluate.Reference] | None:
    """What opens the rendered clip that a sample's caption was written for; None where it names no scene.

    Raises ValueError where the data set has no such scene, or one of another family or with other signs.
    """
    scene = facts.get("scene")
    if source is None or scene is None:
        return None
    remedy = "name the data that the prompts came from (--references, --references_families)"
    if not (isinstance(scene, int) and 0 <= scene < len(source)):
        raise ValueError(
            f"scene {scene!r} of {facts.get('prompt')!r}: --references holds {len(source)} test clips; {remedy}"
        )
    there = facts_of(source[scene])
    for name in ("family", "variant", "exposure_change", "sweep", "glints"):
        if name in facts and facts[name] != there.get(name, facts[name]):
            raise ValueError(
                f"scene {scene} of {facts.get('prompt')!r}: its {name} is {facts[name]!r}, but {there[name]!r} in "
                f"--references; {remedy}"
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
        for family, c in check.items():
            for name, entry in c.get("answers", {}).items():
                controls = [f"{control} {k['right']}/{k['of']}" for control, k in entry["controls"].items()]
                deceived = f" (controls: {', '.join(controls)})" if controls else ""
                lines.append(f"  {name}, {family}: {entry['right']}/{entry['of']}{deceived}")
    if score := summary["score"]:
        shuffled = summary["shuffled_captions"]
        sweep = score["answers"].get("sweep", {"correct": 0, "of": 0})
        among = "" if sweep["of"] == score["of"] else f" of {sweep['of']}"
        lines += [
            f"captions followed: {score['correct']} of {score['of']} "
            f"(brightness {score['exposure_change']}, sweep {sweep['correct']}{among})",
            f"against shuffled captions: {shuffled['correct']} of {shuffled['of']}",
        ]
    for entry in summary["scenarios"]:
        if entry["score"] and summary["clips"][entry["clips"][0]].get("scenario") == entry["name"]:
            lines += scenario_lines(entry)
    for name in ("global_flicker", "local_flicker", "common_flicker", "exposure_slope_error", "sweep_rate_error"):
        if entry := summary["metrics"].get(name):
            known = f", rendered {entry['reference_mean']:.4f}" if "reference_mean" in entry else ""
            lines.append(f"{name}: {entry['mean']:.4f} {entry['unit']}{known}")
    return lines


def scenario_lines(entry: Mapping[str, Any]) -> list[str]:
    """The score of a scenario, and per answer that its captions state, beside the rendered clips'."""

    def share(score: Mapping[str, Any]) -> str:
        low, high = score["interval_95"]
        return f"{score['correct']} of {score['of']} [{100 * low:.0f}-{100 * high:.0f} %]"

    rendered = entry["rendered"]
    beside = f", rendered {rendered['correct']} of {rendered['of']}" if rendered else ""
    lines = [f"{entry['name']}: {share(entry['score'])} as captioned{beside}"]
    for name, answer in entry["score"]["answers"].items():
        known = rendered["answers"][name] if rendered else None
        beside = f", rendered {known['correct']} of {known['of']}" if known else ""
        lines.append(f"  {name}: {share(answer)}{beside}")
    return lines


def records_against(target: str, source: Any) -> list[evaluate.ClipRecord]:
    """The clips that ``--against`` names."""
    folder = Path(target)
    if not folder.is_dir():
        return evaluate.records_of_videos(target, flag="--against")
    for candidate in (folder / "samples", folder):
        if (candidate / SAMPLES).is_file():
            return evaluate.records_of_samples(candidate, functools.partial(reference_of, source))
    raise FileNotFoundError(f"--against {target}: a folder without {SAMPLES}; give a glob such as '{folder}/*.mp4'")


def set_name(given: str | None, target: str) -> str:
    """A name for a set of clips: what was given, else its folder's."""
    if given:
        return given
    path = Path(target)
    while path.name and (not path.is_dir() or path.name == "samples"):
        path = path.parent
    return path.resolve().name or "clips"


def verdict_lines(comparison: compare.Comparison) -> list[str]:
    """What to print of a comparison."""
    lines = [f"pairs: {len(comparison.pairs)} by {comparison.rule}, without a partner: {len(comparison.unpaired)}"]
    for d in [*(d for d in comparison.differences if d.name in compare.FLICKER), *comparison.path]:
        low, high = d.interval or (d.difference, d.difference)
        lines.append(
            f"{d.name}: {d.against:.4f} -> {d.mean:.4f} {d.unit}, difference {d.difference:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], p = {d.p:.4f}"
        )
    return [*lines, comparison.verdict.words]


def run(command: str) -> int:
    """Measures and writes; the exit code."""
    source = open_references(_REFERENCES.value, _REFERENCES_FAMILIES.value) if _REFERENCES.value else None
    if _WORKDIR.value:
        records = evaluate.records_of_samples(Path(_WORKDIR.value) / "samples", functools.partial(reference_of, source))
        title = f"Light in the clips of {Path(_WORKDIR.value).resolve().name}"
    else:
        records = evaluate.records_of_videos(_VIDEOS.value)
        title = "Light, measured"
    name = set_name(_NAME.value, _WORKDIR.value or _VIDEOS.value)
    others = records_against(_AGAINST.value, source) if _AGAINST.value else []
    estimator = check(records, source)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    evaluation = evaluate.evaluate_clips(records, estimator=estimator, report=tell, name=name)
    comparison = None
    if others:
        other = set_name(_AGAINST_NAME.value, _AGAINST.value)
        against = evaluate.evaluate_clips(others, report=tell, name=f"{other} (against)" if other == name else other)
        original = _AGAINST_IS.value == "original"
        comparison = compare.compare(evaluation, against, pair_by=_PAIR_BY.value, original=original)
        title = f"{evaluation.name} against {against.name}"
    write(evaluation, comparison, _TITLE.value or title, command)
    print("\n".join(headline(evaluation.summary())))
    if comparison:
        print("\n".join(verdict_lines(comparison)))
    refused = [*evaluation.unreadable, *(comparison.against.unreadable if comparison else [])]
    if refused:
        print(f"error: {len(refused)} of {len(records) + len(others)} clips could not be measured:", file=sys.stderr)
        for file in refused:
            print(f"  {file['error']}", file=sys.stderr)
        return 1
    return 0


def write(evaluation: evaluate.Evaluation, comparison: compare.Comparison | None, title: str, command: str) -> None:
    """The files that were asked for."""
    if _JSON.value:
        summary = evaluation.summary() | ({"comparison": comparison.summary()} if comparison else {})
        evaluate.write_text(_JSON.value, json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False))
    if _REPORT.value:
        limit = _PAGE_MB.value << 20
        page = report.render(evaluation, title=title, command=command, comparison=comparison, limit=limit)
        evaluate.write_text(_REPORT.value, page)
        print(f"report: {_REPORT.value}")
    if _SHEET.value:
        Path(_SHEET.value).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(report.contact_sheet(evaluation)).save(_SHEET.value, format="PNG")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --, and a glob needs quotes")
    if bool(_VIDEOS.value) == bool(_WORKDIR.value):
        raise app.UsageError("give either --videos GLOB or --workdir DIR")
    if flags.FLAGS["references_families"].present and not (_REFERENCES.value or _ESTIMATOR_CLIPS.value):
        raise app.UsageError("--references_families says which scenes to compare with: give --references DATA_DIR")
    if flags.FLAGS["reference_clips"].present and _ESTIMATOR_CLIPS.value:
        raise app.UsageError("--reference_clips and --estimator_clips say what to check the estimator on: give one")
    if not _AGAINST.value:
        for flag in (_AGAINST_IS, _PAIR_BY, _AGAINST_NAME):
            if flags.FLAGS[flag.name].present:
                raise app.UsageError(f"--{flag.name} says how to compare: give --against too")
    try:
        for flag in (_VIDEOS, _WORKDIR, _AGAINST, _JSON, _REPORT, _SHEET):
            if flag.value is not None:
                local_folder(flag.value, f"--{flag.name}")
        code = run("python -m experiments.evaluate " + " ".join(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


def entry() -> None:
    """Console entry point."""
    app.run(main)


if __name__ == "__main__":
    entry()
