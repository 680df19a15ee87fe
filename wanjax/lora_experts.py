"""LoRA files in or beside the weights of the experts that are sampled from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from wanjax import lora, lora_factors, offload
from wanjax.experts import Expert
from wanjax.generate import Pipeline
from wanjax.models.rows.dit import dit_rows
from wanjax.sample_config import SampleConfig

LORA_MODES = ("into", "beside")


def with_loras(
    pipeline: Pipeline, config: SampleConfig, files: Mapping[str, list[tuple[pathlib.Path, float]]], mode: str
) -> tuple[Pipeline, dict[str, list[dict[str, Any]]]]:
    """The pipeline whose experts have LoRAs in or beside their weights.

    Args:
        pipeline: what is sampled.
        config: the settings in use.
        files: "high" or "low" -> LoRA files with their weights.
        mode: "into", merged as the weights are read, or "beside", added at every use, see `wanjax.lora_factors`.
    Returns: the pipeline; by expert, what identifies each file: {"file", "sha256", "weight"}.
    Raises: ValueError: an expert that is absent or has no steps, LoRAs that are not for it or cannot be where they are
        asked to be.
    """
    if mode not in LORA_MODES:
        raise ValueError(f"lora_mode = {mode!r}: expected one of {', '.join(LORA_MODES)}")
    experts, records = dict(pipeline.experts), dict[str, list[dict[str, Any]]]()
    for name in files:
        if name not in experts:
            raise ValueError(f"lora_{name}: there is no {name}-noise expert here, only {', '.join(experts)}")
        if not config.expert_steps[name]:
            raise ValueError(f"lora_{name} would do nothing: no step falls to the {name}-noise expert here")
    for name, named in files.items():
        model = experts[name].model
        table = dit_rows(model.config)
        opened, records[name] = lora.read_files(named, table, expert=name)
        if mode == "beside" and experts[name].changes:
            raise ValueError(f"lora_{name}: the run's own LoRA is beside the {name}-noise expert's weights already: "
                             "merge files into them (--lora_mode into), or write the run's as a file "
                             "(experiments.convert --only lora) and give all to what it is for")  # fmt: skip
        if mode == "beside":
            beside = lora_factors.factors(table, opened, mesh=model.mesh)
            experts[name] = dataclasses.replace(experts[name], changes=beside)
        else:
            experts[name] = _merged(experts[name], opened)
    return dataclasses.replace(pipeline, experts=experts), records


def _merged(expert: Expert, loras: Sequence[tuple[lora.Lora, float]]) -> Expert:
    """The expert whose parameters are changed as they are read."""

    def read(places: Any) -> Any:
        if any(place.memory_kind == offload.HOST for place in jax.tree.leaves(places)):
            raise ValueError("LoRAs cannot be merged into weights that are streamed from the host block by block: keep "
                             "them beside (--lora_mode beside), or hold a whole expert (--holding one)")  # fmt: skip
        return lora.merge(expert.read(places), dit_rows(expert.model.config), loras, donate=True)

    return dataclasses.replace(expert, read=read)
