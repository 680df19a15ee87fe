"""The codec against diffusers' AutoencoderKLWan on CPU PyTorch, float32.

``python -m tests.parity.vae`` writes the recorded outputs that ``make test`` compares with; the same functions serve
the live comparison.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.numpy import save_file

from tests.parity.vae_case import CONFIG, RECORDED, foreign_params, latents, video
from wanjax.hub_configs import vae_json
from wanjax.models.vae import VAEConfig


def reference(config: VAEConfig = CONFIG, params: dict[str, np.ndarray] | None = None) -> AutoencoderKLWan:
    """diffusers' codec with the given (default: the case's) parameters."""
    fields = {name: value for name, value in vae_json(config).items() if not name.startswith("_")}
    model = AutoencoderKLWan(**fields)
    state = {name: torch.from_numpy(array) for name, array in (params or foreign_params(config)).items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def outputs(config: VAEConfig = CONFIG) -> dict[str, np.ndarray]:
    """mean, logvar ``[1, F, h, w, C]`` of the case's clip, and the decoded ``video`` of its latents, before clipping.

    The reference clips what it decodes; its own chunk loop is repeated here without that last line.
    """
    model = reference(config)
    with torch.no_grad():
        moments = model.encode(torch.from_numpy(np.moveaxis(video(), -1, 1))).latent_dist
        z = latents() * np.float32(config.latents_std) + np.float32(config.latents_mean)
        x = model.post_quant_conv(torch.from_numpy(np.ascontiguousarray(np.moveaxis(z, -1, 1))))
        model.clear_cache()
        frames = []
        for i in range(x.shape[2]):
            model._conv_idx = [0]
            frames.append(model.decoder(x[:, :, i : i + 1], feat_cache=model._feat_map, feat_idx=model._conv_idx))
        decoded = torch.cat(frames, 2)
    named = {"mean": moments.mean, "logvar": moments.logvar, "video": decoded}
    return {name: np.ascontiguousarray(np.moveaxis(array.numpy(), 1, -1)) for name, array in named.items()}


if __name__ == "__main__":
    RECORDED.parent.mkdir(exist_ok=True)
    save_file(outputs(), RECORDED)
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes")
