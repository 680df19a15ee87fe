"""The corrector: flicker goes, everything else stays. Promises on real clips: docs/correct.md."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.light_scenes import ClipSpec, render_clip
from wanjax import video as files
from wanjax.light import exposure, trend
from wanjax.light.correct import correct, estimate
from wanjax.light.metrics import measure
from wanjax.light.photometry import linear_to_srgb, luminance, srgb_to_linear

REAL = Path(__file__).parents[2] / "shared" / "clips"
FPS = 8.0


def surface(height=64, width=160, seed=0):
    """[H, W, 3] linear light between 0.03 and 0.6: blotches of several sizes, something for motion to hold on to."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.zeros((height, width, 3), np.float32)
    for wavelength in (40, 17, 9):
        for _ in range(4):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / wavelength + phase)
            picture += wave[..., None] * rng.uniform(0.3, 1.0, 3).astype(np.float32) * wavelength**0.5
    low, high = picture.min(), picture.max()
    return 0.03 + 0.57 * (picture - low) / (high - low)


def pan(frames=16, seed=0, size=64):
    """[T, H, W, 3] linear light: a camera that pans over a surface in steady light, 2 pixels a frame."""
    wide = surface(size, size + 2 * frames, seed)
    return np.stack([wide[:, 2 * t : 2 * t + size] for t in range(frames)])


def seen(linear, gain=1.0):
    """sRGB video of light times gain (per frame, pixel or channel), clipped as a camera clips it."""
    gain = np.asarray(gain, np.float32)
    return linear_to_srgb(np.clip(linear * gain.reshape(gain.shape + (1,) * (4 - gain.ndim)), 0, 1))


def gains(frames, sigma=0.06, seed=0):
    return 1 + sigma * np.random.default_rng(seed).standard_normal(frames)


def exposure_of(video):
    """G [T] in stops."""
    return np.log2(luminance(srgb_to_linear(video)).mean((1, 2), dtype=np.float64) + 1e-3)


def roughness(values):
    return np.abs(np.diff(values, n=2)).mean()


def share_left(video, flickering, corrected):
    before, after = (roughness(exposure_of(clip) - exposure_of(video)) for clip in (flickering, corrected))
    return after / before


def moved(video, corrected):
    return np.abs(exposure_of(corrected) - exposure_of(video)).mean()


# -- what goes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_flicker_of_the_whole_frame_goes(seed):
    still, flickering = seen(pan()), seen(pan(), gains(16, seed=seed))
    assert share_left(still, flickering, correct(flickering, fps=FPS)) < 0.1


@pytest.mark.skipif(not REAL.exists(), reason="../shared/clips is absent")
@pytest.mark.parametrize("name", ["bear", "boat", "car", "cat2", "coin", "flowers", "juice", "wolf2"])
def test_on_a_real_clip_nine_tenths_of_a_flicker_go_and_nothing_else(name):
    frames, fps, _ = files.read(REAL / f"{name}.mp4")
    video = frames[:, ::4, ::4].astype(np.float32) / 255
    flickering = seen(srgb_to_linear(video), gains(len(video), seed=1))
    assert share_left(video, flickering, correct(flickering, fps=fps)) < 0.1
    assert moved(video, correct(video, fps=fps)) < 0.005


def test_flicker_of_colour_goes():
    flickering = seen(pan(), 1 + 0.03 * np.random.default_rng(0).standard_normal((16, 1, 1, 3)))
    before, after = (measure(clip, fps=FPS)["cct_jitter"] for clip in (flickering, correct(flickering, fps=FPS)))
    assert before > 4 and after < 0.15 * before


def test_flicker_of_a_lamp_at_one_side_goes():
    across = np.cos(np.linspace(0, np.pi, 64))[:, None]
    flickering = seen(pan(), 1 + 0.08 * np.random.default_rng(0).standard_normal((16, 1, 1, 1)) * across)
    steady, before, after = (
        measure(clip, fps=FPS)["local_flicker"] for clip in (seen(pan()), flickering, correct(flickering, fps=FPS))
    )
    assert before > 5 * steady and after - steady < 0.25 * (before - steady)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_flash_goes(frames):
    gain = np.ones(16)
    gain[7 : 7 + frames] = 1.5
    still, flashing = seen(pan()), seen(pan(), gain)
    assert np.abs(exposure_of(correct(flashing, fps=FPS)) - exposure_of(still)).max() < 0.02


def test_a_second_pass_changes_next_to_nothing():
    once = correct(seen(pan(), gains(16)), fps=FPS)
    assert moved(once, correct(once, fps=FPS)) < 0.003


def test_the_correction_has_no_direction_in_time():
    flickering = seen(pan(), gains(16))
    backwards = correct(flickering[::-1], fps=FPS)[::-1]
    np.testing.assert_allclose(exposure_of(backwards), exposure_of(correct(flickering, fps=FPS)), atol=2e-3)


# -- what stays -------------------------------------------------------------------------------------------


def test_a_steady_clip_stays():
    video = seen(pan())
    assert np.abs(correct(video, fps=FPS) - video).max() < 1e-3


def test_what_crosses_the_frame_moves_nothing():
    light = pan()
    for t in range(16):
        light[t, 10:40, max(0, 6 * t - 30) : 6 * t] = 0.9
    video = seen(light)
    assert np.ptp(exposure_of(video)) > 0.3
    assert moved(video, correct(video, fps=FPS)) < 0.003


@pytest.mark.parametrize("scene", range(3))
def test_a_rendered_sunrise_keeps_its_slope_and_its_colour(scene):
    video = render_clip(ClipSpec("sunrise_room", scene, 1, 1 - 2 * (scene % 2), split="test")).video
    before, after = (measure(clip, fps=FPS) for clip in (video, correct(video, fps=FPS)))
    for slope in ("exposure_slope", "cct_drift", "sweep_rate"):
        assert after[slope] == pytest.approx(before[slope], rel=0.005)


def test_a_trend_of_light_and_colour_is_found_again_under_flicker():
    t = np.linspace(-1, 1, 24)[:, None, None, None]
    dawn = np.exp2(np.array([0.9, 0.5, 0.2]) * t)
    shake = gains(24, 0.06, 3)
    # what of the flicker itself is a slope is not known from a trend
    shake /= np.exp(np.polyval(np.polyfit(t.ravel(), np.log(shake), 1), t.ravel()))
    clean = seen(0.6 * pan(24), dawn)
    found = correct(seen(0.6 * pan(24), dawn * shake.reshape(t.shape)), fps=FPS)
    wanted, got = (measure(clip, fps=FPS) for clip in (clean, found))
    assert got["exposure_slope"] == pytest.approx(wanted["exposure_slope"], rel=0.02)
    assert got["cct_drift"] == pytest.approx(wanted["cct_drift"], rel=0.02)


def test_a_lamp_switched_on_is_kept_in_a_quiet_clip():
    video = seen(0.5 * pan(), np.where(np.arange(16) < 7, 1.0, 1.6))
    assert moved(video, correct(video, fps=FPS)) < 1e-3


def test_a_lamp_switched_on_stays_sudden_under_flicker():
    lamp = np.where(np.arange(32) < 16, 0.4, 1.0)
    corrected = exposure_of(correct(seen(pan(32), lamp * gains(32, 0.04)), fps=FPS))
    assert corrected[16] - corrected[15] == pytest.approx(np.log2(2.5), rel=0.1)
    assert np.abs(np.diff(np.delete(corrected - exposure_of(seen(pan(32))), 16))[:14]).max() < 0.05


def test_two_scenes_are_corrected_each_for_itself():
    one, two = 0.3 * pan(12, seed=1), pan(12, seed=2)[:, ::-1]
    still, flickering = (seen(np.concatenate([one, two]), gain) for gain in (1.0, gains(24)))
    corrected = correct(flickering, fps=FPS)
    for scene in (slice(0, 12), slice(12, 24)):
        assert share_left(still[scene], flickering[scene], corrected[scene]) < 0.15
    assert np.diff(exposure_of(corrected))[11] == pytest.approx(np.diff(exposure_of(still))[11], abs=0.15)


# -- the ends of the range --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nothing_is_clipped_that_was_not(dtype):
    bright = np.clip(pan() * 2.2, 0, 1)
    bright[:, :8, :8] = 0
    video = seen(bright, gains(16))
    video = np.rint(255 * video).astype(np.uint8) if dtype == np.uint8 else video
    corrected, white = correct(video, fps=FPS), 255 if dtype == np.uint8 else 1
    assert 0.001 < (video > 0.9999 * white).mean() < 0.2
    assert not ((corrected == white) & (video < white)).any()
    assert (corrected > 0.9999 * white).mean() <= (video > 0.9999 * white).mean()
    assert not ((corrected == 0) & (video > 0)).any()
    assert not corrected[:, :8, :8].any(), "black has no light to correct"


def test_a_gain_keeps_the_order_of_values_and_ends_at_white():
    light = np.linspace(0, 1, 4001, dtype=np.float32)
    for gain in (0.5, 0.9, 1.1, 2.0):
        for brightest in (0.9, 1.0):
            shown = light[light <= brightest]
            out = exposure.apply_gain(shown, gain, brightest=brightest)
            assert (np.diff(out) > 0).all() and out[0] == 0
            plain = max(gain, 1) * shown <= 0.9
            np.testing.assert_allclose(out[plain], gain * shown[plain], rtol=1e-6)
            assert (out[-1] == 1) if brightest == 1 else (out[-1] < 1)


def test_a_darkening_gain_undoes_a_brightening_one():
    light = np.linspace(0, 1, 1001, dtype=np.float32)
    there = exposure.apply_gain(light, 1.25, brightest=1.0)
    np.testing.assert_allclose(exposure.apply_gain(there, 0.8, brightest=1.0), light, atol=1e-5)


def test_whites_that_only_a_bright_frame_has_are_darkened_with_it():
    light = 0.9 * np.ones((16, 32, 32, 3), np.float32)
    light[:, ::3] = 0.3
    flash = np.where(np.arange(16) == 8, 1.3, 1.0)
    assert share_left(seen(light), seen(light, flash), correct(seen(light, flash), fps=FPS)) < 0.3


def test_whites_that_every_frame_has_stay_white():
    light = pan()
    light[:, 10:20, 30:40] = 3.0
    corrected = correct(seen(light, gains(16)), fps=FPS)
    np.testing.assert_allclose(corrected[:, 10:20, 30:40], 1, rtol=0, atol=1e-6)


# -- any clip ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_the_type_stays_and_values_stay_in_range(dtype):
    video = seen(pan(8, size=40), gains(8))
    video = np.rint(255 * video).astype(np.uint8) if dtype == np.uint8 else video.astype(dtype)
    corrected = correct(video, fps=FPS)
    assert corrected.dtype == dtype and corrected.shape == video.shape
    assert corrected.min() >= 0 and corrected.max() <= (255 if dtype == np.uint8 else 1)
    assert (corrected != video).any()


def test_bytes_and_floats_are_corrected_alike():
    video = np.rint(255 * seen(pan(8), gains(8))).astype(np.uint8)
    as_float = correct(video.astype(np.float32) / 255, fps=FPS)
    assert np.abs(correct(video, fps=FPS) / 255 - as_float).max() < 0.51 / 255


@pytest.mark.parametrize("shape", [(16, 1, 1), (16, 8, 10), (16, 33, 47), (16, 11, 200), (3, 64, 64), (4, 64, 64)])
def test_small_odd_and_short_clips_lose_their_flicker_too(shape):
    frames, height, width = shape
    light = np.stack([surface(height, width)] * frames)
    gain = 1 + 0.1 * (-1.0) ** np.arange(frames)
    before, after = (roughness(exposure_of(clip)) for clip in (seen(light, gain), correct(seen(light, gain), fps=FPS)))
    assert after < 0.5 * before


@pytest.mark.parametrize("frames", [1, 2])
def test_one_or_two_frames_come_back_as_they_are(frames):
    video = seen(pan(16), gains(16))[:frames]
    np.testing.assert_array_equal(correct(video, fps=FPS), video)


@pytest.mark.parametrize("level", [0.0, 0.001, 0.4, 1.0])
def test_a_constant_clip_stays(level):
    video = np.full((10, 20, 20, 3), level, np.float32)
    np.testing.assert_array_equal(correct(video, fps=FPS), video)


def test_black_frames_stay_black_and_do_no_harm():
    light = pan() * gains(16)[:, None, None, None].astype(np.float32)
    light[[0, 9]] = 0
    corrected = correct(seen(light), fps=FPS)
    assert not corrected[[0, 9]].any() and np.isfinite(corrected).all()
    assert np.abs(exposure_of(corrected) - exposure_of(seen(light))).max() < 0.3


def test_grey_stays_grey():
    light = np.repeat(pan()[..., :1], 3, -1)
    corrected = correct(seen(light, gains(16)), fps=FPS)
    assert np.ptp(corrected, axis=-1).max() < 1e-6


def test_a_clip_may_come_frame_by_frame():
    video = seen(pan(), gains(16))
    correction = estimate(iter(video), fps=FPS)
    whole = correct(video, fps=FPS)
    for index in (0, 7, 15):
        np.testing.assert_array_equal(correction.apply(video[index], index), whole[index])
    with pytest.raises(IndexError, match="frame 16: .* 16 frames"):
        correction.apply(video[0], 16)


FINE = np.full((3, 16, 16, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    "video,arguments,message",
    [
        (FINE[0], {}, r"expected \[T, H, W, 3\]"),
        (FINE[..., :1], {}, r"frame 0: expected \[H, W, 3\]"),
        (FINE[:0], {}, "no frames"),
        (FINE * np.nan, {}, "frame 0: holds values that are not finite"),
        (FINE * 255, {}, r"frame 0: values from 127.5 to 127.5: expected \[0, 1\]"),
        (FINE - 1, {}, r"expected \[0, 1\]"),
        (FINE.astype(np.int32), {}, "got int32"),
        (FINE, {"fps": 0}, "fps = 0"),
        (FINE, {"period": float("nan")}, "period = nan"),
        (FINE, {"period": 1.0}, "period = 1.0 s: expected at least 1.25 s, ten frames at 8 frames per second"),
    ],
)
def test_what_cannot_be_corrected_is_refused(video, arguments, message):
    with pytest.raises(ValueError, match=message):
        correct(video, **{"fps": FPS} | arguments)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="frame 1: .* first frame"):
        estimate([FINE[0], FINE[0, :8]], fps=FPS)


# -- tracks -----------------------------------------------------------------------------------------------


def flicker(track, noise=0.006, period=10.0, **more):
    return trend.flicker(np.asarray(track, float), period=period, noise=noise, **more)


def test_a_straight_track_is_all_trend():
    np.testing.assert_allclose(flicker(np.linspace(-1, 2, 30), noise=0.0 + 1e-9), 0, atol=1e-9)


def test_a_sine_of_the_period_is_split_in_halves():
    wave = np.sin(2 * np.pi * np.arange(400) / 20)
    rest = flicker(wave, noise=1e-9, period=20.0)[100:300]
    np.testing.assert_allclose(rest, 0.5 * wave[100:300], atol=0.01)


def test_alternating_tracks_are_all_flicker_and_quiet_ones_are_left():
    wave = (-1.0) ** np.arange(40)
    np.testing.assert_allclose(flicker(0.1 * wave)[5:-5], 0.1 * wave[5:-5], atol=0.005)
    assert np.abs(flicker(0.001 * wave)).max() < 0.0003


def test_fast_real_change_in_a_quiet_track_is_left():
    dimmer = np.clip(np.arange(40) - 18, 0, 4) / 4
    assert np.abs(flicker(dimmer)).max() < 1e-3


def test_scenes_do_not_see_each_other():
    track = np.r_[np.zeros(12), np.full(12, 3.0)] + 0.1 * (-1.0) ** np.arange(24)
    apart = flicker(track, starts=[12])
    np.testing.assert_allclose(apart[:12], flicker(track[:12]))
    np.testing.assert_allclose(apart[12:], flicker(track[12:]))


def test_a_period_that_frames_cannot_show_is_refused():
    with pytest.raises(ValueError, match="period = 3"):
        flicker(np.zeros(9), period=3.0)
