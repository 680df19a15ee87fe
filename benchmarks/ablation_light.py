"""The ablation of the objective's terms: arms × seeds from one start, sampled alike, one line of results each.

    python benchmarks/ablation_light.py --checkpoint runs/demo --steps 300 --expert low --seeds 0,1,2
    python benchmarks/ablation_light.py --config configs/light_scenes_tiny.py --study scratch --arms velocity,light_0.1
    python benchmarks/ablation_light.py --summary

An arm continues the checkpoint's EMA weights (or, with ``--config``, starts from random ones) for a fixed number of
steps with its own objective and everything else equal: within a seed all arms see the same batches and noise. Each then
samples the same held-out captions from the same noise, with the other expert from the checkpoint. Clips are measured
beside the rendered clips that the captions were written for: flicker counts as the excess over those, trajectories as
errors against what is known of the scene (docs/light.md). A line goes to ``--results`` for every arm and seed, and what
is there is not done again; an interrupted training goes on. ``--summary`` prints tables with intervals from a bootstrap
over captions, paired with the arm ``velocity``.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines import encode
from experiments import train as train_launcher
from wanjax import checkpoint, config, generate, pipeline
from wanjax.light.metrics import measure

RESULTS = Path(__file__).resolve().parent / "results/ablation_light.jsonl"
BASELINE = "velocity"
OFF: dict[str, Any] = {f"objective.{term}.weight": 0.0 for term in
                       ("light", "light_consistency", "temporal_luminance", "shadow", "change_weight")}
OFF["objective.velocity.weight"] = 1.0
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    **{f"light_{weight:g}": {"objective.light.weight": weight} for weight in (0.03, 0.1, 0.3, 1.0)},
    "light_second_difference": {"objective.light.weight": 0.1, "objective.light.orders": (2,)},
    "consistency_absolute": {"objective.light_consistency.weight": 1.0,
                             "objective.light_consistency.mode": "absolute"},
    "consistency_relative": {"objective.light_consistency.weight": 1.0,
                             "objective.light_consistency.mode": "relative"},
    "consistency_relative_5": {"objective.light_consistency.weight": 5.0,
                               "objective.light_consistency.mode": "relative"},
    # its value is a hundredth of velocity's: the first weight is next to nothing, the second a real part of the loss
    "temporal_luminance_0.1": {"objective.temporal_luminance.weight": 0.1},
    "temporal_luminance_3": {"objective.temporal_luminance.weight": 3.0, "objective.temporal_luminance.clips": 4},
    "shadow": {"objective.shadow.weight": 0.1},
    "change_weight": {"objective.velocity.weight": 0.0, "objective.change_weight.weight": 1.0},
}
EXCESS = ("global_flicker", "local_flicker", "common_flicker")
KEPT = (*EXCESS, "flicker_peak", "sweep_mass")
APART = "water_glitter"
_RESAMPLES = 4000


@dataclasses.dataclass(frozen=True)
class Caption:
    """A held-out caption, the noise it is sampled from, and what is known of its scene."""

    scene: int
    prompt: str
    seed: int
    family: str
    truth: Mapping[str, float]
    frames: np.ndarray  # [T, H, W, 3] uint8, rendered
    fps: float


def held_out(experiment: config.Experiment, count: int) -> list[Caption]:
    """The first ``count`` clips of the test split, languages in turn by groups of eight."""
    source = encode.open_source(experiment.data)
    examples = source.builder.as_data_source("test")
    if count > len(examples):
        raise ValueError(f"--captions {count}: the test split has {len(examples)} clips")
    found = []
    for i in range(count):
        example = examples[i]
        text = example[source.captions[i // 8 % len(source.captions)]]
        truth = {k: float(v) for k, v in example.items() if k in ("exposure_slope", "cct_slope", "sweep_rate")}
        family = example.get("family", b"")
        found.append(Caption(i, _string(text), 1000 + i, _string(family), truth, np.asarray(example["video"]),
                             float(example["fps"])))
    return found


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def arm_experiment(base: config.Experiment, arm: Mapping[str, Any], seed: int, options: argparse.Namespace
                   ) -> config.Experiment:
    """The experiment of one arm and seed."""
    values = config.to_dict(base)
    steps = {"train.steps_high": options.steps, "train.steps_low": options.steps} if options.steps else {}
    changes = {**OFF, "seed": seed, "data.seed": seed, "train.expert": options.expert, **steps,
               "train.preview_every": 0, "train.keep": 1, "train.init_from": options.checkpoint or "", **options.set,
               **arm}
    if options.cache_dir:
        changes["data.cache_dir"] = options.cache_dir
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        node = values
        for name in parents:
            node = node[name]
        if leaf not in node:
            raise ValueError(f"{dotted}: no such field of the config")
        node[leaf] = value
    experiment = config.from_dict(values)
    longest = max(experiment.train.steps(name) for name in experiment.train.experts)
    loop = dataclasses.replace(experiment.train, validate_every=longest, checkpoint_every=max(longest // 4, 1))
    return dataclasses.replace(experiment, train=loop)


def run_arm(experiment: config.Experiment, captions: Sequence[Caption], rendered: Sequence[Mapping[str, float]],
            folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, samples and measures one arm; returns its part of the line."""
    cost = _timed_training(experiment, folder)
    own = pipeline.open_pipeline(folder)
    if options.checkpoint:
        shared = pipeline.open_pipeline(options.checkpoint)
        own = dataclasses.replace(own, experts={**shared.experts, **own.experts}, config=shared.config)
    clips = generate.generate(own, [c.prompt for c in captions], [c.seed for c in captions], config=own.config,
                              batch=options.batch)
    measured = []
    for caption, frames, reference in zip(captions, clips, rendered, strict=True):
        found = measure(frames, fps=caption.fps, truth=caption.truth)
        kept = {k: v for k, v in found.items() if k in KEPT or k.endswith("_error")}
        measured.append({"scene": caption.scene, "family": caption.family, "metrics": _rounded(kept),
                         "rendered": {k: reference[k] for k in EXCESS}})
    return {"cost": cost, "validation": {e: _validation(folder / e) for e in experiment.train.experts},
            "captions": measured}


def _timed_training(experiment: config.Experiment, folder: Path) -> dict[str, float]:
    """Trains; returns seconds, those of earlier launches that were cut off included."""
    file = folder / "cost.json"
    cost = json.loads(file.read_text()) if file.exists() else {"wall_seconds": 0.0, "processor_seconds": 0.0}
    wall, processor = time.perf_counter(), time.process_time()
    try:
        train_launcher.run(experiment, str(folder))
    finally:
        cost["wall_seconds"] = round(cost["wall_seconds"] + time.perf_counter() - wall, 1)
        cost["processor_seconds"] = round(cost["processor_seconds"] + time.process_time() - processor, 1)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(cost))
    return cost


def _validation(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["validation/velocity"] for line in lines if "validation/velocity" in line][-1]


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in values.items()}


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that was torn by a crash at its end is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]


def append_result(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line; one that was torn before it is taken out, or it would spoil this one too.

    Studies that run side by side take turns.
    """
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        file.truncate(len(text[: text.rfind("\n") + 1].encode()))
        file.write(json.dumps(line) + "\n")


def study(options: argparse.Namespace) -> None:
    """Every arm and seed that is not in the results yet."""
    if options.checkpoint:
        base = checkpoint.open_run(options.checkpoint).config
    else:
        base = config.load(options.config)
    arms = {**ARMS, **options.arm}
    chosen = options.arms.split(",") if options.arms else list(arms)
    unknown = [name for name in chosen if name not in arms]
    if unknown:
        raise SystemExit(f"unknown arms {', '.join(unknown)}: expected some of {', '.join(arms)}, or give --arm")
    settings = {"start": options.checkpoint or "random weights", "config": base.name, "expert": options.expert,
                "steps": options.steps, "captions": options.captions, "set": options.set}
    results = Path(options.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    # each arm and seed is refused before the first is trained
    plan = {(name, seed): arm_experiment(base, arms[name], seed, options)
            for seed in options.seeds for name in chosen}
    first = next(iter(plan.values()))
    captions = held_out(first, options.captions)
    rendered = [_rounded(measure(c.frames, fps=c.fps)) for c in captions]
    for (name, seed), experiment in plan.items():
        before = [r for r in read_results(results) if (r["study"], r["arm"], r["seed"]) == (options.study, name, seed)]
        if before:
            if before[0]["settings"] != settings or before[0]["overrides"] != arms[name]:
                raise SystemExit(f"{results} has arm {name}, seed {seed} of study {options.study!r} with other "
                                 f"settings ({before[0]['settings']}, {before[0]['overrides']}): give another --study")
            print(f"{name}, seed {seed}: in {results.name} already", flush=True)
            continue
        folder = Path(options.workdir) / options.study / f"{name}_seed{seed}"
        found = run_arm(experiment, captions, rendered, folder, options)
        line = {"study": options.study, "arm": name, "seed": seed, "settings": settings, "overrides": arms[name],
                **found}
        append_result(results, line)
        excess = np.mean([c["metrics"]["global_flicker"] - c["rendered"]["global_flicker"] for c in line["captions"]])
        print(f"{name}, seed {seed}: excess global_flicker {excess:.4f} stops, {found['cost']}", flush=True)


def table_of(lines: Iterable[Mapping[str, Any]], families: Sequence[str]) -> dict[str, np.ndarray]:
    """Values [seeds, captions] per measure, of one arm's lines: excess flicker and trajectory errors."""
    rows: dict[str, list[list[float]]] = {}
    for line in sorted(lines, key=lambda r: r["seed"]):
        clips = [c for c in line["captions"] if c["family"] in families]
        for name in EXCESS:
            rows.setdefault(f"{name} excess", []).append([c["metrics"][name] - c["rendered"][name] for c in clips])
        for name in sorted({k for c in clips for k in c["metrics"] if k.endswith("_error")}):
            rows.setdefault(name, []).append([c["metrics"].get(name, np.nan) for c in clips])
    return {name: np.asarray(values) for name, values in rows.items()}


def interval(arm: np.ndarray, baseline: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Change of an arm's mean relative to the baseline's, with a 95 % interval.

    Args:
      arm, baseline: [seeds, captions], paired.

    Returns:
      {"mean", "baseline", "change", "low", "high"}: both means, (mean − baseline) / |baseline|, and the ends of the
      interval of that from a bootstrap over captions, the same draws for both.
    """
    a, b = np.nanmean(arm, axis=0), np.nanmean(baseline, axis=0)
    draws = np.random.default_rng(seed).integers(len(a), size=(_RESAMPLES, len(a)))
    means = np.nanmean(a[draws], axis=1), np.nanmean(b[draws], axis=1)
    low, high = np.quantile((means[0] - means[1]) / np.abs(means[1]), (0.025, 0.975))
    mean, reference = float(np.nanmean(a)), float(np.nanmean(b))
    return {"mean": mean, "baseline": reference, "change": (mean - reference) / abs(reference), "low": float(low),
            "high": float(high)}


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables, one per study and group of families."""
    out = []
    for name in dict.fromkeys(line["study"] for line in lines):
        own = [line for line in lines if line["study"] == name]
        families = sorted({c["family"] for line in own for c in line["captions"]})
        groups = [[f for f in families if f != APART], [f for f in families if f == APART]]
        arms = sorted(dict.fromkeys(line["arm"] for line in own), key=lambda arm: arm != BASELINE)
        if BASELINE not in arms:
            out.append(f"{name}: no line of the arm {BASELINE!r} yet, nothing to compare with\n")
            continue
        for group in filter(None, groups):
            out.append(f"### {name}: {', '.join(group)}\n\n{_table(own, arms, group)}\n")
    return "\n".join(out)


def _table(lines: Sequence[Mapping[str, Any]], arms: Sequence[str], families: Sequence[str]) -> str:
    by_arm = {arm: {line["seed"]: line for line in lines if line["arm"] == arm} for arm in arms}
    names = list(table_of([lines[0]], families))
    rows = [f"| arm | seeds | captions | validation | processor s | {' | '.join(names)} |",
            "|---" * (5 + len(names)) + "|"]
    for arm in arms:
        shared = sorted(set(by_arm[arm]) & set(by_arm[BASELINE]))
        if not shared:
            continue
        own = [by_arm[arm][seed] for seed in shared]
        values, reference = (table_of([by_arm[a][seed] for seed in shared], families) for a in (arm, BASELINE))
        validation = np.mean([np.mean(list(line["validation"].values())) for line in own])
        cells = []
        for name in names:
            found = interval(values[name], reference[name])
            change = "" if arm == BASELINE else \
                f" ({100 * found['change']:+.0f} % [{100 * found['low']:+.0f}, {100 * found['high']:+.0f}])"
            cells.append(f"{found['mean']:.4f}{change}")
        cost = np.mean([line["cost"]["processor_seconds"] for line in own])
        captions = values[names[0]].shape[1]
        rows.append(f"| {arm} | {len(shared)} | {captions} | {validation:.4f} | {cost:.0f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="", help="run whose EMA weights every arm continues")
    parser.add_argument("--config", default="", help="config to train from random weights instead")
    parser.add_argument("--study", default="continued", help="name under which lines are kept together")
    parser.add_argument("--arms", default="", help="comma-separated; all by default")
    parser.add_argument("--arm", type=_pair, action="append", default=[], metavar='NAME={"objective...": value}',
                        help="another arm: its overrides as JSON")
    parser.add_argument("--set", type=_pair, action="append", default=[], metavar="field=value",
                        help="override of every arm, e.g. optimizer.learning_rate=5e-4")
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2])
    parser.add_argument("--expert", default="both", choices=["high", "low", "both"])
    parser.add_argument("--steps", type=int, default=0, help="per expert; 0 for the config's")
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="clips sampled together")
    parser.add_argument("--cache_dir", default="", help="of the latents; by default the run's")
    parser.add_argument("--workdir", default="runs/ablation")
    parser.add_argument("--results", default=str(RESULTS))
    parser.add_argument("--summary", action="store_true", help="print the tables of --results and stop")
    options = parser.parse_args(argv)
    options.arm, options.set = dict(options.arm), dict(options.set)
    if options.summary:
        print(summary(read_results(Path(options.results))))
        return
    if bool(options.checkpoint) == bool(options.config):
        parser.error("give --checkpoint (arms continue it) or --config (arms start from random weights)")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    study(options)


if __name__ == "__main__":
    main()
