"""How much memory the devices have."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax


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
