"""From a world to frames: nearest surface, share of the sun seen, image formation, surface flow.

Samples are the rays of the picture, S = H·W·supersample²; a layer's time axis is 1 wherever nothing moves.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes.geometry import MISS
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.world import World

SUN_SAMPLES_PER_PIXEL = 8
_LIFT = np.float32(2e-3)


@dataclass(frozen=True)
class Layers:
    """What a picture is made of, per sample; float32 unless said otherwise. T' is T, or 1 where nothing moves.

    ``linear == albedo * (direct * visibility + ambient) + specular`` holds exactly, per sample.

    Attributes:
      albedo: ``[T', S, 3]``.
      normal: ``[T', S, 3]`` unit vectors.
      depth: ``[T', S]`` meters along the camera's forward axis.
      object_id: ``[T', S]`` int8, index into ``World.things``.
      direct: ``[T, S, 3]`` irradiance of the unshadowed sun.
      ambient: ``[T, S, 3]`` irradiance of sky and surroundings.
      specular: ``[T, S, 3]``.
      visibility: ``[T, S]`` share of the sun seen, 0 to 1 (soft penumbra).
      hard_visibility: ``[T, S]`` bool, whether the sun's center is seen.
      linear: ``[T, S, 3]`` linear RGB.
      points: ``[3, T', S]`` world coordinates, meters.
    """

    albedo: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    object_id: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    specular: np.ndarray
    visibility: np.ndarray
    hard_visibility: np.ndarray
    linear: np.ndarray
    points: np.ndarray


def trace(world: World, size: ClipSize) -> tuple[np.ndarray, ...]:
    """Points ``[3, T', S]``, unit normals ``[3, T', S]``, depth ``[T', S]``, ids, albedo and ray directions."""
    direction = world.camera.rays(size.height, size.width, size.supersample)
    moving = any(any(thing.velocity) for thing in world.things)
    if moving and direction.shape[1] == 1:
        direction = np.broadcast_to(direction, (3, size.frames, direction.shape[2]))
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
    return points, normal, depth, object_id, albedo, direction


def _sun_disc(toward: np.ndarray, radius: float, samples: int, count: int) -> np.ndarray:
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


def visibility(world: World, points: np.ndarray, normal: np.ndarray, size: ClipSize, radius: float) -> np.ndarray:
    """Share of the sun ``[T, S]`` float32 seen from ``points [3, T', S]``; ``radius`` 0 gives a hard edge.

    Each of a pixel's samples looks at its own points of the sun's disc, together ``SUN_SAMPLES_PER_PIXEL``.
    """
    toward = world.light.toward_sun.T
    lifted = points + _LIFT * normal
    share = np.ones((toward.shape[1], points.shape[2]), np.float32)
    if world.window is not None:
        share = world.window.lets_through(lifted, toward[:, :, None].astype(np.float32), np.tan(radius))
    casters = [thing for thing in world.things if thing.casts_shadow]
    if not casters or not world.light.direct.any():
        return share
    per_pixel = size.supersample**2
    rows = np.arange(size.height * size.supersample) % size.supersample
    columns = np.arange(size.width * size.supersample) % size.supersample
    sub = (rows[:, None] * size.supersample + columns[None, :]).reshape(-1)
    passes = max(1, SUN_SAMPLES_PER_PIXEL // per_pixel) if radius > 0 else 1
    seen = np.zeros_like(share)
    for turn in range(passes):
        if radius > 0:
            rays = _sun_disc(toward, radius, sub + turn * per_pixel, passes * per_pixel)
        else:
            rays = toward[:, :, None].astype(np.float32)
        blocked = casters[0].shape.blocks(lifted, rays)
        for thing in casters[1:]:
            blocked = blocked | thing.shape.blocks(lifted, rays)
        seen += ~blocked
    return share * (seen / np.float32(passes))


def render_layers(world: World, size: ClipSize) -> Layers:
    """All layers of a world; see ``Layers`` for shapes."""
    points, normal, depth, object_id, albedo, direction = trace(world, size)
    light = world.light
    toward = light.toward_sun.T.astype(np.float32)[:, :, None]  # [3, T, 1]
    facing = np.maximum((normal * toward).sum(0), 0)  # [T, S]
    soft = visibility(world, points, normal, size, light.sun_radius)
    hard = visibility(world, points, normal, size, 0.0) > 0.5
    upward = (normal[2] * np.float32(0.5) + np.float32(0.5))[..., None]  # [T', S, 1]
    sky = light.sky.astype(np.float32)[:, None]
    ground = light.ground.astype(np.float32)[:, None]
    ambient = ground + upward * (sky - ground)
    direct = facing[..., None] * light.direct.astype(np.float32)[:, None]
    specular = _specular(world, normal, direction, object_id, toward, facing, soft)
    albedo = np.ascontiguousarray(albedo.transpose(1, 2, 0))
    linear = albedo * (direct * soft[..., None] + ambient) + specular
    return Layers(
        albedo=albedo,
        normal=normal.transpose(1, 2, 0),
        depth=depth,
        object_id=object_id,
        direct=direct,
        ambient=ambient,
        specular=specular,
        visibility=soft,
        hard_visibility=hard,
        linear=linear,
        points=points,
    )


def _specular(
    world: World,
    normal: np.ndarray,
    direction: np.ndarray,
    object_id: np.ndarray,
    toward: np.ndarray,
    facing: np.ndarray,
    soft: np.ndarray,
) -> np.ndarray:
    """Blinn-Phong highlights of the sun, ``[T, S, 3]`` (``[1, 1, 3]`` of zeros where nothing is glossy)."""
    if not any(thing.material.specular for thing in world.things):
        return np.zeros((1, 1, 3), np.float32)
    view = -direction / np.sqrt((direction * direction).sum(0))
    half = view + toward
    cosine = np.maximum((normal * half).sum(0) / np.sqrt((half * half).sum(0)), 0)
    lobe = np.zeros(cosine.shape, np.float32)
    for index, thing in enumerate(world.things):
        if thing.material.specular:
            value = np.float32(thing.material.specular) * cosine ** np.float32(thing.material.shininess)
            lobe = np.where(object_id == index, value, lobe)
    lobe = lobe * (facing > 0) * soft
    return lobe[..., None] * world.light.direct.astype(np.float32)[:, None]


def surface_flow(world: World, layers: Layers, size: ClipSize) -> np.ndarray:
    """Motion ``[T-1, H, W, 2]`` float32, in pixels from frame t to t+1, of the surface at each pixel's center.

    Light that slides over a surface has no part in it. Sampled at the pixel's center when ``supersample`` is
    odd, else at the sample just below and to the right of it, taken back to the center by its own shift.
    """
    if size.frames < 2:
        return np.zeros((0, size.height, size.width, 2), np.float32)
    if layers.points.shape[1] == 1:
        return np.zeros((size.frames - 1, size.height, size.width, 2), np.float32)
    center_size = ClipSize(size.frames, size.height, size.width, size.fps, 1)
    if size.supersample == 1:
        points, object_id = layers.points, layers.object_id
    else:
        points, _, _, object_id, _, _ = trace(world, center_size)
    moved = points.astype(np.float64)[:, :-1].copy()
    for index, thing in enumerate(world.things):
        if any(thing.velocity):
            step = np.asarray(thing.velocity).reshape(3, 1, 1) / size.fps
            moved += step * (object_id[:-1] == index)
    camera = world.camera
    following = type(camera)(camera.position, camera.yaw[1:], camera.pitch, camera.half_width)
    current = type(camera)(camera.position, camera.yaw[:-1], camera.pitch, camera.half_width)
    flow = following.project(moved, size.height, size.width)
    flow -= current.project(points.astype(np.float64)[:, :-1], size.height, size.width)
    return flow.transpose(1, 2, 0).reshape(size.frames - 1, size.height, size.width, 2).astype(np.float32)


def to_pixels(samples: np.ndarray, size: ClipSize) -> np.ndarray:
    """Means over each pixel's samples: ``[T, S, ...]`` to ``[T, H, W, ...]``."""
    k = size.supersample
    shape = (samples.shape[0], size.height, k, size.width, k, *samples.shape[2:])
    return samples.reshape(shape).mean((2, 4), dtype=np.float32)
