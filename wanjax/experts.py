"""Transformers whose parameters are read when their steps come, and let go of when those of another are needed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from wanjax import offload, partition
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows


@dataclasses.dataclass(frozen=True, eq=False)
class Expert:
    """One transformer and where its parameters come from.

    Attributes:
        model: the network, with the mesh that it runs on.
        read: a tree of shardings -> the parameters, each where its sharding says; called each time that they are needed
            and are not held, so it may take minutes.
        fingerprint: tells one set of weights from another; found without reading them all.
        dtype: of the parameters.
        changes: LoRAs that are added to the parameters where these are used (`wanjax.models.lora`); empty for none.
    """

    model: WanDiT
    read: Callable[[Any], Any]
    fingerprint: str
    dtype: str
    changes: Any = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: WanDiT, params: Any) -> Expert:
        """An expert whose parameters are there already, arrays of numpy or jax; they stay with the caller too."""
        dtypes = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(params)}
        if len(dtypes) != 1:
            raise ValueError(f"parameters of the types {sorted(dtypes)}: expected all of one")
        return cls(model, lambda places: jax.device_put(params, places), _fingerprint_of(params), dtypes.pop())

    def places(self, *, streamed: bool = False) -> Any:
        """Tree of shardings of the parameters: on the devices, or with the stack's matrices in the host's memory."""
        table, mesh = dit_rows(self.model.config), self.model.mesh
        if streamed:
            return offload.shardings(table, mesh=mesh)
        return rows.shardings(table, mesh_of(self.model))

    def variables(self, *, streamed: bool = False) -> dict[str, Any]:
        """What the model is applied with; reads the parameters."""
        return self._with_changes(self.read(self.places(streamed=streamed)))

    def shapes(self, *, streamed: bool = False) -> dict[str, Any]:
        """Tree of ``jax.ShapeDtypeStruct`` like :meth:`variables`; reads nothing."""
        shapes = rows.shapes(dit_rows(self.model.config), self.dtype)
        places = self.places(streamed=streamed)
        return self._with_changes(partition.placed_shapes(shapes, places))

    def nbytes(self, *, streamed: bool = False) -> int:
        """Bytes of parameters on the device that holds most of them."""
        return offload.device_bytes(dit_rows(self.model.config), self.dtype, streamed=streamed, mesh=self.model.mesh)

    def _with_changes(self, params: Any) -> dict[str, Any]:
        return {"params": params, "lora": self.changes} if self.changes else {"params": params}


def mesh_of(model: WanDiT) -> jax.sharding.Mesh:
    """The model's mesh, or one of the first device alone."""
    return model.mesh or partition.make_mesh({}, devices=jax.devices()[:1])


class Held:
    """The parameters that are held: those of the experts asked for last.

    Args:
        experts: by name.
        at_once: of how many experts parameters are held; those of the others are let go of before new ones are read.
        streamed: whether the stacks' matrices are held in the host's memory.
        on_read: told the name of an expert before its parameters are read.
    """

    def __init__(
        self, experts: Mapping[str, Expert], at_once: int, *, streamed: bool = False,
        on_read: Callable[[str], None] = lambda name: None,
    ):  # fmt: skip
        self._experts, self._at_once, self._streamed, self._on_read = experts, at_once, streamed, on_read
        self._variables: dict[str, dict[str, Any]] = {}

    def variables(self, name: str) -> dict[str, Any]:
        """What one expert's model is applied with."""
        if name not in self._variables:
            while len(self._variables) >= self._at_once:
                del self._variables[next(iter(self._variables))]
            self._on_read(name)
            self._variables[name] = self._experts[name].variables(streamed=self._streamed)
        return self._variables[name]


def _fingerprint_of(params: Any) -> str:
    """16 hex digits, from the first 64 values of every row of layers of every tensor."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part = leaf[(slice(None),) + (0,) * (leaf.ndim - 2) + (slice(64),)] if leaf.ndim > 1 else leaf
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
