"""How much memory the devices have."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Bytes that are free on the fullest of these devices; on the host's own processor, the machine's whole memory.

    A limit that the operating system puts on this process (a container's) is not seen.

    Raises:
        ValueError: a device that does not tell.
    """
    free = []
    for device in devices:
        stats = device.memory_stats()
        if stats is not None and "bytes_limit" in stats:
            free.append(int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0)))
        elif device.platform == "cpu":
            free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        else:
            raise ValueError(f"{device} does not tell how much memory it has: say what is to be held on it")
    return min(free)


def free_everywhere(devices: Sequence[jax.Device]) -> int:
    """:func:`free_bytes`, of several processes that of the one with the least, which is what all go by.

    Args:
        devices: of this process. Every process has to ask.
    """
    free = free_bytes(devices)
    if jax.process_count() == 1:
        return free
    return int(multihost_utils.process_allgather(np.int32(free >> 20)).min()) << 20  # whole MiB, for jax has 32 bits
