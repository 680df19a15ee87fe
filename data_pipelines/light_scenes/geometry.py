"""Planes, boxes, upright cylinders and spheres: where a ray meets them, whether they block the way to a light.

Points, directions and normals are ``[3, T, S]`` float32 (frames, samples), in meters; T may be 1 wherever
nothing moves. An object's ``center`` may move: ``[3, T]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MISS = np.float32(np.inf)
_TINY = np.float32(1e-9)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar product over the first axis; written out, since a sum over a short axis is slow."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The 8 corners ``[3, ..., 8]`` of boxes along the axes from ``low`` to ``high``, ``[3, ...]`` each."""
    ends = (np.arange(8) >> np.arange(3)[:, None] & 1).reshape(3, *(1,) * (low.ndim - 1), 8)
    return np.where(ends, high[..., None], low[..., None])


def _safe_inverse(x: np.ndarray) -> np.ndarray:
    return np.float32(1) / np.where(np.abs(x) < _TINY, _TINY, x)


@dataclass(frozen=True)
class Plane:
    """The plane ``point[axis] = offset``; its normal points along ``axis`` with the given ``sign``."""

    axis: int
    offset: float
    sign: float

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ray parameter ``[T, S]`` (inf where it misses) and normals ``[3, 1, 1]``."""
        s = (np.float32(self.offset) - origin[self.axis]) * _safe_inverse(direction[self.axis])
        normal = np.zeros((3, 1, 1), np.float32)
        normal[self.axis] = self.sign
        return np.where(s > 0, s, MISS), normal


@dataclass(frozen=True)
class Box:
    """A box with its edges along the axes: center ``[3, T]`` and half sizes ``[3]``."""

    center: np.ndarray
    half: tuple[float, float, float]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest coordinates, ``[3, T]`` each."""
        half = np.asarray(self.half).reshape(3, 1)
        return self.center - half, self.center + half

    def _slabs(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ray parameters at which each axis's slab is entered and left, ``[3, T, S]`` each."""
        inverse = _safe_inverse(direction)
        middle = (self.center.astype(np.float32)[:, :, None] - origin) * inverse
        reach = np.abs(inverse) * np.asarray(self.half, np.float32).reshape(3, 1, 1)
        return middle - reach, middle + reach

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ray parameter ``[T, S]`` (inf where it misses) and outward normals ``[3, T, S]``."""
        near, far = self._slabs(origin, direction)
        enter = np.maximum(np.maximum(near[0], near[1]), near[2])
        leave = np.minimum(np.minimum(far[0], far[1]), far[2])
        hit = (enter < leave) & (enter > 0)
        normal = np.where(near == enter, -np.sign(direction), np.float32(0)).astype(np.float32)
        return np.where(hit, enter, MISS), normal

    def blocks(self, point: np.ndarray, toward: np.ndarray, reach: np.float32 = MISS) -> np.ndarray:
        """Whether the ray from ``point`` ``toward`` a light meets the box before ``reach``, bool ``[T, S]``."""
        near, far = self._slabs(point, toward)
        enter = np.maximum(np.maximum(near[0], near[1]), np.maximum(near[2], 0))
        return enter < np.minimum(np.minimum(np.minimum(far[0], far[1]), far[2]), reach)


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder: center of its foot ``[3, T]``, radius and height in meters."""

    center: np.ndarray
    radius: float
    height: float

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest coordinates, ``[3, T]`` each."""
        low = np.array([[-self.radius], [-self.radius], [0.0]])
        return self.center + low, self.center + np.array([[self.radius], [self.radius], [self.height]])

    def _interval(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, ...]:
        """Entry and exit of the round side and of the slab between the caps, ``[T, S]`` each."""
        center = self.center.astype(np.float32)[:, :, None]
        x, y = origin[0] - center[0], origin[1] - center[1]
        a = direction[0] ** 2 + direction[1] ** 2
        b = x * direction[0] + y * direction[1]
        c = x * x + y * y - np.float32(self.radius) ** 2
        root = b * b - a * c
        inverse = _safe_inverse(a)
        reach = np.sqrt(np.maximum(root, 0)) * inverse
        middle = -b * inverse
        side_near = np.where(root > 0, middle - reach, MISS)
        side_far = np.where(root > 0, middle + reach, -MISS)
        inverse = _safe_inverse(direction[2])
        first = (center[2] - origin[2]) * inverse
        second = (center[2] + np.float32(self.height) - origin[2]) * inverse
        return side_near, side_far, np.minimum(first, second), np.maximum(first, second)

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ray parameter ``[T, S]`` (inf where it misses) and outward normals ``[3, T, S]``."""
        side_near, side_far, cap_near, cap_far = self._interval(origin, direction)
        enter = np.maximum(side_near, cap_near)
        hit = (enter < np.minimum(side_far, cap_far)) & (enter > 0)
        s = np.where(hit, enter, 0)
        center = self.center.astype(np.float32)[:, :, None]
        on_cap = cap_near >= side_near
        x, y = origin[0] + s * direction[0] - center[0], origin[1] + s * direction[1] - center[1]
        around = np.where(on_cap, 0, _safe_inverse(np.sqrt(x * x + y * y)))
        normal = np.stack([x * around, y * around, np.where(on_cap, -np.sign(direction[2]), 0)])
        normal = normal.astype(np.float32)
        return np.where(hit, enter, MISS), normal

    def blocks(self, point: np.ndarray, toward: np.ndarray, reach: np.float32 = MISS) -> np.ndarray:
        """Whether the ray from ``point`` ``toward`` a light meets the cylinder before ``reach``, bool ``[T, S]``."""
        side_near, side_far, cap_near, cap_far = self._interval(point, toward)
        enter = np.maximum(np.maximum(side_near, cap_near), 0)
        return enter < np.minimum(np.minimum(side_far, cap_far), reach)


@dataclass(frozen=True)
class Sphere:
    """A sphere: center ``[3, T]`` and radius in meters."""

    center: np.ndarray
    radius: float

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest coordinates, ``[3, T]`` each."""
        return self.center - self.radius, self.center + self.radius

    def _interval(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ray parameters ``[T, S]`` of entry and exit; inf and -inf where it misses."""
        x, y, z = (origin[i] - self.center.astype(np.float32)[i][:, None] for i in range(3))
        a = direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2
        b = x * direction[0] + y * direction[1] + z * direction[2]
        root = b * b - a * (x * x + y * y + z * z - np.float32(self.radius) ** 2)
        reach = np.sqrt(np.maximum(root, 0))
        return np.where(root > 0, (-b - reach) / a, MISS), np.where(root > 0, (reach - b) / a, -MISS)

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ray parameter ``[T, S]`` (inf where it misses) and outward normals ``[3, T, S]``."""
        enter, _ = self._interval(origin, direction)
        hit = (enter > 0) & (enter < MISS)
        s = np.where(hit, enter, 0)
        center = self.center.astype(np.float32)
        normal = np.stack([origin[i] + s * direction[i] - center[i][:, None] for i in range(3)])
        length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
        return np.where(hit, enter, MISS), normal / np.maximum(length, _TINY)

    def blocks(self, point: np.ndarray, toward: np.ndarray, reach: np.float32 = MISS) -> np.ndarray:
        """Whether the ray from ``point`` ``toward`` a light meets the sphere before ``reach``, bool ``[T, S]``."""
        enter, leave = self._interval(point, toward)
        return np.maximum(enter, 0) < np.minimum(leave, reach)


def bounds_of(shapes: Sequence[Box | Cylinder | Sphere], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates ``[3, frames, n]`` of ``n`` shapes."""
    low, high = np.empty((2, 3, frames, len(shapes)))
    for index, shape in enumerate(shapes):
        low[..., index], high[..., index] = shape.bounds()
    return low, high


@dataclass(frozen=True)
class Window:
    """An opening in an endless wall in the plane ``y = offset``: light passes through its panes alone.

    Attributes:
      offset: y of the wall, meters.
      x, z: (low, high) edges of the opening, meters.
      bars: (center, width) of upright bars inside the opening, meters along x.
      slats: (center, width) of level slats, meters along z. Bars and slats lie inside the opening and apart.
    """

    offset: float
    x: tuple[float, float]
    z: tuple[float, float]
    bars: tuple[tuple[float, float], ...] = ()
    slats: tuple[tuple[float, float], ...] = ()

    def lets_through(self, point: np.ndarray, toward: np.ndarray, sun_radius: float) -> np.ndarray:
        """Share ``[T, S]`` of a square sun, half size ``sun_radius`` (tangent), seen from ``point``."""
        s = (np.float32(self.offset) - point[1]) * _safe_inverse(toward[1])
        x = point[0] + s * toward[0]
        z = point[2] + s * toward[2]
        if sun_radius > 0:
            softness = np.float32(1) / np.maximum(2 * np.float32(sun_radius) * np.abs(s), np.float32(1e-6))
        else:
            softness = np.float32(1e9)

        def above(position: np.ndarray, edge: float) -> np.ndarray:
            return np.clip((position - np.float32(edge)) * softness + np.float32(0.5), 0, 1)

        across = above(x, self.x[0]) - above(x, self.x[1])
        for center, width in self.bars:
            across = across - (above(x, center - width / 2) - above(x, center + width / 2))
        along = above(z, self.z[0]) - above(z, self.z[1])
        for center, width in self.slats:
            along = along - (above(z, center - width / 2) - above(z, center + width / 2))
        share = across * along
        return np.where(s > 0, share, 0).astype(np.float32)
