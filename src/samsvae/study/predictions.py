"""Predictions of any method, read from an h5ad: effects of conditions, or cells.

Letters: n predicted cells, C conditions (perturbations, in a screen without a control) and G genes of the screen.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen
from samsvae.errors import DataError, nearest, some
from samsvae.evaluation.metrics.estimates import LEAST_FOR_VARIANCE
from samsvae.screens.hdf5 import read_anndata


def read_effects(path: str | Path, screen: Screen, conditions: np.ndarray) -> np.ndarray:
    """Predicted effects (C, G) in the order of ``conditions`` (C,) and genes; NaN without a prediction.

    DataError if a gene of the screen is missing, a name occurs twice, a condition is unknown or a value is infinite.
    """
    found = read_anndata(path)
    _check_genes(path, found, screen)
    if found.obs_names.has_duplicates:
        twice = some(found.obs_names[found.obs_names.duplicated()].unique())
        raise DataError(f"{path}: condition {twice} occurs more than once.")
    codes = _codes(
        path, found.obs_names, conditions, " If rows are cells, name their column of conditions with --cells."
    )
    values = _dense(found, screen, float)
    if np.isinf(values).any():
        raise DataError(f"{path}: X has infinite values; effects must be finite, or NaN where nothing is predicted.")
    predicted = np.full((len(conditions), len(screen.genes)), np.nan)
    predicted[codes] = values
    return predicted


def read_cells(path: str | Path, screen: Screen, column: str) -> Screen:
    """The screen with the predicted cells in place of its own: counts (n, G), which need not be whole numbers.

    ``column``: that of obs with the conditions. DataError if it is missing or has unknown conditions, a gene of the
    screen is missing, a count is negative or undefined, a condition has one cell, or the screen has no counts or no
    control.
    """
    if screen.by_dosage:
        raise DataError(
            f"{path}: the screen has no control, so cells are not scored; give effects of single perturbations, "
            "without --cells."
        )
    if screen.transform != "log2":
        raise DataError(f"{path}: the screen has real values, so cells are not scored; give effects, without --cells.")
    found = read_anndata(path)
    _check_genes(path, found, screen)
    if column not in found.obs:
        raise DataError(f"{path}: obs has no column {column!r} with conditions.{nearest(column, found.obs.columns)}")
    labels = found.obs[column]
    if labels.isna().any():
        raise DataError(f"{path}: obs column {column!r} is empty for {labels.isna().sum()} cells; name a condition.")
    condition = _codes(path, pd.Index(labels.astype(str)), screen.conditions)
    counts = _dense(found, screen, np.float32)
    if not np.isfinite(counts).all() or counts.min(initial=0) < 0:
        raise DataError(f"{path}: X has negative, infinite or missing values; cells must have counts of 0 or more.")
    n = np.bincount(condition, minlength=len(screen.conditions))
    if (few := np.flatnonzero((n > 0) & (n < LEAST_FOR_VARIANCE))).size:
        names = some(screen.conditions[few].tolist())
        raise DataError(f"{path}: condition {names} has a single cell; predict two or more, or none.")
    return replace(
        screen, counts=counts, library=counts.sum(1), cells=found.obs_names.to_numpy(str), condition=condition
    )


def with_controls(predicted: Screen, screen: Screen, split: np.ndarray, control: int) -> Screen:
    """Predicted cells with controls: their own, or the training controls of the screen if they have none."""
    if (predicted.condition == control).any():
        return predicted
    rows = np.flatnonzero((screen.condition == control) & (split == "train"))
    return replace(
        predicted,
        counts=np.concatenate([predicted.counts, screen.counts[rows]]),
        library=np.append(predicted.library, screen.library[rows]),
        cells=np.append(predicted.cells, screen.cells[rows]),
        condition=np.append(predicted.condition, screen.condition[rows]),
    )


def _check_genes(path: str | Path, found: ad.AnnData, screen: Screen) -> None:
    """DataError unless the file has every gene of the screen once."""
    if found.var_names.has_duplicates:
        twice = some(found.var_names[found.var_names.duplicated()].unique())
        raise DataError(f"{path}: gene {twice} occurs more than once.")
    if missing := sorted(set(screen.genes.tolist()) - set(found.var_names)):
        raise DataError(f"{path}: var lacks {len(missing)} genes of the screen: {some(missing)}.")


def _codes(path: str | Path, names: pd.Index, conditions: np.ndarray, hint: str = "") -> np.ndarray:
    """The codes of conditions; DataError for one that the screen lacks."""
    known = conditions.tolist()
    codes = pd.Index(known).get_indexer(names)
    if (codes < 0).any():
        unknown = names[codes < 0].unique().tolist()
        raise DataError(
            f"{path}: obs has conditions that the screen lacks: {some(unknown)}.{nearest(unknown[0], known)}{hint}"
        )
    return codes


def _dense(found: ad.AnnData, screen: Screen, dtype: type) -> np.ndarray:
    """X with the genes of the screen, in its order."""
    x = found[:, screen.genes].X
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype)
