"""The whole loop's parity cases: every member of the family at tiny width, with inputs from seeds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from tests.parity import dit_case, umt5_case, vae_case
from wanjax.family import MEMBERS, Member
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import export_tensors
from wanjax.models.rows.dit import dit_rows
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae import WAN22, VAEConfig
from wanjax.sample_config import SampleConfig

PROMPT = "A lamp is switched on &amp; the wall turns warm,  sl\u00f6wly"
NEGATIVE = "overexposed, static"
FRAMES = 9

WAN21_CODEC = VAEConfig(base_dim=4, num_res_blocks=1)
WAN22_CODEC = dataclasses.replace(WAN22, base_dim=4, decoder_base_dim=6, num_res_blocks=1)
TEXT = UMT5Config(vocab_size=384, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=2)  # of bytes


@dataclass(frozen=True)
class Case:
    """A member and what it is sampled from.

    Attributes:
        member: a key of ``MEMBERS``.
        first, last: whether an image for the first or the last frame is given.
        expand_timesteps: as in ``model_index.json``.
    """

    member: str
    first: bool = False
    last: bool = False
    expand_timesteps: bool = False

    @property
    def published(self) -> Member:
        return MEMBERS[self.member]

    @property
    def kind(self) -> str:
        """As `wanjax.conditions.KINDS`."""
        return {"Wan2.2-I2V-A14B": "i2v", "Wan2.2-TI2V-5B": "ti2v"}.get(self.member, "t2v")

    @property
    def codec(self) -> VAEConfig:
        """Tiny, with the member's channels and strides."""
        return {VAEConfig().strides: WAN21_CODEC, WAN22.strides: WAN22_CODEC}[self.published.strides]

    @property
    def model(self) -> DiTConfig:
        """Tiny, with the member's channels and, roughly, its proportions."""
        model = self.published.model
        heads = model.heads // 12
        return DiTConfig(width=12 * heads, heads=heads, layers=model.layers // 15, ffn=model.ffn // 256, freq_dim=16,
                         text_dim=TEXT.d_model, in_channels=model.in_channels,
                         out_channels=model.out_channels)  # fmt: skip

    @property
    def sample(self) -> SampleConfig:
        """Published shift, boundary and guidance, on diffusers' grid; both experts get steps."""
        steps = 6 if len(self.published.experts) == 2 else 4
        config = dataclasses.replace(self.published.sample, steps=steps, grid="diffusers", negative_prompt=NEGATIVE)
        assert all(config.expert_steps[name] for name in self.published.experts)
        return config

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels: 2 x 3 tokens."""
        _, down, across = self.codec.strides
        return 4 * down, 6 * across

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        return 1, 1 + (FRAMES - 1) // 4, 4, 6, self.codec.z_dim

    @property
    def noise(self) -> np.ndarray:
        return np.random.default_rng(3).standard_normal(self.latent_shape).astype(np.float32)

    @property
    def images(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Of the first and the last frame, [H0, W0, 3] uint8: twice as high and wide as the clip, so of its shape."""
        height, width = self.size
        pictures = np.random.default_rng(4).integers(0, 256, (2, 2 * height, 2 * width, 3), dtype=np.uint8)
        return pictures[0] if self.first else None, pictures[1] if self.last else None

    def transformer(self, seed: int) -> dict[str, np.ndarray]:
        """Every tensor of one transformer under diffusers' names, all of them random."""
        return dict(export_tensors(dit_rows(self.model), dit_case.params(self.model, seed)))

    def vae(self, seed: int) -> dict[str, np.ndarray]:
        """As :meth:`transformer`; the last layer is small enough for most pixels to stay within [-1, 1]."""
        tensors = vae_case.foreign_params(self.codec, seed)
        return tensors | {name: tensors[name] * np.float32(0.2) for name in tensors if "decoder.conv_out" in name}

    def text(self, seed: int) -> dict[str, np.ndarray]:
        return umt5_case.foreign_params(TEXT, seed)


CASES = {
    "T2V-A14B": Case("Wan2.2-T2V-A14B"),
    "Wan2.1 14B": Case("Wan2.1-T2V-14B"),
    "Wan2.1 1.3B": Case("Wan2.1-T2V-1.3B"),
    "I2V-A14B": Case("Wan2.2-I2V-A14B", first=True),
    "I2V-A14B, first and last image": Case("Wan2.2-I2V-A14B", first=True, last=True),
    "TI2V-5B, from text": Case("Wan2.2-TI2V-5B", expand_timesteps=True),
    "TI2V-5B, from an image": Case("Wan2.2-TI2V-5B", first=True, expand_timesteps=True),
}
