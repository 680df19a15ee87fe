"""Shape and arithmetic of the diffusion transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wanjax.models import rope
from wanjax.models.attention import IMPLEMENTATIONS
from wanjax.models.sequence import SCHEMES
from wanjax.models.splash import SplashBlocks

REMAT = ("none", "full", "attention", "offload", "dots")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class DiTConfig:
    """The transformer's shape, the dtype of its arithmetic and what its backward pass recomputes.

    Attributes:
        width: D.
        heads: K; D / K is the head's dimension d.
        layers: number of blocks.
        ffn: hidden features of the feed-forward.
        in_channels: channels of the noisy latents plus any extra input channels.
        out_channels: channels of the velocity.
        patch: latent cells per token in time, height, width.
        freq_dim: features of the timestep's sinusoid.
        text_dim: E.
        eps: of every LayerNorm and RMS norm.
        dtype: of matrix products and attention operands; norms, modulation, residuals, rotary embedding, timestep
            embedding and head run in float32.
        param_dtype: of the stored parameters.
        remat: what the backward pass recomputes: "none" no matrix product and no attention, but on one device what is
            as quick to compute as to keep (norms, activations, rotation); "full" keeps the block's input, "attention"
            also the result of self-attention and its softmax's statistics, which then runs forward once, "offload" both
            in the hosts' pinned memory: a block then reads its input in ``dtype``, in which it is kept, while the
            stream from block to block stays in float32; "dots" keeps the outputs of the linear layers.
        chunk_tokens: tokens of a shard that a block's linear layers, norms and cross-attention work on at a time, at
            most; their backward pass computes a chunk anew. 0: all at once.
        grad_reduce_dtype: that gradients of matrices are summed over devices in; "auto": ``dtype``.
        attention: how it is computed, see :mod:`wanjax.models.attention`.
        sequence: how a mesh's axis ``seq`` shares self-attention, see :mod:`wanjax.models.sequence`: "heads", "ring" or
            "auto", which makes rings only of what heads do not divide over.
        splash_forward, splash_backward: queries, keys, and keys per step that the TPU's kernel of attention holds at
            most, see :class:`wanjax.models.splash.SplashBlocks`.
    """

    width: int
    heads: int
    layers: int
    ffn: int
    in_channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256
    text_dim: int = 4096
    eps: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    chunk_tokens: int = 0
    grad_reduce_dtype: str = "auto"
    attention: str = "auto"
    sequence: str = "auto"
    splash_forward: tuple[int, int, int] = SplashBlocks.forward
    splash_backward: tuple[int, int, int] = SplashBlocks.backward

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "ffn", "in_channels", "out_channels", "freq_dim", "text_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        rope.axis_dims(self.head_dim)
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim {self.freq_dim} must be even: one half cosines, one half sines")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f"patch {self.patch} must be three sizes of at least 1: time, height, width")
        if self.eps <= 0:
            raise ValueError(f"eps is {self.eps}, expected more than 0")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {DTYPES}")
        if self.remat not in REMAT:
            raise ValueError(f"remat {self.remat!r} is not one of {REMAT}")
        if self.chunk_tokens < 0:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}, expected a number of tokens, or 0 for all at once")
        if self.grad_reduce_dtype not in ("auto", *DTYPES):
            raise ValueError(f"grad_reduce_dtype {self.grad_reduce_dtype!r} is not one of {('auto', *DTYPES)}")
        if self.attention not in IMPLEMENTATIONS:
            raise ValueError(f"attention {self.attention!r} is not one of {IMPLEMENTATIONS}")
        if self.sequence not in SCHEMES:
            raise ValueError(f"sequence {self.sequence!r} is not one of {SCHEMES}")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention 'cudnn' takes 16-bit operands: set dtype to 'bfloat16', or attention to 'auto'")
        SplashBlocks(self.splash_forward, self.splash_backward)  # refuses sizes that cannot be

    @property
    def splash_blocks(self) -> SplashBlocks:
        """The sizes of blocks as the kernel takes them."""
        return SplashBlocks(self.splash_forward, self.splash_backward)

    @property
    def head_dim(self) -> int:
        """d = D / K."""
        return self.width // self.heads

    @property
    def patch_size(self) -> int:
        """Latent cells in one token."""
        return math.prod(self.patch)

    def grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens in time, height, width for latents of size F, h, w; ValueError where a patch does not divide."""
        if any(size % patch for size, patch in zip(latent_shape, self.patch, strict=True)):
            raise ValueError(f"latents of size (F, h, w) = {latent_shape} do not divide into patches {self.patch}")
        frames, height, width = (size // patch for size, patch in zip(latent_shape, self.patch, strict=True))
        return frames, height, width
