"""Writes the data set: ``python -m data_pipelines.light_scenes --data_dir DIR [--families all --frames 17 ...]``."""

import dataclasses

from absl import app, flags

from data_pipelines.light_scenes.builder import PASSES, LightScenesConfig, prepare
from data_pipelines.light_scenes.families import ALL, parse_families

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder the data set is written under.", required=True)
_DEFAULT = LightScenesConfig()
FAMILIES = flags.DEFINE_string(
    "families", ",".join(_DEFAULT.families), f"'all', or names separated by commas, of: {', '.join(ALL)}."
)
STORED = flags.DEFINE_enum("passes", _DEFAULT.passes, PASSES, "LightScenesConfig.passes.")
_SIZES = {
    field.name: (flags.DEFINE_float if field.name == "fps" else flags.DEFINE_integer)(
        field.name, getattr(_DEFAULT, field.name), f"LightScenesConfig.{field.name}."
    )
    for field in dataclasses.fields(LightScenesConfig)
    if field.name not in ("families", "passes")
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        config = LightScenesConfig(
            families=parse_families(FAMILIES.value),
            passes=STORED.value,
            **{name: flag.value for name, flag in _SIZES.items()},
        )
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    prepare(DATA_DIR.value, config=config)


if __name__ == "__main__":
    app.run(main)
