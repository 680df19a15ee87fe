"""Paired clips that differ in one factor, on which a metric of light shows what it ranks.

A clip is a scene whose light is sound (``SCENES``), at a level (``LEVELS``), with a fault laid over it or none: the
frame's linear light times a gain per frame. The same seed gives the same scene under every fault, so two clips that
differ in their fault differ in nothing else. Pictures are evaluated in continuous coordinates, not shifted pixels:
flow is exact at any speed, and no frame is clipped or quantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wanjax.light.photometry import linear_to_srgb

__all__ = ["LEVELS", "SCENES", "Fault", "Scene", "make_scene"]

SCENES = ("constant", "pan", "object", "shadow", "ramp", "sunrise")
"""What is seen under sound light: nothing moves; the camera pans; an object crosses; its shadow alone crosses; the
exposure rises or falls steadily; the sun rises (exposure, colour, and patches of a window or of blinds that slide)."""

LEVELS = {"bright": 1.0, "night": 0.06}
"""Light on the scene; mean luminance is near 0.25 at 1."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with the light of the whole frame.

    Attributes:
      kind: ``none``; ``flicker``: a gain of 1 + ``size`` times white Gaussian noise in every frame; ``step``: the
        gain 1 + ``size`` from one frame on; ``flash``: that gain for one frame.
      size: relative change of linear light.
    """

    kind: str = "none"
    size: float = 0.0

    def gains(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """[T] factors of linear light; step and flash fall in the middle half of the clip."""
        gains = np.ones(frames)
        at = int(rng.integers(frames // 4, max(frames - frames // 4, frames // 4 + 1)))
        if self.kind == "flicker":
            gains += self.size * rng.standard_normal(frames)
        elif self.kind == "step":
            gains[at:] += self.size
        elif self.kind == "flash":
            gains[at] += self.size
        elif self.kind != "none":
            raise ValueError(f"fault = {self.kind!r}: expected none, flicker, step or flash")
        return np.clip(gains, 0.05, None)


@dataclass(frozen=True)
class Scene:
    """A scene under sound light, and its exact motion.

    Attributes:
      linear: [T, H, W, 3] linear light.
      forward: [T-1, H, W, 2] surface flow in pixels from frame t to t+1.
      backward: [T-1, H, W, 2] from frame t+1 to t.
      seed: what it was drawn from, and its faults are drawn from.
    """

    linear: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    seed: int

    @property
    def flow(self) -> tuple[np.ndarray, np.ndarray]:
        """As :func:`wanjax.light.metrics.measure` takes it."""
        return self.forward, self.backward

    def video(self, fault: Fault) -> np.ndarray:
        """[T, H, W, 3] sRGB, float32, not quantised: the scene under this fault."""
        gains = fault.gains(len(self.linear), np.random.default_rng([self.seed, 1]))
        return linear_to_srgb(self.linear * gains[:, None, None, None]).astype(np.float32)


def make_scene(
    name: str, level: str, *, seed: int, frames: int = 25, height: int = 96, width: int = 128
) -> Scene:
    """A scene of ``SCENES`` at a level of ``LEVELS``.

    Raises:
      ValueError: a name or level that is none of those.
    """
    if name not in SCENES or level not in LEVELS:
        raise ValueError(f"{name!r} at {level!r}: expected one of {SCENES} and one of {tuple(LEVELS)}")
    rng = np.random.default_rng([SCENES.index(name), seed])
    world = _World.draw(rng, height, width)
    render = _RENDER[name](rng, world, frames)
    pictures, motion = zip(*(render(t) for t in range(frames)), strict=True)
    # Motion is steady, so what moves by v to the next frame came by -v from the last.
    moves = np.stack(motion)
    return Scene(LEVELS[level] * np.stack(pictures), moves[:-1], -moves[1:], seed)


_Render = Callable[[int], tuple[np.ndarray, np.ndarray]]  # t -> linear [H, W, 3], velocity [H, W, 2] in pixels


@dataclass(frozen=True)
class _World:
    """Reflectance over the plane: waves of many lengths, with round things of other colours on it."""

    height: int
    width: int
    waves: np.ndarray  # [n, 4]: cycles per pixel along x and y, phase, amplitude
    things: np.ndarray  # [m, 7]: centre x and y, radius, edge in pixels, RGB factor

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> _World:
        turn = rng.uniform(0, 2 * np.pi, 24)
        cycles = np.exp(rng.uniform(math.log(0.008), math.log(0.2), 24))
        # Contrast falls with frequency, as in photographs.
        size = 0.3 * (cycles / 0.008) ** -0.5
        waves = np.stack([cycles * np.cos(turn), cycles * np.sin(turn), rng.random(24), size], axis=1)
        side = max(height, width)
        things = np.column_stack(
            [
                rng.uniform(-1, 2, (14, 2)) * (width, height),
                rng.uniform(0.03, 0.13, 14) * side,
                rng.uniform(1, 3, 14),
                np.exp2(rng.uniform(-1.5, 1.2, (14, 1)) + rng.uniform(-0.4, 0.4, (14, 3))),
            ]
        )
        return cls(height, width, waves, things)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[: self.height, : self.width].astype(np.float64)
        return x, y

    def reflectance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """[H, W, 3] in 0.02 to 0.6 at the points x, y [H, W]."""
        log = np.zeros(x.shape)
        for fx, fy, phase, size in self.waves:
            log += size * np.sin(2 * np.pi * (fx * x + fy * y + phase))
        out = (0.23 * np.exp2(log))[..., None] * np.array([1.05, 1.0, 0.92])
        for cx, cy, radius, edge, *colour in self.things:
            inside = _inside(radius - np.hypot(x - cx, y - cy), edge)[..., None]
            out = out * (1 + inside * (np.array(colour) - 1))
        return 0.58 * np.tanh(out / 0.58) + 0.02


def _inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 where ``distance`` to a border in pixels is positive, 0 where it is negative, smooth over ``edge`` pixels."""
    s = np.clip(distance / edge + 0.5, 0, 1)
    return s * s * (3 - 2 * s)


def _constant(rng: np.random.Generator, world: _World, frames: int) -> _Render:
    picture = world.reflectance(*world.grid())
    still = np.zeros((world.height, world.width, 2), np.float32)
    return lambda t: (picture, still)


def _pan(rng: np.random.Generator, world: _World, frames: int) -> _Render:
    x, y = world.grid()
    speed, turn = rng.uniform(0.5, 3), rng.uniform(0, 2 * np.pi)
    vx, vy = speed * math.cos(turn), speed * math.sin(turn)
    velocity = np.broadcast_to(np.array([vx, vy], np.float32), (*x.shape, 2))
    return lambda t: (world.reflectance(x - vx * t, y - vy * t), velocity)


def _crossing(
    rng: np.random.Generator, world: _World, frames: int
) -> tuple[Callable[[int], np.ndarray], np.ndarray, float]:
    """Distance to the border [H, W] at frame t of an ellipse that crosses; its velocity; its edge in pixels."""
    x, y = world.grid()
    side = max(x.shape)
    radius = rng.uniform(0.1, 0.22, 2) * side
    velocity = rng.uniform(0.5, 3) * rng.choice([-1, 1]) * np.array([1, rng.uniform(-0.3, 0.3)])
    # It is in the middle of the frame halfway through the clip; the fast ones enter and leave.
    centre = np.array([world.width, world.height]) * rng.uniform(0.3, 0.7, 2) - velocity * frames / 2

    def border(t: int) -> np.ndarray:
        dx, dy = (x - centre[0] - velocity[0] * t) / radius[0], (y - centre[1] - velocity[1] * t) / radius[1]
        return (1 - np.hypot(dx, dy)) * radius.min()

    return border, velocity, float(rng.uniform(1, 2))


def _object(rng: np.random.Generator, world: _World, frames: int) -> _Render:
    x, y = world.grid()
    border, velocity, edge = _crossing(rng, world, frames)
    cloth = _World.draw(rng, world.height, world.width)
    brightness = np.exp2(rng.uniform(-1.5, 1.0))
    ground = world.reflectance(x, y)

    def render(t: int) -> tuple[np.ndarray, np.ndarray]:
        distance = border(t)
        cover = _inside(distance, edge)[..., None]
        own = np.clip(brightness * cloth.reflectance(x - velocity[0] * t, y - velocity[1] * t), 0, 0.6)
        moves = np.where(distance[..., None] > 0, velocity, 0).astype(np.float32)
        return ground + cover * (own - ground), moves

    return render


def _shadow(rng: np.random.Generator, world: _World, frames: int) -> _Render:
    border, _, _ = _crossing(rng, world, frames)
    penumbra, ambient = rng.uniform(2, 8), rng.uniform(0.2, 0.5)
    ground = world.reflectance(*world.grid())
    still = np.zeros((world.height, world.width, 2), np.float32)

    def render(t: int) -> tuple[np.ndarray, np.ndarray]:
        visible = 1 - _inside(border(t), penumbra)[..., None]
        return ground * (ambient + (1 - ambient) * visible), still

    return render


def _ramp(rng: np.random.Generator, world: _World, frames: int) -> _Render:
    picture = world.reflectance(*world.grid())
    still = np.zeros((world.height, world.width, 2), np.float32)
    rise = rng.uniform(0.5, 2.0) * rng.choice([-1, 1])  # stops over the clip
    light = np.exp2(rise * np.linspace(0, 1, frames) - max(rise, 0))
    return lambda t: (picture * light[t], still)


def _sunrise(rng: np.random.Generator, world: _World, frames: int) -> _Render:
    x, y = world.grid()
    picture = world.reflectance(x, y)
    still = np.zeros((world.height, world.width, 2), np.float32)
    rate = rng.uniform(0.3, 1.5) * rng.choice([-1, 1])  # pixels per frame
    size, penumbra = rng.uniform(0.3, 0.45) * world.width, rng.uniform(2, 6)
    left, top = rng.uniform(0.25, 0.45) * world.width - rate * frames / 2, rng.uniform(0.15, 0.35) * world.height
    panes = [(0.0, 1.0)] if rng.random() < 0.5 else [(0.25 * k, 0.14) for k in range(4)]  # a window, or blinds
    rise = rng.uniform(0.7, 2.0)  # stops over the clip
    blue, warm = np.array([0.75, 0.95, 1.25]), np.array([1.15, 0.95, 0.7])

    def render(t: int) -> tuple[np.ndarray, np.ndarray]:
        age = t / max(frames - 1, 1)
        risen = 2.0 ** (rise * (age - 1))
        high = np.minimum(y - top, top + 0.5 * world.height - y)
        sun = np.zeros(x.shape)
        for start, wide in panes:
            edge = left + rate * t + start * size
            sun += _inside(np.minimum(high, np.minimum(x - edge, edge + wide * size - x)), penumbra)
        colour = 0.8 * risen * (blue + age * (warm - blue))
        return 0.65 * picture * (0.25 + 0.35 * risen + sun[..., None] * colour), still

    return render


_RENDER: dict[str, Callable[[np.random.Generator, _World, int], _Render]] = {
    "constant": _constant,
    "pan": _pan,
    "object": _object,
    "shadow": _shadow,
    "ramp": _ramp,
    "sunrise": _sunrise,
}
