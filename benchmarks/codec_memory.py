"""Memory that a codec's programs need at published sizes, as compiled for this machine; nothing is run.

    python benchmarks/codec_memory.py [--codec wan2.1] [--size 832x480]
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/codec_memory.py --devices 8 ...

Of the whole decode the temporaries grow with T, of the chunked one the output; a stream's two programs do not know T.
Arguments include the parameters. What a stream keeps from chunk to chunk is output of the first program, argument and
output of the later one, which changes it in place. With ``--devices`` the rows of a frame are split and everything is
per device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import partition
from wanjax.models import vae
from wanjax.models.rows import shapes
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae_split import kept_placement, placement

CODECS = {"wan2.1": vae.VAEConfig(), "wan2.2": vae.WAN22}


def row(name: str, lowered: jax.stages.Lowered) -> None:
    memory = lowered.compile().memory_analysis()
    shared = memory.alias_size_in_bytes
    parts = [memory.argument_size_in_bytes, memory.output_size_in_bytes, shared, memory.temp_size_in_bytes]
    parts.append(parts[0] + parts[1] - shared + parts[3])
    print(f"| {name} | " + " | ".join(f"{part / 1e6:,.0f}" for part in parts) + " |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", choices=CODECS, default="wan2.1")
    parser.add_argument("--size", default="832x480", help="pixels, width x height")
    parser.add_argument("--frames", default="17,81", help="T of the decodes in one program")
    parser.add_argument("--whole", action="store_true", help="the decode that is not chunked, too")
    parser.add_argument("--devices", type=int, default=1, help="that share the rows of a frame")
    options = parser.parse_args(argv)
    width, height = (int(side) for side in options.size.split("x"))
    mesh = partition.make_mesh({"seq": options.devices}) if options.devices > 1 else None
    model = vae.WanVAE(CODECS[options.codec], mesh)
    _, down, across = model.strides
    rows = height // down

    def placed(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if mesh else None), tree)

    params = placed(shapes(vae_rows(model.config), jnp.float32), mesh and partition.replicated(mesh))

    def latents(count: int) -> jax.ShapeDtypeStruct:
        shape = (1, count, rows, width // across, model.config.z_dim)
        return placed(jax.ShapeDtypeStruct(shape, jnp.float32), mesh and placement(mesh, rows))

    print(f"{options.codec}, {width} x {height}, float32, one clip, {options.devices} device(s); MB per device\n")
    print("| program | arguments | output | shared by both | temporaries | together |")
    print("|---" * 6 + "|")
    first = partial(vae._piece, model, "decode")
    _, kept = jax.eval_shape(first, params, latents(1), None)
    kept = placed(kept, mesh and kept_placement(mesh))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in kept) / options.devices
    row("stream, first chunk", vae._piece.lower(model, "decode", params, latents(1), None))
    row("stream, later chunks", vae._piece.lower(model, "decode", params, latents(1), kept))
    for method in ("decode_chunked", *(("decode",) if options.whole else ())):
        for frames in (int(count) for count in options.frames.split(",")):
            lowered = vae._run.lower(model, method, params, latents(1 + (frames - 1) // 4))
            row(f"{method}, {frames} frames", lowered)
    print(f"\nkept: {held / 1e6:,.0f} MB in {len(kept)} arrays")


if __name__ == "__main__":
    main()
