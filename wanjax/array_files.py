"""How arrays lie in orbax checkpoints of ours: uncompressed, in pieces of at most 32 MiB, each a file of its own.

float32 weights and moments shrink by a tenth under zstd, at more than twice the processor time. orbax's OCDBT database,
which gathers pieces in larger files, copies them in memory and writes them one after the other.
A piece is part of one device's shard, and a large shard is at least four of them, which split the axes first that the
devices split: who restores on up to four times as many devices reads its own parts and no more. Figures:
benchmarks/results/checkpoint.md.
"""
from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

PIECE = 32 << 20  # bytes at most; a piece is copied once while it is written, and once while it is read
_SMALL = 4 << 20  # bytes; smaller shards are one piece
_AT_ONCE = 1 << 30  # bytes of arrays that are written or read at a time
_PATIENCE = 6 * 3600  # seconds; orbax's limit of 20 minutes ends the writing of an A14B state on a slow disk


def context(largest: int | None = None) -> ocp.Context:
    """Options of orbax for writing and reading; to be entered around either.

    Args:
      largest: bytes of the largest array. Then at most 1 GiB of arrays, or twice the largest, is under way at a time,
        which bounds the memory that pieces take while the disk is busy. None: no bound.
    """
    options = ocp.Context()
    options.array.saving.use_compression = False
    options.array.saving.use_ocdbt = False
    options.array.saving.storage_options.chunk_byte_size = PIECE
    options.array.saving.scoped_storage_options_creator = _piece
    # of an array that devices hold copies of, each writes a part, as long as parts are worth a file
    options.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    options.async_options.timeout_secs = _PATIENCE
    if largest is not None:
        # orbax refuses what is larger than its bound: a shard on the way out, all pieces that it touches on the way in
        bound = max(_AT_ONCE, 2 * largest)
        options.memory.write_concurrent_bytes = options.memory.read_concurrent_bytes = bound
    return options


def _piece(path: Any, leaf: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    if not isinstance(leaf, jax.Array):
        return None
    shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=min(PIECE, max(_SMALL, shard // 4)))


class _Expected(logging.Filter):
    """Drops orbax's diary, its warnings that there is no OCDBT database, and what ``checkpoint`` says itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        expected = ("Skipping merge of OCDBT", "TensorStore data files not found", "Waiting for previous save")
        return record.levelno > logging.INFO and not any(text in message for text in expected)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what is expected of orbax out of the log."""
    logger, expected = absl_logging.get_absl_logger(), _Expected()
    logger.addFilter(expected)
    try:
        yield
    finally:
        logger.removeFilter(expected)
