"""Coverage of a model's intervals of effects, when the truth is itself an estimate (S8 of docs/evaluation.md).

Letters: S draws of the global latents, C conditions, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import special

from samsvae.errors import DataError
from samsvae.evaluation.metrics.checked import checked
from samsvae.evaluation.metrics.constants import LEVELS, TOP

#: The names that `coverage` returns.
COVERAGE_SCORES = (
    *("n", "n_top", "pit_mean", "posterior_share"),
    *(f"{name}{level}" for name in ("coverage", "coverage_top", "naive") for level in LEVELS),
)


@dataclass(frozen=True)
class Intervals:
    """What `coverage` needs of a posterior and a truth, per condition and gene."""

    u: np.ndarray  #: (C, G), predictive CDF at the observed effect; NaN where its standard error is not positive
    mean: np.ndarray  #: (C, G), of the effect under the posterior
    variance: np.ndarray  #: (C, G), of the effect under the posterior
    se2: np.ndarray  #: (C, G), squared standard error of the observed effect
    inside: np.ndarray  #: (3, C, G) bool, observed effect inside the interval of the posterior alone, per level


def posterior_intervals(draws: np.ndarray, observed: np.ndarray, se2: np.ndarray) -> Intervals:
    """Place observed effects in the posterior of each effect (S8); memory beyond the arguments is that of a condition.

    ``draws`` (S, C, G): effects, an expectation over cells for each draw of the global latents. ``observed`` and
    ``se2`` (C, G): effects of held-out cells and their squared standard errors, at the detected genes. u is the mean
    over draws of Phi((observed - draw) / se). Where se2 is 0 or the truth is NaN, u is NaN and nothing is scored.

    DataError if shapes differ, with fewer than two draws, for draws that are not finite or negative se2.
    """
    draws = np.asarray(draws)
    if draws.ndim != 3 or len(draws) < 2:
        raise DataError(f"draws has the shape {draws.shape}, but it must be (S, C, G) with at least two draws.")
    observed, se2 = _truth(observed, se2, draws.shape[1:])
    error = np.sqrt(np.where(se2 > 0, se2, np.nan))
    u, mean, variance = (np.empty(observed.shape) for _ in range(3))
    inside = np.empty((len(LEVELS), *observed.shape), bool)
    for c in range(len(observed)):
        drawn = checked(f"draws of condition {c}", draws[:, c], ("S", "G"))
        u[c] = special.ndtr((observed[c] - drawn) / error[c]).mean(0)
        mean[c], variance[c] = drawn.mean(0), drawn.var(0, ddof=1)
        low, high = np.quantile(drawn, _tails(), axis=0).reshape(2, len(LEVELS), -1)
        inside[:, c] = (observed[c] >= low) & (observed[c] <= high)
    return Intervals(u, mean, variance, se2, inside)


def normal_intervals(mean: np.ndarray, variance: np.ndarray, observed: np.ndarray, se2: np.ndarray) -> Intervals:
    """`posterior_intervals` in the limit of many draws from normal posteriors of given mean and variance (C, G) (S8).

    With the training effects and their squared standard errors it is the yardstick by which a model is judged.
    DataError if shapes differ, or for a negative variance.
    """
    mean = checked("mean", mean, ("C", "G"), finite=False)
    observed, se2 = _truth(observed, se2, mean.shape)
    variance = _not_negative("variance", checked("variance", variance, mean.shape, finite=False))
    total = np.sqrt(np.where(se2 > 0, se2 + variance, np.nan))
    bound = special.ndtri(_tails()[len(LEVELS) :])[:, None, None] * np.sqrt(variance)
    return Intervals(special.ndtr((observed - mean) / total), mean, variance, se2, np.abs(observed - mean) <= bound)


def join(parts: Sequence[Intervals]) -> Intervals:
    """Join the intervals of blocks of conditions, in their order. DataError if there is none."""
    if not parts:
        raise DataError("There are no intervals to join; at least one block of conditions is needed.")
    return Intervals(
        *(np.concatenate([getattr(part, field.name) for part in parts], axis=-2) for field in fields(Intervals))
    )


def coverage(intervals: Intervals) -> dict[str, float]:
    """Share of observed effects inside the intervals, by the names of `COVERAGE_SCORES` (S8).

    All are over the genes with a positive standard error, ``n`` in number, pooled over conditions:

    * ``coverage``: share of abs(u - 0.5) <= level / 2, at the levels 0.5, 0.8 and 0.95;
    * ``coverage_top``: the same for the 20 genes of each condition of largest abs(posterior mean), ties by gene order;
      ``n_top`` of these have a positive standard error;
    * ``naive``: share inside the posterior's own quantiles, which ignore the error of the truth;
    * ``pit_mean``: mean of u, 0.5 without bias;
    * ``posterior_share``: sum of the posterior variances over that sum plus the sum of se2.

    They are NaN if no gene is left.
    """
    mean = np.asarray(intervals.mean)
    order = np.argsort(-np.abs(mean), axis=1, kind="stable")[:, :TOP]  # NaN last
    top = np.zeros(mean.shape, bool)
    np.put_along_axis(top, order, True, axis=1)
    scored = np.isfinite(intervals.u)
    top &= scored
    u, spread, noise = intervals.u[scored], intervals.variance[scored].sum(), intervals.se2[scored].sum()
    found = {
        "n": float(scored.sum()),
        "n_top": float(top.sum()),
        "pit_mean": _mean(u),
        "posterior_share": float(spread / (spread + noise)) if len(u) else np.nan,
    }
    for level, inside in zip(LEVELS, intervals.inside, strict=True):
        found[f"coverage{level}"] = _mean(np.abs(u - 0.5) <= level / 2)
        found[f"coverage_top{level}"] = _mean(np.abs(intervals.u[top] - 0.5) <= level / 2)
        found[f"naive{level}"] = _mean(inside[scored])
    return {name: found[name] for name in COVERAGE_SCORES}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _tails() -> np.ndarray:
    """The probabilities of the lower ends of the intervals, then of the upper ends."""
    levels = np.array(LEVELS)
    return np.concatenate([(1 - levels) / 2, (1 + levels) / 2])


def _truth(observed: np.ndarray, se2: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    observed = checked("observed", observed, shape, finite=False)
    return observed, _not_negative("se2", checked("se2", se2, shape, finite=False))


def _not_negative(name: str, values: np.ndarray) -> np.ndarray:
    if (values < 0).any():
        raise DataError(f"{name} has the negative value {values[values < 0][0]:g}; it must be a squared error.")
    return values
