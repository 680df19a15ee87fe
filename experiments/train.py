"""Trains the experts of a config, two or one: data, latents, training, checkpoints; resumes where a run was left.

    python -m experiments.train --config configs/light_scenes_tiny.py --workdir runs/tiny --config.model.width=128
"""
from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
from typing import Any

import jax
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from data_pipelines import encode
from wanjax import codec as codec_lib
from wanjax import config as config_lib
from wanjax import data, first_frame, partition, text, warm_start
from wanjax.checkpoint import CheckpointError, Checkpoints
from wanjax.latent_cache import CacheError, LatentCache
from wanjax.models.dit import WanDiT
from wanjax.objectives import Decoder, Objective, make_objective
from wanjax.preview import make_preview
from wanjax.run_log import RunLog
from wanjax.train import EXPERTS, Diverged, Expert, Stopped, train_expert
from wanjax.workdir import Workdir, WorkdirError


def run(experiment: config_lib.Experiment, workdir: str, logs: str | None = None) -> None:
    """Trains what the experiment asks for, from wherever the workdir stands."""
    sizes = experiment.mesh.sizes(jax.device_count())
    mesh_config = config_lib.MeshConfig(**sizes)
    config_lib.validate(dataclasses.replace(experiment, mesh=mesh_config))
    mesh = partition.make_mesh(sizes)
    with Workdir(workdir, experiment, logs) as place:
        codec = codec_lib.open_codec(experiment.codec)
        config_lib.check_codec(experiment, codec.model)
        objectives = {name: objective_for(name, experiment, codec) for name in experiment.train.experts}
        encoder = text.load_text_encoder_for(experiment.text)
        cache = encode.ensure_cache(experiment.data.cache_dir, source=experiment.data, vae=codec.model,
                                    vae_params=codec.params, vae_fingerprint=codec.fingerprint, text=encoder,
                                    visibility_cell=_visibility_cell(experiment),
                                    image=first_frame.reads_image(experiment.model))
        for name, objective in objectives.items():
            _train(name, experiment, mesh, objective, codec, cache, place.path / name, place.logs / name)


def objective_for(name: str, experiment: config_lib.Experiment, codec: codec_lib.Codec) -> Objective:
    """What the expert "high" or "low" minimises; says which terms of the config are not for it."""
    config = experiment.objective.of(experiment.train.timesteps(name))
    for left_out in sorted({*experiment.objective.active} - {*config.active}):
        print(f"{name} expert: config.objective.{left_out} applies to the low-noise expert alone and is left out here",
              flush=True)
    decoder = Decoder(lambda params, x: codec.model.apply({"params": params}, x, method="decode"), codec.params)
    return make_objective(config, codec.luminance.m if codec.luminance else None, decoder)


def _visibility_cell(experiment: config_lib.Experiment) -> int:
    """Pixels a side of the cells of visibility that the objective needs; 0 for none."""
    return experiment.data.visibility_cell if "shadow" in experiment.objective.active else 0


def _train(name: str, experiment: config_lib.Experiment, mesh: jax.sharding.Mesh, objective: Objective,
           codec: codec_lib.Codec, cache: LatentCache, folder: epath.Path, logs: pathlib.Path) -> None:
    config, steps = experiment.train, experiment.train.steps(name)
    model = WanDiT(experiment.model, mesh if mesh.size > 1 else None)
    settings = {"image": first_frame.reads_image(experiment.model), "text_length": experiment.text.length,
                "process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = data.make_loader(cache.folder, "train", batch=experiment.data.batch,
                               caption_dropout=experiment.data.caption_dropout, null_text=cache.null_text,
                               seed=experiment.data.seed + EXPERTS.index(name),
                               visibility_cell=_visibility_cell(experiment), **settings)
    validation = data.validation_batches(cache.folder, "validation", batch=experiment.data.batch, **settings)
    preview = make_preview(name, model, codec, validation[0], experiment.sample, seed=experiment.seed,
                           first_frame=config.first_frame)
    params = None
    if config.init_from:
        def params() -> Any:
            print(f"{name} expert: continues the weights of {warm_start.find_experts(config.init_from)}", flush=True)
            return warm_start.initial_params(config.init_from, name, experiment.model, mesh)
    expert = Expert(name, model, objective, experiment.optimizer, config, mesh, experiment.seed, params, batches,
                    validation, preview, lambda b: data.to_global(b, partition.batch_sharding(mesh)),
                    experiment.shadow_head(model))
    with (RunLog(logs, name=f"{name} expert", steps=steps, log_every=config.log_every) as log,
          Checkpoints(folder / "checkpoints", experiment=experiment, expert=name, keep=config.keep) as checkpoints):
        if checkpoints.latest == steps:
            print(f"{name} expert: all {steps} steps are done", flush=True)
            return
        train_expert(expert, checkpoints, log)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --")
    absl_log = logging.getLogger("absl")
    absl_log.setLevel(logging.WARNING)
    # orbax logs the stack of an error that it raises, too: what catches it says it once
    absl_log.addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    try:
        run(config_lib.from_config_dict(flags.FLAGS.config), flags.FLAGS.workdir, flags.FLAGS.logs)
    except Stopped as stopped:
        print(stopped, flush=True)
    except (config_lib.ConfigError, WorkdirError, CheckpointError, CacheError, encode.DataError, Diverged, OSError,
            ValueError) as error:
        sys.exit(f"error: {error}")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    config_flags.DEFINE_config_file("config", None, "Config file; fields are overridden by --config.field=value.")
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, previews. gs://... with --logs.")
    flags.DEFINE_string("logs", None, "Folder of this machine for metrics, previews and profiles; that of the run by "
                        "default.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    entry()
