"""The honest protocol for a model: scores of its effects and cells, and the coverage of its intervals.

The truth is the effect in test cells, against test controls; a model's effects are at the depths of these cells. Scores
are per condition, so that two predictors can be compared on the conditions that both predict (docs/evaluation.md).
Letters: C conditions (rows by code, NaN where undefined), G genes.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import pandas as pd

from samsvae.evaluation.added_effects import added_effect_draws
from samsvae.evaluation.cell_scores import cell_scores
from samsvae.evaluation.effect_scores import coverage_rows, scores
from samsvae.evaluation.effects_at_depth import effect_draws_at_depth
from samsvae.evaluation.metrics.coverage import Intervals, join, posterior_intervals
from samsvae.evaluation.sampled_cells import predicted_cells
from samsvae.evaluation.score_tables import tables, undefined
from samsvae.evaluation.truth import Truth
from samsvae.models.levels import Levels
from samsvae.models.model import Model


def model_tables(
    model: Model,
    truth: Truth | str,
    dosage: np.ndarray,
    *,
    draws: int = 100,
    cells: int = 6,
    backgrounds: np.ndarray | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a model's effects and cells, and the coverage of its intervals: both tables.

    ``dosage`` (C, P): indices of the model's perturbations in every condition, padded with T. A model that draws no
    latents of perturbations has no coverage, since its effects have no interval. ``backgrounds``: the dosages to which
    perturbations are added in a screen without a control (`added_effects`), at the median library size of test cells.
    A split without effects to score (``truth`` is the reason) has one row that says why.
    """
    if isinstance(truth, str):
        return undefined(truth)
    rows, scored = truth.needed, set(truth.rows)
    predicted = np.full(truth.test.delta.shape, np.nan)
    observed, se2 = (values[rows][:, truth.genes] for values in (truth.test.delta, truth.test.se2))
    uncertain = model.draws_perturbations()

    def use(i: int, effects_drawn: np.ndarray) -> Intervals | None:
        predicted[rows[i]] = effects_drawn.mean(0)
        if not uncertain or rows[i] not in scored:
            return None
        at = slice(i, i + 1)
        return posterior_intervals(effects_drawn[:, None, truth.genes], observed[at], se2[at])

    of_control, how = truth.libraries[truth.control], {"use": use, "draws": draws}
    if backgrounds is None:
        intervals = effect_draws_at_depth(
            model,
            dosage[rows],
            [truth.libraries[c] for c in rows],
            control=dosage[truth.control],
            control_libraries=of_control,
            levels=_observed_levels(model, truth, rows),
            cells=cells,
            **how,
        )
    else:
        depth = float(np.median(of_control))
        intervals = added_effect_draws(model, dosage[rows], backgrounds=backgrounds, library=depth, **how)
    sampled = predicted_cells(model, truth, dosage)
    table, each = tables(truth.names, chain(scores(truth, predicted), cell_scores(truth, sampled)))
    of_condition = {c: part for c, part in zip(rows, intervals, strict=True) if part is not None}
    parts = [
        coverage_rows(join([of_condition[c] for c in np.flatnonzero(at)]), name)
        for name, at in truth.sets.items()
        if of_condition
    ]
    return pd.concat([table, *parts], ignore_index=True), each


def _observed_levels(model: Model, truth: Truth, rows: np.ndarray) -> list[Levels] | None:
    """The levels of the cells in which the conditions ``rows`` are observed; None if the model reads no covariates."""
    if not model.levels or isinstance(truth.levels, str):
        return None
    return [Levels.of(model.covariates, truth.levels.combinations[truth.levels.cells[c]]) for c in rows]
