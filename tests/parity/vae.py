"""The codecs against diffusers' AutoencoderKLWan on CPU PyTorch, float32.

``python -m tests.parity.vae`` writes the recorded outputs that ``make test`` compares with; the same functions serve
the live comparison.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from safetensors.numpy import save_file

from tests.parity.vae_case import CASES, Case, foreign_params, recorded
from wanjax.hub_configs import vae_json
from wanjax.models.vae import VAEConfig


def reference(config: VAEConfig, params: dict[str, np.ndarray] | None = None) -> AutoencoderKLWan:
    """diffusers' codec with the given (default: the case's) parameters."""
    fields = {name: value for name, value in vae_json(config).items() if not name.startswith("_")}
    model = AutoencoderKLWan(**fields)
    state = {name: torch.from_numpy(array) for name, array in (params or foreign_params(config)).items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def outputs(case: Case) -> dict[str, np.ndarray]:
    """mean, logvar ``[1, F, h, w, C]`` of the case's clip, and the decoded ``video`` of its latents, before clipping.

    The reference clips what it decodes; its own chunk loop is repeated here without that last line.
    """
    config = case.config
    model = reference(config)
    with torch.no_grad():
        moments = model.encode(torch.from_numpy(np.moveaxis(case.video, -1, 1))).latent_dist
        z = case.latents * np.float32(config.latents_std) + np.float32(config.latents_mean)
        x = model.post_quant_conv(torch.from_numpy(np.ascontiguousarray(np.moveaxis(z, -1, 1))))
        model.clear_cache()
        frames = []
        for i in range(x.shape[2]):
            model._conv_idx = [0]
            cache = {"feat_cache": model._feat_map, "feat_idx": model._conv_idx}
            frames.append(model.decoder(x[:, :, i : i + 1], **cache, first_chunk=i == 0))
        decoded = unpatchify(torch.cat(frames, 2), config.patch)
    named = {"mean": moments.mean, "logvar": moments.logvar, "video": decoded}
    return {name: np.ascontiguousarray(np.moveaxis(array.numpy(), 1, -1)) for name, array in named.items()}


if __name__ == "__main__":
    for name, case in CASES.items():
        file = recorded(name)
        file.parent.mkdir(exist_ok=True)
        save_file(outputs(case), file)
        print(f"{file}: {file.stat().st_size} bytes")
