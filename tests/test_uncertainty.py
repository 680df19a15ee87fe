"""Intervals cover what they promise, and the paired test errs as often as it may."""

import numpy as np
import pytest

from wanjax.uncertainty import bootstrap_interval, holm, sign_flip_p, wilson_interval


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    draws = rng.normal(2.0, 1.0, (300, 40))
    covered = sum(low <= 2.0 <= high for low, high in (bootstrap_interval(values) for values in draws))
    assert 270 <= covered <= 297


def test_one_value_has_no_interval_and_equal_values_a_narrow_one():
    assert bootstrap_interval(np.array([0.3])) is None
    assert bootstrap_interval(np.full(5, 0.25)) == [0.25, 0.25]


def test_the_sign_flip_test_is_exact_for_few_pairs():
    assert sign_flip_p(np.ones(5)) == pytest.approx(2 / 32)
    assert sign_flip_p(np.array([1.0, 1.0, 1.0, -1.0])) == pytest.approx(10 / 16)
    assert sign_flip_p(np.zeros(8)) == 1.0
    assert sign_flip_p(np.array([])) == 1.0


def test_the_sign_flip_test_is_wrong_five_times_in_a_hundred():
    rng = np.random.default_rng(2)
    false = sum(sign_flip_p(rng.normal(0, 1, 8)) < 0.05 for _ in range(300))
    found = sum(sign_flip_p(rng.normal(1.5, 1, 8)) < 0.05 for _ in range(50))
    assert 3 <= false <= 24
    assert found >= 40


def test_holm_adjusts_as_published():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_a_share_of_all_or_none_still_has_an_interval():
    low, high = wilson_interval(32, 32)
    assert high == 1.0
    assert low == pytest.approx(0.893, abs=1e-3)
    assert wilson_interval(0, 32)[1] == pytest.approx(1 - low)
