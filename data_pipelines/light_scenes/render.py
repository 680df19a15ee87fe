"""From a world to frames: what the surfaces that the camera sees do with the light.

Samples are the rays of the picture, S = H·W·supersample²; a layer's time axis is 1 wherever nothing moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.light_scenes import water
from data_pipelines.light_scenes.geometry import dot
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.shadows import Shadows
from data_pipelines.light_scenes.trace import Traced, Tracer, trace
from data_pipelines.light_scenes.world import World

SAMPLES_PER_PIECE = 2**16


@dataclass(frozen=True)
class Layers:
    """What a picture is made of, per sample; float32. T' is T, or 1 where nothing moves.

    ``linear == albedo * (direct * visibility + ambient) + specular`` holds exactly, per sample.

    Attributes:
      traced: points, normals, depth and object ids.
      shadows: what the light does not reach.
      albedo: ``[3, T', S]``.
      direct: ``[3, T, S]`` irradiance of the unshadowed sun or lamp (``[3, T, 1]`` zeros without one).
      ambient: ``[3, T, S]`` irradiance of sky and surroundings; where a thing glows, or at the sky, its own light.
      specular: ``[3, T, S]``, or ``[3, 1, 1]`` zeros where nothing is glossy.
      visibility: ``[T, S]`` share of the sun or lamp seen, 0 to 1 (soft penumbra).
      linear: ``[3, T, S]`` linear RGB.
      glints: ``[3, T, S]`` the part of ``specular`` that water mirrors of the sun; None without water.
    """

    traced: Traced
    shadows: Shadows
    albedo: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    specular: np.ndarray
    visibility: np.ndarray
    linear: np.ndarray
    glints: np.ndarray | None = None


def render_layers(world: World, size: ClipSize, traced: Traced | None = None) -> Layers:
    """All layers of a world over its frames; ``traced`` is what its camera sees, if that is known."""
    traced = trace(world, size.height, size.width, size.supersample) if traced is None else traced
    normal = traced.normal
    light = world.light
    toward = light.to_center(traced.points)  # [3, T, 1], or [3, T, S] to a lamp
    shadows = Shadows(world, traced.points, size)
    soft = shadows.visibility(normal, soft=True)
    upward = normal[2] * np.float32(0.5) + np.float32(0.5)  # [T', S]
    rgb = (light.sky, light.ground, light.direct)
    sky, ground, direct = (a.T.astype(np.float32)[:, :, None] for a in rgb)  # [3, T, 1]
    ambient = ground + upward * (sky - ground)
    if light.position is not None:
        square = dot(toward, toward)
        toward = toward / np.sqrt(square)
        direct = direct / square
    specular = _specular(world, traced, toward, direct, soft)
    if direct.any():
        facing = np.maximum(dot(normal, toward), 0)  # [T, S]
        direct = facing * direct
    glints = None
    if traced.surface is not None:
        normal, specular, glints = _water(world, traced, toward, specular, soft)
        traced = replace(traced, normal=normal)
    direct, ambient = _own_light(world, traced, direct, ambient)
    albedo = traced.albedo
    linear = albedo * (direct * soft + ambient) + specular
    return Layers(traced, shadows, albedo, direct, ambient, specular, soft, linear, glints)


def _own_light(world: World, traced: Traced, direct: np.ndarray, ambient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``direct`` and ``ambient`` with the sky and what glows as their own light."""
    for index, thing in enumerate(world.things):
        if thing.glow is not None:
            here = traced.object_id == index
            direct = np.where(here, np.float32(0), direct)
            ambient = np.where(here, thing.glow.astype(np.float32).reshape(3, 1, 1), ambient)
    beyond = traced.object_id < 0
    if beyond.any():
        if world.sky is None:
            raise ValueError("a ray leaves the scene without meeting a surface; close the world with planes")
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


def render_pieces(world: World, size: ClipSize) -> Iterator[tuple[slice, Layers]]:
    """Layers of a few frames at a time, so that memory does not grow with length and arrays stay in cache."""
    samples = size.height * size.width * size.supersample**2
    step = max(1, SAMPLES_PER_PIECE // samples)
    tracer = Tracer(world, size.height, size.width, size.supersample)
    for start in range(0, world.frames, step):
        frames = slice(start, min(start + step, world.frames))
        yield frames, render_layers(world.at(frames), size, tracer.at(frames))


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
        half = here - direction / np.sqrt(dot(direction, direction))
        cosine = np.maximum(dot(normal, half) / np.sqrt(dot(half, half)), 0)
        value = np.float32(material.specular) * cosine ** np.float32(material.shininess)
        lit = (dot(normal, here) > 0) & (traced.object_id[:, seen] == index)
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
