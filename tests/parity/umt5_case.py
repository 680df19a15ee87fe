"""The text encoder's parity case: sizes, parameters and inputs, all from seeds, so that only outputs are recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.umt5 import UMT5Config

RECORDED = Path(__file__).parent / "data" / "umt5.safetensors"
# Sizes that divide into nothing shared, so that no axis can stand for another.
CONFIG = UMT5Config(vocab_size=97, d_model=48, d_kv=6, d_ff=80, num_heads=5, num_layers=3)
TOKENS = (150, 70, 9)  # past max_distance 128 and past every bucket edge


def foreign_params(config: UMT5Config = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the encoder in the diffusers layout, all of them random (norm weights around 1)."""
    out = {}
    for index, row in enumerate(umt5_rows(config)):
        for layer, name in enumerate(row.foreign_names("diffusers")):
            noise = np.random.default_rng([seed, index, layer]).standard_normal(row.foreign_shape).astype(np.float32)
            if row.path[-1] == "kernel":
                noise *= np.float32(row.shape[0] ** -0.5)
            elif row.path[-1] == "scale":
                noise = 1 + np.float32(0.3) * noise
            out[name] = noise
    return out


def inputs(config: UMT5Config = CONFIG, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask ``[3, 150]``; padding is filled with tokens that must not matter."""
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (len(TOKENS), max(TOKENS)), dtype=np.int32)
    return ids, np.arange(max(TOKENS)) < np.array(TOKENS)[:, None]
