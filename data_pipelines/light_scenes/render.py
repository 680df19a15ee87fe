"""From a world to frames: nearest surface, share of the light seen, image formation.

Samples are the rays of the picture, S = H·W·supersample²; a layer's time axis is 1 wherever nothing moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.light_scenes import water
from data_pipelines.light_scenes.geometry import MISS, Plane
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.world import World

SAMPLES_PER_PIECE = 2**15
SKY_DEPTH = np.float32(1e4)
"""Depth in meters that stands for the sky's."""
_LIFT = np.float32(2e-3)


@dataclass(frozen=True)
class Traced:
    """What the camera's rays meet, float32; T' is T, or 1 where nothing moves.

    ``points``, unit ``normal``, ``albedo`` and the rays' ``direction`` are ``[3, T', S]``; ``depth`` in
    meters and ``object_id`` (int8, index into ``World.things``, -1 the sky) are ``[T', S]``. ``surface`` is the water
    among it.
    """

    points: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    direction: np.ndarray
    depth: np.ndarray
    object_id: np.ndarray
    surface: water.Surface | None = None


@dataclass(frozen=True)
class Layers:
    """What a picture is made of, per sample; float32. T' is T, or 1 where nothing moves.

    ``linear == albedo * (direct * visibility + ambient) + specular`` holds exactly, per sample.

    Attributes:
      traced: points, normals, depth and object ids.
      albedo: ``[3, T', S]``.
      direct: ``[3, T, S]`` irradiance of the unshadowed sun or lamp (``[3, T, 1]`` zeros without one).
      ambient: ``[3, T, S]`` irradiance of sky and surroundings; where a thing glows, or at the sky, its own light.
      specular: ``[3, T, S]``, or ``[3, 1, 1]`` zeros where nothing is glossy.
      visibility: ``[T, S]`` share of the sun or lamp seen, 0 to 1 (soft penumbra).
      linear: ``[3, T, S]`` linear RGB.
      glints: ``[3, T, S]`` the part of ``specular`` that water mirrors of the sun; None without water.
    """

    traced: Traced
    albedo: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    specular: np.ndarray
    visibility: np.ndarray
    linear: np.ndarray
    glints: np.ndarray | None = None


def nearest(
    world: World, origin: np.ndarray, direction: np.ndarray, grid: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first surface along rays from ``origin [3, T' or 1, 1]`` along ``direction [3, T', S]``.

    ``grid`` (rows, columns) says that these are the camera's own rays in row-major order: things are then looked for
    only where they can be.

    Returns ray parameters ``[T', S]`` (inf at the sky), normals ``[3, T', S]`` and indices into ``World.things``
    ``[T', S]`` (-1 at the sky).
    """
    frames, samples = direction.shape[1:]
    depth = np.full((frames, samples), MISS, np.float32)
    normal = np.zeros((3, frames, samples), np.float32)
    object_id = np.full((frames, samples), -1, np.int8)
    windows = {} if grid is None else _windows(world, frames, grid)
    for index, thing in enumerate(world.things):
        parts = [direction, depth, normal, object_id]
        if grid is not None and index in windows:
            rows, columns = windows[index]
            parts = [part.reshape(*part.shape[:-1], *grid)[..., rows, columns] for part in parts]
        rays, nearest_depth, nearest_normal, nearest_id = parts
        s, n = thing.shape.intersect(origin, rays.reshape(3, frames, -1))
        nearer = (s < nearest_depth.reshape(frames, -1)).reshape(nearest_depth.shape)
        np.copyto(nearest_depth, s.reshape(nearest_depth.shape), where=nearer)
        n = np.broadcast_to(n, (3, *s.shape)).reshape(nearest_normal.shape)
        np.copyto(nearest_normal, n, where=nearer)
        np.copyto(nearest_id, np.int8(index), where=nearer)
    return depth, normal, object_id


def _windows(world: World, frames: int, grid: tuple[int, int]) -> dict[int, tuple[slice, slice]]:
    """Rows and columns of the camera's rays that can meet each of the things that are no planes."""
    bounds = {
        index: thing.shape.bounds() for index, thing in enumerate(world.things) if not isinstance(thing.shape, Plane)
    }
    if not bounds:
        return {}
    low, high = (
        np.stack([np.broadcast_to(ends[end], (3, frames)) for ends in bounds.values()], -1) for end in (0, 1)
    )
    return dict(zip(bounds, world.camera.windows(low, high, *grid), strict=True))


def trace(world: World, height: int, width: int, supersample: int) -> Traced:
    """The nearest surface along every sample's ray."""
    direction = world.camera.rays(height, width, supersample)
    if not world.stands_still and direction.shape[1] == 1:
        direction = np.broadcast_to(direction, (3, world.frames, direction.shape[2]))
    origin = world.camera.origin().astype(np.float32)[:, :, None]
    depth, normal, object_id = nearest(world, origin, direction, (height * supersample, width * supersample))
    beyond = object_id < 0
    if beyond.any():
        if world.sky is None:
            raise ValueError("a ray leaves the scene without meeting a surface; close the world with planes")
        depth = np.where(beyond, SKY_DEPTH, depth)
        normal = np.where(beyond, -direction / np.sqrt(_dot(direction, direction)), normal)
    points = origin + depth * direction
    albedo = np.ones(direction.shape, np.float32)
    surface = None
    for index, thing in enumerate(world.things):
        here = object_id == index
        center = getattr(thing.shape, "center", None)
        if center is None or not thing.material.waves:
            local = points
        else:
            local = points - center.astype(np.float32)[:, :, None]
        np.copyto(albedo, thing.material.albedo(local), where=here)
        if thing.ripples is None or not here.any():
            continue
        seen = np.flatnonzero(here.any(0))
        samples = slice(int(seen[0]), int(seen[-1]) + 1)
        pixel = 2 * world.camera.half_width / (width * supersample)
        surface = water.Surface.seen(
            thing.ripples, samples, points[..., samples], direction[..., samples], depth[..., samples], pixel
        )
    return Traced(points, normal, albedo, direction, depth, object_id, surface)


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


def _lamp_disc(center: np.ndarray, radius: float, samples: np.ndarray, count: int) -> np.ndarray:
    """Points ``[3, T, samples]`` of a level disc around ``center [3, T]``, spread like ``_sun_disc``'s directions."""
    order = np.arange(count)
    r = np.sqrt((order + 0.5) / count) * radius
    angle = order * np.pi * (3 - np.sqrt(5))
    disc = np.stack([r * np.cos(angle), r * np.sin(angle), np.zeros(count)])
    return (center[:, :, None] + disc[:, None]).astype(np.float32)[:, :, samples]


def visibility(
    world: World, points: np.ndarray, normal: np.ndarray, size: ClipSize, radius: float
) -> np.ndarray:
    """Share of the light ``[T, S]`` float32 seen from ``points [3, T', S]``; ``radius`` 0 gives a hard edge.

    Each of a pixel's samples looks at its own points of the sun's disc; together they are as many as the
    penumbra, which widens with the picture, needs to look smooth.
    """
    light = world.light
    toward = light.toward_sun.T if light.position is None else light.position.T
    lifted = points + _LIFT * normal
    share = np.ones((toward.shape[1], points.shape[2]), np.float32)
    if world.window is not None:
        share = world.window.lets_through(lifted, toward[:, :, None].astype(np.float32), np.tan(radius))
    casters = world.casters
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
            disc = _sun_disc if world.light.position is None else _lamp_disc
            rays = disc(toward, radius, sub + turn * per_pixel, passes * per_pixel)
        else:
            rays = toward[:, :, None].astype(np.float32)
        if world.light.position is not None:
            rays = rays - lifted
        blocked = casters[0].blocks(lifted, rays, world.light.reach)
        for shape in casters[1:]:
            blocked = blocked | shape.blocks(lifted, rays, world.light.reach)
        seen += ~blocked
    return share * (seen / np.float32(passes))


def render_layers(world: World, size: ClipSize, traced: Traced | None = None) -> Layers:
    """All layers of a world over its frames; ``traced`` saves the tracing where nothing moves."""
    traced = trace(world, size.height, size.width, size.supersample) if traced is None else traced
    normal = traced.normal
    light = world.light
    toward = light.to_center(traced.points)  # [3, T, 1], or [3, T, S] to a lamp
    soft = visibility(world, traced.points, normal, size, light.sun_radius)
    upward = normal[2] * np.float32(0.5) + np.float32(0.5)  # [T', S]
    rgb = (light.sky, light.ground, light.direct)
    sky, ground, direct = (a.T.astype(np.float32)[:, :, None] for a in rgb)  # [3, T, 1]
    ambient = ground + upward * (sky - ground)
    if light.position is not None:
        square = _dot(toward, toward)
        toward = toward / np.sqrt(square)
        direct = direct / square
    specular = _specular(world, traced, toward, direct, soft)
    if direct.any():
        facing = np.maximum(_dot(normal, toward), 0)  # [T, S]
        direct = facing * direct
    glints = None
    if traced.surface is not None:
        normal, specular, glints = _water(world, traced, toward, specular, soft)
        traced = replace(traced, normal=normal)
    direct, ambient = _own_light(world, traced, direct, ambient)
    albedo = traced.albedo
    linear = albedo * (direct * soft + ambient) + specular
    return Layers(traced, albedo, direct, ambient, specular, soft, linear, glints)


def _own_light(world: World, traced: Traced, direct: np.ndarray, ambient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``direct`` and ``ambient`` with the sky and what glows as their own light."""
    for index, thing in enumerate(world.things):
        if thing.glow is not None:
            here = traced.object_id == index
            direct = np.where(here, np.float32(0), direct)
            ambient = np.where(here, thing.glow.astype(np.float32).reshape(3, 1, 1), ambient)
    beyond = traced.object_id < 0
    if world.sky is not None and beyond.any():
        columns = np.flatnonzero(beyond.any(0))
        samples = slice(int(columns[0]), int(columns[-1]) + 1)
        here, shape = beyond[:, samples], (3, world.frames, beyond.shape[1])
        direct, ambient = (np.array(np.broadcast_to(a, shape)) for a in (direct, ambient))
        direct[:, :, samples] = np.where(here, 0, direct[:, :, samples])
        radiance = world.sky.radiance(-traced.normal[:, :, samples])
        ambient[:, :, samples] = np.where(here, radiance, ambient[:, :, samples])
    return direct, ambient


def _water(world: World, traced: Traced, toward: np.ndarray, specular: np.ndarray, soft: np.ndarray) -> tuple[
        np.ndarray, np.ndarray, np.ndarray]:
    """Normals, specular light and glints alone, each ``[3, T, S]``, with what the water mirrors."""
    assert traced.surface is not None and world.sky is not None
    index, thing = next((i, thing) for i, thing in enumerate(world.things) if thing.ripples is not None)
    assert thing.ripples is not None
    samples = traced.surface.samples
    sun = world.light.direct.T.astype(np.float32)[:, :, None]
    image, glints, tilted = water.reflect(traced.surface, thing.ripples, world.sky, toward, sun)
    shape = (3, world.frames, traced.points.shape[2])
    here = (traced.object_id == index)[:, samples]
    normal, specular = (np.array(np.broadcast_to(a, shape)) for a in (traced.normal, specular))
    alone = np.zeros(shape, np.float32)
    alone[:, :, samples] = np.where(here, glints * soft[:, samples], 0)
    specular[:, :, samples] += np.where(here, image, 0)
    specular += alone
    normal[:, :, samples] = np.where(here, tilted, normal[:, :, samples])
    return normal, specular, alone


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


def _specular(
    world: World, traced: Traced, toward: np.ndarray, irradiance: np.ndarray, soft: np.ndarray
) -> np.ndarray:
    """Blinn-Phong highlights of the light, ``[3, T, S]`` (``[3, 1, 1]`` of zeros where nothing is glossy).

    ``toward`` are unit vectors to it, ``irradiance`` is that of a surface which faces it; both ``[3, T, 1 or S]``.
    """
    glossy = [index for index, thing in enumerate(world.things) if thing.material.specular]
    if not glossy:
        return np.zeros((3, 1, 1), np.float32)
    lobe = np.zeros(soft.shape, np.float32)
    for index in glossy:
        material = world.things[index].material
        # Only where the thing is seen in any frame: highlights are rare and powers are dear.
        seen = np.flatnonzero((traced.object_id == index).any(0))
        direction, normal = traced.direction[:, :, seen], traced.normal[:, :, seen]
        here = toward if toward.shape[2] == 1 else toward[:, :, seen]
        half = here - direction / np.sqrt(_dot(direction, direction))
        cosine = np.maximum(_dot(normal, half) / np.sqrt(_dot(half, half)), 0)
        value = np.float32(material.specular) * cosine ** np.float32(material.shininess)
        lit = (_dot(normal, here) > 0) & (traced.object_id[:, seen] == index)
        lobe[:, seen] += value * lit * soft[:, seen]
    return lobe * irradiance


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
