"""The transformer's parity case: sizes, parameters and inputs, all from seeds, so that only results are recorded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows

RECORDED = Path(__file__).parent / "data" / "dit.safetensors"
# head_dim 16 splits unevenly over the axes (8, 4, 4); no two sizes are equal
CONFIG = DiTConfig(width=32, heads=2, layers=2, ffn=48, in_channels=6, out_channels=5, freq_dim=24, text_dim=20)
LATENTS = (2, 3, 4, 6)  # B, F, h, w
TOKENS = 3 * 2 * 3


def ours(row: Row, index: int, seed: int = 0) -> np.ndarray:
    """Random values of one tensor in our layout: no zeros, no ones, outputs of order 1."""
    noise = np.random.default_rng([seed, index]).standard_normal(row.full_shape).astype(np.float32)
    if row.path[-1] == "kernel":
        return noise * np.float32(math.prod(row.shape[:-1]) ** -0.5)
    if row.path[-1] in ("norm_q", "norm_k", "scale"):
        return np.float32(1) + np.float32(0.3) * noise
    return np.float32(0.2) * noise


def params(config: DiTConfig = CONFIG, seed: int = 0) -> dict:
    """Our parameter tree, every tensor random."""
    table = dit_rows(config)
    values = {row.path: ours(row, index, seed) for index, row in enumerate(table)}
    tree: dict = {}
    for path, value in values.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def inputs(config: DiTConfig = CONFIG, *, per_token: bool = False, seed: int = 1, text_length: int = 7) -> dict:
    """latents [B, F, h, w, C], timestep [B] or [B, N], text [B, L, E] and the loss's cotangent, as numpy arrays."""
    rng = np.random.default_rng(seed)
    batch = LATENTS[0]
    return {
        "latents": rng.standard_normal((*LATENTS, config.in_channels)).astype(np.float32),
        "text": rng.standard_normal((batch, text_length, config.text_dim)).astype(np.float32),
        "cotangent": rng.standard_normal((*LATENTS, config.out_channels)).astype(np.float32),
        "timestep": rng.uniform(0, 1000, (batch, TOKENS) if per_token else batch).astype(np.float32),
    }
