"""Trained factors as the tensors of a LoRA file, under the names that other software reads."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wanjax.lora import Factors, Lora, Place
from wanjax.lora_config import LoraConfig
from wanjax.models import rows as row_table
from wanjax.models.rows import LAYOUTS, Row

# layout -> what a matrix is called, and the ends of its factors' names
NAMINGS = {
    "diffusers": ("transformer.", "diffusers", ".lora_A.weight", ".lora_B.weight"),
    "comfyui": ("diffusion_model.", "official", ".lora_down.weight", ".lora_up.weight"),
}
ALPHA = ".alpha"


def tensors(
    factors: Mapping[str, Any], table: Sequence[Row], config: LoraConfig, layout: str
) -> dict[str, np.ndarray]:
    """Every tensor of the file, float32, contiguous.

    Args:
        factors: what was trained.
        table: rows of the transformer.
        config: it was trained with.
        layout: "diffusers": names that ``load_lora_weights`` reads, of either expert, with alpha / rank in the second
            factor, since it finds a scale nowhere in a file's tensors; "comfyui": official names, with ``.alpha``
            (ComfyUI and diffusers read it).
    """
    prefix, naming, ending_down, ending_up = NAMINGS[layout]
    scale = np.float32(config.scale if layout == "diffusers" else 1.0)
    out: dict[str, np.ndarray] = {}
    for row in config.adapted(table):
        own = row_table.pick(factors, row)
        down, up = (np.asarray(own[part], np.float32) for part in ("down", "up"))
        for layer in range(max(row.stacked, 1)):
            name = prefix + row.foreign_name(layer, naming).removesuffix(".weight")
            low, high = (part[layer] if row.stacked else part for part in (down, up))
            ones = (1,) * (len(row.shape) - 2)  # of a convolution's kernel
            out[name + ending_down] = np.ascontiguousarray(LAYOUTS[row.layout].to_foreign(low))
            out[name + ending_up] = np.ascontiguousarray((high.T * scale).reshape(row.shape[-1], config.rank, *ones))
            if layout == "comfyui":
                out[name + ALPHA] = np.asarray(config.alpha, np.float32)
    return out


def as_lora(
    factors: Mapping[str, Any], table: Sequence[Row], config: LoraConfig, source: pathlib.Path, fingerprint: str
) -> Lora:
    """What :func:`wanjax.lora.read_lora` gives of the file; ``source`` and ``fingerprint`` are the run's."""
    prefix, naming, down, up = NAMINGS["diffusers"]
    changes: dict[Place, tuple[Factors]] = {}
    for row in config.adapted(table):
        for layer in range(max(row.stacked, 1)):
            name = prefix + row.foreign_name(layer, naming).removesuffix(".weight")
            changes[row.path, layer] = (Factors(name + down, name + up, 1.0),)
    return Lora(source, fingerprint, tensors(factors, table, config, "diffusers"), changes)
