"""One clip: its scene, its frames and its exact ground truth."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.light_scenes import constant, sundial, sunrise_room
from data_pipelines.light_scenes.colour import (
    LUMINANCE,
    LUMINANCE_FLOOR,
    correlated_colour_temperature,
    linear_to_srgb,
)
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize, Draw
from data_pipelines.light_scenes.render import render_pieces, surface_flow, to_pixels
from data_pipelines.light_scenes.sweep import sweep_of
from data_pipelines.light_scenes.world import World

DEFAULT_SIZE = ClipSize()
FAMILIES = ("sunrise_room", "sundial", "constant")


@dataclass(frozen=True)
class ClipSpec:
    """Names a clip. Clips of the same family, scene, split and seed share everything but the signs.

    Attributes:
      family: one of ``FAMILIES``.
      scene: index of the scene within its family and split.
      exposure_change: +1 brightens, -1 darkens, 0 steady (``sunrise_room`` takes ±1, the others 0).
      sweep: +1 the patch or shadow moves to the right in the frame, -1 to the left (``constant``: 0).
      pan: +1 the camera turns to the right, -1 to the left (``constant`` alone, else 0).
      split: one of ``SPLITS``; ``test`` draws from parameter bands that the others never use.
      seed: seed of the whole data set.
    """

    family: str
    scene: int
    exposure_change: int = 0
    sweep: int = 0
    pan: int = 0
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r}: expected one of {', '.join(FAMILIES)}")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}: expected one of {', '.join(SPLITS)}")
        signs = (self.exposure_change, self.sweep, self.pan)
        moves = {"sunrise_room": (1, 1, 0), "sundial": (0, 1, 0), "constant": (0, 0, 1)}[self.family]
        if tuple(abs(sign) for sign in signs) != moves:
            raise ValueError(
                f"{self.family}: (exposure_change, sweep, pan) = {signs}: expected magnitudes {moves}"
            )

    @property
    def scene_id(self) -> str:
        """What counterfactual clips share: ``family/split/scene``."""
        return f"{self.family}/{self.split}/{self.scene:05d}"


@dataclass(frozen=True)
class Clip:
    """Frames and ground truth of one clip.

    Attributes:
      spec: what was rendered.
      video: ``[T, H, W, 3]`` uint8 sRGB.
      linear: ``[T, H, W, 3]`` float32 linear RGB (may pass 1 where the stored video clips).
      log_luminance: ``[T]`` stops, log2(mean linear luminance + 0.001).
      exposure_slope: stops per second, least squares over ``log_luminance``.
      cct: ``[T]`` kelvin, of the frame's mean linear RGB.
      cct_slope: mired per second, least squares over 1e6 / ``cct``.
      light_cct: ``[T]`` kelvin, of the light itself.
      sweep_rate: frame widths per second, positive to the right; 0 for ``constant``.
      light_direction: ``[T, 3]`` unit vectors to the sun (x right, y away from the viewer, z up).
      visibility: ``[T, H, W]`` float32, share of the sun seen.
      flow: ``[T-1, H, W, 2]`` float32 surface flow (dx, dy) in pixels from frame t to t+1.
    """

    spec: ClipSpec
    video: np.ndarray
    linear: np.ndarray
    log_luminance: np.ndarray
    exposure_slope: float
    cct: np.ndarray
    cct_slope: float
    light_cct: np.ndarray
    sweep_rate: float
    light_direction: np.ndarray
    visibility: np.ndarray
    flow: np.ndarray


def build_world(spec: ClipSpec, size: ClipSize = DEFAULT_SIZE) -> World:
    """The world of a clip: shapes, materials, camera and light over its frames."""
    key = (spec.seed, SPLITS.index(spec.split), FAMILIES.index(spec.family), spec.scene)
    draw = Draw(key, held_out=spec.split == "test")
    if spec.family == "sunrise_room":
        return sunrise_room.world(draw, size, spec.exposure_change, spec.sweep)
    if spec.family == "sundial":
        return sundial.world(draw, size, spec.sweep)
    return constant.world(draw, size, spec.pan)


def slope(values: np.ndarray, fps: float) -> float:
    """Least-squares slope per second of ``values [T]``; 0 for a single frame."""
    if len(values) < 2:
        return 0.0
    seconds = np.arange(len(values)) / fps
    seconds = seconds - seconds.mean()
    return float((seconds * values).sum() / (seconds**2).sum())


def render_clip(spec: ClipSpec, size: ClipSize = DEFAULT_SIZE) -> Clip:
    """Frames and ground truth of ``spec``; the same arguments give the same bytes."""
    world = build_world(spec, size)
    linear = np.empty((size.frames, size.height, size.width, 3), np.float32)
    visibility = np.empty(linear.shape[:3], np.float32)
    video = np.empty(linear.shape, np.uint8)
    for frames, layers in render_pieces(world, size):
        linear[frames] = np.moveaxis(to_pixels(layers.linear, size), 0, -1)
        visibility[frames] = to_pixels(layers.visibility, size)
        video[frames] = np.round(linear_to_srgb(linear[frames]) * np.float32(255))
    mean = linear.mean((1, 2), dtype=np.float64)  # [T, 3]
    log_luminance = np.log2(mean @ LUMINANCE + LUMINANCE_FLOOR)
    cct = correlated_colour_temperature(mean)
    flow = surface_flow(world, size)
    rate = 0.0 if spec.family == "constant" else sweep_of(linear @ LUMINANCE, flow, size.fps).rate
    return Clip(
        spec=spec,
        video=video,
        linear=linear,
        log_luminance=log_luminance.astype(np.float32),
        exposure_slope=slope(log_luminance, size.fps),
        cct=cct.astype(np.float32),
        cct_slope=slope(1e6 / cct, size.fps),
        light_cct=world.light.kelvin.astype(np.float32),
        sweep_rate=rate,
        light_direction=world.light.toward_sun.astype(np.float32),
        visibility=visibility,
        flow=flow,
    )
