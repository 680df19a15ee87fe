"""diffusers' pipelines, the reference of the whole loop from prompt and noise to pixels: needs PyTorch."""

from __future__ import annotations

import pathlib
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from tests.parity import dit, vae
from tests.parity.loop_case import FRAMES, NEGATIVE, PROMPT, TEXT, Case
from wanjax.hub_configs import umt5_json


def scheduler(case: Case) -> diffusers.UniPCMultistepScheduler:
    """As the checkpoints on the hub have it, with the shift of the case."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=case.sample.shift
    )


def pipeline_class(case: Case) -> type:
    return diffusers.WanImageToVideoPipeline if case.first else diffusers.WanPipeline


def build(case: Case, seed: int = 0) -> Any:
    """A pipeline with every parameter random."""
    experts = []
    for index, _ in enumerate(case.published.experts):
        model = dit.build(case.model, exact_sinusoid=False)
        tensors = case.transformer(seed + 10 + index)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
        experts.append(model.eval())
    settings = {name: value for name, value in umt5_json(TEXT).items() if name != "architectures"}
    text_encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**settings)).eval()
    tensors = {name: torch.from_numpy(array) for name, array in case.text(seed).items()}
    report = text_encoder.load_state_dict(tensors, strict=False)
    assert report.missing_keys in ([], ["encoder.embed_tokens.weight"]) and not report.unexpected_keys  # tied
    return pipeline_class(case)(
        tokenizer=transformers.ByT5Tokenizer(),
        text_encoder=text_encoder,
        vae=vae.reference(case.codec, case.vae(seed)),
        scheduler=scheduler(case),
        transformer=experts[0],
        transformer_2=experts[1] if len(experts) == 2 else None,
        boundary_ratio=case.sample.boundary if len(experts) == 2 else None,
        expand_timesteps=case.expand_timesteps,
    )


def opened(case: Case, folder: pathlib.Path) -> Any:
    """The pipeline that diffusers finds in a folder, with the folder's own scheduler."""
    named = diffusers.DiffusionPipeline.from_pretrained(folder)
    # TI2V-5B is published as a pipeline from text, and opened by the other class for an image
    return named if type(named) is pipeline_class(case) else pipeline_class(case).from_pretrained(folder)


def pixels(case: Case, pipeline: Any) -> np.ndarray:
    """The clip [T, H, W, 3] in [0, 1] of the case's prompt, noise and images; the sinusoid is put right first."""
    for expert in (pipeline.transformer, pipeline.transformer_2):
        if expert is not None:
            expert.condition_embedder.timesteps_proj = dit.ExactSinusoid(case.model.freq_dim)
    pipeline.set_progress_bar_config(disable=True)
    sample, (height, width) = case.sample, case.size
    first, last = (None if image is None else Image.fromarray(image) for image in case.images)
    options: dict[str, Any] = {}
    if len(case.published.experts) == 2:
        options["guidance_scale_2"] = sample.guidance_low
    if case.first:
        options |= {"image": first, "last_image": last}
    noise = torch.from_numpy(np.ascontiguousarray(np.moveaxis(case.noise, -1, 1)))
    clip = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, height=height, width=width, num_frames=FRAMES,
        num_inference_steps=sample.steps, guidance_scale=sample.guidance_high, latents=noise, output_type="np",
        **options,
    ).frames[0]  # fmt: skip
    return np.asarray(clip)
