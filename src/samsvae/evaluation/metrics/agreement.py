"""Agreement of predicted effects with observed ones (S3).

Letters: G genes, S scored conditions. Truth and prediction are at the same reference (estimates.at_reference and
estimates.centred), each side minus its own mean if centred. A constant prediction scores 0, so that predicting nothing
is never better than being left out; a constant truth is NaN, for every predictor alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS
from samsvae.evaluation.metrics.estimates import Effects, at_reference, centred, checked_effects
from samsvae.evaluation.metrics.reliability import reliability_pooled

#: nmse is undefined where the pooled reliability is lower.
LEAST_RELIABILITY = 0.1

#: Vectors whose norm is not larger count as 0, and values that differ by no more (times their size) as constant.
TINY = 1e-12


class Agreement(NamedTuple):
    """Scores of one predictor at one reference: ``conditions`` name -> (S,), ``pooled`` name -> one number."""

    conditions: dict[str, np.ndarray]
    pooled: dict[str, float]


def agreement(
    truth: Effects,
    predicted: np.ndarray,
    rows: np.ndarray,
    reference: str,
    *,
    least_reliability: float | None = LEAST_RELIABILITY,
) -> Agreement:
    """All scores of S3: per condition pearson, cosine, r2, mse; pooled pearson_pooled, nmse.

    ``truth``: effects (C, G) of test cells. ``predicted`` (C, G): against the predictor's control. ``rows``: the scored
    conditions, indices or (C,) bool. ``reference``, errors: as in estimates.at_reference; DataError also for a
    prediction that is not finite. ``least_reliability`` as in nmse.
    """
    delta, se2 = at_reference(truth, rows, reference)
    prediction = np.asarray(predicted, float)[rows]
    checked_effects(delta, prediction)
    prediction = centred(prediction, reference)
    each = {name: score(delta, prediction) for name, score in PER_CONDITION.items()}
    pooled = {
        "pearson_pooled": pearson_pooled(delta, prediction),
        "nmse": nmse(delta, se2, prediction, least_reliability=least_reliability),
    }
    return Agreement(each, pooled)


def pearson(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation over genes of each condition (S3): (S,). A constant prediction is 0, a constant truth NaN.

    ``truth``, ``predicted`` (S, G). Constant: max - min <= 1e-12 max(1, max |.|). DataError for other shapes or values
    that are not finite.
    """
    checked_effects(truth, predicted, least=0)
    constant = [np.ptp(x, 1) <= TINY * np.maximum(1, np.abs(x).max(1)) for x in (truth, predicted)]
    a, b = (x - x.mean(1, keepdims=True) for x in (truth, predicted))
    return _scored((a * b).sum(1), np.sqrt((a**2).sum(1) * (b**2).sum(1)), *constant)


def pearson_pooled(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation over conditions and genes at once (S3); constants and errors as in pearson."""
    checked_effects(truth, predicted)
    return float(pearson(truth.reshape(1, -1), predicted.reshape(1, -1))[0])


def cosine(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Cosine over genes of each condition, without centring (S3): (S,). 0 for no prediction, NaN for no true effect."""
    checked_effects(truth, predicted, least=0)
    a, b = (np.linalg.norm(x, axis=1) for x in (truth, predicted))
    return _scored((truth * predicted).sum(1), a * b, a <= TINY, b <= TINY)


def r2(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 - residual / total over genes of each condition (S3): (S,). NaN for a constant truth."""
    checked_effects(truth, predicted, least=0)
    constant = np.ptp(truth, 1) <= TINY * np.maximum(1, np.abs(truth).max(1))
    total = ((truth - truth.mean(1, keepdims=True)) ** 2).sum(1)
    residual = ((truth - predicted) ** 2).sum(1)
    return 1 - np.divide(residual, total, out=np.full_like(total, np.nan), where=~constant)


def mse(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean squared error over genes of each condition (S3): (S,)."""
    checked_effects(truth, predicted, least=0)
    return ((truth - predicted) ** 2).mean(1)


def nmse(
    truth: np.ndarray,
    se2: np.ndarray,
    predicted: np.ndarray,
    *,
    least_reliability: float | None = LEAST_RELIABILITY,
    least: int = LEAST_CONDITIONS,
) -> float:
    """Squared error without the truth's sampling error, relative to the effects' own size (S3).

    sum [(p - d)^2 - e^2] / sum [d^2 - e^2] over conditions and genes: 0 is perfect, 1 is no effect (or, if centred, the
    mean effect); 1 - nmse is an R2 corrected for noise. ``truth``, ``se2``, ``predicted`` (S, G). The prediction is
    taken as it is: its own sampling error must be below 1 % of the sum of e^2. NaN where the pooled reliability is
    below ``least_reliability`` or undefined; None switches that rule off. DataError as in pearson, and for fewer than
    ``least`` conditions.
    """
    checked_effects(truth, se2, predicted, least=least)
    if least_reliability is not None and not reliability_pooled(truth, se2, least=least) >= least_reliability:
        return float("nan")
    error, size = (terms.sum() for terms in nmse_terms(truth, se2, predicted))
    return float(error / size) if size else float("nan")


def nmse_terms(truth: np.ndarray, se2: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of nmse for each condition, (S,) each: intervals.bootstrap takes their ratio (S3)."""
    checked_effects(truth, se2, predicted, least=0)
    return ((predicted - truth) ** 2 - se2).sum(1), (truth**2 - se2).sum(1)


#: The scores of each condition: truth and prediction (S, G) at one reference -> (S,).
PER_CONDITION = {"pearson": pearson, "cosine": cosine, "r2": r2, "mse": mse}


def _scored(product: np.ndarray, size: np.ndarray, no_truth: np.ndarray, no_prediction: np.ndarray) -> np.ndarray:
    """product / size; 0 without a prediction, NaN without a truth."""
    score = np.divide(product, size, out=np.zeros_like(product), where=~no_prediction & (size > 0))
    return np.where(no_truth, np.nan, score)
