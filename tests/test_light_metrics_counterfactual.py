"""Counterfactual validation: what the metrics rank on clips that differ in one factor, and that those clips do.

The whole table, with more seeds, faults and the measures in use elsewhere: benchmarks/light_counterfactual.py.
"""

from pathlib import Path

import numpy as np
import pytest

from wanjax import video as files
from wanjax.light.counterfactual import LEVELS, SCENES, Fault, make_scene
from wanjax.light.flicker import shared_change
from wanjax.light.metrics import measure
from wanjax.light.motion import given_motion, warp
from wanjax.light.photometry import linear_to_srgb, log_luminance, srgb_to_linear

REAL = Path(__file__).parents[2] / "shared" / "clips"
SEEDS = (0, 1)
STILL = ("constant", "ramp")
FAULTS = {
    "none": Fault(),
    "flicker 1%": Fault("flicker", 0.01),
    "flicker 6%": Fault("flicker", 0.06),
    "step": Fault("step", 0.1),
    "flash": Fault("flash", 0.6),
}


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str, str, int], dict[str, float]]:
    """(fault, scene, level, seed) -> metrics."""
    found = {}
    for name in SCENES:
        for level in LEVELS:
            for seed in SEEDS:
                scene = make_scene(name, level, seed=seed, frames=21, height=72)
                for fault in FAULTS:
                    video = scene.video(FAULTS[fault])
                    found[fault, name, level, seed] = measure(video, fps=24, flow=scene.flow)
    return found


def readings(table, metric: str, fault: str, scenes=SCENES) -> list[float]:
    return [m[metric] for (f, name, _, _), m in table.items() if f == fault and name in scenes]


@pytest.mark.parametrize(("metric", "factor"), [("global_flicker", 20), ("local_flicker", 7), ("common_flicker", 20)])
def test_every_sustained_flicker_ranks_above_every_sound_clip(table, metric, factor):
    sound = max(readings(table, metric, "none"))
    assert min(readings(table, metric, "flicker 1%")) > sound
    assert min(readings(table, metric, "flicker 6%")) > factor * sound


@pytest.mark.parametrize("fault", ["step", "flash"])
def test_the_peak_finds_a_single_jump_whatever_moves(table, fault):
    assert min(readings(table, "flicker_peak", fault, STILL)) > 5
    assert min(readings(table, "flicker_peak", fault)) > 5 * max(readings(table, "flicker_peak", "none"))


def test_flashes_are_counted_where_they_are_bright_enough_and_nowhere_else(table):
    flashes = {key: m["flash_rate"] for key, m in table.items() if m["flash_rate"] > 0}
    assert {key[0] for key in flashes} == {"flash"}
    assert {key[2] for key in flashes} == {"bright"}, "at night no change reaches a tenth of white"
    for seed in SEEDS:
        assert flashes["flash", "constant", "bright", seed] == pytest.approx(24 / 21)


def test_the_measures_in_use_elsewhere_rank_a_ramp_or_a_pan_above_a_flicker(table):
    for name, worse in (("vbench_temporal_flickering", -1), ("light_consistency", 1)):
        sound = max(worse * value for value in readings(table, name, "none"))
        assert min(worse * value for value in readings(table, name, "flicker 6%")) < sound


def test_flow_estimated_from_the_pictures_ranks_them_too():
    sound, faulty = [], []
    for name in SCENES:
        for level in LEVELS:
            scene = make_scene(name, level, seed=2, frames=21, height=72)
            sound.append(measure(scene.video(Fault()), fps=24))
            faulty.append(measure(scene.video(Fault("flicker", 0.06)), fps=24))
    for metric, factor in (("global_flicker", 20), ("local_flicker", 7), ("common_flicker", 20)):
        assert min(m[metric] for m in faulty) > factor * max(m[metric] for m in sound)


def test_a_neighbourhood_shares_a_change_of_light_but_not_an_edge_of_it_that_moves():
    seen = np.ones((96, 128), bool)
    flat = np.full(seen.shape, 0.1, np.float32)
    np.testing.assert_allclose(shared_change(flat, seen), 0.1, rtol=1e-5)

    edge, stripes = np.zeros_like(flat), np.zeros_like(flat)
    edge[:, 60:64], edge[:, 64:68] = -1, 1  # a border of 1 stop that moves by 4 pixels a frame
    for left in range(20, 100, 16):
        stripes[:, left : left + 3], stripes[:, left + 3 : left + 6] = 1, -1
    for moving in (edge, stripes):
        assert np.abs(shared_change(moving, seen)).max() < 0.02
        np.testing.assert_allclose(np.median(shared_change(flat + moving, seen)), 0.1, atol=0.01)

    hidden = flat.copy()
    hidden[:48, :64] = 99
    seen[:48, :64] = False
    known = shared_change(hidden, seen)
    assert np.isnan(known[:12, :16]).all()
    np.testing.assert_allclose(known[np.isfinite(known)], 0.1, rtol=1e-5)


def test_flicker_of_a_part_of_the_frame_is_local():
    scene = make_scene("constant", "bright", seed=0)
    video = scene.video(Fault())
    video[:, 24:72, 32:96] = scene.video(Fault("flicker", 0.06))[:, 24:72, 32:96]
    metrics = measure(video, fps=24, flow=scene.flow)
    whole = measure(scene.video(Fault("flicker", 0.06)), fps=24, flow=scene.flow)
    # At the border of that quarter the neighbourhoods do not agree.
    assert 0.75 < metrics["local_flicker"] / (whole["local_flicker"] / 4) <= 1
    assert metrics["common_flicker"] < 0.01 * whole["common_flicker"]


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/clips is not there")
def test_flicker_of_two_percent_shows_on_every_filmed_clip():
    untouched, faulty = [], []
    for path in sorted(REAL.glob("*.mp4")):
        frames, fps, _ = files.read(path)
        frames = frames[:, ::2, ::2]
        linear = srgb_to_linear(frames.astype(np.float32) / 255)
        untouched.append(measure(frames, fps=fps)["common_flicker"])
        draws = [1 + 0.02 * np.random.default_rng(seed).standard_normal((len(linear), 1, 1, 1)) for seed in range(2)]
        faulty.append(np.mean([measure(linear_to_srgb(linear * g), fps=fps)["common_flicker"] for g in draws]))
    assert len(untouched) == 8
    assert (np.array(faulty) > 3 * np.array(untouched)).all()
    assert min(faulty) > 2.5 * max(untouched)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SCENES)
def test_a_fault_changes_the_gain_of_frames_and_nothing_else(name, level):
    scene = make_scene(name, level, seed=5, frames=9)
    assert scene.linear.max() * 1.6 < 1, "nothing is clipped, not even by the flash"
    sound, faulty = (srgb_to_linear(scene.video(fault)) for fault in (Fault(), Fault("flicker", 0.06)))
    gains = faulty / sound
    assert np.ptp(gains, axis=(1, 2, 3)).max() < 1e-4
    assert 0.02 < np.ptp(gains[:, 0, 0, 0])
    np.testing.assert_array_equal(make_scene(name, level, seed=5, frames=9).linear, scene.linear)


def test_kinds_of_fault():
    rng = np.random.default_rng(0)
    assert Fault().gains(9, rng).tolist() == [1] * 9
    step = Fault("step", 0.1).gains(9, rng)
    assert set(step) == {1.0, 1.1} and (np.diff(step) != 0).sum() == 1
    assert sorted(Fault("flash", 0.5).gains(9, rng)) == [1] * 8 + [1.5]
    assert Fault("flicker", 0.06).gains(20_000, rng).std() == pytest.approx(0.06, rel=0.03)


@pytest.mark.parametrize("name", ["pan", "object"])
def test_the_flow_of_a_scene_is_exact(name):
    for seed in range(3):
        scene = make_scene(name, "bright", seed=seed, frames=4)
        stops = log_luminance(scene.linear).astype(np.float32)
        for t, motion in enumerate(given_motion(scene.flow, 96, 128)):
            for fetched, here, seen in (
                (warp(stops[t + 1], motion.forward), stops[t], motion.seen_next),
                (warp(stops[t], motion.backward), stops[t + 1], motion.seen_before),
            ):
                # What is left is bilinear interpolation of the finest texture and, a pixel wide, an object's border.
                assert np.median(np.abs(fetched - here)[seen]) < 0.02
                assert np.abs(np.median((fetched - here)[seen])) < 1e-3
                assert seen.mean() > 0.85


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_scene("street", "bright", seed=0), "'street' at 'bright': expected one of"),
        (lambda: make_scene("pan", "dusk", seed=0), "'pan' at 'dusk'"),
        (lambda: Fault("blink", 0.1).gains(9, np.random.default_rng(0)), "fault = 'blink'"),
    ],
)
def test_what_is_not_there_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
