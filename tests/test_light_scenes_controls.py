"""Wrong shadows: each is wrong in its own way, and nothing but the shadow is touched."""

import numpy as np
import pytest

from data_pipelines.light_scenes import ClipSize, ClipSpec, render_clip, rendered_checks, wrong_shadows
from data_pipelines.light_scenes.controls import GROUND

SIZE = ClipSize(frames=9, height=48, width=48)


@pytest.fixture(scope="module")
def walk():
    clip = render_clip(ClipSpec("street_lamp", 0, sweep=1), SIZE)
    return clip, wrong_shadows(clip)


def lead(frames, clip) -> np.ndarray:
    """[T] pixels that the darkness on the ground is to the right of the walker, against the clip without a shadow."""
    bare = wrong_shadows(clip)["shadow removed"].astype(float).sum(-1)
    dark = np.maximum(bare - frames.astype(float).sum(-1) - 30, 0) * np.isin(clip.passes.object_id, GROUND)
    return dark.sum(1) @ np.arange(48) / np.maximum(dark.sum((1, 2)), 1e-9) - clip.foot[:, 0]


def test_only_the_ground_changes_and_only_where_a_shadow_comes_or_goes(walk) -> None:
    clip, wrong = walk
    assert len(wrong) == 7
    ground = np.isin(clip.passes.object_id, GROUND)
    for frames in wrong.values():
        assert frames.shape == clip.video.shape and frames.dtype == np.uint8
        off = np.abs(frames.astype(int) - clip.video).max(-1)
        assert off[~ground].max() <= 1
        assert 0.002 < (off > 10).mean() < 0.1


def test_each_shadow_is_wrong_in_its_own_way(walk) -> None:
    clip, wrong = walk
    true = lead(clip.video, clip)
    assert true[0] < -2 and true[-1] > 2, "behind him, then ahead"
    middle = len(true) // 2
    assert np.corrcoef(lead(wrong["shadow mirrored"], clip), true)[0, 1] < -0.9
    lies = lead(wrong["shadow frozen"], clip) + clip.foot[:, 0]
    assert np.ptp(lies[[0, middle, -1]]) < 3
    back = lead(wrong["shadow played backwards"], clip) + clip.foot[:, 0]
    np.testing.assert_allclose(back, (true + clip.foot[:, 0])[::-1], atol=3)
    carried = lead(wrong["shadow carried along"], clip)
    assert np.ptp(carried[:middle]) < 4 and carried.max() < 0
    detached = lead(wrong["shadow detached"], clip) - true
    assert np.median(detached) == pytest.approx(0.2 * 48, abs=3)
    late = lead(wrong["shadow of another time"], clip)
    assert late[1] > 4 and late[-1] < -4


def test_a_clip_without_a_walker_is_refused() -> None:
    with pytest.raises(ValueError, match="constant: has no walker"):
        wrong_shadows(render_clip(ClipSpec("constant", 0, pan=1), ClipSize(frames=2, height=16, width=16)))


def test_checks_are_of_the_test_split_balanced_and_state_what_they_show() -> None:
    found = list(rendered_checks(("water_glitter", "street_lamp"), 4))
    facts = [facts for _, _, facts in found]
    water = [f for f in facts if f["family"] == "water_glitter"]
    assert {(f["exposure_change"], f["glints"]) for f in water} == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    assert all(f["color_change"] == f["exposure_change"] for f in water)
    lamp = [f for f in facts if f["family"] == "street_lamp"]
    assert len(lamp) == 4 * (1 + 7) and sum("control" in f for f in lamp) == 28
    assert all(f["shadow_follows"] == 1 for f in lamp)
    first = render_clip(ClipSpec("water_glitter", 0, exposure_change=1, glints=1, split="test"))
    np.testing.assert_array_equal(found[0][0], first.video)
    with pytest.raises(ValueError, match="moon: expected different names of"):
        next(rendered_checks(("moon",), 4))
