"""The codec's parity case: sizes, parameters and inputs, all from seeds, so that only outputs are recorded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import VAEConfig

RECORDED = Path(__file__).parent / "data" / "vae.safetensors"
CONFIG = VAEConfig(base_dim=8, num_res_blocks=2, dim_mult=(1, 2, 4, 4))


def foreign_params(config: VAEConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
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


def latents(seed: int = 2, frames: int = 4, size: tuple[int, int] = (4, 3)) -> np.ndarray:
    """Normalised latents ``[1, F, h, w, C]``, small enough for the decoder's output to stay near [-1, 1]."""
    return np.random.default_rng(seed).standard_normal((1, frames, *size, CONFIG.z_dim)).astype(np.float32)
