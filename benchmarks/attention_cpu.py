"""Attention on the CPU, by the formula and in blocks: time by length, and memory with the gradient.

    python benchmarks/attention_cpu.py --lengths 80,256,320,512,1280 --heads 12 --rounds 9
    python benchmarks/attention_cpu.py --lengths "" --memory 16380,32760

Runs of the two alternate, so that a busy machine slows both; times are medians over rounds, a ratio the median of the
rounds' ratios, blocks / formula. The last is that of the processor's time, which other work disturbs least. Memory is
the compiler's: arguments, results and temporary arrays.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax.models.attention import attention

WAYS = ("plain", "blockwise")


def programs(way: str) -> dict[str, Callable[..., object]]:
    """Forward and its gradient with respect to all three."""
    forward = functools.partial(attention, implementation=way)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> jax.Array:
        return jnp.vdot(forward(q, k, v), d_out)

    return {"forward": jax.jit(lambda q, k, v, _: forward(q, k, v)),
            "forward and backward": jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))}  # fmt: skip


def inputs(batch: int, tokens: int, heads: int, size: int) -> list[jax.Array]:
    """q, k, v and the gradient of what comes out, each [B, N, K, d]."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((batch, tokens, heads, size)), jnp.float32) for _ in range(4)]


def times(operands: list[jax.Array], what: str, rounds: int) -> dict[str, np.ndarray]:
    """Seconds, and seconds of the processor, by way and round: [rounds, 2]."""
    compiled = {way: programs(way)[what] for way in WAYS}
    for run in compiled.values():
        jax.block_until_ready(run(*operands))
    repeats = max(1, int(2e8 / (operands[0].size * operands[0].shape[1] * 8)))  # some tens of milliseconds
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, run in compiled.items():
            start, used = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                jax.block_until_ready(run(*operands))
            spent = time.perf_counter() - start, time.process_time() - used
            seconds[way].append((spent[0] / repeats, spent[1] / repeats))
    return {way: np.array(found) for way, found in seconds.items()}


def memory(way: str, tokens: int, size: int) -> int:
    """Bytes of one head's forward and backward pass."""
    shapes = [jax.ShapeDtypeStruct((1, tokens, 1, size), jnp.float32)] * 4
    analysis = programs(way)["forward and backward"].lower(*shapes).compile().memory_analysis()  # type: ignore[attr-defined]
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="80,256,320,512,1280")
    parser.add_argument("--memory", default="", help="lengths for one head's memory")
    for name, default in (("batch", 1), ("heads", 12), ("size", 128), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(f"<!-- {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__},"
          f" load {os.getloadavg()[0]:.1f} -->")  # fmt: skip
    print("| tokens | what | formula, ms | blocks, ms | blocks / formula | processor time |\n"
          "|---|---|---|---|---|---|")
    for tokens in (int(length) for length in args.lengths.split(",") if length):
        operands = inputs(args.batch, tokens, args.heads, args.size)
        for what in ("forward", "forward and backward"):
            found = times(operands, what, args.rounds)
            plain, blocks = (1e3 * np.median(found[way][:, 0]) for way in WAYS)
            ratio = np.median(found["blockwise"] / found["plain"], axis=0)
            print(f"| {tokens} | {what} | {plain:.2f} | {blocks:.2f} | {ratio[0]:.2f} | {ratio[1]:.2f} |", flush=True)
    for tokens in (int(length) for length in args.memory.split(",") if length):
        sizes = ", ".join(f"{way} {memory(way, tokens, args.size) / 1e6:,.0f} MB" for way in WAYS)
        print(f"memory at {tokens:,} tokens, one head of {args.size}, gradient included: {sizes}")


if __name__ == "__main__":
    main()
