"""Sizes of the Wan2.1 codec and the order of its blocks.

Kept apart from the network so that the row table (names of tensors) and the network read one plan.
"""

from __future__ import annotations

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
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the codec; the defaults are Wan2.1's.

    Attributes:
        base_dim: channels at full resolution.
        z_dim: latent channels C.
        dim_mult: channels of each resolution as multiples of ``base_dim``; three halvings make four entries.
        num_res_blocks: residual blocks per resolution in the encoder (the decoder has one more).
        temporal_downsample: which of the three halvings also halves time.
        latents_mean, latents_std: per-channel statistics by which latents are normalised, C entries each.
        dtype: compute type. Norms run in float32 whatever it is.
        param_dtype: type that ``init`` makes.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = WAN_LATENTS_MEAN
    latents_std: tuple[float, ...] = WAN_LATENTS_STD
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("base_dim", "z_dim", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"VAEConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if len(self.dim_mult) != 4 or min(self.dim_mult) < 1:
            raise ValueError(f"VAEConfig.dim_mult is {self.dim_mult}; expected 4 positive integers")
        if len(self.temporal_downsample) != 3 or sum(self.temporal_downsample) != 2:
            raise ValueError(
                f"VAEConfig.temporal_downsample is {self.temporal_downsample}; expected 3 entries of which 2 are true "
                "(the codec's stride in time is 4)"
            )
        if any(self.base_dim * mult % 2 for mult in self.dim_mult[1:]):
            raise ValueError(
                f"VAEConfig.base_dim {self.base_dim} with dim_mult {self.dim_mult}: the decoder halves channels when "
                "it doubles the size, so base_dim times each of the last three multiples must be even"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(
                    f"VAEConfig.{name} has {len(getattr(self, name))} entries; expected z_dim = {self.z_dim}"
                )
        if min(self.latents_std) <= 0:
            raise ValueError(f"VAEConfig.latents_std {self.latents_std} must be positive")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"VAEConfig.{name} is {getattr(self, name)!r}; expected one of {DTYPES}")


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
    channels = config.base_dim * config.dim_mult[-1]
    for stage, mult in enumerate(reversed(config.dim_mult)):
        outputs = config.base_dim * mult
        for index in range(config.num_res_blocks + 1):
            blocks.append(Block(f"up_{len(blocks)}", "residual", channels, outputs, stage, index))
            channels = outputs
        if stage < 3:
            kind = "up_time" if config.temporal_downsample[2 - stage] else "up"
            blocks.append(Block(f"up_{len(blocks)}", kind, channels, channels // 2, stage, 0))
            channels //= 2
    return tuple(blocks)
