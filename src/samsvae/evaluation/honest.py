"""The honest protocol: scores of predicted effects with baselines, ceilings and intervals (docs/evaluation.md).

The truth is the effect in test cells, against test controls; a model's effects are at the depths of these cells, and
baselines read training cells alone. Scores are per condition, so that two predictors can be compared on the conditions
that both predict. Letters: n cells, C conditions (rows by code, NaN where undefined), G genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.calibrations import calibrations
from samsvae.evaluation.effect_scores import ceilings, coverage_rows, scores, yardstick
from samsvae.evaluation.effects_at_depth import effect_draws_at_depth
from samsvae.evaluation.metrics.coverage import Intervals, join, posterior_intervals
from samsvae.evaluation.score_tables import Scored, tables, undefined
from samsvae.evaluation.truth import Truth
from samsvae.models.model import Model


def split_tables(screen: Screen, truth: Truth | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of all baselines and of the ceiling (model ``ceiling``): both tables, with a column model.

    The columns ``drf`` and ``bds`` of the first say what a headline metric is worth on this screen (S9). A split
    without effects to score (``truth`` is the reason) has one row that says why.
    """
    if isinstance(truth, str):
        first, second = undefined(truth)
        return first.assign(model="ceiling", drf=np.nan, bds=np.nan), second.assign(model="")
    every: Mapping[str, Iterator[Scored]] = {
        **{name: scores(truth, predicted) for name, predicted in truth.baselines.items()},
        "ceiling": ceilings(truth),
    }
    found = {name: tables(truth.names, each) for name, each in every.items()}
    tables_of_scores = [table.assign(model=name) for name, (table, _) in found.items()]
    if "seen" in truth.sets:
        tables_of_scores.append(coverage_rows(yardstick(truth), "seen").assign(model="train_mean"))
    conditions = [table.assign(model=name) for name, (_, table) in found.items()]
    table = pd.concat(tables_of_scores, ignore_index=True)
    try:
        known = calibrations(screen, truth)
    except DataError:  # too few controls for halves
        known = {}
    for name in ("drf", "bds"):
        table[name] = [getattr(known[m], name) if m in known else np.nan for m in table["metric"]]
    return table, pd.concat(conditions, ignore_index=True)


def model_tables(
    model: Model, truth: Truth | str, dosage: np.ndarray, *, draws: int = 100, cells: int = 6
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a model, and the coverage of its intervals: both tables.

    ``dosage`` (C, P): indices of the model's perturbations in every condition, padded with T. A model that draws no
    latents of perturbations has no coverage, since its effects have no interval. A split without effects to score
    (``truth`` is the reason) has one row that says why.
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

    intervals = effect_draws_at_depth(
        model,
        dosage[rows],
        [truth.libraries[c] for c in rows],
        control=dosage[truth.control],
        control_libraries=truth.libraries[truth.control],
        use=use,
        draws=draws,
        cells=cells,
    )
    table, each = tables(truth.names, scores(truth, predicted))
    of_condition = {c: part for c, part in zip(rows, intervals, strict=True) if part is not None}
    parts = [
        coverage_rows(join([of_condition[c] for c in np.flatnonzero(at)]), name)
        for name, at in truth.sets.items()
        if of_condition
    ]
    return pd.concat([table, *parts], ignore_index=True), each
