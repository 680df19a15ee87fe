"""Fields of nested frozen dataclasses: their types, their defaults, and values made of plain ones.

What a config may say follows from the dataclasses alone (:mod:`wanjax.config`); a mistake is one ``ConfigError``.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


class ConfigError(ValueError):
    """A config that cannot work; the message names the field, the value, what was expected and what to do."""


def field_type(cls: Any, dotted: str) -> Any:
    """The type of a field; of a section such as ``"model"``, its class.

    Args:
      cls: the outermost dataclass.
      dotted: the field's name, such as ``"model.width"``.

    Raises:
      ConfigError: there is none of that name; says the nearest.
    """
    kind, names = cls, dotted.split(".")
    for depth, name in enumerate(names, 1):
        if not dataclasses.is_dataclass(kind):
            field = ".".join(["config", *names[: depth - 1]])
            raise ConfigError(f"unknown field {'.'.join(['config', *names])!r}: {field} is no section but a value of "
                              "its own; leave out what comes behind it")
        known = typing.get_type_hints(kind)
        if name not in known:
            elsewhere = [each for each in _leaves(cls) if each.rpartition(".")[2] == names[-1]]
            raise ConfigError(_unknown(".".join(["config", *names[:depth]]), name, list(known), elsewhere))
        kind = known[name]
    return kind


def _leaves(cls: Any, prefix: str = "") -> list[str]:
    out: list[str] = []
    for name, kind in typing.get_type_hints(cls).items():
        out += _leaves(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]
    return out


def completed(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the defaults of the fields that they lack, in every section."""
    out, hints = dict(values), typing.get_type_hints(cls)
    for name, field in fields(cls).items():
        if name not in out:
            if (default := default_of(field, dataclasses.MISSING)) is not dataclasses.MISSING:
                out[name] = default
        elif dataclasses.is_dataclass(hints[name]) and isinstance(out[name], Mapping):
            out[name] = completed(hints[name], out[name])
    return out


def fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """A dataclass's fields by name."""
    return {field.name: field for field in dataclasses.fields(cls)}


def default_of(field: dataclasses.Field[Any], none: Any) -> Any:
    """What a field is where nothing is said of it, a section as a dict; ``none`` if it has to be given."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return none
    section = dataclasses.is_dataclass(default) and not isinstance(default, type)
    return dataclasses.asdict(default) if section else default


def _unknown(dotted: str, name: str, known: list[str], elsewhere: Sequence[str] = ()) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near or elsewhere:
        hint = f"; did you mean {' or '.join(map(repr, [*near, *elsewhere]))}?"
    else:
        hint = f"; known here: {', '.join(sorted(known)) or 'nothing'}"
    return f"unknown field {dotted!r}{hint}"


def build(cls: Any, values: Any, where: str) -> Any:
    """The dataclass of plain nested values, lists as tuples where those are expected.

    Args:
      cls: the dataclass.
      values: by field.
      where: what they are, such as ``"config.model"``, for errors.

    Raises:
      ConfigError: a field is unknown, missing or of another type, or the class itself refuses them.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r}: expected a section with fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise ConfigError(_unknown(f"{where}.{name}", name, list(hints)))
    missing = [name for name, field in fields(cls).items()
               if name not in values and default_of(field, dataclasses.MISSING) is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: add it to get_config()")
    built = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where} = {value!r}: expected {hint}")
    if hint is type(None) and value is None:
        return None
    if origin is tuple or hint is tuple:
        return _tuple(typing.get_args(hint), hint, value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where} = {value!r}: expected a finite number")
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{where} = {value!r}: expected {getattr(hint, '__name__', hint)}, got {type(value).__name__}")


def _tuple(args: tuple[Any, ...], hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{where} = {value!r}: expected {hint}")
    if not args:
        return tuple(value)
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(kinds) != len(value):
        raise ConfigError(f"{where} = {value!r}: expected {len(kinds)} values, got {len(value)}")
    return tuple(_convert(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
