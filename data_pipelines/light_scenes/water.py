"""Water under a sun and a sky: waves tilt its normals, the sun glitters where they mirror it toward the viewer.

The surface is a plane whose normals follow a height field of plane waves; the height itself, a few centimeters, is
left out. What is too fine for a sample or too fast for a frame is not drawn as waves but widens the distribution of
slopes around their mean (Olano and Baker, LEAN mapping, 2010), so that glints neither alias nor strobe.
"""

from dataclasses import dataclass, replace

import numpy as np

REFRACTION = np.float32(1.33)
"""Index of refraction of water."""
GRAZING = np.float32(0.1)
"""Least cosine between view and normal that glints are spread over."""
_GRAVITY = 9.81


@dataclass(frozen=True)
class Sky:
    """Light from above over ``T`` frames, linear RGB ``[T, 3]``: at the horizon, the zenith, and around the sun."""

    horizon: np.ndarray
    zenith: np.ndarray
    aureole: np.ndarray
    toward_sun: np.ndarray

    def at(self, frames: slice) -> "Sky":
        """The sky over some of the frames."""
        return Sky(self.horizon[frames], self.zenith[frames], self.aureole[frames], self.toward_sun[frames])

    def radiance(self, direction: np.ndarray) -> np.ndarray:
        """Linear RGB ``[3, T, S]`` float32 along unit directions ``[3, T', S]``."""
        horizon, zenith, aureole, sun = (
            a.T.astype(np.float32)[:, :, None] for a in (self.horizon, self.zenith, self.aureole, self.toward_sun)
        )
        height = np.sqrt(np.clip(direction[2], 0, 1))
        near = np.maximum(direction[0] * sun[0] + direction[1] * sun[1] + direction[2] * sun[2], 0)
        near = np.square(np.square(np.square(near)))
        return horizon + height * (zenith - horizon) + near * aureole


@dataclass(frozen=True)
class Ripples:
    """Plane waves on water, ``n`` of them.

    Attributes:
      vectors: ``[n, 2]`` wave vectors in radians per meter along x and y; waves run their way.
      slopes: ``[n]`` greatest slope of each wave (amplitude times wave number).
      phases: ``[n]`` radians at time 0.
      roughness: variance of the slopes, per axis, of everything finer.
      seconds: ``[T]`` time of each frame.
      shutter: seconds that a frame is exposed for.
    """

    vectors: np.ndarray
    slopes: np.ndarray
    phases: np.ndarray
    roughness: float
    seconds: np.ndarray
    shutter: float

    @property
    def frequencies(self) -> np.ndarray:
        """``[n]`` radians per second: gravity waves on deep water, omega² = g k."""
        return np.sqrt(_GRAVITY * np.hypot(*self.vectors.T))

    def at(self, frames: slice) -> "Ripples":
        """The waves over some of the frames."""
        return replace(self, seconds=self.seconds[frames])

    def heights(self, x: np.ndarray, y: np.ndarray, second: float) -> np.ndarray:
        """Height of the waves in meters at places ``x, y`` (any one shape), unfiltered."""
        total = np.zeros(np.shape(x))
        amplitudes = self.slopes / np.hypot(*self.vectors.T)
        for (u, v), a, omega, phase in zip(self.vectors, amplitudes, self.frequencies, self.phases, strict=True):
            total += a * np.cos(u * x + v * y - omega * second + phase)
        return total

    def filtered(self, footprint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What a sample sees of each wave, and what is left to the distribution of slopes.

        Args:
          footprint: ``[3, ...]``: variances and covariance (xx, yy, xy) in m² of the patch that a sample covers.

        Returns:
          Kept slopes ``[n, ...]`` and covariance of the slopes that were lost ``[3, ...]``, ``roughness`` included.
        """
        axes = tuple(range(1, footprint.ndim))
        u, v, slope, omega = (
            np.expand_dims(a.astype(np.float32), axes) for a in (*self.vectors.T, self.slopes, self.frequencies)
        )
        blur = u * u * footprint[0] + v * v * footprint[1] + 2 * u * v * footprint[2]
        blur += np.float32(self.shutter**2 / 12) * omega * omega
        share = np.exp(np.float32(-0.5) * np.minimum(blur, 60))
        lost = np.float32(0.5) * slope * slope * (1 - share * share) / (u * u + v * v)
        covariance = np.stack([(lost * u * u).sum(0), (lost * v * v).sum(0), (lost * u * v).sum(0)])
        covariance[:2] += np.float32(self.roughness)
        return slope * share, covariance


@dataclass(frozen=True)
class Surface:
    """The water that one tracing sees: the samples of the slice ``samples``, M of them; T' as in the tracing.

    Attributes:
      samples: where they lie among all samples.
      basis: ``[2, 2n, T', M]``: the slopes along x and y are sums of these over the waves' phases in time.
      covariance: ``[3, T', M]`` (xx, yy, xy) of the slopes around that mean.
      view: ``[3, T', M]`` unit vectors from the camera.
    """

    samples: slice
    basis: np.ndarray
    covariance: np.ndarray
    view: np.ndarray

    @classmethod
    def seen(cls, ripples: Ripples, samples: slice, points: np.ndarray, direction: np.ndarray, depth: np.ndarray,
             pixel: float) -> "Surface":
        """The water at ``points [3, T', M]`` that rays along ``direction`` meet at ``depth [T', M]``.

        ``pixel`` is the width of a sample at depth 1, meters.
        """
        view = direction / np.sqrt(direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2)
        level = np.sqrt(np.maximum(view[0] ** 2 + view[1] ** 2, np.float32(1e-9)))
        x, y = view[0] / level, view[1] / level
        across = np.square(np.minimum(depth, 1e4) * np.float32(pixel)) / np.float32(12)
        along = across / np.maximum(view[2] * view[2], np.float32(1e-6))
        stretch = along - across
        kept, covariance = ripples.filtered(np.stack([across + stretch * x * x, across + stretch * y * y,
                                                      stretch * x * y]))
        u, v, phase = (a.astype(np.float32)[:, None, None] for a in (*ripples.vectors.T, ripples.phases))
        far = np.minimum(depth, 1e4) / depth  # keeps the phases of what is filtered out anyway finite
        angle = u * (points[0] * far) + v * (points[1] * far) + phase
        kept = kept / np.sqrt(u * u + v * v)
        waves = np.concatenate([-kept * np.sin(angle), kept * np.cos(angle)])
        basis = np.stack([waves * np.concatenate([u, u]), waves * np.concatenate([v, v])])
        return cls(samples, basis, covariance, view)

    def slopes(self, ripples: Ripples) -> tuple[np.ndarray, np.ndarray]:
        """Mean slopes of the water along x and y, ``[T, M]`` each, over the frames of ``ripples``."""
        turn = ripples.seconds[:, None] * ripples.frequencies
        time = np.concatenate([np.cos(turn), np.sin(turn)], 1).astype(np.float32)  # [T, 2n]
        if self.basis.shape[2] == 1:
            along_x, along_y = (time @ axis[:, 0] for axis in self.basis)
        else:
            along_x, along_y = (np.einsum("tn,ntm->tm", time, axis) for axis in self.basis)
        return along_x, along_y


def reflect(surface: Surface, ripples: Ripples, sky: Sky, toward: np.ndarray, sun: np.ndarray) -> tuple[
        np.ndarray, np.ndarray, np.ndarray]:
    """What the water mirrors.

    Args:
      surface, ripples: the water, and its waves over T frames.
      sky: over the same frames.
      toward: ``[3, T, 1]`` unit vectors to the sun.
      sun: ``[3, T, 1]`` irradiance on a surface that faces it.

    Returns:
      The sky's mirror image and the sun's glints, unshadowed (linear RGB), and the mean normals; ``[3, T, M]`` each.

    References:
      Cox and Munk, Measurement of the roughness of the sea surface, 1954 (glint of a distribution of slopes);
      Cook and Torrance, A reflectance model for computer graphics, 1982 (Fresnel).
    """
    along_x, along_y = surface.slopes(ripples)
    view = surface.view
    steep = np.float32(1) / np.sqrt(1 + along_x * along_x + along_y * along_y)
    normal = np.stack([-along_x * steep, -along_y * steep, steep])
    facing = np.maximum(-(view[0] * normal[0] + view[1] * normal[1] + view[2] * normal[2]), np.float32(0.02))
    mirrored = np.stack([view[i] + 2 * facing * normal[i] for i in range(3)])
    image = _fresnel(facing) * sky.radiance(mirrored)

    half = [toward[i] - view[i] for i in range(3)]
    upright = 1 / half[2]
    off_x, off_y = -half[0] * upright - along_x, -half[1] * upright - along_y
    xx, yy, xy = surface.covariance
    determinant = xx * yy - xy * xy
    exponent = (yy * off_x * off_x - 2 * xy * off_x * off_y + xx * off_y * off_y) / determinant
    density = np.exp(np.float32(-0.5) * exponent) / (np.float32(2 * np.pi) * np.sqrt(determinant))
    length2 = half[0] * half[0] + half[1] * half[1] + half[2] * half[2]
    cosine = half[2] / np.sqrt(length2)
    # both directions are unit vectors, so the cosine between either and the half vector is half its length
    # At a grazing view waves hide one another; without a floor the horizon would blaze.
    glints = _fresnel(np.sqrt(length2) / 2) * density / (4 * np.maximum(facing, GRAZING) * np.square(np.square(cosine)))
    return image, glints * sun, normal


def _fresnel(cosine: np.ndarray) -> np.ndarray:
    """Reflectance of water for unpolarized light that meets it at an angle of this ``cosine``."""
    g = np.sqrt(cosine * cosine + (REFRACTION * REFRACTION - 1))
    across = (g - cosine) / (g + cosine)
    ratio = (cosine * (g + cosine) - 1) / (cosine * (g - cosine) + 1)
    return np.float32(0.5) * across * across * (1 + ratio * ratio)
