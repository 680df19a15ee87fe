"""Floating-point operations of the transformer, by formula. A multiplication and an addition are two."""

from __future__ import annotations

from wanjax.models.dit_config import DiTConfig


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
