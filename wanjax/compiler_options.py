"""What the compilers are told beside the program: one table per platform, for the launchers and the planner alike.

They travel with ``jax.jit``, not in environment variables: nobody has to set them, and a plan is of the program that
runs. ``XLA_FLAGS`` and ``LIBTPU_INIT_ARGS`` still count; where both name an option, this table does. A compiler refuses
an option that it does not know, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping

OPTIONS: Mapping[str, Mapping[str, str | bool]] = {
    "cpu": {},
    "tpu": {},
    "gpu": {},
}


def of(platform: str) -> dict[str, str | bool]:
    """The options of a platform, as ``jax.jit(compiler_options=...)`` takes them.

    Args:
        platform: "cpu", "gpu" or "tpu".
    """
    return dict(OPTIONS[platform])
