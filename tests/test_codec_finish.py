"""Scaling the latents changes what the channels weigh, not what the codec gives back; brightening moves its light."""
from dataclasses import replace

import jax
import numpy as np
import pytest

from wanjax import codec_finish
from wanjax.codec_start import linear_start
from wanjax.models.vae import VAEConfig, WanVAE

CONFIG = VAEConfig(base_dim=8, num_res_blocks=1, dim_mult=(1, 2, 6, 8), latents_mean=(0.0,) * 16,
                   latents_std=(1.0,) * 16)


def moving_gradients() -> np.ndarray:
    """Two clips of smooth colour that moves, uint8 [2, 5, 32, 32, 3]."""
    draw = np.random.default_rng(0)
    t, y, x = np.meshgrid(np.arange(5), np.arange(32), np.arange(32), indexing="ij")
    waves = [np.sin(draw.uniform(0.05, 0.4) * x + draw.uniform(0.05, 0.4) * y + draw.uniform(0.1, 0.5) * t + k)
             for k in range(6)]
    return (127.5 + 100 * np.stack(waves).reshape(2, 3, 5, 32, 32).transpose(0, 2, 3, 4, 1)).astype(np.uint8)


def test_a_linear_start_reconstructs_and_balancing_keeps_it():
    clips = moving_gradients()
    params = linear_start(CONFIG, clips, logvar=-6.0)
    balanced = codec_finish.balance(CONFIG, params, clips)
    scaled = codec_finish.with_statistics(CONFIG, balanced, clips)
    pixels = clips / np.float32(127.5) - 1

    def there_and_back(config, params):
        model = WanVAE(config)
        latents = model.apply({"params": params}, pixels)
        return np.asarray(latents), np.asarray(model.apply({"params": params}, latents, method="decode"))

    _, before = there_and_back(CONFIG, params)
    latents, after = there_and_back(scaled, balanced)
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert 10 * np.log10(4 / np.mean((before - pixels) ** 2)) > 25  # dB, before any training
    deviations = latents.reshape(-1, 16).std(0)
    np.testing.assert_allclose(np.sqrt(np.mean(deviations**2)), 1.0, rtol=1e-3)
    np.testing.assert_allclose(latents.reshape(-1, 16).mean(0), 0.0, atol=1e-3)
    # a channel's deviation is the root of the picture's amplitude that goes when the channel goes
    amplitude = [np.sqrt(np.mean((clips - after) ** 2)) for clips in without_each_channel(scaled, balanced, pixels)]
    assert np.corrcoef(np.log(amplitude), np.log(deviations))[0, 1] > 0.8


def without_each_channel(config, params, pixels):
    """For each channel of the latents, the clips with that channel at its mean."""
    model = WanVAE(config)
    latents = np.array(model.apply({"params": params}, pixels))
    for channel in range(latents.shape[-1]):
        flat = latents.copy()
        flat[..., channel] = flat[..., channel].mean()
        yield np.asarray(model.apply({"params": params}, flat, method="decode"))


def test_brightening_takes_out_a_constant():
    clips = moving_gradients() // 4
    params = jax.tree.map(np.array, linear_start(CONFIG, clips, logvar=-6.0))
    params["decoder"]["conv_out"]["bias"] -= 0.01
    pixels, model = clips / np.float32(127.5) - 1, WanVAE(CONFIG)
    errors = []
    for weights in (params, codec_finish.brighten(CONFIG, params, clips)):
        latents = model.apply({"params": weights}, pixels)
        made = np.asarray(model.apply({"params": weights}, latents, method="decode"))
        errors.append(np.mean([np.abs(codec_finish.frame_error(a, b)) for a, b in zip(made, clips, strict=True)]))
    assert errors[0] > 0.02 and errors[1] < errors[0] / 2


def test_a_linear_start_is_of_wan21s_architecture():
    with pytest.raises(ValueError, match=r"patch = 2, .*linear start exists for Wan2.1's architecture only"):
        linear_start(replace(CONFIG, patch=2), moving_gradients(), logvar=-6.0)
