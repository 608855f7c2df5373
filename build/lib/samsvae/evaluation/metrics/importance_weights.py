"""Importance-weighted bounds, their errors, and how far the weights can be trusted (S10 of docs/evaluation.md).

Letters: K particles, n cells, M largest weights of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samsvae.errors import DataError
from samsvae.evaluation.metrics.checked import checked

#: Particles of the bounds.
SIZES = (1, 10, 100, 1000, 10000)

#: Blocks that the error of a bound needs; two bounds are compared at the largest size that has as many.
BLOCKS = 10

#: Above this Pareto k, a sum of weights cannot be trusted.
HEAVY = 0.7

#: Largest share of cells with such weights, with which two bounds can still be told apart.
HEAVY_SHARE = 0.1

_SMALLEST = -690.0  # log of the least ratio to the largest exceedance: a lower one underflows, and k is far above 0.7
_BLOCK = 2**20  # values of the fit at a time, to save memory


@dataclass(frozen=True)
class Bound:
    """IWELBO of ``size`` particles: mean over cells and blocks, in nats."""

    size: int
    value: float  #: NaN with fewer particles than ``size``
    error: float  #: spread of the blocks, sd / sqrt(blocks); NaN with fewer than two blocks or infinite bounds
    blocks: int  #: disjoint blocks of ``size`` particles


@dataclass(frozen=True)
class WeightSummary:
    """Bounds by size, and what all particles say about each cell (n,)."""

    bounds: dict[int, Bound]
    log_evidence: np.ndarray  #: (n,), log of the mean weight of all particles
    ess: np.ndarray  #: (n,), effective sample size (sum w)^2 / sum w^2; NaN if all weights are 0
    pareto_k: np.ndarray  #: (n,), NaN where `pareto_k` is

    def scores(self) -> dict[str, float]:
        """``ess_median``, ``ess_5``, ``ess_below_10`` and ``pareto_above_0.7``: shares are of the defined cells.

        A score is NaN if its quantity is undefined for every cell.
        """
        ess, shape = (values[~np.isnan(values)] for values in (self.ess, self.pareto_k))
        return {
            "ess_median": float(np.median(ess)) if len(ess) else np.nan,
            "ess_5": float(np.quantile(ess, 0.05)) if len(ess) else np.nan,
            "ess_below_10": float(np.mean(ess < 10)) if len(ess) else np.nan,
            f"pareto_above_{HEAVY}": float(np.mean(shape > HEAVY)) if len(shape) else np.nan,
        }


class ImportanceWeights:
    """Sums over particles that arrive block by block; memory does not depend on their number, except for M (S10)."""

    def __init__(self, particles: int, n_cells: int, sizes: Sequence[int] = SIZES):
        """``particles``: how many will be added in all, which sets M; ``sizes``: of the bounds."""
        if min(particles, n_cells, *sizes) < 1:
            raise DataError("The numbers of particles and cells and all sizes of bounds must be at least 1.")
        self.particles, self.n_cells, self.added = particles, n_cells, 0
        self._tail = tail_size(particles)
        self._largest = np.full((0, n_cells), -np.inf)
        self._sum, self._squares = np.full(n_cells, -np.inf), np.full(n_cells, -np.inf)
        self._open = {size: np.full(n_cells, -np.inf) for size in sizes}
        self._means: dict[int, list[float]] = {size: [] for size in sizes}

    def add(self, log_weights: np.ndarray) -> None:
        """Add the log weights (k, n) of the next k particles, in their order.

        DataError for another shape, for NaN or plus infinity (a weight may be 0), or beyond ``particles``.
        """
        block = checked("log_weights", log_weights, ("k", self.n_cells), finite=False)
        if (wrong := np.isnan(block) | (block == np.inf)).any():
            particle, cell = np.argwhere(wrong)[0]
            raise DataError(
                f"log_weights is {block[particle, cell]} at particle {self.added + particle} of cell {cell}; a log "
                "weight must be finite or minus infinity."
            )
        if self.added + len(block) > self.particles:
            raise DataError(f"{self.added + len(block)} particles were added, but {self.particles} were announced.")
        for size, means in self._means.items():
            first = size - self.added % size  # particles that the open block still lacks
            starts = np.array([0, *range(first, len(block), size)])
            sums = np.logaddexp.reduceat(block, starts, axis=0)
            sums[0] = np.logaddexp(sums[0], self._open[size])
            complete = len(starts) - ((self.added + len(block)) % size > 0)
            means += (sums[:complete].mean(1) - math.log(size)).tolist()
            self._open[size] = sums[-1] if complete < len(starts) else np.full(self.n_cells, -np.inf)
        self._sum = np.logaddexp(self._sum, np.logaddexp.reduce(block, axis=0))
        self._squares = np.logaddexp(self._squares, np.logaddexp.reduce(2 * block, axis=0))
        largest = np.concatenate([self._largest, block])
        keep = self._tail + 1  # with the largest weight below the tail
        self._largest = largest if len(largest) <= keep else np.partition(largest, -keep, axis=0)[-keep:]
        self.added += len(block)

    def summary(self) -> WeightSummary:
        """The bounds and diagnostics of all particles. DataError if some that were announced are missing."""
        if self.added != self.particles:
            raise DataError(f"{self.added} particles were added, but {self.particles} were announced.")
        with np.errstate(invalid="ignore"):
            ess = np.exp(2 * self._sum - self._squares)
        shape = pareto_k(self._largest) if self._tail < len(self._largest) else np.full(self.n_cells, np.nan)
        bounds = {size: _bound(size, means) for size, means in self._means.items()}
        return WeightSummary(bounds, self._sum - math.log(self.particles), ess, shape)


def importance_weights(log_weights: np.ndarray, sizes: Sequence[int] = SIZES) -> WeightSummary:
    """Bounds and diagnostics of log weights (K, n), one row per particle (S10).

    DataError as `ImportanceWeights.add`.
    """
    log_weights = checked("log_weights", log_weights, ("K", "n"), finite=False)
    particles, n_cells = log_weights.shape
    weights = ImportanceWeights(particles, n_cells, sizes)
    weights.add(log_weights)
    return weights.summary()


def _bound(size: int, means: list[float]) -> Bound:
    if not means:
        return Bound(size, np.nan, np.nan, 0)
    defined = len(means) > 1 and np.isfinite(means).all()
    error = float(np.std(means, ddof=1) / math.sqrt(len(means))) if defined else np.nan
    return Bound(size, float(np.mean(means)), error, len(means))


def tail_size(particles: int) -> int:
    """M: weights in the tail of K particles, min(floor(K / 5), ceil(3 sqrt(K)))."""
    return min(particles // 5, math.ceil(3 * math.sqrt(particles)))


def pareto_k(largest: np.ndarray) -> np.ndarray:
    """Shape k of the generalised Pareto distribution of each cell's largest weights, (n,) (S10).

    ``largest`` (M + 1, n): the M + 1 largest log weights in any order; the smallest is the threshold. Zhang and
    Stephens' estimate (2009), in the sign in which heavy tails have large k, shrunk to (k M + 5) / (M + 10). NaN with
    fewer than five weights above the threshold's place, and where the lowest quarter of them equals the threshold, as
    in constant weights.
    """
    largest = np.sort(checked("largest", largest, ("M + 1", "n"), finite=False), axis=0)
    n_tail, n = len(largest) - 1, largest.shape[1]
    out = np.full(n, np.nan)
    if n_tail < 5:
        return out
    grid = 30 + math.isqrt(n_tail)
    step = max(1, _BLOCK // (grid * n_tail))
    for start in range(0, n, step):
        block = largest[:, start : start + step]
        with np.errstate(invalid="ignore", divide="ignore"):
            above = block[1:] + np.log(-np.expm1(block[0] - block[1:]))  # log exceedances, -inf for ties
            relative = above - above[-1]
        ratios = np.where(above > -np.inf, np.exp(np.maximum(relative, _SMALLEST)), 0.0)
        defined = np.flatnonzero(ratios[math.floor(n_tail / 4 + 0.5) - 1] > 0)
        out[start + defined] = _shape(ratios[:, defined].T, grid)
    return (out * n_tail + 5) / (n_tail + 10)


def _shape(x: np.ndarray, grid: int) -> np.ndarray:
    """Zhang and Stephens' k of sorted exceedances x (n, M), whose largest is 1: (n,)."""
    n_tail = x.shape[1]
    quarter = x[:, math.floor(n_tail / 4 + 0.5) - 1]
    j = np.arange(1, grid + 1)
    theta = 1 / x[:, -1:] + (1 - np.sqrt(grid / (j - 0.5))) / (3 * quarter[:, None])  # (n, grid)
    k = np.log1p(-theta[:, :, None] * x[:, None, :]).mean(2)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = n_tail * (np.log(-theta / k) - k - 1)
    profile = np.where(np.isnan(profile), -np.inf, profile)
    weight = np.exp(profile - profile.max(1, keepdims=True))
    best = (theta * weight).sum(1) / weight.sum(1)
    return np.log1p(-best[:, None] * x).mean(1)


def comparison_size(*bounds: Mapping[int, Bound]) -> int | None:
    """The largest size at which all models have at least 10 blocks, or None: bounds are compared there (S10)."""
    shared = set.intersection(*(set(found) for found in bounds)) if bounds else set()
    return max((size for size in shared if all(found[size].blocks >= BLOCKS for found in bounds)), default=None)


def undecided(difference: float, error: float, heavy_shares: Sequence[float]) -> bool:
    """Whether a difference of two bounds decides nothing (S10).

    It does not if it is below twice its error (the root of the sum of both squared block errors), if more than a tenth
    of the cells of a model have a Pareto k above 0.7 (``heavy_shares``), or if one of these is undefined.
    """
    if not (math.isfinite(difference) and math.isfinite(error)):
        return True
    return abs(difference) < 2 * error or any(not share <= HEAVY_SHARE for share in heavy_shares)
