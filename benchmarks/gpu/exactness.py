"""Whether what a GPU computes is what the formulas say, forward and gradient: kernels of attention, and the networks.

    python -m benchmarks.gpu.exactness                          on a GPU
    JAX_PLATFORMS=cpu python -m benchmarks.gpu.exactness --tiny        the code itself, on a CPU

Every line is a relative error, ‖got − expected‖ / ‖expected‖, and what it may be. Attention is compared with the plain
formula in float32 on the same operands, which bfloat16 holds exactly; networks with the processor of the same machine
in float32. Limits: 1 % where operands are rounded to 8 bits on the way, 2e-5 in float32 (TF32, which a GPU multiplies
float32 in unless it is told otherwise, gives 3e-4). Random operands of fresh seeds. Ends with 1 if one is exceeded.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from wanjax.models import attention, partial_attention, rows, splash
from wanjax.models.dit import WanDiT
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import WanVAE
from wanjax.models.vae_config import VAEConfig

ROUNDED, EXACT = 1e-2, 2e-5
LENGTHS = ((1001, 511), (4095, 512), (8192, 8192))  # N, M; odd ones too
TINY_LENGTHS = ((301, 127),)


class Line(NamedTuple):
    """One comparison: what was computed, of what, its relative error, and the largest that is right."""

    what: str
    of: str
    error: float
    limit: float


def error(got: Any, expected: Any) -> float:
    """‖got − expected‖ / ‖expected‖ in float64; infinite where a number is missing."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    apart = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    return apart if np.isfinite(apart) else float("inf")


def limit_of(dtype: str) -> float:
    """The largest error that one operation may have."""
    return EXACT if dtype == "float32" else ROUNDED


def attentions(way: str, dtype: str, lengths: tuple[tuple[int, int], ...], seed: int) -> Iterator[Line]:
    """One implementation against the plain formula in float32: result, and gradients of q, k and v."""
    draw = np.random.default_rng(seed)
    for queries, keys in lengths:
        sizes = ((2, queries, 3, 128), (2, keys, 3, 128), (2, keys, 3, 128), (2, queries, 3, 128))
        given = [jnp.asarray(draw.standard_normal(size, np.float32), dtype) for size in sizes]
        found = _with_gradient(functools.partial(attention.attention, implementation=way), given)
        right = _with_gradient(functools.partial(attention.attention, implementation="plain"), _wide(given))
        for of, got, expected in zip(("result", "d q", "d k", "d v"), found, right, strict=True):
            yield Line(f"attention {way}, {dtype}, {queries} × {keys}", of, error(got, expected), limit_of(dtype))


def parts(way: str, dtype: str, size: int, seed: int) -> Iterator[Line]:
    """What a ring does on one device: two parts of the keys, of the second a third is padding, merged."""
    draw = np.random.default_rng(seed)
    shape = (2, 3, size, 128)
    q, k, v, other_k, other_v, d_out = (jnp.asarray(draw.standard_normal(shape, np.float32), dtype) for _ in range(6))
    kernel = partial_attention.kernel(way, jax.default_backend(), dtype, shape, shape, splash.SplashBlocks())
    valid = jnp.int32(2 * size // 3)

    @jax.jit
    def merged(q: jax.Array, d_out: jax.Array, *of: jax.Array) -> tuple[jax.Array, ...]:
        k, v, other_k, other_v = of
        one, two = kernel.forward(q, k, v, None), kernel.forward(q, other_k, other_v, valid)
        out, statistics = partial_attention.merged(one[0].astype(jnp.float32), one[1], *two)
        out = out.astype(q.dtype)
        first = kernel.backward(q, k, v, out, statistics, d_out, None)
        second = kernel.backward(q, other_k, other_v, out, statistics, d_out, valid)
        return out, first[0].astype(jnp.float32) + second[0], first[1], first[2], second[1], second[2]

    found = merged(q, d_out, k, v, other_k, other_v)
    every = [jnp.concatenate([one, two[:, :, : 2 * size // 3]], axis=2) for one, two in ((k, other_k), (v, other_v))]
    tokens_first = [x.transpose(0, 2, 1, 3) for x in (q, *every, d_out)]
    plain = _with_gradient(functools.partial(attention.attention, implementation="plain"), _wide(tokens_first))
    right = [x.transpose(0, 2, 1, 3) for x in plain]
    split = [right[0], right[1], right[2][:, :, :size], right[3][:, :, :size], right[2][:, :, size:],
             right[3][:, :, size:]]  # fmt: skip
    names = ("result", "d q", "d k", "d v", "d k of the padded part", "d v of the padded part")
    for of, got, expected in zip(names, found, split, strict=True):
        if "padded" in of:
            if np.asarray(got[:, :, 2 * size // 3 :], np.float32).any():
                yield Line(f"parts {way}, {dtype}, {size}", f"{of}: of padding itself, not 0", float("inf"), 0.0)
            got = got[:, :, : 2 * size // 3]
        yield Line(f"parts {way}, {dtype}, {size}", of, error(got, expected), limit_of(dtype))


def transformer(dtype: str, grid: tuple[int, int, int], seed: int, **sizes: Any) -> Iterator[Line]:
    """The transformer and the gradient of all its parameters, on this machine's accelerator, against its processor."""
    config = DiTConfig(**{"width": 256, "heads": 2, "layers": 2, "ffn": 512, "text_dim": 64, **sizes}, dtype=dtype)
    draw = np.random.default_rng(seed)
    params = _drawn(rows.shapes(dit_rows(config), "float32"), draw)
    clip = draw.standard_normal((1, *grid, config.in_channels), np.float32)
    given = (clip, np.array([873.4], np.float32), draw.standard_normal((1, 12, config.text_dim), np.float32))
    weight = draw.standard_normal(clip.shape, np.float32)

    def run(config: DiTConfig, params: Any, weight: Any, *given: Any) -> Any:
        out, pull = jax.vjp(lambda params: WanDiT(config).apply({"params": params}, *given), params)
        return out, pull(weight)[0]

    found, slope = jax.jit(functools.partial(run, config))(params, weight, *given)
    exact = dataclasses.replace(config, dtype="float32", attention="plain")
    right, expected = _on_the_processor(functools.partial(run, exact), params, weight, *given)
    limit = EXACT if dtype == "float32" else 3 * ROUNDED  # layers add up
    yield Line(f"transformer, {dtype}", "velocity", error(found, right), limit)
    got, wanted = (np.concatenate([np.ravel(np.asarray(x, np.float32)) for x in jax.tree.leaves(tree)])
                   for tree in (slope, expected))  # fmt: skip
    yield Line(f"transformer, {dtype}", "gradient", error(got, wanted), limit)


def codec(config: VAEConfig, size: tuple[int, int, int], seed: int) -> Iterator[Line]:
    """The codec both ways in float32."""
    draw = np.random.default_rng(seed)
    params = _drawn(rows.shapes(vae_rows(config), "float32"), draw)
    frames, height, width = size
    shapes = {"encode": (1, frames, height, width, 3),
              "decode": (1, 1 + (frames - 1) // 4, height // 8, width // 8, config.z_dim)}  # fmt: skip
    for method, shape in shapes.items():
        x = draw.uniform(-1, 1, shape).astype(np.float32)
        run = functools.partial(WanVAE(config).apply, method=method)
        found = jax.jit(run)({"params": params}, x)
        yield Line("codec, float32", method, error(found, _on_the_processor(run, {"params": params}, x)), 5 * EXACT)


def _with_gradient(function: Callable[..., jax.Array], given: list[jax.Array]) -> tuple[jax.Array, ...]:
    *operands, d_out = given

    @jax.jit
    def run(*operands: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(function, *operands)
        return out, *pull(d_out)

    return run(*operands)


def _wide(given: list[jax.Array]) -> list[jax.Array]:
    return [x.astype(jnp.float32) for x in given]


def _drawn(shapes: Any, draw: np.random.Generator) -> Any:
    """Parameters whose layers keep about the variance of what they are given."""
    scale = lambda leaf: 1.0 / np.sqrt(max(1, np.prod(leaf.shape[-2:-1]))) if len(leaf.shape) > 1 else 0.3
    return jax.tree.map(lambda leaf: scale(leaf) * draw.standard_normal(leaf.shape, np.float32), shapes)


def _on_the_processor(function: Callable[..., Any], *given: Any) -> Any:
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.device_get(jax.jit(function)(*given))


def kernels(tiny: bool, seed: int) -> Iterator[Line]:
    """All implementations of attention that the default platform has."""
    lengths, size = (TINY_LENGTHS, 384) if tiny else (LENGTHS, 3000)
    if jax.default_backend() == "gpu":
        yield from attentions("cudnn", "bfloat16", lengths, seed)
        yield from attentions("cudnn", "float16", lengths[:1], seed)
        yield from parts("cudnn", "bfloat16", size, seed + 1)
    for way, dtype in ("blockwise", "float32"), ("plain", "bfloat16"):
        yield from attentions(way, dtype, lengths[:1], seed)
    yield from parts("blockwise", "bfloat16", size, seed + 1)


def networks(tiny: bool, seed: int) -> Iterator[Line]:
    """Transformer and codec."""
    grid, wide = ((2, 8, 8), {"width": 64, "ffn": 64, "layers": 1}) if tiny else ((5, 32, 32), {})
    for dtype in ("float32",) if tiny else ("float32", "bfloat16"):
        yield from transformer(dtype, grid, seed + 2, **wide)
    small = VAEConfig(base_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1) if tiny else VAEConfig(base_dim=32)
    yield from codec(small, (5, 32, 32) if tiny else (9, 64, 96), seed + 3)


WHAT = {"attention": kernels, "networks": networks}


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the number of lines beyond their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to test this code")
    parser.add_argument("--only", choices=WHAT, help="one of them; both by default")
    parser.add_argument("--seed", type=int, default=None, help="of the operands; the time of day unless given")
    asked = parser.parse_args(arguments)
    if jax.default_backend() != "gpu" and not asked.tiny:
        parser.exit(1, f"error: no GPU here: jax sees {jax.devices()[0].device_kind!r}; --tiny compares at the size of "
                       "a test\n")  # fmt: skip
    seed = asked.seed if asked.seed is not None else int(datetime.datetime.now().timestamp()) % 100_000
    print(f"<!-- {datetime.date.today()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, --seed {seed} -->\n"
          "| what | of | relative error | limit |\n|---|---|---|---|")  # fmt: skip
    beyond = 0
    of = [WHAT[asked.only]] if asked.only else WHAT.values()
    for line in itertools.chain.from_iterable(each(asked.tiny, seed) for each in of):
        wrong = line.error > line.limit
        beyond += wrong
        print(f"| {line.what} | {line.of} | {line.error:.1e} | {line.limit:.0e}{' **exceeded**' if wrong else ''} |",
              flush=True)  # fmt: skip
    return beyond


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
