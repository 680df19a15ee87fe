"""Captions of the three scenes that the project was asked for; each states what a clip of it has to show.

A pedestrian passes under a street lamp; the sun rises into a room through blinds; water glitters. Scenes and wording
are those of the test split, which training never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.light_scenes.captions import all_captions, states_color
from data_pipelines.light_scenes.clip import ClipSpec
from data_pipelines.light_scenes.families import ALL
from data_pipelines.light_scenes.splits import default_config, open_test, plan, truth_of

if TYPE_CHECKING:
    from data_pipelines.light_scenes.builder import LightScenesConfig

SCENARIOS = {
    "street_lamp": "A pedestrian under a street lamp",
    "sunrise_room/blinds": "Sunrise through blinds",
    "water_glitter": "Glittering water",
}
"""What each scenario is called, by the family that renders it."""

PER_SCENARIO = 8
"""Clips of each scenario, half of them in English and half in Chinese."""

_SCENES = 4  # of the test split, for each scenario
_FIRST_SEED = 2000


def showcase_prompts(
    data_dir: str | Path | None = None, *, config: LightScenesConfig | None = None
) -> list[dict[str, object]]:
    """Captions of the three scenarios to sample from, :data:`PER_SCENARIO` of each.

    - *A pedestrian under a street lamp*: four scenes, each with the shadow to the right and to the left.
    - *Sunrise through blinds*: four scenes, each in both languages; stripes slide right, it brightens; every other
      caption also says that blue turns warm.
    - *Glittering water*: four scenes; brightening and darkening, glints to the right and to the left, each
      combination in both languages.

    Args:
      data_dir: where ``prepare`` wrote the data set, or None.
      config: the data set's; by default that of all families in default size.

    Returns:
      Records as those of ``heldout_prompts``, with ``scenario``, and where the caption states it ``color_change``
      (+1 the light turns warmer, -1 cooler) and ``shadow_follows`` (1: the walker's shadow is his).

    Raises:
      ValueError: ``config`` lacks a family of the scenarios, or has fewer than four test scenes of each.
      FileNotFoundError: ``data_dir`` does not hold the data set.
    """
    config = config or default_config(0, 96, ALL)
    missing = [name for name in SCENARIOS if name not in config.families]
    if missing:
        raise ValueError(f"showcase: the data set has no {', '.join(missing)}; give --families all")
    source = open_test(data_dir, config)
    specs = plan("test", config.test, config.seed, config.families)
    records: list[dict[str, object]] = []
    for family, scenario in SCENARIOS.items():
        places = [i for i, spec in enumerate(specs) if spec.kind == family and spec.scene < _SCENES]
        chosen = _chosen(family, specs, places)
        if len(chosen) != PER_SCENARIO:
            raise ValueError(f"showcase: {config.test} test clips hold too few scenes of {family}: expected {_SCENES}")
        for order, (index, language) in enumerate(chosen):
            place = sum(other == language for _, other in chosen[:order])
            spec, text = specs[index], _wordings(specs[index], language)[place]
            record: dict[str, object] = {"prompt": text, "language": language, "scenario": scenario}
            record |= {"family": spec.family, "variant": spec.variant, "exposure_change": spec.exposure_change}
            record |= {"sweep": spec.sweep, "pan": spec.pan, "glints": spec.glints}
            if states_color(text):
                record["color_change"] = spec.exposure_change
            if family == "street_lamp":
                record["shadow_follows"] = 1
            record |= {"seed": _FIRST_SEED + len(records), "scene": index}
            records.append(record | truth_of(source, index))
    return records


def _chosen(family: str, specs: Sequence[ClipSpec], places: Sequence[int]) -> list[tuple[int, str]]:
    """Which clips of a family, as indices of the test split, and in which language."""
    languages = ("en", "zh")
    if family == "sunrise_room/blinds":
        rising = [i for i in places if (specs[i].exposure_change, specs[i].sweep) == (1, 1)]
        return [(i, language) for i in rising for language in languages]
    if family == "street_lamp":
        return [(i, languages[specs[i].scene % 2]) for i in places]
    # Scenes take turns with pairs of opposite clips, so that both languages meet every combination of signs.
    return [
        (i, languages[specs[i].scene // 2 % 2])
        for i in places
        if specs[i].exposure_change * specs[i].glints == (1, -1)[specs[i].scene % 2]
    ]


def _wordings(spec: ClipSpec, language: str) -> list[str]:
    """The held-out captions of a clip in the order in which a scenario uses them, half of them with colors."""
    texts = all_captions(spec, language)
    colored = [text for text in texts if states_color(text)]
    plain = [text for text in texts if text not in colored]
    if not colored:
        return plain
    pairs = [(colored[i % len(colored)], plain[i % len(plain)]) for i in range(PER_SCENARIO // 4)]
    # Turned about, every other pair: where neighbours are a sunrise and a sunset, the colors go both ways.
    return [text for i, pair in enumerate(pairs) for text in (pair if i % 2 == 0 else pair[::-1])]
