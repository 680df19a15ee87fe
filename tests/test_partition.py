"""Mesh and placement: what divides is split, what does not stays whole, what is unknown is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from wanjax import partition


@pytest.fixture(scope="module")
def mesh():
    return partition.make_mesh({"fsdp": 2, "seq": 2, "tensor": 2})


def test_mesh_has_every_axis_and_one_may_take_the_rest():
    assert dict(partition.make_mesh({"fsdp": -1, "data": 2}).shape) == {"data": 2, "fsdp": 4, "seq": 1, "tensor": 1}
    assert dict(partition.make_mesh({}, devices=jax.devices()[:1]).shape) == dict.fromkeys(partition.AXES, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model": 8}, "'model' is not one of"),
        ({"fsdp": -1, "data": -1}, "at most one may be -1"),
        ({"fsdp": 0}, "at least 1"),
        ({"fsdp": 3}, "need 3 devices, there are 8"),
        ({"fsdp": -1, "data": 3}, "8 devices do not divide by 3"),
    ],
)
def test_mesh_that_cannot_be_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        partition.make_mesh(sizes)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "heads"), (8, 8), P(("fsdp", "seq"), "tensor")),
        (("layers", "embed", "mlp"), (3, 6, 6), P(None, "fsdp", "tensor")),  # 6 splits in 2, not in 4
        (("embed",), (5,), P(None)),
        (("embed", "embed"), (8, 8), P(("fsdp", "seq"), None)),  # a mesh axis is used once
        ((None, "vocab"), (4, 4), P(None, "tensor")),
    ],
)
def test_parameters_are_split_over_everything_but_data(mesh, axes, shape, expected):
    assert partition.spec(mesh, axes, shape) == expected


@dataclasses.dataclass(frozen=True)
class _Chip:
    """A TPU that is not there."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    device_kind: str = "TPU v4"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0


def test_between_slices_runs_data_alone():
    chips = [_Chip(4 * s + 2 * y + x, (x, y, 0), s) for s in range(2) for y in range(2) for x in range(2)]
    for sizes in ({"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "seq": 2}, {"data": 4, "seq": 2}):
        devices = partition.make_mesh(sizes, chips).devices
        near = np.vectorize(lambda chip: chip.slice_index)(devices)
        half = sizes["data"] // 2
        assert (near[:half] == 0).all() and (near[half:] == 1).all()
    with pytest.raises(ValueError, match="data of size 1: the devices lie in 2 slices"):
        partition.make_mesh({"fsdp": 8}, chips)


def test_an_axis_of_the_torus_may_be_split():
    """2 x 8 devices of 4 x 4: neighbours along both axes of the mesh are neighbours in a row or a column."""
    chips = [_Chip(4 * y + x, (x, y, 0), 0) for y in range(4) for x in range(4)]
    devices = partition.make_mesh({"fsdp": 2, "seq": 8}, chips).devices.reshape(2, 8)
    assert {chip.id for chip in devices.flat} == set(range(16))
    places = np.asarray([[chip.coords for chip in row] for row in devices])
    assert ((places[0] != places[1]).sum(-1) == 1).all()  # fsdp changes one coordinate
    assert all(len(np.unique(row, axis=0)) == 8 for row in places)


def _torus(x, y, z):
    return [_Chip(4 * (4 * i + j) + k, (i, j, k), 0) for i in range(x) for j in range(y) for k in range(z)]


def test_an_axis_over_a_torus_is_split_where_one_coordinate_gives_way_to_the_next():
    mesh = partition.make_mesh({"fsdp": 16, "seq": 4}, [dataclasses.replace(chip, device_kind="TPU v5p") for chip
                                                        in _torus(4, 4, 4)])  # fmt: skip
    torus, parts = partition.over_torus(mesh, "fsdp")
    assert parts == {"data": ("data",), "fsdp": ("fsdp_0", "fsdp_1"), "seq": ("seq",), "tensor": ("tensor",)}
    assert dict(torus.shape) == {"data": 1, "fsdp_0": 4, "fsdp_1": 4, "seq": 4, "tensor": 1}
    assert list(torus.devices.flat) == list(mesh.devices.flat)
    for axis in ("fsdp_0", "fsdp_1"):
        lines = np.moveaxis(torus.devices, torus.axis_names.index(axis), 0).reshape(4, -1)
        varied = [sum(len({chip.coords[i] for chip in line}) > 1 for i in range(3)) for line in lines.T]
        assert set(varied) == {1}


@pytest.mark.parametrize("order,lengths", [
    ([(0, 0), (0, 1), (0, 2), (0, 3)], (4,)), ([(0, 0), (0, 1), (1, 0), (1, 1)], (2, 2)),
    ([(0, 0), (0, 1), (1, 1), (1, 0)], (4,)),  # a ring through a square: no axis of the torus is one of its own
    ([(0, 0)], (1,)),
], ids=str)  # fmt: skip
def test_parts_of_an_axis_follow_the_chips_in_their_order(order, lengths):
    chips = np.asarray([_Chip(i, (*place, 0), 0) for i, place in enumerate(order)], object).reshape(1, -1, 1, 1)
    torus, parts = partition.over_torus(jax.sharding.Mesh(chips, partition.AXES), "fsdp")
    assert tuple(torus.shape[part] for part in parts["fsdp"]) == lengths


def test_devices_without_coordinates_have_no_torus(mesh):
    assert partition.over_torus(mesh, *partition.AXES)[0] is mesh


def test_unknown_logical_axis_is_refused(mesh):
    with pytest.raises(ValueError, match="'embd' has no rule"):
        partition.spec(mesh, ("embd",), (8,))
    with pytest.raises(ValueError, match="2 logical axes"):
        partition.spec(mesh, ("embed", None), (8,))


def test_shardings_follow_the_tree_and_batches_split_over_data_and_fsdp(mesh):
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), np.float32)}}
    placed = partition.shardings(mesh, {"a": {"kernel": ("embed", "mlp")}}, shapes)
    assert placed["a"]["kernel"].spec == P(("fsdp", "seq"), "tensor")
    assert partition.batch_sharding(mesh).shard_shape((6, 3)) == (3, 3)
    assert partition.replicated(mesh).shard_shape((6, 3)) == (6, 3)


def test_constrain_splits_or_says_why_not(mesh):
    split = jax.jit(lambda x: partition.constrain(x, mesh, ("data", "fsdp"), "seq"))(np.zeros((4, 6)))
    assert split.sharding.shard_shape(split.shape) == (2, 3)
    x = np.zeros(3)
    assert partition.constrain(x, None, "seq") is x
    with pytest.raises(ValueError, match="dimension of 3 does not divide"):
        partition.constrain(x, mesh, "seq")
    with pytest.raises(ValueError, match="'rows' is not one of"):
        partition.constrain(x, mesh, "rows")


def test_shapes_are_given_the_place_of_each_or_one_for_all(mesh):
    tree = {"a": np.zeros((2, 4), np.float32), "b": {"c": np.zeros(3, np.int32)}}
    alone, split = partition.replicated(mesh), partition.batch_sharding(mesh)
    found = partition.placed_shapes(tree, {"a": split, "b": {"c": alone}})
    assert (found["a"].sharding, found["b"]["c"].sharding) == (split, alone)
    assert (found["a"].shape, found["b"]["c"].dtype) == ((2, 4), np.int32)
    assert {leaf.sharding for leaf in jax.tree.leaves(partition.placed_shapes(tree, alone))} == {alone}
