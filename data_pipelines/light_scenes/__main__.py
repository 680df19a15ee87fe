"""Writes the data set, or captions of its test split to sample from.

    python -m data_pipelines.light_scenes --data_dir DIR [--families all --frames 17 ...]
    python -m data_pipelines.light_scenes --data_dir DIR --prompts FILE.jsonl [--families all]
    python -m data_pipelines.light_scenes --data_dir DIR --prompts FILE.jsonl --prompts_of showcase

Prompts are records of what each caption states, one a line, for ``experiments.sample --prompts``; they carry the truth
of the clips that they were written for, so the data set has to be there. docs/data.md tells what they hold.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import app, flags

from data_pipelines.light_scenes.builder import PASSES, LightScenesConfig, prepare
from data_pipelines.light_scenes.families import ALL, parse_families
from data_pipelines.light_scenes.showcase import showcase_prompts
from data_pipelines.light_scenes.splits import group_size, heldout_prompts

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder the data set is written under.", required=True)
_DEFAULT = LightScenesConfig()
FAMILIES = flags.DEFINE_string(
    "families",
    None,
    f"'all', or names separated by commas, of: {', '.join(ALL)}. By default {','.join(_DEFAULT.families)}; with "
    "--prompts_of showcase, all.",
)
PROMPTS = flags.DEFINE_string("prompts", None, "File (.jsonl) for captions to sample from; nothing is rendered then.")
PROMPTS_OF = flags.DEFINE_enum(
    "prompts_of", "heldout", ["heldout", "showcase"], "Captions of the whole test split, or of the three scenarios."
)
PROMPT_COUNT = flags.DEFINE_integer(
    "prompt_count", 0, "How many of heldout; 0: 32, or the next number above that balances.", lower_bound=0
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


def write_prompts(config: LightScenesConfig) -> None:
    """Writes the file of ``--prompts``.

    Raises ValueError for a number or families that do not balance, FileNotFoundError without the data set.
    """
    if PROMPTS_OF.value == "showcase":
        records = showcase_prompts(DATA_DIR.value, config=config)
    else:
        balanced = 2 * group_size(config.families)
        count = PROMPT_COUNT.value or -(-32 // balanced) * balanced
        records = heldout_prompts(DATA_DIR.value, count, config=config)
    path = Path(PROMPTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    print(f"{path}: {len(records)} captions of {PROMPTS_OF.value}")


def check_flags() -> None:
    """Raises UsageError for flags that would not be obeyed together."""
    if BEAM_OPTIONS.value and BEAM_RUNNER.value is None:
        raise app.UsageError(f"--beam_options={BEAM_OPTIONS.value[0]} is for a pipeline: give --beam_runner as well")
    if PROMPTS.value is None:
        for flag in (PROMPTS_OF, PROMPT_COUNT):
            if flags.FLAGS[flag.name].present:
                raise app.UsageError(f"--{flag.name}={flag.value} says which captions to write: give --prompts FILE")
        return
    if not PROMPTS.value.endswith(".jsonl"):
        raise app.UsageError(f"--prompts={PROMPTS.value}: expected a file that ends in .jsonl, a record a line")
    if BEAM_RUNNER.value is not None:
        raise app.UsageError(f"--beam_runner={BEAM_RUNNER.value} renders the data set, --prompts only reads it")
    if PROMPTS_OF.value == "showcase" and PROMPT_COUNT.value:
        raise app.UsageError(f"--prompt_count={PROMPT_COUNT.value}: the showcase has a fixed set of captions")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    check_flags()
    default = "all" if PROMPTS_OF.value == "showcase" else ",".join(_DEFAULT.families)
    try:
        config = LightScenesConfig(
            families=parse_families(default if FAMILIES.value is None else FAMILIES.value),
            passes=STORED.value,
            **{name: flag.value for name, flag in _SIZES.items()},
        )
        if PROMPTS.value is not None:
            write_prompts(config)
            return
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    prepare(DATA_DIR.value, config=config, beam_runner=BEAM_RUNNER.value, beam_options=BEAM_OPTIONS.value)


if __name__ == "__main__":
    app.run(main)
