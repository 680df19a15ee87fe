"""What one block of the A14B transformer needs on a TPU that need not be there, by the way attention is computed.

    python benchmarks/attention_tpu.py --topology v5e:2x2x1 --tokens 32760

Compiles (``pip install libtpu``; minutes) a block of width 5120 with 40 heads, in bfloat16, a text of 512 tokens, for
one chip, and prints what its compiler says. Nothing is run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import partition
from wanjax.models.dit_config import DiTConfig
from wanjax.models.dit_layers import Block

A14B = {"width": 5120, "heads": 40, "layers": 1, "ffn": 13824, "dtype": "bfloat16", "param_dtype": "bfloat16"}


def compiled(config: DiTConfig, mesh: jax.sharding.Mesh, tokens: int, backward: bool) -> Any:
    """A block's forward, or with its gradients; the compiler's message where it refuses."""

    def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, P()))

    block = Block(config, mesh=mesh)
    inputs = (shape(1, tokens, config.width), shape(1, 512, config.width, dtype=config.dtype),
              shape(1, 1, 6, config.width), (shape(tokens, config.head_dim // 2),) * 2)  # fmt: skip
    params = jax.eval_shape(lambda key: Block(DiTConfig(**A14B, attention="plain")).init(key, *_few(config))["params"],
                            jax.random.key(0))  # fmt: skip
    params = jax.tree.map(lambda leaf: shape(*leaf.shape, dtype=leaf.dtype), params)

    def forward(params: Any, *inputs: Any) -> Any:
        return block.apply({"params": params}, *inputs)

    def gradients(params: Any, x: Any, *rest: Any) -> Any:
        return jax.grad(lambda params, x: jnp.sum(jnp.square(forward(params, x, *rest))), argnums=(0, 1))(params, x)

    try:
        return jax.jit(gradients if backward else forward).lower(params, *inputs).compile()
    except jax.errors.JaxRuntimeError as error:
        return " ".join(re.sub(r"HLO module.*", "", str(error), flags=re.DOTALL).split())


def _few(config: DiTConfig) -> tuple[Any, ...]:
    """The arguments of a block of one token."""
    angles = (jnp.ones((1, config.head_dim // 2)),) * 2
    return jnp.ones((1, 1, config.width)), jnp.ones((1, 1, config.width)), jnp.ones((1, 1, 6, config.width)), angles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2x1")
    parser.add_argument("--tokens", type=int, default=32760)
    parser.add_argument("--ways", default="plain,splash")
    parser.add_argument("--backward", action="store_true", help="with gradients")
    for name in ("forward", "backward"):
        parser.add_argument(f"--blocks_{name}", default="", help="queries,keys,keys per step of splash's blocks")
    args = parser.parse_args()
    blocks = {f"splash_{name}": tuple(int(size) for size in text.split(","))
              for name in ("forward", "backward") if (text := getattr(args, f"blocks_{name}"))}  # fmt: skip
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = partition.make_mesh({"fsdp": 1}, devices=devices[:1])
    print(f"<!-- {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} -->")
    what = "forward and backward" if args.backward else "forward"
    print(f"One block, {args.tokens:,} tokens, {what}, compiled for one of {args.topology}."
          f"\n\n| attention | arguments, MiB | temporary, MiB | compiled in |\n|---|---|---|---|")
    for way in args.ways.split(","):
        started = time.perf_counter()
        config = DiTConfig(**A14B, attention=way, **blocks)
        program = compiled(config, mesh, args.tokens, args.backward)
        seconds = time.perf_counter() - started
        if isinstance(program, str):
            print(f"| {way} | the compiler refuses: {program} | | {seconds:.0f} s |", flush=True)
            continue
        analysis = program.memory_analysis()
        sizes = f"{analysis.argument_size_in_bytes / 2**20:,.0f} | {analysis.temp_size_in_bytes / 2**20:,.0f}"
        print(f"| {way} | {sizes} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
