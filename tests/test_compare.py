"""Two sets, pair by pair: a difference is found where there is one, and frozen light does not win."""

import numpy as np
import pytest

from wanjax import video
from wanjax.compare import FLICKER, LEAST_PAIRS, compare
from wanjax.evaluate import ClipRecord, Evaluation, evaluate_clips
from wanjax.light.photometry import linear_to_srgb, srgb_to_linear

FPS, FRAMES, CLIPS = 8.0, 9, 9
SLOPE = 0.8  # stops per second that every clip is to rise by


def clip(index: int, *, flicker: float = 0.0, seed: int = 0, slope: float = SLOPE) -> np.ndarray:
    """[T, 32, 32, 3] uint8: a wall of its own texture that brightens, with Gaussian flicker in linear light."""
    texture = np.random.default_rng(index).uniform(0.25, 0.55, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
    stops = slope * (np.arange(FRAMES) - FRAMES // 2) / FPS
    stops = stops + flicker * np.random.default_rng([seed, index]).normal(size=FRAMES)
    linear = srgb_to_linear(texture)[None] * np.exp2(stops)[:, None, None, None]
    return np.round(255 * linear_to_srgb(linear)).astype(np.uint8)


def measured(folder, name: str, clips: int = CLIPS, *, truth: bool = True, fps: float = FPS, **light) -> Evaluation:
    """A set of such clips, written, read and measured."""
    records = []
    for index in range(clips):
        path = folder / name / f"{index}.mp4"
        video.write(path, clip(index, **light), fps)
        facts = {"prompt": f"clip {index}", "seed": index}
        records.append(ClipRecord(path, facts | ({"truth": {"exposure_slope": SLOPE}} if truth else {})))
    return evaluate_clips(records, name=name)


def test_a_known_difference_is_found_and_called_better(tmp_path):
    result = compare(measured(tmp_path, "ours", flicker=0.005), measured(tmp_path, "theirs", flicker=0.08))
    found = {d.name: d for d in result.differences}
    assert found["global_flicker"].pairs == CLIPS
    assert found["global_flicker"].interval[1] < -0.05
    assert found["global_flicker"].p < 0.01
    assert found["global_flicker"].relative < -0.8
    assert result.path_against == "ground truth"
    assert result.verdict.outcome == "better"
    assert result.verdict.words == "ours is better than theirs: flicker falls, and the light's path is kept."


def test_the_other_way_round_it_is_worse(tmp_path):
    result = compare(measured(tmp_path, "ours", flicker=0.08), measured(tmp_path, "theirs", flicker=0.005))
    assert result.verdict.outcome == "worse"
    assert "flicker rises" in result.verdict.words


def test_no_difference_is_not_found(tmp_path):
    first, second = (measured(tmp_path, str(seed), flicker=0.03, seed=seed) for seed in (1, 2))
    result = compare(first, second)
    assert result.verdict.outcome == "not_shown"
    assert all(d.moved() == 0 for d in result.differences if d.name in FLICKER)
    assert "No measure of flicker differs surely" in result.verdict.reasons[0]


def test_frozen_light_flickers_less_and_is_not_better(tmp_path):
    frozen = measured(tmp_path, "frozen", slope=0.0)
    result = compare(frozen, measured(tmp_path, "theirs", flicker=0.05))
    assert result.verdict.outcome == "not_better"
    assert "at the cost of the light's path" in result.verdict.words
    assert any("exposure_slope_error is worse" in reason for reason in result.verdict.reasons)


def test_without_anything_to_hold_the_light_against_nothing_is_better(tmp_path):
    sets = [measured(tmp_path, n, flicker=f, truth=False) for n, f in (("ours", 0.0), ("theirs", 0.05))]
    result = compare(*sets)
    assert result.verdict.outcome == "undecided"
    assert not result.path
    assert compare(*sets, original=True).verdict.outcome == "better"


def test_a_correction_that_freezes_its_original_is_not_better(tmp_path):
    original = measured(tmp_path, "filmed", flicker=0.05, truth=False)
    result = compare(measured(tmp_path, "frozen", slope=0.0, truth=False), original, original=True)
    assert result.verdict.outcome == "not_better"
    assert "has to stay below 0.05" in " ".join(result.verdict.reasons)


def test_few_pairs_decide_nothing(tmp_path):
    few = LEAST_PAIRS - 1
    result = compare(measured(tmp_path, "a", few), measured(tmp_path, "b", few, flicker=0.08))
    assert result.verdict.outcome == "undecided"
    assert f"takes {LEAST_PAIRS} or more" in result.verdict.words


def test_pairs_are_made_by_prompt_and_seed_or_by_name_and_the_rest_is_told(tmp_path):
    a, b = measured(tmp_path, "a", 3), measured(tmp_path, "b", 4)
    result = compare(a, b)
    assert result.rule == "prompt and seed"
    assert [(x.name, y.name) for x, y in result.pairs] == [("0.mp4", "0.mp4"), ("1.mp4", "1.mp4"), ("2.mp4", "2.mp4")]
    assert result.unpaired == [{"file": str(tmp_path / "b" / "3.mp4"), "reason": "no partner in a by prompt and seed"}]
    loose = [evaluate_clips([ClipRecord(c.record.path) for c in side.clips], name=side.name) for side in (a, b)]
    for side in loose:
        assert not any("prompt" in c.facts for c in side.clips)
    assert compare(*loose).rule == "file name"
    with pytest.raises(ValueError, match="not every clip has a prompt and a seed"):
        compare(*loose, pair_by="prompt")


def test_clips_of_unlike_rates_and_single_frames_are_no_pair(tmp_path):
    a, b = measured(tmp_path, "a", 2), measured(tmp_path, "b", 2, fps=12)
    with pytest.raises(ValueError, match="no pair of clips .*8 frames per second, its partner 12"):
        compare(a, b)
    for name in ("c", "d"):
        video.write(tmp_path / name / "0.mp4", clip(0)[:1], FPS)
    single = [evaluate_clips([ClipRecord(tmp_path / n / "0.mp4")], name=n) for n in ("c", "d")]
    with pytest.raises(ValueError, match="fewer than 3 frames"):
        compare(*single)
