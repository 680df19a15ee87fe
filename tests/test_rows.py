"""The rows: one per tensor, from which import, export, sharding, shapes and counts are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dit_case
from wanjax import partition
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae import VAEConfig

TABLES = {"dit": dit_rows(dit_case.CONFIG), "vae": vae_rows(VAEConfig(base_dim=8)),
          "umt5": umt5_rows(UMT5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_heads=4, num_layers=2))}
OFFICIAL_BLOCK = {
    "modulation": (1, 6, 32), "norm3.weight": (32,), "norm3.bias": (32,),
    "ffn.0.weight": (48, 32), "ffn.0.bias": (48,), "ffn.2.weight": (32, 48), "ffn.2.bias": (32,),
    **{f"{a}.{p}.weight": (32, 32) for a in ("self_attn", "cross_attn") for p in "qkvo"},
    **{f"{a}.{p}.bias": (32,) for a in ("self_attn", "cross_attn") for p in "qkvo"},
    **{f"{a}.norm_{p}.weight": (32,) for a in ("self_attn", "cross_attn") for p in "qk"},
}  # fmt: skip
OFFICIAL_OUTSIDE = {
    "patch_embedding.weight": (32, 6, 1, 2, 2), "patch_embedding.bias": (32,),
    "text_embedding.0.weight": (32, 20), "text_embedding.0.bias": (32,),
    "text_embedding.2.weight": (32, 32), "text_embedding.2.bias": (32,),
    "time_embedding.0.weight": (32, 24), "time_embedding.0.bias": (32,),
    "time_embedding.2.weight": (32, 32), "time_embedding.2.bias": (32,),
    "time_projection.1.weight": (192, 32), "time_projection.1.bias": (192,),
    "head.modulation": (1, 2, 32), "head.head.weight": (20, 32), "head.head.bias": (20,),
}  # fmt: skip


def test_one_a14b_expert_has_14_288_491_584_parameters():
    assert rows.count(dit_rows(DiTConfig(width=5120, heads=40, layers=40, ffn=13824))) == 14_288_491_584


def test_rows_are_the_parameters_of_the_network():
    made = jax.eval_shape(WanDiT(dit_case.CONFIG).init, jax.random.key(0))["params"]
    assert made == rows.shapes(TABLES["dit"], jnp.float32)


@pytest.mark.parametrize("network", TABLES)
@pytest.mark.parametrize("names", rows.NAMES)
def test_export_then_import_gives_the_same_bits(network, names):
    table = TABLES[network]
    params = rows.tree(table, lambda row: np.random.default_rng(len(row.path)).standard_normal(row.full_shape))
    foreign = rows.export_tensors(table, params, names)
    assert sum(array.size for array in foreign.values()) == rows.count(table)
    assert all(array.flags["C_CONTIGUOUS"] for array in foreign.values())
    jax.tree.map(np.testing.assert_array_equal, rows.import_tensors(table, foreign, names), params)


@pytest.mark.parametrize("network", TABLES)
def test_every_logical_axis_has_a_rule_and_names_are_unique(network):
    table = TABLES[network]
    assert {axis for row in table for axis in row.axes} <= {None, *partition.RULES}
    for names in rows.NAMES:
        foreign = [name for row in table for name in row.foreign_names(names)]
        assert len(foreign) == len(set(foreign))


def test_official_transformer_names_import_to_the_same_parameters():
    table, params = TABLES["dit"], dit_case.params()
    expected = dict(OFFICIAL_OUTSIDE)
    expected.update({f"blocks.{i}.{name}": shape for i in range(2) for name, shape in OFFICIAL_BLOCK.items()})
    official = rows.export_tensors(table, params, "official")
    assert {name: array.shape for name, array in official.items()} == expected
    np.testing.assert_array_equal(official["blocks.1.ffn.0.weight"], params["blocks"]["ffn"]["in"]["kernel"][1].T)
    jax.tree.map(np.testing.assert_array_equal, rows.import_tensors(table, official, "official"), params)


def test_one_error_lists_missing_unexpected_and_wrong_shaped_tensors_with_nearest_names():
    table = TABLES["dit"]
    foreign = rows.export_tensors(table, dit_case.params())
    foreign["blocks.1.attn1.to_kk.weight"] = foreign.pop("blocks.1.attn1.to_k.weight")
    foreign["proj_out.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError) as error:
        rows.import_tensors(table, foreign)
    message = str(error.value)
    assert "3 tensors" in message
    assert "missing blocks.1.attn1.to_k.weight (nearest: blocks.1.attn1.to_kk.weight)" in message
    assert "unexpected blocks.1.attn1.to_kk.weight (nearest: blocks.1.attn1.to_k.weight)" in message
    assert "wrong shape proj_out.bias: (7,), expected (20,)" in message


def test_import_keeps_the_stored_dtype_and_asks_a_reader_for_shapes_without_reading():
    table = TABLES["dit"]
    foreign = {k: v.astype(jnp.bfloat16) for k, v in rows.export_tensors(table, dit_case.params()).items()}

    class Reader(dict):
        reads = 0

        def shape_of(self, name):
            return self.get(name).shape

        def __getitem__(self, name):
            Reader.reads += 1
            return super().__getitem__(name)

    params = rows.import_tensors(table, Reader(foreign))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert Reader.reads <= len(foreign) + len(table)


def test_bad_rows_and_arguments_are_refused():
    with pytest.raises(ValueError, match="logical axes"):
        rows.Row(("a",), (2, 3), (None,), "a", "a")
    with pytest.raises(ValueError, match="layout 'flat'"):
        rows.Row(("a",), (2,), (None,), "a", "a", "flat")
    with pytest.raises(ValueError, match="exactly when the row is stacked"):
        rows.Row(("a",), (2,), (None,), "a", "a", stacked=3)
    row = rows.Row(("a",), (2,), (None,), "a.{i}", "b.{i}", stacked=3)
    with pytest.raises(ValueError, match="needs 3 foreign tensors, got 1"):
        rows.to_ours(row, [np.zeros(2)])
    with pytest.raises(ValueError, match="naming 'comfy'"):
        row.foreign_names("comfy")
    with pytest.raises(ValueError, match="two rows have the path a"):
        rows.tree((row, row), lambda row: 0)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(3, 2\)"):
        rows.export_tensors((row,), {"a": np.zeros((2, 2))})
