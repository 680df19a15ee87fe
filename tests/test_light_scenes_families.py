"""The wide set: every family's light obeys its closed form, its captions and its splits."""

import collections

import numpy as np
import pytest

from data_pipelines import light_scenes
from data_pipelines.encode import DataError, open_source
from data_pipelines.light_scenes import ALL, ClipSize, ClipSpec, LightScenesConfig, build_world, plan, render_clip
from data_pipelines.light_scenes.captions import LANGUAGES, LONGEST, all_captions, captions
from data_pipelines.light_scenes.families import FAMILIES, parse_families, signs_of
from data_pipelines.light_scenes.geometry import Sphere
from data_pipelines.light_scenes.parameters import in_held_out_band
from data_pipelines.light_scenes.render import render_layers
from data_pipelines.light_scenes.splits import group_size
from data_pipelines.light_scenes.water import Ripples, Surface, reflect
from wanjax.data import DataConfig

SMALL = ClipSize(frames=3, height=24, width=24)


def spec_of(kind: str, scene: int = 1, sign: int = 1, split: str = "train") -> ClipSpec:
    family, _, variant = kind.partition("/")
    return ClipSpec(family, scene, split=split, variant=variant, **dict.fromkeys(signs_of(family), sign))


def column(*xyz: float) -> np.ndarray:
    return np.array(xyz, np.float32).reshape(3, 1, 1)


@pytest.mark.parametrize("scene", range(4))
def test_walkers_shadow_is_as_long_as_the_lamp_is_high(scene: int) -> None:
    """The crown's shadow lies h·d / (H - h) beyond the feet, away from the lamp."""
    world = build_world(spec_of("street_lamp", scene))
    head = next(thing.shape for thing in world.things if isinstance(thing.shape, Sphere) and thing.moves)
    for t in (0, 8, 16):
        lamp, foot = world.light.position[t], world.foot[:, t]
        height = head.center[2, t] + head.radius
        away = (foot - lamp) * [1, 1, 0]
        distance = np.hypot(*away[:2])
        # The ray from the lamp through the point above the feet at the walker's height meets the ground there.
        length = height * distance / (lamp[2] - height)
        tip = foot + away / distance * length
        crown = foot + [0, 0, height]
        np.testing.assert_allclose(np.cross(crown - lamp, tip - lamp), 0, atol=1e-9)
        # The head's shadow is where the lamp sees the head: along that direction, up to the cone around it.
        axis = np.linalg.norm(head.center[:, t] - lamp)
        cone = np.arcsin(head.radius / axis)
        level = np.arctan2(distance, lamp[2] - head.center[2, t])
        edge = lamp[2] * np.tan(level + cone) - distance
        one = world.at(slice(t, t + 1))
        for reach, shaded in ((edge - 4e-3, True), (edge + 4e-3, False)):
            place = column(*(foot + away / distance * reach))
            blocked = [shape.blocks(place, one.light.to_center(place), one.light.reach) for shape in one.casters]
            assert bool(np.any(blocked)) is shaded
        # A crown without width: the two ends differ by the head's radius as the lamp sees it.
        assert abs(edge - length) < 1.7 * head.radius * np.hypot(1, np.tan(level + cone))


def test_walkers_shadow_is_attached_to_his_feet_and_outruns_him() -> None:
    for sign in (1, -1):
        clip = render_clip(spec_of("street_lamp", 3, sign))
        foot = clip.truth["foot"]
        assert (np.diff(foot[:, 0]) * sign > 0.3).all()
        assert clip.sweep_rate * sign > abs(foot[-1, 0] - foot[0, 0]) / 64 / 2 * 0.8
        # Right at the feet the lamp is hidden: some pixel beside them lies in the shadow's core.
        for t in (0, 8, 16):
            x, y = np.round(foot[t]).astype(int)
            assert clip.visibility[t, y - 1 : y + 3, max(x - 2, 0) : x + 3].min() < 0.35


def test_lamplight_falls_with_the_square_of_the_distance() -> None:
    world = build_world(spec_of("street_lamp", 2), SMALL)
    layers = render_layers(world, SMALL)
    ground = layers.traced.object_id[0] == 0
    to_lamp = world.light.position[0][:, None] - layers.traced.points[:, 0][:, ground]
    square = (to_lamp**2).sum(0)
    expected = world.light.direct[0][:, None] * to_lamp[2] / square**1.5
    np.testing.assert_allclose(layers.direct[:, 0][:, ground], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sundial", "sundial/moving"])
def test_sundials_shadow_points_from_the_foot_to_where_the_sun_throws_the_tip(kind: str) -> None:
    spec, size = spec_of(kind, 2), ClipSize(3, 96, 96, supersample=1)
    clip, world = render_clip(spec, size), build_world(spec, size)
    post = world.things[1].shape
    for t in range(3):
        x, y, z = clip.light_direction[t]
        tip = post.center[:, 0] - np.array([x, y, 0]) / z * post.height
        pixel = world.at(slice(t, t + 1)).camera.project(tip.reshape(3, 1, 1), 96, 96)[:, 0, 0]
        inward = (clip.truth["foot"][t] - pixel) / np.linalg.norm(clip.truth["foot"][t] - pixel)
        radius = post.radius / (2 * world.camera.half_width * 5) * 96  # pixels, roughly
        hard = clip.passes.hard_visibility[t]
        inside, outside = pixel + 2 * inward, pixel - (2 * radius + 2) * inward
        assert hard[tuple(np.round(inside[::-1]).astype(int))] == 0
        column_out, row_out = np.round(outside).astype(int)
        assert not (0 <= column_out < 96 and 0 <= row_out < 96) or hard[row_out, column_out] == 1


@pytest.mark.parametrize("scene", range(5))
def test_stripes_lie_where_the_rays_carry_the_gaps_between_slats(scene: int) -> None:
    world = build_world(spec_of("sunrise_room/blinds", scene), SMALL)
    window, wall = world.window, world.things[0].shape.offset
    slats, upright = (window.bars, True) if window.bars else (window.slats, False)
    low, high = window.x if upright else window.z
    assert len(slats) >= 4
    edges = [low, *(c + s * w / 2 for c, w in slats for s in (-1, 1)), high]
    gaps = np.diff(edges)[::2]
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    for t, (x, y, z) in enumerate(world.light.toward_sun):
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            middle = (start + end) / 2
            place = (middle, sum(window.z) / 2) if upright else (sum(window.x) / 2, middle)
            if not upright and window.bars:
                continue
            point = column(place[0] - wall * x / -y, wall, place[1] - wall * z / -y)
            lit = window.lets_through(point, column(x, y, z), world.light.sun_radius)[0, 0]
            is_gap = edges.index(start) % 2 == 0
            assert lit == pytest.approx(float(is_gap), abs=0.02), (t, start)


def test_glints_lie_where_the_half_vector_meets_the_wave_normal() -> None:
    size = ClipSize(3, 64, 64, supersample=1)
    for scene in range(3):
        world = build_world(spec_of("water_glitter", scene), size)
        layers = render_layers(world, size)
        view = layers.traced.direction / np.linalg.norm(layers.traced.direction, axis=0)
        half = world.light.toward_sun.T[:, :, None] - view
        half /= np.linalg.norm(half, axis=0)
        surface, normal = layers.traced.surface, layers.traced.normal
        # In slopes, against the spread of those that a sample does not resolve.
        upright = np.maximum(normal[2], 1e-6)  # a stake's sides stand among the water's samples, without glints
        gap = np.stack([half[i] / half[2] - normal[i] / upright for i in (0, 1)])[:, :, surface.samples]
        xx, yy, xy = surface.covariance
        widest = (xx + yy) / 2 + np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
        deviations = np.sqrt((gap**2).sum(0) / widest)
        glints = layers.glints.sum(0)[:, surface.samples]
        lit = layers.visibility[:, surface.samples] > 0.9
        near = np.broadcast_to(layers.traced.depth[:, surface.samples] < 12, lit.shape)
        assert deviations[glints > 0.02 * glints.max()].max() < 3.5
        assert glints[lit & (deviations > 4.5)].max() < 1e-3 * glints.max()
        away = np.degrees(np.arccos(np.clip((half * normal).sum(0), -1, 1)))[:, surface.samples]
        assert np.median(away[near & (glints > 0.25 * glints.max())]) < 3


def test_wave_normals_are_those_of_the_waves_heights() -> None:
    ripples = build_world(spec_of("water_glitter", 1), SMALL).things[0].ripples
    x, y = np.array([0.3, -1.2, 2.0]), np.array([5.0, 6.1, 7.7])
    points = np.stack([x, y, 0 * x])[:, None].astype(np.float32)
    direction = np.stack([x, y, 0 * x - 2.0])[:, None].astype(np.float32)
    exact = Ripples(ripples.vectors, ripples.slopes, ripples.phases, ripples.roughness, ripples.seconds, shutter=0.0)
    surface = Surface.seen(exact, slice(0, 3), points, direction, np.ones((1, 3), np.float32), pixel=0.0)
    along_x, along_y = surface.slopes(exact)
    for t, second in enumerate(ripples.seconds):
        step = 1e-5
        dx = (exact.heights(x + step, y, second) - exact.heights(x - step, y, second)) / (2 * step)
        dy = (exact.heights(x, y + step, second) - exact.heights(x, y - step, second)) / (2 * step)
        np.testing.assert_allclose(along_x[t], dx, atol=2e-5)
        np.testing.assert_allclose(along_y[t], dy, atol=2e-5)
    # What a sample filters out of the mean goes into the spread: their sum stays.
    kept, spread = exact.filtered(np.array([[0.02], [0.05], [0.01]], np.float32))
    total = 0.5 * np.square(kept[:, 0]) @ np.ones(len(kept)) + spread[0, 0] + spread[1, 0]
    assert total == pytest.approx(0.5 * np.square(exact.slopes).sum() + 2 * exact.roughness, rel=1e-5)


def test_glints_run_with_the_waves_and_do_not_strobe() -> None:
    """The strip of water right below the glitter moves the way that the caption says, less than half a wave a frame."""
    for scene, sign in ((0, 1), (1, -1), (2, 1)):
        spec = spec_of("water_glitter", scene, sign)
        clip, ripples = render_clip(spec), build_world(spec).things[0].ripples
        assert (ripples.vectors[:, 0] * sign > 0).all()
        assert (ripples.frequencies / (2 * np.pi) < 8.0 / 2).all(), "a wave is sampled at least twice a period"
        stops = np.log2(clip.linear.mean(-1)[:, 28:44] + 1e-3)
        stops -= stops.mean((1, 2), keepdims=True) + (stops - stops.mean((1, 2), keepdims=True)).mean(0)
        votes = 0.0
        for before, after in zip(stops[:-1], stops[1:], strict=True):
            right = (before[:, :-1] * after[:, 1:]).sum()
            left = (before[:, 1:] * after[:, :-1]).sum()
            votes += np.sign(right - left)
        assert votes * sign > 8


def test_glints_are_the_suns_part_of_what_water_mirrors() -> None:
    clip = render_clip(spec_of("water_glitter", 3), SMALL)
    assert clip.truth["glint"].shape == (3,) and (clip.truth["glint"] > 0).all()
    world = build_world(spec_of("water_glitter", 3), SMALL)
    layers = render_layers(world, SMALL)
    surface = layers.traced.surface
    toward = world.light.toward_sun.T.astype(np.float32)[:, :, None]
    image, glints, _ = reflect(surface, world.things[0].ripples, world.sky, toward, 0 * toward)
    here = layers.traced.object_id[:, surface.samples] == 0
    assert not glints.any()
    np.testing.assert_allclose((layers.specular - layers.glints)[:, :, surface.samples][:, 0][:, here[0]],
                               image[:, 0][:, here[0]], atol=1e-6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_slopes_and_sweeps_have_their_captions_signs(split: str) -> None:
    for spec in plan(split, 2 * 24, families=ALL):
        if spec.kind in FAMILIES:
            continue
        clip = render_clip(spec, ClipSize(9, 64, 64, fps=4.0, supersample=1))
        if spec.exposure_change:
            assert 0.5 < clip.exposure_slope * spec.exposure_change < 1.3
            assert clip.cct_slope * spec.exposure_change > 20
        else:
            assert abs(clip.exposure_slope) < 0.1
        assert clip.sweep_rate * spec.sweep > 0.04 if spec.sweep else clip.sweep_rate == 0
        if spec.pan:
            assert (clip.flow[..., 0] * -spec.pan).min() > 0


def test_held_out_ranges_of_every_family() -> None:
    for kind in ALL:
        for split in light_scenes.SPLITS:
            for scene in range(12):
                world = build_world(spec_of(kind, scene, split=split), SMALL)
                assert len(world.parameters) >= 8
                for name, (value, low, high) in world.parameters.items():
                    assert in_held_out_band(value, low, high) == (split == "test"), (kind, name)


def test_variants_do_not_share_their_scenes_randomness_with_the_plain_ones() -> None:
    for kind in ALL:
        first = render_clip(spec_of(kind), SMALL).video
        assert np.array_equal(first, render_clip(spec_of(kind), SMALL).video)
        family = kind.partition("/")[0]
        if kind != family:
            assert not np.array_equal(first, render_clip(spec_of(family), SMALL).video)


def test_wide_set_balances_and_its_pairs_share_all_but_their_signs() -> None:
    specs = plan("test", 96, families=ALL)
    cells = collections.Counter((s.kind, s.exposure_change, s.sweep, s.pan, s.glints) for s in specs)
    assert len(cells) == group_size(ALL) == 24 and set(cells.values()) == {4}
    by_scene = collections.defaultdict(list)
    for spec in specs:
        by_scene[spec.scene_id].append(build_world(spec, SMALL).parameters)
    assert all(all(other == first for other in rest) for first, *rest in by_scene.values())
    assert all(len(group) == 2 ** len(signs_of(name.split("/")[0])) for name, group in by_scene.items())


def test_every_caption_tells_its_signs_apart_and_none_is_shared_with_training() -> None:
    seen: dict[str, tuple] = {}
    texts = collections.defaultdict(set)
    for split in ("train", "test"):
        for spec in plan(split, 24, families=ALL):
            signs = (spec.kind, spec.exposure_change, spec.sweep, spec.pan, spec.glints)
            for language in LANGUAGES:
                for text in all_captions(spec, language):
                    assert len(text.encode()) <= LONGEST, text
                    assert seen.setdefault(text, signs) == signs, text
                    texts[split].add(text)
                assert captions(spec)[language] in all_captions(spec, language)
    assert not texts["train"] & texts["test"]
    assert len(texts["train"]) == 3 * len(texts["test"])


def test_heldout_prompts_of_the_wide_set_state_what_is_expected() -> None:
    prompts = light_scenes.heldout_prompts(n=48, families=ALL)
    cells = collections.Counter((p["family"], p["variant"], p["language"]) for p in prompts)
    assert cells["street_lamp", "", "en"] == cells["street_lamp", "", "zh"] == 2
    for prompt in prompts:
        assert (prompt["glints"] != 0) == (prompt["family"] == "water_glitter")
        assert (prompt["sweep"] != 0) == (prompt["family"] in ("street_lamp", "sundial", "sunrise_room"))
    with pytest.raises(ValueError, match="multiple of 48"):
        light_scenes.heldout_prompts(n=32, families=ALL)


def test_families_are_named_in_the_config_and_unknown_ones_refused(tmp_path) -> None:
    assert parse_families("all") == ALL and parse_families("sundial, street_lamp") == ("sundial", "street_lamp")
    for wrong in ("moon", "sundial,sundial", ""):
        with pytest.raises(ValueError, match="different names of: sunrise_room, sunrise_room/blinds"):
            parse_families(wrong)
    with pytest.raises(ValueError, match="multiple of 6.*use 96"):
        LightScenesConfig(families=("street_lamp", "water_glitter"), test=100)
    assert LightScenesConfig.balanced(families=ALL, test=100).test == 96
    with pytest.raises(DataError, match="light_scenes:moon.*different names"):
        open_source(DataConfig(source="light_scenes:moon", data_dir=str(tmp_path)))


@pytest.mark.parametrize("source,families", [
    ("light_scenes", FAMILIES), ("light_scenes:all", ALL), ("light_scenes:street_lamp,water_glitter",
                                                            ("street_lamp", "water_glitter"))])
def test_a_configs_source_names_the_families(source: str, families: tuple[str, ...], monkeypatch) -> None:
    asked = []

    def prepare(data_dir, *, config):
        asked.append(config)
        raise FileNotFoundError("stop here")

    monkeypatch.setattr(light_scenes, "prepare", prepare)
    with pytest.raises(FileNotFoundError, match="stop here"):
        open_source(DataConfig(source=source, frames=9, height=32))
    assert asked[0].families == families and (asked[0].frames, asked[0].height, asked[0].width) == (9, 32, 64)
    assert asked[0].train == 1200 and asked[0].test == 96


def test_wide_data_set_with_every_pass_comes_back(tmp_path, capsys) -> None:
    config = LightScenesConfig(frames=3, height=16, width=16, train=6, validation=6, test=6,
                               families=("street_lamp", "water_glitter"), passes="all")
    light_scenes.prepare(tmp_path, config=config)
    assert "street_lamp-water_glitter" in capsys.readouterr().out
    source = light_scenes.open_split(tmp_path, "test", config=config)
    for index, spec in enumerate(plan("test", 6, families=config.families)):
        clip, example = render_clip(spec, config.size()), source[index]
        np.testing.assert_array_equal(example["video"], clip.video)
        assert example["glints"] == spec.glints and example["scene_id"].decode() == spec.scene_id
        parts = sum(example[name].astype(np.float32) for name in ("shadowed", "ambient", "specular"))
        np.testing.assert_allclose(parts, clip.linear, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(example["object_id"], clip.passes.object_id)
        np.testing.assert_array_equal(example["occluded"], clip.passes.flow.occluded)
        if spec.family == "street_lamp":
            np.testing.assert_allclose(example["foot"], clip.passes.foot)
            np.testing.assert_allclose(example["light_position"], clip.passes.light_position)
        else:
            np.testing.assert_allclose(example["glint"], clip.passes.glint)
    opened = light_scenes.LightScenesConfig.balanced(frames=3, height=16, width=16, families=config.families)
    assert opened.name.endswith("_street_lamp-water_glitter") and opened.name != config.name
