"""Where the flicker of a run's sampled clips comes from: codec, sampler, guidance, or the experts, and which frames.

    python benchmarks/flicker_sources.py --checkpoint runs/demo [--captions 32] [--results FILE.jsonl]

Every row makes the same held-out captions another way and measures the excess of flicker over the rendered clip that
the caption was written for, with a 95 % interval from a bootstrap over captions:

- ``codec``: the rendered clip itself, encoded and decoded.
- ``from sigma s``: the rendered clip's latents with noise of level s, denoised from there on. What is there at small s
  is made by the last steps; what a larger s adds is made between the two.
- ``sampled``: from noise, with the run's settings; then with more steps, another solver, less guidance, weights that
  are not averaged.

``first frame`` is how much of the excess of ``global_flicker`` is left out with second differences that take in frame
0, which a causal codec gives a latent frame of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ablation_light import EXCESS, Caption, held_out
from wanjax import checkpoint, generate, pipeline, solvers, text
from wanjax.light.metrics import curves_and_metrics
from wanjax.rectified_flow import TIMESTEPS
from wanjax.sample_config import SampleConfig
from wanjax.uncertainty import bootstrap_interval

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)


def measured(frames: np.ndarray, fps: float) -> dict[str, float]:
    """The clip's flicker, and ``global_flicker`` without the second difference around frame 1."""
    curves, metrics = curves_and_metrics(frames, fps=fps)
    later = np.abs(curves.acceleration[2:-1])
    return {**{name: metrics[name] for name in EXCESS}, "without_first": float(later.mean())}


def excess(clips: Iterable[np.ndarray], captions: Sequence[Caption], rendered: Sequence[dict[str, float]]
           ) -> dict[str, Any]:
    """Means over captions of the excess over the rendered clips, with intervals."""
    found = [measured(clip, c.fps) for clip, c in zip(clips, captions, strict=True)]
    out: dict[str, Any] = {}
    for name in (*EXCESS, "without_first"):
        values = np.array([f[name] - r[name] for f, r in zip(found, rendered, strict=True)])
        out[name] = {"mean": float(values.mean()), "interval_95": bootstrap_interval(values)}
    return out


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _denoise_from(model: Any, config: SampleConfig, steps: tuple[float, ...], experts: dict[str, Any],
                  x: jax.Array, embedded: jax.Array, null: jax.Array) -> jax.Array:
    """Euler over the noise levels ``steps``, each level by the expert whose range it is in."""
    both = jnp.concatenate([embedded, jnp.broadcast_to(null, embedded.shape)])
    for now, after in zip(steps, steps[1:], strict=False):
        name = "high" if now >= config.boundary else "low"
        t = jnp.full(2 * len(x), now * TIMESTEPS)
        v, v_null = jnp.split(model.apply({"params": experts[name]}, jnp.concatenate([x, x]), t, both), 2)
        x = x + (after - now) * (v_null + config.guidance(name) * (v - v_null))
    return x


def from_level(opened: generate.Pipeline, captions: Sequence[Caption], latents: np.ndarray, level: float
               ) -> Iterable[np.ndarray]:
    """Clips denoised from the rendered clips' latents [N, F, h, w, C] with noise of ``level``."""
    config = opened.config
    sigmas = solvers.make("euler", steps=config.steps, shift=config.shift).sigmas
    steps = (level, *(float(s) for s in sigmas[sigmas < level - 1e-6]))
    embedded = opened.text.embed([*(c.prompt for c in captions), config.negative_prompt])
    null = text.pad([embedded.pop()], opened.text.length)
    model = opened.experts["low"].model
    params = {name: expert.read(expert.places()) for name, expert in opened.experts.items()}
    noise = np.stack([generate.noise_for(c.seed, opened.latent_shape) for c in captions])
    for i in range(len(captions)):
        x = (1 - level) * latents[i : i + 1] + level * noise[i : i + 1]
        z = _denoise_from(model, config, steps, params, x, text.pad([embedded[i]], opened.text.length), null)
        yield np.stack(list(generate.frames(opened.vae, opened.vae_params, z[0])))


def rows(opened: generate.Pipeline, raw: generate.Pipeline, captions: Sequence[Caption], batch: int
         ) -> Iterable[tuple[str, Callable[[], Iterable[np.ndarray]]]]:
    """Names and what makes their clips."""
    encode = jax.jit(lambda video: opened.vae.apply({"params": opened.vae_params}, video))
    latents = np.concatenate([np.asarray(encode(c.frames[None] / np.float32(127.5) - 1)) for c in captions])

    def sampled(which: generate.Pipeline = opened, **changes: Any) -> Iterable[np.ndarray]:
        config = dataclasses.replace(opened.config, **changes)
        prompts, seeds = [c.prompt for c in captions], [c.seed for c in captions]
        return generate.generate(which, prompts, seeds, config=config, batch=batch)

    yield "codec", lambda: (np.stack(list(generate.frames(opened.vae, opened.vae_params, z))) for z in latents)
    for level in LEVELS:
        yield f"from sigma {level:g}", functools.partial(from_level, opened, captions, latents, level)
    yield "sampled", sampled
    yield "sampled, 4 × steps", functools.partial(sampled, steps=4 * opened.config.steps)
    yield "sampled, Euler", functools.partial(sampled, solver="euler")
    yield "sampled, no guidance", functools.partial(sampled, guidance_high=1.0, guidance_low=1.0)
    yield "sampled, guidance of high only", functools.partial(sampled, guidance_low=1.0)
    yield "sampled, raw weights", functools.partial(sampled, raw)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="run with both experts")
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--results", default="", help="file that one line is added to, in JSON")
    options = parser.parse_args(argv)
    opened, raw = (pipeline.open_pipeline(options.checkpoint, weights=weights) for weights in ("ema", "raw"))
    captions = held_out(checkpoint.open_run(options.checkpoint).config, options.captions)
    rendered = [measured(c.frames, c.fps) for c in captions]
    truth = {name: float(np.mean([r[name] for r in rendered])) for name in rendered[0]}
    print("| clips | " + " | ".join(EXCESS) + " | first frame |\n" + "|---" * 5 + "|")
    print("| rendered, itself | " + " | ".join(f"{truth[name]:.4f}" for name in EXCESS) + " | |", flush=True)
    found: dict[str, Any] = {}
    for name, make in rows(opened, raw, captions, options.batch):
        found[name] = excess(make(), captions, rendered)
        cells = [f"{found[name][m]['mean']:+.4f} [{found[name][m]['interval_95'][0]:+.4f}, "
                 f"{found[name][m]['interval_95'][1]:+.4f}]" for m in EXCESS]
        total, later = (found[name][m]["mean"] for m in ("global_flicker", "without_first"))
        print(f"| {name} | " + " | ".join(cells) + f" | {100 * (1 - later / total):.0f} % |", flush=True)
    if options.results:
        line = {"checkpoint": opened.description, "captions": len(captions), "rendered": truth, "excess": found}
        with Path(options.results).open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
