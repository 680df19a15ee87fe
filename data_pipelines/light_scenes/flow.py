"""Where things go from frame to frame: surfaces, forward and backward, and the shadows that slide over them."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes.geometry import MISS, dot
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.shadows import LIFT, shadow_windows
from data_pipelines.light_scenes.trace import Traced, cut, is_empty, trace, whole, windows_of
from data_pipelines.light_scenes.world import World

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


def pixels_of(world: World, traced: Traced, size: ClipSize) -> np.ndarray:
    """Pixel coordinates ``[2, T', S]`` float64 of what was traced: the pixels' centers, but for rounding."""
    return world.camera.project(traced.points, size.height, size.width)


def surface_flow(world: World, size: ClipSize) -> np.ndarray:
    """Motion ``[T-1, H, W, 2]`` float32 of the surface at each pixel's center, in pixels from frame t to t+1.

    Light that slides over a surface has no part in it.
    """
    shape = (world.frames - 1, size.height, size.width, 2)
    if world.stands_still or world.frames < 2:
        return np.zeros(shape, np.float32)
    traced = trace_centers(world, size)
    _, after = _moved(world, traced, size, 1)
    return _as_flow(after - pixels_of(world, traced, size)[:, :-1], size)


def surface_flows(world: World, traced: Traced, pixels: np.ndarray, size: ClipSize) -> tuple[Flow, Flow]:
    """Flow from t to t+1 and from t+1 to t of the surfaces at the pixels' centers, ``pixels`` as of ``pixels_of``."""
    shape = (world.frames - 1, size.height, size.width)
    if world.stands_still or world.frames < 2:
        still = Flow(np.zeros((*shape, 2), np.float32), np.zeros(shape, bool))
        return still, still
    flows = []
    for way in (1, -1):
        first, second = _ends(way)
        places, after = _moved(world, traced, size, way)
        seen, _ = _seen(world.at(second), places, after, size)
        flows.append(Flow(_as_flow(after - pixels[:, first], size), ~seen.reshape(shape)))
    return flows[0], flows[1]


def _ends(way: int) -> tuple[slice, slice]:
    """The frames that a flow starts and ends at; ``way`` ±1 in time."""
    return (slice(0, -1), slice(1, None)) if way > 0 else (slice(1, None), slice(0, -1))


def _as_flow(motion: np.ndarray, size: ClipSize) -> np.ndarray:
    """``[2, T-1, S]`` to ``[T-1, H, W, 2]`` float32."""
    return motion.transpose(1, 2, 0).reshape(-1, size.height, size.width, 2).astype(np.float32)


def _moved(world: World, traced: Traced, size: ClipSize, way: int) -> tuple[np.ndarray, np.ndarray]:
    """Places ``[3, T-1, S]`` of the surfaces in the other frame, and their pixels ``[2, T-1, S]`` there; float64."""
    first, second = _ends(way)
    places = _carried(world, traced.points[:, first], traced.object_id[first], way)
    return places, world.at(second).camera.project(places, size.height, size.width)


def _carried(world: World, points: np.ndarray, object_id: np.ndarray, way: int) -> np.ndarray:
    """Where ``points [3, T-1, S]`` of the things ``object_id [T-1, S]`` are one frame later or earlier; float64."""
    places = points.astype(np.float64)
    for index, thing in enumerate(world.things):
        if thing.moves:
            frame, sample = np.nonzero(object_id == index)
            places[:, frame, sample] += way * thing.steps()[:, frame]
    return places


def _seen(world: World, places: np.ndarray, pixels: np.ndarray, size: ClipSize) -> tuple[np.ndarray, np.ndarray]:
    """Whether the camera sees the surface points ``places [3, T, n]``, bool ``[T, n]``, and what thing is there.

    ``pixels [2, T, n]`` are the places in the picture; what is there is left open outside of it.
    """
    x, y = pixels
    inside = (x >= -0.5) & (x <= size.width - 0.5) & (y >= -0.5) & (y <= size.height - 0.5)
    origin = world.camera.origin()[:, :, None]
    direction, origin = (places - origin).astype(np.float32), origin.astype(np.float32)
    depth, found = np.full(x.shape, MISS, np.float32), np.full(x.shape, -1, np.int8)
    (left, top), (right, bottom) = pixels.min(1), pixels.max(1)
    grid = (size.height, size.width)
    for index, (rows, columns) in windows_of(world, range(len(world.things)), grid).items():
        near: slice | np.ndarray = slice(None)
        if (rows, columns) != whole(grid):
            across = (right >= columns.start - 1) & (left <= columns.stop)
            near = np.flatnonzero(across & (bottom >= rows.start - 1) & (top <= rows.stop))
        s, _ = world.things[index].shape.intersect(origin, direction[:, :, near])
        nearer = s < depth[:, near]
        depth[:, near] = np.where(nearer, s, depth[:, near])
        found[:, near] = np.where(nearer, np.int8(index), found[:, near])
    return inside & (depth > 1 - _DEEPER), found


def shadow_flow(world: World, traced: Traced, pixels: np.ndarray, size: ClipSize) -> tuple[np.ndarray, np.ndarray]:
    """Where a shadow, or a window's patch of light, moves over the surfaces; ``pixels`` as of ``pixels_of``.

    A shadowed point lies on a ray to the light's center that passes a caster; the flow goes to where the light of
    the next frame throws that point of the caster on the same surface. In a window's patch the window's opening takes
    the caster's place.

    Returns ``[T-1, H, W, 2]`` float32 (dx, dy) in pixels from frame t to t+1 and ``[T-1, H, W]`` bool where it is
    known: at points in a cast shadow (hard edge) or in the patch, whose next place is on the same surface and in sight.
    Elsewhere it is 0.
    """
    shape = (world.frames - 1, size.height * size.width)
    motion, known = np.zeros((2, *shape)), np.zeros(shape, bool)
    if world.frames > 1 and world.light.direct.any():
        now, later = world.at(slice(0, -1)), world.at(slice(1, None))
        points, normal, before, object_id = (
            np.broadcast_to(a, (*a.shape[:-2], world.frames, a.shape[-1]))[..., :-1, :]
            for a in (traced.points, traced.normal, pixels, traced.object_id)
        )
        shadowed, place = _caster(now, world, points + LIFT * normal, size)
        some = np.flatnonzero(shadowed.any(0))  # nothing else is looked at further
        shadowed, place, points, normal, before, object_id = (
            a[..., some] for a in (shadowed, place, points, normal, before, object_id)
        )
        surface = _carried(world, points, object_id, 1)  # where the receiving surface is one frame later
        light = later.light
        ray = light.toward_sun.T[:, :, None] if light.position is None else light.position.T[:, :, None] - place
        toward, away = dot(normal, ray), dot(normal, place - surface)
        landed = place - away / np.where(np.abs(toward) < 1e-6, 1e-6, toward) * ray
        lit = (toward > 1e-6) & (dot(normal, now.light.to_center(points)) > 0)
        meant = shadowed & lit & (object_id >= 0)
        landed = np.where(meant, landed, surface)
        after = later.camera.project(landed, size.height, size.width)
        seen, thing = _seen(later, landed, after, size)
        known[:, some] = meant & seen & (thing == object_id)
        motion[..., some] = np.where(known[:, some], after - before, 0)
    return _as_flow(motion, size), known.reshape(-1, size.height, size.width)


def _caster(now: World, world: World, lifted: np.ndarray, size: ClipSize) -> tuple[np.ndarray, np.ndarray]:
    """Whether something stands between ``lifted [3, T-1, S]`` and the light, and where that point is a frame later."""
    ray = now.light.to_center(lifted)
    if now.window is not None:
        through = (np.float32(now.window.offset) - lifted[1]) / ray[1]
        return now.window.lets_through(lifted, ray, 0.0) > 0.5, lifted + through * ray
    found, place = np.full(lifted.shape[1:], MISS, np.float32), lifted.astype(np.float64)
    grid = (size.height, size.width)
    for shape, thing, window in zip(now.casters, world.casting, shadow_windows(now, grid), strict=True):
        if is_empty(window):
            continue
        nearest_yet, onward = cut(found, grid, window), cut(place, grid, window)
        part = cut(lifted, grid, window).reshape(*lifted.shape[:2], -1)
        rays = ray if ray.shape[2] == 1 else cut(ray, grid, window).reshape(part.shape)
        s, _ = shape.intersect(part, rays)
        moved = part + np.where(s < MISS, s, 0) * rays + thing.steps()[:, :, None]
        s = s.reshape(nearest_yet.shape)
        closer = (s < nearest_yet) & (s < now.light.reach)
        np.copyto(nearest_yet, s, where=closer)
        np.copyto(onward, moved.reshape(onward.shape), where=closer)
    return found < MISS, place
