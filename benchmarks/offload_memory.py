"""What a device holds while one denoising forward runs: all weights on it, or those of the stack in host memory.

    python benchmarks/offload_memory.py                        1, 2 and 40 tiny blocks, compiled here
    python benchmarks/offload_memory.py --topology v5e:2x2x1

The second compiles an expert of Wan2.2-T2V-A14B for chips that need not be there (``pip install libtpu``; minutes).
Nothing is run and no weight is made: the figures are the compiler's. From its schedule stands beside them how many of
the matrix products in the loop over blocks lie between the start and the end of copies from host memory.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import offload, partition
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.lora import part_spec
from wanjax.models.rows.dit import dit_rows

TINY = {"width": 96, "heads": 4, "ffn": 256, "freq_dim": 24, "text_dim": 32}
A14B = {"width": 5120, "heads": 40, "ffn": 13824, "dtype": "bfloat16", "param_dtype": "bfloat16"}
CASES = ("resident", "streamed", "streamed, LoRA on each matrix of the stack")


def variables(config: DiTConfig, case: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Shapes of the parameters, and of the LoRA, where they lie."""
    table = dit_rows(config)
    places = offload.shardings(table, mesh=mesh)
    if case == "resident":
        places = jax.tree.map(lambda place: place.with_memory_kind("device"), places)
    out = {"params": partition.placed_shapes(rows.shapes(table, config.param_dtype), places)}
    if "LoRA" in case:
        matrices, rank = [row for row in table if offload.is_streamed(row)], config.width // 160 or 4

        def parts(row: rows.Row) -> dict[str, jax.ShapeDtypeStruct]:
            shapes = {"down": (row.stacked, row.shape[0], rank), "up": (row.stacked, rank, row.shape[1])}
            own = rows.pick(places, row).spec
            return {part: jax.ShapeDtypeStruct(shape, jnp.float32,
                                               sharding=NamedSharding(mesh, part_spec(own, part, stacked=True)))
                    for part, shape in shapes.items()}  # fmt: skip

        out["lora"] = rows.tree(matrices, parts)
    return out


def compiled(config: DiTConfig, case: str, mesh: jax.sharding.Mesh, latents: tuple[int, int, int]) -> Any:
    """One forward of a clip per shard of the batch, compiled; the compiler's message where it does not fit."""
    clips = mesh.shape["data"] * mesh.shape["fsdp"]
    here = partition.batch_sharding(mesh)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here)
              for shape in ((clips, *latents, 16), (clips,), (clips, 512, config.text_dim))]  # fmt: skip
    model = WanDiT(config, mesh if mesh.size > 1 else None)
    try:
        return jax.jit(model.apply).lower(variables(config, case, mesh), *inputs).compile()
    except jax.errors.JaxRuntimeError as error:
        return " ".join(str(error).split()[:30])


def beside_work(text: str) -> str:
    """How many of the matrix products in the loop over blocks are scheduled while copies are under way."""
    for computation in re.split(r"\n(?=[%E][^\n]*\{\n)", text):
        if "dynamic-slice-start(" not in computation or computation.startswith("ENTRY"):
            continue
        flying, products, covered = 0, 0, 0
        for line in computation.splitlines():
            flying += ("dynamic-slice-start(" in line) - ("dynamic-slice-done(" in line)
            if " fusion(" in line and "dot_general" in line and "/Block/" in line:
                products += 1
                covered += flying > 0
        return f"{covered} of {products}"
    return "–"


def in_host_memory(held: Any) -> int:
    """Bytes of one device's shards there."""
    away = [leaf for leaf in jax.tree.leaves(held) if getattr(leaf.sharding, "memory_kind", None) == offload.HOST]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in away)


def line(config: DiTConfig, case: str, mesh: jax.sharding.Mesh, latents: tuple[int, int, int]) -> str:
    """One line of the table: sizes per device in MiB."""
    started = time.perf_counter()
    program = compiled(config, case, mesh, latents)
    seconds = time.perf_counter() - started
    print(f"{config.layers} blocks, {case}: compiled in {seconds:.0f} s", file=sys.stderr, flush=True)
    if isinstance(program, str):
        return f"| {config.layers} | {case} | the compiler refuses: {program} ... | | | |"
    analysis, away = program.memory_analysis(), in_host_memory(variables(config, case, mesh))
    # the CPU's two memories are one, and its compiler counts them together
    near = analysis.argument_size_in_bytes - (0 if analysis.host_argument_size_in_bytes else away)
    sizes = (near, analysis.temp_size_in_bytes, near + analysis.temp_size_in_bytes, away)
    shown = " | ".join(f"{size / 2**20:,.2f}" for size in sizes)
    return f"| {config.layers} | {case} | {shown} | {beside_work(program.as_text())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="", help="TPU to compile an A14B expert for, such as v5e:2x2x1")
    parser.add_argument("--devices", type=int, default=1, help="of them, over the mesh axis fsdp")
    parser.add_argument("--latents", default="3,30,52", help="F,h,w of a clip")
    parser.add_argument("--cases", default="resident,streamed,LoRA", help="of these")
    flags = parser.parse_args()
    if flags.topology:
        os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1")
        devices = topologies.get_topology_desc(platform="tpu", topology_name=flags.topology).devices
        kind, configs = f"{flags.devices} of {flags.topology}", [DiTConfig(**A14B, layers=40)]
    else:
        devices, kind = jax.devices(), "CPU"
        configs = [DiTConfig(**TINY, layers=layers) for layers in (1, 2, 40)]
    mesh = partition.make_mesh({"fsdp": flags.devices}, devices=devices[: flags.devices])
    frames, height, width = (int(size) for size in flags.latents.split(","))
    wanted = tuple(flags.cases.split(","))
    found = [line(config, case, mesh, (frames, height, width)) for config in configs for case in CASES
             if any(name in case.split(",")[-1] for name in wanted)]  # fmt: skip
    what = ", ".join(f"{key} {value}" for key, value in (A14B if flags.topology else TINY).items())
    print(f"<!-- {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} -->")
    tokens = frames * height * width // 4
    print(f"A forward of a clip per shard of the batch ({tokens:,} tokens, text of 512), compiled for {kind}; {what}.")
    print("MiB per device.\n")
    print("| blocks | weights | on the device: arguments | temporary | sum | in host memory | products beside copies |")
    print("|---|---|---|---|---|---|---|", *found, sep="\n")


if __name__ == "__main__":
    main()
