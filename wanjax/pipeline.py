"""Opens what `wanjax.generate` samples from: a run of this library, or a released checkpoint."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax

from wanjax import checkpoint, codec, conditions, family, hub, lora_factors, partition, warm_start
from wanjax.experts import Expert
from wanjax.generate import Pipeline
from wanjax.hub_layouts import INDEX, read_index
from wanjax.hub_names import resolve
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.vae import WanVAE
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.run_folder import is_remote
from wanjax.text import SEEDED

WAN_TEXT_LENGTH = 512
PARTS = ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer")  # of a release, what sampling needs


def open_pipeline(
    path: str | os.PathLike[str],
    *,
    weights: str = "ema",
    mesh: jax.sharding.Mesh | None = None,
    text_cache: pathlib.Path | None = None,
) -> Pipeline:
    """Opens a checkpoint of any kind that can be sampled from. Experts and text encoder are read when they are needed.

    Args:
        path: a workdir of `experiments.train`, one expert's folder in it or the folder of one of its steps, which may
            be `gs://...`; or the root of a pipeline in the diffusers layout (the folder of model_index.json) or in
            Wan's own (that of high_noise_model/, low_noise_model/, Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth,
            google/umt5-xxl/), in ComfyUI's or in ours; or such a pipeline's name on the Hugging Face Hub, see
            `wanjax.hub_names`.
        weights: "ema" (averaged over training) or "raw", of a run. A released checkpoint has one set of weights.
        mesh: devices to spread the experts and the text encoder over; None is one device.
        text_cache: folder in which embeddings of prompts are kept, see `wanjax.prompt_embeddings`; None keeps none.
    Raises: FileNotFoundError where there is nothing at `path`; ValueError or CheckpointError where it is something
        else, naming what it is.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights = {weights!r}: expected 'ema' or 'raw'")
    if is_remote(path):
        return _open_run(path, weights, mesh, text_cache)
    root = resolve(path, parts=PARTS)
    if root.is_file():
        raise ValueError(f"checkpoint {str(path)!r} is a file: give a run's workdir or a pipeline's root folder")
    layout = hub.layout_of(root)
    if layout is not None:
        return _open_released(root, layout, weights, mesh, text_cache)
    if any(root.glob("*.safetensors")):
        raise ValueError(f"checkpoint {str(path)!r} holds one network: give the pipeline's root, with model_index.json")
    return _open_run(root, weights, mesh, text_cache)


def _open_run(
    root: str | os.PathLike[str], weights: str, mesh: jax.sharding.Mesh | None, text_cache: pathlib.Path | None
) -> Pipeline:
    run = checkpoint.open_run(root, weights)
    config, model = run.config, WanDiT(run.config.model, mesh)
    video_codec = codec.open_codec(config.codec)
    # embeddings of a seeded encoder are made faster than read
    cache = None if config.text.encoder == SEEDED else text_cache
    return Pipeline(
        experts={name: _saved_expert(model, saved) for name, saved in run.experts.items()},
        vae=over_rows(video_codec.model, mesh),
        vae_params=video_codec.params,
        vae_fingerprint=video_codec.fingerprint,
        text=PromptEmbedder.of_config(config.text, cache=cache, mesh=mesh),
        config=config.sample,
        frames=config.data.frames,
        height=config.data.height,
        width=config.data.width,
        fps=config.data.fps,
        kind=conditions.kind_of([model.config], video_codec.model, expand_timesteps=config.train.first_frame > 0),
        description=run.description,
    )  # fmt: skip


def _saved_expert(model: WanDiT, saved: checkpoint.SavedExpert) -> Expert:
    """As it was trained: a LoRA beside the weights that it was trained beside, in their dtype."""
    if not saved.config.lora.rank:
        return Expert(model, lambda places: saved.read(places)[0], saved.fingerprint, "float32")
    base, dtype = warm_start.base_of(saved), saved.config.lora.base_dtype
    beside = lora_factors.factors(dit_rows(model.config), [(warm_start.lora_of(saved), 1.0)], mesh=model.mesh)
    both = warm_start.joint_fingerprint(base, saved)
    return Expert(model, lambda places: base.read(places, dtype), both, dtype, beside)


def _open_released(
    root: pathlib.Path, layout: str, weights: str, mesh: jax.sharding.Mesh | None, text_cache: pathlib.Path | None
) -> Pipeline:
    if weights == "raw":
        raise ValueError(f"weights = 'raw': the release {root} has one set of weights; leave the option out")
    parts = hub.open_layout(root)
    absent = [name for name in ("transformer", "vae", "text_encoder", "tokenizer") if name not in parts]
    if absent:
        raise ValueError(f"the {layout} layout in {root} has no {', '.join(absent)}: not a whole pipeline")
    names = {"high": "transformer", "low": "transformer_2"}
    experts = {name: _released_expert(parts[part], mesh) for name, part in names.items() if part in parts}
    boundary = parts["boundary_ratio"]
    if "low" in experts and boundary is None:
        raise ValueError(f"the {layout} layout in {root} names two transformers but no boundary_ratio between them")
    vae, vae_params = hub.load_vae(parts["vae"], dtype="float32")  # docs/codec.md: what shorter types do to light
    models = [expert.model.config for expert in experts.values()]
    member = family.member_like(models)
    published = member.sample if boundary is None else dataclasses.replace(member.sample, boundary=boundary)
    two = f"two experts, boundary {boundary}" if "low" in experts else "one transformer"
    return Pipeline(
        experts=experts,
        vae=over_rows(vae, mesh),
        vae_params=jax.device_get(vae_params),  # the devices are the experts' until there is something to decode
        vae_fingerprint=hub.digest(parts["vae"]),
        text=PromptEmbedder.of_release(
            parts["text_encoder"], parts["tokenizer"], length=WAN_TEXT_LENGTH, cache=text_cache, mesh=mesh
        ),
        config=published,
        frames=member.frames,
        height=member.height,
        width=member.width,
        fps=member.fps,
        kind=conditions.kind_of(models, vae, expand_timesteps=_stated_timesteps(root)),
        description=f"{layout} layout in {root}: {two} of width {models[0].width}",
    )


def _stated_timesteps(root: pathlib.Path) -> bool | None:
    """Whether given frames have timestep 0, as diffusers states it for TI2V-5B; None where nothing states it."""
    return read_index(root).get("expand_timesteps") if (root / INDEX).is_file() else None


def _released_expert(folder: pathlib.Path, mesh: jax.sharding.Mesh | None) -> Expert:
    network = hub.open_network(folder, "transformer")
    assert isinstance(network.config, DiTConfig)
    return Expert(WanDiT(network.config, mesh), network.place, hub.digest(folder), network.config.param_dtype)


def over_rows(vae: WanVAE, mesh: jax.sharding.Mesh | None) -> WanVAE:
    """The codec on the experts' devices: one clip at a time, the rows of its frames spread over all of them."""
    if mesh is None:
        return vae
    return WanVAE(vae.config, partition.make_mesh({"seq": -1}, list(mesh.devices.flat)))
