"""Opens what `wanjax.generate` samples from: a run of this library, or a released checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax

from wanjax import checkpoint, codec, conditions, family, hub
from wanjax.experts import Expert
from wanjax.file_digest import sampled_digest
from wanjax.generate import Pipeline
from wanjax.models.dit import WanDiT
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.text import SEEDED
from wanjax.weight_files import open_weights

WAN_TEXT_LENGTH = 512


def open_pipeline(
    path: str | os.PathLike[str],
    *,
    weights: str = "ema",
    mesh: jax.sharding.Mesh | None = None,
    text_cache: pathlib.Path | None = None,
) -> Pipeline:
    """Opens a checkpoint of any kind that can be sampled from. Experts and text encoder are read when they are needed.

    Args:
        path: a workdir of `experiments.train`, one expert's folder in it or the folder of one of its steps; or the
            root of a pipeline in the diffusers layout (the folder of model_index.json) or in Wan's own (that of
            high_noise_model/, low_noise_model/, Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/).
        weights: "ema" (averaged over training) or "raw", of a run. A released checkpoint has one set of weights.
        mesh: devices to spread the experts over; None is one device.
        text_cache: folder in which embeddings of prompts are kept, see `wanjax.prompt_embeddings`; None keeps none.
    Raises: FileNotFoundError where there is nothing at `path`; ValueError or CheckpointError where it is something
        else, naming what it is.
    """
    root = pathlib.Path(path)
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights = {weights!r}: expected 'ema' or 'raw'")
    if not root.exists():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist")
    if (root / "model_index.json").is_file() or hub.is_official(root):
        return _open_released(root, weights, mesh, text_cache)
    if root.is_file():
        raise ValueError(f"checkpoint {str(path)!r} is a file: give a run's workdir or a pipeline's root folder")
    if any(root.glob("*.safetensors")):
        raise ValueError(f"checkpoint {str(path)!r} holds one network: give the pipeline's root, with model_index.json")
    return _open_run(root, weights, mesh, text_cache)


def _open_run(
    root: pathlib.Path, weights: str, mesh: jax.sharding.Mesh | None, text_cache: pathlib.Path | None
) -> Pipeline:
    run = checkpoint.open_run(root, weights)
    config, model = run.config, WanDiT(run.config.model, mesh)
    video_codec = codec.open_codec(config.codec)
    # embeddings of a seeded encoder are made faster than read
    cache = None if config.text.encoder == SEEDED else text_cache
    return Pipeline(
        experts={name: Expert(model, functools.partial(_read_saved, saved), saved.fingerprint, "float32")
                 for name, saved in run.experts.items()},
        vae=video_codec.model,
        vae_params=video_codec.params,
        vae_fingerprint=video_codec.fingerprint,
        text=PromptEmbedder.of_config(config.text, cache=cache),
        config=config.sample,
        frames=config.data.frames,
        height=config.data.height,
        width=config.data.width,
        fps=config.data.fps,
        kind=conditions.kind_of([model.config], video_codec.model),
        description=run.description,
    )  # fmt: skip


def _read_saved(saved: checkpoint.SavedExpert, places: Any) -> Any:
    return saved.read(places)[0]


def _open_released(
    root: pathlib.Path, weights: str, mesh: jax.sharding.Mesh | None, text_cache: pathlib.Path | None
) -> Pipeline:
    if weights == "raw":
        raise ValueError(f"weights = 'raw': the release {root} has one set of weights; leave the option out")
    parts = hub.open_layout(root)
    absent = [name for name in ("transformer", "vae", "text_encoder", "tokenizer") if name not in parts]
    official = not (root / "model_index.json").is_file()
    listing = f"the official layout in {root}" if official else str(root / "model_index.json")
    if absent:
        raise ValueError(f"{listing} has no {', '.join(absent)}: not a whole text-to-video pipeline")
    names = {"high": "transformer", "low": "transformer_2"}
    experts = {name: _released_expert(parts[part], mesh) for name, part in names.items() if part in parts}
    boundary = parts["boundary_ratio"]
    if "low" in experts and boundary is None:
        raise ValueError(f"{listing} names two transformers but no boundary_ratio between them")
    vae, vae_params = hub.load_vae(parts["vae"])
    models = [expert.model.config for expert in experts.values()]
    member = family.member_like(models)
    published = member.sample if boundary is None else dataclasses.replace(member.sample, boundary=boundary)
    layout = "official" if official else "diffusers"
    two = f"two experts, boundary {boundary}" if "low" in experts else "one transformer"
    stated = None if official else json.loads((root / "model_index.json").read_text()).get("expand_timesteps")
    return Pipeline(
        experts=experts,
        vae=vae,
        vae_params=jax.device_get(vae_params),  # the devices are the experts' until there is something to decode
        vae_fingerprint=_digest(parts["vae"]),
        text=PromptEmbedder.of_release(
            parts["text_encoder"], parts["tokenizer"], length=WAN_TEXT_LENGTH, cache=text_cache
        ),
        config=published,
        frames=member.frames,
        height=member.height,
        width=member.width,
        fps=member.fps,
        kind=conditions.kind_of(models, vae, expand_timesteps=stated),
        description=f"{layout} layout in {root}: {two} of width {models[0].width}",
    )


def _released_expert(folder: pathlib.Path, mesh: jax.sharding.Mesh | None) -> Expert:
    config = hub.dit_config(folder)

    def read(places: Any) -> Any:
        return jax.device_put(hub.load_dit(folder)[1], places)

    return Expert(WanDiT(config, mesh), read, _digest(folder), config.param_dtype)


def _digest(weights: pathlib.Path) -> str:
    return sampled_digest((file.name, file) for file in open_weights(weights).files)
