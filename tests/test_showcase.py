"""The showcase's stages one after the other, as ``make showcase`` runs them, with the config of a minute."""

import json
import os
import subprocess
import sys

import pytest

from data_pipelines import light_scenes
from tests import launching, xla_flags

SCENARIOS = list(light_scenes.SCENARIOS.values())


def finish(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": xla_flags.QUICK}  # one device
    done = subprocess.run(command, cwd=launching.ROOT, env=environment, capture_output=True, text=True, timeout=600,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def showcase(tmp_path_factory):
    """A run's folder with three sampled clips, one of each scenario, and its evaluation's console output."""
    root = tmp_path_factory.mktemp("showcase")
    run, data, prompts = root / "run", root / "data", root / "prompts.jsonl"
    finish("experiments.train", "--config", "configs/showcase_ci.py", "--workdir", run,
           f"--config.data.data_dir={data}", f"--config.data.cache_dir={root / 'cache'}")
    finish("data_pipelines.light_scenes", "--data_dir", data, "--prompts", prompts, "--prompts_of", "showcase")
    lines = prompts.read_text(encoding="utf-8").splitlines()
    prompts.write_text("\n".join(lines[i] for i in (0, 8, 16)) + "\n", encoding="utf-8")
    finish("experiments.sample", "--checkpoint", run, "--prompts", prompts, "--out", run / "samples")
    said = finish("experiments.evaluate", "--workdir", run, "--references", data, "--references_families", "all",
                  "--reference_clips", 24, "--json", run / "report.json", "--report", run / "report.html")
    return run, said


def test_every_scenario_is_sampled_measured_and_held_against_its_caption(showcase):
    run, said = showcase
    report = json.loads((run / "report.json").read_text())
    assert [entry["name"] for entry in report["scenarios"]] == SCENARIOS
    assert report["clips_measured"] == 3 and not report["unreadable"]
    for entry, clip in zip(report["scenarios"], report["clips"], strict=True):
        assert entry["name"] in said
        assert entry["score"]["of"] == entry["rendered"]["of"] == 1
        assert entry["rendered"]["correct"] == 1  # the clips that the captions were written for
        assert {"global_flicker", "exposure_slope_error"} <= set(clip["metrics"])
        assert clip["reference"]["metrics"]["global_flicker"] > 0
    page = (run / "report.html").read_text()
    assert all(name in page for name in SCENARIOS)


def test_glints_are_scored_after_a_check_and_a_walkers_shadow_only_after_one_with_controls(showcase):
    report = json.loads((showcase[0] / "report.json").read_text())
    assert "glints" in report["scored_answers"] and "shadow_follows" not in report["scored_answers"]
    lamp, _, water = report["clips"]
    assert "shadow_follows" in lamp["unscored"] and "glints" in water["right"]
