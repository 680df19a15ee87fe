"""How much of the sun or lamp each sample sees: past the things that cast shadows, through a window's panes.

Casters are looked at only in the part of the picture that their shadows can reach.
"""

import numpy as np

from data_pipelines.light_scenes.geometry import Plane, bounds_of, corners
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.trace import Window, cut, is_empty, whole
from data_pipelines.light_scenes.world import World

LIFT = np.float32(2e-3)
"""Meters above its surface that a point looks at the light from, so that the surface does not hide it."""


class Shadows:
    """How much of the light is seen from the points ``[3, T', S]`` that a world's camera sees."""

    def __init__(self, world: World, points: np.ndarray, size: ClipSize) -> None:
        self._world, self._points, self._size = world, points, size
        self._grid = (size.height * size.supersample, size.width * size.supersample)
        self._windows = shadow_windows(world, self._grid) if world.light.direct.any() else []

    def visibility(self, normal: np.ndarray, soft: bool) -> np.ndarray:
        """Share of the light ``[T, S]`` float32 seen by surfaces of ``normal [3, T', S]``: ``soft``, or its center's.

        Each of a pixel's samples looks at its own points of the light's disc; together they are as many as the
        penumbra, which widens with the picture, needs to look smooth.
        """
        world, light, k = self._world, self._world.light, self._size.supersample
        radius = light.sun_radius if soft else 0.0
        lifted = self._points + LIFT * normal
        share = np.ones((world.frames, lifted.shape[2]), np.float32)
        if world.window is not None:
            toward = light.toward_sun.T.astype(np.float32)[:, :, None]
            share = world.window.lets_through(lifted, toward, np.tan(radius))
        if not self._windows:
            return share
        rows, columns = (np.arange(n) % k for n in self._grid)
        order = rows[:, None] * k + columns  # which of its pixel's samples each one is
        turns = max(1, max(4, self._size.width // 16) // k**2) if radius > 0 else 1
        disc = _disc(world, radius, turns * k**2)
        seen = np.zeros_like(share)
        for turn in range(turns):
            blocked = np.zeros(share.shape, bool)
            for caster, window in zip(world.casters, self._windows, strict=True):
                if is_empty(window):
                    continue
                points = cut(lifted, self._grid, window).reshape(*lifted.shape[:2], -1)
                rays = disc if radius == 0 else disc[:, :, order[window].reshape(-1) + turn * k**2]
                if light.position is not None:
                    rays = rays - points
                view = cut(blocked, self._grid, window)
                view |= caster.blocks(points, rays, light.reach).reshape(view.shape)
            seen += ~blocked
        return share * (seen / np.float32(turns))


def shadow_windows(world: World, grid: tuple[int, int]) -> list[Window]:
    """Rows and columns of the camera's rays where the shadow of each of ``World.casters`` can fall.

    A shadow lies within the hull of the caster and of where rays from the light past its corners meet the ground,
    below which nothing is seen.
    """
    grounds = [thing.shape.offset for thing in world.things
               if isinstance(thing.shape, Plane) and thing.shape.axis == 2 and thing.shape.sign > 0]
    if not grounds or not world.casters:
        return [whole(grid)] * len(world.casters)
    ground = min(grounds) - LIFT
    low, high = bounds_of(world.casters, world.frames)
    low, high = low - LIFT, high + LIFT
    low[2] = np.maximum(low[2], ground)
    top = corners(low, high)[..., None]  # [3, T, n, 8, 1]
    light = world.light
    # The corners of a box around the light's disc, as seen from the corners of the casters.
    extent = np.full(3, np.tan(light.sun_radius)) if light.position is None else np.array([1, 1, 0]) * light.sun_radius
    spread = corners(-extent, extent)[:, None]
    center = light.toward_sun.T if light.position is None else light.position.T
    rays = (center[:, :, None] + spread)[:, :, None, None]  # [3, T, 1, 1, 8]
    rays = np.broadcast_to(rays, (*top.shape[:-1], 8)) if light.position is None else rays - top  # [3, T, n, 8, 8]
    level = (rays[2] < 1e-3).any((0, 2, 3))
    feet = top - rays * ((top[2] - ground) / np.maximum(rays[2], 1e-3))
    hulls = np.concatenate([top, feet], -1).reshape(*low.shape, -1)
    windows = world.camera.windows(hulls, *grid)
    return [whole(grid) if anywhere else window for anywhere, window in zip(level, windows, strict=True)]


def _disc(world: World, radius: float, count: int) -> np.ndarray:
    """``[3, T, count]`` float32 directions to points of the sun, or points of the lamp's level disc in meters.

    Points follow Vogel's spiral, so that neighboring samples share the disc evenly; ``radius`` 0 has the center alone.
    """
    light = world.light
    center = light.toward_sun.T if light.position is None else light.position.T
    if radius == 0:
        return center[:, :, None].astype(np.float32)
    order = np.arange(count)
    r = np.sqrt((order + 0.5) / count) * (np.tan(radius) if light.position is None else radius)
    angle = order * np.pi * (3 - np.sqrt(5))
    if light.position is not None:
        points = np.stack([r * np.cos(angle), r * np.sin(angle), np.zeros(count)])
        return (center[:, :, None] + points[:, None]).astype(np.float32)
    side = np.stack([center[1], -center[0], np.zeros_like(center[0])])
    side = side / np.maximum(np.sqrt((side**2).sum(0)), 1e-9)
    other = np.cross(center, side, axis=0)
    points = side[:, :, None] * (r * np.cos(angle)) + other[:, :, None] * (r * np.sin(angle))
    return (center[:, :, None] + points).astype(np.float32)
