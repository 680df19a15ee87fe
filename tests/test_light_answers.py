"""What else a caption may state: the color's change, the way of glints, whose shadow it is."""

import cv2
import numpy as np
import pytest

from data_pipelines import light_scenes
from data_pipelines.light_scenes.splits import group_of
from wanjax.light.answers import LOOKED_FOR, classify_optional
from wanjax.light.glints import WayTracker
from wanjax.light.metrics import ASKED_FOR, measure
from wanjax.light.photometry import linear_to_srgb
from wanjax.light.walker import NO_SHADOW, following

FPS = 8.0
FRAMES, SIDE = 17, 64


def street(*, lamp: float = 32.0, gain: float = 0.8, drop: float = 5.0, attached: bool = True, sign: int = 1):
    """Log-luminance [17, 64, 64] of a dark figure that walks from 12 to 52, its shadow a line from foot to tip.

    The tip lies ``gain`` times the way from ``lamp`` beyond the foot and ``drop`` rows below it, away from the lamp;
    with ``sign`` -1 toward it. Not ``attached``, the first half of it is missing.
    """
    stops = np.full((FRAMES, SIDE, SIDE), -2.0)
    stops += 0.2 * np.sin(np.arange(SIDE) / 3)
    for t, x in enumerate(np.linspace(12, 52, FRAMES)):
        tip = x + sign * gain * (x - lamp), 50 + drop
        start = (x, 50) if attached else (x + 0.6 * (tip[0] - x) + 9, 50 + 0.6 * drop)
        picture = np.ascontiguousarray(stops[t])
        ends = [tuple(int(round(16 * v)) for v in end) for end in (start, tip)]
        cv2.line(picture, *ends, -6.0, 3, cv2.LINE_8, 4)
        picture[30:51, int(x) - 2 : int(x) + 3] = -5.0
        stops[t] = cv2.GaussianBlur(picture, (0, 0), 0.8)
    return stops


def follows(stops) -> bool:
    found = {f"shadow_{name}": value for name, value in vars(following(stops)).items()}
    return bool(classify_optional({"cct_drift": 0.0, **found})["shadow_follows"])


def test_a_shadow_that_swings_round_its_walker_follows_him_either_way_and_at_any_exposure():
    assert follows(street())
    assert follows(street()[::-1]), "he may walk the other way"
    assert follows(street()[:, :, ::-1])
    assert follows(street() + np.random.default_rng(0).normal(0, 0.2, (FRAMES, 1, 1))), "flicker is another fault"
    assert follows(street() + 0.1 * np.arange(FRAMES)[:, None, None])
    found = following(street(lamp=28.0))
    assert found.passing == pytest.approx((28 - 12) / 40, abs=0.06)
    assert following(street(gain=0.8)).swing > 1.3 * following(street(gain=0.4)).swing


@pytest.mark.parametrize("wrong", [
    street(sign=-1), street(gain=0.0, drop=0.0), street(attached=False), street(lamp=120.0), street(lamp=-60.0),
    np.concatenate([street()[9:], street()[:9]])[:, :, :], street()[:1].repeat(FRAMES, 0),
], ids=["to the lamp", "none", "detached", "always behind", "always ahead", "a jump", "nobody walks"])
def test_a_shadow_that_is_not_his_does_not(wrong):
    assert not follows(wrong)


@pytest.mark.parametrize("shape", [(1, 64, 64), (4, 64, 64), (17, 8, 64), (17, 64, 64), (17, 1, 1)])
def test_nobody_and_nothing_has_no_shadow(shape):
    assert following(np.zeros(shape)) == NO_SHADOW
    assert following(np.random.default_rng(0).normal(0, 0.01, shape)) == NO_SHADOW


def waves(way: int, frames: int = 17, *, fps: float = FPS) -> np.ndarray:
    """[T, 48, 64] stops: three plane waves that run at their own speeds, and a stake that stands still."""
    x, t = np.arange(64)[None, None], np.arange(frames)[:, None, None] / fps
    y = np.arange(48)[None, :, None]
    rows = [np.cos(2 * np.pi * (x / length - way * t / period) + y * tilt)
            for length, period, tilt in ((30, 1.1, 0.3), (12, 0.6, -0.4), (6, 0.4, 0.2))]
    stops = sum(rows)
    stops[:, 10:30, 20:24] = -6
    return stops


def way_of(stops) -> WayTracker:
    tracker = WayTracker()
    for frame in stops:
        tracker.add(frame)
    return tracker


@pytest.mark.parametrize("fps", [8.0, 24.0, 60.0])
@pytest.mark.parametrize("way", [1, -1])
def test_glints_run_the_way_of_their_waves(way, fps):
    found = way_of(waves(way, round(2 * fps), fps=fps))
    assert way * found.order > 0.05
    # the speeds of the three waves are 27, 20 and 15 pixels per second
    assert 12 / 64 < way * found.rate(fps) < 30 / 64


def test_what_flickers_brightens_or_runs_both_ways_runs_neither():
    rng = np.random.default_rng(0)
    still = waves(1, 1).repeat(17, 0)
    for stops in (still, still + rng.normal(0, 1, (17, 1, 1)), still + np.linspace(0, 2, 17)[:, None, None],
                  waves(1) + waves(-1), rng.normal(0, 1, (17, 48, 64)), still[:2], still[:1]):  # fmt: skip
        assert abs(way_of(stops).order) < 0.25
    assert way_of(still).order == way_of(still).rate(8) == 0


def test_the_color_changes_from_ten_mired_a_second_on():
    for drift, said in ((9.9, 0), (10.0, 1), (-10.0, -1), (-9.9, 0)):
        assert classify_optional({"cct_drift": drift}) == {"color_change": said}


def test_glints_and_shadows_are_measured_where_they_are_looked_for_alone():
    video = linear_to_srgb(np.exp2(street()[..., None].repeat(3, -1))).clip(0, 1).astype(np.float32)
    assert not set(measure(video, fps=FPS)) & ASKED_FOR
    for answer, names in LOOKED_FOR.items():
        assert set(measure(video, fps=FPS, look_for=(answer,))) & ASKED_FOR == set(names)
    assert classify_optional(measure(video, fps=FPS, look_for=LOOKED_FOR))["shadow_follows"] == 1
    with pytest.raises(ValueError, match="look_for: moon: expected names of color_change, glints, shadow_follows"):
        measure(video, fps=FPS, look_for=("moon",))
    black = classify_optional(measure(np.zeros((5, 32, 32, 3), np.uint8), fps=FPS, look_for=LOOKED_FOR))
    assert black == {"color_change": 0, "glints": 0, "shadow_follows": 0}


def blurred(video: np.ndarray, seed: int) -> np.ndarray:
    """A soft picture with a flicker of 3 % and noise, as a small latent model makes them."""
    rng = np.random.default_rng(seed)
    soft = np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1.0) for frame in video])
    noisy = soft * (1 + 0.03 * rng.standard_normal((len(video), 1, 1, 1))) + rng.normal(0, 4, video.shape)
    return np.round(np.clip(noisy, 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["street_lamp", "water_glitter", "sunrise_room/blinds"])
def test_blurred_and_noisy_renderings_are_read_rightly(kind):
    specs = [spec for scene in range(100, 103) for spec in group_of(scene, "train", 0, (kind,))]
    for seed, spec in enumerate(specs):
        clip = light_scenes.render_clip(spec)
        found = classify_optional(measure(blurred(clip.video, seed), fps=FPS, look_for=LOOKED_FOR))
        assert found["color_change"] == spec.exposure_change
        if spec.glints:
            assert found["glints"] == spec.glints
        if kind == "street_lamp":
            assert found["shadow_follows"] == 1
