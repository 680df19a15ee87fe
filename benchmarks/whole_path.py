"""Renderer, sampling and checkpoints at the default config's size, each beside what bounds it.

    python benchmarks/whole_path.py --rounds 5

- renderer: clips of every family, frames per second on one core; ratio to an H.264 encode of the same frames.
- sampling: ``generate`` on 16 captions with random weights; ratio to its network evaluations and decoding alone.
- checkpoint: an expert's whole state (parameters, EMA, both moments) saved, waited for and restored through orbax;
  ratio to one safetensors file of the same arrays written, synced and read.

Runs alternate, and a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.light_scenes import FAMILIES, ClipSize, ClipSpec, render_clip
from wanjax import checkpoint, codec, config, generate, partition, train, video
from wanjax.experts import Expert
from wanjax.models.dit import WanDiT
from wanjax.prompt_embeddings import PromptEmbedder

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [f"A room at sunrise: blue to warm, brightens, light slides {way}." for way in ("left", "right")] * 8


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(rounds: int, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float, float]:
    """Median seconds of both, and the median ratio second / first; one untimed run of each comes before."""
    first(), second()
    pairs = np.array([(timed(first), timed(second)) for _ in range(rounds)])
    return *np.median(pairs, 0), float(np.median(pairs[:, 1] / pairs[:, 0]))


def renderer(rounds: int, folder: Path) -> str:
    size = ClipSize()
    signs = {"sunrise_room": (1, 1, 0), "sundial": (0, 1, 0), "constant": (0, 0, 1)}
    specs = [ClipSpec(family, scene, *signs[family], split="train", seed=0) for family in FAMILIES for scene in (0, 1)]
    clips = [render_clip(spec, size).video for spec in specs]
    frames = sum(len(clip) for clip in clips)

    def encode() -> None:
        for clip in clips:
            video.write(folder / "clip.mp4", clip, size.fps)

    ours, h264, ratio = alternate(rounds, lambda: [render_clip(spec, size) for spec in specs], encode)
    return f"renderer: {frames / ours:.0f} frames/s; H.264 of them {frames / h264:.0f}; time {1 / ratio:.1f} x"


def pipeline_of(experiment: config.Experiment) -> generate.Pipeline:
    model, shipped = WanDiT(experiment.model), codec.open_codec(experiment.codec)
    experts = {name: Expert.of(model, model.init(jax.random.key(i))["params"]) for i, name in enumerate(train.EXPERTS)}
    data = experiment.data
    return generate.Pipeline(
        experts=experts, vae=shipped.model, vae_params=shipped.params, vae_fingerprint=shipped.fingerprint,
        text=PromptEmbedder.of_config(experiment.text),
        config=experiment.sample, frames=data.frames, height=data.height, width=data.width, fps=data.fps,
        description="random weights",
    )  # fmt: skip


def sampling(experiment: config.Experiment, rounds: int) -> str:
    pipeline, batch = pipeline_of(experiment), len(PROMPTS)
    model = pipeline.experts["high"].model
    params = pipeline.experts["high"].read(pipeline.experts["high"].places())
    x = jnp.zeros((2 * batch, *pipeline.latent_shape))
    words = jnp.zeros((2 * batch, experiment.text.length, experiment.model.text_dim))
    forward = jax.jit(lambda p, x, t, w: model.apply({"params": p}, x, t, w))

    def networks() -> None:
        for _ in range(pipeline.config.steps):
            jax.block_until_ready(forward(params, x, jnp.full(2 * batch, 500.0), words))
        for row in range(batch):
            list(generate.frames(pipeline.vae, pipeline.vae_params, x[row]))

    alone, whole, ratio = alternate(
        rounds, networks, lambda: list(generate.generate(pipeline, PROMPTS, range(batch), batch=batch))
    )
    return (
        f"sampling: {whole / batch:.2f} s per clip ({pipeline.config.steps} steps, guided, batch {batch}); "
        f"networks alone {alone / batch:.2f}; time {ratio:.2f} x"
    )


def checkpoints(experiment: config.Experiment, rounds: int, folder: Path) -> str:
    model = WanDiT(experiment.model)
    optimizer = train.make_optimizer(experiment.optimizer, 100, model)
    mesh = partition.make_mesh(dict.fromkeys(partition.AXES, 1), devices=jax.devices()[:1])
    shapes = train.state_shapes(model, optimizer, mesh)
    state = train.init_state(model, optimizer, shapes, jax.random.key(0))
    flat = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    plain, count = folder / "state.safetensors", iter(range(1, 10**6))

    def file() -> None:
        safetensors.numpy.save_file(flat, plain)
        with plain.open("rb") as stream:
            os.fsync(stream.fileno())
        safetensors.numpy.load_file(plain)

    with checkpoint.Checkpoints(folder / "checkpoints", experiment=experiment, expert="high", keep=1) as saved:

        def orbax() -> None:
            saved.save(next(count), state, {"position": 0})
            saved.wait()
            saved.restore(shapes)

        one, ours, ratio = alternate(rounds, file, orbax)
    megabytes = sum(a.nbytes for a in flat.values()) / 1e6
    return f"checkpoint: {ours:.2f} s for {megabytes:.0f} MB; one safetensors file {one:.2f} s; time {ratio:.1f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    experiment = config.load(str(ROOT / "configs/light_scenes_tiny.py"))
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        print(renderer(rounds, Path(folder)), flush=True)
        print(sampling(experiment, rounds), flush=True)
        print(checkpoints(experiment, rounds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
