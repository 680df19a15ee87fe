"""The rotary embedding: Wan's split of the head, exact tables, and attention that sees distances only."""

import numpy as np
import pytest

from wanjax.models import rope


@pytest.mark.parametrize(("head_dim", "dims"), [(128, (44, 42, 42)), (16, (8, 4, 4)), (40, (16, 12, 12))])
def test_head_splits_over_time_height_width(head_dim, dims):
    assert rope.axis_dims(head_dim) == dims


@pytest.mark.parametrize("head_dim", [4, 15])
def test_head_that_cannot_split_is_refused(head_dim):
    with pytest.raises(ValueError, match=f"head_dim {head_dim}"):
        rope.axis_dims(head_dim)


def test_each_axis_has_its_own_ladder_and_width_runs_fastest():
    grid, head_dim = (3, 4, 5), 16
    cos, sin = rope.tables(grid, head_dim)
    token = (2 * 4 + 3) * 5 + 1  # frame 2, row 3, column 1
    expected = np.concatenate(
        [2 * 10000.0 ** (-np.arange(0, 8, 2) / 8), 3 * 10000.0 ** (-np.arange(0, 4, 2) / 4), [1, 0.01]]
    )
    np.testing.assert_allclose(cos[token], np.cos(expected), atol=6e-8)
    np.testing.assert_allclose(sin[token], np.sin(expected), atol=6e-8)
    assert cos.dtype == sin.dtype == np.float32


def test_pairs_are_interleaved():
    x = np.zeros((1, 1, 1, 16), np.float32)
    x[..., 2] = 1.0
    cos, sin = np.full((1, 8), 0.6, np.float32), np.full((1, 8), 0.8, np.float32)
    out = np.asarray(rope.rotate(x, cos, sin))[0, 0, 0]
    assert out[2] == np.float32(0.6) and out[3] == np.float32(0.8) and np.count_nonzero(out) == 2


def test_products_of_rotated_vectors_depend_on_the_distance_only():
    grid = (4, 4, 4)
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.standard_normal(16).astype(np.float32), (1, 64, 1, 16)) for _ in range(2))
    tables = rope.tables(grid, 16)
    q, k = np.asarray(rope.rotate(q, *tables)), np.asarray(rope.rotate(k, *tables))
    products = (q[0, :, 0] @ k[0, :, 0].T).reshape(*grid, *grid)
    assert products[0, 1, 2, 1, 3, 0] == pytest.approx(products[2, 0, 3, 3, 2, 1], abs=1e-5)
    assert abs(products[0, 1, 2, 1, 3, 0] - products[0, 1, 2, 1, 3, 1]) > 1e-3
