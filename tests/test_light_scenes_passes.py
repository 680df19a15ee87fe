"""Every pass of every family: the picture is the sum of its parts, surfaces and shadows go where the flow says."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.light_scenes import ALL, ClipSize, ClipSpec, Passes, build_world, render_clip, shadows
from data_pipelines.light_scenes.colour import LUMINANCE
from data_pipelines.light_scenes.families import signs_of
from data_pipelines.light_scenes.flow import Flow, surface_flow, trace_centers
from data_pipelines.light_scenes.shadows import LIFT, Shadows
from data_pipelines.light_scenes.trace import Tracer, nearest, trace, whole

SMALL = ClipSize(frames=4, height=32, width=32)


def spec_of(kind: str, scene: int = 1, sign: int = 1, split: str = "train") -> ClipSpec:
    family, _, variant = kind.partition("/")
    return ClipSpec(family, scene, split=split, variant=variant, **dict.fromkeys(signs_of(family), sign))


@pytest.fixture(scope="module", params=ALL)
def clip(request):
    return render_clip(spec_of(request.param), SMALL)


def test_picture_is_the_sum_of_its_passes(clip) -> None:
    passes = clip.passes
    np.testing.assert_allclose(passes.shadowed + passes.ambient + passes.specular, clip.linear, rtol=0, atol=1e-6)
    assert (passes.shadowed <= passes.direct + 1e-6).all()
    np.testing.assert_array_equal(passes.visibility, clip.visibility)
    assert set(np.unique(passes.hard_visibility)) <= {0, 0.25, 0.5, 0.75, 1}


def test_passes_have_the_clips_shape_and_units(clip) -> None:
    passes, (t, h, w) = clip.passes, (4, 32, 32)
    assert passes.normal.shape == (t, h, w, 3) and passes.depth.shape == (t, h, w)
    np.testing.assert_allclose(np.linalg.norm(passes.normal, axis=-1), 1, atol=1e-5)
    assert (passes.depth > 0).all() and passes.camera_pose.shape == (t, 3, 4)
    # Depth, camera and pixel give the point that the tracing met.
    axes, origin = passes.camera_pose[:, :, :3], passes.camera_pose[:, :, 3]
    u = ((np.arange(w) + 0.5) / w * 2 - 1) * passes.camera_half_width
    v = (1 - (np.arange(h) + 0.5) / h * 2) * passes.camera_half_width
    local = np.stack([*np.broadcast_arrays(u[None, :], v[:, None]), np.ones((h, w))], -1)
    points = origin[:, None, None] + passes.depth[..., None] * np.einsum("tij,hwj->thwi", axes, local)
    traced = trace_centers(build_world(clip.spec, SMALL), SMALL)
    expected = np.broadcast_to(traced.points, (3, t, h * w)).reshape(3, t, h, w).transpose(1, 2, 3, 0)
    near = passes.depth < 100
    np.testing.assert_allclose(points[near], expected[near], atol=1e-4)


def test_truth_holds_what_the_metrics_compare_with(clip) -> None:
    truth = clip.truth
    assert {"log_luminance", "exposure_slope", "cct_slope", "sweep_rate", "visibility", "direct", "shadowed",
            "ambient", "specular"} <= set(truth)
    assert ("foot" in truth) == (clip.spec.family in ("sundial", "street_lamp"))
    assert ("glint" in truth) == (clip.spec.family == "water_glitter")
    assert truth["direct"].shape == (4, 32, 32, 3)


@pytest.mark.parametrize("kind", ALL)
def test_flow_lands_on_the_same_point_of_the_surface_within_a_tenth_of_a_pixel(kind: str) -> None:
    """Checked with rays: where the flow ends, the other frame's camera looks at the same point of the same thing."""
    spec = spec_of(kind, scene=2, sign=-1)
    clip, world = render_clip(spec, SMALL), build_world(spec, SMALL)
    ids = clip.passes.object_id
    rows, columns = np.mgrid[:32, :32]
    for way, flow in ((1, clip.passes.flow), (-1, clip.passes.flow_backward)):
        for t in range(3):
            here, there = (t, t + 1) if way > 0 else (t + 1, t)
            seen = ~flow.occluded[t]
            ours = trace(world.at(slice(here, here + 1)), 32, 32, 1).points.reshape(3, 32, 32)
            moved = ours.astype(np.float64)
            for index, thing in enumerate(world.things):
                if thing.moves:
                    moved += way * thing.steps()[:, t, None, None] * (ids[here] == index)
            x, y = columns + flow.motion[t, ..., 0], rows + flow.motion[t, ..., 1]
            camera = world.at(slice(there, there + 1)).camera
            landed, found = look(world.at(slice(there, there + 1)), camera, x[seen], y[seen])
            assert (found == ids[here][seen])[near_is_sharp(ids[there], x[seen], y[seen])].all()
            same = (found == ids[here][seen]) & (found >= 0)
            pixel = 2 * camera.half_width / 32 * np.linalg.norm(moved[:, seen][:, same] - camera.origin(), axis=0)
            gap = np.linalg.norm(np.cross(landed[:, same] - moved[:, seen][:, same],
                                          unit(moved[:, seen][:, same] - camera.origin()), axis=0), axis=0)
            assert same.sum() > 400 and (gap / pixel).max() < 0.1
            # What is called occluded is covered by something nearer, or lies outside the picture.
            hidden = flow.occluded[t]
            inside = hidden & (x > -0.5) & (x < 31.5) & (y > -0.5) & (y < 31.5)
            if inside.any():
                covering, _ = look(world.at(slice(there, there + 1)), camera, x[inside], y[inside])
                distance = np.linalg.norm(covering - camera.origin(), axis=0)
                assert (distance < np.linalg.norm(moved[:, inside] - camera.origin(), axis=0)).all()
    if np.abs(clip.passes.flow.motion).max() > 1:
        assert clip.passes.flow.occluded.any() and clip.passes.flow_backward.occluded.any()


def look(world, camera, x, y):
    """Points [3, n] and things [n] that a one-frame camera sees at pixel coordinates."""
    right, up, forward = camera.axes()
    u, v = ((x + 0.5) / 32 * 2 - 1) * camera.half_width, (1 - (y + 0.5) / 32 * 2) * camera.half_width
    direction = (forward + u * right + v * up)[:, None].astype(np.float32)
    depth, _, found = nearest(world, camera.origin().astype(np.float32)[:, :, None], direction)
    depth = np.where(found < 0, 1e4, depth)
    return (camera.origin() + depth * direction[:, 0]).reshape(3, -1), found[0]


def sees_the_light(world, points):
    """Whether the light's center is seen from points [3, T, n]: past every caster, and through the window."""
    ray = world.light.to_center(points)
    seen = np.ones((world.frames, points.shape[2]), bool)
    for caster in world.casters:
        seen &= ~caster.blocks(points, ray, world.light.reach)
    return seen if world.window is None else seen & (world.window.lets_through(points, ray, 0.0) > 0.5)


def near_is_sharp(ids, x, y):
    """Whether the pixel around (x, y) shows one thing alone, so that float32 cannot change which it is."""
    column, row = np.clip(np.round(x).astype(int), 1, 30), np.clip(np.round(y).astype(int), 1, 30)
    around = np.stack([ids[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return (around == around[0]).all(0)


def unit(v):
    return v / np.linalg.norm(v, axis=0)


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_lost_by_looking_for_things_only_where_the_camera_can_see_them(kind: str) -> None:
    for scene in range(3):
        world = build_world(spec_of(kind, scene), SMALL)
        direction = np.broadcast_to(world.camera.rays(32, 32, 2), (3, 4, 4096))
        origin = world.camera.origin().astype(np.float32)[:, :, None]
        for wanted, found in zip(nearest(world, origin, direction), nearest(world, origin, direction, (64, 64)),
                                 strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_lost_by_tracing_once_what_stands_still(kind: str) -> None:
    world = build_world(spec_of(kind, scene=2), SMALL)
    tracer = Tracer(world, 32, 32, 2)
    for frames in (slice(0, 3), slice(3, 4)):
        view, traced = world.at(frames), tracer.at(frames)
        direction = view.camera.rays(32, 32, 2)
        depth, normal, object_id = nearest(view, view.camera.origin().astype(np.float32)[:, :, None], direction)
        met = np.broadcast_to(object_id >= 0, (*normal.shape[1:],))
        np.testing.assert_array_equal(np.broadcast_to(traced.object_id, met.shape), object_id)
        np.testing.assert_array_equal(np.broadcast_to(traced.depth, met.shape)[met], depth[met])
        np.testing.assert_array_equal(np.broadcast_to(traced.normal, normal.shape)[:, met], normal[:, met])


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_lost_by_looking_for_shadows_only_where_they_can_fall(kind: str, monkeypatch) -> None:
    for scene in range(3):
        world = build_world(spec_of(kind, scene), SMALL)
        traced = trace(world, 32, 32, 2)
        found = Shadows(world, traced.points, SMALL)
        with monkeypatch.context() as patch:
            patch.setattr(shadows, "shadow_windows", lambda world, grid: [whole(grid)] * len(world.casters))
            wanted = Shadows(world, traced.points, SMALL)
        for soft in (True, False):
            np.testing.assert_array_equal(
                found.visibility(traced.normal, soft), wanted.visibility(traced.normal, soft))


def test_passes_are_the_same_along_with_the_video_and_after_it(clip) -> None:
    both = render_clip(clip.spec, SMALL, passes=True)
    assert both.passes is both.rendered and clip.rendered is None
    np.testing.assert_array_equal(both.video, clip.video)
    np.testing.assert_array_equal(both.flow, clip.flow)
    for field in dataclasses.fields(Passes):
        one, other = getattr(both.passes, field.name), getattr(clip.passes, field.name)
        if isinstance(one, Flow):
            one, other = (np.concatenate([flow.motion, flow.occluded[..., None]], -1) for flow in (one, other))
        np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_flow_of_the_passes_is_that_of_the_data_set(clip) -> None:
    np.testing.assert_array_equal(clip.passes.flow.motion, clip.flow)
    np.testing.assert_array_equal(surface_flow(build_world(clip.spec, SMALL), SMALL), clip.flow)


@pytest.mark.parametrize("kind", [kind for kind in ALL if not kind.startswith(("constant", "water"))])
def test_shadow_flow_carries_the_shadow_onto_the_next_frames_shadow(kind: str) -> None:
    spec = spec_of(kind, scene=4)
    clip, world = render_clip(spec, SMALL), build_world(spec, SMALL)
    passes = clip.passes
    rows, columns = np.mgrid[:32, :32]
    lit, count = [], 0
    for t in range(3):
        known, later = passes.shadow_flow_known[t], world.at(slice(t + 1, t + 2))
        x, y = (columns + passes.shadow_flow[t, ..., 0])[known], (rows + passes.shadow_flow[t, ..., 1])[known]
        place, found = look(later, later.camera, x, y)
        assert (found == passes.object_id[t][known])[near_is_sharp(passes.object_id[t + 1], x, y)].all()
        normal = passes.normal[t][known].T[:, None]
        lit.append(sees_the_light(later, place[:, None].astype(np.float32) + LIFT * normal)[0])
        count += known.sum()
        slide = (passes.shadow_flow[t] - passes.flow.motion[t])[known]
        assert np.abs(slide).max() > 0.3, "no shadow slides over its surface"
        if spec.family == "sunrise_room":
            assert (slide[:, 0] * spec.sweep > 0).all()
    expected = 1.0 if spec.family == "sunrise_room" else 0.0
    assert count > 20 and np.mean(np.concatenate(lit) == expected) > 0.98


def test_a_still_light_has_no_shadow_flow_over_its_surface() -> None:
    passes = render_clip(spec_of("constant/truck"), SMALL).passes
    known = passes.shadow_flow_known
    assert known.any()
    gap = np.abs(passes.shadow_flow - passes.flow.motion)[known]
    assert gap.max() < 0.05
    assert not render_clip(spec_of("constant"), SMALL).passes.shadow_flow_known.any()


def test_luminance_along_motion_does_not_change_under_a_constant_light() -> None:
    """A point of a surface keeps its light: what the flow says is looked up in a next frame of 15 times the pixels."""
    size, fine = ClipSize(2, 32, 32, supersample=1), ClipSize(2, 480, 480, supersample=1)
    for kind in ("constant", "constant/truck"):
        spec = spec_of(kind, scene=5)
        clip, next_frame = render_clip(spec, size), render_clip(spec, fine).linear[1]
        flow = clip.passes.flow
        rows, columns = np.mgrid[:32, :32]
        seen = ~flow.occluded[0]
        x, y = columns[seen] + flow.motion[0][seen][:, 0], rows[seen] + flow.motion[0][seen][:, 1]
        there = bilinear(next_frame, (x + 0.5) * 15 - 0.5, (y + 0.5) * 15 - 0.5)
        stops = np.abs(np.log2((there @ LUMINANCE) / (clip.linear[0][seen] @ LUMINANCE)))
        # Edges of things and shadows may fall to the other side of a small pixel.
        assert np.median(stops) < 1e-3 and np.quantile(stops, 0.95) < 0.01


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.clip(0, image.shape[1] - 1.001), y.clip(0, image.shape[0] - 1.001)
    left, top = x.astype(int), y.astype(int)
    a, b = (x - left)[:, None], (y - top)[:, None]
    return ((1 - b) * ((1 - a) * image[top, left] + a * image[top, left + 1])
            + b * ((1 - a) * image[top + 1, left] + a * image[top + 1, left + 1]))
