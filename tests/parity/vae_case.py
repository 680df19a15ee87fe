"""The codecs' parity cases: sizes, parameters and inputs, all from seeds, so that only outputs are recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import VAEConfig


@dataclass(frozen=True)
class Case:
    """A codec, a clip to encode and latents to decode.

    Attributes:
        config: sizes.
        frames: of the clip; the latents are as many as it has.
        size: rows and columns of pixels of the clip and of what the latents become.
    """

    config: VAEConfig
    frames: int
    size: tuple[int, int]

    @property
    def video(self) -> np.ndarray:
        return video(frames=self.frames, size=self.size)

    @property
    def latents(self) -> np.ndarray:
        time, down, across = self.config.strides
        cells = (self.size[0] // down, self.size[1] // across)
        return latents(1 + (self.frames - 1) // time, cells, self.config.z_dim)


def recorded(name: str) -> Path:
    """File of the reference's outputs for one of :data:`CASES`."""
    return Path(__file__).parent / "data" / f"{name}.safetensors"


def foreign_params(config: VAEConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the codec in the diffusers layout, all of them random (norm weights around 1)."""
    out = {}
    for index, row in enumerate(vae_rows(config)):
        noise = np.random.default_rng([seed, index]).standard_normal(row.foreign_shape).astype(np.float32)
        if row.path[-1] == "kernel":
            noise *= np.float32(math.prod(row.shape[:-1]) ** -0.5)
        elif row.layout.startswith("gamma"):
            noise = 1 + np.float32(0.3) * noise
        else:
            noise *= np.float32(0.2)
        out[row.diffusers] = noise
    return out


def video(seed: int = 1, frames: int = 13, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """A clip ``[1, T, H, W, 3]`` in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (1, frames, *size, 3)).astype(np.float32)


def latents(frames: int, size: tuple[int, int], channels: int, seed: int = 2) -> np.ndarray:
    """Normalised latents ``[1, F, h, w, C]``, small enough for the decoder's output to stay near [-1, 1]."""
    return np.random.default_rng(seed).standard_normal((1, frames, *size, channels)).astype(np.float32)


CASES = {
    "vae": Case(VAEConfig(base_dim=8, num_res_blocks=2, dim_mult=(1, 2, 4, 4)), 13, (32, 24)),
    "vae22": Case(
        VAEConfig(
            base_dim=8,
            decoder_base_dim=12,
            z_dim=6,
            latents_mean=(-0.2, 0.1, 0.0, 0.3, -0.1, 0.2),
            latents_std=(0.5, 1.2, 0.7, 0.9, 0.6, 1.4),
            patch=2,
            residual=True,
        ),
        9,
        (32, 48),
    ),
}
