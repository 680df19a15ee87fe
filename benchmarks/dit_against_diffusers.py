"""Forward and train step of WanDiT against diffusers' PyTorch transformer of the same width, on the same cores.

    python benchmarks/dit_against_diffusers.py --width 160 --heads 4 --layers 8 --batch 16 --rounds 7
    python benchmarks/dit_against_diffusers.py --width 1536 --heads 12 --layers 4 --batch 1 --latents 5,32,32 \\
        --remat none

The second has 1,280 tokens.

Needs PyTorch and diffusers (``make parity`` installs them). Runs alternate between the two, one of each per round, so
that a busy machine slows both; the ratio is the median over rounds of diffusers' time / ours. The train step is loss,
gradients and AdamW. FLOP counts matrix products only, three times forward for the step, whatever is recomputed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.parity import dit, dit_case
from wanjax.models.attention import IMPLEMENTATIONS
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.dit_config import REMAT
from wanjax.models.rows import count, export_tensors
from wanjax.models.rows.dit import dit_rows

TEXT_LENGTH = 64


def forward_flop(config: DiTConfig, batch: int, latents: tuple[int, int, int]) -> float:
    """Operations of one forward pass's matrix products."""
    width, text = config.width, TEXT_LENGTH
    tokens = int(np.prod(config.grid(latents)))
    per_token = 6 * width**2 + 2 * width * config.ffn + 2 * width * (tokens + text)
    block = tokens * per_token + text * 2 * width**2 + 6 * width
    embeddings = text * (config.text_dim + width) * width
    ends = tokens * width * config.patch_size * (config.in_channels + config.out_channels)
    return 2.0 * batch * (config.layers * block + embeddings + ends)


def ours(config: DiTConfig, data: dict[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """Our forward pass and train step as functions that return when the work is done."""
    model, optimizer = WanDiT(config), optax.adamw(1e-4)
    params = jax.device_put(dit_case.params(config))
    inputs = jax.device_put((data["latents"], data["timestep"], data["text"], data["cotangent"]))

    def loss(params, latents, timestep, text, target):
        velocity = model.apply({"params": params}, latents, timestep, text)
        return ((velocity - target) ** 2).mean()

    def step(params, state, *inputs):
        value, gradients = jax.value_and_grad(loss)(params, *inputs)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    forward = jax.jit(lambda params, inputs: model.apply({"params": params}, *inputs[:3]))
    # a donating step must not take the buffers that forward() still reads
    held = {"step": (jax.tree.map(jax.numpy.array, params), optimizer.init(params))}
    compiled = jax.jit(step, donate_argnums=(0, 1))

    def train() -> None:
        *state, value = compiled(*held["step"], *inputs)
        held["step"] = tuple(state)
        jax.block_until_ready((state, value))

    return {"forward": lambda: jax.block_until_ready(forward(params, inputs)), "train step": train}


def theirs(config: DiTConfig, data: dict[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """The same two for diffusers."""
    model = dit.build(config, exact_sinusoid=False)
    tensors = export_tensors(dit_rows(config), dit_case.params(config))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    latents, target = (torch.from_numpy(data[k]).permute(0, 4, 1, 2, 3).contiguous() for k in ("latents", "cotangent"))
    timestep, text = torch.from_numpy(data["timestep"]), torch.from_numpy(data["text"])

    @torch.no_grad()
    def forward() -> None:
        model(latents, timestep, text)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        ((model(latents, timestep, text).sample - target) ** 2).mean().backward()
        optimizer.step()

    return {"forward": forward, "train step": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 160), ("heads", 4), ("layers", 8), ("batch", 16), ("rounds", 7), ("text_dim", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--remat", default="full", choices=REMAT)
    parser.add_argument("--latents", default="5,8,8", help="F,h,w of a clip; 64x64 pixels, 17 frames")
    parser.add_argument("--attention", default="auto", choices=IMPLEMENTATIONS)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    config = DiTConfig(width=args.width, heads=args.heads, layers=args.layers, ffn=4 * args.width,
                       text_dim=args.text_dim, remat=args.remat, attention=args.attention)
    rng = np.random.default_rng(0)
    frames, height, width = (int(size) for size in args.latents.split(","))
    shape = (args.batch, frames, height, width, 16)
    data = {
        "latents": rng.standard_normal(shape).astype(np.float32),
        "cotangent": rng.standard_normal(shape).astype(np.float32),
        "timestep": rng.uniform(0, 1000, args.batch).astype(np.float32),
        "text": rng.standard_normal((args.batch, TEXT_LENGTH, args.text_dim)).astype(np.float32),
    }
    programs = {"wanjax": ours(config, data), "diffusers": theirs(config, data)}
    tokens = int(np.prod(config.grid((frames, height, width))))
    print(f"{count(dit_rows(config))} parameters, batch {args.batch}, {tokens} tokens, remat {args.remat},"
          f" {os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    for what, factor in (("forward", 1), ("train step", 3)):
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for name in programs:
            programs[name][what]()
        for _ in range(args.rounds):
            for name in programs:
                start = time.perf_counter()
                programs[name][what]()
                seconds[name].append(time.perf_counter() - start)
        ratio = np.median(np.array(seconds["diffusers"]) / np.array(seconds["wanjax"]))
        flop = factor * forward_flop(config, args.batch, (frames, height, width))
        line = ", ".join(f"{name} {1e3 * np.median(s):.0f} ms ({flop / np.median(s) / 1e9:.0f} GFLOP/s)"
                         for name, s in seconds.items())
        print(f"{what}: {line}; diffusers / wanjax = {ratio:.2f}")


if __name__ == "__main__":
    main()
