"""What a codec computes and what its parts must send each other, by formula.

A codec works on the clip's first frame, and then on 4 frames of pixels, one of latents, at a time
(:mod:`wanjax.models.vae`). A multiplication and an addition are two operations; norms and what else is done element by
element is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from wanjax.models.rows import Row
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae_config import Block, VAEConfig, decoder_plan, encoder_plan


class _Place(NamedTuple):
    """What goes into a convolution: frames of a chunk, and how much larger a frame is than one of latents."""

    frames: int
    scale: int


def chunk_flops(config: VAEConfig, method: str, height: int, width: int, *, first: bool = False) -> int:
    """Of one chunk of one clip: all convolutions, and attention of the middle block.

    A convolution of 2 · kernel · output positions; of the first frame, for which zeros stand before it, the last tap
    in time alone, and none of those that halve or double time. Attention, within each frame of P = height · width
    positions and c channels, is 4 P² c.

    Args:
        config: of the codec.
        method: "encode" or "decode".
        height, width: h and w of the latents.
        first: the clip's first frame instead of 4 frames.
    """
    total = 4 * (height * width) ** 2 * _middle(config, method)
    for row, _, out in _convolutions(config, method, first):
        taps = row.shape[0] if len(row.shape) == 5 else 1
        if first and row.path[-2] == "time":
            continue
        total += 2 * math.prod(row.shape) // (taps if first else 1) * out.frames * height * width * out.scale**2
    return total


def clip_flops(config: VAEConfig, method: str, frames: int, height: int, width: int) -> int:
    """Of one clip of so many latent frames F."""
    first = chunk_flops(config, method, height, width, first=True)
    return first + (frames - 1) * chunk_flops(config, method, height, width)


def chunk_bytes(config: VAEConfig, method: str, height: int, width: int, parts: int, itemsize: int, *,
                first: bool = False) -> int:  # fmt: skip
    """Bytes that one of so many parts of a clip's rows sends at least, for a chunk.

    Before a 3 x 3 convolution a row goes to each neighbour, before one of stride 2 one row upwards; before attention
    keys and values are gathered. Parts in the middle of a frame are meant, which have two neighbours.
    """
    if parts == 1:
        return 0
    total = 2 * height * width * _middle(config, method) * (parts - 1) / parts
    for row, place, out in _convolutions(config, method, first):
        if row.shape[-4] == 3 and row.path[-2] != "time":
            up = row.path[-2] == "space" and out.scale > place.scale  # repeated before its rows are exchanged
            across = (out if up else place).scale * width
            total += (1 if out.scale < place.scale else 2) * place.frames * across * row.shape[-2]
    return round(total * itemsize)


def _middle(config: VAEConfig, method: str) -> int:
    """Channels of the middle block."""
    return (config.base_dim if method == "encode" else config.decoder_width) * config.dim_mult[-1]


def _convolutions(config: VAEConfig, method: str, first: bool) -> Iterator[tuple[Row, _Place, _Place]]:
    """Every kernel of a method, with what goes into it and what comes out of it."""
    net = {"encode": "encoder", "decode": "decoder"}[method]
    rows = [row for row in vae_rows(config) if row.path[-1] == "kernel"]
    latents, pixels = _Place(1, 1), _Place(1 if first else 4, 8)
    outer = "conv_in" if net == "encoder" else "conv_out"  # which of them sees pixels
    blocks: dict[str, tuple[Block, _Place, _Place]] = {}
    place = pixels if net == "encoder" else latents
    for block in encoder_plan(config) if net == "encoder" else decoder_plan(config):
        after = _after(block, place, first)
        blocks[block.name] = (block, place, after)
        place = after
    for row in rows:
        if row.path[0] == ("quant_conv" if net == "encoder" else "post_quant_conv"):
            yield row, latents, latents
        if row.path[0] != net:
            continue
        name = row.path[1]
        if name not in blocks:
            own = pixels if name == outer else latents
            yield row, own, own
            continue
        block, before, after = blocks[name]
        if row.path[-2] == "time":  # after the halving of space, before its doubling
            own = _Place(before.frames, after.scale if block.kind == "down_time" else before.scale)
            yield row, own, own._replace(frames=after.frames if block.kind == "down_time" else before.frames)
        elif row.path[-2] == "space":
            between = before.frames if block.kind.startswith("down") else after.frames
            yield row, before._replace(frames=between), after._replace(frames=between)
        else:
            yield row, before, before


def _after(block: Block, place: _Place, first: bool) -> _Place:
    """Behind a block; a first frame stays one."""
    if block.kind == "residual":
        return place
    time = 2 if block.kind.endswith("time") and not first else 1
    if block.kind.startswith("down"):
        return _Place(place.frames // time, place.scale // 2)
    return _Place(place.frames * time, place.scale * 2)
