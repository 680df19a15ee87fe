"""Machines that a program is planned for: what a name such as ``v5p:4x4x4`` stands for, and devices to compile for.

None of them need be there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from wanjax.chips import CHIPS, GPUS, TPUS, Chip
from wanjax.device_memory import free_bytes

FORMS = (
    "cpu:N (simulated devices), h100:NxG, h200:NxG (nodes x GPUs of each), v4:AxBxC, v5p:AxBxC, tpu7x:AxBxC, v5e:AxB, "
    "v6e:AxB (chips along the axes of the torus), each TPU with N* in front for N slices, such as 2*v5p:4x4x4"
)
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


class TopologyError(ValueError):
    """A topology that does not exist or cannot be compiled for here; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine.

    Attributes:
        name: as it was asked for.
        kind: "cpu", or a key of :data:`wanjax.chips.CHIPS`.
        shape: chips along the axes of one slice; nodes and GPUs of each; (N,) for N simulated devices.
        slices: how many.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip | None:
        """None for simulated devices, which have no figures."""
        return CHIPS.get(self.kind)

    @property
    def platform(self) -> str:
        """As jax calls it."""
        return "cpu" if self.chip is None else "tpu" if self.chip.torus else "gpu"

    @property
    def links(self) -> tuple[str, str]:
        """Of devices of one slice or node, and of devices of several."""
        return ("nvlink", "network") if self.platform == "gpu" else ("ici", "dcn")

    def domain(self, device: Any) -> int:
        """Which slice or node a device lies in."""
        return device.id // self.shape[1] if self.platform == "gpu" else getattr(device, "slice_index", 0)

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """As jax counts them."""
        return self.chips * (self.chip.devices if self.chip else 1)

    @property
    def chips_per_host(self) -> tuple[int, int, int]:
        """Along three axes. Up to eight TPUs of two axes are one host; a node is; all simulated devices are."""
        torus = self.chip.torus if self.chip else None
        if self.platform == "gpu":
            return 1, self.shape[1], 1
        if torus is None or (torus.axes == 2 and math.prod(self.shape) <= 8):
            x, y, z = (*self.shape, 1, 1)[:3]
        else:
            x, y, z = (min(own, most) for own, most in zip((*self.shape, 1)[:3], torus.host, strict=True))
        return x, y, z

    @property
    def hosts(self) -> int:
        return self.chips // math.prod(self.chips_per_host)

    @property
    def host_memory(self) -> int | None:
        """Bytes of one host; None where it is not known, and for simulated devices, whose memory is the host's."""
        per_chip = self.chip.host_memory if self.chip else 0
        return per_chip * math.prod(self.chips_per_host) or None

    @property
    def rings(self) -> tuple[bool, ...]:
        """Whether each axis of a TPU's slice is a ring."""
        torus = self.chip.torus if self.chip else None
        if not torus:
            return ()
        own = tuple(size % torus.ring == 0 for size in self.shape)
        # three axes are joined through optical switches, which whole cubes of 4 x 4 x 4 alone have
        return own if torus.axes == 2 else (all(own),) * 3

    def hbm_bytes(self) -> int:
        """Memory of one device; a share of this machine's for a simulated one."""
        if self.chip is None:
            return free_bytes(jax.devices("cpu")[:1]) // self.devices
        return self.chip.hbm_bytes


def parse(text: str) -> Topology:
    """What a name stands for.

    Raises:
        TopologyError: a name that has none of the known forms, or no such slice exists.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)", text)
    if found is None or found[2] not in ("cpu", *CHIPS):
        raise TopologyError(f"--topology {text!r}: expected one of {FORMS}")
    kind, slices = found[2], int(found[1] or 1)
    shape = tuple(int(size) for size in found[3].split("x"))
    if slices < 1 or min(shape) < 1 or (kind not in TPUS and found[1]) or (kind == "cpu" and len(shape) != 1):
        raise TopologyError(f"--topology {text!r}: sizes start at 1; expected one of {FORMS}")
    _check_shape(text, kind, shape)
    return Topology(text, kind, shape, slices)


def _check_shape(text: str, kind: str, shape: tuple[int, ...]) -> None:
    if kind in GPUS:
        most = GPUS[kind].node
        if len(shape) != 2 or shape[1] > most:
            raise TopologyError(f"--topology {text!r}: expected {kind}:NxG, N nodes of G = 1 to {most} GPUs each, such "
                                f"as {kind}:8x{most}")  # fmt: skip
    elif kind in TPUS and (torus := TPUS[kind].torus):
        if len(shape) != torus.axes:
            axes = f"a slice of {kind} has {torus.axes} axes"
            raise TopologyError(f"--topology {text!r}: {axes}; expected one of {FORMS}")
        if any(size > most for size, most in zip(sorted(shape), sorted(torus.longest), strict=True)):
            longest = "x".join(map(str, torus.longest))
            raise TopologyError(f"--topology {text!r}: the largest slice of {kind} is {longest}")


def prepare(topology: Topology) -> None:
    """Makes this process one that can compile for the topology; before jax has looked for devices.

    The accelerator that the machine may have is left alone.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology.chip:  # a program for what is not here cannot be read back from jax's own cache
        jax.config.update("jax_enable_compilation_cache", False)
    if topology.kind == "cpu":
        _set_flag("--xla_force_host_platform_device_count", topology.devices)
    elif topology.platform == "gpu":
        _set_flag("--xla_gpu_autotune_level", 0)  # tuning runs kernels, and there is nothing to run them on


def _set_flag(flag: str, value: int) -> None:
    others = [word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(flag)]
    os.environ["XLA_FLAGS"] = " ".join([*others, f"{flag}={value}"])


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for, slice by slice or node by node; nothing can run on those of a TPU or a GPU.

    Raises:
        TopologyError: the compiler is not installed or knows no such machine; fewer simulated devices than asked for.
    """
    if topology.platform == "gpu":
        return _gpus(topology)
    if topology.platform == "tpu":
        return _tpus(topology)
    found = jax.devices("cpu")
    if len(found) < topology.devices:
        raise TopologyError(
            f"--topology {topology.name!r}: this process simulates {len(found)} devices; start another with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.devices}"
        )
    return found[: topology.devices]


def _tpus(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"--topology {topology.name!r} is compiled by libtpu, which is not installed; it needs no TPU: "
            'pip install "wanjax[tpu]"'
        )
    assert topology.chip and topology.chip.torus
    # the compiler alone is used: no metadata server is asked which TPU this is, and no chip is locked
    os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    axes = "x".join(map(str, topology.shape))
    rings = (*topology.rings, False)[:3]
    return _described(
        topology, "libtpu", platform="tpu", topology_name=f"{topology.kind}:{axes}",
        chips_per_host_bounds=topology.chips_per_host, num_slices=topology.slices, wrap=rings,
        chip_config_name=topology.chip.torus.variant,
    )  # fmt: skip


def _gpus(topology: Topology) -> list[Any]:
    if not any(importlib.util.find_spec(name) for name in _PLUGINS):
        raise TopologyError(
            f"--topology {topology.name!r} is compiled by jax's CUDA plugin, which is not installed; it needs no GPU: "
            'pip install "wanjax[cuda12]" (or cuda13)'
        )
    assert topology.chip
    target = pathlib.Path(__file__).parent / "assets" / "gpus" / topology.chip.target
    nodes, each = topology.shape
    return _described(topology, "XLA's compiler", platform="cuda", topology=f"1x{nodes}x{each}",
                      target_config=target.read_text())  # fmt: skip


def _described(machine: Topology, compiler: str, **description: Any) -> list[Any]:
    try:
        return list(topologies.get_topology_desc(**description).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TopologyError(f"--topology {machine.name!r}: {compiler} does not know it: {reason}") from error
