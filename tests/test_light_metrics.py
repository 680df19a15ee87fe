"""Metrics of light: what they rank, what they read on clips whose light is known, and their edges."""

import math
import tracemalloc

import numpy as np
import pytest

from data_pipelines.light_scenes import ClipSpec, render_clip
from wanjax.light.metrics import ASKED_FOR, GROUND_TRUTH, UNITS, classify, curves_and_metrics, measure
from wanjax.light.motion import dis_motion, given_motion
from wanjax.light.photometry import LUMINANCE_FLOOR, linear_to_srgb, srgb_to_linear

FPS = 8.0


def texture(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """[H, W, 3] linear light, smooth blobs."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    waves = sum(
        np.cos(2 * np.pi * (fx * x + fy * y + phase))
        for fx, fy, phase in zip(*(rng.uniform(-0.06, 0.06, (2, 9))), rng.random(9), strict=True)
    )
    return np.repeat((0.25 + 0.05 * waves)[..., None], 3, axis=-1).clip(0.02, 0.9)


def clip_of(motion: str, light: str, frames: int = 13) -> np.ndarray:
    """[T, 64, 64, 3] sRGB: one factor of motion, one of light."""
    t = np.arange(frames)
    gain = {
        "constant": np.ones(frames),
        "ramp": 2 ** (0.05 * t),
        "flicker": 1 + 0.04 * np.random.default_rng(1).standard_normal(frames),
        "step": np.where(t < frames // 2, 1.0, 1.15),
    }[light]
    scene = texture()
    out = []
    for i in t:
        frame = scene[:, i : i + 64] if motion == "pan" else scene[:, :64]
        if motion == "object":
            frame = frame.copy()
            frame[20:40, 2 * i : 2 * i + 16] = 0.4
        out.append(linear_to_srgb(frame * gain[i]))
    return np.stack(out).astype(np.float32)


@pytest.fixture(scope="module")
def ranked() -> dict[tuple[str, str], dict[str, float]]:
    motions, lights = ("static", "pan", "object"), ("constant", "ramp", "flicker", "step")
    return {(m, li): measure(clip_of(m, li), fps=FPS) for m in motions for li in lights}


@pytest.mark.parametrize("name", ["global_flicker", "local_flicker", "common_flicker"])
def test_flicker_ranks_above_motion_and_above_real_change(ranked, name):
    faults = [m[name] for (_, light), m in ranked.items() if light == "flicker"]
    sound = [m[name] for (_, light), m in ranked.items() if light in ("constant", "ramp")]
    assert min(faults) > 3 * max(sound)


def test_flicker_peak_finds_the_single_step(ranked):
    for motion in ("static", "pan"):
        step = ranked[motion, "step"]["flicker_peak"]
        assert step > 5
        assert step > 2 * max(ranked[motion, light]["flicker_peak"] for light in ("constant", "ramp"))


def test_the_measures_in_use_elsewhere_rank_a_pan_below_a_flicker(ranked):
    pan, flicker = ranked["pan", "constant"], ranked["static", "flicker"]
    assert pan["vbench_temporal_flickering"] < flicker["vbench_temporal_flickering"]
    assert pan["light_consistency"] > flicker["light_consistency"]
    assert pan["global_flicker"] < flicker["global_flicker"] / 3


def test_a_ramp_reads_its_slope_and_no_flicker(ranked):
    assert ranked["static", "ramp"]["exposure_slope"] == pytest.approx(0.05 * FPS, rel=0.01)
    assert ranked["static", "ramp"]["global_flicker"] < 1e-3


def test_the_curves_say_when_and_where_the_light_jumps():
    video = clip_of("static", "constant", 9)
    video[5, 32:, :32] = linear_to_srgb(2 * srgb_to_linear(video[5, 32:, :32]) + LUMINANCE_FLOOR)
    still = np.zeros((8, 64, 64, 2), np.float32)
    curves, metrics = curves_and_metrics(iter(video), fps=FPS, flow=still)
    assert curves.acceleration.shape == curves.log_luminance.shape == (9,)
    assert curves.acceleration[[0, -1]].tolist() == [0, 0]
    assert np.argmin(curves.acceleration) == 5
    assert np.abs(curves.acceleration[1:-1]).mean() == pytest.approx(metrics["global_flicker"])
    assert curves.flicker_map.shape == (64, 64)
    # one stop up and down again: 1, -2 and 1 among 7 second differences
    assert curves.flicker_map[48:, :16].mean() == pytest.approx(4 / 7, rel=1e-4)
    assert curves.flicker_map[:16].max() < 1e-3
    short, _ = curves_and_metrics(video[:2], fps=FPS)
    assert not short.flicker_map.any() and not short.acceleration.any()


def test_colour_drift_is_read_in_mired_per_second():
    shift = np.linspace(0, 0.2, 9)[:, None, None, None] * np.array([1.0, 0.0, -1.0])
    video = linear_to_srgb(0.4 * np.ones((9, 16, 16, 3)) * (1 + shift))
    metrics = measure(video, fps=FPS)
    assert metrics["cct_drift"] > 20
    assert metrics["cct_jitter"] < 2
    assert measure(video[::-1], fps=FPS)["cct_drift"] == pytest.approx(-metrics["cct_drift"])


def sample_specs(split: str, scenes: int) -> list[ClipSpec]:
    """Balanced over signs within each family."""
    signs = (1, -1)
    return [
        *(ClipSpec("sunrise_room", i, e, s, 0, split) for i in range(scenes) for e in signs for s in signs),
        *(ClipSpec("sundial", i, 0, s, 0, split) for i in range(scenes) for s in signs),
        *(ClipSpec("constant", i, 0, 0, p, split) for i in range(scenes) for p in signs),
    ]


def test_both_answers_are_read_off_rendered_clips_and_turn_when_played_backwards():
    specs = sample_specs("test", 1)
    forward, backward = {}, {}
    for spec in specs:
        clip = render_clip(spec)
        truth = {
            "exposure_slope": clip.exposure_slope,
            "cct_slope": clip.cct_slope,
            "sweep_rate": clip.sweep_rate,
        }
        stated = {"exposure_change": spec.exposure_change, "sweep": spec.sweep}
        metrics = measure(clip.video, fps=FPS, truth=truth)
        assert metrics["exposure_slope_error"] < 0.002
        assert metrics["cct_slope_error"] < 1
        assert metrics["sweep_rate_error"] < 0.015
        forward.setdefault(spec.family, []).append(classify(metrics) == stated)
        backward.setdefault(spec.family, []).append(classify(measure(clip.video[::-1], fps=FPS)) == stated)
    assert {family: np.mean(right) for family, right in forward.items()} == dict.fromkeys(forward, 1.0)
    assert {family: np.mean(right) for family, right in backward.items()} == {
        "sunrise_room": 0.0,
        "sundial": 0.0,
        "constant": 1.0,
    }


@pytest.mark.parametrize("family", ["sundial", "sunrise_room", "constant"])
def test_the_answers_survive_blur_noise_and_a_little_flicker(family):
    spec = next(s for s in sample_specs("test", 1) if s.family == family)
    rng = np.random.default_rng(3)
    video = render_clip(spec).video.astype(np.float32) / 255
    video = (video + np.roll(video, 1, 1) + np.roll(video, 1, 2) + np.roll(video, (1, 1), (1, 2))) / 4
    cells = rng.standard_normal((len(video), 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    video = video + 0.01 * cells + 0.01 * rng.standard_normal((len(video), 1, 1, 1))
    assert classify(measure(video.clip(0, 1), fps=FPS)) == {
        "exposure_change": spec.exposure_change,
        "sweep": spec.sweep,
    }


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("side", [1, 11, 12, 40])
def test_every_metric_is_defined_on_constant_short_and_tiny_clips(frames, value, side):
    metrics = measure(np.full((frames, side, side + 1, 3), value, np.uint8), fps=FPS)
    assert all(type(v) is float and math.isfinite(v) for v in metrics.values())
    assert metrics.pop("frames") == frames
    assert metrics.pop("vbench_temporal_flickering") == 1
    assert metrics.pop("flicker_peak") <= 1
    assert max(map(abs, metrics.values())) < 1e-3


def test_names_units_and_truth():
    plain = measure(np.zeros((2, 16, 16, 3), np.uint8), fps=FPS)
    assert set(plain) == set(UNITS) - GROUND_TRUTH - ASKED_FOR
    with_truth = measure(
        np.zeros((2, 16, 16, 3)),
        fps=FPS,
        truth={"log_luminance": [0.0, 1.0], "cct_slope": 3.0, "family": "x"},
    )
    assert with_truth["exposure_slope_error"] == pytest.approx(8)
    assert with_truth["cct_slope_error"] == pytest.approx(3)
    assert "sweep_rate_error" not in with_truth


def test_bytes_and_floats_read_the_same():
    video = (clip_of("pan", "flicker") * 255).round().astype(np.uint8)
    as_bytes, as_floats = measure(video, fps=FPS), measure(video / 255, fps=FPS)
    assert as_bytes == pytest.approx(as_floats, rel=1e-3, abs=1e-5)


def test_given_flow_replaces_the_estimate():
    video = clip_of("pan", "constant")
    flow = np.zeros((len(video) - 1, 64, 64, 2), np.float32)
    flow[..., 0] = -1
    exact = measure(video, fps=FPS, flow=flow)
    assert exact["local_flicker"] < 0.004 < measure(video, fps=FPS, flow=0 * flow)["local_flicker"]
    assert exact["sweep_mass"] == 0
    pair = measure(video, fps=FPS, flow=(flow, -flow))
    assert pair["local_flicker"] == pytest.approx(exact["local_flicker"], abs=1e-3)
    assert measure(iter(video), fps=FPS, flow=iter(flow)) == exact


def test_dis_flow_sees_a_pan_and_the_splatted_inverse_turns_it_round():
    video = (clip_of("pan", "constant")[:3, ..., 0] * 255).astype(np.uint8)
    motion = dis_motion(video[0], video[2])
    assert np.median(motion.forward, axis=(0, 1)) == pytest.approx([-2, 0], abs=0.1)
    (inverse,) = given_motion(motion.forward[None], 64, 64)
    assert np.median(inverse.backward, axis=(0, 1)) == pytest.approx([2, 0], abs=0.1)
    assert not inverse.seen_before[:, -1].any(), "what enters at the right edge was not seen before"
    assert not inverse.seen_next[:, 0].any(), "what leaves at the left edge is not seen again"


def test_memory_does_not_grow_with_length():
    def peak(frames: int) -> int:
        still = clip_of("static", "constant", 1)[
            0, :11
        ]  # too low for optical flow, which would only take time
        tracemalloc.start()
        measure((still for _ in range(frames)), fps=FPS)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(3)
    assert peak(380) < 1.2 * peak(190)


def test_the_light_metrics_do_not_depend_on_the_encoding_gamma():
    linear = texture()[None, :, :64] * np.array([1.0, 1.1, 1.0, 1.1])[:, None, None, None]
    video = linear_to_srgb(linear)
    expected = np.log2(srgb_to_linear(video).mean(axis=(1, 2, 3)) + 1e-3)
    assert measure(video, fps=FPS)["global_flicker"] == pytest.approx(
        np.abs(np.diff(expected, n=2)).mean(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("video", "arguments", "message"),
    [
        (np.zeros((0, 8, 8, 3)), {}, "no frames"),
        (np.zeros((2, 8, 8)), {}, "frame 0: expected"),
        (np.zeros((2, 8, 8, 3), np.int32), {}, "int32"),
        (np.full((2, 8, 8, 3), np.nan), {}, "frame 0: .*not finite"),
        ([np.zeros((8, 8, 3)), np.zeros((9, 8, 3))], {}, "frame 1"),
        (np.zeros((2, 8, 8, 3)), {"fps": 0}, "fps = 0"),
        (np.zeros((3, 8, 8, 3)), {"flow": np.zeros((1, 8, 8, 2))}, "more are needed"),
        (np.zeros((2, 8, 8, 3)), {"flow": np.zeros((3, 8, 8, 2))}, "more given"),
        (np.zeros((2, 8, 8, 3)), {"flow": np.full((1, 8, 8, 2), np.inf)}, "not finite"),
        (np.zeros((2, 8, 8, 3)), {"truth": {"sweep_rate": math.nan}}, "sweep_rate"),
    ],
)
def test_bad_input_is_named(video, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(video, **({"fps": FPS} | arguments))
