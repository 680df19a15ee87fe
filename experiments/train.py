"""Trains the experts of a config, two or one: data, latents, training, checkpoints; resumes where a run was left.

    python -m experiments.train --config configs/light_scenes_tiny.py --workdir runs/tiny --config.model.width=128

On several machines every process is started with the same command by SLURM, Kubernetes or Cloud TPU; by hand each is
told --coordinator, --processes and --process (docs/cluster.md).
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pathlib
import sys
from typing import Any

import jax
from absl import flags
from etils import epath

from data_pipelines import encode
from experiments import processes
from wanjax import codec as codec_lib
from wanjax import config as config_lib
from wanjax import config_flag, data, first_frame, partition, preflight, warm_start
from wanjax.checkpoint import CheckpointError, Checkpoints
from wanjax.cluster import Cluster, ClusterError
from wanjax.heartbeat import Watch
from wanjax.latent_cache import CacheError, LatentCache
from wanjax.models import attention, rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.objectives import Decoder, Objective, make_objective
from wanjax.preview import make_preview
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.run_log import RunLog, SilentLog
from wanjax.stop import Stopped, StopRequests
from wanjax.train import EXPERTS, Diverged, Expert, train_expert
from wanjax.workdir import Workdir, WorkdirError

ERRORS = (config_lib.ConfigError, WorkdirError, CheckpointError, CacheError, encode.DataError, Diverged, OSError,
          ValueError)


def run(experiment: config_lib.Experiment, workdir: str, cluster: Cluster, logs: str | None = None) -> None:
    """Trains what the experiment asks for, from wherever the workdir stands; every process of the cluster calls it."""
    sizes = experiment.mesh.sizes(jax.device_count())
    mesh_config = config_lib.MeshConfig(**sizes)
    config_lib.validate(dataclasses.replace(experiment, mesh=mesh_config))
    mesh = partition.make_mesh(sizes)
    _check_attention(experiment.model, mesh)
    if cluster.processes > 1:
        preflight.check_program(cluster, experiment, mesh, workdir)
    place = Workdir(workdir, experiment, logs)
    with contextlib.ExitStack() as held:
        cluster.once("workdir", lambda: held.enter_context(place), ERRORS)
        encoding = codec_lib.open_codec(experiment.codec)
        config_lib.check_codec(experiment, encoding.model)
        # while clips are encoded on a device; afterwards the devices are the experts'
        codec = dataclasses.replace(encoding, params=jax.device_get(encoding.params))
        objectives = {name: objective_for(name, experiment, codec) for name in experiment.train.experts}
        cluster.once("latent cache", functools.partial(_ensure_cache, experiment, encoding, mesh), ERRORS)
        del encoding
        cache = LatentCache(experiment.data.cache_dir)
        if cluster.processes > 1:
            preflight.check_data(cluster, cache)
            report = preflight.time_all_reduce(mesh)
            cluster.say(f"preflight: {cluster.processes} processes agree on program and data; {report}")
        stop = StopRequests()
        for name, objective in objectives.items():
            if name != experiment.train.experts[0] and stop():  # during the last step of the expert before
                raise Stopped(f"{name} expert: asked to stop before it began; the state of the one before is saved")
            _train(name, experiment, mesh, objective, codec, cache, place.path / name, place.logs / name, cluster, stop)


def _check_attention(model: DiTConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where these devices do not have the config's attention, before clips are encoded."""
    token = (1, 1, model.heads, model.head_dim)
    try:
        attention.chosen(model.attention, mesh.devices.flat[0].platform, model.dtype, token, token)
    except ValueError as error:
        raise config_lib.ConfigError(f"config.model.attention = {model.attention!r}: {error}") from error


def _ensure_cache(experiment: config_lib.Experiment, codec: codec_lib.Codec, mesh: jax.sharding.Mesh) -> None:
    encoder = PromptEmbedder.of_config(experiment.text, mesh=mesh if mesh.size > 1 else None)
    encode.ensure_cache(experiment.data.cache_dir, source=experiment.data, vae=codec.model, vae_params=codec.params,
                        vae_fingerprint=codec.fingerprint, text=encoder,
                        visibility_cell=_visibility_cell(experiment), image=first_frame.reads_image(experiment.model))


def objective_for(name: str, experiment: config_lib.Experiment, codec: codec_lib.Codec) -> Objective:
    """What the expert "high" or "low" minimises; says which terms of the config are not for it."""
    config = experiment.objective.of(experiment.train.timesteps(name))
    for left_out in sorted({*experiment.objective.active} - {*config.active}):
        if jax.process_index() == 0:
            print(f"{name} expert: config.objective.{left_out} applies to the low-noise expert alone and is left out "
                  "here", flush=True)
    decoder = Decoder(lambda params, x: codec.model.apply({"params": params}, x, method="decode"), codec.params)
    return make_objective(config, codec.luminance.m if codec.luminance else None, decoder)


def _visibility_cell(experiment: config_lib.Experiment) -> int:
    """Pixels a side of the cells of visibility that the objective needs; 0 for none."""
    return experiment.data.visibility_cell if "shadow" in experiment.objective.active else 0


def _train(name: str, experiment: config_lib.Experiment, mesh: jax.sharding.Mesh, objective: Objective,
           codec: codec_lib.Codec, cache: LatentCache, folder: epath.Path, logs: pathlib.Path, cluster: Cluster,
           stop: StopRequests) -> None:
    config, steps = experiment.train, experiment.train.steps(name)
    model = WanDiT(experiment.model, mesh if mesh.size > 1 else None)
    batch, placed = experiment.data.batch, partition.batch_sharding(mesh)
    settings = {"image": first_frame.reads_image(experiment.model), "text_length": experiment.text.length}
    own = data.rows_of_process(placed, batch)
    batches = data.make_loader(cache.folder, "train", batch=batch, rows=own,
                               caption_dropout=experiment.data.caption_dropout, null_text=cache.null_text,
                               seed=experiment.data.seed + EXPERTS.index(name),
                               visibility_cell=_visibility_cell(experiment), **settings)
    validation = data.validation_batches(cache.folder, "validation", batch=batch, rows=own, **settings)
    [shown] = data.validation_batches(cache.folder, "validation", batch=batch, limit=batch, **settings)
    preview = make_preview(name, model, codec, shown, experiment.sample, seed=experiment.seed,
                           first_frame=config.first_frame)
    params, lora, about = None, experiment.lora, {}
    if lora.rank:
        start = warm_start.open_start(config.init_from, name, experiment.model)
        about = start.record

        def params() -> Any:
            cluster.say(f"{name} expert: trains a LoRA of rank {lora.rank} beside the weights of {start.source}")
            return start.read(rows.shardings(dit_rows(experiment.model), mesh), lora.base_dtype)
    elif config.init_from:
        def params() -> Any:
            cluster.say(f"{name} expert: continues the weights of {warm_start.find_experts(config.init_from)}")
            return warm_start.initial_params(config.init_from, name, experiment.model, mesh)
    expert = Expert(name, model, objective, experiment.optimizer, config, mesh, experiment.seed, params, batches,
                    validation, preview, lambda own: data.to_global(own, placed, batch),
                    experiment.shadow_head(model), lora)
    log = (contextlib.nullcontext(SilentLog(logs)) if not cluster.first else
           RunLog(logs, name=f"{name} expert", steps=steps, log_every=config.log_every))
    with (log as log,
          Checkpoints(folder / "checkpoints", experiment=experiment, expert=name, keep=config.keep, about=about
                      ) as checkpoints):
        if lora.rank and (before := checkpoints.about) is not None:
            warm_start.check_base(start, before, checkpoints.folder)
        if (done := checkpoints.latest or 0) >= steps:
            more = f"; its state is that of step {done}, which is not taken back" if done > steps else ""
            cluster.say(f"{name} expert: all {steps} steps are done{more}")
            return
        train_expert(expert, checkpoints, log, stop=stop)


def main() -> None:
    absl_log = logging.getLogger("absl")
    absl_log.setLevel(logging.WARNING)
    # orbax logs the stack of an error that it raises, too: what catches it says it once
    absl_log.addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    given = flags.FLAGS
    cluster = processes.join()
    with Watch(cluster) as watch:
        try:
            run(config_flag.experiment(), given.workdir, cluster, given.logs)
        except Stopped as stopped:
            cluster.say(str(stopped))
            sys.exit(given.stopped_code)
        except (ClusterError, Diverged) as error:  # all processes have the same one
            sys.exit(f"error: {error}" if cluster.first else 1)
        except ERRORS as error:
            watch.fail(f"error: {error}")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, previews. gs://... with --logs.")
    flags.DEFINE_string("logs", None, "Folder of this machine for metrics, previews and profiles; that of the run by "
                        "default.")
    processes.define()
    flags.DEFINE_integer("stopped_code", 0, "Exit code after a request to stop (SIGTERM, SIGINT), the state saved; a "
                         "scheduler that is to start the run again needs another one.")
    flags.mark_flags_as_required(["config", "workdir"])
    config_flag.run(main)


if __name__ == "__main__":
    entry()
