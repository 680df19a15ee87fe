"""A pinhole camera in the scenes' frame: x to the right, y away from the viewer, z up, in meters."""

from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.light_scenes.geometry import dot


@dataclass(frozen=True)
class Camera:
    """A pinhole camera for ``T`` frames.

    Attributes:
      position: ``[3]`` meters, or ``[3, T]`` of a camera that travels.
      yaw: ``[T]`` radians, positive turns to the right; one entry for a camera that does not turn.
      pitch: radians, positive looks down.
      half_width: tangent of half the horizontal field of view.
    """

    position: tuple[float, float, float] | np.ndarray
    yaw: np.ndarray
    pitch: float
    half_width: float

    @property
    def turns(self) -> bool:
        return len(self.yaw) > 1

    @property
    def stands_still(self) -> bool:
        return not self.turns and self.origin().shape[1] == 1

    def origin(self) -> np.ndarray:
        """Position ``[3, T']``, T' = 1 unless the camera travels."""
        return np.asarray(self.position, np.float64).reshape(3, -1)

    def at(self, frames: slice) -> "Camera":
        """The camera over some of the frames."""
        origin = self.origin()
        return replace(
            self,
            position=self.position if origin.shape[1] == 1 else origin[:, frames],
            yaw=self.yaw[frames] if self.turns else self.yaw,
        )

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors right, up and forward, each ``[3, T']`` float64, T' = 1 unless the camera turns."""
        sin_y, cos_y = np.sin(self.yaw), np.cos(self.yaw)
        sin_p, cos_p = np.sin(self.pitch), np.cos(self.pitch)
        zero = np.zeros_like(sin_y)
        right = np.stack([cos_y, -sin_y, zero])
        forward = np.stack([sin_y * cos_p, cos_y * cos_p, zero - sin_p])
        up = np.stack([sin_y * sin_p, cos_y * sin_p, zero + cos_p])
        return right, up, forward

    def poses(self, frames: int) -> np.ndarray:
        """Camera to world, ``[frames, 3, 4]`` float64: columns right, up, forward and position (meters)."""
        columns = [np.broadcast_to(part, (3, frames)) for part in (*self.axes(), self.origin())]
        return np.stack(columns).transpose(2, 1, 0)

    def rays(self, height: int, width: int, supersample: int) -> np.ndarray:
        """Directions ``[3, T', S]`` float32 of the samples in row-major order, S = height·width·supersample².

        Their component along the camera's forward axis is 1, so a ray's parameter is the depth.
        """
        rows, columns = height * supersample, width * supersample
        u = ((np.arange(columns) + 0.5) / columns * 2 - 1) * self.half_width
        v = (1 - (np.arange(rows) + 0.5) / rows * 2) * self.half_width * height / width
        u, v = np.meshgrid(u, v)
        right, up, forward = (a[:, :, None] for a in self.axes())
        return (forward + u.reshape(1, 1, -1) * right + v.reshape(1, 1, -1) * up).astype(np.float32)

    def project(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """Pixel coordinates ``[2, T, S]`` (x, y; whole at the centers of pixels) of ``points [3, T, S]``."""
        offset = points - self.origin()[:, :, None]
        right, up, forward = (a[:, :, None] for a in self.axes())
        depth = dot(offset, forward)
        u = dot(offset, right) / depth / self.half_width
        v = dot(offset, up) / depth / (self.half_width * height / width)
        return np.stack([(u + 1) * width / 2 - 0.5, (1 - v) * height / 2 - 0.5])

    def windows(self, points: np.ndarray, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns that can see the convex hull of each of ``n`` sets of k ``points [3, T', n, k]``, in any of
        the frames.

        A hull that reaches behind the camera can be seen anywhere.
        """
        flat = points.reshape(3, points.shape[1], -1)
        ahead = dot(flat - self.origin()[:, :, None], self.axes()[2][:, :, None])
        frames = ahead.shape[0]
        behind = ahead.reshape(frames, *points.shape[2:]).min((0, 2)) < 0.05
        seen = self.project(flat, height, width).reshape(2, frames, *points.shape[2:])
        limit = np.array([[width], [height]])
        first = np.clip(np.floor(seen.min((1, 3))), 0, limit).astype(int)
        last = np.clip(np.ceil(seen.max((1, 3))) + 1, 0, limit).astype(int)
        first[:, behind], last[:, behind] = 0, limit
        return [
            (slice(int(top), int(bottom)), slice(int(left), int(right)))
            for (left, top), (right, bottom) in zip(first.T, last.T, strict=True)
        ]
