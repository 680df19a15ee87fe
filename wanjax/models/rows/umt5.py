"""Rows of the text encoder: ours, transformers' (``text_encoder/`` of the diffusers layout) and Wan's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanjax.models.rows import Row

if TYPE_CHECKING:  # the network itself reads these rows
    from wanjax.models.umt5 import UMT5Config


def umt5_rows(config: UMT5Config) -> tuple[Row, ...]:
    """One row per tensor of :class:`wanjax.models.umt5.UMT5Encoder`."""
    width, inner = config.d_model, config.num_heads * config.d_kv

    def block(
        path: tuple[str, ...],
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        diffusers: str,
        official: str,
        layout: str = "same",
    ) -> Row:
        return Row(
            ("blocks", *path),
            shape,
            axes,
            f"encoder.block.{{i}}.layer.{diffusers}.weight",
            f"blocks.{{i}}.{official}.weight",
            layout,
            stacked=config.num_layers,
        )

    rows = [
        Row(
            ("token_embedding", "embedding"),
            (config.vocab_size, width),
            ("vocab", "embed"),
            "shared.weight",
            "token_embedding.weight",
        ),
        block(("attention_norm", "scale"), (width,), (None,), "0.layer_norm", "norm1"),
        block(
            ("attention", "relative_bias"),
            (config.relative_attention_num_buckets, config.num_heads),
            (None, "heads"),
            "0.SelfAttention.relative_attention_bias",
            "pos_embedding.embedding",
        ),
        *(
            block(
                ("attention", name, "kernel"),
                (width, inner),
                ("embed", "heads"),
                f"0.SelfAttention.{name}",
                f"attn.{name}",
                "linear",
            )
            for name in ("q", "k", "v")
        ),
        block(
            ("attention", "o", "kernel"),
            (inner, width),
            ("heads", "embed"),
            "0.SelfAttention.o",
            "attn.o",
            "linear",
        ),
        block(("mlp_norm", "scale"), (width,), (None,), "1.layer_norm", "norm2"),
        *(
            block(("mlp", ours, "kernel"), shape, axes, f"1.DenseReluDense.{diffusers}", official, "linear")
            for ours, shape, axes, diffusers, official in (
                ("gate", (width, config.d_ff), ("embed", "mlp"), "wi_0", "ffn.gate.0"),
                ("up", (width, config.d_ff), ("embed", "mlp"), "wi_1", "ffn.fc1"),
                ("down", (config.d_ff, width), ("mlp", "embed"), "wo", "ffn.fc2"),
            )
        ),
        Row(
            ("final_norm", "scale"),
            (width,),
            (None,),
            "encoder.final_layer_norm.weight",
            "norm.weight",
        ),
    ]
    return tuple(rows)
