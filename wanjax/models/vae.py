"""Wan's causal video codecs: frames <-> latents, 4 times shorter.

Wan2.1's latents are 8 times smaller and have 16 channels, Wan2.2's (of TI2V-5B) are 16 times smaller and have 48.
Source: the architecture of "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv:2503.20314), section
4.1, and of Wan2.2's ``wan/modules/vae2_2.py``, both as stored in the diffusers layout (``AutoencoderKLWan``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from wanjax.models.rows import Row, tree
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae_config import WAN22, VAEConfig, decoder_plan, encoder_plan, stages
from wanjax.models.vae_layers import Memory, Params, causal_conv, head, middle, patchify, run_stage, unpatchify

__all__ = ["WAN22", "VAEConfig", "WanVAE"]
_Kept = Sequence[jax.Array]
METHODS = ("encode", "decode", "encode_chunked", "decode_chunked", "moments")


@dataclass(frozen=True)
class WanVAE:
    """A codec as pure functions of its parameters.

    Shapes: video ``[B, T, H, W, 3]`` in [-1, 1] with T = 4n + 1 and H, W multiples of s = 8 (Wan2.1) or 16 (Wan2.2);
    latents ``[B, F, h, w, C]`` with F = 1 + (T - 1) / 4, h = H / s, w = W / s. Causal: no output depends on later
    frames.
    """

    config: VAEConfig

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels per latent: (4, s, s)."""
        return self.config.strides

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Random parameters ``{"params": tree}``: kernels of variance 1/fan_in, no bias, attention switched off."""
        rows = vae_rows(self.config)
        dtype = jnp.dtype(self.config.param_dtype)
        # One draw cut into pieces: a draw per tensor takes a minute to compile on CPU.
        kernels = [row for row in rows if row.path[-1] == "kernel" and "proj" not in row.path]
        sizes = [math.prod(row.shape) for row in kernels]
        noise = jax.random.normal(rng, (sum(sizes),))
        cuts = dict(zip((row.path for row in kernels), itertools.accumulate(sizes, initial=0), strict=False))

        def leaf(row: Row) -> jax.Array:
            if row.path in cuts:
                piece = noise[cuts[row.path] : cuts[row.path] + math.prod(row.shape)].reshape(row.shape)
                return (piece * math.prod(row.shape[:-1]) ** -0.5).astype(dtype)
            return (jnp.ones if "norm" in row.path[-1] else jnp.zeros)(row.shape, dtype)

        return {"params": tree(rows, leaf)}

    def apply(self, variables: Mapping[str, Any], x: Any, *, method: str = "encode") -> Any:
        """Run one of the codec's methods on numpy or jax arrays, inside or outside jit.

        Args:
            variables: ``{"params": tree}``.
            x: video for "encode", "encode_chunked" and "moments"; normalised latents for "decode", "decode_chunked".
            method: "encode" -> normalised mean of the latents ``[B, F, h, w, C]``;
                "decode" -> video ``[B, T, H, W, 3]``, not clipped;
                "encode_chunked", "decode_chunked" -> the same numbers, working on 1 and then 4 frames (1 latent
                frame) at a time, so that memory does not grow with T;
                "moments" -> (mean, log-variance) of the latents before normalisation.

        Returns:
            float32 array(s).

        Raises:
            ValueError: unknown method, or a shape that the codec cannot take.
        """
        if method not in METHODS:
            raise ValueError(f"WanVAE has no method {method!r}; expected one of {METHODS}")
        self._check(x.shape, method)
        return _run(self.config, method, variables["params"], jnp.asarray(x))

    def _check(self, shape: tuple[int, ...], method: str) -> None:
        if method.startswith("decode"):
            if len(shape) != 5 or shape[-1] != self.config.z_dim or 0 in shape:
                raise ValueError(f"latents have shape {shape}; expected [B, F, h, w, {self.config.z_dim}]")
            return
        if len(shape) != 5 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"video has shape {shape}; expected [B, T, H, W, 3]")
        frames, height, width = shape[1:4]
        if frames % 4 != 1:
            raise ValueError(
                f"video has {frames} frames; the codec takes 4n + 1: crop to {max(frames - 1, 0) // 4 * 4 + 1}"
            )
        _, down, across = self.strides
        if height % down or width % across:
            raise ValueError(
                f"video is {height}x{width} pixels; the codec takes multiples of {down}: "
                f"crop to {height // down * down}x{width // across * across}"
            )


@partial(jax.jit, static_argnums=(0, 1))
def _run(config: VAEConfig, method: str, params: Params, x: jax.Array) -> Any:
    """The methods of :meth:`WanVAE.apply`."""
    dtype = jnp.dtype(config.dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    mean = jnp.asarray(config.latents_mean, jnp.float32)
    std = jnp.asarray(config.latents_std, jnp.float32)
    if method.startswith("decode"):
        z = (x.astype(jnp.float32) * std + mean).astype(dtype)
        step = partial(_decode, config, params)
        return (_in_chunks(step, z, 1) if method == "decode_chunked" else step(z, None)[0]).astype(jnp.float32)
    step = partial(_encode, config, params)
    z = _in_chunks(step, x.astype(dtype), 4) if method == "encode_chunked" else step(x.astype(dtype), None)[0]
    centre, logvar = jnp.split(z.astype(jnp.float32), 2, axis=-1)
    if method == "moments":
        return centre, jnp.clip(logvar, -30.0, 20.0)
    return (centre - mean) / std


def _encode(config: VAEConfig, params: Params, x: jax.Array, kept: _Kept | None) -> tuple[jax.Array, _Kept]:
    """Video (its first frame first, or a later chunk with what the chunk before kept) -> moments, kept frames."""
    memory, inner = Memory(kept), params["encoder"]
    x = causal_conv(inner["conv_in"], patchify(x, config.patch), memory)
    for stage in stages(encoder_plan(config)):
        x = run_stage(stage, inner, x, memory, shortcut=config.residual)
    x = head(inner, middle(inner, x, memory), memory)
    return causal_conv(params["quant_conv"], x, memory), tuple(memory.kept)


def _decode(config: VAEConfig, params: Params, z: jax.Array, kept: _Kept | None) -> tuple[jax.Array, _Kept]:
    """Latents as the encoder's mean -> video, kept frames."""
    memory, inner = Memory(kept), params["decoder"]
    x = causal_conv(inner["conv_in"], causal_conv(params["post_quant_conv"], z, memory), memory)
    x = middle(inner, x, memory)
    for stage in stages(decoder_plan(config)):
        # The decoder's last resolution has no shortcut: nothing is doubled there.
        x = run_stage(stage, inner, x, memory, shortcut=config.residual and stage[-1].kind != "residual")
    return unpatchify(head(inner, x, memory), config.patch), tuple(memory.kept)


def _in_chunks(
    step: Callable[[jax.Array, _Kept | None], tuple[jax.Array, _Kept]], x: jax.Array, size: int
) -> jax.Array:
    """``step`` on the first frame, then on ``size`` frames at a time, in one compiled loop."""
    first, kept = step(x[:, :1], None)
    rest = x[:, 1:]
    if not rest.shape[1]:
        return first
    chunks = jnp.moveaxis(rest.reshape(rest.shape[0], -1, size, *rest.shape[2:]), 1, 0)

    def body(carry: _Kept, chunk: jax.Array) -> tuple[_Kept, jax.Array]:
        out, carry = step(chunk, carry)
        return carry, out

    _, outs = jax.lax.scan(body, kept, chunks)
    outs = jnp.moveaxis(outs, 0, 1)
    return jnp.concatenate([first, outs.reshape(outs.shape[0], -1, *outs.shape[3:])], axis=1)
