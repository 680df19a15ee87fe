"""Train the tiny codec on rendered scenes, train a given one further, or fit the luminance vector of a codec.

    python -m experiments.train_codec --workdir runs/codec
    python -m experiments.train_codec --workdir runs/further --init_from runs/codec/codec
    python -m experiments.train_codec --fit_luminance --checkpoint wanjax/assets/codec_light_scenes_tiny

The first two write ``DIR/codec/`` (diffusers ``vae`` layout with luminance.json) and continue where they were stopped;
the last only rewrites ``luminance.json`` in the codec's folder. A given codec is of Wan2.1's architecture or Wan2.2's;
from scratch only Wan2.1's is trained: the linear transform that it starts from (``wanjax.codec_start``) is made for it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from data_pipelines.light_scenes import ALL, FAMILIES, ClipSize, ClipSpec, parse_families, render_clip, signs_of
from wanjax import codec_finish, codec_training, hub
from wanjax.codec import find_codec
from wanjax.codec_training import CodecTrainingConfig
from wanjax.light.luminance import LuminanceFit, cell_luminance, fit_luminance
from wanjax.light.photometry import luminance, srgb_to_linear
from wanjax.models.vae import VAEConfig, WanVAE
from wanjax.run_folder import local_folder

FLAGS = flags.FLAGS


def tiny_config(base_dim: int = 8) -> VAEConfig:
    """The shipped codec's sizes; latents are left unnormalised until training is over."""
    return VAEConfig(
        base_dim=base_dim,
        num_res_blocks=1,
        dim_mult=(1, 2, 6, 8),
        latents_mean=(0.0,) * 16,
        latents_std=(1.0,) * 16,
    )


def specs(name: str, split: str, count: int, seed: int = 0) -> list[ClipSpec]:
    """``count`` clips of a family (or "family/variant"), signs balanced."""
    family, _, variant = name.partition("/")
    out = []
    for scene in range(count):
        values = (1 - 2 * (scene % 2), 1 - scene // 2 % 2 * 2)
        signs = dict(zip(signs_of(family), values, strict=False))
        out.append(ClipSpec(family, scene, **signs, split=split, seed=seed, variant=variant))
    return out


def rendered(families: Sequence[str], split: str, count: int, size: ClipSize | None = None) -> np.ndarray:
    """``count`` clips of each family, uint8 [families · count, T, H, W, 3], by default 17 × 64 × 64."""
    size = size or ClipSize()
    return np.stack([render_clip(spec, size).video for name in families for spec in specs(name, split, count)])


def training_clips(workdir: Path, families: Sequence[str], count: int) -> np.ndarray:
    """The families' training clips, rendered once and kept in the work folder."""
    names = "_".join(name.replace("/", ".") for name in families)
    path = workdir / f"clips_{count}_{names}.npy"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        logging.info("rendering %d clips of each of %s", count, ", ".join(families))
        temporary = workdir / "clips.tmp.npy"
        np.save(temporary, rendered(families, "train", count))
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


class Augmented:
    """Crops of rendered clips: mirrored, played backwards, colours mixed and light ramped, all drawn from the step."""

    def __init__(self, clips: np.ndarray, seed: int = 0) -> None:
        self._clips, self._seed = clips, seed

    def __call__(self, step: int, *, batch: int, frames: int, size: int) -> np.ndarray:
        draw = np.random.default_rng([self._seed, step])
        return np.stack([self._one(draw, frames, size) for _ in range(batch)])

    def _one(self, draw: np.random.Generator, frames: int, size: int) -> np.ndarray:
        clip = self._clips[draw.integers(len(self._clips))]
        t, y, x = (draw.integers(have - want + 1) for have, want in zip(clip.shape, (frames, size, size), strict=False))
        crop = clip[t : t + frames, y : y + size, x : x + size].astype(np.float32) / 255
        crop = crop[:: draw.choice((-1, 1)), :, :: draw.choice((-1, 1))]
        if draw.random() < 0.25:
            crop = crop[..., draw.permutation(3)]
        if draw.random() < 0.3:  # a gain per colour that ramps over the clip; a power of 2.2 stands in for sRGB's curve
            ends = np.exp2(draw.uniform(-2.0, 0.5) + draw.normal(0, 0.4, (2, 3)))
            ramp = np.linspace(0, 1, frames)[:, None, None, None]
            crop = np.minimum(crop * ((1 - ramp) * ends[0] + ramp * ends[1]) ** (1 / 2.2), 1)
        return (crop * 2 - 1).astype(np.float32)


def fit(model: WanVAE, params: Mapping[str, Any], clips: np.ndarray, families: Sequence[str]) -> LuminanceFit:
    """Luminance vector of a codec on training clips uint8 [n, T, H, W, 3] of ``families``."""
    time, space, _ = model.strides
    latents, cells = [], []
    for clip in clips:
        latents.append(np.asarray(model.apply({"params": params}, clip[None] / np.float32(127.5) - 1)))
        light = luminance(srgb_to_linear(clip[None].astype(np.float64) / 255))
        cells.append(cell_luminance(light, time=time, space=space))
    size = " x ".join(map(str, clips.shape[1:4]))
    what = f"{len(clips)} training clips of light_scenes ({', '.join(families)}), {size}"
    return fit_luminance(np.concatenate(latents), np.concatenate(cells), fitted_on=what)


def compacted(params: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's largest kernels in float16, which brings a tiny codec's file under 8 MB; the encoder stays exact.

    Only where they are under half of the weights, so that the hub still reads a float32 network; a wide codec is left
    as it is.
    """

    def is_large(path: tuple[Any, ...], leaf: np.ndarray) -> bool:
        return path[0].key == "decoder" and leaf.size > 100_000

    leaves = jax.tree_util.tree_leaves_with_path(params)
    halved = 2 * sum(leaf.size for path, leaf in leaves if is_large(path, leaf)) < sum(leaf.size for _, leaf in leaves)

    def shrink(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
        return np.asarray(leaf, np.float16 if halved and is_large(path, leaf) else np.float32)

    return jax.tree_util.tree_map_with_path(shrink, params)


def export(
    config: VAEConfig, params: Mapping[str, Any], sample: np.ndarray, families: Sequence[str], folder: Path
) -> LuminanceFit:
    """Write the codec's folder; on ``sample`` (uint8 clips) latents are scaled, brightness set, luminance fitted."""
    few = sample[:: max(len(sample) // 12, 1)]
    params = compacted(codec_finish.balance(config, params, few))
    params = codec_finish.brighten(config, params, sample)
    model = WanVAE(codec_finish.with_statistics(config, params, sample))
    hub.save_vae(folder, model, params)
    found = fit(model, params, sample, families)
    found.save(folder / "luminance.json")
    return found


def start_from(folder: Path) -> tuple[VAEConfig, Mapping[str, Any]]:
    """Sizes and parameters of the codec in ``folder``, of either architecture; its latents' statistics are left, new
    ones are fitted after training."""
    model, params = hub.load_vae(folder, dtype="float32")  # some of it may be stored in float16
    channels = model.config.z_dim
    unnormalised = dataclasses.replace(model.config, latents_mean=(0.0,) * channels, latents_std=(1.0,) * channels)
    return unnormalised, jax.device_get(params)


def fit_again(
    folder: Path, *, families: Sequence[str], fit_clips: int, fit_size: int = ClipSize.height
) -> LuminanceFit:
    """Fit the luminance vector of the codec in ``folder`` and rewrite its luminance.json.

    Args:
        fit_size: height and width of the rendered clips, in pixels.

    Raises:
        ValueError: a size that the codec does not take.
    """
    model, params = hub.load_vae(folder)
    stride = model.strides[1]
    if fit_size < stride or fit_size % stride:
        near = max(fit_size // stride * stride, stride)
        raise ValueError(f"--fit_size {fit_size}: the codec takes multiples of {stride}; use {near} or {near + stride}")
    size = ClipSize(height=fit_size, width=fit_size)
    found = fit(model, params, rendered(families, "train", fit_clips, size), families)
    found.save(folder / "luminance.json")
    return found


def run(
    workdir: Path,
    config: VAEConfig,
    training: CodecTrainingConfig,
    *,
    families: Sequence[str],
    clips: int,
    held_out: int,
    fit_clips: int,
    start: Mapping[str, Any] | None = None,
) -> Path:
    """Train in ``workdir`` (or go on there) and export; returns the codec's folder.

    Args:
        families: of ``light_scenes.ALL``.
        clips: rendered training clips of each family.
        held_out: held-out clips of each family that are measured.
        fit_clips: training clips of each family for latent statistics and luminance.
        start: parameters that a new run starts from; by default a fitted linear transform, of Wan2.1's architecture.
    """

    def report(step: int, figures: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **{name: round(value, 5) for name, value in figures.items()}})
        logging.info(line)
        with open(workdir / "metrics.jsonl", "a") as file:
            file.write(line + "\n")

    sample = rendered(families, "train", fit_clips)
    params = codec_training.train(
        WanVAE(config),
        training,
        Augmented(training_clips(workdir, families, clips)),
        start=sample[:: max(len(sample) // 12, 1)] if start is None else start,
        workdir=workdir,
        held_out={name: rendered([name], "test", held_out) for name in families},
        report=report,
    )
    found = export(config, params, sample, families, workdir / "codec")
    logging.info("wrote %s; luminance R2 %.4f", workdir / "codec", found.r2)
    return workdir / "codec"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        families = parse_families(FLAGS.families)
    except ValueError as error:
        raise app.UsageError(f"--families: {error}") from error
    if FLAGS.fit_luminance:
        if not FLAGS.checkpoint:
            raise app.UsageError("--fit_luminance needs --checkpoint, the codec's folder")
        try:
            found = fit_again(find_codec(FLAGS.checkpoint), families=families, fit_clips=FLAGS.fit_clips,
                              fit_size=FLAGS.fit_size)
        except (OSError, ValueError) as error:
            sys.exit(f"error: --checkpoint {FLAGS.checkpoint}: {error}")
        print(f"luminance.json: R2 {found.r2:.4f} on {found.fitted_on}")
        return
    if not FLAGS.workdir:
        raise app.UsageError("--workdir is needed")
    if FLAGS["fit_size"].present:
        raise app.UsageError("--fit_size goes with --fit_luminance: a codec is trained on clips of 64 pixels")
    if FLAGS.init_from and FLAGS["base_dim"].present:
        raise app.UsageError("--base_dim is for a codec from scratch: one that --init_from names keeps its own sizes")
    training = CodecTrainingConfig(
        steps=FLAGS.steps, full_steps=min(FLAGS.full_steps, FLAGS.steps), learning_rate=FLAGS.learning_rate
    )
    sizes = {"families": families, "clips": FLAGS.clips, "held_out": FLAGS.held_out, "fit_clips": FLAGS.fit_clips}
    try:
        config, start = tiny_config(FLAGS.base_dim), None
        if FLAGS.init_from:
            config, start = start_from(find_codec(FLAGS.init_from))
        run(local_folder(FLAGS.workdir, "--workdir"), config, training, **sizes, start=start)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    flags.DEFINE_string("workdir", None, "Folder of the run; an earlier run in it is continued.")
    flags.DEFINE_string("families", ",".join(FAMILIES), f"'all', or names separated by commas, of: {', '.join(ALL)}.")
    flags.DEFINE_integer("steps", CodecTrainingConfig.steps, "Optimizer steps.", lower_bound=1)
    flags.DEFINE_integer("full_steps", CodecTrainingConfig.full_steps, "The last steps, on whole clips.", lower_bound=0)
    flags.DEFINE_float("learning_rate", CodecTrainingConfig.learning_rate, "Peak.", lower_bound=0.0)
    flags.DEFINE_integer("clips", 240, "Rendered training clips of each family.", lower_bound=1)
    flags.DEFINE_integer("held_out", 4, "Held-out clips of each family that are measured.", lower_bound=1)
    flags.DEFINE_integer("base_dim", 8, "Channels at full resolution, from scratch.", lower_bound=8)
    flags.DEFINE_string("init_from", None, "Codec folder whose weights and sizes a new run starts from.")
    flags.DEFINE_bool("fit_luminance", False, "Only fit the luminance vector of --checkpoint.")
    flags.DEFINE_string("checkpoint", None, "Codec folder, for --fit_luminance.")
    flags.DEFINE_integer("fit_clips", 20, "Training clips of each family for latent statistics and luminance.")
    flags.DEFINE_integer("fit_size", ClipSize.height, "Height and width of --fit_luminance's clips, in pixels.")
    app.run(main)


if __name__ == "__main__":
    entry()
