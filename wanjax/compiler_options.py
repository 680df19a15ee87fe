"""What the compilers are told beside the program: one table per platform, for the launchers and the planner alike.

They travel with ``jax.jit``, not in environment variables: nobody has to set them, and a plan is of the program that
runs. ``XLA_FLAGS`` and ``LIBTPU_INIT_ARGS`` still count; where both name an option, this table does. A compiler refuses
an option that it does not know, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping

OPTIONS: Mapping[str, Mapping[str, str | bool]] = {
    "cpu": {},
    # Copies from and to the hosts start early of themselves, those of the next block while this one is at work. What
    # would make a gather run beside matrix products is refused by libtpu 0.0.52 for v5p (continuation fusion is v5e's).
    "tpu": {},
    # Gathers and scatters of one block's parameters run beside the work of its neighbours: one more block in memory.
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
    },
}


def of(platform: str) -> dict[str, str | bool]:
    """The options of a platform, as ``jax.jit(compiler_options=...)`` takes them.

    Args:
        platform: "cpu", "gpu" or "tpu".
    """
    return dict(OPTIONS[platform])
