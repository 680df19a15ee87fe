"""The renderer keeps its promises: same seed same bytes, exact image formation, exact shadows, exact flow."""

import base64
import collections
import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import light_scenes
from data_pipelines.light_scenes import ClipSize, ClipSpec, LightScenesConfig, plan, render_clip
from data_pipelines.light_scenes.captions import LANGUAGES, LONGEST, all_captions, captions
from data_pipelines.light_scenes.clip import build_world
from data_pipelines.light_scenes.colour import LUMINANCE, black_body, correlated_colour_temperature
from data_pipelines.light_scenes.geometry import Box, Cylinder, Window
from data_pipelines.light_scenes.parameters import in_held_out_band
from data_pipelines.light_scenes.render import render_layers, render_pieces
from data_pipelines.light_scenes.sweep import sweep_of

SMALL = ClipSize(frames=5, height=32, width=32)
ONE_OF_EACH = (
    ClipSpec("sunrise_room", 3, exposure_change=1, sweep=-1),
    ClipSpec("sundial", 3, sweep=1),
    ClipSpec("constant", 3, pan=-1),
)
FAMILY_IDS = [spec.family for spec in ONE_OF_EACH]
# Pixels of clips of the default data set (split, index, mean, video[::8, 4::15, 4::15] in base 85): a shipped codec and
# the results quoted for it rest on them.
RECORDED = (
    ("train", 0, 84.9649,
     "GCxH;OHw~iRyRdVI!I4^m!v&RR5CwBHbY8wkextJS2;&cKR7r$G&C<MDLFDTMovgnT~=6OSxr_?PFGM`WL%A$kVZ~OOH@r(Ussu_"
     "oKIL$S4KKgK{rA)D^EW)U|>mdaaVVCTWV=gYidz@dR}yMSaEPxXJ$@ybXj<JTzq?8cU3!ZP&ivaENxCU"),
    ("train", 458, 173.2673,
     "&9S1*v7*hfqR6M8&9S1*vZBhYq06nI%B-MnURKJhpwYOb(z&F|t)a`Uq0O<P&9S1*v7*hfqR6M8&9S1*vZBhYq06nI%B-Nxv7)4l"
     "g3-97(z&F|t)Yx}Zq2cx&9S1*v7*hfqR6M8&9S1*vZBhYq06nI%B-Nxv7*YWpmAeY(z&F|t)a`Uq0O<P"),
    ("train", 3, 168.4337,
     "(x<SrjhfA(tf+#Lyp*7!e2v+ywZNF8%b}~FdyT`IrNx`3+P1I4o}SF9rLvEdxR9OMt+beQhs&X>q<@gzvAD8~na7@}vy7U_pQ)gU"
     "eb=kAwv(3GwyvXqiq)~J*sQdmdyUPbthSGw)2Ohzlb_V7v7md6yp*7xm1W<vxw(>_&8nufkd?@!qP3Ei"),
    ("test", 11, 165.5244,
     "wwAb_hNHlp!K8|(xtP0safh~+xVM+Nx0kq@gP*C5tfq^p#iYoij;q6?#+ib(nS-9mqsf|spreVWdT)iko4%}%ud|f3nS-9Vm${LC"
     "n6Z<ytCO<Qt<<25sF;VM%caVdfSat3ud|f3zMQ|Hhor!r!Ksa`x|zFwa*4c}y~Uu#nS!;Bfts|LxwM(O"),
    ("test", 14, 183.9063,
     "(67P8tGd;(#L}?Bzp1y@vc=7=ztge9+qB5at-WknW5TMq#HzW-ti0B;#LKO{(67P8tGd;(#L}?Bzp1y@vc=7=ztge9+qB5at-aH*"
     "!osS!#HzW-ti0B;#LKO{(67P8tGd;(#L}?Bzp1y@vc=7=ztge9+qB4ubb!;a!osS!#HzW-ti0B;#LKO{"),
)


def point(*xyz: float) -> np.ndarray:
    return np.array(xyz, np.float32).reshape(3, 1, 1)


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=FAMILY_IDS)
def test_same_seed_gives_same_bytes_and_another_seed_does_not(spec: ClipSpec) -> None:
    first, second = render_clip(spec, SMALL), render_clip(spec, SMALL)
    for name in ("video", "linear", "log_luminance", "visibility", "flow"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    other = render_clip(dataclasses.replace(spec, seed=1), SMALL)
    assert other.video.tobytes() != first.video.tobytes()


@pytest.mark.parametrize("split,index,mean,pixels", RECORDED)
def test_default_data_set_stays_what_it_was(split: str, index: int, mean: float, pixels: str) -> None:
    video = render_clip(plan(split, {"train": 1200, "test": 96}[split])[index]).video
    recorded = np.frombuffer(base64.b85decode(pixels), np.uint8).reshape(3, 4, 4, 3)
    # One level: numpy's float32 sine and power differ in their last bit between processors.
    assert np.abs(video[::8, 4::15, 4::15].astype(int) - recorded).max() <= 1
    assert abs(video.mean() - mean) < 2e-3
    assert light_scenes.LightScenesConfig().name == "64x64x17_8fps_1200_48_96_seed0_ss2"


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=FAMILY_IDS)
def test_image_is_albedo_times_light_plus_specular(spec: ClipSpec) -> None:
    layers = render_layers(build_world(spec, SMALL), SMALL)
    formed = layers.albedo * (layers.direct * layers.visibility + layers.ambient) + layers.specular
    np.testing.assert_allclose(formed, layers.linear, rtol=0, atol=1e-6)
    norms = np.sqrt((layers.traced.normal**2).sum(0))
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    assert 0 <= layers.visibility.min() and layers.visibility.max() <= 1


def test_frames_do_not_depend_on_how_many_are_rendered_at_a_time() -> None:
    for spec in ONE_OF_EACH:
        world = build_world(spec, SMALL)
        whole = render_layers(world, SMALL).linear
        for frames, layers in render_pieces(world, SMALL):
            assert np.array_equal(layers.linear, whole[:, frames])


def test_picture_is_the_same_at_another_resolution_up_to_sampling() -> None:
    for spec in ONE_OF_EACH:
        coarse = render_clip(spec, ClipSize(3, 32, 32)).linear
        fine = render_clip(spec, ClipSize(3, 64, 64)).linear
        pooled = fine.reshape(3, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(pooled - coarse).mean() < 0.01


def test_shadow_of_a_post_ends_where_geometry_says() -> None:
    height, radius, elevation = 0.9, 0.1, np.radians(37.0)
    post = Cylinder(np.zeros((3, 1)), radius, height)
    toward = point(np.cos(elevation), 0, np.sin(elevation))
    # The top's far rim throws the tip: height / tan(elevation) + radius from the axis.
    tip = height / np.tan(elevation) + radius
    for distance, shaded in ((tip - 1e-3, True), (tip + 1e-3, False)):
        assert bool(post.blocks(point(-distance, 0, 0), toward)[0, 0]) is shaded
    for offset, shaded in ((radius - 1e-3, True), (radius + 1e-3, False)):
        assert bool(post.blocks(point(-0.5, offset, 0), toward)[0, 0]) is shaded
    assert not post.blocks(point(0.5, 0, 0), toward)[0, 0]


def test_shadow_of_a_box_ends_where_geometry_says() -> None:
    half, height, elevation = 0.2, 0.5, np.radians(40.0)
    box = Box(np.array([[0.0], [0.0], [height / 2]]), (half, half, height / 2))
    toward = point(0, np.cos(elevation), np.sin(elevation))
    tip = half + height / np.tan(elevation)
    for distance, shaded in ((tip - 1e-3, True), (tip + 1e-3, False)):
        assert bool(box.blocks(point(0, -distance, 0), toward)[0, 0]) is shaded


def test_sundial_shadow_lies_opposite_the_sun_with_the_length_of_its_elevation() -> None:
    size = ClipSize(3, 64, 64)
    world = build_world(ONE_OF_EACH[1], size)
    post = world.things[1].shape
    for x, y, z in world.light.toward_sun:
        toward, level = point(x, y, z), np.hypot(x, y)
        tip = post.height * level / z + post.radius
        for distance, shaded in ((tip - 2e-3, True), (tip + 2e-3, False)):
            place = post.center[:, 0] - np.array([x, y, 0]) / level * distance
            assert bool(post.blocks(point(*place), toward)[0, 0]) is shaded


def test_patch_is_the_window_carried_along_the_rays() -> None:
    size = ClipSize(5, 64, 64)
    world = build_world(ONE_OF_EACH[0], size)
    window = dataclasses.replace(world.window, bars=())
    depth = world.things[0].shape.offset
    for x, y, z in world.light.toward_sun:
        toward = point(x, y, z)
        left, right = (edge - depth * x / -y for edge in window.x)
        height = sum(window.z) / 2 - depth * z / -y
        for position, share in ((left, 0.5), (right, 0.5), ((left + right) / 2, 1.0), (right + 0.5, 0.0)):
            seen = window.lets_through(point(position, depth, height), toward, 0.02)
            assert abs(float(seen[0, 0]) - share) < 1e-3


def test_bars_of_a_window_throw_a_shadow() -> None:
    window = Window(0.0, (-1.0, 1.0), (0.0, 2.0), bars=((0.0, 0.2),))
    toward = point(0, -1, 0)
    assert window.lets_through(point(0, 3, 1), toward, 0.0)[0, 0] == 0
    assert window.lets_through(point(0.5, 3, 1), toward, 0.0)[0, 0] == 1


def test_flow_of_the_constant_family_carries_surfaces_onto_themselves() -> None:
    size = ClipSize(5, 64, 64, supersample=1)
    spec = ONE_OF_EACH[2]
    world = build_world(spec, size)
    traced = render_layers(world, size).traced
    flow = render_clip(spec, size).flow
    rows, columns = np.mgrid[:64, :64]
    pixel_on_wall = world.camera.half_width * 2 / 64 * world.things[0].shape.offset  # meters
    for t in range(size.frames - 1):
        x = np.round(columns + flow[t, ..., 0]).astype(int)
        y = np.round(rows + flow[t, ..., 1]).astype(int)
        inside = (x >= 0) & (x < 64) & (y >= 0) & (y < 64)
        here = (rows[inside], columns[inside])
        there = (y[inside], x[inside])
        ids = traced.object_id.reshape(-1, 64, 64)
        same = ids[t][here] == ids[t + 1][there]
        points = traced.points.reshape(3, -1, 64, 64)
        moved = points[:, t][:, here[0], here[1]].astype(np.float64)
        for index, thing in enumerate(world.things):
            moved += thing.steps()[:, min(t, thing.steps().shape[1] - 1), None] * (ids[t][here] == index)
        # The surface point itself, seen by the next camera, lands where the flow says.
        landed = world.at(slice(t + 1, t + 2)).camera.project(moved[:, None], 64, 64)[:, 0]
        assert np.abs(landed[0] - (here[1] + flow[t][here][:, 0])).max() < 0.1
        assert np.abs(landed[1] - (here[0] + flow[t][here][:, 1])).max() < 0.1
        # And the next frame shows that surface there, to within the rounding to whole pixels.
        error = np.abs(points[:, t + 1][:, there[0], there[1]] - moved)[:, same].max(0)
        assert np.median(error) < pixel_on_wall


def test_light_that_slides_is_no_surface_flow() -> None:
    for spec in ONE_OF_EACH[:2]:
        assert not render_clip(spec, SMALL).flow.any()


@pytest.mark.parametrize("split", ["train", "test"])
def test_slopes_and_sweeps_have_their_captions_signs(split: str) -> None:
    for spec in plan(split, 32):
        clip = render_clip(spec)
        sweep = sweep_of(clip.linear @ LUMINANCE, clip.flow, 8.0)
        if spec.exposure_change:
            assert 0.55 < clip.exposure_slope * spec.exposure_change < 1.25
            assert (np.diff(clip.log_luminance) * spec.exposure_change > 0).all()
            assert clip.cct_slope * spec.exposure_change > 20  # sunrise: more mired, that is warmer
        else:
            assert abs(clip.exposure_slope) < 0.1
        if spec.sweep:
            assert sweep.rate * spec.sweep > 0.04 and clip.sweep_rate == sweep.rate
        else:
            assert sweep.mass == 0 and clip.sweep_rate == 0
            # The camera always pans, at least a pixel per frame at 64 pixels.
            assert (clip.flow[..., 0] * -spec.pan).min() > 1


def test_a_longer_clip_spreads_the_same_sunrise() -> None:
    short = render_clip(ONE_OF_EACH[0], ClipSize(5, 32, 32, fps=4))
    long = render_clip(ONE_OF_EACH[0], ClipSize(9, 32, 32, fps=4))
    np.testing.assert_array_equal(short.video[[0, 2, 4]], long.video[[0, 4, 8]])
    single = render_clip(ONE_OF_EACH[0], ClipSize(1, 32, 32))
    assert single.flow.shape == (0, 32, 32, 2) and single.exposure_slope == 0


@pytest.mark.parametrize("split,clips", [("train", 1200), ("validation", 48), ("test", 96)])
def test_families_and_directions_balance(split: str, clips: int) -> None:
    specs = plan(split, clips)
    signs = collections.Counter((s.family, s.exposure_change, s.sweep, s.pan) for s in specs)
    assert len(specs) == clips and set(signs.values()) == {clips // 8} and len(signs) == 8


def test_a_split_that_cannot_balance_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8.*use 96"):
        plan("test", 100)
    with pytest.raises(ValueError, match="sundial: exposure_change = 1: expected 0"):
        ClipSpec("sundial", 0, exposure_change=1, sweep=1)


def test_test_scenes_use_parameters_that_training_never_saw() -> None:
    for family, signs in (("sunrise_room", (1, 1, 0)), ("sundial", (0, 1, 0)), ("constant", (0, 0, 1))):
        for split in light_scenes.SPLITS:
            for scene in range(25):
                world = build_world(ClipSpec(family, scene, *signs, split=split), SMALL)
                assert len(world.parameters) >= 8
                for name, (value, low, high) in world.parameters.items():
                    assert low <= value <= high
                    assert in_held_out_band(value, low, high) == (split == "test"), name


def test_captions_are_short_and_tell_every_sign_apart() -> None:
    seen: dict[str, tuple[int, ...]] = {}
    for spec in plan("train", 8):
        for language in LANGUAGES:
            texts = all_captions(spec, language)
            assert len(texts) == 12
            for text in texts:
                assert len(text.encode()) <= LONGEST, text
                signs = (spec.exposure_change, spec.sweep, spec.pan)
                assert seen.setdefault(text, signs) == signs
            assert captions(spec)[language] in texts


def test_held_out_captions_are_sentences_that_training_never_saw() -> None:
    seen = {text for split in ("train", "validation") for spec in plan(split, 8) for language in LANGUAGES
            for text in all_captions(spec, language)}
    held_out = [prompt["prompt"] for prompt in light_scenes.heldout_prompts(n=32)]
    assert not seen & set(held_out)


def test_heldout_prompts_balance_languages_within_each_cell() -> None:
    prompts = light_scenes.heldout_prompts(n=32)
    fields = ("family", "exposure_change", "sweep", "language")
    cells = collections.Counter(tuple(p[field] for field in fields) for p in prompts)
    assert sum(n for (family, *_), n in cells.items() if family == "sunrise_room") == 16
    assert all(n == (4 if family == "constant" else 2) for (family, *_), n in cells.items())
    assert len({p["seed"] for p in prompts}) == 32 and [p["scene"] for p in prompts] == list(range(32))
    with pytest.raises(ValueError, match="multiple of 16"):
        light_scenes.heldout_prompts(n=20)


def test_colors_of_black_bodies_come_back_as_their_temperature() -> None:
    kelvin = np.array([3500.0, 5000.0, 6500.0, 8500.0])
    rgb = black_body(kelvin)
    np.testing.assert_allclose(rgb @ LUMINANCE, 1, rtol=1e-5)
    np.testing.assert_allclose(correlated_colour_temperature(rgb), kelvin, rtol=0.02)


def test_builder_round_trip(tmp_path, capsys) -> None:
    config = LightScenesConfig(frames=5, height=16, width=24, train=16, validation=8, test=16)
    leftover = tmp_path / "light_scenes" / config.name / "incomplete.ABC123_1.0.0"
    leftover.mkdir(parents=True)
    builder = light_scenes.prepare(tmp_path, config=config)
    assert not leftover.exists()
    source = light_scenes.open_split(tmp_path, "test", config=config)
    specs = plan("test", 16)
    assert len(source) == 16
    for index in (0, 3, 15):
        clip, example = render_clip(specs[index], config.size()), source[index]
        np.testing.assert_array_equal(example["video"], clip.video)
        np.testing.assert_array_equal(example["flow"], clip.flow.astype(np.float16))
        np.testing.assert_allclose(example["visibility"] / 255, clip.visibility, atol=0.003)
        np.testing.assert_allclose(example["log_luminance"], clip.log_luminance)
        assert example["family"].decode() == clip.spec.family
        assert example["scene_id"].decode() == clip.spec.scene_id
        assert example["caption_zh"].decode() == captions(clip.spec)["zh"]
        assert (example["sweep"], example["exposure_change"]) == (clip.spec.sweep, clip.spec.exposure_change)
    # A reader needs no code of ours.
    plain = tfds.builder_from_directory(str(builder.data_path)).as_data_source("train")
    assert len(plain) == 16 and plain[0]["video"].shape == (5, 16, 24, 3)
    capsys.readouterr()
    light_scenes.prepare(tmp_path, config=config)
    assert "is there" in capsys.readouterr().out
    # Its test clips are those of a config with other numbers of training clips; its training clips are not.
    larger = dataclasses.replace(config, train=32, validation=16)
    same = light_scenes.open_split(tmp_path, "test", config=larger)
    np.testing.assert_array_equal(same[3]["video"], render_clip(plan("test", 16)[3], config.size()).video)
    for other, split in ((larger, "train"), (dataclasses.replace(config, seed=1), "test")):
        with pytest.raises(FileNotFoundError, match="with the same sizes"):
            light_scenes.open_split(tmp_path, split, config=other)



def test_a_data_set_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m data_pipelines.light_scenes"):
        light_scenes.open_split(tmp_path, "train")
    with pytest.raises(ValueError, match="LightScenesConfig.test = 4"):
        LightScenesConfig(test=4)
