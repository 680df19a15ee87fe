"""A released pipeline and a run, both of two experts with random weights, that take a second to sample from."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from wanjax import checkpoint, config, hub, train
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.umt5 import UMT5Config, UMT5Encoder
from wanjax.models.vae import VAEConfig, WanVAE

ROOT = pathlib.Path(__file__).parents[1]
DIT = DiTConfig(width=24, heads=2, layers=1, ffn=32, freq_dim=16, text_dim=16, in_channels=4, out_channels=4)
TEXT = UMT5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=1)
VAE = VAEConfig(
    base_dim=4,
    z_dim=4,
    dim_mult=(1, 1, 1, 1),
    num_res_blocks=1,
    temporal_downsample=(False, True, True),
    latents_mean=(0.0,) * 4,
    latents_std=(1.0,) * 4,
)
QUICK = {"shift": 3.0, "solver": "euler", "steps": 2, "guidance_high": 1.0, "guidance_low": 1.0}


def randomised(model, seed, scale):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * scale, shapes)


def write_release(folder: pathlib.Path) -> pathlib.Path:
    """The pipeline in the diffusers layout; returns its folder."""
    for seed, part in enumerate(("transformer", "transformer_2")):
        hub.save_dit(folder / part, WanDiT(DIT), randomised(WanDiT(DIT), seed, 0.15))
    hub.save_vae(folder / "vae", WanVAE(VAE), randomised(WanVAE(VAE), 3, 0.3))
    hub.save_text_encoder(folder / "text_encoder", UMT5Encoder(TEXT), randomised(UMT5Encoder(TEXT), 4, 0.3))
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(str(folder / "tokenizer"))
    write_index(folder, boundary_ratio=0.9)
    return folder


def write_run(folder: pathlib.Path) -> pathlib.Path:
    """A run of both experts as the trainer leaves it; returns its folder."""
    hub.save_vae(folder / "codec", WanVAE(VAE), randomised(WanVAE(VAE), 3, 0.3))
    experiment = config.load(
        ROOT / "configs" / "light_scenes_tiny.py",
        {"model": dataclasses.asdict(DIT), "codec": str(folder / "codec"), "text.length": 32,
         "text.model": dataclasses.asdict(TEXT), "data.frames": 5, "data.height": 32, "data.width": 32,
         "objective.light.orders": (1,)}
        | {f"sample.{name}": value for name, value in QUICK.items()},
    )  # fmt: skip
    for seed, name in enumerate(("high", "low")):
        params = jax.tree.map(jax.numpy.asarray, randomised(WanDiT(DIT), seed, 0.15))
        ema = jax.tree.map(lambda leaf: leaf * 0.9, params)
        state = train.TrainState(jax.numpy.int32(7), params, ema, {"not read": jax.numpy.zeros(1)})
        with checkpoint.Checkpoints(folder / name / "checkpoints", experiment=experiment, expert=name, keep=1) as saved:
            saved.save(7, state, {"position": 0})
            saved.wait()
    return folder


def write_index(folder, *, boundary_ratio, **absent):
    parts = {"transformer": 1, "transformer_2": 1, "vae": 1, "text_encoder": 1, "tokenizer": 1} | absent
    index = {name: ["library", "Class"] if there else [None, None] for name, there in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": boundary_ratio}))
