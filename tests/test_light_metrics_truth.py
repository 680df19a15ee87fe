"""Shadows, patches of light and glints against the scene's own passes."""

import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from wanjax.light.glints import LARGEST_LAG, LagTracker
from wanjax.light.metrics import ASKED_FOR, GROUND_TRUTH, UNITS, measure
from wanjax.light.photometry import linear_to_srgb

FRAMES, HEIGHT, WIDTH = 9, 72, 96
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(float)
FOOT = np.stack([np.linspace(30, 60, FRAMES), np.full(FRAMES, 30.0)], axis=1)  # [T, 2]
LIGHT = np.array([1.0, 0.9, 0.7])


def smooth(distance: np.ndarray) -> np.ndarray:
    return np.clip(distance + 0.5, 0, 1)


def cast(degrees: float = 60, length: float = 30) -> np.ndarray:
    """[T, H, W] visibility: a shadow 6 pixels wide from the foot on, and another that is not at the foot."""
    turn = np.radians(degrees)
    out = []
    for x, y in FOOT:
        along = (X - x) * np.cos(turn) + (Y - y) * np.sin(turn)
        across = (Y - y) * np.cos(turn) - (X - x) * np.sin(turn)
        own = smooth(np.minimum(np.minimum(along, length - along), 3 - np.abs(across)))
        out.append(1 - np.maximum(own, smooth(4 - np.hypot(X - 10, Y - 60))))
    return np.stack(out)


def patch(dx: float = 0, dy: float = 0) -> np.ndarray:
    """[T, H, W] visibility: light through a window."""
    edges = [np.minimum(8 - np.abs(X - 30 - 3 * t - dx), 12 - np.abs(Y - 36 - dy)) for t in range(FRAMES)]
    return np.stack([smooth(edge) for edge in edges])


def glitter(late: float = 0, frames: int = FRAMES) -> np.ndarray:
    """[T, H, W] highlights that live for a few frames each, ``late`` frames after their time."""
    rng = np.random.default_rng(0)
    out = np.zeros((frames, HEIGHT, WIDTH))
    for _ in range(150):
        x, y, when = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.uniform(-2, frames + 2)
        spot = 0.3 * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / 3)
        out += np.exp(-((np.arange(frames) - late - when) ** 2) / 2)[:, None, None] * spot
    return out


def scene(visibility: np.ndarray, highlights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The record of a scene on patterned ground."""
    ground = 0.25 + 0.1 * np.sin(X / 5) * np.cos(Y / 7)
    direct = np.broadcast_to((ground[..., None] * LIGHT)[None], (*visibility.shape, 3))
    specular = np.zeros(direct.shape) if highlights is None else np.repeat(highlights[..., None], 3, -1)
    return {"visibility": visibility, "direct": direct, "ambient": 0.3 * direct, "specular": specular, "foot": FOOT}


def picture(record: dict[str, np.ndarray]) -> np.ndarray:
    """[T, H, W, 3] uint8 as a camera would store it."""
    linear = record["direct"] * record["visibility"][..., None] + record["ambient"] + record["specular"]
    return np.round(255 * linear_to_srgb(linear)).astype(np.uint8)


def test_a_clip_of_the_scene_itself_has_no_error():
    truth = scene(cast(), glitter())
    metrics = measure(picture(truth), fps=8, truth=truth)
    assert metrics["shadow_iou"] > 0.97
    assert metrics["shadow_angle_error"] < 0.3
    assert metrics["shadow_length_error"] < 0.01
    assert metrics["patch_error"] < 0.05
    assert metrics["glint_lag"] < 0.01


def test_the_shadow_that_turns_and_stretches_is_off_by_as_much():
    truth = scene(cast())
    turned = measure(picture(scene(cast(degrees=72))), fps=8, truth=truth)
    assert turned["shadow_angle_error"] == pytest.approx(12, abs=0.5)
    assert turned["shadow_length_error"] < 0.03
    assert turned["shadow_iou"] < 0.75
    longer = measure(picture(scene(cast(length=39))), fps=8, truth=truth)
    assert longer["shadow_length_error"] == pytest.approx(0.3, abs=0.02)
    assert longer["shadow_angle_error"] < 0.5


def test_a_shadow_that_is_gone_costs_a_random_direction_and_its_whole_length():
    truth = scene(cast())
    gone = measure(picture(scene(np.ones_like(cast()))), fps=8, truth=truth)
    assert (gone["shadow_iou"], gone["shadow_angle_error"], gone["shadow_length_error"]) == (0, 90, 1)


def test_the_patch_of_light_is_off_by_its_distance():
    truth = scene(patch())
    assert measure(picture(scene(patch(6, -8))), fps=8, truth=truth)["patch_error"] == pytest.approx(10, abs=0.05)
    dark = measure(picture(scene(np.zeros_like(patch()))), fps=8, truth=truth)
    assert dark["patch_error"] == pytest.approx(np.hypot(HEIGHT, WIDTH) / 2)


@pytest.mark.parametrize("flicker", [0.0, 0.06])
def test_flicker_does_not_pass_for_an_error_of_the_shadow(flicker):
    truth = scene(cast())
    gains = 1 + flicker * np.random.default_rng(0).standard_normal(FRAMES)
    video = {**truth, "direct": truth["direct"] * gains[:, None, None, None]}
    metrics = measure(picture(video), fps=8, truth=truth)
    assert metrics["shadow_iou"] > 0.95
    assert metrics["shadow_angle_error"] < 1


@pytest.mark.parametrize("late", [0, 1, 2, -2, 0.5])
@pytest.mark.parametrize("stated", ["glint", "specular", "mean"])
def test_glints_that_come_late_or_early_lag_by_so_many_frames(late, stated):
    # Each glint lives for about three frames, so the clip is long enough to hold many lives.
    visible = np.ones((25, HEIGHT, WIDTH))
    truth = scene(visible, glitter(frames=25))
    video = picture(scene(visible, glitter(late, frames=25)))
    glint = truth["specular"][..., 0]
    signal = {"glint": {"glint": glint}, "specular": {"specular": truth["specular"]}}
    signal["mean"] = {"glint": glint.mean((1, 2))}
    metrics = measure(video, fps=8, truth={name: truth[name] for name in ("direct", "ambient")} | signal[stated])
    # one number per frame tells less than a map of them, and less sharply
    tolerance = 0.2 if stated == "mean" else 0.02
    assert metrics["glint_lag"] == pytest.approx(abs(late), abs=tolerance)
    assert "shadow_iou" not in metrics


def test_glints_that_match_at_no_shift_read_the_largest_lag():
    tracker = LagTracker()
    for measured, true in np.random.default_rng(1).random((25, 2, 40, 40)):
        tracker.add(measured, true)
    assert tracker.lag == LARGEST_LAG


def test_highlights_too_weak_to_be_stored_are_not_compared():
    truth = scene(cast(), glitter() / 100)
    assert "glint_lag" not in measure(picture(truth), fps=8, truth=truth)


def test_pixels_with_several_surfaces_are_told_by_the_shadowed_pass():
    truth = scene(cast())
    # Half of each of these pixels is black and lit, the other half bright and in shadow: mean visibility 0.5 says
    # nothing, but hardly any light arrives from there.
    mixed = np.zeros((HEIGHT, WIDTH), bool)
    mixed[40:60, 70:90] = True
    shadowed = truth["direct"] * np.where(mixed, 0.05, truth["visibility"])[..., None]
    record = {**truth, "visibility": np.where(mixed, 0.52, truth["visibility"])}
    video = np.round(255 * linear_to_srgb(shadowed + truth["ambient"])).astype(np.uint8)
    assert measure(video, fps=8, truth=record)["shadow_iou"] < 0.6
    assert measure(video, fps=8, truth=record | {"shadowed": shadowed})["shadow_iou"] > 0.97


def test_what_the_truth_does_not_state_is_left_out():
    truth = scene(cast())
    video = picture(truth)
    assert not set(measure(video, fps=8)) & GROUND_TRUTH
    assert not set(measure(video, fps=8, truth={"visibility": truth["visibility"]})) & GROUND_TRUTH
    del truth["foot"]
    found = set(measure(video, fps=8, truth=truth)) & GROUND_TRUTH
    assert found == {"shadow_iou", "patch_error"}, "no foot, and highlights that are black"
    everything = scene(cast(), glitter()) | {"exposure_slope": 0, "cct_slope": 0, "sweep_rate": 0}
    assert set(measure(video, fps=8, truth=everything)) == set(UNITS) - ASKED_FOR


def test_passes_may_come_frame_by_frame_and_as_bytes():
    truth = scene(cast(), glitter())
    whole = measure(picture(truth), fps=8, truth=truth)
    parts: dict[str, Iterator[np.ndarray]] = {name: iter(values) for name, values in truth.items()}
    assert measure(picture(truth), fps=8, truth=parts) == whole
    packed = {**truth, "visibility": np.round(255 * truth["visibility"]).astype(np.uint8)}
    assert measure(picture(truth), fps=8, truth=packed) == pytest.approx(whole, rel=0.01, abs=0.01)


def test_a_larger_clip_of_the_same_layout_is_compared_at_the_size_of_the_truth():
    truth = scene(cast())
    video = picture(truth).repeat(2, axis=1).repeat(2, axis=2)
    large, small = (measure(clip, fps=8, truth=truth) for clip in (video, picture(truth)))
    assert [large[name] for name in GROUND_TRUTH & set(large)] == [small[name] for name in GROUND_TRUTH & set(large)]


def test_memory_does_not_grow_with_the_length_of_the_truth():
    record = {name: values[0, :11] for name, values in scene(cast(), glitter()).items() if name != "foot"}
    frame = picture({name: values[None] for name, values in record.items()})[0]

    def peak(frames: int) -> int:
        truth = {name: itertools.repeat(values, frames) for name, values in record.items()}
        tracemalloc.start()
        measure((frame for _ in range(frames)), fps=8, truth=truth)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(3)
    assert peak(380) < 1.2 * peak(190)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"visibility": r["visibility"][:-1]}, "truth: visibility has 8 frames, the clip has more"),
        (lambda r: {"direct": np.repeat(r["direct"], 2, 0)}, "truth: direct has more than the 9 frames"),
        (lambda r: {"ambient": r["ambient"][:, :9]}, r"truth: ambient of frame 0 is \[9, 96\]"),
        (lambda r: {"visibility": r["visibility"][..., None]}, "truth: visibility of frame 0 has shape"),
        (lambda r: {"foot": np.full((9, 2), np.nan)}, "truth: foot of frame 0 .* not finite"),
        (lambda r: {"specular": 0.0}, "truth: specular: expected one entry per frame, got float"),
    ],
)
def test_a_record_that_does_not_fit_the_clip_is_named(change, message):
    truth = scene(cast())
    with pytest.raises(ValueError, match=message):
        measure(picture(truth), fps=8, truth=truth | change(truth))
