"""The honest protocol: scores of predicted effects with baselines, ceilings and intervals (docs/evaluation.md).

The truth is the effect in test cells, against test controls; a model's effects are at the depths of these cells, and
baselines read training cells alone. Scores are per condition, so that two predictors can be compared on the conditions
that both predict. Letters: n cells, C conditions (rows by code, NaN where undefined), G genes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.calibrations import calibrations
from samsvae.evaluation.cell_baselines import cell_baselines
from samsvae.evaluation.cell_calibrations import cell_calibrations
from samsvae.evaluation.cell_scores import cell_scores, energy_ceiling
from samsvae.evaluation.effect_scores import ceilings, coverage_rows, scores, yardstick
from samsvae.evaluation.effects_at_depth import effect_draws_at_depth
from samsvae.evaluation.metrics.calibration import Calibration
from samsvae.evaluation.metrics.coverage import Intervals, join, posterior_intervals
from samsvae.evaluation.sampled_cells import predicted_cells
from samsvae.evaluation.score_tables import CEILING, DUPLICATE, Scored, tables, undefined
from samsvae.evaluation.truth import Truth
from samsvae.models.model import Model


def split_tables(screen: Screen, split: np.ndarray, truth: Truth | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of all baselines, of the ceiling and of a technical duplicate: both tables, with a column model.

    The columns ``drf`` and ``bds`` of the first say what a metric is worth on this screen (S9). A split without effects
    to score (``truth`` is the reason) has one row that says why.
    """
    if isinstance(truth, str):
        first, second = undefined(truth)
        return first.assign(model=CEILING, drf=np.nan, bds=np.nan), second.assign(model="")
    known, duplicate = _calibrated(screen, truth)
    cells = cell_baselines(screen, split, truth)
    every: dict[str, Iterable[Scored]] = {
        **{
            name: chain(scores(truth, predicted), cell_scores(truth, cells[name]) if name in cells else ())
            for name, predicted in truth.baselines.items()
        },
        CEILING: chain(ceilings(truth), energy_ceiling(truth)),
        **({DUPLICATE: duplicate} if duplicate else {}),
    }
    found = {name: tables(truth.names, each) for name, each in every.items()}
    parts = [table.assign(model=name) for name, (table, _) in found.items()]
    if "seen" in truth.sets:
        parts.append(coverage_rows(yardstick(truth), "seen").assign(model="train_mean"))
    table = pd.concat(parts, ignore_index=True)
    for name in ("drf", "bds"):
        table[name] = [getattr(known[m], name) if m in known else np.nan for m in table["metric"]]
    return table, pd.concat([each.assign(model=name) for name, (_, each) in found.items()], ignore_index=True)


def _calibrated(screen: Screen, truth: Truth) -> tuple[dict[str, Calibration], list[Scored]]:
    """What each metric is worth on this screen, and the scores of a technical duplicate."""
    try:
        of_cells, duplicate = cell_calibrations(screen, truth)
        return calibrations(screen, truth) | of_cells, duplicate
    except DataError:  # too few controls for halves
        return {}, []


def model_tables(
    model: Model, truth: Truth | str, dosage: np.ndarray, *, draws: int = 100, cells: int = 6
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a model's effects and cells, and the coverage of its intervals: both tables.

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
    sampled = predicted_cells(model, truth, dosage)
    table, each = tables(truth.names, chain(scores(truth, predicted), cell_scores(truth, sampled)))
    of_condition = {c: part for c, part in zip(rows, intervals, strict=True) if part is not None}
    parts = [
        coverage_rows(join([of_condition[c] for c in np.flatnonzero(at)]), name)
        for name, at in truth.sets.items()
        if of_condition
    ]
    return pd.concat([table, *parts], ignore_index=True), each
