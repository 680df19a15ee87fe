"""General flashes are counted as WCAG 2 defines them."""

import numpy as np
import pytest

from wanjax.light.flashes import FlashTracker
from wanjax.light.metrics import measure
from wanjax.light.photometry import linear_to_srgb


def rate_of(levels: list[float] | np.ndarray, *, fps: float = 24, share: float = 1.0) -> float:
    """Flashes per second of a frame of which ``share`` shows these relative luminances, and the rest 0.3."""
    tracker = FlashTracker(fps)
    for level in levels:
        frame = np.full((20, 20), 0.3)
        frame.flat[: round(400 * share)] = level
        tracker.add(frame)
    return tracker.rate


def blinking(low: float, high: float, *, times: int, every: int = 4) -> list[float]:
    return ([low] * every + [high] * every) * times + [low] * every


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_pairs_of_opposing_changes_per_second(times):
    levels = blinking(0.3, 0.5, times=times)
    assert rate_of(levels) == pytest.approx(times / (len(levels) / 24))
    assert rate_of(levels[::-1]) == rate_of(levels)


@pytest.mark.parametrize(
    ("low", "high", "flashes"),
    [
        (0.30, 0.41, True),
        (0.20, 0.30, True),
        (0.30, 0.39, False),  # less than a tenth of white
        (0.02, 0.08, False),  # four times as bright, and less than a tenth of white
        (0.79, 0.95, True),
        (0.81, 0.95, False),  # the darker state is not below 0.80
    ],
)
def test_a_flash_needs_a_tenth_of_white_and_a_darker_state_below_four_fifths(low, high, flashes):
    assert bool(rate_of(blinking(low, high, times=3))) is flashes


@pytest.mark.parametrize(("share", "flashes"), [(0.24, False), (0.25, True), (1.0, True)])
def test_a_flash_covers_a_quarter_of_the_frame(share, flashes):
    assert bool(rate_of(blinking(0.3, 0.6, times=3), share=share)) is flashes


def test_a_step_and_a_sunrise_are_no_flashes():
    assert rate_of([0.2] * 12 + [0.7] * 12) == 0
    assert rate_of(np.linspace(0, 1, 48)) == 0
    assert rate_of(np.linspace(1, 0, 48)) == 0


def test_a_change_may_take_several_frames_and_ripple_on_its_way():
    soft = np.concatenate([np.linspace(0.3, 0.6, 5), np.linspace(0.6, 0.3, 5)[1:]])
    assert rate_of(np.tile(soft, 4)) == pytest.approx(4 / (36 / 24))
    rng = np.random.default_rng(0)
    rippled = np.array(blinking(0.3, 0.6, times=4)) + rng.uniform(-0.04, 0.04, 36)
    assert rate_of(rippled) == pytest.approx(4 / (36 / 24))


def test_parts_of_a_frame_that_change_one_after_the_other_do_not_flash():
    tracker = FlashTracker(24)
    for t in range(60):
        frame = np.full((20, 20), 0.2)
        frame[:, t // 3 % 20] = 0.9  # a lit column wanders over the frame
        tracker.add(frame)
    assert tracker.rate == 0


@pytest.mark.parametrize("speed", [1.0, 2.5, 4.0])
def test_a_pan_over_strong_contrast_does_not_flash(speed):
    y, x = np.mgrid[:40, :60]
    tracker, flashing = FlashTracker(24), FlashTracker(24)
    for t in range(72):
        stripes = 0.3 + 0.2 * np.sin(0.3 * (x - speed * t)) * np.cos(0.1 * y)
        tracker.add(stripes)
        flashing.add(stripes * (1.8 if t % 12 < 3 else 1.0))
    assert tracker.rate == 0
    assert flashing.rate == pytest.approx(2, abs=0.4)


def test_a_clip_that_flashes_is_measured_so():
    levels = np.array(blinking(0.2, 0.4, times=3, every=2))[:, None, None, None]
    video = linear_to_srgb(np.broadcast_to(levels, (14, 24, 32, 3)))
    assert measure(video, fps=7)["flash_rate"] == pytest.approx(1.5)
    assert measure(video[:4], fps=7)["flash_rate"] == 0, "a rise alone is no pair"
