"""What the compilers are told beside the program: one table, for the launchers and the planner alike.

They travel with ``jax.jit``, not in environment variables: nobody has to set them, and a plan is of the program that
runs. ``XLA_FLAGS`` and ``LIBTPU_INIT_ARGS`` still count; where both name an option, this table does. A compiler refuses
an option that it does not know, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

Options = dict[str, str | bool]

_PIPELINED = ("all_gather", "reduce_scatter", "all_reduce")
# jax 0.11's compiler calls some by other names than jax 0.10's.
_GPU_PIPELINES: Mapping[str, str | bool] = (
    {f"xla_gpu_pipeline_{op}": "COLLECTIVE_PIPELINING_MODE_ON" for op in _PIPELINED}
    if jax.__version_info__ >= (0, 11)
    else {f"xla_gpu_enable_pipelined_{op}": True for op in _PIPELINED}
)

# By platform, for every program.
PLATFORM: Mapping[str, Mapping[str, str | bool]] = {
    "cpu": {},
    # Copies from and to the hosts start early of themselves, those of the next block while this one is at work.
    "tpu": {},
    # Gathers and scatters of one block's parameters run beside the work of its neighbours: one more block in memory.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True, **_GPU_PIPELINES},
}
# By kind of device, for a training step besides. Left to itself the compiler of a v5p and a v6e waits for every gather;
# their sparse cores can send while the tensor cores compute. Those of a tpu7x do so unasked, a v5e has none. What each
# option hides, and what was tried besides, is in benchmarks/results/overlap.md.
_SPARSE_CORES = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_enable_async_all_gather": "true",
}
_V5P = {**_SPARSE_CORES, "xla_tpu_enable_async_all_to_all": "true"}
# The compiler makes padded all-reduces of some scatters here, and has one gather under way at a time unless it is told.
_V6E = {
    **_SPARSE_CORES,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_tpu_enable_sparse_core_offload_queuing_in_lhs": "true",
    "xla_tpu_enable_concurrent_sparse_core_offloading": "true",
    "xla_max_concurrent_async_all_gathers": "16",
    "xla_max_concurrent_async_reduce_scatters": "16",
}
TRAINING: Mapping[str, Mapping[str, str | bool]] = {
    "TPU v5": _V5P, "TPU v5p": _V5P, "TPU v6 lite": _V6E, "TPU v6e": _V6E,
}  # fmt: skip


def of(device: Any) -> Options:
    """The options of a ``jax.Device``, one that is not there too, as ``jax.jit(compiler_options=...)`` takes them."""
    return dict(PLATFORM[device.platform])


def of_training(device: Any) -> Options:
    """Those of a training step on the device."""
    return {**of(device), **TRAINING.get(device.device_kind, {})}
