"""The noise level as the transformer reads it: a sinusoid of the timestep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def timestep_features(timestep: jax.Array, dim: int) -> jax.Array:
    """Sinusoid of the timestep, cosines first: cos(t·10000^(−i/half)), sin(...), i = 0 … half − 1.

    Accurate to float32's last bits without float64: t reaches 1000 rad, where one rounding of t·frequency already
    costs 3e-5. Both factors are split into a 12-bit head and a rest, so that head·head is exact in float32, and
    the addition theorem joins the small rest.

    Args:
        timestep: any shape, in [0, 1000], may be fractional.
        dim: number of features, even.

    Returns:
        float32 [..., dim].
    """
    frequency = 10000.0 ** (-np.arange(dim // 2, dtype=np.float64) / (dim // 2))
    f_head = (frequency.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
    f_rest = (frequency - f_head.astype(np.float64)).astype(np.float32)
    t = jnp.asarray(timestep, jnp.float32)[..., None]
    bits = jax.lax.bitcast_convert_type(t, jnp.uint32) & jnp.uint32(0xFFFFF000)
    t_head = jax.lax.bitcast_convert_type(bits, jnp.float32)
    large = t_head * f_head
    small = t_head * f_rest + (t - t_head) * (f_head + f_rest)
    cos_a, sin_a, cos_b, sin_b = jnp.cos(large), jnp.sin(large), jnp.cos(small), jnp.sin(small)
    return jnp.concatenate([cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b], axis=-1)
