"""Sample grids during training: each expert is shown doing its own job."""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wanjax import partition, rectified_flow, solvers
from wanjax.codec import Codec
from wanjax.first_frame import condition, reads_image, share
from wanjax.models.dit import WanDiT
from wanjax.sample_config import SampleConfig

COLUMNS = 5  # frames shown per clip


def make_preview(expert: str, model: WanDiT, codec: Codec, batch: Mapping[str, np.ndarray], config: SampleConfig,
                 *, seed: int, clips: int = 4, first_frame: float = 0.0) -> Callable[[Any], np.ndarray]:
    """``preview(variables) -> image [clips·H, 5·W, 3]`` uint8, a row of five frames per clip, without guidance;
    ``variables`` are what the model is applied with.

    The high-noise expert starts from noise, runs to the boundary, and its clean estimate there is shown; a single
    expert, of boundary 0, runs to the end. The low-noise expert starts from held-out clips noised to the boundary and
    runs to the end.

    Args:
      batch: {"latents": [B,F,h,w,C], "text": [B,L,E]} held-out clips, with "image" [B,F,h,w,C] for a model that reads
        image latents; the first ``clips`` are shown. B divides over the model's mesh, and so many are made that they
        do, too.
      first_frame: the share of the clips shown, the first of them, that continue their own first frame.
    """
    ways = 1 if model.mesh is None else math.prod(model.mesh.shape[axis] for axis in partition.BATCH)
    made = -(-clips // ways) * ways
    x0, text = (jnp.asarray(batch[k][:made]) for k in ("latents", "text"))
    image = jnp.asarray(batch["image"][:made]) if reads_image(model.config) else None
    given = share(model.config, first_frame, min(clips, len(x0)), len(x0))
    f, h, w = x0.shape[1:4]
    shown, grid = condition(model.config, x0, given, image), model.config.grid((f, h, w))
    solver = solvers.make("euler", steps=config.steps, shift=config.shift)
    edge = int(np.sum(np.asarray(solver.timesteps) >= 1000.0 * config.boundary))
    keys = [jax.random.fold_in(jax.random.key(seed), clip) for clip in range(len(x0))]
    noise = jnp.stack([jax.random.normal(key, x0.shape[1:], jnp.float32) for key in keys])
    start, stop = (0, edge) if expert == "high" else (edge, len(solver.timesteps))
    timesteps = jnp.asarray(solver.timesteps, jnp.float32)
    sigma = float(solver.sigmas[edge])

    # every process looks at the whole picture
    whole = None if model.mesh is None else partition.replicated(model.mesh)

    @functools.partial(jax.jit, out_shardings=whole)
    def run(variables: Any, codec_params: Any) -> jax.Array:
        x = shown.start(noise if expert == "high" else rectified_flow.add_noise(x0, noise, jnp.full(len(x0), sigma)))

        def velocity(x, timestep):
            times = shown.timesteps(timestep, len(x0), grid)
            return model.apply(variables, shown.network_input(x), times, text)

        def body(i, carry):
            x, history = carry
            x, history = solver.step(history, x, velocity(x, timesteps[i]), i)
            return shown.after_step(jnp.asarray(x)), history

        x, _ = jax.lax.fori_loop(start, stop, body, (x, solver.init(x)))
        if expert == "high" and sigma:
            clean = rectified_flow.x0_from_velocity(x, velocity(x, 1000.0 * sigma), jnp.full(len(x0), sigma))
            x = shown.after_step(jnp.asarray(clean))
        return codec.model.apply({"params": codec_params}, x, method="decode")

    def preview(variables: Any) -> np.ndarray:
        video = np.asarray(run(variables, codec.params))[:clips]
        frames = np.linspace(0, video.shape[1] - 1, min(COLUMNS, video.shape[1])).astype(int)
        pixels = np.clip((video[:, frames] + 1.0) * 127.5 + 0.5, 0, 255).astype(np.uint8)
        b, t, h, w, _ = pixels.shape
        return pixels.transpose(0, 2, 1, 3, 4).reshape(b * h, t * w, 3)

    return preview
