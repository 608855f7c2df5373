"""Score the effects or cells that any method predicts by the honest protocol, next to the baselines of the split."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.errors import DataError
from samsvae.evaluation.any_truth import truth_or_reason
from samsvae.evaluation.cell_scores import cell_scores
from samsvae.evaluation.cell_truth import PredictedCells, grouped, measured
from samsvae.evaluation.effect_scores import scores
from samsvae.evaluation.metrics.estimates import condition_moments, effects
from samsvae.evaluation.score_tables import tables
from samsvae.evaluation.split_scores import split_tables
from samsvae.evaluation.truth import Truth
from samsvae.evaluation.worth import HEADLINE, verdicts
from samsvae.figures.style import PREDICTION, save
from samsvae.figures.worth import draw
from samsvae.study.code_digest import scoring_rules
from samsvae.study.predictions import read_cells, read_effects, with_controls
from samsvae.tables import PRECISE, write


def score_predictions(
    path: str | Path, arrays: str | Path, split: str | Path, out: str | Path, *, cells: str | None = None
) -> pd.DataFrame:
    """Score predictions, write the tables and the figure ``worth`` to the folder ``out``; return the verdicts.

    ``path``: an h5ad with every gene of the screen, in any order. Its rows are conditions (perturbations, in a screen
    without a control), and X are effects in log2(1 + counts per 10,000); or its rows are cells, X are counts, and
    ``cells`` is the column of obs with their conditions. Conditions that it lacks, or with a NaN, are not scored.
    ``arrays`` and ``split``: arrays.npz of the screen and cells.tsv of the split (results/data/SCREEN,
    results/EXPERIMENT/splits). DataError if the file does not fit the screen, or the split has no effects to score.
    """
    screen = read_screen(arrays)
    of_cell = read_split(split, screen.cells)
    truth = truth_or_reason(screen, of_cell)
    if isinstance(truth, str):
        raise DataError(f"{split}: {truth}")
    sampled: PredictedCells | str = "the file predicts effects, no cells"
    if cells is None:
        predicted = read_effects(path, screen, truth.names)
    else:
        made = with_controls(read_cells(path, screen, cells), screen, of_cell, truth.control)
        moments = condition_moments(made.counts, made.condition, len(truth.names))
        predicted, sampled = effects(moments, control=truth.control).delta, _measured(made, truth)
    if not np.isfinite(predicted[truth.rows]).all(1).any():
        raise DataError(f"{path}: predicts none of the {len(truth.rows)} conditions that are scored.")
    mine, each = tables(truth.names, chain(scores(truth, predicted), cell_scores(truth, sampled)))
    theirs, their_each = split_tables(screen, of_cell, truth)
    worth = pd.concat([mine.assign(model=PREDICTION), theirs], ignore_index=True)
    each = each.assign(model=PREDICTION)
    conditions = pd.concat([each, their_each], ignore_index=True)
    found = verdicts(each, their_each, theirs, by=["model", "metric", "set"])
    folder = Path(out)
    write(worth.assign(rules=scoring_rules()), folder / "worth.tsv", digits=PRECISE)
    write(conditions, folder / "worth_conditions.tsv", digits=PRECISE)
    shown = worth[worth["metric"].isin(HEADLINE) & worth["value"].notna()]
    covered = worth[worth["metric"].str.startswith("coverage")].assign(run=PREDICTION)
    headline = found[found["metric"].isin(HEADLINE)]
    figure = draw(shown, conditions, headline, covered, models=[PREDICTION])
    save(figure, folder / "worth", {"verdicts": found})
    return found


def _measured(predicted: Screen, truth: Truth) -> PredictedCells | str:
    """What is measured of predicted cells, or the reason why cells are not scored."""
    if isinstance(truth.cells, str):
        return truth.cells
    every = np.ones(len(predicted.condition), bool)
    return measured(truth.cells, [grouped(predicted, truth.rows, truth.control, every)])
