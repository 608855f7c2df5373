"""Score the effects that any method predicts by the honest protocol, next to the baselines of the same split."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.errors import DataError, nearest, some
from samsvae.evaluation.cell_scores import cell_scores
from samsvae.evaluation.effect_scores import scores
from samsvae.evaluation.honest import split_tables
from samsvae.evaluation.score_tables import tables
from samsvae.evaluation.truth import Truth, truth_of
from samsvae.evaluation.worth import HEADLINE, verdicts
from samsvae.figures.style import PREDICTION, save
from samsvae.figures.worth import draw
from samsvae.screens.hdf5 import read_anndata
from samsvae.study.code_digest import scoring_rules
from samsvae.tables import PRECISE, write


def score_predictions(path: str | Path, arrays: str | Path, split: str | Path, out: str | Path) -> pd.DataFrame:
    """Score predicted effects, write the tables and the figure ``worth`` to the folder ``out``; return the verdicts.

    ``path``: an h5ad of conditions x genes, whose X are effects against control in log2(1 + counts per 10,000). It must
    have every gene of the screen, in any order; conditions that it lacks, or with a NaN, are not scored. ``arrays`` and
    ``split``: arrays.npz of the screen and cells.tsv of the split (results/data/SCREEN, results/EXPERIMENT/splits).
    DataError if the file does not fit the screen, or the split has no effects to score.
    """
    screen = read_screen(arrays)
    cells = read_split(split, screen.cells)
    truth = truth_of(screen, cells)
    predicted = read_predictions(path, screen, truth)
    no_cells = cell_scores(truth, "the file predicts effects, no cells")
    mine, each = tables(truth.names, chain(scores(truth, predicted), no_cells))
    theirs, their_each = split_tables(screen, cells, truth)
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


def read_predictions(path: str | Path, screen: Screen, truth: Truth) -> np.ndarray:
    """Predicted effects (C, G) in the order of the screen; NaN for conditions without a prediction.

    DataError if a gene of the screen or every scored condition is missing, a name occurs twice, or a condition is
    unknown.
    """
    found = read_anndata(path)
    for kind, names in (("condition", found.obs_names), ("gene", found.var_names)):
        if names.has_duplicates:
            raise DataError(f"{path}: {kind} {some(names[names.duplicated()].unique())} occurs more than once.")
    if missing := sorted(set(screen.genes.tolist()) - set(found.var_names)):
        raise DataError(f"{path}: var lacks {len(missing)} genes of the screen: {some(missing)}.")
    known = screen.conditions.tolist()
    if unknown := sorted(set(found.obs_names) - set(known)):
        raise DataError(
            f"{path}: obs has conditions that the screen lacks: {some(unknown)}.{nearest(unknown[0], known)}"
        )
    x = found[:, screen.genes].X
    values = np.asarray(x.toarray() if hasattr(x, "toarray") else x, float)
    if np.isinf(values).any():
        raise DataError(f"{path}: X has infinite values; effects must be finite, or NaN where nothing is predicted.")
    predicted = np.full(truth.test.delta.shape, np.nan)
    predicted[[known.index(name) for name in found.obs_names]] = values
    if not np.isfinite(predicted[truth.rows]).all(1).any():
        raise DataError(f"{path}: predicts none of the {len(truth.rows)} conditions that are scored.")
    return predicted
