"""Scores of the honest protocol as tables: by condition, and means over conditions with their intervals.

Letters: S scored conditions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae.evaluation.metrics.constants import HONEST
from samsvae.evaluation.metrics.intervals import Interval, bootstrap

#: Among the models of a split's table: the best scores that can be reached, and half of all cells as a prediction of
#: the other half, which is no perfect prediction.
CEILING, DUPLICATE = "ceiling", "technical_duplicate"

#: The columns of a table of scores by condition: for a ratio of sums, such as nmse, ``value`` is the numerator and
#: ``weight`` the denominator.
CONDITIONS = ("metric", "set", "condition", "value", "weight")

#: The columns of a table of scores: a mean over conditions with its interval, or why it is undefined.
SCORES = ("protocol", "metric", "set", "value", "low", "high", "n_conditions", "reason")


class Score(NamedTuple):
    """A score by condition: values (S,), weights (S,) if the mean is a ratio of sums, and why it is undefined.

    ``pooled``: one number over all conditions, for a score that no single condition has.
    """

    values: np.ndarray
    weights: np.ndarray | None = None
    reason: str = ""
    pooled: float | None = None

    def mean(self) -> Interval:
        if self.pooled is not None:
            return Interval(self.pooled, np.nan, np.nan, len(self.values))
        return bootstrap(self.values, over=self.weights)


#: A score with its place: metric, set, scored conditions (S,) as codes.
Scored = tuple[str, str, np.ndarray, Score]


def pooled_score(at: np.ndarray, value: float) -> Score:
    """A score of the conditions ``at`` (S,) together."""
    return Score(np.full(len(at), np.nan), pooled=value)


def undefined_score(at: np.ndarray, reason: str) -> Score:
    """A score that no condition of ``at`` (S,) has, and why."""
    return Score(np.full(len(at), np.nan), np.full(len(at), np.nan), reason)


def tables(names: np.ndarray, found: Iterable[Scored]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores as two tables: SCORES, and CONDITIONS. ``names`` (C,): of the conditions by code."""
    rows: list[dict[str, object]] = []
    parts: list[pd.DataFrame] = []
    for metric, where, at, score in found:
        rows.append(row(metric, where, score.mean(), score.reason))
        if score.pooled is not None:
            continue
        weight = np.ones(len(at)) if score.weights is None else score.weights
        columns = {"metric": metric, "set": where, "condition": names[at], "value": score.values, "weight": weight}
        parts.append(pd.DataFrame(columns))
    each = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CONDITIONS))
    return pd.DataFrame(rows, columns=list(SCORES)), each


def row(metric: str, where: str, mean: Interval, reason: str = "") -> dict[str, object]:
    """A row of SCORES; one without a value has a reason."""
    if not reason and not np.isfinite(mean.mean):
        reason = "fewer than 3 conditions with a defined score"
    return dict(zip(SCORES, (HONEST, metric, where, mean.mean, mean.low, mean.high, mean.n, reason), strict=True))


def undefined(reason: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of a split without effects to score: one row that says why."""
    empty = dict(zip(SCORES, (HONEST, "", "", np.nan, np.nan, np.nan, 0, reason), strict=True))
    return pd.DataFrame([empty], columns=list(SCORES)), pd.DataFrame(columns=list(CONDITIONS))
