"""Accelerators as their makers state them: the figures of the planner, each with its source.

A rate is never reached in full. Nothing here was measured but the :class:`Rates` of one chip's kernels.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Torus:
    """How the chips of a TPU's slice are joined.

    Attributes:
        axes: of the torus.
        longest: chips along each axis of the largest slice.
        ring: an axis is a ring, and not a line, where its length is a multiple of this.
        host: chips of one host along the axes, where a slice has more than one.
        variant: of the chip, by libtpu's name; "megacore" makes one device of v4's two cores.
    """

    axes: int
    longest: tuple[int, ...]
    ring: int
    host: tuple[int, int, int] = (2, 2, 1)
    variant: str = "default"


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of kernels on one device, as they were measured, but for :attr:`float32`.

    Attributes:
        products: operations per second of matrix products of operands of 16 bits.
        attention_forward, attention_backward: of attention's kernels, of all that they execute: two products forward,
            five backward, of which one makes the weights again.
        host: bytes/s from pinned memory of the host; that to it is taken for the same.
        float32: operations per second of products of float32 operands, by the maker: none was measured.
        source: of the measurements.
    """

    products: float
    attention_forward: float
    attention_backward: float
    host: float
    float32: float
    source: str


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind.

    Attributes:
        devices: that jax sees on one chip.
        flops: floating-point operations per second of bfloat16 matrix products, dense, of the chip.
        hbm_bytes: memory of one device that a program may use. Of a TPU: what libtpu 0.0.52 states when it refuses
            one, a little less than the maker's figure for the chip.
        hbm_bandwidth: of it, bytes/s of the chip.
        link: bytes/s in one direction: of a TPU's link to one neighbour, of a GPU into its node's switch.
        network: bytes/s between slices or nodes, per chip.
        sources: of these figures.
        dumped: the text of its programs is taken from the compiler's dump, as jaxlib 0.10.2 cannot read what libtpu
            0.0.52 hands over.
        torus: of TPUs; GPUs of a node are joined by a switch.
        target: of GPUs, the file in ``wanjax/assets/gpus`` that describes one to XLA's compiler.
        node: of GPUs, how many a node has at most.
        host_memory: bytes of a host's memory, per chip of it; 0: not known.
        rates: of kernels that were measured on one; None: none were.
    """

    devices: int
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link: float
    network: float
    sources: tuple[str, ...]
    torus: Torus | None = None
    dumped: bool = False
    target: str = ""
    node: int = 0
    host_memory: int = 0
    rates: Rates | None = None


def _gib(size: float) -> int:
    return round(size * 2**30)


_BOOK = "jax-ml.github.io/scaling-book/tpus (tables of chips and links; rings; network per host)"
_CLOUD = "docs.cloud.google.com/tpu/docs/"
# Where two sources round differently, Google Cloud's figure. It states the links of a chip together and in both
# directions: one is a twelfth of that with three axes, an eighth with two. Network of v5e: its pod's over 256 chips; of
# v4: 25 GB/s of a host (the book) over its 4 chips. Memory of a host: of Google Cloud's machines with 4 chips (v5p, v6e
# and tpu7x, stated on tpu7x's page), and with 1, 4 or 8 (v5e); the pages that are cited do not state it for v4.
TPUS: dict[str, Chip] = {
    "v4": Chip(1, 275e12, _gib(30.75), 1.2e12, 45e9, 6.25e9, (_CLOUD + "v4", _BOOK),
               Torus(3, (16, 16, 16), 4, variant="megacore")),
    "v5e": Chip(1, 197e12, _gib(15.75), 0.819e12, 50e9, 3.125e9, (_CLOUD + "v5e", _BOOK), Torus(2, (16, 16), 16),
                host_memory=48 * 10**9),
    "v5p": Chip(1, 459e12, _gib(95.73), 2.765e12, 100e9, 6.25e9, (_CLOUD + "v5p", _CLOUD + "tpu7x", _BOOK),
                Torus(3, (16, 16, 24), 4), dumped=True, host_memory=112 * 10**9),
    "v6e": Chip(1, 918e12, _gib(31.24), 1.638e12, 100e9, 12.5e9, (_CLOUD + "v6e", _CLOUD + "tpu7x", _BOOK),
                Torus(2, (16, 16), 16), dumped=True, host_memory=180 * 10**9),
    "tpu7x": Chip(2, 2307e12, _gib(94.74), 7.38e12, 100e9, 12.5e9, (_CLOUD + "tpu7x",), Torus(3, (16, 24, 24), 4),
                  dumped=True, host_memory=240 * 10**9),
}  # fmt: skip
# An H100 has the same peak and another memory and power: what was measured on an H200 is not said of it.
_H200 = Rates(products=640e12, attention_forward=570e12, attention_backward=503e12, host=2.7046656e9 / 0.049,
              float32=67e12, source="benchmarks/results/gpu.md: one H200, 2026-11-29, jax 0.11.2, cuDNN 9.19")
# Memory as XLA's description of the chip has it; a CUDA context and NCCL's buffers, 1 to 2 GB, are taken from it.
# NVLink: 18 links of 25 GB/s in each direction. Network: one InfiniBand adapter of 400 Gbit/s per GPU, as in a DGX.
GPUS: dict[str, Chip] = {
    "h100": Chip(1, 989.5e12, 84_942_979_072, 3.35e12, 450e9, 50e9,
                 ("nvidia.com/en-us/data-center/h100 (SXM: half of the sparse figure)",
                  "docs.nvidia.com/dgx/dgxh100-user-guide (adapters)",
                  "docs.nvidia.com/dgx-basepod (core components: a DGX H100 has 2 TB of memory for 8 GPUs)",
                  "jax-ml.github.io/scaling-book/gpus (links per direction, network per node)"),
                 target="h100_sxm.txtpb", node=8, host_memory=250 * 10**9),
    "h200": Chip(1, 989.5e12, 150_109_880_320, 4.8e12, 450e9, 50e9,
                 ("nvidia.com/en-us/data-center/h200 (SXM: half of the sparse figure)",
                  "docs.nvidia.com/dgx/dgxh200-user-guide (adapters; 2 TB of memory for 8 GPUs)"),
                 target="h200_sxm.txtpb", node=8, host_memory=250 * 10**9, rates=_H200),
}  # fmt: skip
CHIPS: dict[str, Chip] = {**TPUS, **GPUS}
