"""How much of an observed effect is signal, and the scores that the best predictors can reach (S2).

Letters: G genes, S scored conditions. Effects and squared standard errors are those of estimates.at_reference.
"""

from __future__ import annotations

import numpy as np

from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS
from samsvae.evaluation.metrics.estimates import checked_effects


def reliability(delta: np.ndarray, se2: np.ndarray) -> np.ndarray:
    """Share of signal in each condition's effects over genes, 1 - sum e^2 / sum (d - mean d)^2 (S2): (S,).

    ``delta``, ``se2`` (S, G). Below 0 where no effect can be measured; NaN for a constant effect. DataError for other
    shapes or undefined values.
    """
    checked_effects(delta, se2, least=0)
    return 1 - _ratio(se2.sum(1), _spread(delta))


def reliability_pooled(delta: np.ndarray, se2: np.ndarray, *, least: int = LEAST_CONDITIONS) -> float:
    """The same over conditions and genes at once (S2). DataError also for fewer than ``least`` conditions."""
    checked_effects(delta, se2, least=least)
    return float(1 - _ratio(se2.sum(), _spread(delta.ravel())))


def share_of_signal(delta_all: np.ndarray, se2_all: np.ndarray, se2: np.ndarray) -> np.ndarray:
    """Reliability of effects with the error ``se2``, their signal taken from all cells (S2): (S,).

    ``delta_all``, ``se2_all`` (S, G): effects of all cells, in any split or none. ``se2`` (S, G): of the test (or the
    training) cells. NaN if there is neither signal nor error.
    """
    checked_effects(delta_all, se2_all, se2, least=0)
    signal = np.maximum(0, _spread(delta_all) - se2_all.sum(1))
    return _ratio(signal, signal + se2.sum(1))


def ceiling_perfect(delta_all: np.ndarray, se2_all: np.ndarray, se2_test: np.ndarray) -> np.ndarray:
    """The correlation that a perfect predictor reaches with the test effects, sqrt(rho_test) (S2): (S,).

    The ceiling of a set is the mean over its conditions. A replicate as large as the test set reaches only rho_test.
    """
    return np.sqrt(share_of_signal(delta_all, se2_all, se2_test))


def fraction_of_range(score: np.ndarray, baseline: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """(score - baseline) / (ceiling - baseline) of means over conditions (S2), of one shape.

    May exceed 1; NaN without a range.
    """
    return _ratio(np.asarray(score) - baseline, np.asarray(ceiling) - baseline)


def _spread(values: np.ndarray) -> np.ndarray:
    """Sum of squares about the mean along the last axis; 0 for a constant, whose mean may be rounded."""
    total = ((values - values.mean(-1, keepdims=True)) ** 2).sum(-1)
    return np.where(np.ptp(values, -1) > 0, total, 0.0)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) != 0)
