"""Floating-point operations of the transformer, by formula. A multiplication and an addition are two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row


def forward(config: DiTConfig, tokens: int, text_tokens: int) -> int:
    """Of one call of the network on one clip.

    Matrix products and both attentions of all blocks; embeddings, norms and head, together well below 1 %, are left
    out.

    Args:
        config: of the network.
        tokens: N.
        text_tokens: L, padding included, since attention reads it too.
    """
    return matmul(config, tokens, text_tokens) + attention(config, tokens, text_tokens)


def matmul(config: DiTConfig, tokens: int, text_tokens: int) -> int:
    """The part of :func:`forward` that is products with parameters."""
    width, n, m = config.width, tokens, text_tokens
    projections = 4 * 2 * n * width**2 + 2 * 2 * (n + m) * width**2
    return config.layers * (projections + 2 * 2 * n * width * config.ffn)


def attention(config: DiTConfig, tokens: int, text_tokens: int) -> int:
    """The part of :func:`forward` that is products of queries, keys and values, in both attentions."""
    width, n, m = config.width, tokens, text_tokens
    return config.layers * (2 * 2 * n * n * width + 2 * 2 * n * m * width)


def training(config: DiTConfig, tokens: int, text_tokens: int) -> int:
    """Model FLOPs of one clip in one optimizer step: three times :func:`forward`.

    The backward pass forms two products, the gradients of both factors, for each one of the forward pass. What it
    recomputes to save memory is not counted, so that a setting that recomputes more does not look faster (Chowdhery et
    al. 2022, PaLM, appendix B). Nor are the shadow head, a decoder in the objective, and the optimizer.
    """
    return 3 * forward(config, tokens, text_tokens)


def lora_training(config: DiTConfig, tokens: int, text_tokens: int, factors: Sequence[Row]) -> int:
    """As :func:`training`, where the network is frozen and ``factors`` of its matrices are trained.

    A frozen matrix has one product in the backward pass, the gradient of its input, and attention two. The factors of
    the blocks count three times their forward products, those of cross-attention's keys and values of the text; others
    are left out, as their matrices are.
    """
    beside = 0
    for row in factors:
        if row.stacked:
            of_text = row.path[1] == "cross_attention" and row.path[2] in ("k", "v")
            beside += 2 * math.prod(row.full_shape) * (text_tokens if of_text else tokens)
    return 2 * matmul(config, tokens, text_tokens) + 3 * attention(config, tokens, text_tokens) + 3 * beside
