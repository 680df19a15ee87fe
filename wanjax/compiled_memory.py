"""A compiled program, and the memory of one device under it, or under one that the compiler refuses for want of it."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any

import jax

from wanjax import offload

_REFUSALS = (  # how a TPU's compiler says it
    re.compile(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm"),
    re.compile(r"total memory required[^(]*\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)"),
)


class CompileError(ValueError):
    """The compiler refuses the program, for another reason than memory."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        peak: arguments, results that do not take their place, temporary memory and code.
        arguments: in its own memory.
        results: that do not take the arguments' place.
        temporary: None where the compiler refused, which states the peak alone.
        host: its share of its host's pinned memory.
        available: as the compiler states it where it refused.
    """

    peak: int
    arguments: int
    results: int = 0
    temporary: int | None = None
    host: int = 0
    available: int | None = None


def compile_with_memory(
    lowered: jax.stages.Lowered, arguments: Any, *, dump: pathlib.Path | None = None
) -> tuple[jax.stages.Compiled | None, Memory]:
    """The program, None where it does not fit; and its memory.

    Args:
        lowered: to be compiled.
        arguments: its large arguments: tree of ``jax.ShapeDtypeStruct`` with shardings.
        dump: an empty folder into which the compiler writes the program's text, for :func:`text_of`.
    Raises: CompileError.
    """
    near, away = _shards(arguments)
    options: dict[str, str | bool] = {"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True} if dump else {}
    try:
        compiled = lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
        stated = refused(str(error))
        if stated is None:
            raise CompileError(f"the compiler refuses the program: {' '.join(str(error).split())[:500]}") from error
        return None, Memory(stated[0], near, host=away, available=stated[1])
    stats: Any = compiled.memory_analysis()
    # where host and device share one memory, the compiler counts all of it as the device's
    own = stats.argument_size_in_bytes - (0 if stats.host_argument_size_in_bytes else away)
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return compiled, Memory(
        peak=own + results + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        arguments=own,
        results=results,
        temporary=stats.temp_size_in_bytes,
        host=(stats.host_argument_size_in_bytes or away) + stats.host_temp_size_in_bytes
        + stats.host_output_size_in_bytes - stats.host_alias_size_in_bytes,
    )


def text_of(compiled: jax.stages.Compiled, dump: pathlib.Path | None = None) -> str | None:
    """The compiled program's text.

    Args:
        compiled: the program.
        dump: the folder that it was compiled with, if any: what lies there is taken.
    Returns: None where this jaxlib cannot read what the compiler wrote, as with libtpu 0.0.52's programs for tpu7x and
    jaxlib 0.10.2, and there is no dump.
    """
    dumped = sorted(dump.glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size) if dump else []
    if dumped:  # helpers of the program, if any, are smaller
        return dumped[-1].read_text()
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None


def argument_bytes(arguments: Any) -> int:
    """Of one device, in its own memory.

    Args:
        arguments: tree of ``jax.ShapeDtypeStruct`` with shardings.
    """
    return _shards(arguments)[0]


def refused(message: str) -> tuple[int, int] | None:
    """Bytes that are needed and that are available, from the message of a TPU's compiler; None: another message."""
    for pattern in _REFUSALS:
        if found := pattern.search(message):
            return _bytes(found[1]), _bytes(found[2])
    return None


def _bytes(text: str) -> int:
    unit = text[-1] if text[-1] in "KMGT" else ""
    return round(float(text.removesuffix(unit)) * 1024 ** " KMGT".index(unit or " "))


def _shards(arguments: Any) -> tuple[int, int]:
    """Bytes of one device's shards in its own memory, and in its host's."""
    sizes = {True: 0, False: 0}
    for leaf in jax.tree.leaves(arguments):
        shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        sizes[leaf.sharding.memory_kind == offload.HOST] += shard
    return sizes[False], sizes[True]
