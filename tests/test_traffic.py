"""The least that a step sends: by hand for one matrix, and never more than what a compiled program does send."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from wanjax import collectives, partition
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows
from wanjax.traffic import Work, minimum

CONFIG = DiTConfig(width=32, heads=4, layers=3, ffn=64, in_channels=4, out_channels=4, freq_dim=16, text_dim=16,
                   dtype="bfloat16")  # fmt: skip
MATRIX = Row(("blocks", "w"), (32, 64), ("embed", "mlp"), stacked=3)
NUMBERS = 3 * 32 * 64


@pytest.mark.parametrize("sizes,train,expected", [
    ({"fsdp": 8}, False, NUMBERS * 2 * 7 / 8),  # gathered once, bfloat16
    ({"fsdp": 8}, True, 3 * NUMBERS * 2 * 7 / 8),  # gathered twice, its gradient scattered
    ({"fsdp": 4, "tensor": 2}, False, NUMBERS / 2 * 2 * 3 / 4 + 3 * 3 * 2 * (2 * 6 * 32 * 2) * 1 / 2),
    # each copy sums its shard of the gradient in float32
    ({"data": 2, "fsdp": 4}, True, 3 * NUMBERS * 2 * 3 / 4 + 2 * NUMBERS / 4 * 4 * 1 / 2),
    ({"fsdp": 4, "seq": 2}, False, NUMBERS * 2 * 7 / 8 + 3 * 4 * (2 * 6 / 2 * 32 * 2) * 1 / 2),
    # four devices share heads, two such groups make a ring; six tokens are padded to eight
    ({"seq": 8}, False, NUMBERS * 2 * 7 / 8 + 3 * (4 * 3 / 4 + 2) * (2 * 8 / 8 * 32 * 2)),
    ({"seq": 8}, True, 3 * NUMBERS * 2 * 7 / 8 + 3 * (2 * 4 * 3 / 4 + 6) * (2 * 8 / 8 * 32 * 2)),
], ids=str)  # fmt: skip
def test_one_matrix_by_hand(sizes, train, expected):
    mesh = partition.make_mesh(sizes)
    clips = 2 * sizes.get("data", 1) * sizes.get("fsdp", 1)  # two clips of six tokens on each
    assert minimum(CONFIG, [MATRIX], mesh, Work(clips, 6, 5, train=train)) == round(expected)


def test_two_passes_gather_twice_and_one_device_sends_nothing():
    mesh, one = partition.make_mesh({"fsdp": 8}), partition.make_mesh({}, jax.devices()[:1])
    work = Work(8, 6, 5, forwards=2)
    assert minimum(CONFIG, [MATRIX], mesh, dataclasses.replace(work, gathers=2)) == 2 * minimum(CONFIG, [MATRIX], mesh,
                                                                                              work)  # fmt: skip
    outside = dataclasses.replace(MATRIX, stacked=0)
    assert minimum(CONFIG, [outside], mesh, dataclasses.replace(work, gathers=2)) == 32 * 64 * 2 * 7 // 8
    assert minimum(CONFIG, dit_rows(CONFIG), one, Work(8, 6, 5, train=True)) == 0


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "seq": 4}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_a_compiled_forward_sends_little_more(sizes):
    config = dataclasses.replace(CONFIG, dtype="float32", heads=2)  # two of four devices share heads, and make rings
    mesh, table = partition.make_mesh(sizes), dit_rows(config)
    place = partition.batch_sharding(mesh)
    sizes_of = rows.shapes(table, "float32")
    params = jax.tree.map(lambda x, own: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own), sizes_of,
                          partition.shardings(mesh, rows.logical_axes(table), sizes_of))  # fmt: skip
    shapes = ((8, 2, 4, 4, 4), (8,), (8, 5, 16))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in shapes]
    text = jax.jit(WanDiT(config, mesh).apply).lower({"params": params}, *inputs).compile().as_text()
    least = minimum(config, table, mesh, Work(8, 8, 5))
    found = collectives.parse(text, 8)
    assert found.unknown_loops == 0
    assert least <= found.bytes < 1.35 * least
