"""All passes of a clip: its light in parts, its geometry, its motion and its shadows, exact at pixel level."""

from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.light_scenes.colour import LUMINANCE
from data_pipelines.light_scenes.flow import Flow, pixels_of, shadow_flow, surface_flows, trace_centers
from data_pipelines.light_scenes.parameters import ClipSize
from data_pipelines.light_scenes.render import Layers, render_pieces, to_pixels
from data_pipelines.light_scenes.world import World


@dataclass(frozen=True)
class Passes:
    """What a clip's pixels are made of; ``linear == shadowed + ambient + specular`` to 1e-6.

    The light passes are means over each pixel's samples of what they are made of, so that this stays true at edges.
    Geometry is that of the pixel's center, as is flow.

    Attributes:
      direct: ``[T, H, W, 3]`` float32, mean of albedo times the direct irradiance, as if nothing cast shadows.
      shadowed: ``[T, H, W, 3]`` float32, mean of albedo times direct irradiance times visibility.
      ambient: ``[T, H, W, 3]`` float32, mean of albedo times ambient irradiance (what glows and the sky as they are).
      specular: ``[T, H, W, 3]`` float32, mean of the mirrored light, shadows included.
      albedo: ``[T, H, W, 3]`` float32, mean.
      visibility: ``[T, H, W]`` float32, mean share of the sun or lamp seen (soft penumbra).
      hard_visibility: ``[T, H, W]`` float32, share of the samples that see the light's center.
      normal: ``[T, H, W, 3]`` float32 unit vectors, of water the waves'.
      depth: ``[T, H, W]`` float32 meters along the camera's axis; 10,000 at the sky.
      object_id: ``[T, H, W]`` int8, index into the world's things; -1 the sky.
      light_position: ``[T, 3]`` float32 meters of the lamp; None for a sun.
      light_direction: ``[T, 3]`` float32 unit vectors to the light, of a lamp from the foot of what it is watched for.
      light_intensity: ``[T]`` float32 luminance of the irradiance facing the sun, of a lamp at 1 m; 0 without either.
      light_cct: ``[T]`` float32 kelvin.
      camera_pose: ``[T, 3, 4]`` float32, columns right, up, forward and position (meters).
      camera_half_width: tangent of half the horizontal field of view.
      flow, flow_backward: surface flow from t to t+1 and from t+1 to t.
      shadow_flow: ``[T-1, H, W, 2]`` float32 pixels, where the shadow or patch at a pixel moves; see ``flow.py``.
      shadow_flow_known: ``[T-1, H, W]`` bool.
      foot: ``[T, 2]`` float32 pixel (x, y) of the foot of the caster that the scene is about; None without one.
      glint: ``[T]`` float32, mean linear luminance over the frame of the sun's glints on water; None without water.
    """

    direct: np.ndarray
    shadowed: np.ndarray
    ambient: np.ndarray
    specular: np.ndarray
    albedo: np.ndarray
    visibility: np.ndarray
    hard_visibility: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    object_id: np.ndarray
    light_position: np.ndarray | None
    light_direction: np.ndarray
    light_intensity: np.ndarray
    light_cct: np.ndarray
    camera_pose: np.ndarray
    camera_half_width: float
    flow: Flow
    flow_backward: Flow
    shadow_flow: np.ndarray
    shadow_flow_known: np.ndarray
    foot: np.ndarray | None
    glint: np.ndarray | None


def render_passes(world: World, size: ClipSize) -> Passes:
    """All passes of a world over its frames."""
    shading = Shading(size)
    for frames, layers in render_pieces(world, size):
        shading.add(frames, layers)
    return shading.passes(world)


class Shading:
    """The passes that are means over samples, of a clip whose layers come piece by piece."""

    def __init__(self, size: ClipSize) -> None:
        self._size = size
        shape = (size.frames, size.height, size.width)
        colors = ("direct", "shadowed", "ambient", "specular", "albedo")
        self._means = {name: np.empty((*shape, 3), np.float32) for name in colors}
        self._means |= {name: np.empty(shape, np.float32) for name in ("visibility", "hard_visibility")}
        self._glint = np.zeros(size.frames)

    def add(self, frames: slice, layers: Layers) -> None:
        """Takes the layers of some of the frames."""
        size, means = self._size, self._means
        shape = (3, frames.stop - frames.start, layers.albedo.shape[2])
        direct = layers.albedo * layers.direct
        colors = {
            "direct": direct,
            "shadowed": direct * layers.visibility,
            "ambient": layers.albedo * layers.ambient,
            "specular": layers.specular,
            "albedo": layers.albedo,
        }
        for name, samples in colors.items():
            means[name][frames] = _picture(samples, shape, size)
        means["visibility"][frames] = to_pixels(layers.visibility, size)
        hard = layers.shadows.visibility(layers.traced.normal, soft=False) > 0.5
        means["hard_visibility"][frames] = to_pixels(hard.astype(np.float32), size)
        if layers.glints is not None:
            self._glint[frames] = _picture(layers.glints, shape, size).mean((1, 2), dtype=np.float64) @ LUMINANCE

    def passes(self, world: World) -> Passes:
        """All passes, once the layers of every frame were added."""
        size = self._size
        centers = trace_centers(world, size)
        grid = (size.frames, size.height, size.width)

        def at_centers(values: np.ndarray) -> np.ndarray:
            """``[..., T', S]`` to ``[T, H, W, ...]``."""
            full = np.broadcast_to(values, (*values.shape[:-2], size.frames, values.shape[-1]))
            pixels = full.reshape(*values.shape[:-2], *grid)
            return np.ascontiguousarray(np.moveaxis(pixels, 0, -1) if values.ndim == 3 else pixels)

        pixels = pixels_of(world, centers, size)
        forward, backward = surface_flows(world, centers, pixels, size)
        sliding, known = shadow_flow(world, centers, pixels, size)
        light = world.light
        return Passes(
            **self._means,
            normal=at_centers(_normals(world, size)) if centers.surface is not None else at_centers(centers.normal),
            depth=at_centers(centers.depth),
            object_id=at_centers(centers.object_id),
            light_position=None if light.position is None else light.position.astype(np.float32),
            light_direction=light.toward_sun.astype(np.float32),
            light_intensity=(light.direct @ LUMINANCE).astype(np.float32),
            light_cct=light.kelvin.astype(np.float32),
            camera_pose=world.camera.poses(size.frames).astype(np.float32),
            camera_half_width=float(world.camera.half_width),
            flow=forward,
            flow_backward=backward,
            shadow_flow=sliding,
            shadow_flow_known=known,
            foot=foot_track(world, size),
            glint=None if centers.surface is None else self._glint.astype(np.float32),
        )


def _picture(samples: np.ndarray, shape: tuple[int, int, int], size: ClipSize) -> np.ndarray:
    """Means ``[T, H, W, 3]`` over each pixel's samples of a layer that can be broadcast to ``shape`` (3, T, S)."""
    return np.moveaxis(to_pixels(np.broadcast_to(samples, shape), size), 0, -1)


def foot_track(world: World, size: ClipSize) -> np.ndarray | None:
    """Pixel (x, y) ``[T, 2]`` float32 of the world's foot, None without one."""
    if world.foot is None:
        return None
    places = np.broadcast_to(world.foot, (3, size.frames))[:, :, None]
    return world.camera.project(places, size.height, size.width)[:, :, 0].T.astype(np.float32)


def _normals(world: World, size: ClipSize) -> np.ndarray:
    """Normals ``[3, T, S]`` at the pixels' centers with the waves of every frame."""
    centers = replace(size, supersample=1)
    return np.concatenate([layers.traced.normal for _, layers in render_pieces(world, centers)], 1)
