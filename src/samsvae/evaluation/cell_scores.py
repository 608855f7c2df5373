"""Scores of predicted cells: energy distances, variances, and differential expression (S6, S7).

Letters: S scored conditions, R the conditions of a `CellTruth`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samsvae.evaluation.cell_truth import CellTruth, PredictedCells
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS, OVERLAPS
from samsvae.evaluation.metrics.distributions import variance_ratio
from samsvae.evaluation.metrics.expression_agreement import SIGN_GENES, ExpressionTests, expression_agreement
from samsvae.evaluation.score_tables import Score, Scored, undefined_score
from samsvae.evaluation.truth import Truth

MIXED = "have a gene that is significant in the test cells, and one that is not"

#: The scores of differential expression, and why fewer than 3 conditions may have one.
EXPRESSION = {
    "auprc": MIXED,
    "auprc_chance": MIXED,
    "sign": f"have {SIGN_GENES} genes that are significant in the test cells",
    "mcc": MIXED,
    "jaccard": "have a gene that is tested",
    **{f"overlap{k}": f"have {k} genes that are tested" for k in OVERLAPS},
}

#: Every score of cells, in the order of tables.
CELL_SCORES = ("energy_share", "variance_ratio", *EXPRESSION)


def cell_scores(truth: Truth, found: PredictedCells | str) -> Iterator[Scored]:
    """Every score of predicted cells, as `effect_scores.scores`; a string is the reason why there is none.

    ``energy_share`` is a ratio of sums, ``variance_ratio`` the log2 of a condition's ratio. A set is scored on the
    conditions with predicted cells.
    """
    if isinstance(truth.cells, str) or isinstance(found, str):
        reason = truth.cells if isinstance(truth.cells, str) else str(found)
        for name, rows in truth.sets.items():
            at = np.flatnonzero(rows)
            yield from ((metric, name, at, undefined_score(at, reason)) for metric in CELL_SCORES)
        return
    for name, rows in truth.sets.items():
        here = rows[truth.rows] & np.isfinite(found.energy)
        at = truth.rows[here]
        few = f"fewer than {LEAST_CONDITIONS} conditions are predicted" if len(at) < LEAST_CONDITIONS else ""
        for metric, score in _scores(truth.cells, found, here).items():
            yield metric, name, at, undefined_score(at, few) if few else score


def energy_ceiling(truth: Truth) -> Iterator[Scored]:
    """The energy of a perfect prediction, as `cell_scores`; no other score of cells has a known ceiling."""
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows)
        if isinstance(truth.cells, str):
            yield "energy_share", name, at, undefined_score(at, truth.cells)
        else:
            yield "energy_share", name, at, _energy_share(truth.cells, np.zeros(len(truth.rows)), rows[truth.rows])


def _scores(truth: CellTruth, found: PredictedCells, here: np.ndarray) -> dict[str, Score]:
    """The scores of CELL_SCORES of the conditions ``here`` (R,) bool."""
    ratio = variance_ratio(found.variance, truth.variance)[here] if here.any() else np.zeros(0)
    return {
        "energy_share": _energy_share(truth, found.energy, here),
        "variance_ratio": Score(np.log2(ratio, out=np.full(len(ratio), np.nan), where=ratio > 0)),
        **{
            metric: Score(values[here], reason=why_few(metric, values[here]))
            for metric, values in expression(truth.tests, found.tests, truth.left_out).items()
        },
    }


def _energy_share(truth: CellTruth, energy: np.ndarray, here: np.ndarray) -> Score:
    of_control = truth.energy_of_control[here]
    reason = "" if of_control.sum() > 0 else "the test cells are as close to each other as to the training controls"
    return Score(energy[here], of_control, reason)


def expression(truth: ExpressionTests, found: ExpressionTests, left_out: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of differential expression, (R,) each, from tests without the genes ``left_out`` (R, D).

    Where the test cells have significant and other genes, but the predicted cells have not, ``mcc`` is 0: skipping such
    conditions would reward a prediction without differences. ``auprc_chance`` is for the conditions with an ``auprc``.
    """
    scores = expression_agreement(truth, found, left_out)
    mixed = np.isfinite(scores["auprc"])
    scores["mcc"] = np.where(mixed & np.isnan(scores["mcc"]), 0.0, scores["mcc"])
    scores["auprc_chance"] = np.where(mixed, scores["auprc_chance"], np.nan)
    return {metric: scores[metric] for metric in EXPRESSION}


def why_few(metric: str, values: np.ndarray) -> str:
    """Why the scores (S,) of fewer than 3 conditions are defined, or ''."""
    undefined = np.isfinite(values).sum() < LEAST_CONDITIONS
    return f"fewer than {LEAST_CONDITIONS} conditions {EXPRESSION[metric]}" if undefined else ""
