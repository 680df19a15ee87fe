"""What the camera's rays meet: the nearest surface along each of them, with its material.

Samples are the rays of the picture, S = H·W·supersample²; a layer's time axis is 1 wherever nothing moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes import water
from data_pipelines.light_scenes.geometry import MISS, Plane, bounds_of, corners, dot
from data_pipelines.light_scenes.world import World

SKY_DEPTH = np.float32(1e4)
"""Depth in meters that stands for the sky's."""
Window = tuple[slice, slice]
"""Rows and columns of a grid of samples, with starts and stops."""
Hits = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ray parameters ``[T', S]``, normals ``[3, T', S]`` and object ids ``[T', S]`` of the nearest surfaces."""


@dataclass(frozen=True)
class Traced:
    """What the camera's rays meet, float32; T' is T, or 1 where nothing moves.

    ``points``, unit ``normal``, ``albedo`` and the rays' ``direction`` (T' = 1 unless the camera turns) are
    ``[3, T', S]``; ``depth`` in meters and ``object_id`` (int8, index into ``World.things``, -1 the sky) are
    ``[T', S]``. ``surface`` is the water among it.
    """

    points: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    direction: np.ndarray
    depth: np.ndarray
    object_id: np.ndarray
    surface: water.Surface | None = None


class Tracer:
    """The camera of a world with a picture of ``height`` times ``width`` pixels, ``supersample``² rays each.

    What stands still before a camera that does is traced once, and whatever moves in front of it by the frame.
    """

    def __init__(self, world: World, height: int, width: int, supersample: int) -> None:
        self._world, self._size = world, (height, width, supersample)
        self._rays = None if world.camera.turns else world.camera.rays(height, width, supersample)
        everything, backdrop = range(len(world.things)), world.camera.stands_still
        self._moving = [index for index in everything if not backdrop or world.things[index].moves]
        still = [index for index in everything if index not in self._moving]
        self._backdrop = self._trace(world, still, None) if backdrop else None

    def at(self, frames: slice) -> Traced:
        """What is met in some of the frames."""
        if self._backdrop is not None and not self._moving:
            return self._backdrop
        return self._trace(self._world.at(frames), self._moving, self._backdrop)

    def _trace(self, world: World, things: list[int], backdrop: Traced | None) -> Traced:
        """The nearest surfaces among the ``things`` (indices), and those of the ``backdrop`` behind them."""
        height, width, supersample = self._size
        grid = (height * supersample, width * supersample)
        origin = world.camera.origin().astype(np.float32)[:, :, None]
        if backdrop is None:
            direction = world.camera.rays(height, width, supersample) if self._rays is None else self._rays
            hits = _no_hits(world, things, origin, direction)
            albedo = np.ones(hits[1].shape, np.float32)
            surface = None
        else:
            direction, surface = backdrop.direction, backdrop.surface
            behind = (backdrop.depth, backdrop.normal, backdrop.object_id, backdrop.albedo)
            *hits, albedo = (np.repeat(a, world.frames, -2) for a in behind)
        depth, normal, object_id = hits
        windows = windows_of(world, things, grid)
        _meet(world, origin, direction, hits, windows, grid)
        beyond = object_id < 0
        if beyond.any():
            np.copyto(depth, SKY_DEPTH, where=beyond)
            np.copyto(normal, -direction / np.sqrt(dot(direction, direction)), where=beyond)
        points = origin + depth * direction
        for index, window in windows.items():
            thing = world.things[index]
            rows = np.flatnonzero((cut(object_id, grid, window) == index).any((0, 2))) + window[0].start
            if not rows.size:
                continue
            window = (slice(int(rows[0]), int(rows[-1]) + 1), window[1])
            view = cut(albedo, grid, window)
            local = cut(points, grid, window).reshape(*view.shape[:2], -1)
            if thing.material.waves and not isinstance(thing.shape, Plane):
                local = local - thing.shape.center.astype(np.float32)[:, :, None]
            paint = np.broadcast_to(thing.material.albedo(local), local.shape).reshape(view.shape)
            np.copyto(view, paint, where=cut(object_id, grid, window) == index)
            if thing.ripples is not None:
                seen = np.flatnonzero((object_id == index).any(0))
                samples = slice(int(seen[0]), int(seen[-1]) + 1)
                pixel = 2 * world.camera.half_width / grid[1]
                rays = np.broadcast_to(direction, points.shape)
                surface = water.Surface.seen(
                    thing.ripples, samples, points[..., samples], rays[..., samples], depth[..., samples], pixel
                )
        return Traced(points, normal, albedo, direction, depth, object_id, surface)


def trace(world: World, height: int, width: int, supersample: int) -> Traced:
    """The nearest surface along every sample's ray, over all frames."""
    return Tracer(world, height, width, supersample).at(slice(None))


def nearest(
    world: World, origin: np.ndarray, direction: np.ndarray, grid: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first surface along rays from ``origin [3, T' or 1, 1]`` along ``direction [3, T' or 1, S]``.

    ``grid`` (rows, columns) says that these are the camera's own rays in row-major order: things are then looked for
    only where they can be.

    Returns ray parameters ``[T', S]`` (inf at the sky), normals ``[3, T', S]`` and indices into ``World.things``
    ``[T', S]`` (-1 at the sky).
    """
    things = list(range(len(world.things)))
    hits = _no_hits(world, things, origin, direction)
    if grid is None:
        grid, windows = (1, direction.shape[2]), dict.fromkeys(things, whole((1, direction.shape[2])))
    else:
        windows = windows_of(world, things, grid)
    _meet(world, origin, direction, hits, windows, grid)
    return hits


def whole(grid: tuple[int, int]) -> Window:
    """The window of all rows and columns."""
    return slice(0, grid[0]), slice(0, grid[1])


def is_empty(window: Window) -> bool:
    """Whether no sample lies in a window."""
    return any(part.start >= part.stop for part in window)


def cut(values: np.ndarray, grid: tuple[int, int], window: Window) -> np.ndarray:
    """View ``[..., rows, columns]`` of the window of ``values [..., S]`` in row-major order of the grid."""
    return values.reshape(*values.shape[:-1], *grid)[..., window[0], window[1]]


def _no_hits(world: World, things: list[int], origin: np.ndarray, direction: np.ndarray) -> Hits:
    """Room for what is met along rays before anything is."""
    moving = any(world.things[index].moves for index in things)
    frames = max(world.frames if moving else 1, origin.shape[1], direction.shape[1])
    shape = (frames, direction.shape[2])
    return np.full(shape, MISS, np.float32), np.zeros((3, *shape), np.float32), np.full(shape, -1, np.int8)


def _meet(world: World, origin: np.ndarray, direction: np.ndarray, hits: Hits, windows: dict[int, Window],
          grid: tuple[int, int]) -> None:
    """Puts what lies nearer than the ``hits`` in their place, among the things of the ``windows`` (by their index)."""
    for index, window in windows.items():
        depth, normal, object_id = (cut(part, grid, window) for part in hits)
        rays = cut(direction, grid, window).reshape(*direction.shape[:2], -1)
        s, n = world.things[index].shape.intersect(origin, rays)
        s = s.reshape(-1, *depth.shape[1:])
        nearer = s < depth
        np.copyto(depth, s, where=nearer)
        n = np.broadcast_to(n, (3, s.shape[0], rays.shape[2]))
        np.copyto(normal, n.reshape(3, *s.shape), where=nearer)
        np.copyto(object_id, np.int8(index), where=nearer)


def windows_of(world: World, things: Sequence[int], grid: tuple[int, int]) -> dict[int, Window]:
    """Rows and columns of the camera's rays that can meet each of the things, by their index; no empty ones."""
    windows = dict.fromkeys(things, whole(grid))
    solid = {index: shape for index in things if not isinstance(shape := world.things[index].shape, Plane)}
    if solid:
        frames = max(shape.center.shape[1] for shape in solid.values())
        hulls = corners(*bounds_of(list(solid.values()), frames))
        windows |= dict(zip(solid, world.camera.windows(hulls, *grid), strict=True))
    return {index: window for index, window in windows.items() if not is_empty(window)}
