"""Which matrices a LoRA that is trained changes, and the rows, first values and scale of its factors.

Instead of the network, factors ``down`` [inputs, R] and ``up`` [R, O] of some of its matrices are trained: x W becomes
x W + alpha / R · x · down · up, with W frozen (Hu et al. 2021, arXiv:2106.09685).
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wanjax.models import rows as row_table
from wanjax.models.dit_config import DTYPES
from wanjax.models.rows import Row

MATRICES = ("linear", "conv2d", "conv3d")  # layouts of the tensors that factors can change


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Training of low-rank factors beside frozen weights.

    Attributes:
        rank: R; 0 trains the network itself, and nothing else of this section has a meaning then.
        alpha: the factors' product is multiplied by alpha / rank.
        targets: patterns over the paths of parameters, part by part: ``blocks/*_attention/q/kernel``. ``*`` stands for
            anything within one part. Each must name matrices, and nothing else.
        base_dtype: in which the frozen weights are held. The factors, their gradients, moments and averages are
            float32.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("blocks/*_attention/*/kernel", "blocks/ffn/*/kernel")
    base_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank = {self.rank}: expected 0 (train the network itself) or the rank of the factors")
        if not self.alpha > 0:
            raise ValueError(f"alpha = {self.alpha}: expected > 0; the factors' product is multiplied by alpha / rank")
        if not self.targets:
            raise ValueError("targets is empty: name the matrices to adapt, such as 'blocks/*_attention/*/kernel', or "
                             "set rank to 0")  # fmt: skip
        if self.base_dtype not in DTYPES:
            raise ValueError(f"base_dtype {self.base_dtype!r} is not one of {DTYPES}")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def adapted(self, table: Sequence[Row]) -> tuple[Row, ...]:
        """The rows of the matrices that change, in the table's order.

        Raises: ValueError: a pattern that names no parameter, with the nearest paths, or one that is no matrix, or
            matrices whose sides are all smaller than the rank.
        """
        chosen: set[tuple[str, ...]] = set()
        for pattern in self.targets:
            found = [row for row in table if _matches(row.path, pattern)]
            if not found:
                paths = ["/".join(row.path) for row in table if row.layout in MATRICES]
                near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
                raise ValueError(f"targets: {pattern!r} names no parameter; the nearest are {', '.join(near)}")
            for row in found:
                if row.layout not in MATRICES:
                    raise ValueError(f"targets: {pattern!r} names {'/'.join(row.path)}, which is no matrix and has no "
                                     "factors: let it end in /kernel")  # fmt: skip
                if self.rank > min(math.prod(row.shape[:-1]), row.shape[-1]):
                    raise ValueError(f"rank = {self.rank} is more than the matrix {'/'.join(row.path)} of shape "
                                     f"{row.shape} has: lower it, or leave that out of targets")  # fmt: skip
            chosen |= {row.path for row in found}
        return tuple(row for row in table if row.path in chosen)

    def rows(self, table: Sequence[Row]) -> tuple[Row, ...]:
        """A row for each factor; ``down`` has the logical axes of its matrix's inputs, ``up`` of its outputs, so that
        each lies where its part of the matrix lies."""
        return tuple(
            row
            for own in self.adapted(table)
            for row in (
                Row((*own.path, "down"), (*own.shape[:-1], self.rank), (*own.axes[:-1], None), layout=own.layout,
                    stacked=own.stacked),
                Row((*own.path, "up"), (self.rank, own.shape[-1]), (None, own.axes[-1]), layout="linear",
                    stacked=own.stacked),
            )
        )

    def trained(self, table: Sequence[Row]) -> tuple[Row, ...]:
        """Rows of what is trained of a network: its factors, or with rank 0 all of it."""
        return self.rows(table) if self.rank else tuple(table)

    def init(self, key: jax.Array, table: Sequence[Row]) -> dict[str, Any]:
        """First values, float32: ``up`` is zero, so that training starts from the frozen network; ``down`` is uniform
        within ± 1 / √inputs, as peft draws it."""

        def first(path: tuple[str, ...], row: Row, number: int) -> jax.Array:
            if path[-1] == "up":
                return jnp.zeros(row.full_shape, jnp.float32)
            bound = math.prod(row.shape[:-1]) ** -0.5
            key_of_row = jax.random.fold_in(key, number)
            return jax.random.uniform(key_of_row, row.full_shape, jnp.float32, minval=-bound, maxval=bound)

        numbers = {row.path: number for number, row in enumerate(self.rows(table))}
        return row_table.tree(self.rows(table), lambda row: first(row.path, row, numbers[row.path]))

    def changes(self, factors: Mapping[str, Any]) -> dict[str, Any]:
        """What is trained, as :mod:`wanjax.models.lora` takes it: with the scale in ``up``."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * self.scale if path[-1].key == "up" else leaf, dict(factors))  # fmt: skip


def _matches(path: tuple[str, ...], pattern: str) -> bool:
    parts = pattern.split("/")
    return len(parts) == len(path) and all(map(fnmatch.fnmatchcase, path, parts))
