"""What every term of the objective costs: time of a training step with it, over that of velocity alone.

    python benchmarks/objectives_cost.py --rounds 3 --batch 16

Steps of the default config's low-noise expert on random latents. Steps with and without the term alternate; a ratio is
the median over rounds, of processor time as well as of wall time. ``temporal_luminance`` is measured in a step that
decodes, all clips or a quarter of them; with ``every = k`` the others cost what velocity alone does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanjax import codec, config, objectives, partition, train
from wanjax.models.dit import WanDiT

ROOT = Path(__file__).resolve().parents[1]
CASES: dict[str, dict[str, Any]] = {
    "light": {"light": objectives.LightTerm(0.1)},
    "light_consistency": {"light_consistency": objectives.LightConsistencyTerm(0.1)},
    "change_weight": {"change_weight": objectives.ChangeWeightTerm(0.1)},
    "shadow": {"shadow": objectives.ShadowTerm(0.1)},
    "temporal_luminance: a step that decodes": {"temporal_luminance": objectives.TemporalLuminanceTerm(0.1, every=1)},
}
QUARTER = "temporal_luminance: a quarter of the clips"


def make_step(experiment: config.Experiment, opened: codec.Codec, batch: int, terms: dict[str, Any]
              ) -> Callable[[], None]:
    """A function that takes one training step, compiled and run once already."""
    objective_config = objectives.ObjectiveConfig(**terms)
    experiment = dataclasses.replace(experiment, objective=objective_config)
    decoder = objectives.Decoder(lambda p, x: opened.model.apply({"params": p}, x, method="decode"), opened.params)
    objective = objectives.make_objective(objective_config, opened.luminance.m if opened.luminance else None, decoder)
    model = WanDiT(experiment.model)
    head = experiment.shadow_head(model)
    optimizer = train.make_optimizer(experiment.optimizer, 1000, model, head)
    mesh = partition.make_mesh(dict.fromkeys(partition.AXES, 1), devices=jax.devices()[:1])
    shapes = train.state_shapes(model, optimizer, mesh, head=head)
    held = {"state": train.init_state(model, optimizer, shapes, jax.random.key(0), head=head)}
    step = jax.jit(train.make_train_step(model, objective, optimizer, timesteps=experiment.train.timesteps("low"),
                                         shift=experiment.train.shift, accumulate=1,
                                         ema_decay=experiment.optimizer.ema_decay, head=head), donate_argnums=0)
    rng, data = np.random.default_rng(0), experiment.data
    time, down, across = experiment.codec_strides
    f, h, w = 1 + (data.frames - 1) // time, data.height // down, data.width // across
    cells = experiment.visibility_cells
    arrays = {"latents": rng.standard_normal((batch, f, h, w, 16), np.float32),
              "text": rng.standard_normal((batch, experiment.text.length, experiment.model.text_dim), np.float32)}
    if head:
        arrays["visibility"] = rng.random((batch, f, h * cells, w * cells), np.float32)
    arrays = jax.device_put(arrays)
    decoder_params = jax.device_put(objective.decoder.params) if objective.decoder else None

    def one() -> None:
        held["state"], metrics = step(held["state"], arrays, jax.random.key(1), decoder_params)
        jax.block_until_ready(metrics)

    one()
    return one


def seconds(run: Callable[[], None], steps: int) -> tuple[float, float]:
    """Wall and processor seconds per step."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        run()
    return (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/light_scenes_tiny.py"))
    parser.add_argument("--batch", type=int, default=0, help="clips per step; 0 for the config's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--terms", default="", help="comma-separated beginnings of names; all by default")
    options = parser.parse_args()
    experiment = config.load(options.config)
    opened, batch = codec.open_codec(experiment.codec), options.batch or experiment.data.batch
    where = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{experiment.name}, batch {batch}; {where}, jax {jax.__version__}", flush=True)
    alone = make_step(experiment, opened, batch, {})
    wanted = tuple(options.terms.split(",")) if options.terms else ("",)
    some = objectives.TemporalLuminanceTerm(0.1, every=1, clips=max(batch // 4, 1))
    for name, terms in {**CASES, QUARTER: {"temporal_luminance": some}}.items():
        if not name.startswith(wanted):
            continue
        started = time.process_time()
        with_term = make_step(experiment, opened, batch, terms)
        compiled, steps = time.process_time() - started, 4
        pairs = np.array([[*seconds(alone, steps), *seconds(with_term, steps)] for _ in range(options.rounds)])
        wall, processor = np.median(pairs[:, 2] / pairs[:, 0]), np.median(pairs[:, 3] / pairs[:, 1])
        print(json.dumps({"term": name, "processor_ratio": round(float(processor), 3),
                          "wall_ratio": round(float(wall), 3),
                          "processor_seconds": round(float(np.median(pairs[:, 3])), 3),
                          "velocity_alone": round(float(np.median(pairs[:, 1])), 3),
                          "first_step_seconds": round(compiled, 1)}), flush=True)


if __name__ == "__main__":
    main()
