"""Writes the data set: ``python -m data_pipelines.light_scenes --data_dir DIR [--frames 17 ...]``."""

import dataclasses

from absl import app, flags

from data_pipelines.light_scenes.builder import LightScenesConfig, prepare

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder the data set is written under.", required=True)
_DEFAULT = LightScenesConfig()
_SIZES = {
    field.name: (flags.DEFINE_float if field.name == "fps" else flags.DEFINE_integer)(
        field.name, getattr(_DEFAULT, field.name), f"LightScenesConfig.{field.name}."
    )
    for field in dataclasses.fields(LightScenesConfig)
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    prepare(DATA_DIR.value, config=LightScenesConfig(**{name: flag.value for name, flag in _SIZES.items()}))


if __name__ == "__main__":
    app.run(main)
