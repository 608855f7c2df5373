"""Scores of predicted effects and of their intervals, and the best scores that can be reached (S2, S3, S5, S8).

Letters: n cells, C conditions (rows by code, NaN where undefined), G genes. S scored conditions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from samsvae.evaluation.metrics.agreement import LEAST_RELIABILITY, nmse_terms, pearson
from samsvae.evaluation.metrics.coverage import Intervals, coverage, normal_intervals
from samsvae.evaluation.metrics.discrimination import discrimination
from samsvae.evaluation.metrics.estimates import REFERENCES, at_reference, centred
from samsvae.evaluation.metrics.intervals import Interval
from samsvae.evaluation.metrics.reliability import ceiling_perfect, reliability_pooled
from samsvae.evaluation.score_tables import SCORES, Score, Scored, row, undefined_score
from samsvae.evaluation.truth import Truth


def scores(truth: Truth, predicted: np.ndarray) -> Iterator[Scored]:
    """Every score of predicted effects (C, G): metric, set, scored conditions (S,) as codes, and the score.

    A set is scored on the conditions with a prediction. A score that is undefined has a reason.
    """
    known = np.isfinite(predicted).all(1)
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows & known)
        few = "fewer than 3 conditions are predicted" if len(at) < 3 else ""
        for reference in REFERENCES:
            if few:
                for metric in (f"pearson_{reference}", f"nmse_{reference}"):
                    yield metric, name, at, undefined_score(at, few)
                continue
            delta, se2 = at_reference(truth.test, at, reference)
            prediction = centred(predicted[at], reference)
            yield f"pearson_{reference}", name, at, Score(pearson(delta, prediction))
            unreliable = _unreliable(delta, se2)
            error = undefined_score(at, unreliable) if unreliable else Score(*nmse_terms(delta, se2, prediction))
            yield f"nmse_{reference}", name, at, error
        every_gene = "every gene is a target" if len(truth.targets) == truth.test.delta.shape[1] else ""
        if few or every_gene:
            yield "discrimination", name, at, undefined_score(at, few or every_gene)
        else:  # the last reference is the centred one
            yield "discrimination", name, at, Score(discrimination(delta, prediction, targets=truth.targets))


def _unreliable(delta: np.ndarray, se2: np.ndarray) -> str:
    """Why errors relative to the size of effects are undefined, or ''."""
    share = reliability_pooled(delta, se2)
    return "" if share >= LEAST_RELIABILITY else f"the pooled reliability of the effects is {share:.2f}, below 0.1"


def ceilings(truth: Truth) -> Iterator[Scored]:
    """The scores of a perfect prediction: metric, set, scored conditions, score (S2)."""
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows)
        for reference in REFERENCES:
            every, error = at_reference(truth.every, at, reference)
            delta, test_error = at_reference(truth.test, at, reference)
            yield f"pearson_{reference}", name, at, Score(ceiling_perfect(every, error, test_error))
            unreliable = _unreliable(delta, test_error)
            yield (
                f"nmse_{reference}",
                name,
                at,
                undefined_score(at, unreliable) if unreliable else Score(np.zeros(len(at))),
            )
        yield "discrimination", name, at, Score(np.ones(len(at)))


def coverage_rows(intervals: Intervals, name: str) -> pd.DataFrame:
    """Coverage of the intervals of effects in the conditions of a set (S8), as a table of SCORES."""
    rows = [
        row(
            metric,
            name,
            Interval(value, np.nan, np.nan, len(intervals.u)),
            "" if np.isfinite(value) else "no gene has a standard error above 0",
        )
        for metric, value in coverage(intervals).items()
    ]
    return pd.DataFrame(rows, columns=list(SCORES))


def yardstick(truth: Truth) -> Intervals:
    """The intervals of the training effects with their own errors, by which the coverage of a model is judged (S8)."""
    at = np.flatnonzero(truth.sets.get("seen", np.zeros(len(truth.names), bool)))
    mean, variance, observed, se2 = (
        values[at][:, truth.genes] for values in (truth.train.delta, truth.train.se2, truth.test.delta, truth.test.se2)
    )
    return normal_intervals(mean, variance, observed, se2)
