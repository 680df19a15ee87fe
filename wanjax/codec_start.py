"""A start for codec training: weights that make the codec a fitted linear transform, before any gradient step.

Residual branches are switched off, so that encoder and decoder are pyramids of strided and upsampling convolutions.
The encoder's are principal components of 2×2 cells and of pairs of frames; the decoder's are fitted by least squares,
stage by stage, to what the encoder saw at the same stage. The heads, which normalise and pass through SiLU, become
nearly linear by two tricks: a channel holds a large constant, so that the norm hardly depends on the rest, and every
other channel stands beside its negative, since silu(u) − silu(−u) = u.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wanjax.models.vae import WanVAE
from wanjax.models.vae_config import VAEConfig, decoder_plan, encoder_plan
from wanjax.models.vae_layers import Memory, _over_time, _per_frame, causal_conv, run_block

ENCODER_CONSTANT = 24.0  # many times the deviation (1) of the other channels
DECODER_CONSTANT = 6.0  # the same, for pixels in [-1, 1]
RIDGE = 1e-4  # of the least squares, relative to the mean feature's energy

Tree = dict[str, Any]


class Stage(NamedTuple):
    """One downsampling step: what entered it and what left its spatial part, [B, T, H, W, channels in use]."""

    entered: np.ndarray
    spaced: np.ndarray


def linear_start(config: VAEConfig, video: np.ndarray, *, logvar: float, seed: int = 0) -> Tree:
    """Parameters of a codec that reconstructs clips like ``video`` before training.

    Args:
      config: sizes; latents unnormalised (means 0, deviations 1).
      video: [B, T, H, W, 3] uint8; a dozen clips are enough.
      logvar: log-variance of the posterior.
      seed: of the residual branches' first convolutions, which wait behind zeros.

    Raises:
      ValueError: if the codec is too narrow for the heads' pairs, or not of Wan2.1's architecture.
    """
    if config.residual or config.patch != 1 or config.decoder_width != config.base_dim:
        raise ValueError(f"patch = {config.patch}, residual = {config.residual}, decoder_base_dim = "
                         f"{config.decoder_base_dim}: a linear start exists for Wan2.1's architecture only; expected "
                         "1, False and None")
    _, fine, coarse, coarsest = (config.base_dim * mult for mult in config.dim_mult)
    if coarsest < 2 * config.z_dim + 1 or coarse < config.z_dim or fine // 2 < 7:
        raise ValueError(f"base_dim = {config.base_dim}, dim_mult = {config.dim_mult}: a linear start needs base_dim "
                         f"times the last three multiples to be at least 14, {config.z_dim} and {2 * config.z_dim + 1}")
    params: Tree = jax.tree.map(np.array, WanVAE(config).init(jax.random.key(seed))["params"])
    pixels = jnp.asarray(video, jnp.float32) / 127.5 - 1.0
    stages = _start_encoder(config, params, pixels)
    params["quant_conv"]["bias"][config.z_dim :] = logvar
    latents, _ = WanVAE(config).apply({"params": params}, pixels, method="moments")
    _start_decoder(config, params, latents, stages)
    return params


def _start_encoder(config: VAEConfig, params: Tree, pixels: jax.Array) -> list[Stage]:
    """Fills the encoder; returns its downsampling steps, from fine to coarse."""
    encoder = params["encoder"]
    _pass_through(encoder["conv_in"])
    x, used, stages = causal_conv(encoder["conv_in"], pixels, Memory(None)), 3, []
    for block in encoder_plan(config):
        part = encoder[block.name]
        if block.kind == "residual":
            _switch_off(part)
        else:
            entered, before = np.asarray(x[..., :used]), used
            cells = entered.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2, used)
            components = _components(cells.transpose(0, 1, 2, 4, 3, 5, 6).reshape(-1, 4 * used), x.shape[-1])
            kernel, used = _cleared(part["space"]), components.shape[1]
            kernel[:2, :2, :before, :used] = components.reshape(2, 2, before, used)
            spaced = np.asarray(_per_frame(x, jnp.asarray(kernel), stride=2)[..., :used])
            stages.append(Stage(entered, spaced))
            if "time" in part:
                pairs, before = np.concatenate([spaced[:, 1::2], spaced[:, 2::2]], -1), used
                components = _components(pairs, x.shape[-1])
                kernel, used = _cleared(part["time"]), components.shape[1]
                kernel[1, 0, 0, :before, :used], kernel[2, 0, 0, :before, :used] = np.split(components, 2)
        x = run_block(block, part, x, Memory(None))
    _middle_off(encoder)
    last = [block for block in encoder_plan(config) if "shortcut" in encoder[block.name]][-1]
    _encoder_head(config, params, encoder[last.name]["shortcut"], np.asarray(x[..., :used]))
    return stages


def _encoder_head(config: VAEConfig, params: Tree, shortcut: Tree, features: np.ndarray) -> None:
    """Latents = the components of the coarsest features, with deviation 1, as pairs beside a constant."""
    encoder, z = params["encoder"], config.z_dim
    mean = features.reshape(-1, features.shape[-1]).mean(0)
    # the first frame's features mean something else than the others', and are few
    both = np.concatenate([np.repeat(features[:, :1], 2, 1), features[:, 1:]], 1)
    components = _components(both, z)
    components = components / ((features - mean) @ components).reshape(-1, z).std(0)
    kernel, used = _cleared(shortcut), len(mean)
    for sign, first in ((1.0, 0), (-1.0, z)):
        kernel[0, 0, 0, :used, first : first + z] = sign * components
        shortcut["bias"][first : first + z] = -sign * (mean @ components)
    _pair_head(encoder, shortcut["bias"], outputs=z, constant=ENCODER_CONSTANT)
    _pass_through(params["quant_conv"])


def _start_decoder(config: VAEConfig, params: Tree, latents: jax.Array, stages: list[Stage]) -> None:
    """Fills the decoder so that each upsampling step undoes one of ``stages``."""
    decoder, z = params["decoder"], config.z_dim
    _pass_through(params["post_quant_conv"])
    kernel = _cleared(decoder["conv_in"])
    width = kernel.shape[-1]
    for i, stencil in enumerate(_stencils()):
        for channel in range(z):
            if i * z + channel < width:
                kernel[-1, :, :, channel, i * z + channel] = stencil
    x = causal_conv(decoder["conv_in"], latents, Memory(None))
    _middle_off(decoder)
    last = [block for block in decoder_plan(config) if block.kind != "residual"][-1]
    for block in decoder_plan(config):
        part = decoder[block.name]
        if block.kind == "residual":
            _switch_off(part)
        else:
            stage = stages.pop()
            doubled = _fit_time(part["time"], x, stage.spaced) if "time" in part else np.asarray(x)
            _fit_space(part["space"], doubled, stage.entered, last=block == last)
        x = run_block(block, part, x, Memory(None))
    _pair_head(decoder, decoder[last.name]["space"]["bias"], outputs=3, constant=DECODER_CONSTANT)


def _fit_time(part: Tree, x: jax.Array, target: np.ndarray) -> np.ndarray:
    """Fits the temporal convolution to both frames of each pair; returns its output, the first frame passed by."""
    channels = x.shape[-1]
    wanted = _with_stencils(target)[..., :channels]
    rest = np.asarray(x[:, 1:])
    past = np.pad(rest, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0)))
    seen = np.concatenate([past[:, tap : tap + rest.shape[1]] for tap in range(3)], -1)
    weights, bias = _least_squares(seen, np.concatenate([wanted[:, 1::2], wanted[:, 2::2]], -1))
    kernel, many = _cleared(part), wanted.shape[-1]
    for half in range(2):
        columns = slice(half * many, (half + 1) * many)
        kernel[:, 0, 0, :, half * channels : half * channels + many] = weights[:, columns].reshape(3, channels, many)
        part["bias"][half * channels : half * channels + many] = bias[columns]
    pairs = np.asarray(_over_time(part, jnp.asarray(rest), None))
    b, frames, h, w, _ = pairs.shape
    doubled = np.moveaxis(pairs.reshape(b, frames, h, w, 2, channels), 4, 2).reshape(b, 2 * frames, h, w, channels)
    return np.concatenate([np.asarray(x[:, :1]), doubled], axis=1)


def _fit_space(part: Tree, x: np.ndarray, target: np.ndarray, *, last: bool) -> None:
    """Fits the convolution behind the nearest-neighbour doubling; the last one gives pixels and their negatives."""
    near = np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)
    padded = np.pad(near, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = near.shape[2:4]
    seen = np.concatenate([padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)
    kernel = _cleared(part)
    wanted = target[..., :3] if last else _with_stencils(target)[..., : kernel.shape[-1]]
    weights, bias = _least_squares(seen, wanted)
    many = wanted.shape[-1]
    kernel[..., :many], part["bias"][:many] = weights.reshape(3, 3, x.shape[-1], many), bias
    if last:
        kernel[..., 3:6], part["bias"][3:6] = -kernel[..., :3], -part["bias"][:3]


def _pair_head(side: Tree, bias: np.ndarray, *, outputs: int, constant: float) -> None:
    """norm_out → SiLU → conv_out as channel i minus channel ``outputs + i``; the last channel holds the constant."""
    bias[-1] = constant
    side["norm_out"][:] = 1.0
    side["norm_out"][-1] = 0.0
    kernel, gain = _cleared(side["conv_out"]), constant / len(bias) ** 0.5
    for i in range(outputs):
        kernel[-1, 1, 1, i, i], kernel[-1, 1, 1, outputs + i, i] = gain, -gain


def _components(rows: np.ndarray, count: int) -> np.ndarray:
    """Principal components [n, min(count, n)] of ``rows [..., n]``, largest first."""
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov((rows - rows.mean(0)).T))
    return vectors[:, ::-1][:, :count].astype(np.float32)


def _least_squares(seen: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression: weights [n, m] and bias [m] that take ``seen [..., n]`` to ``wanted [..., m]``."""
    seen, wanted = (x.reshape(-1, x.shape[-1]) for x in (seen, wanted))
    count = seen.shape[1] + 1
    gram, right = np.zeros((count, count)), np.zeros((count, wanted.shape[1]))
    for start in range(0, len(seen), 1 << 14):  # in pieces: the whole does not fit in float64
        piece = seen[start : start + (1 << 14)].astype(np.float64)
        piece = np.concatenate([piece, np.ones((len(piece), 1))], 1)
        gram += piece.T @ piece / len(seen)
        right += piece.T @ wanted[start : start + (1 << 14)] / len(seen)
    solved = np.linalg.solve(gram + RIDGE * np.trace(gram) / count * np.eye(count), right)
    return solved[:-1].astype(np.float32), solved[-1].astype(np.float32)


def _stencils() -> list[np.ndarray]:
    """Identity, Laplacian, and differences along width and height: what lets doubled pixels differ within a cell."""
    same, laplacian, along = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    same[1, 1] = 1.0
    laplacian[1, 1], laplacian[0, 1], laplacian[2, 1], laplacian[1, 0], laplacian[1, 2] = -1.0, 0.25, 0.25, 0.25, 0.25
    along[1, 0], along[1, 2] = -0.5, 0.5
    return [same, laplacian, along, along.T]


def _with_stencils(x: np.ndarray) -> np.ndarray:
    """[..., C] → [..., 4C]: ``x`` through each stencil, edges repeated."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = x.shape[2:4]
    return np.concatenate([
        sum(stencil[i, j] * padded[:, :, i : i + height, j : j + width] for i, j in np.argwhere(stencil))
        for stencil in _stencils()
    ], -1).astype(np.float32)


def _cleared(part: Tree) -> np.ndarray:
    """The kernel, after kernel and bias were set to zero."""
    part["kernel"][:] = 0.0
    part["bias"][:] = 0.0
    return part["kernel"]


def _pass_through(part: Tree) -> None:
    """Makes a convolution hand on its channels, as many as fit."""
    kernel = _cleared(part)
    centre = (kernel.shape[0] - 1, *(n // 2 for n in kernel.shape[1:3]))
    kernel[centre] = np.eye(*kernel.shape[-2:])


def _switch_off(part: Mapping[str, Tree]) -> None:
    """Zeroes a residual branch's last convolution; what stands beside it hands the channels on."""
    _cleared(part["conv2"])
    if "shortcut" in part:
        _pass_through(part["shortcut"])


def _middle_off(side: Tree) -> None:
    for name in ("mid_0", "mid_1"):
        _switch_off(side[name])
    _cleared(side["mid_attention"]["proj"])

