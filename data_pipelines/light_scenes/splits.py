"""Which clips a split holds, in which order, and the captions held out for sampling."""

from pathlib import Path

from data_pipelines.light_scenes.captions import captions
from data_pipelines.light_scenes.clip import ClipSpec

GROUP = 8
"""Clips per group: one scene of each family with every combination of its signs."""

TRUTH = ("exposure_slope", "cct_slope", "sweep_rate")
_FIRST_PROMPT_SEED = 1000


def group_of(index: int, split: str, seed: int) -> list[ClipSpec]:
    """The clips of one group: four of ``sunrise_room``, two of ``sundial``, two of ``constant``."""

    def clip(family: str, exposure_change: int = 0, sweep: int = 0, pan: int = 0) -> ClipSpec:
        return ClipSpec(family, index, exposure_change, sweep, pan, split, seed)

    return [
        clip("sunrise_room", exposure_change=1, sweep=1),
        clip("sunrise_room", exposure_change=-1, sweep=-1),
        clip("sundial", sweep=1),
        clip("constant", pan=1),
        clip("sunrise_room", exposure_change=1, sweep=-1),
        clip("sunrise_room", exposure_change=-1, sweep=1),
        clip("sundial", sweep=-1),
        clip("constant", pan=-1),
    ]


def plan(split: str, clips: int, seed: int = 0) -> list[ClipSpec]:
    """The clips of a split in their order on disk; half ``sunrise_room``, a quarter each of the others.

    Raises ValueError unless ``clips`` is a multiple of ``GROUP``: signs and directions balance exactly.
    """
    if clips < 0 or clips % GROUP:
        raise ValueError(
            f"{split}: {clips} clips: expected a multiple of {GROUP}, so that families and directions "
            f"balance; use {max(GROUP, clips // GROUP * GROUP)}"
        )
    return [spec for index in range(clips // GROUP) for spec in group_of(index, split, seed)]


def heldout_prompts(
    data_dir: str | Path | None = None, n: int = 32, *, seed: int = 0, clips: int = 96
) -> list[dict[str, object]]:
    """Captions of the test split to sample from, half in English and half in Chinese within every cell.

    Of 32: ``sunrise_room`` 16 (8 brightening, 8 darkening, each half to the left), ``sundial`` 8 and
    ``constant`` 8. ``scene`` is the clip's index in the test split. With ``data_dir`` each record also
    carries ``truth`` (the fields ``TRUTH``), read from the data set of default size prepared there.

    Args:
      data_dir: where ``prepare`` wrote, or None.
      n: how many; a multiple of 16, at most ``clips``.
      seed: seed of the data set.
      clips: size of its test split.
    """
    if n < 1 or n % (2 * GROUP) or n > clips:
        raise ValueError(
            f"heldout_prompts: n = {n}: expected a multiple of {2 * GROUP}, at most {clips} (the test split)"
        )
    source = None
    if data_dir is not None:
        from data_pipelines.light_scenes.builder import LightScenesConfig, open_split

        source = open_split(data_dir, "test", config=LightScenesConfig(test=clips, seed=seed))
    records: list[dict[str, object]] = []
    for index, spec in enumerate(plan("test", clips, seed)[:n]):
        language = "en" if (index // GROUP) % 2 == 0 else "zh"
        record: dict[str, object] = {
            "prompt": captions(spec)[language],
            "language": language,
            "family": spec.family,
            "exposure_change": spec.exposure_change,
            "sweep": spec.sweep,
            "pan": spec.pan,
            "seed": _FIRST_PROMPT_SEED + index,
            "scene": index,
        }
        if source is not None:
            example = source[index]
            record["truth"] = {key: float(example[key]) for key in TRUTH}
        records.append(record)
    return records
