"""Which clips a split holds, in which order, and the captions held out for sampling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.light_scenes.captions import captions
from data_pipelines.light_scenes.clip import ClipSpec
from data_pipelines.light_scenes.families import FAMILIES, check_families, signs_of

if TYPE_CHECKING:
    from data_pipelines.light_scenes.builder import LightScenesConfig

GROUP = 8
"""Clips per group of the default families: one scene of each with every combination of its signs."""

TRUTH = ("exposure_slope", "cct_slope", "sweep_rate")
_FIRST_PROMPT_SEED = 1000


def group_size(families: tuple[str, ...] = FAMILIES) -> int:
    """Clips per group: one scene of each of ``families`` with every combination of its signs."""
    return sum(2 ** len(signs_of(name.partition("/")[0])) for name in check_families(families))


def group_of(index: int, split: str, seed: int, families: tuple[str, ...] = FAMILIES) -> list[ClipSpec]:
    """The clips of one group; by default four of ``sunrise_room``, two of ``sundial``, two of ``constant``.

    Its first half holds every sign of every family once up and once down, or one of each pair.
    """
    halves: tuple[list[ClipSpec], list[ClipSpec]] = ([], [])
    for name in check_families(families):
        family, _, variant = name.partition("/")
        signs = signs_of(family)
        combinations = [(1, 1), (-1, -1), (1, -1), (-1, 1)] if len(signs) == 2 else [(1,), (-1,)]
        for order, values in enumerate(combinations):
            clip = ClipSpec(family, index, split=split, seed=seed, variant=variant,
                            **dict(zip(signs, values, strict=True)))
            halves[2 * order // len(combinations)].append(clip)
    return halves[0] + halves[1]


def plan(split: str, clips: int, seed: int = 0, families: tuple[str, ...] = FAMILIES) -> list[ClipSpec]:
    """The clips of a split in their order on disk; by default half ``sunrise_room``, a quarter each of the others.

    Raises ValueError unless ``clips`` is a multiple of ``group_size``: signs and directions balance exactly.
    """
    group = group_size(families)
    if clips < 0 or clips % group:
        raise ValueError(
            f"{split}: {clips} clips: expected a multiple of {group}, so that families and directions "
            f"balance; use {balanced(clips, families)}"
        )
    return [spec for index in range(clips // group) for spec in group_of(index, split, seed, families)]


def balanced(clips: int, families: tuple[str, ...] = FAMILIES) -> int:
    """The multiple of ``group_size`` nearest below ``clips``, at least one group."""
    group = group_size(families)
    return max(group, clips // group * group)


def heldout_prompts(
    data_dir: str | Path | None = None,
    n: int = 32,
    *,
    seed: int = 0,
    clips: int = 96,
    families: tuple[str, ...] = FAMILIES,
    config: LightScenesConfig | None = None,
) -> list[dict[str, object]]:
    """Captions of the test split to sample from, half in English and half in Chinese within every cell.

    Of 32 by default: ``sunrise_room`` 16 (8 brightening, 8 darkening, each half to the left), ``sundial`` 8 and
    ``constant`` 8. ``scene`` is the clip's index in the test split. What the caption states is under
    ``exposure_change``, ``sweep`` and ``pan``; with other than the default families also ``variant`` and ``glints``
    (which way they run, 0 without water). The shadow of ``street_lamp`` goes the way of ``sweep``. With ``data_dir``
    each record also carries ``truth`` (the fields ``TRUTH``), read from the data set prepared there.

    Args:
      data_dir: where ``prepare`` wrote, or None.
      n: how many; a multiple of twice ``group_size(families)`` (16 by default, 48 for all), at most ``clips``.
      seed: seed of the data set.
      clips: size of its test split.
      families: those of the data set.
      config: the data set's, where it is not of default size; replaces ``seed``, ``clips`` and ``families``.
    """
    if config is not None:
        seed, clips, families = config.seed, config.test, config.families
    group = group_size(families)
    if n < 1 or n % (2 * group) or n > clips:
        raise ValueError(
            f"heldout_prompts: n = {n}: expected a multiple of {2 * group}, at most {clips} (the test split)"
        )
    if config is None:
        config = default_config(seed, clips, families)
    source = open_test(data_dir, config)
    records: list[dict[str, object]] = []
    for index, spec in enumerate(plan("test", config.test, seed, families)[:n]):
        language = "en" if (index // group) % 2 == 0 else "zh"
        stated: dict[str, object] = {"exposure_change": spec.exposure_change, "sweep": spec.sweep, "pan": spec.pan}
        record = {"prompt": captions(spec)[language], "language": language, "family": spec.family, **stated}
        record |= {"seed": _FIRST_PROMPT_SEED + index, "scene": index}
        if families != FAMILIES:
            record |= {"variant": spec.variant, "glints": spec.glints}
        records.append(record | truth_of(source, index))
    return records


def default_config(seed: int, clips: int, families: tuple[str, ...]) -> LightScenesConfig:
    """The data set of default size, with its test split cut to what ``families`` can balance."""
    from data_pipelines.light_scenes.builder import LightScenesConfig

    return LightScenesConfig.balanced(test=clips, seed=seed, families=families)


def open_test(data_dir: str | Path | None, config: LightScenesConfig) -> Any:
    """The test split under ``data_dir``, None without one; raises FileNotFoundError where it is not there."""
    if data_dir is None:
        return None
    from data_pipelines.light_scenes.builder import open_split

    return open_split(data_dir, "test", config=config)


def truth_of(source: Any, index: int) -> dict[str, object]:
    """``truth`` of a clip of ``open_test``, with the fields ``TRUTH``; nothing without a source."""
    if source is None:
        return {}
    example = source[index]
    return {"truth": {key: float(example[key]) for key in TRUTH}}
