"""Opens what `wanjax.generate` samples from: a run of this library, or a released checkpoint."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax

from wanjax import checkpoint, codec, family, hub, text
from wanjax.generate import Pipeline
from wanjax.models.dit import WanDiT

WAN_TEXT_LENGTH = 512


def open_pipeline(
    path: str | os.PathLike[str], *, weights: str = "ema", mesh: jax.sharding.Mesh | None = None
) -> Pipeline:
    """Opens a checkpoint of any kind that can be sampled from.

    Args:
        path: a workdir of `experiments.train`, one expert's folder in it or the folder of one of its steps; or the
            root of a pipeline in the diffusers layout (the folder of model_index.json) or in Wan's own (that of
            high_noise_model/, low_noise_model/, Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/).
        weights: "ema" (averaged over training) or "raw", of a run. A released checkpoint has one set of weights.
        mesh: devices to spread the experts over; None is one device.
    Raises: FileNotFoundError where there is nothing at `path`; ValueError or CheckpointError where it is something
        else, naming what it is.
    """
    root = pathlib.Path(path)
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights = {weights!r}: expected 'ema' or 'raw'")
    if not root.exists():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist")
    if (root / "model_index.json").is_file() or hub.is_official(root):
        return _open_released(root, weights, mesh)
    if root.is_file():
        raise ValueError(f"checkpoint {str(path)!r} is a file: give a run's workdir or a pipeline's root folder")
    if any(root.glob("*.safetensors")):
        raise ValueError(f"checkpoint {str(path)!r} holds one network: give the pipeline's root, with model_index.json")
    return _open_run(root, weights, mesh)


def _open_run(root: pathlib.Path, weights: str, mesh: jax.sharding.Mesh | None) -> Pipeline:
    run = checkpoint.open_run(root, weights, mesh=mesh)
    config = run.config
    model = WanDiT(config.model, mesh)
    video_codec = codec.open_codec(config.codec)
    return Pipeline(
        experts={name: (model, params) for name, params in run.experts.items()},
        vae=video_codec.model,
        vae_params=video_codec.params,
        text=text.load_text_encoder_for(config.text),
        config=config.sample,
        frames=config.data.frames,
        height=config.data.height,
        width=config.data.width,
        fps=config.data.fps,
        description=run.description,
    )


def _open_released(root: pathlib.Path, weights: str, mesh: jax.sharding.Mesh | None) -> Pipeline:
    if weights == "raw":
        raise ValueError(f"weights = 'raw': the release {root} has one set of weights; leave the option out")
    parts = hub.open_layout(root)
    absent = [name for name in ("transformer", "vae", "text_encoder", "tokenizer") if name not in parts]
    official = not (root / "model_index.json").is_file()
    listing = f"the official layout in {root}" if official else str(root / "model_index.json")
    if absent:
        raise ValueError(f"{listing} has no {', '.join(absent)}: not a whole text-to-video pipeline")
    names = {"high": "transformer", "low": "transformer_2"}
    experts = {name: hub.load_dit(parts[part], mesh=mesh) for name, part in names.items() if part in parts}
    boundary = parts["boundary_ratio"]
    if "low" in experts and boundary is None:
        raise ValueError(f"{listing} names two transformers but no boundary_ratio between them")
    vae, vae_params = hub.load_vae(parts["vae"])
    encoder, encoder_params = hub.load_text_encoder(parts["text_encoder"])
    member = family.member_like([model.config for model, _ in experts.values()])
    published = member.sample if boundary is None else dataclasses.replace(member.sample, boundary=boundary)
    layout = "official" if official else "diffusers"
    kind = f"two experts, boundary {boundary}" if "low" in experts else "one transformer"
    return Pipeline(
        experts=experts,
        vae=vae,
        vae_params=vae_params,
        text=text.TextEncoder(text.load_tokenizer(str(parts["tokenizer"])), encoder, encoder_params, WAN_TEXT_LENGTH),
        config=published,
        frames=member.frames,
        height=member.height,
        width=member.width,
        fps=member.fps,
        description=f"{layout} layout in {root}: {kind} of width {experts['high'][0].config.width}",
    )
