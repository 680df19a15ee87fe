"""The published members of the Wan family: architecture of the transformers, and how each is sampled.

Sources: wan/configs of github.com/Wan-Video/Wan2.2 and of Wan2.1, whose defaults these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wanjax.expert_boundary import BOUNDARIES
from wanjax.models import rows
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.sample_config import SampleConfig

WAN21_STRIDES, WAN22_STRIDES = (4, 8, 8), (4, 16, 16)


@dataclass(frozen=True)
class Member:
    """One checkpoint of the family.

    Attributes:
        model: of each transformer, in float32: precision is its user's choice.
        experts: the transformers. A single one is the "high" expert at boundary 0, where every step is its own.
        latent_channels: C of the codec.
        strides: of the codec in frames, height and width.
        frames, height, width, fps: of a clip, in pixels and frames per second.
        sample: published settings, without the reference's negative prompt.
    """

    model: DiTConfig
    experts: tuple[str, ...]
    latent_channels: int
    strides: tuple[int, int, int]
    frames: int
    height: int
    width: int
    fps: float
    sample: SampleConfig

    @property
    def parameters(self) -> int:
        """Parameters of one transformer; allocates nothing."""
        return rows.count(dit_rows(self.model))

    @property
    def tokens(self) -> int:
        """N of a clip of this size."""
        time, down_h, down_w = self.strides
        latents = (1 + (self.frames - 1) // time, self.height // down_h, self.width // down_w)
        frames, height, width = self.model.grid(latents)
        return frames * height * width


_TWO_EXPERTS, _ONE_EXPERT = ("high", "low"), ("high",)
_ONE_EXPERT_SAMPLE = SampleConfig(steps=50, shift=5.0, guidance_high=5.0, guidance_low=5.0, boundary=0.0)

MEMBERS = {
    "Wan2.2-T2V-A14B": Member(
        DiTConfig(width=5120, heads=40, layers=40, ffn=13824, in_channels=16, out_channels=16),
        _TWO_EXPERTS, 16, WAN21_STRIDES, 81, 480, 832, 16.0,
        SampleConfig(steps=40, shift=12.0, guidance_high=4.0, guidance_low=3.0, boundary=BOUNDARIES["t2v"]),
    ),
    # reads the noisy latents, 4 channels that say which frames are given, and the latents of the given frames
    "Wan2.2-I2V-A14B": Member(
        DiTConfig(width=5120, heads=40, layers=40, ffn=13824, in_channels=16 + 4 + 16, out_channels=16),
        _TWO_EXPERTS, 16, WAN21_STRIDES, 81, 480, 832, 16.0,
        SampleConfig(steps=40, shift=5.0, guidance_high=3.5, guidance_low=3.5, boundary=BOUNDARIES["i2v"]),
    ),
    "Wan2.2-TI2V-5B": Member(
        DiTConfig(width=3072, heads=24, layers=30, ffn=14336, in_channels=48, out_channels=48),
        _ONE_EXPERT, 48, WAN22_STRIDES, 121, 704, 1280, 24.0, _ONE_EXPERT_SAMPLE,
    ),
    "Wan2.1-T2V-14B": Member(
        DiTConfig(width=5120, heads=40, layers=40, ffn=13824, in_channels=16, out_channels=16),
        _ONE_EXPERT, 16, WAN21_STRIDES, 81, 720, 1280, 16.0, _ONE_EXPERT_SAMPLE,
    ),
    "Wan2.1-T2V-1.3B": Member(
        DiTConfig(width=1536, heads=12, layers=30, ffn=8960, in_channels=16, out_channels=16),
        _ONE_EXPERT, 16, WAN21_STRIDES, 81, 480, 832, 16.0, _ONE_EXPERT_SAMPLE,
    ),
}  # fmt: skip


def member_like(models: Sequence[DiTConfig]) -> Member:
    """The member whose published settings fit a checkpoint: told by how many transformers it has and what they read.

    Args:
        models: of each transformer, one or two.
    Returns: among those with as many transformers, the one that reads as many channels and is nearest in width.
    """
    like = [member for member in MEMBERS.values() if len(member.experts) == len(models)]

    def distance(member: Member) -> tuple[bool, int]:
        return member.model.in_channels != models[0].in_channels, abs(member.model.width - models[0].width)

    return min(like, key=distance)
