"""The benchmarks of the metrics run, on less than they are for, and write what the docs quote."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wanjax import video

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch, out: Path, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, "--out", str(out)])
    module.main()
    return out.read_text(encoding="utf-8")


def test_the_counterfactual_table(tmp_path, monkeypatch):
    module = load("light_counterfactual")
    monkeypatch.setattr(module, "SCENES", ("constant", "pan"))
    monkeypatch.setattr(module, "LEVELS", {"bright": 1.0})
    text = run(module, monkeypatch, tmp_path / "table.md", "--seeds", "1")
    assert "16 float clips, 1 seeds per cell" in text
    assert float(re.search(r"`local_flicker`: .*from 6 % on ≥ ([\d.]+)", text)[1]) > 7
    elsewhere = next(line for line in text.splitlines() if line.startswith("| flicker 1%")).split("|")[7]
    assert float(elsewhere) < 1, "VBench's score does not tell flicker from a pan"
    assert text.count("| **flash 60%**") == 2


def test_the_table_of_filmed_clips(tmp_path, monkeypatch):
    ramp = np.arange(40, 216, dtype=np.uint8)[:64]
    video.write(tmp_path / "still.mp4", np.broadcast_to(ramp[:, None], (6, 48, 64, 3)), 8)
    text = run(load("light_counterfactual"), monkeypatch, tmp_path / "t.md", "--clips", str(tmp_path / "*.mp4"),
               "--draws", "2")
    untouched, faulty = re.search(r"\| still \| ([\d.]+) \| ([\d.]+) \|", text).groups()
    assert float(faulty) > 0.02 > 5 * float(untouched)


def test_the_720p_clip(tmp_path, monkeypatch):
    module = load("light_metrics_720p")
    for name, value in (("FRAMES", 4), ("HEIGHT", 48), ("WIDTH", 64)):
        monkeypatch.setattr(module, name, value)
    text = run(module, monkeypatch, tmp_path / "t.md")
    assert "4 frames of 64 x 48" in text
    assert re.search(r"\| seconds \| [\d.]+ \(decoding alone", text)


def test_how_often_answers_are_right(tmp_path, monkeypatch):
    module = load("light_answers")
    options = ("--clips", "4", "--families", "water_glitter", "--seen", "soft")
    text = run(module, monkeypatch, tmp_path / "soft.md", *options)
    assert "| `water_glitter` | `glints` | 4 of 4 | 51–100 % | played backwards 0 of 4 |" in text
    assert "may be scored: `color_change`, `glints`." in text
    monkeypatch.setattr(sys, "argv", ["light_answers", "--seen", "coded"])
    with pytest.raises(SystemExit):
        module.main()
