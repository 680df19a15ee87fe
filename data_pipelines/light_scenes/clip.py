"""One clip: its scene, its frames and its exact ground truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipelines.light_scenes.colour import (
    LUMINANCE,
    LUMINANCE_FLOOR,
    correlated_colour_temperature,
    linear_to_srgb,
)
from data_pipelines.light_scenes.families import TABLE, signs_of, variants_of
from data_pipelines.light_scenes.flow import surface_flow
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize, Draw
from data_pipelines.light_scenes.passes import Passes, Shading, foot_track, render_passes
from data_pipelines.light_scenes.render import render_pieces, to_pixels
from data_pipelines.light_scenes.sweep import GATE, sweep_of
from data_pipelines.light_scenes.world import World

DEFAULT_SIZE = ClipSize()


@dataclass(frozen=True)
class ClipSpec:
    """Names a clip. Clips of the same family, variant, scene, split and seed share everything but the signs.

    Attributes:
      family: a family of ``families.TABLE``.
      scene: index of the scene within its family, variant and split.
      exposure_change: +1 brightens, -1 darkens, 0 steady.
      sweep: +1 the patch or shadow moves to the right in the frame, -1 to the left, 0 none.
      pan: +1 the camera turns or travels to the right, -1 to the left (``constant`` alone, else 0).
      split: one of ``SPLITS``; ``test`` draws from parameter bands that the others never use.
      seed: seed of the whole data set.
      variant: one of the family's variants; "" is the plain one.
      glints: +1 glints run to the right, -1 to the left (``water_glitter`` alone, else 0).
    """

    family: str
    scene: int
    exposure_change: int = 0
    sweep: int = 0
    pan: int = 0
    split: str = "train"
    seed: int = 0
    variant: str = ""
    glints: int = 0

    def __post_init__(self) -> None:
        if self.family not in TABLE:
            raise ValueError(f"family {self.family!r}: expected one of {', '.join(TABLE)}")
        if self.variant not in variants_of(self.family):
            raise ValueError(
                f"{self.family}: variant {self.variant!r}: expected one of "
                f"{', '.join(map(repr, variants_of(self.family)))}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}: expected one of {', '.join(SPLITS)}")
        taken = signs_of(self.family)
        for name in ("exposure_change", "sweep", "pan", "glints"):
            value, expected = getattr(self, name), (-1, 1) if name in taken else (0,)
            if value not in expected:
                raise ValueError(f"{self.family}: {name} = {value}: expected {' or '.join(map(str, expected))}")

    @property
    def kind(self) -> str:
        """``family`` or ``family/variant``, as in ``LightScenesConfig.families``."""
        return f"{self.family}/{self.variant}" if self.variant else self.family

    @property
    def scene_id(self) -> str:
        """What counterfactual clips share: ``family[/variant]/split/scene``."""
        return f"{self.kind}/{self.split}/{self.scene:05d}"

    def key(self, *more: int) -> tuple[int, ...]:
        """Seed of what clips of this scene share; plain variants have one number less than the others."""
        variant = variants_of(self.family).index(self.variant)
        place = (self.seed, SPLITS.index(self.split), list(TABLE).index(self.family), self.scene)
        return (*place, *more) if not variant else (*place, *more, variant)


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
      sweep_rate: frame widths per second, positive to the right; 0 where the caption states none.
      light_direction: ``[T, 3]`` unit vectors to the light (x right, y away from the viewer, z up).
      visibility: ``[T, H, W]`` float32, share of the light seen.
      flow: ``[T-1, H, W, 2]`` float32 surface flow (dx, dy) in pixels from frame t to t+1.
      size: of the clip.
      foot: ``[T, 2]`` float32 pixel (x, y) of the foot of the caster that the scene is about; None without one.
      rendered: all passes, if they were rendered along with the video.
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
    size: ClipSize
    foot: np.ndarray | None
    rendered: Passes | None = None

    @cached_property
    def passes(self) -> Passes:
        """All passes; rendered when they are first asked for, if they were not along with the video."""
        return self.rendered or render_passes(build_world(self.spec, self.size), self.size)

    @cached_property
    def truth(self) -> Mapping[str, Any]:
        """The record that ``wanjax.light.metrics.measure`` compares with; renders the passes.

        Keys: ``log_luminance`` [T], ``exposure_slope``, ``cct_slope``, ``sweep_rate``, ``visibility`` [T, H, W],
        ``direct``, ``shadowed``, ``ambient`` and ``specular`` [T, H, W, 3] as in ``Passes``, and where the scene has
        them ``foot`` [T, 2] and ``glint`` [T].
        """
        record = {name: getattr(self, name) for name in (
            "log_luminance", "exposure_slope", "cct_slope", "sweep_rate", "visibility")}
        record |= {name: getattr(self.passes, name) for name in ("direct", "shadowed", "ambient", "specular")}
        parts = {name: getattr(self.passes, name) for name in ("foot", "glint")}
        return record | {name: value for name, value in parts.items() if value is not None}


def build_world(spec: ClipSpec, size: ClipSize = DEFAULT_SIZE) -> World:
    """The world of a clip: shapes, materials, camera and light over its frames."""
    draw = Draw(spec.key(), held_out=spec.split == "test")
    signs = {name: getattr(spec, name) for name in signs_of(spec.family)}
    return TABLE[spec.family][spec.variant](draw, size, **signs)


def slope(values: np.ndarray, fps: float) -> float:
    """Least-squares slope per second of ``values [T]``; 0 for a single frame."""
    if len(values) < 2:
        return 0.0
    seconds = np.arange(len(values)) / fps
    seconds = seconds - seconds.mean()
    return float((seconds * values).sum() / (seconds**2).sum())


def render_clip(spec: ClipSpec, size: ClipSize = DEFAULT_SIZE, passes: bool = False) -> Clip:
    """Frames and ground truth of ``spec``; the same arguments give the same bytes.

    ``passes`` renders all passes along with the video, in less time than when ``Clip.passes`` is asked for later.
    """
    world = build_world(spec, size)
    linear = np.empty((size.frames, size.height, size.width, 3), np.float32)
    visibility = np.empty(linear.shape[:3], np.float32)
    video = np.empty(linear.shape, np.uint8)
    shading = Shading(size) if passes else None
    for frames, layers in render_pieces(world, size):
        linear[frames] = np.moveaxis(to_pixels(layers.linear, size), 0, -1)
        visibility[frames] = to_pixels(layers.visibility, size)
        video[frames] = np.round(linear_to_srgb(linear[frames]) * np.float32(255))
        if shading is not None:
            shading.add(frames, layers)
    rendered = None if shading is None else shading.passes(world)
    mean = linear.mean((1, 2), dtype=np.float64)  # [T, 3]
    log_luminance = np.log2(mean @ LUMINANCE + LUMINANCE_FLOOR)
    cct = correlated_colour_temperature(mean)
    flow = surface_flow(world, size) if rendered is None else rendered.flow.motion
    gate = 0.0 if world.camera.stands_still else GATE
    rate = sweep_of(linear @ LUMINANCE, flow, size.fps, gate).rate if spec.sweep else 0.0
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
        size=size,
        foot=foot_track(world, size),
        rendered=rendered,
    )
