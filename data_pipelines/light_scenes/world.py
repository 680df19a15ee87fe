"""What a scene is made of: surfaces with their material, a camera, a sun or a lamp, and an ambient light."""

from dataclasses import dataclass, field, replace

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.geometry import Box, Cylinder, Plane, Sphere, Window
from data_pipelines.light_scenes.water import Ripples, Sky


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
    """A shape with its material.

    Attributes:
      shape: its ``center [3, T]`` has one entry unless it moves.
      casts: whether it throws a shadow (a lamp's own post does not).
      glow: ``[3]`` linear RGB that it gives off: it is then seen as this light alone.
      ripples: waves that tilt its normals; of a water surface.
    """

    shape: Plane | Box | Cylinder | Sphere
    material: Material
    casts: bool = True
    glow: np.ndarray | None = None
    ripples: Ripples | None = None

    @property
    def moves(self) -> bool:
        return not isinstance(self.shape, Plane) and self.shape.center.shape[1] > 1

    def at(self, frames: slice) -> "Thing":
        """The thing over some of the frames."""
        thing = self if self.ripples is None else replace(self, ripples=self.ripples.at(frames))
        if isinstance(thing.shape, Plane) or not thing.moves:
            return thing
        return replace(thing, shape=replace(thing.shape, center=thing.shape.center[:, frames]))

    def steps(self) -> np.ndarray:
        """What the shape moves by from each frame to the next, ``[3, T-1]`` meters, ``[3, 1]`` if it is still."""
        if isinstance(self.shape, Plane) or not self.moves:
            return np.zeros((3, 1))
        return np.diff(self.shape.center, axis=1)


@dataclass(frozen=True)
class Light:
    """The light of a clip of ``T`` frames: a sun, or a lamp where ``position`` is given.

    Attributes:
      toward_sun: ``[T, 3]`` unit vectors from the scene to the light (from the foot of what it is watched for, if
        that is a lamp).
      direct: ``[T, 3]`` linear RGB irradiance on a surface that faces the sun; of a lamp, at a distance of 1 m.
      sky, ground: ``[T, 3]`` ambient irradiance on a surface that faces up / down; linear between.
      kelvin: ``[T]`` color temperature of the light.
      sun_radius: angular radius of the sun, radians (larger than the real one: soft edges at 64 pixels); radius of
        the lamp, a level disc, in meters.
      position: ``[T, 3]`` of the lamp, meters; its light falls with the square of the distance.
    """

    toward_sun: np.ndarray
    direct: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    kelvin: np.ndarray
    sun_radius: float
    position: np.ndarray | None = None

    def at(self, frames: slice) -> "Light":
        """The light over some of the frames."""
        return Light(
            toward_sun=self.toward_sun[frames],
            direct=self.direct[frames],
            sky=self.sky[frames],
            ground=self.ground[frames],
            kelvin=self.kelvin[frames],
            sun_radius=self.sun_radius,
            position=None if self.position is None else self.position[frames],
        )

    def to_center(self, points: np.ndarray) -> np.ndarray:
        """From ``points [3, T', S]`` to the light's center, float32: ``[3, T, S]`` meters to a lamp (whose rays end at
        1), ``[3, T, 1]`` unit vectors to a sun."""
        if self.position is None:
            return self.toward_sun.T.astype(np.float32)[:, :, None]
        return self.position.T.astype(np.float32)[:, :, None] - points

    @property
    def reach(self) -> np.float32:
        """Parameter at which a ray along ``to_center`` ends."""
        return np.float32(np.inf if self.position is None else 1.0)


@dataclass(frozen=True)
class World:
    """A scene over ``T`` frames.

    Attributes:
      window: the only way in for the sun, where there is one.
      sky: what a ray that meets no surface sees; without it the world has to be closed.
      foot: ``[3, T]`` (``[3, 1]`` if still) meters where the caster that the scene is about stands.
      parameters: what was drawn, as (value, low, high).
    """

    things: tuple[Thing, ...]
    camera: Camera
    light: Light
    window: Window | None = None
    parameters: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    sky: Sky | None = None
    foot: np.ndarray | None = None

    @property
    def frames(self) -> int:
        return self.light.toward_sun.shape[0]

    @property
    def stands_still(self) -> bool:
        """Whether camera and things keep their places, so that one tracing serves every frame."""
        return self.camera.stands_still and not any(thing.moves for thing in self.things)

    @property
    def casting(self) -> list[Thing]:
        """The things that throw shadows; planes enclose the scene and throw none."""
        return [thing for thing in self.things if thing.casts and not isinstance(thing.shape, Plane)]

    @property
    def casters(self) -> list[Box | Cylinder | Sphere]:
        """The shapes of what throws shadows."""
        return [thing.shape for thing in self.casting if not isinstance(thing.shape, Plane)]

    def at(self, frames: slice) -> "World":
        """The world over some of the frames."""
        return replace(
            self,
            things=tuple(thing.at(frames) for thing in self.things),
            camera=self.camera.at(frames),
            light=self.light.at(frames),
            sky=None if self.sky is None else self.sky.at(frames),
            foot=self.foot if self.foot is None or self.foot.shape[1] == 1 else self.foot[:, frames],
        )
