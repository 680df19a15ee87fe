"""From a world to frames: nearest surface, share of the sun seen, image formation, surface flow.

Samples are the rays of the picture, S = H·W·supersample²; a layer's time axis is 1 wherever nothing moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes.geometry import MISS, Plane
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.world import World

SAMPLES_PER_PIECE = 2**15
_LIFT = np.float32(2e-3)


@dataclass(frozen=True)
class Traced:
    """What the camera's rays meet, float32; T' is T, or 1 where nothing moves.

    ``points``, unit ``normal``, ``albedo`` and the rays' ``direction`` are ``[3, T', S]``; ``depth`` in
    meters and ``object_id`` (int8, index into ``World.things``) are ``[T', S]``.
    """

    points: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    direction: np.ndarray
    depth: np.ndarray
    object_id: np.ndarray


@dataclass(frozen=True)
class Layers:
    """What a picture is made of, per sample; float32. T' is T, or 1 where nothing moves.

    ``linear == albedo * (direct * visibility + ambient) + specular`` holds exactly, per sample.

    Attributes:
      traced: points, normals, depth and object ids.
      albedo: ``[3, T', S]``.
      direct: ``[3, T, S]`` irradiance of the unshadowed sun (``[3, T, 1]`` zeros without one).
      ambient: ``[3, T, S]`` irradiance of sky and surroundings.
      specular: ``[3, T, S]``, or ``[3, 1, 1]`` zeros where nothing is glossy.
      visibility: ``[T, S]`` share of the sun seen, 0 to 1 (soft penumbra).
      linear: ``[3, T, S]`` linear RGB.
    """

    traced: Traced
    albedo: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    specular: np.ndarray
    visibility: np.ndarray
    linear: np.ndarray


def trace(world: World, height: int, width: int, supersample: int) -> Traced:
    """The nearest surface along every sample's ray."""
    direction = world.camera.rays(height, width, supersample)
    if not world.stands_still and direction.shape[1] == 1:
        direction = np.broadcast_to(direction, (3, world.frames, direction.shape[2]))
    origin = np.asarray(world.camera.position, np.float32).reshape(3, 1, 1)
    depth = np.full(direction.shape[1:], MISS, np.float32)
    normal = np.zeros(direction.shape, np.float32)
    object_id = np.full(direction.shape[1:], -1, np.int8)
    for index, thing in enumerate(world.things):
        s, n = thing.shape.intersect(origin, direction)
        nearer = s < depth
        depth = np.where(nearer, s, depth)
        normal = np.where(nearer, n, normal)
        object_id = np.where(nearer, np.int8(index), object_id)
    if (object_id < 0).any():
        raise ValueError("a ray leaves the scene without meeting a surface; close the world with planes")
    points = origin + depth * direction
    albedo = np.zeros(direction.shape, np.float32)
    for index, thing in enumerate(world.things):
        center = getattr(thing.shape, "center", None)
        local = points if center is None else points - center.astype(np.float32)[:, :, None]
        albedo = np.where(object_id == index, thing.material.albedo(local), albedo)
    return Traced(points, normal, albedo, direction, depth, object_id)


def _sun_disc(toward: np.ndarray, radius: float, samples: np.ndarray, count: int) -> np.ndarray:
    """Directions ``[3, T, samples]`` to points of the sun, spread over ``count`` points in turn.

    ``toward`` is ``[3, T]``. Points follow Vogel's spiral, so neighboring samples share the disc evenly.
    """
    order = np.arange(count)
    r = np.sqrt((order + 0.5) / count) * np.tan(radius)
    angle = order * np.pi * (3 - np.sqrt(5))
    side = np.stack([toward[1], -toward[0], np.zeros_like(toward[0])])
    side = side / np.maximum(np.sqrt((side**2).sum(0)), 1e-9)
    other = np.cross(toward, side, axis=0)
    disc = side[:, :, None] * (r * np.cos(angle)) + other[:, :, None] * (r * np.sin(angle))
    return (toward[:, :, None] + disc).astype(np.float32)[:, :, samples]


def visibility(
    world: World, points: np.ndarray, normal: np.ndarray, size: ClipSize, radius: float
) -> np.ndarray:
    """Share of the sun ``[T, S]`` float32 seen from ``points [3, T', S]``; ``radius`` 0 gives a hard edge.

    Each of a pixel's samples looks at its own points of the sun's disc; together they are as many as the
    penumbra, which widens with the picture, needs to look smooth.
    """
    toward = world.light.toward_sun.T
    lifted = points + _LIFT * normal
    share = np.ones((toward.shape[1], points.shape[2]), np.float32)
    if world.window is not None:
        share = world.window.lets_through(lifted, toward[:, :, None].astype(np.float32), np.tan(radius))
    casters = [thing.shape for thing in world.things if not isinstance(thing.shape, Plane)]
    if not casters or not world.light.direct.any():
        return share
    per_pixel = size.supersample**2
    rows = np.arange(size.height * size.supersample) % size.supersample
    columns = np.arange(size.width * size.supersample) % size.supersample
    sub = (rows[:, None] * size.supersample + columns[None, :]).reshape(-1)
    passes = max(1, max(4, size.width // 16) // per_pixel) if radius > 0 else 1
    seen = np.zeros_like(share)
    for turn in range(passes):
        if radius > 0:
            rays = _sun_disc(toward, radius, sub + turn * per_pixel, passes * per_pixel)
        else:
            rays = toward[:, :, None].astype(np.float32)
        blocked = casters[0].blocks(lifted, rays)
        for shape in casters[1:]:
            blocked = blocked | shape.blocks(lifted, rays)
        seen += ~blocked
    return share * (seen / np.float32(passes))


def render_layers(world: World, size: ClipSize, traced: Traced | None = None) -> Layers:
    """All layers of a world over its frames; ``traced`` saves the tracing where nothing moves."""
    traced = trace(world, size.height, size.width, size.supersample) if traced is None else traced
    normal = traced.normal
    light = world.light
    toward = light.toward_sun.T.astype(np.float32)[:, :, None]  # [3, T, 1]
    soft = visibility(world, traced.points, normal, size, light.sun_radius)
    upward = normal[2] * np.float32(0.5) + np.float32(0.5)  # [T', S]
    rgb = (light.sky, light.ground, light.direct)
    sky, ground, direct = (a.T.astype(np.float32)[:, :, None] for a in rgb)  # [3, T, 1]
    ambient = ground + upward * (sky - ground)
    if direct.any():
        facing = np.maximum(_dot(normal, toward), 0)  # [T, S]
        direct = facing * direct
    specular = _specular(world, traced, toward, soft)
    albedo = traced.albedo
    linear = albedo * (direct * soft + ambient) + specular
    return Layers(traced, albedo, direct, ambient, specular, soft, linear)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar product over the first axis; written out, since a sum over a short axis is slow."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def hard_visibility(world: World, traced: Traced, size: ClipSize) -> np.ndarray:
    """Whether the sun's center is seen from each sample's surface, bool ``[T, S]``."""
    return visibility(world, traced.points, traced.normal, size, 0.0) > 0.5


def render_pieces(world: World, size: ClipSize) -> Iterator[tuple[slice, Layers]]:
    """Layers of a few frames at a time, so that memory does not grow with length and arrays stay in cache."""
    samples = size.height * size.width * size.supersample**2
    step = max(1, SAMPLES_PER_PIECE // samples)
    traced = trace(world, size.height, size.width, size.supersample) if world.stands_still else None
    for start in range(0, world.frames, step):
        frames = slice(start, min(start + step, world.frames))
        yield frames, render_layers(world.at(frames), size, traced)


def _specular(world: World, traced: Traced, toward: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Blinn-Phong highlights of the sun, ``[3, T, S]`` (``[3, 1, 1]`` of zeros where nothing is glossy)."""
    glossy = [index for index, thing in enumerate(world.things) if thing.material.specular]
    if not glossy:
        return np.zeros((3, 1, 1), np.float32)
    lobe = np.zeros(soft.shape, np.float32)
    for index in glossy:
        material = world.things[index].material
        # Only where the thing is seen in any frame: highlights are rare and powers are dear.
        seen = np.flatnonzero((traced.object_id == index).any(0))
        direction, normal = traced.direction[:, :, seen], traced.normal[:, :, seen]
        half = toward - direction / np.sqrt(_dot(direction, direction))
        cosine = np.maximum(_dot(normal, half) / np.sqrt(_dot(half, half)), 0)
        value = np.float32(material.specular) * cosine ** np.float32(material.shininess)
        lit = (_dot(normal, toward) > 0) & (traced.object_id[:, seen] == index)
        lobe[:, seen] += value * lit * soft[:, seen]
    return lobe * world.light.direct.T.astype(np.float32)[:, :, None]


def surface_flow(world: World, size: ClipSize) -> np.ndarray:
    """Motion ``[T-1, H, W, 2]`` float32 of the surface at each pixel's center, in pixels from frame t to t+1.

    Light that slides over a surface has no part in it.
    """
    shape = (world.frames - 1, size.height, size.width, 2)
    if world.stands_still or world.frames < 2:
        return np.zeros(shape, np.float32)
    traced = trace(world, size.height, size.width, 1)
    points = traced.points[:, :-1].astype(np.float64)
    moved = points.copy()
    for index, thing in enumerate(world.things):
        if any(thing.velocity):
            step = np.asarray(thing.velocity).reshape(3, 1, 1) / size.fps
            moved += step * (traced.object_id[:-1] == index)
    before, after = (world.at(frames).camera for frames in (slice(0, -1), slice(1, None)))
    flow = after.project(moved, size.height, size.width) - before.project(points, size.height, size.width)
    return flow.transpose(1, 2, 0).reshape(shape).astype(np.float32)


def to_pixels(samples: np.ndarray, size: ClipSize) -> np.ndarray:
    """Means over each pixel's samples: ``[..., S]`` to ``[..., H, W]`` float32."""
    k = size.supersample
    grid = samples.reshape(*samples.shape[:-1], size.height, k, size.width * k)
    rows = grid[..., 0, :].copy()
    for i in range(1, k):
        rows += grid[..., i, :]
    pixels = rows[..., ::k].copy()
    for i in range(1, k):
        pixels += rows[..., i::k]
    return (pixels * np.float32(1 / k**2)).astype(np.float32, copy=False)
