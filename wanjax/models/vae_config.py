"""Sizes of Wan's codecs (Wan2.1's and Wan2.2's) and the order of their blocks.

Kept apart from the network so that the row table (names of tensors) and the network read one plan.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

# Published per-channel statistics of Wan2.1's latents (``vae/config.json`` of the diffusers layout).
WAN_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
# The same of Wan2.2's latents (``vae/config.json`` of TI2V-5B, ``wan/modules/vae2_2.py`` of the official code).
WAN22_LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a codec; the defaults are Wan2.1's, :data:`WAN22` holds Wan2.2's.

    Attributes:
        base_dim: the encoder's channels at full resolution.
        z_dim: latent channels C.
        dim_mult: channels of each resolution as multiples of ``base_dim``; three halvings make four entries.
        num_res_blocks: residual blocks per resolution in the encoder (the decoder has one more).
        temporal_downsample: which of the three halvings also halves time.
        latents_mean, latents_std: per-channel statistics by which latents are normalised, C entries each.
        dtype: compute type of the decoder. Norms run in float32 whatever it is.
        encoder_dtype: the encoder's. Latents are made once and keep its rounding, so it does not follow ``dtype``.
        param_dtype: type that ``init`` makes.
        patch: side of the squares of pixels that the network takes as one; 2 in Wan2.2.
        decoder_base_dim: the decoder's channels at full resolution; None takes ``base_dim``.
        residual: every resolution has a shortcut without parameters around it, as in Wan2.2: averages on the way
            down, duplicates on the way up.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = WAN_LATENTS_MEAN
    latents_std: tuple[float, ...] = WAN_LATENTS_STD
    dtype: str = "float32"
    encoder_dtype: str = "float32"
    param_dtype: str = "float32"
    patch: int = 1
    decoder_base_dim: int | None = None
    residual: bool = False

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels per latent."""
        return 4, 8 * self.patch, 8 * self.patch

    @property
    def pixel_channels(self) -> int:
        """Channels of a patch of pixels: what the encoder's first convolution takes and the decoder's last gives."""
        return 3 * self.patch**2

    @property
    def decoder_width(self) -> int:
        """The decoder's channels at full resolution."""
        return self.base_dim if self.decoder_base_dim is None else self.decoder_base_dim

    def __post_init__(self) -> None:
        for name in ("base_dim", "z_dim", "num_res_blocks", "patch", "decoder_width"):
            if getattr(self, name) < 1:
                field = name.replace("width", "base_dim")
                raise ValueError(f"VAEConfig.{field} is {getattr(self, name)}; it must be at least 1")
        if len(self.dim_mult) != 4 or min(self.dim_mult) < 1:
            raise ValueError(f"VAEConfig.dim_mult is {self.dim_mult}; expected 4 positive integers")
        if len(self.temporal_downsample) != 3 or sum(self.temporal_downsample) != 2:
            raise ValueError(
                f"VAEConfig.temporal_downsample is {self.temporal_downsample}; expected 3 entries of which 2 are true "
                "(the codec's stride in time is 4)"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(
                    f"VAEConfig.{name} has {len(getattr(self, name))} entries; expected z_dim = {self.z_dim}"
                )
        if min(self.latents_std) <= 0:
            raise ValueError(f"VAEConfig.latents_std {self.latents_std} must be positive")
        for name in ("dtype", "encoder_dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"VAEConfig.{name} is {getattr(self, name)!r}; expected one of {DTYPES}")
        if self.residual:
            self._check_shortcuts()
        elif any(self.decoder_width * mult % 2 for mult in self.dim_mult[1:]):
            raise ValueError(
                f"VAEConfig.decoder_base_dim (base_dim where None) {self.decoder_width} with dim_mult "
                f"{self.dim_mult}: the decoder halves channels when it doubles the size, so it times each of the last "
                "three multiples must be even"
            )

    def _check_shortcuts(self) -> None:
        """The shortcuts regroup channels, which asks that one side divide the other."""
        for stage in stages(encoder_plan(self)):
            inputs, outputs = stage[0].inputs * stage[-1].shrink, stage[-1].outputs
            if inputs % outputs:
                raise ValueError(
                    f"VAEConfig.dim_mult {self.dim_mult}: the encoder's shortcut at resolution {stage[0].stage} "
                    f"averages {inputs} values into {outputs} channels, which must divide them"
                )
        for stage in stages(decoder_plan(self))[:-1]:
            inputs, outputs = stage[0].inputs, stage[-1].outputs * stage[-1].shrink
            if outputs % inputs:
                raise ValueError(
                    f"VAEConfig.dim_mult {self.dim_mult}: the decoder's shortcut at resolution {stage[0].stage} "
                    f"repeats {inputs} channels into {outputs} values, which they must divide"
                )


@dataclass(frozen=True)
class Block:
    """One block of the plan.

    Attributes:
        name: key in our parameters (``down_0`` ..., ``up_0`` ...).
        kind: "residual", "down" (space), "down_time" (space and time), "up" or "up_time".
        inputs, outputs: channels.
        stage: resolution that it belongs to, counted in the order of the run.
        index: its place among the residual blocks of its stage.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    stage: int
    index: int

    @property
    def shrink(self) -> int:
        """Cells (in time and space) that the block makes one of, or makes of one."""
        return {"residual": 1, "down": 4, "up": 4, "down_time": 8, "up_time": 8}[self.kind]


def stages(plan: tuple[Block, ...]) -> tuple[tuple[Block, ...], ...]:
    """The blocks of a plan by resolution."""
    return tuple(tuple(group) for _, group in itertools.groupby(plan, key=lambda block: block.stage))


def encoder_plan(config: VAEConfig) -> tuple[Block, ...]:
    """Blocks between the encoder's first convolution and its middle."""
    blocks: list[Block] = []
    channels = config.base_dim
    for stage, mult in enumerate(config.dim_mult):
        for index in range(config.num_res_blocks):
            blocks.append(Block(f"down_{len(blocks)}", "residual", channels, config.base_dim * mult, stage, index))
            channels = config.base_dim * mult
        if stage < 3:
            kind = "down_time" if config.temporal_downsample[stage] else "down"
            blocks.append(Block(f"down_{len(blocks)}", kind, channels, channels, stage, 0))
    return tuple(blocks)


def decoder_plan(config: VAEConfig) -> tuple[Block, ...]:
    """Blocks between the decoder's middle and its last convolution."""
    blocks: list[Block] = []
    channels = config.decoder_width * config.dim_mult[-1]
    for stage, mult in enumerate(reversed(config.dim_mult)):
        outputs = config.decoder_width * mult
        for index in range(config.num_res_blocks + 1):
            blocks.append(Block(f"up_{len(blocks)}", "residual", channels, outputs, stage, index))
            channels = outputs
        if stage < 3:
            kind = "up_time" if config.temporal_downsample[2 - stage] else "up"
            outputs = channels if config.residual else channels // 2
            blocks.append(Block(f"up_{len(blocks)}", kind, channels, outputs, stage, 0))
            channels = outputs
    return tuple(blocks)


WAN22 = VAEConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    latents_mean=WAN22_LATENTS_MEAN,
    latents_std=WAN22_LATENTS_STD,
    patch=2,
    residual=True,
)
