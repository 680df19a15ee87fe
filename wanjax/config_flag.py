"""The flag ``--config`` of every launcher: a config file, and any field of an experiment as ``--config.field=value``.

    def entry() -> None:
        config_flag.define()
        flags.DEFINE_string("workdir", None, "...")
        flags.mark_flags_as_required(["config", "workdir"])
        config_flag.run(main)  # which asks config_flag.experiment()

ml_collections finds overrides on the command line and parses them, by the types of the dataclasses whatever the file
lists. A mistake on the command line is one line on standard error and exit code 1, before ``main``.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from wanjax import config, config_fields

flags.disclaim_key_flags()  # the flag is that of the module that calls define(), whose --help shows it


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines ``--config``; its value, once parsed, is the name of the file as given."""
    about = ("Config file, FILE.py, or FILE.py:x where its get_config takes an argument. --config.section.field=value, "
             "behind it, replaces any field, whether the file lists it or not.")  # fmt: skip
    try:
        config_flags.DEFINE_config_file("config", None, about, flag_values=values)
    except flags.CantOpenFlagFileError as error:  # it looks at the command line
        sys.exit(f"error: {str(error).removeprefix('ERROR:: ')}")


def run(main: Callable[[], None]) -> None:
    """Parses the command line and calls ``main``, like absl's ``app.run``."""
    def parser(argv: Sequence[str]) -> list[str]:
        try:
            return parse(argv)
        except config.ConfigError as error:
            sys.exit(f"error: {error}")

    app.run(lambda _: main(), flags_parser=parser)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses a command line, which has to be that of ``sys.argv``: ml_collections looks for overrides there.

    Returns:
      The program's name.

    Raises:
      ConfigError: a flag or an override that is unknown, missing or of another type, in one line; the file itself is
        left to ``experiment``.
    """
    types = {name: config_fields.field_type(config.Experiment, name) for name in _overridden(argv)}
    for name, kind in types.items():
        if dataclasses.is_dataclass(kind):
            fields = ", ".join(config_fields.fields(kind))
            raise config.ConfigError(f"--config.{name} is a section: give a field of it, --config.{name}.field=value; "
                                     f"known here: {fields}")
    flag = values["config"]
    flag.parser = _Overridden(types)
    try:
        rest = values(list(argv))
    except (flags.Error, ValueError) as error:
        raise config.ConfigError(_said(error, types)) from error
    if len(rest) > 1:
        raise config.ConfigError(f"unexpected arguments {rest[1:]}: options start with --")
    flag.value = config_flags.get_config_filename(flag)
    return rest


def experiment(values: flags.FlagValues = flags.FLAGS) -> config.Experiment:
    """What the parsed command line says: the config file with its overrides.

    Raises:
      ConfigError: naming what is wrong and what to do.
    """
    given = {
        name: value if _parsed(config_fields.field_type(config.Experiment, name)) else _literal(value)
        for name, value in config_flags.get_override_values(values["config"]).items()
    }
    return config.load(values.config, given)


class _Overridden(flags.ArgumentParser[ml_collections.ConfigDict]):
    """Stands in for ml_collections' reading of the file: the fields that are overridden, with their types, no more."""

    def __init__(self, types: Mapping[str, Any]):
        self._types = types

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        fields = ml_collections.ConfigDict()
        for name, kind in self._types.items():
            *parents, leaf = name.split(".")
            node = fields
            for parent in parents:
                if parent not in node:
                    node[parent] = ml_collections.ConfigDict()
                node = node[parent]
            node[leaf] = ml_collections.FieldReference(None, field_type=_parsed(kind) or str)
        return fields

    def flag_type(self) -> str:
        return "config file"


def _overridden(argv: Sequence[str]) -> list[str]:
    """Fields after ``--config.`` in a command line and its flag files, each once."""
    arguments = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    found = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in arguments)
    return list(dict.fromkeys(match[1] for match in found if match))


def _parsed(kind: Any) -> type | None:
    """As what ml_collections parses a field; None for one of several types, which it cannot."""
    plain = typing.get_origin(kind) or kind
    return plain if plain in (int, float, bool, str, tuple) else None


def _literal(text: str) -> Any:
    """A value as Python writes it, or else the text; the dataclasses say whether it will do."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def in_one_line(error: Exception) -> str:
    """absl's words about a command line; of flags that are missing it says just that."""
    said = "; ".join(str(error).splitlines())
    return re.sub(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.?", r"--\1 is missing", said)


def _said(error: Exception, types: Mapping[str, Any]) -> str:
    """absl's words about a command line, in one line that says what to do."""
    said = in_one_line(error)
    for name, kind in types.items():
        if said.startswith(f"flag --config.{name}="):
            expected = kind.__name__ if isinstance(kind, type) else kind
            return f"{said.removeprefix('flag ')}; expected {expected}"
    if isinstance(error, flags.UnrecognizedFlagError) and error.flagname.removeprefix("config.") in types:
        return f"--{error.flagname} replaces a field of a config file: name that before it, --config FILE.py"
    if isinstance(error, flags.DuplicateFlagError):
        return "--config is given more than once: name one file"
    return f"{said} (--help lists the options)"


__all__ = ["define", "experiment", "in_one_line", "parse", "run"]
