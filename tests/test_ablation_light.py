"""The ablation's tables: paired over captions, excess over the rendered clips, families apart, torn lines left out."""
import argparse
import json

import numpy as np
import pytest

from benchmarks import ablation_light as ablation
from wanjax import config


def line(arm, seed, flicker, family="sundial", study="s"):
    captions = [{"scene": i, "family": family, "rendered": dict.fromkeys(ablation.EXCESS, 0.01),
                 "metrics": {**dict.fromkeys(ablation.EXCESS, 0.01 + value), "exposure_slope_error": 0.1}}
                for i, value in enumerate(flicker)]
    return {"study": study, "arm": arm, "seed": seed, "captions": captions, "validation": {"low": 0.3},
            "cost": {"processor_seconds": 10.0, "wall_seconds": 10.0}}


def test_excess_and_its_change_are_paired_over_captions():
    # captions differ a hundredfold, the arm halves every one of them: the interval must see only the halving
    flicker = np.array([0.001, 0.01, 0.1, 0.02])
    lines = [line("velocity", s, flicker * (1 + s)) for s in (0, 1)] + [line("light", s, flicker * (1 + s) / 2)
                                                                        for s in (0, 1)]
    values = {arm: ablation.table_of([r for r in lines if r["arm"] == arm], ["sundial"])
              for arm in ("velocity", "light")}
    assert values["light"]["global_flicker excess"].shape == (2, 4)
    found = ablation.interval(values["light"]["global_flicker excess"], values["velocity"]["global_flicker excess"])
    assert found["baseline"] == pytest.approx(1.5 * flicker.mean())
    for key in ("change", "low", "high"):
        assert found[key] == pytest.approx(-0.5)
    same = ablation.interval(values["light"]["exposure_slope_error"], values["velocity"]["exposure_slope_error"])
    assert same["change"] == same["low"] == same["high"] == 0


def test_a_table_has_the_arms_of_its_study_and_water_apart():
    lines = [line(arm, 0, [value, value]) for arm, value in (("velocity", 0.04), ("light", 0.01))]
    for own in lines:
        own["captions"] += line("x", 0, [0.5], family="water_glitter")["captions"]
    text = ablation.summary([*lines, line("light", 0, [0.1], study="other")])
    assert "### s: sundial\n" in text and "### s: water_glitter\n" in text and "other: no line of the arm" in text
    rows = [r for r in text.splitlines() if r.startswith("| light")]
    assert "0.0100 (-75 % [-75, -75])" in rows[0] and "0.5000 (+0 % [+0, +0])" in rows[1]


def test_a_torn_last_line_is_done_again(tmp_path):
    path = tmp_path / "results.jsonl"
    assert ablation.read_results(path) == []
    path.write_text(json.dumps({"arm": "a"}) + "\n" + '{"arm": "b", "se')
    assert ablation.read_results(path) == [{"arm": "a"}]
    ablation.append_result(path, {"arm": "b"})
    ablation.append_result(path, {"arm": "c"})
    assert ablation.read_results(path) == [{"arm": "a"}, {"arm": "b"}, {"arm": "c"}]


def test_arms_differ_in_their_objective_alone():
    base = config.load("configs/light_scenes_tiny.py")
    options = argparse.Namespace(steps=7, expert="low", checkpoint="runs/x", set={"optimizer.learning_rate": 1e-4},
                                 cache_dir="")
    found = {name: ablation.arm_experiment(base, arm, 3, options) for name, arm in ablation.ARMS.items()}
    assert found["velocity"].objective.active == ("velocity",) and found["shadow"].objective.active[1:] == ("shadow",)
    assert found["change_weight"].objective.active == ("change_weight",)
    plain = config.to_dict(found["velocity"])
    for name, experiment in found.items():
        fields = config.differences(plain, config.to_dict(experiment))
        assert all(field.startswith("config.objective.") for field in fields), name
    assert found["light_0.1"].train.steps_low == 7 and found["light_0.1"].data.seed == 3
    with pytest.raises(ValueError, match="no such field"):
        ablation.arm_experiment(base, {"objective.light.wieght": 1.0}, 0, options)
    options.expert = "high"
    with pytest.raises(config.ConfigError, match="temporal_luminance"):
        ablation.arm_experiment(base, ablation.ARMS["temporal_luminance_3"], 0, options)
