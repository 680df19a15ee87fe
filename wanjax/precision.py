"""float32 means float32: accelerators otherwise multiply float32 matrices in a shorter format (TF32 or bfloat16)."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp


def of(dtype: Any) -> jax.lax.Precision | None:
    """The precision of products of operands of a dtype: the highest for float32, None, jax's own choice, for others.

    A precision that the caller has set for all of jax (``jax.default_matmul_precision``) is obeyed.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # jax makes it at run time
    return None if jnp.dtype(dtype) != jnp.float32 or chosen is not None else jax.lax.Precision.HIGHEST


def within(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """The same for all products and convolutions of a block of code."""
    return contextlib.nullcontext() if of(dtype) is None else jax.default_matmul_precision("highest")
