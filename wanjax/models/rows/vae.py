"""Rows of the Wan2.1 codec."""

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
    base, z_dim, top = config.base_dim, config.z_dim, config.base_dim * config.dim_mult[-1]

    table.ends("encoder", (3, base), (top, 2 * z_dim))
    for place, block in enumerate(encoder_plan(config)):
        path, names = ("encoder", block.name), (f"encoder.down_blocks.{place}", f"encoder.downsamples.{place}")
        if block.kind == "residual":
            table.residual(path, names, block.inputs, block.outputs)
        else:
            table.resample(path, names, block)
    table.middle("encoder", top)
    table.conv(("quant_conv",), ("quant_conv", "conv1"), (1, 1, 1, 2 * z_dim, 2 * z_dim))
    table.conv(("post_quant_conv",), ("post_quant_conv", "conv2"), (1, 1, 1, z_dim, z_dim))

    table.ends("decoder", (z_dim, top), (base * config.dim_mult[0], 3))
    table.middle("decoder", top)
    for place, block in enumerate(decoder_plan(config)):
        path, official = ("decoder", block.name), f"decoder.upsamples.{place}"
        prefix = f"decoder.up_blocks.{block.stage}"
        if block.kind == "residual":
            table.residual(path, (f"{prefix}.resnets.{block.index}", official), block.inputs, block.outputs)
        else:
            table.resample(path, (f"{prefix}.upsamplers.0", official), block)
    return tuple(table.rows)
