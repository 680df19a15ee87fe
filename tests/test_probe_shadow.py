"""A run trained with the shadow term, and the probe that asks it where its shadows are."""
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import probe_shadow
from tests import launching
from wanjax.shadow_probe import ProbeConfig, Seen, compare, fit_thresholds, overlap


def clips(shares):
    """Visibility [n, 1, 10, 10]: the first columns of every clip are in shadow, as many as its share says."""
    seen = np.ones((len(shares), 1, 10, 10))
    for clip, share in zip(seen, shares, strict=True):
        clip[..., : round(10 * share)] = 0
    return seen


def test_overlap_is_intersection_over_union_of_what_is_in_shadow_and_of_what_is_lit():
    truth = clips([0.5, 0.5])
    guess = clips([0.5, 0.3]) < 0.5
    found = overlap(guess, truth)
    np.testing.assert_allclose(found["shadow"], [1, 0.6])
    np.testing.assert_allclose(found["lit"], [1, 5 / 7])
    np.testing.assert_allclose(overlap(clips([0.9, 0.3]) < 0.5, clips([0.8, 0.2]))["rarer"], [1 / 2, 2 / 3])


def test_a_clip_without_shadow_or_without_light_has_nothing_to_be_found():
    found = overlap(np.zeros((3, 1, 10, 10), bool), clips([0.0, 1.0, 0.5]))
    assert np.isnan(found["shadow"][:2]).all() and found["shadow"][2] == 0


def test_the_threshold_finds_the_luminance_that_divides_shadow_from_light():
    rng = np.random.default_rng(0)
    truth = clips([0.2, 0.5, 0.7])
    light = np.where(truth < 0.5, 0.1, 0.4) + rng.uniform(0, 0.05, truth.shape)
    for name, threshold in fit_thresholds(light, truth).items():
        assert 0.14 < threshold <= 0.4 and overlap(light < threshold, truth)[name].min() > 0.97
    with pytest.raises(ValueError, match="take more clips"):
        fit_thresholds(light, np.ones_like(truth))


def test_head_and_baseline_are_compared_on_the_same_clips_each_below_its_own_fitted_thresholds():
    def seen(shares, split=0.5):
        truth = clips(shares)
        predicted = np.where(truth < 0.5, split - 0.1, split)
        return Seen(truth, predicted, luminance={"decoded": np.ones_like(truth)})

    found = compare(seen([0.2, 0.5, 0.7, 0.0], 0.3), seen([0.4, 0.6], 0.3), ["room", "room", "dial", "overcast"])
    assert {name: group["clips"] for name, group in found["families"].items()} == {"room": 2, "dial": 1}
    assert found["clips"] == 3 and found["clips_left_out"] == 1
    assert found["head"]["shadow"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert 0.2 < found["head"]["thresholds"]["shadow"] <= 0.3
    baseline = found["baselines"]["decoded"]  # equal everywhere: below no threshold, so nothing is shadow
    assert baseline["shadow"]["mean"] == 0 and baseline["lit"]["mean"] == pytest.approx(1.6 / 3)
    difference = found["head_minus_baseline"]["decoded"]["lit"]
    assert difference["mean"] == pytest.approx(1 - 1.6 / 3)
    assert difference["low"] < difference["mean"] < difference["high"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the low-noise expert with a shadow head and all terms on latents."""
    root = tmp_path_factory.mktemp("shadow")
    source = launching.small_data(root / "data")
    code, output = launching.finish(launching.command(root / "run", source, root / "cache", **{
        "train.expert": "low", "train.steps_low": 2, "data.batch": 4,
        "objective.shadow.weight": 0.5, "objective.shadow.head.depths": "(0.5,1.0)",
        "objective.light_consistency.weight": 0.1, "objective.change_weight.weight": 0.1}))
    assert code == 0, output
    return root / "run"


def test_the_launcher_trains_with_every_term_on_latents(trained):
    lines = [line for line in launching.log(trained, "low") if "loss" in line]
    terms = {"loss/velocity", "loss/light", "loss/light_consistency", "loss/shadow", "loss/change_weight"}
    assert len(lines) == 2 and all(terms <= set(line) for line in lines)
    assert all(np.isfinite(list(line.values())).all() for line in lines)


def test_the_probe_trains_a_head_on_the_frozen_run_and_scores_it_beside_thresholds(trained, tmp_path):
    target = tmp_path / "probe.json"
    said = subprocess.run(
        [sys.executable, "-m", "experiments.probe_shadow", "--checkpoint", str(trained), "--json", str(target),
         "--steps", "4", "--bins", "2", "--clips", "8", "--fit_clips", "8", "--batch", "4", "--depths", "0.5,1"],
        cwd=launching.ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found = json.loads(target.read_text())
    assert list(found["experts"]) == ["low"] and found["experts"]["low"]["taps"] == [1, 2]
    bins = found["experts"]["low"]["bins"]
    assert [b["sigma"] for b in bins] == [[0.0, 0.25], [0.25, 0.5]] and [b["at"] for b in bins] == [0.125, 0.375]
    for b in bins:
        assert b["clips"] + b["clips_left_out"] == 8 and b["clips"] > 0
        assert set(b["baselines"]) == {"decoded", "m"} and sum(f["clips"] for f in b["families"].values()) == b["clips"]
        for score in (b["head"], *b["baselines"].values(), *b["head_minus_baseline"].values()):
            assert score["shadow"]["low"] <= score["shadow"]["mean"] <= score["shadow"]["high"]


def test_the_head_that_the_run_trained_is_scored_in_place_of_a_new_one(trained):
    settings = probe_shadow.Settings(trained=True, bins=1, clips=8, fit_clips=8, batch=4)
    found = probe_shadow.run(str(trained), settings)["experts"]["low"]
    assert found["taps"] == [1, 2] and len(found["bins"]) == 1  # the run's depths, not the probe's
    again = probe_shadow.run(str(trained), settings, weights="raw")["experts"]["low"]
    assert again["bins"][0]["head"] != found["bins"][0]["head"]


def test_what_a_run_does_not_have_is_named(trained):
    with pytest.raises(ValueError, match="has no high expert, only low"):
        probe_shadow.run(str(trained), probe_shadow.Settings(experts=("high",)))
    with pytest.raises(ValueError, match="steps = 0"):
        ProbeConfig(steps=0)
