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
BEAM_RUNNER = flags.DEFINE_string(
    "beam_runner", None, "Render with Apache Beam on this runner (DirectRunner, FlinkRunner, DataflowRunner, ...)."
)
BEAM_OPTIONS = flags.DEFINE_multi_string(
    "beam_options", [], "An option of the pipeline, such as --beam_options=--direct_num_workers=8; may be repeated."
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
    if BEAM_OPTIONS.value and BEAM_RUNNER.value is None:
        raise app.UsageError(f"--beam_options={BEAM_OPTIONS.value[0]} is for a pipeline: give --beam_runner as well")
    prepare(DATA_DIR.value, config=config, beam_runner=BEAM_RUNNER.value, beam_options=BEAM_OPTIONS.value)


if __name__ == "__main__":
    app.run(main)
