"""Where things go from frame to frame: surfaces, forward and backward, and the shadows that slide over them."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes.geometry import MISS, Plane
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.render import Traced, nearest, trace
from data_pipelines.light_scenes.world import World

_LIFT = np.float32(2e-3)
_DEEPER = 0.003  # share of the depth by which a surface may lie before a point that still counts as seen


@dataclass(frozen=True)
class Flow:
    """Motion from the pixels' centers of one frame to another, in pixels.

    Attributes:
      motion: ``[T-1, H, W, 2]`` float32 (dx, dy) of the surface seen there.
      occluded: ``[T-1, H, W]`` bool, the surface is not seen in the other frame: covered, or out of the picture.
    """

    motion: np.ndarray
    occluded: np.ndarray


def trace_centers(world: World, size: ClipSize) -> Traced:
    """The surfaces at the pixels' centers, T' frames."""
    return trace(world, size.height, size.width, 1)


def surface_flow(world: World, size: ClipSize) -> np.ndarray:
    """Motion ``[T-1, H, W, 2]`` float32 of the surface at each pixel's center, in pixels from frame t to t+1.

    Light that slides over a surface has no part in it.
    """
    shape = (world.frames - 1, size.height, size.width, 2)
    if world.stands_still or world.frames < 2:
        return np.zeros(shape, np.float32)
    return _motion(world, trace_centers(world, size), size, 1)[0]


def surface_flows(world: World, traced: Traced, size: ClipSize) -> tuple[Flow, Flow]:
    """Forward (from t to t+1) and backward (from t+1 to t) surface flow with what is occluded in the other frame.

    ``traced`` is ``trace_centers`` of the same world.
    """
    shape = (world.frames - 1, size.height, size.width, 2)
    if world.stands_still or world.frames < 2:
        still = Flow(np.zeros(shape, np.float32), np.zeros(shape[:3], bool))
        return still, still
    flows = []
    for way in (1, -1):
        motion, places = _motion(world, traced, size, way)
        other = world.at(slice(1, None) if way > 0 else slice(0, -1))
        flows.append(Flow(motion, ~_seen(other, places, size)[0].reshape(shape[:3])))
    return flows[0], flows[1]


def _motion(world: World, traced: Traced, size: ClipSize, way: int) -> tuple[np.ndarray, np.ndarray]:
    """Flow ``[T-1, H, W, 2]`` and places ``[3, T-1, S]`` of the surfaces in the other frame; ``way`` ±1 in time."""
    first, second = (slice(0, -1), slice(1, None)) if way > 0 else (slice(1, None), slice(0, -1))
    points = traced.points[:, first].astype(np.float64)
    moved = points + way * _steps(world, traced.object_id[first])
    before, after = world.at(first).camera, world.at(second).camera
    flow = after.project(moved, size.height, size.width) - before.project(points, size.height, size.width)
    shape = (world.frames - 1, size.height, size.width, 2)
    return flow.transpose(1, 2, 0).reshape(shape).astype(np.float32), moved


def _steps(world: World, object_id: np.ndarray) -> np.ndarray:
    """Motion ``[3, T-1, S]`` in meters from t to t+1 of the things ``object_id [T-1, S]``."""
    total = np.zeros((3, *object_id.shape))
    for index, thing in enumerate(world.things):
        if thing.moves:
            total += thing.steps()[:, :, None] * (object_id == index)
    return total


def _seen(world: World, places: np.ndarray, size: ClipSize) -> tuple[np.ndarray, np.ndarray]:
    """Whether the camera sees the surface points ``places [3, T, S]``, bool ``[T, S]``, and what thing is there."""
    x, y = world.camera.project(places, size.height, size.width)
    inside = (x >= -0.5) & (x <= size.width - 0.5) & (y >= -0.5) & (y <= size.height - 0.5)
    origin = world.camera.origin()[:, :, None]
    direction = np.broadcast_to(places - origin, places.shape).astype(np.float32)
    depth, _, found = nearest(world, origin.astype(np.float32), direction)
    return inside & (depth > 1 - _DEEPER), found


def shadow_flow(world: World, traced: Traced, size: ClipSize) -> tuple[np.ndarray, np.ndarray]:
    """Where a shadow, or a window's patch of light, moves over the surfaces.

    A shadowed point lies on a ray to the light's center that passes a caster; the flow goes to where the light of
    the next frame throws that point of the caster on the same surface. In a window's patch the window's opening takes
    the caster's place.

    Returns ``[T-1, H, W, 2]`` float32 (dx, dy) in pixels from frame t to t+1 and ``[T-1, H, W]`` bool where it is
    known: at points in a cast shadow (hard edge) or in the patch, whose next place is on the same surface and in sight.
    Elsewhere it is 0.
    """
    shape = (world.frames - 1, size.height, size.width)
    if world.frames < 2 or not world.light.direct.any():
        return np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
    now, later = world.at(slice(0, -1)), world.at(slice(1, None))
    full = (3, world.frames, traced.points.shape[2])
    points, normal = (np.broadcast_to(a, full)[:, :-1] for a in (traced.points, traced.normal))
    object_id = np.broadcast_to(traced.object_id, full[1:])[:-1]
    steps = _steps(world, object_id)
    caster, place = _caster(now, world, points + _LIFT * normal)
    surface = points + steps  # where the receiving surface is one frame later
    light = later.light
    ray = light.toward_sun.T[:, :, None] if light.position is None else light.position.T[:, :, None] - place
    toward = (normal * ray).sum(0)
    away = (normal * (place - surface)).sum(0)
    landed = place - away / np.where(np.abs(toward) < 1e-6, 1e-6, toward) * ray
    known = caster & (toward > 1e-6) & ((normal * now.light.to_center(points)).sum(0) > 0) & (object_id >= 0)
    landed = np.where(known, landed, surface)
    before = now.camera.project(points, size.height, size.width)
    after = later.camera.project(landed, size.height, size.width)
    seen, thing = _seen(later, landed, size)
    known &= seen & (thing == object_id)
    motion = np.where(known, after - before, 0).transpose(1, 2, 0).reshape(*shape, 2)
    return motion.astype(np.float32), known.reshape(shape)


def _caster(now: World, world: World, lifted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether something stands between ``lifted [3, T-1, S]`` and the light, and where that point is a frame later."""
    ray = now.light.to_center(lifted)
    if now.window is not None:
        through = (np.float32(now.window.offset) - lifted[1]) / ray[1]
        return now.window.lets_through(lifted, ray, 0.0) > 0.5, lifted + through * ray
    found, place = np.full(lifted.shape[1:], MISS, np.float32), lifted.astype(np.float64)
    for thing, moving in zip(now.things, world.things, strict=True):
        if thing.casts and not isinstance(thing.shape, Plane):
            s, _ = thing.shape.intersect(lifted, ray)
            closer = (s < found) & (s < now.light.reach)
            found = np.where(closer, s, found)
            place = np.where(closer, lifted + np.where(closer, s, 0) * ray + moving.steps()[:, :, None], place)
    return found < MISS, place
