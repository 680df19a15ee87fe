"""How sure a number is: intervals of shares and means, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["bootstrap_interval", "holm", "sign_flip_p", "wilson_interval"]

_FLIPS = 9999  # random sign flips, where there are more ways than that
_BATCH = 500


def wilson_interval(right: int, of: int) -> list[float]:
    """95 % interval [low, high] of a share (Wilson, 1927)."""
    z = 1.96
    middle = (right + z**2 / 2) / (of + z**2)
    half = z / (of + z**2) * (right * (of - right) / of + z**2 / 4) ** 0.5
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap_interval(values: np.ndarray, *, draws: int = 1000) -> list[float] | None:
    """95 % percentile interval [low, high] of the mean of ``values [N]``, drawn anew with replacement.

    None for fewer than two values, which say nothing of their spread. The same values give the same interval.

    References:
      Efron, Bootstrap methods: another look at the jackknife, 1979.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    picked = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picked].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of paired ``differences [N]`` having mean zero, by flipping their signs.

    All 2^N flips where these are fewer than 10,000, else that many random ones (seeded). With fewer than six pairs it
    cannot fall below 0.05.

    References:
      Fisher, The Design of Experiments, 1935, section 21.
    """
    differences = np.asarray(differences, np.float64)
    if not len(differences) or not differences.any():
        return 1.0
    test = stats.permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=_BATCH,
        random_state=np.random.default_rng(0),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for there being several, in the order given (Holm, 1979)."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
