"""Machines that a program is planned for: what a name such as ``v5p:4x4x4`` stands for, and devices to compile for.

None of them need be there. The figures of :data:`CHIPS` are the makers' and are used by the planner alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from wanjax.device_memory import free_bytes

FORMS = (
    "cpu:N (simulated devices), v4:AxBxC, v5p:AxBxC, tpu7x:AxBxC, v5e:AxB, v6e:AxB (chips along the axes of the "
    "torus), each TPU with N* in front for N slices, such as 2*v5p:4x4x4"
)


class TopologyError(ValueError):
    """A topology that does not exist or cannot be compiled for here; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, as its maker states it.

    Attributes:
        devices: that jax sees on one chip.
        flops: floating-point operations per second of bfloat16 matrix products, of the chip.
        hbm_bytes: memory of one device that a program may use: what libtpu 0.0.52 states when it refuses one, a little
            less than the maker's figure for the chip.
        hbm_bandwidth: of it, bytes/s.
        link: bytes/s of one link between neighbouring chips, in one direction.
        network: bytes/s between slices, per chip.
        axes: of the torus.
        longest: chips along each axis of the largest slice.
        ring: an axis is a ring, and not a line, where its length is a multiple of this.
        host: chips of one host along the axes, where a slice has more than one.
        sources: of these figures.
        variant: of the chip, by libtpu's name; "megacore" makes one device of v4's two cores.
    """

    devices: int
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link: float
    network: float
    axes: int
    longest: tuple[int, ...]
    ring: int
    host: tuple[int, int, int]
    sources: tuple[str, ...]
    variant: str = "default"


def _gib(size: float) -> int:
    return round(size * 2**30)


_BOOK = "jax-ml.github.io/scaling-book/tpus (tables of chips and links; rings; network per host)"
_CLOUD = "docs.cloud.google.com/tpu/docs/"
# Where two sources round differently, Google Cloud's figure. It states the links of a chip together and in both
# directions: one is a twelfth of that with three axes, an eighth with two. Network of v5e: its pod's over 256 chips; of
# v4: 25 GB/s of a host (the book) over its 4 chips.
CHIPS: dict[str, Chip] = {
    "v4": Chip(1, 275e12, _gib(30.75), 1.2e12, 45e9, 6.25e9, 3, (16, 16, 16), 4, (2, 2, 1), (_CLOUD + "v4", _BOOK),
               "megacore"),  # fmt: skip
    "v5e": Chip(1, 197e12, _gib(15.75), 0.819e12, 50e9, 3.125e9, 2, (16, 16), 16, (2, 2, 1), (_CLOUD + "v5e", _BOOK)),
    "v5p": Chip(1, 459e12, _gib(95.73), 2.765e12, 100e9, 6.25e9, 3, (16, 16, 24), 4, (2, 2, 1),
                (_CLOUD + "v5p", _BOOK)),  # fmt: skip
    "v6e": Chip(1, 918e12, _gib(31.24), 1.638e12, 100e9, 12.5e9, 2, (16, 16), 16, (2, 2, 1), (_CLOUD + "v6e", _BOOK)),
    "tpu7x": Chip(2, 2307e12, _gib(94.74), 7.38e12, 100e9, 12.5e9, 3, (16, 24, 24), 4, (2, 2, 1), (_CLOUD + "tpu7x",)),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine.

    Attributes:
        name: as it was asked for.
        kind: "cpu", or a key of :data:`CHIPS`.
        shape: chips along the axes of one slice; (N,) for N simulated devices.
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
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """As jax counts them."""
        return self.chips * (self.chip.devices if self.chip else 1)

    @property
    def chips_per_host(self) -> tuple[int, int, int]:
        """Along three axes. Up to eight chips of two axes are one host; all simulated devices are."""
        chip = self.chip
        if chip is None or (chip.axes == 2 and math.prod(self.shape) <= 8):
            x, y, z = (*self.shape, 1, 1)[:3]
        else:
            x, y, z = (min(own, most) for own, most in zip((*self.shape, 1)[:3], chip.host, strict=True))
        return x, y, z

    @property
    def hosts(self) -> int:
        return self.chips // math.prod(self.chips_per_host)

    @property
    def rings(self) -> tuple[bool, ...]:
        """Whether each axis of a slice is a ring."""
        chip = self.chip
        if chip is None:
            return ()
        own = tuple(size % chip.ring == 0 for size in self.shape)
        # three axes are joined through optical switches, which whole cubes of 4 x 4 x 4 alone have
        return own if chip.axes == 2 else (all(own),) * 3

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
    if text.startswith("h100"):
        raise TopologyError(
            f"--topology {text!r}: GPUs cannot be planned for yet; TPUs (v5p:4x4x4) and simulated devices (cpu:8) can"
        )
    found = re.fullmatch(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)", text)
    if found is None or found[2] not in ("cpu", *CHIPS):
        raise TopologyError(f"--topology {text!r}: expected one of {FORMS}")
    kind, slices = found[2], int(found[1] or 1)
    shape = tuple(int(size) for size in found[3].split("x"))
    if kind == "cpu":
        if len(shape) != 1 or found[1]:
            raise TopologyError(f"--topology {text!r}: expected one of {FORMS}")
    else:
        chip = CHIPS[kind]
        if len(shape) != chip.axes:
            raise TopologyError(f"--topology {text!r}: a slice of {kind} has {chip.axes} axes; expected one of {FORMS}")
        if any(size > most for size, most in zip(sorted(shape), sorted(chip.longest), strict=True)):
            most = "x".join(map(str, chip.longest))
            raise TopologyError(f"--topology {text!r}: the largest slice of {kind} is {most}")
    if slices < 1 or min(shape) < 1:
        raise TopologyError(f"--topology {text!r}: sizes start at 1; expected one of {FORMS}")
    return Topology(text, kind, shape, slices)


def prepare(topology: Topology) -> None:
    """Makes this process one that can compile for the topology; before jax has looked for devices.

    The accelerator that the machine may have is left alone.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology.kind == "cpu":
        flag = "--xla_force_host_platform_device_count"
        others = [word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(flag)]
        os.environ["XLA_FLAGS"] = " ".join([*others, f"{flag}={topology.devices}"])


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for, slice by slice; nothing can run on those of a TPU.

    Raises:
        TopologyError: libtpu is not installed or knows no such slice; fewer simulated devices than asked for.
    """
    if topology.chip is None:
        found = jax.devices("cpu")
        if len(found) < topology.devices:
            raise TopologyError(
                f"--topology {topology.name!r}: this process simulates {len(found)} devices; start another with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.devices}"
            )
        return found[: topology.devices]
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"--topology {topology.name!r} is compiled by libtpu, which is not installed; it needs no TPU: "
            'pip install "wanjax[tpu]"'
        )
    # the compiler alone is used: no metadata server is asked which TPU this is, and no chip is locked
    os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    axes = "x".join(map(str, topology.shape))
    rings = (*topology.rings, False)[:3]
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.kind}:{axes}", chips_per_host_bounds=topology.chips_per_host,
            num_slices=topology.slices, wrap=rings, chip_config_name=topology.chip.variant,
        )  # fmt: skip
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TopologyError(f"--topology {topology.name!r}: libtpu does not know it: {reason}") from error
    return list(description.devices)
