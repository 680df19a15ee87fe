"""Self-attention where the devices of the mesh axis ``seq`` share the tokens of a clip: every token sees every other.

Two schemes, and both at once:

``heads``  for the length of the attention each device has all tokens of some of the heads: four all-to-alls (Jacobs et
           al. 2023, arXiv:2309.14509). It sends least and runs any kernel as it is, and needs heads that divide.
``ring``   each device keeps its tokens, and keys and values pass by (:mod:`wanjax.models.ring`).
``auto``   heads over as many devices as they divide over, rings over the rest: 40 heads over 16 devices are shared by
           8, and two such groups make rings of two.

A number of tokens that does not divide is padded at the end; padding is never attended to. For a kernel that works on
whole tiles of tokens, each device's share is padded to those, once: in every block each exchange would else copy q, k
and v to other lengths and back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wanjax.models import partial_attention, ring
from wanjax.models.attention import attention
from wanjax.models.splash import SplashBlocks

SCHEMES = ("auto", "heads", "ring")
AXIS = "seq"


def shared(scheme: str, heads: int, seq: int, tensor: int = 1) -> int:
    """How many devices of ``seq`` share the heads; the remaining factor is the length of the rings.

    With "auto", of the devices' own heads where these are already split over ``tensor``, so that they stay split.

    Raises:
        ValueError: "heads" where these do not divide over ``seq``.
    """
    if scheme == "ring":
        return 1
    if scheme == "heads":
        if heads % seq:
            raise ValueError(f"{heads} heads do not divide over the mesh axis seq of size {seq}: choose a seq that"
                             f" divides the heads, or sequence 'auto' or 'ring'")  # fmt: skip
        return seq
    return math.gcd(heads // tensor if heads % tensor == 0 else heads, seq)


def padded(tokens: int, seq: int, tile: int = 1) -> int:
    """The next number of tokens that divides over ``seq``; where that is above 1, into whole tiles."""
    each = seq * tile if seq > 1 else 1
    return -(-tokens // each) * each


@dataclass(frozen=True)
class Shards:
    """How the devices of the mesh axis ``seq`` share the tokens of a clip.

    Attributes:
        heads: devices that share the heads of the same tokens for the length of the attention.
        ring: such groups, among which keys and values pass by.
        tensor: devices that the heads are split over besides.
        tokens: N, without padding.
    """

    heads: int
    ring: int
    tensor: int
    tokens: int

    @classmethod
    def of(cls, scheme: str, heads: int, mesh: Mesh, tokens: int) -> Shards:
        """Raises: ValueError: as :func:`shared`."""
        seq, tensor = mesh.shape[AXIS], mesh.shape["tensor"]
        own = shared(scheme, heads, seq, tensor)
        return cls(own, seq // own, tensor if heads % (own * tensor) == 0 else 1, tokens)

    def attention(
        self, q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str, mesh: Mesh | None,
        splash_blocks: SplashBlocks, name: str,
    ) -> jax.Array:  # fmt: skip
        """softmax(q kᵀ / √d) v over all tokens, of a device's own; called per shard.

        Args:
            q, k, v: [B, n, K, d], n = the padded N / (heads · ring).
            implementation, mesh, splash_blocks, name: as for :func:`wanjax.models.attention.attention`.

        Returns:
            [B, n, K, d]; what it holds for padding is finite and means nothing.
        """
        q, k, v = (self._to_heads(x) for x in (q, k, v))
        padding = q.shape[1] * self.ring - self.tokens
        if self.ring == 1:
            out = attention(q, k, v, implementation=implementation, mesh=mesh, splash_blocks=splash_blocks, name=name,
                            valid=self.tokens if padding else None)  # fmt: skip
        else:
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            platform = cast(Mesh, mesh).devices.flat[0].platform
            kernel = partial_attention.kernel(implementation, platform, q.dtype, q.shape, k.shape, splash_blocks)
            valid, over = self.tokens if padding else None, "tensor" if self.tensor > 1 else None
            around = ring.Ring(AXIS, self.ring, self.heads, valid, cast(Mesh, mesh), over)
            out = ring.attention(around, kernel, q, k, v, name).swapaxes(1, 2)
        return self._to_tokens(out)

    def _to_heads(self, x: jax.Array) -> jax.Array:
        """[B, n, K, d] -> [B, n · heads, K / heads, d]."""
        return self._turned(x, 2, 1)

    def _to_tokens(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        return self._turned(x, 1, 2)

    def _turned(self, x: jax.Array, split: int, joined: int) -> jax.Array:
        if self.heads == 1:
            return x
        groups = [[of * self.heads + i for i in range(self.heads)] for of in range(self.ring)]

        def turn(x: jax.Array) -> jax.Array:
            # heads first, as kernels have them: a few heads beside features would be padded to the tiles of a TPU
            turned = jax.lax.all_to_all(x.swapaxes(1, 2), AXIS, 3 - split, 3 - joined, tiled=True,
                                        axis_index_groups=groups if self.ring > 1 else None)  # fmt: skip
            return turned.swapaxes(1, 2)

        if self.tensor == 1:
            return turn(x)
        # of the heads that each device of tensor has: an axis that is not manual here would be gathered for it
        spec, around = P(None, None, "tensor"), jax.sharding.get_abstract_mesh()
        return jax.shard_map(turn, mesh=around, axis_names={"tensor"}, in_specs=spec, out_specs=spec)(x)
