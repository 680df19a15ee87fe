"""Rows of Wan's codecs."""

from __future__ import annotations

from wanjax.models.rows import Row
from wanjax.models.vae_config import Block, VAEConfig, decoder_plan, encoder_plan


class _Table:
    """Collects rows; a name is a pair (diffusers, official)."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def conv(self, path: tuple[str, ...], names: tuple[str, str], kernel: tuple[int, ...]) -> None:
        """A kernel ``[(kt,) kh, kw, I, O]`` and its bias."""
        layout = "conv3d" if len(kernel) == 5 else "conv2d"
        axes = (None,) * len(kernel)  # replicated: the codec is small beside the transformer
        self.rows.append(
            Row((*path, "kernel"), kernel, axes, names[0] + ".weight", names[1] + ".weight", layout=layout)
        )
        self.rows.append(Row((*path, "bias"), kernel[-1:], (None,), names[0] + ".bias", names[1] + ".bias"))

    def gamma(self, path: tuple[str, ...], names: tuple[str, str], channels: int, layout: str = "gamma3d") -> None:
        self.rows.append(
            Row(path, (channels,), (None,), names[0] + ".gamma", names[1] + ".gamma", layout=layout)
        )

    def residual(self, path: tuple[str, ...], names: tuple[str, str], inputs: int, outputs: int) -> None:
        ours, theirs = names
        self.gamma((*path, "norm1"), (f"{ours}.norm1", f"{theirs}.residual.0"), inputs)
        self.conv((*path, "conv1"), (f"{ours}.conv1", f"{theirs}.residual.2"), (3, 3, 3, inputs, outputs))
        self.gamma((*path, "norm2"), (f"{ours}.norm2", f"{theirs}.residual.3"), outputs)
        self.conv((*path, "conv2"), (f"{ours}.conv2", f"{theirs}.residual.6"), (3, 3, 3, outputs, outputs))
        if inputs != outputs:
            shortcut = (f"{ours}.conv_shortcut", f"{theirs}.shortcut")
            self.conv((*path, "shortcut"), shortcut, (1, 1, 1, inputs, outputs))

    def resample(self, path: tuple[str, ...], names: tuple[str, str], block: Block) -> None:
        size = (block.inputs, block.outputs)
        self.conv((*path, "space"), (f"{names[0]}.resample.1", f"{names[1]}.resample.1"), (3, 3, *size))
        if block.kind.endswith("time"):
            outputs = block.inputs * (2 if block.kind == "up_time" else 1)
            kernel = (3, 1, 1, block.inputs, outputs)
            self.conv((*path, "time"), (f"{names[0]}.time_conv", f"{names[1]}.time_conv"), kernel)

    def block(self, net: str, block: Block, names: tuple[str, str]) -> None:
        if block.kind == "residual":
            self.residual((net, block.name), names, block.inputs, block.outputs)
        else:
            self.resample((net, block.name), names, block)

    def middle(self, net: str, channels: int) -> None:
        ours, theirs = f"{net}.mid_block", f"{net}.middle"
        for index, place in ((0, 0), (1, 2)):
            names = (f"{ours}.resnets.{index}", f"{theirs}.{place}")
            self.residual((net, f"mid_{index}"), names, channels, channels)
        path, names = (net, "mid_attention"), (f"{ours}.attentions.0", f"{theirs}.1")
        self.gamma((*path, "norm"), (f"{names[0]}.norm", f"{names[1]}.norm"), channels, "gamma2d")
        for name, outputs in (("to_qkv", 3 * channels), ("proj", channels)):
            self.conv((*path, name), (f"{names[0]}.{name}", f"{names[1]}.{name}"), (1, 1, channels, outputs))

    def ends(self, net: str, first: tuple[int, int], last: tuple[int, int]) -> None:
        """First convolution, last norm and last convolution of encoder or decoder."""
        self.conv((net, "conv_in"), (f"{net}.conv_in", f"{net}.conv1"), (3, 3, 3, *first))
        self.gamma((net, "norm_out"), (f"{net}.norm_out", f"{net}.head.0"), last[0])
        self.conv((net, "conv_out"), (f"{net}.conv_out", f"{net}.head.2"), (3, 3, 3, *last))


def vae_rows(config: VAEConfig) -> tuple[Row, ...]:
    """Every tensor of the codec."""
    table = _Table()
    z_dim, top = config.z_dim, config.base_dim * config.dim_mult[-1]

    table.ends("encoder", (config.pixel_channels, config.base_dim), (top, 2 * z_dim))
    for place, block in enumerate(encoder_plan(config)):
        table.block("encoder", block, _encoder_names(config, place, block))
    table.middle("encoder", top)
    table.conv(("quant_conv",), ("quant_conv", "conv1"), (1, 1, 1, 2 * z_dim, 2 * z_dim))
    table.conv(("post_quant_conv",), ("post_quant_conv", "conv2"), (1, 1, 1, z_dim, z_dim))

    top = config.decoder_width * config.dim_mult[-1]
    table.ends("decoder", (z_dim, top), (config.decoder_width * config.dim_mult[0], config.pixel_channels))
    table.middle("decoder", top)
    for place, block in enumerate(decoder_plan(config)):
        table.block("decoder", block, _decoder_names(config, place, block))
    return tuple(table.rows)


def _encoder_names(config: VAEConfig, place: int, block: Block) -> tuple[str, str]:
    """Wan2.1 numbers the encoder's blocks through, Wan2.2 groups them by resolution."""
    if not config.residual:
        return f"encoder.down_blocks.{place}", f"encoder.downsamples.{place}"
    official = f"encoder.downsamples.{block.stage}.downsamples"
    prefix = f"encoder.down_blocks.{block.stage}"
    if block.kind == "residual":
        return f"{prefix}.resnets.{block.index}", f"{official}.{block.index}"
    return f"{prefix}.downsampler", f"{official}.{config.num_res_blocks}"


def _decoder_names(config: VAEConfig, place: int, block: Block) -> tuple[str, str]:
    """diffusers groups the decoder's blocks by resolution in both codecs, the official layout in Wan2.2 only."""
    residual, prefix = block.kind == "residual", f"decoder.up_blocks.{block.stage}"
    official = f"decoder.upsamples.{place}"
    if config.residual:
        index = block.index if residual else config.num_res_blocks + 1
        official = f"decoder.upsamples.{block.stage}.upsamples.{index}"
    if residual:
        return f"{prefix}.resnets.{block.index}", official
    return f"{prefix}.{'upsampler' if config.residual else 'upsamplers.0'}", official
