"""The scenes against a physically based renderer, Mitsuba 3: the same shadows, the same light.

``pip install -e '.[crosscheck]'``, then ``python -m pytest tests/test_light_scenes_mitsuba.py -s`` prints the figures.
Both renderers get a sun or lamp of no size. Left out, since the scenes have their own definition of it: ambient light
(theirs is not occluded and not reflected between things), highlights of paint, the lamp's own post, and of the water
what it mirrors of the sky.
"""

import dataclasses

import numpy as np
import pytest

from data_pipelines.light_scenes import ALL, ClipSize, ClipSpec, build_world
from data_pipelines.light_scenes.colour import LUMINANCE
from data_pipelines.light_scenes.families import signs_of
from data_pipelines.light_scenes.geometry import Box, Cylinder, Plane
from data_pipelines.light_scenes.passes import render_passes
from data_pipelines.light_scenes.render import render_layers
from data_pipelines.light_scenes.world import World

mi = pytest.importorskip("mitsuba", reason="the cross-check needs mitsuba: pip install -e '.[crosscheck]'")

EXTENT = 14.0  # meters to either side of the origin that planes reach
SOLID = [kind for kind in ALL if kind != "water_glitter"]


@pytest.fixture(scope="module", autouse=True)
def scalar_variant():
    mi.set_variant("scalar_rgb")


def single(kind: str, scene: int, size: ClipSize) -> World:
    """A frame of a world with a point of a light, without what only glows."""
    family, _, variant = kind.partition("/")
    spec = ClipSpec(family, scene, variant=variant, **dict.fromkeys(signs_of(family), 1))
    world = build_world(spec, size).at(slice(size.frames // 3, size.frames // 3 + 1))
    things = tuple(
        dataclasses.replace(thing, material=dataclasses.replace(thing.material, specular=0.0))
        for thing in world.things if thing.casts and thing.glow is None
    )
    direct = world.light.direct
    if not direct.any():  # an overcast sky has no sun: any will do to compare the geometry
        direct = np.ones_like(direct)
    light = dataclasses.replace(world.light, direct=direct, sun_radius=0.0)
    return dataclasses.replace(world, things=things, light=light)


def translated(x, y, z, matrix=None):
    found = mi.ScalarTransform4f().translate([float(x), float(y), float(z)])
    return found if matrix is None else found @ matrix


def rectangle(origin, u, v, bsdf):
    """A rectangle from ``origin`` along the edges ``u`` and ``v`` as a triangle mesh, its normal u x v."""
    half = np.eye(4)
    half[:3, 0], half[:3, 1] = np.asarray(u) / 2, np.asarray(v) / 2
    half[:3, 2] = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    half[:3, 3] = np.asarray(origin) + np.asarray(u) / 2 + np.asarray(v) / 2
    return {"type": "rectangle", "to_world": mi.ScalarTransform4f(half), "bsdf": bsdf}


def paint(material):
    return {"type": "twosided", "inner": {"type": "diffuse", "reflectance": {"type": "rgb", "value": [
        float(c) for c in material.low]}}}


def textured(material, axes, offset, resolution=1024):
    """The material of a plane as a bitmap over its rectangle; rows run along the second axis."""
    steps = ((np.arange(resolution) + 0.5) / resolution * 2 - 1) * EXTENT
    points = np.zeros((3, 1, resolution**2), np.float32)
    points[axes[0]] = np.tile(steps, resolution)
    points[axes[1]] = np.repeat(steps, resolution)
    color = np.broadcast_to(material.albedo(points), points.shape)[:, 0].T.reshape(resolution, resolution, 3)
    bitmap = mi.Bitmap(np.ascontiguousarray(color, np.float32))
    return {"type": "twosided", "inner": {"type": "diffuse", "reflectance": {
        "type": "bitmap", "bitmap": bitmap, "raw": True, "wrap_mode": "clamp"}}}


def shapes_of(thing):
    shape, material = thing.shape, thing.material
    if isinstance(shape, Plane):
        axes = {2: (0, 1), 1: (0, 2)}[shape.axis]
        u, v, corner = np.zeros(3), np.zeros(3), np.full(3, -EXTENT)
        u[axes[0]] = v[axes[1]] = 2 * EXTENT
        corner[shape.axis] = shape.offset
        return [rectangle(corner, u, v, textured(material, axes, shape.offset))]
    x, y, z = shape.center[:, 0]
    if isinstance(shape, Box):
        scale = mi.ScalarTransform4f().scale([float(a) for a in shape.half])
        return [{"type": "cube", "to_world": translated(x, y, z, scale), "bsdf": paint(material)}]
    if isinstance(shape, Cylinder):
        top = mi.ScalarTransform4f().scale(float(shape.radius))
        return [
            {"type": "cylinder", "p0": [x, y, z], "p1": [x, y, z + shape.height], "radius": float(shape.radius),
             "bsdf": paint(material)},
            {"type": "disk", "to_world": translated(x, y, z + shape.height, top), "bsdf": paint(material)},
        ]
    return [{"type": "sphere", "center": [x, y, z], "radius": float(shape.radius), "bsdf": paint(material)}]


def wall_around(window):
    """The wall that the window is an opening of: four pieces, its bars and its slats."""
    far, y = 40.0, window.offset
    (left, right), (low, high) = window.x, window.z
    pieces = [(-far, left, -far, far), (right, far, -far, far), (left, right, -far, low), (left, right, high, far)]
    pieces += [(c - w / 2, c + w / 2, low, high) for c, w in window.bars]
    pieces += [(left, right, c - w / 2, c + w / 2) for c, w in window.slats]
    black = {"type": "diffuse", "reflectance": {"type": "rgb", "value": 0.0}}
    return [rectangle((a, y, c), (b - a, 0, 0), (0, 0, d - c), black) for a, b, c, d in pieces]


def scene_of(world, size, shapes=None):
    camera = world.camera
    right, up, forward = (axis[:, 0] for axis in camera.axes())
    origin = camera.origin()[:, 0]
    sensor = {
        "type": "perspective", "fov": float(np.degrees(2 * np.arctan(camera.half_width))), "fov_axis": "x",
        "near_clip": 0.01, "far_clip": 1e4,
        "to_world": mi.ScalarTransform4f().look_at([float(a) for a in origin], [float(a) for a in origin + forward],
                                                   [float(a) for a in up]),
        "film": {"type": "hdrfilm", "width": size.width, "height": size.height, "pixel_format": "rgb",
                 "component_format": "float32", "rfilter": {"type": "box"}},
        "sampler": {"type": "stratified", "sample_count": 64},
    }
    power = {"type": "rgb", "value": [float(np.pi * c) for c in world.light.direct[0]]}
    if world.light.position is None:
        emitter = {"type": "directional", "direction": [-float(a) for a in world.light.toward_sun[0]],
                   "irradiance": power}
    else:
        emitter = {"type": "point", "position": [float(a) for a in world.light.position[0]], "intensity": power}
    if shapes is None:
        shapes = [shape for thing in world.things for shape in shapes_of(thing)]
        shapes += wall_around(world.window) if world.window is not None else []
    return mi.load_dict({"type": "scene", "integrator": {"type": "direct", "hide_emitters": True}, "sensor": sensor,
                         "light": emitter, **{f"shape_{i}": shape for i, shape in enumerate(shapes)}})


def traced_visibility(scene, world, size):
    """Lit, and facing the light, ``[H, W]`` bool each, at the pixels' centers, by Mitsuba's ray casting."""
    rays = world.camera.rays(size.height, size.width, 1)[:, 0].T.astype(float)
    origin = mi.Point3f([float(a) for a in world.camera.origin()[:, 0]])
    lit, facing = np.zeros(len(rays), bool), np.zeros(len(rays), bool)
    for i, ray in enumerate(rays):
        hit = scene.ray_intersect(mi.Ray3f(origin, mi.Vector3f(list(ray / np.linalg.norm(ray)))))
        assert hit.is_valid()
        point = np.array(hit.p, float)
        toward = world.light.to_center(point.reshape(3, 1, 1))[:, 0, 0].astype(float)
        facing[i] = np.dot(np.array(hit.n, float), toward) * -np.sign(np.dot(np.array(hit.n, float), ray)) > 1e-3
        start = hit.spawn_ray(mi.Vector3f(list(toward / np.linalg.norm(toward))))
        start.maxt = float(np.linalg.norm(toward)) - 1e-3 if world.light.position is not None else 1e4
        lit[i] = not scene.ray_test(start)
    return lit.reshape(size.height, size.width), facing.reshape(size.height, size.width)


@pytest.mark.parametrize("kind", SOLID)
def test_shadows_and_light_are_those_of_mitsuba(kind: str) -> None:
    centers, fine = ClipSize(17, 96, 96, supersample=1), ClipSize(17, 48, 48, supersample=16)
    for scene_index in (1, 2):
        world = single(kind, scene_index, centers)
        scene = scene_of(world, centers)
        theirs, facing = traced_visibility(scene, world, centers)
        ours = render_passes(world, dataclasses.replace(centers, frames=1)).hard_visibility[0] > 0.5
        # The smaller of shadow and light is the sharper test: a patch in a dark room, a shadow on a bright ground.
        region = facing & ((theirs < 1) if theirs[facing].mean() > 0.5 else (theirs > 0))
        own = facing & (~ours if theirs[facing].mean() > 0.5 else ours)
        iou = (region & own).sum() / max((region | own).sum(), 1)
        world = single(kind, scene_index, fine)
        scene = scene_of(world, fine)
        luminance = np.array(mi.render(scene, spp=144)) @ LUMINANCE
        passes = render_passes(world, dataclasses.replace(fine, frames=1))
        own_luminance = passes.shadowed[0] @ LUMINANCE
        whole = luminance.mean() / own_luminance.mean() - 1
        local = np.abs(luminance - own_luminance).mean() / own_luminance.mean()
        print(f"{kind} scene {scene_index}: IoU {iou:.4f} over {region.sum()} px, luminance {whole:+.2%}, "
              f"mean pixel difference {local:.2%}")
        if kind != "constant":
            assert region.sum() > 40
            assert iou >= 0.97
        assert abs(whole) < 0.03 and local < 0.03


def test_glitter_is_that_of_a_rough_mirror_with_the_waves_normals(tmp_path) -> None:
    """Mitsuba's rough dielectric (Beckmann) on a mesh that carries the waves' normals, under the same sun."""
    size = ClipSize(3, 64, 64, supersample=12)
    for index in (0, 1, 2):
        world = single("water_glitter", index, size)
        water = world.things[0]
        ripples = dataclasses.replace(water.ripples, shutter=0.0)  # a frame of no length, as Mitsuba's
        world = dataclasses.replace(world, things=(dataclasses.replace(water, ripples=ripples),))
        layers = render_layers(world, size)
        grid = (1, size.height, size.supersample, size.width, size.supersample)
        ours = (layers.glints.transpose(1, 2, 0) @ LUMINANCE).reshape(grid).mean((2, 4))[0]
        near = layers.traced.depth.reshape(grid).max((2, 4))[0] < 9
        rough = {"type": "roughdielectric", "distribution": "beckmann", "alpha": float(np.sqrt(2 * ripples.roughness)),
                 "int_ior": 1.33, "ext_ior": 1.0}
        mesh = {"type": "ply", "filename": str(wave_mesh(tmp_path / f"{index}.ply", ripples)), "bsdf": rough}
        theirs = np.array(mi.render(scene_of(world, size, [mesh]), spp=256)) @ LUMINANCE / np.pi
        whole = theirs[near].sum() / ours[near].sum() - 1
        bright = near & (ours > 0.1 * ours[near].max())
        both = near & (theirs > 0.1 * ours[near].max())
        iou = (bright & both).sum() / (bright | both).sum()
        local = np.abs(theirs - ours)[near].mean() / ours[near].mean()
        print(f"water_glitter scene {index}: glints IoU {iou:.4f} over {bright.sum()} px, luminance {whole:+.2%}, "
              f"mean pixel difference {local:.2%}")
        assert bright.sum() > 40
        assert abs(whole) < 0.03
        assert iou >= 0.97


def wave_mesh(path, ripples, step=0.02):
    """A flat mesh from 2 to 10 meters ahead whose vertex normals are those of the waves, as a PLY file."""
    x, y = np.arange(-5.0, 5.0, step), np.arange(1.0, 10.0, step)
    x, y = (a.ravel() for a in np.meshgrid(x, y))
    columns = len(np.arange(-5.0, 5.0, step))
    slopes = np.zeros((2, len(x)))
    phases = ripples.vectors @ np.stack([x, y]) - (ripples.frequencies * ripples.seconds[0])[:, None]
    sines = -np.sin(phases + ripples.phases[:, None]) * ripples.slopes[:, None]
    slopes = (ripples.vectors / np.hypot(*ripples.vectors.T)[:, None]).T @ sines
    normal = np.stack([-slopes[0], -slopes[1], np.ones(len(x))])
    normal /= np.linalg.norm(normal, axis=0)
    vertices = np.stack([x, y, 0 * x, *normal], -1).astype("<f4")
    corner = np.arange(len(x)).reshape(-1, columns)[:-1, :-1].ravel()
    faces = np.concatenate([np.stack([corner, corner + 1, corner + columns + 1], -1),
                            np.stack([corner, corner + columns + 1, corner + columns], -1)])
    table = np.zeros(len(faces), np.dtype([("count", "u1"), ("index", "<i4", 3)]))
    table["count"], table["index"] = 3, faces
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    header = (f"ply\nformat binary_little_endian 1.0\nelement vertex {len(x)}\n{names}"
              f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n")
    path.write_bytes(header.encode() + vertices.tobytes() + table.tobytes())
    return path
