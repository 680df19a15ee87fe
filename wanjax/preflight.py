"""Before several processes train or sample together: do they mean the same, and does the network between them work."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wanjax import config as config_lib
from wanjax.cluster import Cluster, ClusterError
from wanjax.latent_cache import LatentCache
from wanjax.source_digest import source_digest

COLLECTIVE_BYTES = 16 << 20
SLOW_SECONDS = 60.0  # after which a collective that does not come back is named


def check_program(cluster: Cluster, experiment: config_lib.Experiment, mesh: Mesh, workdir: str) -> None:
    """Compares config, workdir, versions, compiler flags and mesh of all processes.

    Raises:
        ClusterError: naming what differs on which process.
    """
    cluster.agree("the program", {**program_facts(experiment, workdir), **mesh_facts(mesh)})


def check_sampling(cluster: Cluster, facts: Mapping[str, Any], mesh: Mesh | None) -> None:
    """Compares what is to be sampled, versions, compiler flags and mesh of all processes.

    Args:
        facts: JSON types by name, of the command line.
        mesh: None where none was asked for.
    Raises:
        ClusterError: naming what differs on which process; or there is no mesh, which one process alone may lack.
    """
    own = {"mesh": None} if mesh is None else mesh_facts(mesh)
    cluster.agree("what to sample", {**facts, **software_facts(), **own})
    if mesh is None:
        raise ClusterError(f"{cluster.processes} processes sample on one mesh of all their {jax.device_count()} "
                           "devices: give --mesh, such as seq=-1")  # fmt: skip


def check_data(cluster: Cluster, cache: LatentCache) -> None:
    """Compares the latent cache that each process reads.

    Raises:
        ClusterError: naming what differs on which process.
    """
    manifest = dataclasses.asdict(cache.manifest)
    cluster.agree("the data", {"cache_dir": str(cache.folder), **flat(manifest, "cache")})


def program_facts(experiment: config_lib.Experiment, workdir: str) -> dict[str, Any]:
    """What this process was started with, by name."""
    return {**flat(config_lib.to_dict(experiment), "config"), "--workdir": workdir, **software_facts()}


def software_facts() -> dict[str, Any]:
    """Versions and compiler flags, by name."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "wanjax")
    versions = {name: importlib.metadata.version(name) for name in names}
    flags = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return {**versions, "wanjax's source": source_digest()[:12], **flags}


def mesh_facts(mesh: Mesh) -> dict[str, Any]:
    """Of the mesh as this process sees it."""
    order = hashlib.sha256(repr([device.id for device in mesh.devices.flat]).encode()).hexdigest()[:12]
    return {"mesh": dict(mesh.shape), "device kinds": sorted({device.device_kind for device in mesh.devices.flat}),
            "devices of each process": len(mesh.local_devices), "order of devices": order}  # fmt: skip


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """{"config.model.width": 128, ...} of nested dicts."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}.{key}") if isinstance(value, Mapping) else {f"{prefix}.{key}": value}
    return out


def time_all_reduce(mesh: Mesh) -> str:
    """Sums ``COLLECTIVE_BYTES`` of float32 over all devices, and says how long it took, the best of three."""
    devices, numbers = mesh.size, COLLECTIVE_BYTES // 4
    split = NamedSharding(mesh, P(mesh.axis_names))
    ones = jax.make_array_from_callback((devices, numbers), split, lambda _: np.ones((1, numbers), np.float32))
    add = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, P()))
    late = threading.Timer(SLOW_SECONDS, logging.warning, (
        "preflight: the first all-reduce over %d devices has not come back after %g s: look at the network between "
        "the hosts (which interface the collectives use, firewalls), then at the logs of the other processes",
        devices, SLOW_SECONDS))  # fmt: skip
    late.daemon = True
    late.start()
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        total = np.asarray(add(ones).addressable_data(0)[0])
        seconds.append(time.perf_counter() - started)
    late.cancel()
    if not math.isclose(total, devices):
        raise ValueError(f"preflight: an all-reduce of ones over {devices} devices gave {total}: the network or a "
                         "device computes wrongly")  # fmt: skip
    best = min(seconds[1:])  # the first compiles
    sent = 2 * (devices - 1) / devices * COLLECTIVE_BYTES
    return (f"an all-reduce of {COLLECTIVE_BYTES / 1e6:.0f} MB over {devices} devices takes {1e3 * best:.3g} ms, "
            f"{sent / best / 1e9:.3g} GB/s of each device")  # fmt: skip
