"""What is set in closed form once a codec is trained: the scale of its latents, and the brightness it gives back.

The scale says how much of the noise each channel outlives. Latents of unit deviation in every channel make a
diffusion model spend as much on the finest detail as on the brightness of the frame. Here a channel's deviation is the
square root of its share of the picture's energy, and one common factor (as latent diffusion's scale factor, Rombach et
al., 2022) brings the joint deviation to 1. The change is exact: what leaves the encoder is multiplied, what enters the
decoder divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from wanjax.light.photometry import log_luminance, srgb_to_linear
from wanjax.models.vae import VAEConfig, WanVAE

NUDGE = 0.3  # deviations of a channel by which its effect on the pixels is measured


def balance(config: VAEConfig, params: Mapping[str, Any], video: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Parameters whose latents have the deviations above; encoding then decoding gives what it gave before.

    Args:
      config: latents unnormalised (means 0, deviations 1).
      video: uint8 [n, T, H, W, 3], a dozen clips.
      seed: of the signs of the nudges.
    """
    model, balanced = WanVAE(config), jax.tree.map(np.array, dict(params))
    latents = _latents(model, params, video)
    deviation = latents.reshape(-1, config.z_dim).std(0)
    decode = [np.asarray(model.apply({"params": params}, z[None], method="decode")) for z in latents]
    draw, effect = np.random.default_rng(seed), np.zeros(config.z_dim)
    for channel in range(config.z_dim):
        for z, before in zip(latents, decode, strict=True):
            nudged = z.copy()
            nudged[..., channel] += NUDGE * deviation[channel] * draw.choice([-1, 1], size=z.shape[:-1])
            after = np.asarray(model.apply({"params": params}, nudged[None], method="decode"))
            effect[channel] += np.mean((after - before) ** 2) / len(latents)
    wanted = effect**0.25  # effect is an energy, its root an amplitude, and the root of that the deviation wanted
    factor = (wanted / np.sqrt(np.mean(wanted**2)) / deviation).astype(np.float32)
    out, into = balanced["quant_conv"], balanced["post_quant_conv"]
    out["kernel"][..., : config.z_dim] *= factor
    out["bias"][: config.z_dim] *= factor
    out["bias"][config.z_dim :] += 2 * np.log(factor)
    into["kernel"] = into["kernel"] / factor[:, None]
    return balanced


def brighten(config: VAEConfig, params: Mapping[str, Any], video: np.ndarray) -> dict[str, Any]:
    """Parameters whose decoded frames have, on average, the true luminance: one constant added to every pixel.

    Means of |error| leave a codec a little too dark or bright in dark scenes, where a thousandth of the range is a
    visible part of a stop. The constant is the one that makes the mean |error of a frame's log-luminance| smallest.

    Args:
      config: latents unnormalised (means 0, deviations 1).
      video: uint8 [n, T, H, W, 3].
    """
    model, brightened = WanVAE(config), jax.tree.map(np.array, dict(params))
    pairs = []
    for clip in video:
        z = model.apply({"params": params}, clip[None] / np.float32(127.5) - 1, method="moments")[0]
        pairs.append((np.asarray(model.apply({"params": params}, z, method="decode"))[0], clip))

    def error(constant: float) -> float:
        return float(np.mean([np.abs(frame_error(made + constant, clip)) for made, clip in pairs]))

    brightened["decoder"]["conv_out"]["bias"] += min(np.linspace(-0.02, 0.02, 41), key=error)
    return brightened


def frame_error(made: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Error of each frame's light in stops, [T]: log2 of mean linear luminance (+ 0.001), made minus true.

    Args:
      made: [T, H, W, 3] in [-1, 1], taken as the 8-bit frames that a file would hold.
      clip: the true frames, uint8 [T, H, W, 3].
    """
    shown = np.clip(np.round((made + 1) * 127.5), 0, 255)
    levels = [log_luminance(srgb_to_linear(x / 255.0).mean((1, 2))) for x in (shown, clip)]
    return np.asarray(levels[0] - levels[1])


def with_statistics(config: VAEConfig, params: Mapping[str, Any], video: np.ndarray) -> VAEConfig:
    """The config whose latents have mean 0 per channel and one joint deviation of 1 on ``video`` (uint8)."""
    cells = _latents(WanVAE(config), params, video).reshape(-1, config.z_dim).astype(np.float64)
    centre, scale = cells.mean(0), max(float(np.sqrt(np.mean(cells.std(0) ** 2))), 1e-4)
    return replace(config, latents_mean=tuple(float(np.float32(x)) for x in centre),
                   latents_std=(float(np.float32(scale)),) * config.z_dim)


def _latents(model: WanVAE, params: Mapping[str, Any], video: np.ndarray) -> np.ndarray:
    """Means [n, F, h, w, C] before normalisation."""
    return np.concatenate([
        np.asarray(model.apply({"params": params}, clip[None] / np.float32(127.5) - 1, method="moments")[0])
        for clip in video
    ])
