"""Intervals of scores over resampled conditions (S2, last paragraph). They serve as intervals only, not as ceilings."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from samsvae.errors import DataError
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS

DRAWS = 1000


class Interval(NamedTuple):
    """A mean over ``n`` conditions, and the 2.5 and 97.5 % of the means of resampled conditions."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(
    values: np.ndarray,
    *,
    over: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    least: int = LEAST_CONDITIONS,
) -> Interval:
    """Mean of ``values`` (S,) and its interval: conditions drawn by ``default_rng(seed).integers(0, S, (draws, S))``.

    ``over`` (S,): denominators, for scores that are a ratio of sums such as nmse; each draw is then a ratio of sums.
    NaN values (a constant truth) leave first. All are NaN if fewer than ``least`` are left, and if a sum in the
    denominator is not positive. DataError for other shapes.
    """
    values = np.asarray(values, float)
    below = np.ones_like(values) if over is None else np.asarray(over, float)
    if values.ndim != 1 or below.shape != values.shape:
        raise DataError(
            f"Values to resample must be one per condition; their shapes are {values.shape}, {below.shape}."
        )
    keep = ~(np.isnan(values) | np.isnan(below))
    values, below, n = values[keep], below[keep], int(keep.sum())
    if n < least or below.sum() <= 0:
        return Interval(np.nan, np.nan, np.nan, n)
    drawn = _resampled(n, draws, seed)
    if over is None:
        mean, means = values.mean(), values[drawn].mean(1)
    else:
        bottom = below[drawn].sum(1)
        mean = values.sum() / below.sum()
        means = np.divide(values[drawn].sum(1), bottom, out=np.full(draws, np.nan), where=bottom > 0)
    low, high = np.percentile(means, (2.5, 97.5))  # NaN if one draw is undefined
    return Interval(float(mean), float(low), float(high), n)


@lru_cache(maxsize=8)
def _resampled(n: int, draws: int, seed: int) -> np.ndarray:
    """Positions of the resampled conditions (draws, n); do not write to them. Drawing them takes most of the time."""
    return np.random.default_rng(seed).integers(0, n, (draws, n))


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, over: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Mean of a - b over the same conditions, (S,) each, with its interval; ``over`` as in bootstrap (S2).

    Compare models within a split and a seed. DataError if the shapes differ, or if one side alone is NaN: score both on
    the conditions that both predict.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        raise DataError(
            "Two models can be compared only on the same conditions; score both on those that both predict."
        )
    return bootstrap(a - b, over=over, draws=draws, seed=seed)
