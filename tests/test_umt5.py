"""The text encoder: same numbers as transformers, padding that does not matter, exact buckets."""

import math

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import umt5_case
from wanjax.models import rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.umt5 import UMT5Config, UMT5Encoder, relative_position_buckets

ENCODER = UMT5Encoder(umt5_case.CONFIG)
APPLY = jax.jit(ENCODER.apply)


@pytest.fixture(scope="module")
def variables():
    return {"params": rows.import_tensors(umt5_rows(umt5_case.CONFIG), umt5_case.foreign_params())}


def test_features_are_transformers(variables):
    recorded = load_file(umt5_case.RECORDED)["features"]
    features = np.asarray(APPLY(variables, *umt5_case.inputs()))[:, ::9]
    assert np.abs(recorded).max() > 1  # O(1) outputs
    np.testing.assert_allclose(features, recorded, atol=2e-5, rtol=0)


def test_padding_gives_zeros_and_does_not_matter(variables):
    ids, mask = umt5_case.inputs()
    features = np.asarray(APPLY(variables, ids, mask))
    assert np.all(features[~mask] == 0)
    assert np.all(np.abs(features[mask]).max(axis=-1) > 0)
    other = np.asarray(APPLY(variables, np.where(mask, ids, 3), mask))
    np.testing.assert_array_equal(features, other)
    shorter = np.asarray(APPLY(variables, ids[2:, :9], mask[2:, :9]))
    np.testing.assert_allclose(shorter[0], features[2, :9], atol=2e-5, rtol=0)


def test_buckets_of_a_half_are_exact_then_logarithmic():
    table = relative_position_buckets(300, 32, 128)
    after = table[0]  # keys after the first query
    assert after[0] == 0 and list(after[1:8]) == list(range(17, 24))
    # log2 of distance / 8 reaches a whole number at 16, 32, 64: a new bucket begins exactly there
    assert [int(np.argmax(after == 16 + bucket)) for bucket in (8, 10, 12, 14)] == [8, 16, 32, 64]
    assert after[127] == after[299] == 31
    np.testing.assert_array_equal(table[:, 0][1:], after[1:] - 16)  # keys before the query: the lower half


@pytest.mark.parametrize("buckets, distance", [(32, 128), (16, 64), (8, 20), (64, 512)])
def test_buckets_follow_the_formula_where_float64_can_tell(buckets, distance):
    half, exact = buckets // 2, buckets // 4
    after = relative_position_buckets(2 * distance, buckets, distance)[0]
    for d in range(exact, 2 * distance):
        place = math.log(d / exact) / math.log(distance / exact) * (half - exact)
        if abs(place - round(place)) > 1e-9:
            assert after[d] == half + min(exact + math.floor(place), half - 1)


def test_rows_are_the_parameters_that_init_makes():
    config = UMT5Config(vocab_size=20, d_model=12, d_kv=4, d_ff=10, num_heads=2, num_layers=3, param_dtype="bfloat16")
    made = jax.eval_shape(UMT5Encoder(config).init, jax.random.key(0))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(made, rows.shapes(umt5_rows(config), "bfloat16"))
    jax.tree.map(lambda axes, leaf: chex.assert_rank(leaf, len(axes)), rows.logical_axes(umt5_rows(config)), made,
                 is_leaf=lambda node: isinstance(node, tuple))


def test_the_real_encoder_has_its_size_without_being_made():
    assert rows.count(umt5_rows(UMT5Config())) == 5_680_910_336


def test_bfloat16_compute_stays_close(variables):
    ids, mask = umt5_case.inputs()
    encoder = UMT5Encoder(UMT5Config(**{**vars(umt5_case.CONFIG), "dtype": "bfloat16"}))
    features = np.asarray(jax.jit(encoder.apply)(variables, ids[2:, :9], mask[2:, :9]))
    exact = np.asarray(APPLY(variables, ids[2:, :9], mask[2:, :9]))
    assert features.dtype == np.float32
    assert 0 < np.abs(features - exact).mean() < 0.05


@pytest.mark.parametrize("field, value", [("d_model", 0), ("num_layers", -1), ("layer_norm_epsilon", 0.0),
                                          ("relative_attention_num_buckets", 30), ("dtype", "float8")])
def test_sizes_that_cannot_work_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        UMT5Config(**{field: value})
