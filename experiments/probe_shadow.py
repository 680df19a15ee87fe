"""Asks a trained run where its shadows are: a head on its frozen hidden states, against thresholded luminance.

    python -m experiments.probe_shadow --checkpoint runs/demo --json runs/demo/shadow_probe.json

For each expert a shadow head is trained on training scenes (``--head trained`` takes the one that the run's shadow term
trained) and scored by IoU on scenes of the test split, noised to the middle of each noise bin. The baseline thresholds
the luminance of the same step's predicted clean clip; thresholds of both are fitted on training scenes per bin.
docs/objectives.md says how to read the result.
"""
from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags

from data_pipelines import encode
from wanjax import checkpoint, codec, config, data, warm_start
from wanjax.first_frame import reads_image
from wanjax.latent_cache import CacheError, LatentCache
from wanjax.models.dit import WanDiT
from wanjax.models.shadow_head import ShadowHead, ShadowHeadConfig
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.shadow_probe import ProbeConfig, compare, make_look, train_head


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
      experts: names of those to look at; () for all that the run has.
      trained: score the head that the run trained instead of training one.
      split: of the held-out scenes.
      clips, fit_clips: held-out clips that are scored, and training clips that thresholds are fitted on.
      bins: equal-width noise bins over each expert's range.
      batch: clips at a time.
      probe: how the head is trained.
      head: its shape, where it is trained here.
      cache_dir: of the latents; "" for the run's own.
    """

    experts: tuple[str, ...] = ()
    trained: bool = False
    split: str = "test"
    clips: int = 96
    fit_clips: int = 96
    bins: int = 4
    batch: int = 16
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    head: ShadowHeadConfig = dataclasses.field(
        default_factory=lambda: ShadowHeadConfig((1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0), width=128))
    cache_dir: str = ""


def run(folder: str, settings: Settings, *, weights: str = "ema") -> dict[str, Any]:
    """Probes a run; returns what ``--json`` holds.

    Raises:
      ValueError: for an expert, or a trained head, that the run does not have, or experts that read an image.
    """
    opened = checkpoint.open_run(folder, weights)
    if reads_image(opened.config.model):
        raise ValueError(f"{folder!r} has image-to-video experts: their hidden states are not probed here, since they "
                         "see a first frame; give a text-to-video run")
    experiment, wanted = opened.config, settings.experts or tuple(opened.experts)
    there = [name for name, saved in opened.experts.items() if not settings.trained or saved.has_head]
    absent = sorted(set(wanted) - set(there))
    if absent:
        if settings.trained:
            raise ValueError(f"{folder!r} has no trained shadow head of its {', '.join(absent)} expert: "
                             "config.objective.shadow had no weight; without --head trained, one is trained on it")
        raise ValueError(f"{folder!r} has no {', '.join(absent)} expert, only {', '.join(opened.experts)}")
    shipped = codec.open_codec(experiment.codec)
    config.check_codec(experiment, shipped.model)
    cell, source = experiment.data.visibility_cell, encode.open_source(experiment.data)
    cache = encode.ensure_cache(
        settings.cache_dir or experiment.data.cache_dir, source=source, vae=shipped.model,
        vae_params=shipped.params, vae_fingerprint=shipped.fingerprint, splits=("train", settings.split),
        text=PromptEmbedder.of_config(experiment.text), visibility_cell=cell)
    families = _families(source, settings)
    found = {name: _probe(name, opened, settings, shipped, cache, families) for name in wanted}
    settings_read = dataclasses.asdict(settings) | {"weights": weights, "visibility_cell": cell}
    steps = {name: saved.step for name, saved in opened.experts.items()}
    return {"checkpoint": folder, "config": experiment.name, "steps": steps, "settings": settings_read,
            "experts": found}


def _families(source: encode.TFDSSource, settings: Settings) -> list[str]:
    """Family of every held-out clip that is scored, in their order; [] where the data has none."""
    features = source.builder.info.features
    if "family" not in features:
        return []
    unread = {name: tfds.decode.SkipDecoding() for name in features if name != "family"}
    examples = source.builder.as_data_source(settings.split, decoders=unread)
    count = min(settings.clips, len(examples)) // settings.batch * settings.batch
    return [examples[i]["family"].decode() for i in range(count)]


def _probe(name: str, opened: checkpoint.Run, settings: Settings, shipped: codec.Codec, cache: LatentCache,
           families: list[str]) -> dict[str, Any]:
    """One expert's bins."""
    experiment, saved = opened.config, opened.experts[name]
    params, trained = saved.read()
    if experiment.lora.rank:
        params = warm_start.weights_of(saved).read(None, "float32")
    length, cell, batch = experiment.text.length, experiment.data.visibility_cell, settings.batch
    model = WanDiT(experiment.model)
    span = experiment.train.timesteps(name)
    head = experiment.shadow_head(model) if settings.trained else ShadowHead(
        settings.head, model, experiment.visibility_cells)
    assert head is not None
    if settings.trained:
        own = trained
    else:
        batches = data.make_loader(cache.folder, "train", batch=batch, seed=settings.probe.seed, text_length=length,
                                   caption_dropout=0.0, null_text=cache.null_text, visibility_cell=cell)
        with tqdm.tqdm(total=settings.probe.steps, desc=f"{name} expert's head", unit="step") as bar:

            def report(step: int, loss: float) -> None:
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

            own = train_head(head, params, batches, settings.probe, timesteps=span, report=report)
    fit, held = (data.validation_batches(cache.folder, split, batch=batch, text_length=length, limit=limit,
                                         visibility_cell=cell)
                 for split, limit in (("train", settings.fit_clips), (settings.split, settings.clips)))
    look = make_look(head, lambda p, x: shipped.model.apply({"params": p}, x, method="decode"), shipped.luminance)
    edges, bins = np.linspace(*span, settings.bins + 1) / 1000.0, []
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        sigma, key = float(low + high) / 2, jax.random.fold_in(jax.random.key(settings.probe.seed), i)
        training = look(params, own, shipped.params, fit, sigma, jax.random.fold_in(key, 0))
        seen = look(params, own, shipped.params, held, sigma, jax.random.fold_in(key, 1))
        bins.append({"sigma": [float(low), float(high)], "at": sigma, **compare(seen, training, families)})
        tqdm.tqdm.write(_line(name, bins[-1]))
    return {"taps": list(head.taps), "bins": bins}


def _line(name: str, found: Mapping[str, Any]) -> str:
    def said(score: Mapping[str, float]) -> str:
        return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"

    against = "; ".join(f"{kind} {said(score['rarer'])}, head − {kind} "
                        f"{said(found['head_minus_baseline'][kind]['rarer'])}"
                        for kind, score in found["baselines"].items())
    return (f"{name} σ {found['sigma'][0]:.3f}–{found['sigma'][1]:.3f}, {found['clips']} clips: IoU of the rarer "
            f"class, head {said(found['head']['rarer'])}; {against}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: options start with --")
    logging.getLogger("absl").setLevel(logging.WARNING)
    given = flags.FLAGS
    try:
        settings = Settings(
            experts=() if given.expert == "both" else (given.expert,), trained=given.head == "trained",
            split=given.split, clips=given.clips, fit_clips=given.fit_clips, bins=given.bins, batch=given.batch,
            cache_dir=given.cache_dir,
            probe=ProbeConfig(given.steps, given.learning_rate, given.gate, given.seed),
            head=ShadowHeadConfig(tuple(map(float, given.depths)), given.width))
        found = run(given.checkpoint, settings, weights=given.weights)
        target = pathlib.Path(given.json)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    except (checkpoint.CheckpointError, CacheError, encode.DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def entry() -> None:
    """Defines the flags (here, so that importing this file leaves absl's flags alone) and runs the launcher."""
    settings = Settings()
    shape, probe = settings.head, settings.probe
    flags.DEFINE_string("checkpoint", None, "A run's workdir, or one expert's folder in it.")
    flags.DEFINE_string("json", None, "File to write.")
    flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Which weights of the run.")
    flags.DEFINE_enum("expert", "both", ["high", "low", "both"], "Whose hidden states; both: all that the run has.")
    flags.DEFINE_enum("head", "probe", ["probe", "trained"], "Train one on the frozen run, or take the run's own.")
    flags.DEFINE_string("split", settings.split, "Of the held-out scenes.")
    flags.DEFINE_string("cache_dir", "", "Where latents are cached; by default where the run has them.")
    flags.DEFINE_integer("clips", settings.clips, "Held-out clips that are scored.", lower_bound=1)
    flags.DEFINE_integer("fit_clips", settings.fit_clips, "Training clips for the thresholds.", lower_bound=1)
    flags.DEFINE_integer("bins", settings.bins, "Noise bins over each expert's range.", lower_bound=1)
    flags.DEFINE_integer("batch", settings.batch, "Clips at a time.", lower_bound=1)
    flags.DEFINE_integer("steps", probe.steps, "Training steps of the head.", lower_bound=1)
    flags.DEFINE_float("learning_rate", probe.learning_rate, "Of the head.")
    flags.DEFINE_bool("gate", probe.gate, "Weigh clips by the noise gate in training.")
    flags.DEFINE_integer("seed", probe.seed, "Of head, noise and order.")
    flags.DEFINE_list("depths", [str(d) for d in shape.depths], "Shares of the depth that the head reads.")
    flags.DEFINE_integer("width", shape.width, "Features of the head.", lower_bound=1)
    flags.mark_flags_as_required(["checkpoint", "json"])
    app.run(main)


if __name__ == "__main__":
    entry()
