"""Rows of the diffusion transformer (Wan2.1 and Wan2.2 text- and image-to-video)."""

from __future__ import annotations

from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row

_TEXT, _TIME = "condition_embedder.text_embedder", "condition_embedder.time_embedder"


def dit_rows(config: DiTConfig) -> tuple[Row, ...]:
    """One row per tensor of :class:`wanjax.models.dit.WanDiT`."""
    width = config.width
    patch_out = config.out_channels * config.patch_size
    rows = [
        Row(("patch_embedding", "kernel"), (*config.patch, config.in_channels, width), (None,) * 4 + ("embed",),
            "patch_embedding.weight", "patch_embedding.weight", "conv3d"),
        Row(("patch_embedding", "bias"), (width,), ("embed",), "patch_embedding.bias", "patch_embedding.bias"),
        *_linear(("text_embedding", "in"), (config.text_dim, width), ("embed", "mlp"),
                 f"{_TEXT}.linear_1", "text_embedding.0"),
        *_linear(("text_embedding", "out"), (width, width), ("mlp", "embed"), f"{_TEXT}.linear_2", "text_embedding.2"),
        *_linear(("time_embedding", "in"), (config.freq_dim, width), ("embed", "mlp"),
                 f"{_TIME}.linear_1", "time_embedding.0"),
        *_linear(("time_embedding", "out"), (width, width), ("mlp", "embed"), f"{_TIME}.linear_2", "time_embedding.2"),
        *_linear(("time_projection",), (width, 6 * width), ("embed", None),
                 "condition_embedder.time_proj", "time_projection.1"),
        *_block_rows(config),
        Row(("head", "modulation"), (2, width), (None, "embed"), "scale_shift_table", "head.modulation", "table"),
        *_linear(("head", "projection"), (width, patch_out), ("embed", None), "proj_out", "head.head"),
    ]
    return tuple(rows)


def _block_rows(config: DiTConfig) -> list[Row]:
    width, layers = config.width, config.layers
    block, diffusers, official = ("blocks",), "blocks.{i}.", "blocks.{i}."
    rows = [
        Row((*block, "modulation"), (6, width), (None, "embed"), diffusers + "scale_shift_table",
            official + "modulation", "table", layers),
        Row((*block, "cross_norm", "scale"), (width,), ("embed",), diffusers + "norm2.weight",
            official + "norm3.weight", "same", layers),
        Row((*block, "cross_norm", "bias"), (width,), ("embed",), diffusers + "norm2.bias",
            official + "norm3.bias", "same", layers),
    ]
    for ours, theirs, names in (("self_attention", "attn1", "self_attn"), ("cross_attention", "attn2", "cross_attn")):
        for part in "qkv":
            rows += _linear((*block, ours, part), (width, width), ("embed", "heads"),
                            f"{diffusers}{theirs}.to_{part}", f"{official}{names}.{part}", layers)
        rows += _linear((*block, ours, "o"), (width, width), ("heads", "embed"),
                        f"{diffusers}{theirs}.to_out.0", f"{official}{names}.o", layers)
        for part in "qk":
            rows.append(Row((*block, ours, f"norm_{part}"), (width,), ("heads",),
                            f"{diffusers}{theirs}.norm_{part}.weight", f"{official}{names}.norm_{part}.weight",
                            "same", layers))
    rows += _linear((*block, "ffn", "in"), (width, config.ffn), ("embed", "mlp"),
                    diffusers + "ffn.net.0.proj", official + "ffn.0", layers)
    rows += _linear((*block, "ffn", "out"), (config.ffn, width), ("mlp", "embed"),
                    diffusers + "ffn.net.2", official + "ffn.2", layers)
    return rows


def _linear(path: tuple[str, ...], shape: tuple[int, int], axes: tuple[str | None, str | None], diffusers: str,
            official: str, layers: int = 0) -> list[Row]:
    """Kernel and bias of one linear layer."""
    return [
        Row((*path, "kernel"), shape, axes, diffusers + ".weight", official + ".weight", "linear", layers),
        Row((*path, "bias"), shape[1:], axes[1:], diffusers + ".bias", official + ".bias", "same", layers),
    ]
