"""The transformer of diffusers in float32, the reference: needs PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from tests.parity import dit_case
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import export_tensors
from wanjax.models.rows.dit import dit_rows


class ExactSinusoid(torch.nn.Module):
    """The timestep's sinusoid in float64, as the published implementation computes it; diffusers' is float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.half = dim // 2

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        frequency = 10000.0 ** (-torch.arange(self.half, dtype=torch.float64) / self.half)
        angle = timestep.to(torch.float64)[:, None] * frequency
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1).to(torch.float32)


def build(config: DiTConfig, *, exact_sinusoid: bool = True) -> WanTransformer3DModel:
    """diffusers' transformer of this config, freshly initialised."""
    model = WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn,
        num_layers=config.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=config.eps,
    )
    if exact_sinusoid:
        model.condition_embedder.timesteps_proj = ExactSinusoid(config.freq_dim)
    return model


def results(config: DiTConfig, inputs: dict[str, np.ndarray], *, seed: int = 0) -> dict[str, Any]:
    """Velocity [B, F, h, w, C] and, under diffusers' names, the gradients of sum(velocity · cotangent)."""
    model = build(config)
    tensors = export_tensors(dit_rows(config), dit_case.params(config, seed))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
    latents = torch.from_numpy(inputs["latents"]).permute(0, 4, 1, 2, 3)
    velocity = model(latents, torch.from_numpy(inputs["timestep"]), torch.from_numpy(inputs["text"])).sample
    velocity = velocity.permute(0, 2, 3, 4, 1)
    (velocity * torch.from_numpy(inputs["cotangent"])).sum().backward()
    return {
        "velocity": velocity.detach().numpy().copy(),
        "gradients": {name: p.grad.numpy().copy() for name, p in model.named_parameters()},
    }
