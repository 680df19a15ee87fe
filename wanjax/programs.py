"""The programs that a config runs, from shapes alone: nothing is read and nothing is allocated."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wanjax import codec, codec_work, conditions, denoise, first_frame, flops, hub, partition, traffic
from wanjax.config import ConfigError, Experiment, MeshConfig, validate
from wanjax.experts import Expert
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import WanVAE
from wanjax.models.vae_config import WAN22, VAEConfig
from wanjax.models.vae_split import ROWS, placement
from wanjax.objectives import Decoder, make_objective
from wanjax.pipeline import over_rows
from wanjax.traffic import Work
from wanjax.train import jit_train_step, make_optimizer, make_train_step, network_rows, state_shapes

PROGRAMS = ("train", "sample", "encode", "decode")
HOLDING, PASSES = ("one", "blocks"), ("batched", "two")  # of wanjax.denoise, what one step can be


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled step.

    Attributes:
        lower: makes it ready to be compiled.
        arguments: the large ones, shapes with shardings: parameters, and what is trained with them.
        rows: of the parameters that it takes, in training of those that are trained.
        mesh: where it runs.
        work: how much it computes.
        minimum: bytes that one device sends at least, by formula.
        flops: of the model's own work in a step, recomputation left out.
        formula: how ``flops`` is counted, in words.
        dtype: of its matrix products.
        warnings: what stands for something that is not here.
        frozen: rows of parameters that it takes beside those that it trains.
    """

    lower: Callable[[], jax.stages.Lowered]
    arguments: Any
    rows: tuple[Row, ...]
    mesh: Mesh
    work: Work
    minimum: int
    flops: int
    formula: str
    dtype: str
    warnings: tuple[str, ...] = ()
    frozen: tuple[Row, ...] = ()


def lay_out(experiment: Experiment, devices: Sequence[Any]) -> tuple[Experiment, Mesh]:
    """The experiment with the axes of its mesh filled in, and that mesh over the devices.

    Raises: ConfigError, ValueError: sizes that do not go with the devices.
    """
    sizes = experiment.mesh.sizes(len(devices))
    return dataclasses.replace(experiment, mesh=MeshConfig(**sizes)), partition.make_mesh(sizes, devices)


def train(experiment: Experiment, mesh: Mesh) -> Program:
    """One optimizer step of the first expert that the config trains, as :func:`wanjax.train.train_expert` runs it.

    Raises:
        ConfigError: a batch that does not divide over the mesh, or what else the launcher would refuse.
    """
    validate(experiment)
    config, name = experiment.train, experiment.train.experts[0]
    model = WanDiT(experiment.model, mesh)
    head = experiment.shadow_head(model)
    terms = experiment.objective.of(config.timesteps(name))
    warnings: list[str] = []
    decoder, decoder_shapes = None, None
    if "temporal_luminance" in terms.active:
        vae, warnings = _codec(experiment, None)
        decoder = Decoder(lambda params, x: vae.apply({"params": params}, x, method="decode"), None)
        decoder_shapes = partition.placed_shapes(rows.shapes(vae_rows(vae.config), "float32"),
                                                 partition.replicated(mesh))  # fmt: skip
    # the values of the luminance vector change no shape
    objective = make_objective(terms, np.linspace(0.1, 1.0, experiment.model.out_channels), decoder)
    lora, table = experiment.lora, dit_rows(experiment.model)
    optimizer = make_optimizer(experiment.optimizer, config.steps(name), model, head, lora)
    state = state_shapes(model, optimizer, mesh, head=head, averaged=experiment.optimizer.averaged, lora=lora,
                         memory=experiment.optimizer.state_memory)  # fmt: skip
    base = None
    if lora.rank:
        base = partition.placed_shapes(rows.shapes(table, lora.base_dtype), rows.shardings(table, mesh))
    step = make_train_step(model, objective, optimizer, timesteps=config.timesteps(name), shift=config.shift,
                           accumulate=config.accumulate, ema_decay=experiment.optimizer.ema_decay,
                           first_frame=config.first_frame, head=head, lora=lora)  # fmt: skip
    batch = partition.placed_shapes(_batch(experiment), partition.batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def lower() -> jax.stages.Lowered:
        beside = () if base is None else (base,)
        return jit_train_step(step, state).lower(state, batch, key, decoder_shapes, *beside)

    clips, formula = experiment.data.batch, "3 × clips × forward(N, L): a backward pass counts as two forward passes"
    if lora.rank:
        formula = "clips × (3 × forward(N, L) − 1 × frozen products + 3 × factors): frozen ones go backward once"
    work, trained = training_work(experiment), network_rows(model, head, lora)
    total = clips * training_flops(experiment)
    arguments, frozen = (state, ()) if base is None else ((state, base), table)
    least = traffic.minimum(experiment.model, trained, mesh, work, frozen, lora.base_dtype)
    return Program(lower, arguments, trained, mesh, work, least, total, formula, experiment.model.dtype,
                   tuple(warnings), frozen)  # fmt: skip


def training_work(experiment: Experiment) -> Work:
    """Of one optimizer step."""
    return Work(experiment.data.batch, _tokens(experiment), experiment.text.length, micro=experiment.train.accumulate,
                train=True)  # fmt: skip


def sample(
    experiment: Experiment, mesh: Mesh, *, clips: int | None, holding: str, passes: str, param_dtype: str | None = None
) -> Program:
    """One denoising step of the first expert that has steps, as :mod:`wanjax.denoise` runs it.

    Args:
        experiment: what is sampled.
        mesh: where it runs.
        clips: denoised together; None: one for each part of the mesh that clips are split over.
        holding: "one" expert on the devices, or its "blocks" in the hosts' memory.
        passes: with guidance, "batched" or "two", as :class:`wanjax.denoise.Execution` has them.
        param_dtype: in which parameters are held; None: config.model.param_dtype, as those of a run are.
    Raises: ConfigError: clips that do not divide over the mesh.
    """
    clips = _shared_clips(clips, mesh)
    if first_frame.reads_image(experiment.model):
        frames = experiment.codec_strides[0] + experiment.model.out_channels
        given = jax.ShapeDtypeStruct((clips, *_latent_grid(experiment), frames), jnp.float32)
        condition: conditions.Condition = conditions.ImageChannels(given)
    else:
        condition = conditions.Condition()
    model = WanDiT(experiment.model, mesh)
    expert = Expert(model, _unread, "", param_dtype or experiment.model.param_dtype)
    stage = denoise.stages_of({"high": model, "low": model}, experiment.sample)[0]
    text = jax.ShapeDtypeStruct((clips, experiment.text.length, experiment.model.text_dim), jnp.float32)
    noise = jax.ShapeDtypeStruct((clips, *_latent_grid(experiment), experiment.model.out_channels), jnp.float32)
    batch = denoise.Batch(noise, text, text, condition)
    lower = functools.partial(denoise.lowered, expert, stage, batch, experiment.sample, streamed=holding == "blocks",
                              batched=passes == "batched")  # fmt: skip
    forwards = 1 if stage.guidance == 1.0 else 2
    work = Work(clips, _tokens(experiment), experiment.text.length, forwards, 1 if passes == "batched" else forwards)
    formula = f"{forwards} × clips × forward(N, L)" + (": with and without the prompt" if forwards == 2 else "")
    total = forwards * clips * flops.forward(experiment.model, _tokens(experiment), experiment.text.length)
    table = dit_rows(experiment.model)
    least = traffic.minimum(experiment.model, table, mesh, work)
    return Program(lower, expert.shapes(streamed=holding == "blocks"), table, mesh, work, least, total, formula,
                   experiment.model.dtype)  # fmt: skip


def encode(experiment: Experiment, mesh: Mesh, *, clips: int | None) -> Program:
    """Clips to latents, as :mod:`data_pipelines.encode` makes them, in chunks of 4 frames.

    Args:
        experiment: whose codec it is.
        mesh: clips go over data·fsdp, rows of frames over seq·tensor.
        clips: at a time; None: one for each part of the mesh that clips are split over.
    Raises: ConfigError: clips that do not divide over the mesh.
    """
    vae, warnings = _codec(experiment, mesh)
    data, (frames, height, width) = experiment.data, _latent_grid(experiment)
    clips = _shared_clips(clips, mesh)
    table, place = vae_rows(vae.config), placement(mesh, data.height)
    params = partition.placed_shapes(rows.shapes(table, "float32"), partition.replicated(mesh))
    video = jax.ShapeDtypeStruct((clips, data.frames, data.height, data.width, 3), jnp.uint8, sharding=place)

    def run(params: Any, video: jax.Array) -> jax.Array:
        return vae.apply({"params": params}, video.astype(jnp.float32) / 127.5 - 1.0, method="encode_chunked")

    work = Work(clips, frames * height * width, 0)
    total = clips * codec_work.clip_flops(vae.config, "encode", frames, height, width)
    least = clips // _ways(mesh, partition.BATCH) * sum(
        count * codec_work.chunk_bytes(vae.config, "encode", height, width, _ways(mesh, ROWS), 4, first=first)
        for count, first in ((1, True), (frames - 1, False))
    )
    formula = "clips × (first frame + (F − 1) × chunk of 4 frames): convolutions, and attention within a frame"
    return Program(lambda: jax.jit(run).lower(params, video), (params, video), table, mesh, work, least, total, formula,
                   vae.config.encoder_dtype, tuple(warnings))  # fmt: skip


def decode(experiment: Experiment, mesh: Mesh) -> Program:
    """One latent frame to 4 frames of pixels, which :mod:`experiments.sample` does F − 1 times after a clip's first.

    Args:
        experiment: whose codec it is.
        mesh: all of whose devices take rows of the one clip.
    """
    vae, warnings = _codec(experiment, mesh)
    vae = over_rows(vae, mesh)
    assert vae.mesh is not None
    _, height, width = _latent_grid(experiment)
    chunk = jax.ShapeDtypeStruct((1, 1, height, width, vae.config.z_dim), jnp.float32)
    table = vae_rows(vae.config)
    params = partition.placed_shapes(rows.shapes(table, "float32"), partition.replicated(vae.mesh))
    total = codec_work.chunk_flops(vae.config, "decode", height, width)
    least = codec_work.chunk_bytes(vae.config, "decode", height, width, vae.mesh.size, 4)
    formula = "a latent frame to 4 frames, of which a clip has F − 1: convolutions, and attention within a frame"
    return Program(lambda: vae.lowered(chunk, method="decode"), params, table, vae.mesh, Work(1, height * width, 0),
                   least, total, formula, vae.config.dtype, tuple(warnings))  # fmt: skip


def _shared_clips(clips: int | None, mesh: Mesh) -> int:
    """Clips at a time.

    Raises: ConfigError: they do not divide over the mesh.
    """
    shards = _ways(mesh, partition.BATCH)
    clips = shards if clips is None else clips
    if clips < 1 or clips % shards:
        raise ConfigError(f"--clips = {clips}: expected a multiple of {shards} = mesh data·fsdp; give it, or put the "
                          "devices on config.mesh.seq or config.mesh.tensor")  # fmt: skip
    return clips


def _ways(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def training_flops(experiment: Experiment) -> int:
    """Model FLOPs of one clip in a training step of one expert, or of factors of it."""
    model, size = experiment.model, (_tokens(experiment), experiment.text.length)
    if not experiment.lora.rank:
        return flops.training(model, *size)
    return flops.lora_training(model, *size, experiment.lora.rows(dit_rows(model)))


def _unread(places: Any) -> Any:
    raise AssertionError("a plan reads no parameters")


def _latent_grid(experiment: Experiment) -> tuple[int, int, int]:
    """(F, h, w) of a clip."""
    (time, down, across), data = experiment.codec_strides, experiment.data
    return 1 + (data.frames - 1) // time, data.height // down, data.width // across


def _tokens(experiment: Experiment) -> int:
    return math.prod(experiment.model.grid(_latent_grid(experiment)))


def _batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """What :mod:`wanjax.data` makes."""
    clips, (f, h, w), model = experiment.data.batch, _latent_grid(experiment), experiment.model
    shapes = {"latents": (f, h, w, model.out_channels), "text": (experiment.text.length, model.text_dim)}
    if "shadow" in experiment.objective.active:
        cell = experiment.data.visibility_cell
        shapes["visibility"] = (f, experiment.data.height // cell, experiment.data.width // cell)
    if first_frame.reads_image(model):
        shapes["image"] = shapes["latents"]
    return {name: jax.ShapeDtypeStruct((clips, *shape), jnp.float32) for name, shape in shapes.items()}


def _codec(experiment: Experiment, mesh: Mesh | None) -> tuple[WanVAE, list[str]]:
    """The config's codec, without its weights; where it is not on this disk, the published one of its strides."""
    try:
        network = hub.open_network(codec.find_codec(experiment.codec), "vae", dtype="float32")
    except FileNotFoundError:
        published = WAN22 if experiment.codec_strides == WAN22.strides else VAEConfig()
        return WanVAE(published, mesh), [f"config.codec = {experiment.codec!r} is not here: planned with the published "
                                         f"codec of strides {published.strides}"]  # fmt: skip
    assert isinstance(network.config, VAEConfig)
    return WanVAE(network.config, mesh), []
