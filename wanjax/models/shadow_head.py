"""The shadow head: from a transformer's hidden states at several depths to where the key light is visible.

It reads states that are there anyway (``WanDiT.apply_with_taps``), so it serves as a probe of a frozen transformer and
as a training signal of one that is not. Its parameters lie beside the transformer's under the key ``shadow_head``.
"""
from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wanjax import precision
from wanjax.models.dit import WanDiT
from wanjax.models.dit_layers import layer_norm
from wanjax.models.rows import Row, tree
from wanjax.models.rows.shadow_head import KEY, shadow_head_rows
from wanjax.models.shadow_head_config import ShadowHeadConfig

__all__ = ["KEY", "ShadowHead", "ShadowHeadConfig"]


@dataclasses.dataclass(frozen=True)
class ShadowHead:
    """Norm → narrow projection → convolution over time → unpatchify, as a pair of pure functions.

    Attributes:
      config: its shape.
      model: the transformer whose states it reads.
      cells: visibility cells along a side of one latent; 2 is 4×4 pixels with the codec's stride of 8.
    """

    config: ShadowHeadConfig
    model: WanDiT
    cells: int = 2

    @property
    def taps(self) -> tuple[int, ...]:
        """Numbers of blocks after which states are read: ``config.depths`` of the stack, rounded, at least 1."""
        return self.config.taps(self.model.config.layers)

    @property
    def rows(self) -> tuple[Row, ...]:
        return shadow_head_rows(self.config, self.model.config, self.cells)

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Random parameters (the tree under ``KEY``): kernels of variance 1 / fan-in, no bias, output zero.

        A zero output says "half visible" everywhere and lets no gradient into the transformer until it has learned.
        """
        keys = iter(jax.random.split(rng, len(self.rows)))

        def leaf(row: Row) -> jax.Array:
            key, shape = next(keys), row.shape
            if row.path[-1] == "bias" or "out" in row.path:
                return jnp.zeros(shape, self.model.config.param_dtype)
            scale = math.prod(shape[:-1]) ** -0.5
            return (scale * jax.random.normal(key, shape)).astype(self.model.config.param_dtype)

        return tree(self.rows, leaf)[KEY]

    def apply(self, params: Mapping[str, Any], states: Sequence[jax.Array], latent_shape: tuple[int, int, int]
              ) -> jax.Array:
        """Logits of the light being visible.

        Args:
          params: what ``init`` gives, possibly trained.
          states: one [B, N, D] per tap.
          latent_shape: F, h, w of the latents that the states belong to.

        Returns:
          float32 [B, F, h·cells, w·cells].

        Raises:
          ValueError: another number of states than taps.
        """
        if len(states) != len(self.taps):
            raise ValueError(f"{len(states)} hidden states, expected one for each of the taps {self.taps}")
        c, model = self.config, self.model.config
        f, h, w = model.grid(latent_shape)
        f32 = {name: jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), part) for name, part in params.items()}
        product = functools.partial(jnp.matmul, precision=precision.of("float32"))
        x = f32["projection"]["bias"]
        for state, kernel in zip(states, f32["projection"]["kernel"], strict=True):
            x = x + product(layer_norm(state, model.eps), kernel)
        x = jax.nn.gelu(x)  # [B, N, width]
        x = x.reshape(x.shape[0], f, h * w, c.width)
        x = x + jax.nn.gelu(_over_time(x, f32["time"]["kernel"]) + f32["time"]["bias"])
        x = product(x, f32["out"]["kernel"]) + f32["out"]["bias"]
        t, i, j = model.patch
        i, j = i * self.cells, j * self.cells
        x = x.reshape(x.shape[0], f, h, w, t, i, j).transpose(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(x.shape[0], f * t, h * i, w * j)


def _over_time(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution over frames, zeros beyond the clip: x [B, F, n, width], kernel [k, width, width] -> x's shape."""
    reach = kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    out = jnp.zeros_like(x)
    for k, part in enumerate(kernel):
        out = out + jnp.matmul(padded[:, k : k + x.shape[1]], part, precision=precision.of(x.dtype))
    return out
