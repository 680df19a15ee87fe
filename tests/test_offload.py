"""Parameters in host memory give the bits of resident ones, and a device never holds more than two of their blocks."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.parity import dit_case
from wanjax import lora, offload, partition
from wanjax.models import rows, streaming
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows

# an odd number of blocks: two are worked on per turn of the loop
CONFIG = DiTConfig(width=48, heads=4, layers=5, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20)
ROWS = dit_rows(CONFIG)
RNG = np.random.default_rng(3)
INPUTS = (RNG.standard_normal((4, 2, 4, 4, 4)).astype(np.float32), RNG.uniform(0, 1000, 4).astype(np.float32),
          RNG.standard_normal((4, 5, 20)).astype(np.float32))  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return dit_case.params(CONFIG, seed=5)


def _resident(params, rows_, mesh):
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    shapes = rows.shapes(rows_, jax.tree.leaves(params)[0].dtype)
    return jax.device_put(params, partition.shardings(mesh, rows.logical_axes(rows_), shapes))


def _run(model, params, **options):
    apply = model.apply_with_taps if options else model.apply
    run = jax.jit(functools.partial(apply, **options))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.block_until_ready(run({"params": params}, *INPUTS)))]


@pytest.mark.parametrize("sizes,dtype", [
    (None, "bfloat16"), ({"fsdp": 4, "tensor": 2}, "float32"), ({"fsdp": 2, "seq": 2, "tensor": 2}, "bfloat16"),
], ids=str)  # fmt: skip
def test_streamed_blocks_give_the_bits_of_resident_ones(params, sizes, dtype):
    mesh = None if sizes is None else partition.make_mesh(sizes)
    model = WanDiT(dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype), mesh)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)
    streamed = offload.to_host(params, ROWS, mesh=mesh)
    kinds = [row_leaf.sharding.memory_kind for row_leaf in jax.tree.leaves(streamed)]
    assert kinds.count("pinned_host") == 10  # matrices of a block
    expected = _run(model, _resident(params, ROWS, mesh))
    assert np.std(expected[0]) > 0.1
    for found, one in zip(_run(model, streamed), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def test_states_after_blocks_are_those_of_resident_ones(params):
    model, taps = WanDiT(CONFIG), (1, 4, 5)
    expected = _run(model, _resident(params, ROWS, None), taps=taps)
    for found, one in zip(_run(model, offload.to_host(params, ROWS), taps=taps), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def _compiled(layers, streamed):
    config = dataclasses.replace(CONFIG, width=96, heads=4, ffn=256, layers=layers)
    table = dit_rows(config)
    places = offload.shardings(table)
    if not streamed:
        places = jax.tree.map(lambda place: place.with_memory_kind("device"), places)
    params = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
                          rows.shapes(table, jnp.float32), places)  # fmt: skip
    traced = jax.jit(WanDiT(config).apply).trace({"params": params}, *INPUTS)
    compiled = traced.lower().compile()
    kinds = jax.tree.leaves(jax.tree.map(lambda place: place.memory_kind, compiled.input_shardings[0][0]["params"]))
    held = sum(leaf.size * 4 for leaf, kind in zip(jax.tree.leaves(params), kinds, strict=True) if kind == "device")
    # the CPU's two memories are one: its programs do not say what is copied
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    return table, text, held + compiled.memory_analysis().temp_size_in_bytes


def test_device_memory_of_forty_streamed_blocks_is_that_of_two():
    block = 4 * (8 * 96 * 96 + 2 * 96 * 256)  # the matrices
    (_, _, resident_few), (_, _, resident) = _compiled(4, False), _compiled(40, False)
    (few_rows, _, few), (many, text, streamed) = _compiled(4, True), _compiled(40, True)
    vectors = 36 * 4 * (17 * 96 + 256 + 6 * 96)
    assert resident - resident_few == pytest.approx(36 * block + vectors, rel=0.01)
    assert streamed - few == pytest.approx(vectors, abs=0.1 * block)
    assert streamed < 0.2 * resident
    for table, difference in ((few_rows, 2), (many, 38)):
        sizes = [offload.device_bytes(table, "float32", streamed=flag) for flag in (False, True)]
        assert sizes[0] - sizes[1] == difference * block
        assert sizes[0] == 4 * rows.count(table)
    copied = re.findall(r"custom_call @annotate_device_placement.*-> tensor<([\dx]+)xf32>", text)
    assert copied and set(copied) == {"96x96", "96x256", "256x96"}  # never a stack


def _moved(stacks, beside):
    """Two stacks, of which each slice tells its place by what it becomes."""
    return streaming.replace(lambda own, by: [own[0] + by, own[1] * 2 + own[0]], stacks, beside)


def test_slices_of_stacks_in_host_memory_are_replaced_one_by_one():
    place = NamedSharding(partition.make_mesh({"fsdp": 8}), PartitionSpec(None, "fsdp"))
    far = place.with_memory_kind("pinned_host")
    draw = [np.random.default_rng(number).standard_normal((5, 64, 48)).astype(np.float32) for number in range(3)]
    places = [[far, place], place]
    move = jax.jit(_moved, donate_argnums=0, out_shardings=places[0])
    found = move(*jax.device_put((draw[:2], draw[2]), tuple(places)))
    assert [leaf.sharding.memory_kind for leaf in found] == ["pinned_host", "device"]
    for own, expected in zip(found, (draw[0] + draw[2], draw[1] * 2 + draw[0]), strict=True):
        np.testing.assert_array_equal(own, expected)
    held = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), [draw[:2], draw[2]], places)
    text = move.trace(*held).lower(lowering_platforms=("tpu",)).as_text()
    moved = sorted(re.findall(r'_xla_buffer_placement = "(\w+)"}} : \(tensor<([\dx]+)xf32>', text))
    slices = [("device", "1x64x48"), ("device", "1x64x48"), ("pinned_host", "1x64x48")]  # the first, the next, and back
    assert moved == sorted([*slices, ("device", "5x64x48"), ("pinned_host", "5x64x48")])  # results stay where they are


def test_a_mesh_is_counted_by_its_shards(params):
    mesh = partition.make_mesh({"fsdp": 4, "tensor": 2})
    for streamed, placed in ((False, _resident(params, ROWS, mesh)), (True, offload.to_host(params, ROWS, mesh=mesh))):
        held = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed)
                if leaf.sharding.memory_kind == "device"]  # fmt: skip
        blocks = 2 * 4 * (8 * 48 * 48 + 2 * 48 * 64) // 8 if streamed else 0
        assert offload.device_bytes(ROWS, "float32", streamed=streamed, mesh=mesh) == sum(held) + blocks


def test_mapped_arrays_and_resident_ones_are_placed(params, tmp_path):
    row = next(row for row in ROWS if row.path == ("blocks", "ffn", "in", "kernel"))
    mapped = np.memmap(tmp_path / "kernel", np.float32, "w+", shape=row.full_shape)
    mapped[:] = rows.pick(params, row)
    device = jax.devices()[3]
    mixed = jax.tree.map(jnp.asarray, params)
    mixed["blocks"]["ffn"]["in"]["kernel"] = mapped
    placed = offload.to_host(mixed, ROWS, device=device)
    for table_row in ROWS:
        leaf = rows.pick(placed, table_row)
        np.testing.assert_array_equal(leaf, rows.pick(params, table_row))
        assert leaf.sharding.device_set == {device}
        assert (leaf.sharding.memory_kind == "pinned_host") == (
            table_row.path[0] == "blocks" and table_row.path[-1] == "kernel")  # fmt: skip


def test_what_cannot_be_streamed_is_refused(params):
    with pytest.raises(ValueError, match="a mesh and a device"):
        offload.shardings(ROWS, mesh=partition.make_mesh({"fsdp": 8}), device=jax.devices()[0])
    bare = types.SimpleNamespace(addressable_memories=lambda: [types.SimpleNamespace(kind="device")])
    with pytest.raises(ValueError, match="has no pinned_host memory to stream from; it lists device: keep"):
        offload.shardings(ROWS, device=bare)
    with pytest.raises(ValueError, match=r"parameter patch_embedding/kernel has shape .*, expected"):
        offload.to_host(params, dit_rows(dataclasses.replace(CONFIG, width=24)))
    for other in ({**params, "probe": np.zeros(3)}, {name: leaf for name, leaf in params.items() if name != "head"}):
        with pytest.raises(ValueError, match="of two networks: only one has (probe|head/modulation)$"):
            offload.to_host(other, ROWS)
    streamed = offload.to_host(params, ROWS)
    gradient = jax.grad(lambda text, held: WanDiT(CONFIG).apply({"params": held}, *INPUTS[:2], text).sum())
    with pytest.raises(ValueError, match="streamed forward only"):
        gradient(INPUTS[2], streamed)
    change = lora.Whole("a"), lora.Lora("a", "", {"a": np.ones((48, 48), np.float32)}, {})
    added = dataclasses.replace(change[1], changes={(("blocks", "self_attention", "q", "kernel"), 0): change[:1]})
    with pytest.raises(ValueError, match="blocks/self_attention/q/kernel lies in host memory"):
        lora.merge(streamed, ROWS, [(added, 1.0)])
