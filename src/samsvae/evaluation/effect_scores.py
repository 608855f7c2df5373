"""Scores of predicted effects and of their intervals, and the best scores that can be reached (S2, S3, S5, S8).

Letters: n cells, C conditions (rows by code, NaN where undefined), G genes. S scored conditions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from samsvae.evaluation.metrics.agreement import (
    LEAST_RELIABILITY,
    PER_CONDITION,
    nmse_terms,
    pearson,
    pearson_pooled,
)
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS, TOP
from samsvae.evaluation.metrics.coverage import Intervals, coverage, normal_intervals
from samsvae.evaluation.metrics.discrimination import discrimination
from samsvae.evaluation.metrics.estimates import REFERENCES, at_reference, centred, top_train
from samsvae.evaluation.metrics.intervals import Interval
from samsvae.evaluation.metrics.reliability import ceiling_perfect, reliability_pooled
from samsvae.evaluation.score_tables import SCORES, Score, Scored, pooled_score, row, undefined_score
from samsvae.evaluation.truth import Truth

#: Scores at each reference, and those over the top genes of the training cells, which only seen conditions have.
AGREEMENT = ("pearson", "nmse", "cosine", "r2", "mse", "pearson_pooled")
TOP_GENES = f"pearson_top{TOP}"

#: Scores of the interactions of pairs.
INTERACTIONS = ("interaction_pearson", "interaction_nmse")

#: Why discrimination, which leaves out the targets, is undefined.
ONLY_TARGETS = "every gene is a target"


def scores(truth: Truth, predicted: np.ndarray) -> Iterator[Scored]:
    """Every score of predicted effects (C, G): metric, set, scored conditions (S,) as codes, and the score.

    A set is scored on the conditions with a prediction. A score that is undefined has a reason.
    """
    known = np.isfinite(predicted).all(1)
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows & known)
        if len(at) < LEAST_CONDITIONS:
            metrics = (*AGREEMENT, TOP_GENES) if name == "seen" else AGREEMENT
            few = undefined_score(at, f"fewer than {LEAST_CONDITIONS} conditions are predicted")
            for metric in (*(f"{m}_{reference}" for reference in REFERENCES for m in metrics), "discrimination"):
                yield metric, name, at, few
            continue
        for reference in REFERENCES:
            if reference == "control" and truth.no_control:
                for metric in (*AGREEMENT, TOP_GENES) if name == "seen" else AGREEMENT:
                    yield f"{metric}_control", name, at, undefined_score(at, truth.no_control)
                continue
            delta, se2 = at_reference(truth.test, at, reference)
            prediction = centred(predicted[at], reference)
            for metric, score in _agreement(delta, se2, prediction).items():
                yield f"{metric}_{reference}", name, at, score
            if name == "seen":
                genes = top_train(truth.train.delta[at], truth.train.se2[at])
                both = (np.take_along_axis(effect, genes, 1) for effect in (delta, prediction))
                yield f"{TOP_GENES}_{reference}", name, at, Score(pearson(*both))
        if len(truth.targets) == delta.shape[1]:
            yield "discrimination", name, at, undefined_score(at, ONLY_TARGETS)
        else:  # the last reference is the centred one
            yield "discrimination", name, at, Score(discrimination(delta, prediction, targets=truth.targets))
    yield from interaction_scores(truth, predicted)


def _agreement(delta: np.ndarray, se2: np.ndarray, prediction: np.ndarray) -> dict[str, Score]:
    """The scores AGREEMENT of a prediction (S, G) at one reference."""
    at, unreliable = np.arange(len(delta)), _unreliable(delta, se2)
    found = {name: Score(score(delta, prediction)) for name, score in PER_CONDITION.items()}
    error = undefined_score(at, unreliable) if unreliable else Score(*nmse_terms(delta, se2, prediction))
    found |= {"nmse": error, "pearson_pooled": pooled_score(at, pearson_pooled(delta, prediction))}
    return {name: found[name] for name in AGREEMENT}


def _unreliable(delta: np.ndarray, se2: np.ndarray, what: str = "effects") -> str:
    """Why scores relative to the size of effects are undefined, or ''."""
    share = reliability_pooled(delta, se2)
    return "" if share >= LEAST_RELIABILITY else f"the pooled reliability of the {what} is {share:.2f}, below 0.1"


def ceilings(truth: Truth) -> Iterator[Scored]:
    """The scores of a perfect prediction: metric, set, scored conditions, score (S2)."""
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows)
        for reference in REFERENCES:
            if reference == "control" and truth.no_control:
                for metric in ("pearson_control", "nmse_control"):
                    yield metric, name, at, undefined_score(at, truth.no_control)
                continue
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
        ones = Score(np.ones(len(at)))
        only_targets = len(truth.targets) == truth.test.delta.shape[1]
        yield "discrimination", name, at, undefined_score(at, ONLY_TARGETS) if only_targets else ones
    found, whole = truth.pairs
    for name, at, reason in _sets_of_pairs(truth, np.ones(len(found.rows), bool)):
        best = ceiling_perfect(whole.value[at], whole.se2[at], found.se2[at])
        for metric, values in zip(INTERACTIONS, (best, np.zeros(len(at))), strict=True):
            yield metric, name, found.rows[at], undefined_score(at, reason) if reason else Score(values)


def interaction_scores(truth: Truth, predicted: np.ndarray) -> Iterator[Scored]:
    """Scores of the interactions of pairs (S12), each side with its own singles, in every set with pairs.

    As `scores`, but of pairs. They are undefined if fewer than 3 pairs are observed and predicted together with their
    singles, or if the pooled reliability of their interactions is below .1.
    """
    found = truth.pairs.observed
    a, b = found.singles.T
    ours = predicted[found.rows] - predicted[a] - predicted[b]
    for name, at, reason in _sets_of_pairs(truth, np.isfinite(ours).all(1)):
        rows, value, se2 = found.rows[at], found.value[at], found.se2[at]
        r, error = INTERACTIONS
        yield r, name, rows, undefined_score(rows, reason) if reason else Score(pearson(value, ours[at]))
        yield error, name, rows, undefined_score(rows, reason) if reason else Score(*nmse_terms(value, se2, ours[at]))


def _sets_of_pairs(truth: Truth, known: np.ndarray) -> Iterator[tuple[str, np.ndarray, str]]:
    """The sets that have pairs: name, known pairs (indices of `Pairs`), and why their scores are undefined, or ''."""
    found = truth.pairs.observed
    is_pair = (truth.members >= 0).sum(1) == 2
    for name, rows in truth.sets.items():
        if (rows & is_pair).any():
            at = np.flatnonzero(rows[found.rows] & known)
            few = f"fewer than {LEAST_CONDITIONS} pairs are observed and predicted together with both of their singles"
            enough = len(at) >= LEAST_CONDITIONS
            yield name, at, _unreliable(found.value[at], found.se2[at], "interactions") if enough else few


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
