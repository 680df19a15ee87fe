"""From a config file to one validated, frozen ``Experiment``; with ``config_flag`` all that knows ml_collections.

A config file defines ``get_config() -> ml_collections.ConfigDict``. Each section of it is a frozen dataclass that
lives with the thing it configures (``DiTConfig`` in models/dit.py, ``OptimizerConfig`` in optim.py, ...). What is
wrong in a config is said here, before any work is spent, in one ``ConfigError``.
"""
from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import math
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from wanjax import config_fields
from wanjax.config_fields import ConfigError
from wanjax.data import DataConfig
from wanjax.first_frame import image_channels, reads_image
from wanjax.lora_config import LoraConfig
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.shadow_head import ShadowHead
from wanjax.models.vae import WanVAE
from wanjax.objectives import ObjectiveConfig
from wanjax.offload import is_streamed
from wanjax.optim import OptimizerConfig
from wanjax.run_folder import is_remote
from wanjax.sample_config import SampleConfig
from wanjax.text import TextConfig
from wanjax.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 for at most one axis means "all that are left"."""

    data: int = 1
    fsdp: int = -1
    seq: int = 1
    tensor: int = 1

    def sizes(self, devices: int) -> dict[str, int]:
        """The axis sizes on ``devices`` devices.

        Raises:
          ConfigError: if the axes do not multiply to the number of devices.
        """
        sizes = dataclasses.asdict(self)
        known = math.prod(n for n in sizes.values() if n != -1)
        if devices % known:
            raise ConfigError(f"mesh {sizes} needs a multiple of {known} devices, but there are {devices}: "
                              "change config.mesh.* or the number of devices")
        sizes = {axis: devices // known if n == -1 else n for axis, n in sizes.items()}
        if math.prod(sizes.values()) != devices:
            raise ConfigError(f"mesh {sizes} uses {math.prod(sizes.values())} devices, but there are {devices}: "
                              "set one axis to -1 to take what is left")
        return sizes


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that determines a run.

    Attributes:
      name: short name, used in logs.
      seed: of parameters, noise and data order.
      model: the transformer, the same for both experts.
      codec: name of a codec shipped with wanjax (``"light_scenes_tiny"``) or a folder in the diffusers ``vae`` layout.
      text, data, objective, optimizer, mesh, train, sample: see their classes.
      codec_strides: frames, rows and columns of pixels per latent, so that sizes are checked before the codec is there:
        (4, 8, 8) for Wan2.1's, (4, 16, 16) for Wan2.2's. Another codec is refused when it is opened (``check_codec``).
      lora: trains factors of some matrices instead of the experts themselves, if its rank is above 0.
    """

    name: str
    seed: int
    model: DiTConfig
    codec: str
    text: TextConfig
    data: DataConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    train: TrainConfig
    sample: SampleConfig
    codec_strides: tuple[int, int, int] = (4, 8, 8)
    lora: LoraConfig = LoraConfig()

    @property
    def visibility_cells(self) -> int:
        """Cells of visibility along a side of one latent."""
        return self.codec_strides[1] // self.data.visibility_cell

    def shadow_head(self, model: WanDiT) -> ShadowHead | None:
        """The head that the objective's shadow term trains beside ``model``; None where the term is off."""
        if "shadow" not in self.objective.active:
            return None
        return ShadowHead(self.objective.shadow.head, model, self.visibility_cells)


def load(config_file: str | pathlib.Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads a config file, as ``read`` does, and applies overrides such as ``{"model.width": 64}``.

    Raises:
      ConfigError: naming what is wrong and what to do.
    """
    return from_config_dict(override(read(config_file), overrides or {}))


def read(config_file: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Runs ``get_config()`` of a config file, ``get_config("x")`` of ``"file.py:x"``.

    Raises:
      ConfigError: there is no such file, or it defines no such function.
    """
    file, _, argument = str(config_file).partition(":")
    path, arguments = pathlib.Path(file), [argument] if argument else []
    if not path.is_file():
        raise ConfigError(f"config file {file!r} {'is a folder' if path.is_dir() else 'does not exist'}: name a .py "
                          "that defines get_config(), such as configs/light_scenes_tiny.py")
    spec = importlib.util.spec_from_file_location(f"_wanjax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {file!r} is not a Python file: expected a .py that defines get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ConfigError(f"config file {file!r} cannot be imported: {error}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {file!r} defines no get_config(): see configs/light_scenes_tiny.py")
    takes = inspect.signature(module.get_config)
    try:
        takes.bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"config file {str(config_file)!r} does not go with get_config({', '.join(takes.parameters)})"
                          f": {error}; FILE.py:x calls get_config('x'), FILE.py get_config()") from error
    config = module.get_config(*arguments)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config() of {file!r} returns {type(config).__name__}, expected a ConfigDict")
    return config


def override(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of ``config`` with dotted fields replaced, whether it has them or leaves them to their defaults.

    Raises:
      ConfigError: no dataclass has a field of that name; says the nearest.
    """
    config = config.copy_and_resolve_references()
    config.unlock()
    for dotted, value in overrides.items():
        config_fields.field_type(Experiment, dotted)
        *parents, leaf = dotted.split(".")
        node, kind = config, Experiment
        for depth, name in enumerate(parents, 1):
            if name not in node:  # the rest of the section is what it is where nothing is said of it
                node[name] = ml_collections.ConfigDict(config_fields.default_of(config_fields.fields(kind)[name], {}))
            node, kind = node[name], typing.get_type_hints(kind)[name]
            if not isinstance(node, ml_collections.ConfigDict):
                where = ".".join(["config", *parents[:depth]])
                raise ConfigError(f"{where} = {node!r}: expected a section with fields of {kind.__name__}")
        with node.ignore_type():  # types are checked against the dataclasses, with better messages
            node[leaf] = value
    return config


def from_config_dict(config: ml_collections.ConfigDict) -> Experiment:
    """The frozen, validated experiment of a ConfigDict."""
    return from_dict(config.copy_and_resolve_references().to_dict())


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """The frozen, validated experiment of a plain nested dict (what ``to_dict`` made)."""
    experiment = config_fields.build(Experiment, values, "config")
    validate(experiment)
    return experiment


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """A plain nested dict of JSON types; ``from_dict`` inverts it."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "config") -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ between two ``to_dict`` results: {"config.model.width": (old, new)}."""
    out: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        a, b, name = old.get(key), new.get(key), f"{prefix}.{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out.update(differences(a, b, name))
        elif a != b:
            out[name] = (a, b)
    return out


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A ``to_dict`` result, possibly of an older version, with the defaults of the fields that it lacks."""
    return json.loads(json.dumps(config_fields.completed(Experiment, values)))


def validate(experiment: Experiment) -> None:
    """Refuses combinations that cannot work.

    Raises:
      ConfigError: naming every problem found.
    """
    if min(experiment.codec_strides) < 1:
        raise ConfigError(f"config.codec_strides = {experiment.codec_strides}: expected frames, rows and columns of "
                          "pixels per latent, (4, 8, 8) for Wan2.1's codec or (4, 16, 16) for Wan2.2's")
    problems = [*_data_problems(experiment), *_model_problems(experiment), *_train_problems(experiment),
                *_objective_problems(experiment), *_lora_problems(experiment)]
    if problems:
        raise ConfigError("\n".join(problems))


def check_codec(experiment: Experiment, codec: WanVAE) -> None:
    """Refuses an opened codec that is not what the config was validated for.

    Raises:
      ConfigError: naming strides or channels that differ, and what to set.
    """
    problems = []
    if codec.strides != experiment.codec_strides:
        problems.append(f"config.codec_strides = {experiment.codec_strides}, but config.codec = {experiment.codec!r} "
                        f"has {codec.strides}: set config.codec_strides to that, or give another codec")
    if codec.config.z_dim != experiment.model.out_channels:
        problems.append(f"config.model.out_channels = {experiment.model.out_channels}, but the latents of config.codec "
                        f"= {experiment.codec!r} have {codec.config.z_dim} channels: make them equal")
    if problems:
        raise ConfigError("\n".join(problems))


def _data_problems(e: Experiment) -> list[str]:
    out, d, (time, down, across) = [], e.data, e.codec_strides
    if d.frames < 1 or (d.frames - 1) % time:
        near = max(1, (d.frames - 1) // time * time + 1)
        out.append(f"config.data.frames = {d.frames}: the codec takes {time}n+1 frames; use {near} or {near + time}")
    for name, value, codec, patch in (("height", d.height, down, e.model.patch[1]),
                                      ("width", d.width, across, e.model.patch[2])):
        stride = codec * patch
        if value < stride or value % stride:
            near = max(stride, value // stride * stride)
            out.append(f"config.data.{name} = {value}: expected a multiple of {stride} (codec stride {codec} × patch "
                       f"{patch}); use {near} or {near + stride}")
    for name in ("source", "data_dir", "cache_dir"):
        if not getattr(d, name):
            out.append(f"config.data.{name} is empty: name it, '.' for the folder that you are in")
    if is_remote(d.cache_dir):
        out.append(f"config.data.cache_dir = {d.cache_dir!r} lies on an object store, where latents are not read "
                   "from: give a folder of a file system")
    if not 0.0 <= d.caption_dropout < 1.0:
        out.append(f"config.data.caption_dropout = {d.caption_dropout}: expected a probability in [0, 1)")
    if d.visibility_cell < 1 or down % d.visibility_cell or across % d.visibility_cell:
        out.append(f"config.data.visibility_cell = {d.visibility_cell}: expected a number of pixels that divides the "
                   f"codec's stride {down}")
    if d.train_clips < 0:
        out.append(f"config.data.train_clips = {d.train_clips}: expected a number of clips, or 0 for the default")
    if d.train_clips and d.source.partition(":")[0] != "light_scenes":
        out.append(f"config.data.train_clips = {d.train_clips}: only light_scenes are rendered in any number; set it "
                   f"to 0 for config.data.source = {d.source!r}")
    if d.fps <= 0:
        out.append(f"config.data.fps = {d.fps}: expected frames per second > 0")
    micro, shards = e.train.accumulate, _batch_shards(e.mesh)
    if d.batch < 1 or d.batch % (micro * shards):
        out.append(f"config.data.batch = {d.batch}: expected a multiple of {micro * shards} = config.train.accumulate "
                   f"{micro} × mesh data·fsdp {shards}")
    return out


def _batch_shards(mesh: MeshConfig) -> int:
    # an axis of -1 is only known with the devices: the launcher checks again with the real mesh
    return max(mesh.data, 1) * max(mesh.fsdp, 1)


def _model_problems(e: Experiment) -> list[str]:
    out, m = [], e.model
    sizes = dataclasses.asdict(e.mesh)
    for axis, n in sizes.items():
        if n != -1 and n < 1:
            out.append(f"config.mesh.{axis} = {n}: expected a number of devices ≥ 1, or -1 for what is left")
    if list(sizes.values()).count(-1) > 1:
        out.append(f"config.mesh = {sizes}: at most one axis may be -1")
    if m.sequence == "heads" and sizes["seq"] > 1 and m.heads % sizes["seq"]:
        out.append(f"config.model.sequence = 'heads', but config.model.heads = {m.heads} does not divide over "
                   f"config.mesh.seq = {sizes['seq']}: choose another seq, or 'auto' or 'ring'")
    if sizes["tensor"] > 1 and m.width % sizes["tensor"]:
        out.append(f"config.model.width = {m.width}: not divisible by config.mesh.tensor = {sizes['tensor']}")
    if m.param_dtype != "float32":
        out.append(f"config.model.param_dtype = {m.param_dtype!r}: what is trained is held in float32; leave it so, "
                   "and set config.model.dtype for products in 16 bits (experiments.plan --param_dtype is for released "
                   "weights)")
    if e.text.encoder == "seeded" and m.text_dim != e.text.model.d_model:
        out.append(f"config.model.text_dim = {m.text_dim}: the text encoder is {e.text.model.d_model} wide "
                   "(config.text.model.d_model); make them equal")
    if e.text.length < 1:
        out.append(f"config.text.length = {e.text.length}: expected at least one token")
    with_image = image_channels(m.out_channels, e.codec_strides[0])
    if m.in_channels not in (m.out_channels, with_image):
        out.append(f"config.model.in_channels = {m.in_channels}: expected out_channels = {m.out_channels}, or "
                   f"{with_image} for a transformer that reads mask and latents of a first frame beside the noise")
    return out


def _train_problems(e: Experiment) -> list[str]:
    out, t, s, latent_frames = [], e.train, e.sample, 1 + (e.data.frames - 1) // e.codec_strides[0]
    if s.boundary != t.boundary:
        out.append(f"config.sample.boundary = {s.boundary} differs from config.train.boundary = {t.boundary}: the "
                   "experts are only defined on the ranges they were trained on; make them equal")
    if reads_image(e.model) and t.first_frame != 1.0:
        out.append(f"config.train.first_frame = {t.first_frame}: a transformer that reads {e.model.in_channels} "
                   "channels is always given the first frame; set it to 1")
    if t.first_frame and latent_frames < 2:
        out.append(f"config.train.first_frame = {t.first_frame}, but clips of config.data.frames = {e.data.frames} are "
                   "nothing but a first frame: lengthen them or set it to 0")
    if t.first_frame and e.model.patch[0] != 1:
        out.append(f"config.train.first_frame = {t.first_frame}, but tokens span config.model.patch[0] = "
                   f"{e.model.patch[0]} latent frames: only patches of one can have a first frame of their own")
    if e.objective.light.orders and max(e.objective.light.orders) >= latent_frames:
        out.append(f"config.objective.light.orders = {e.objective.light.orders}: {e.data.frames} frames have "
                   f"{latent_frames} latent frames, too few for that difference")
    return out


def _lora_problems(e: Experiment) -> list[str]:
    out: list[str] = []
    if not e.lora.rank:
        return out
    try:
        e.lora.adapted(dit_rows(e.model))
    except ValueError as error:
        out.append(f"config.lora.{error}")
    else:
        if e.optimizer.state_memory == "host" and not any(map(is_streamed, e.lora.rows(dit_rows(e.model)))):
            out.append(f"config.optimizer.state_memory = 'host', but of config.lora.targets = {e.lora.targets} none is "
                       "a matrix of the stack: nothing would lie there; set it to 'device'")
    if not e.train.init_from:
        out.append(f"config.lora.rank = {e.lora.rank}, but config.train.init_from is empty: name the weights that the "
                   "factors are beside, or set the rank to 0")
    if e.optimizer.name != "adamw":
        out.append(f"config.optimizer.name = {e.optimizer.name!r} with config.lora.rank = {e.lora.rank}: Muon "
                   "orthogonalises the update of a whole matrix, not of its factors; set it to 'adamw'")
    return out


def _objective_problems(e: Experiment) -> list[str]:
    out, o = [], e.objective
    for name in ("light_consistency", "temporal_luminance", "change_weight"):
        if name in o.active and e.data.frames < 2:
            out.append(f"config.objective.{name} has a weight, but config.data.frames = {e.data.frames}: one frame "
                       "does not change; lengthen the clips or set the weight to 0")
    high_noise = any(e.train.timesteps(name)[0] > 0.0 for name in e.train.experts)  # some expert sees nothing else
    if "temporal_luminance" in o.active and high_noise and e.train.expert == "high":
        out.append("config.objective.temporal_luminance has a weight, but config.train.expert = 'high': at high noise "
                   "there is no picture to compare; train 'low' (or 'both', where it applies to 'low'), or set the "
                   "weight to 0")
    elif o.active == ("temporal_luminance",) and (high_noise or o.temporal_luminance.every > 1):
        out.append("config.objective.temporal_luminance is the only term with a weight, but it is not for a high-noise "
                   f"expert and not for every step (every = {o.temporal_luminance.every}): give another term a weight")
    clips, micro = o.temporal_luminance.clips, e.data.batch // e.train.accumulate
    if "temporal_luminance" in o.active and clips and micro % clips:
        out.append(f"config.objective.temporal_luminance.clips = {clips}: expected a number that divides the {micro} "
                   "clips of a micro-batch (config.data.batch / config.train.accumulate), or 0 for all")
    if "shadow" in o.active:
        try:
            o.shadow.head.taps(e.model.layers)
        except ValueError as error:
            out.append(f"config.objective.shadow.head.{error}")
    return out


__all__ = ["ConfigError", "Experiment", "MeshConfig", "completed", "differences", "from_config_dict", "from_dict",
           "load", "override", "read", "to_dict", "validate"]
