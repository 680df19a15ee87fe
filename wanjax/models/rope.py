"""Three-axis rotary embedding: token positions in time, height and width turned into rotations.

Source: RoFormer (Su et al., 2021) per axis; the split of the head over the axes is Wan's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How a head splits over time, height, width: (d − 4·(d//6), 2·(d//6), 2·(d//6)), all even."""
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"head_dim {head_dim} must be even and at least 6 to split over time, height and width")
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def tables(grid: tuple[int, int, int], head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every token's rotation angles, computed in float64 on the host.

    Args:
        grid: tokens in time, height, width; tokens run with width fastest.
        head_dim: d.

    Returns:
        two float32 arrays [N, d/2]; time's frequencies first, then height's, then width's.
    """
    frames, height, width = grid
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        frequencies = THETA ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
        along = np.arange(length, dtype=np.float64)[:, None] * frequencies  # (length, dim/2)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        angles.append(np.broadcast_to(along.reshape(shape), (frames, height, width, dim // 2)))
    angle = np.concatenate(angles, axis=-1).reshape(frames * height * width, head_dim // 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the interleaved pairs (x[2i], x[2i+1]) of every head in float32.

    Args:
        x: [B, N, K, d].
        cos: [N, d/2].
        sin: [N, d/2].

    Returns:
        [B, N, K, d] in x's dtype.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)
