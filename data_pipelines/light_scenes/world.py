"""What a scene is made of: surfaces with their material, a camera, a sun and an ambient light."""

from dataclasses import dataclass, field, replace

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.geometry import Box, Cylinder, Plane, Window


@dataclass(frozen=True)
class Wave:
    """A plane wave of a texture: wave vector in cycles per meter along two axes, phase in cycles, weight."""

    u: float
    v: float
    phase: float
    weight: float


@dataclass(frozen=True)
class Material:
    """Albedo between two linear RGB colors ``[3]``, mixed by smooth waves over two world axes.

    Waves are fixed to the surface: their coordinates are taken relative to the object's center. ``specular``
    is the weight of a Blinn-Phong lobe with exponent ``shininess``.
    """

    low: np.ndarray
    high: np.ndarray
    waves: tuple[Wave, ...] = ()
    axes: tuple[int, int] = (0, 1)
    specular: float = 0.0
    shininess: float = 30.0

    def albedo(self, point: np.ndarray) -> np.ndarray:
        """Albedo ``[3, T, S]`` (or ``[3, 1, 1]``) at points ``[3, T, S]`` relative to the object's center."""
        low = self.low.astype(np.float32).reshape(3, 1, 1)
        if not self.waves:
            return low
        mix = np.float32(0.5)
        for wave in self.waves:
            u, v, phase = (np.float32(2 * np.pi * value) for value in (wave.u, wave.v, wave.phase))
            angle = point[self.axes[0]] * u + (point[self.axes[1]] * v + phase)
            mix = mix + np.float32(0.5 * wave.weight) * np.sin(angle)
        return low + np.clip(mix, 0, 1) * (self.high.astype(np.float32).reshape(3, 1, 1) - low)


@dataclass(frozen=True)
class Thing:
    """A shape with its material. ``velocity`` ``[3]`` in m/s is what the shape's center moves by."""

    shape: Plane | Box | Cylinder
    material: Material
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def at(self, frames: slice) -> "Thing":
        """The thing over some of the frames."""
        if isinstance(self.shape, Plane) or self.shape.center.shape[1] == 1:
            return self
        return replace(self, shape=replace(self.shape, center=self.shape.center[:, frames]))


@dataclass(frozen=True)
class Light:
    """The light of a clip of ``T`` frames.

    Attributes:
      toward_sun: ``[T, 3]`` unit vectors from the scene to the sun.
      direct: ``[T, 3]`` linear RGB irradiance of the sun on a surface facing it.
      sky, ground: ``[T, 3]`` ambient irradiance on a surface that faces up / down; linear between.
      kelvin: ``[T]`` color temperature of the light.
      sun_radius: angular radius of the sun, radians (larger than the real one: soft edges at 64 pixels).
    """

    toward_sun: np.ndarray
    direct: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    kelvin: np.ndarray
    sun_radius: float

    def at(self, frames: slice) -> "Light":
        """The light over some of the frames."""
        return Light(
            toward_sun=self.toward_sun[frames],
            direct=self.direct[frames],
            sky=self.sky[frames],
            ground=self.ground[frames],
            kelvin=self.kelvin[frames],
            sun_radius=self.sun_radius,
        )


@dataclass(frozen=True)
class World:
    """A scene over ``T`` frames; ``window`` is the only way in for the sun where there is one."""

    things: tuple[Thing, ...]
    camera: Camera
    light: Light
    window: Window | None = None
    parameters: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return self.light.toward_sun.shape[0]

    @property
    def stands_still(self) -> bool:
        """Whether camera and things keep their places, so that one tracing serves every frame."""
        return len(self.camera.yaw) == 1 and not any(any(thing.velocity) for thing in self.things)

    def at(self, frames: slice) -> "World":
        """The world over some of the frames."""
        yaw = self.camera.yaw if len(self.camera.yaw) == 1 else self.camera.yaw[frames]
        return replace(
            self,
            things=tuple(thing.at(frames) for thing in self.things),
            camera=replace(self.camera, yaw=yaw),
            light=self.light.at(frames),
        )
