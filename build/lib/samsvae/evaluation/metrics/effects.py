"""Average treatment effects (ATE) of perturbations in data, and their agreement with predicted effects.

Letters: n cells, G genes, C conditions, P largest number of perturbations in a condition.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from scipy import sparse

from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import DataError
from samsvae.evaluation.metrics.baselines import additive
from samsvae.evaluation.metrics.constants import TOP

#: Counts (n, G), dense or sparse.
Counts: TypeAlias = "np.ndarray | sparse.spmatrix | sparse.sparray"

METHODS = ("log2", "mean")

_BLOCK = 2**23  # values transformed at a time, to save memory


def normalised_log2(X: Counts) -> Counts:
    """log2(1 + 1e4 x_g / sum_g x) of every cell, float64 (n, G), sparse if X is. Cells without counts are 0."""
    scale = LIBRARY / np.maximum(np.asarray(X.sum(1), float).reshape(-1, 1), 1e-300)
    if isinstance(X, np.ndarray):
        return np.log1p(X * scale) / np.log(2)
    Y = sparse.csr_matrix(X, dtype=float, copy=True)
    Y.data = np.log1p(Y.data * np.repeat(scale[:, 0], np.diff(Y.indptr))) / np.log(2)
    return Y


def condition_means(
    X: Counts,
    condition: np.ndarray,
    n_conditions: int,
    *,
    cells: np.ndarray | None = None,
    method: str = "log2",
) -> np.ndarray:
    """Mean of the transformed cells of each condition, float64 (C, G); NaN for a condition without cells.

    ``condition`` (n,): codes. ``cells`` (n,) bool: the cells to use, by default all. ``method``: ``log2`` is
    normalised_log2, ``mean`` is no transform. ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}; allowed: {', '.join(METHODS)}.")
    rows = np.arange(X.shape[0]) if cells is None else np.flatnonzero(cells)
    X = X if isinstance(X, np.ndarray) else X.tocsr()
    total, number = np.zeros((n_conditions, X.shape[1])), np.zeros((n_conditions, 1))
    step = max(1, _BLOCK // X.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        Y = normalised_log2(X[block]) if method == "log2" else X[block]
        indicator = sparse.csr_matrix(
            (np.ones(len(block)), (condition[block], np.arange(len(block)))), (n_conditions, len(block))
        )
        part = indicator @ Y
        total += part.toarray() if sparse.issparse(part) else part
        number += indicator.sum(1).reshape(-1, 1)
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)


def average_effect(
    X: Counts,
    condition: np.ndarray,
    control: int,
    *,
    n_conditions: int | None = None,
    cells: np.ndarray | None = None,
    control_cells: np.ndarray | None = None,
    method: str = "log2",
) -> np.ndarray:
    """ATE of the data, (C, G): mean over a condition's cells minus the mean over control cells.

    X (n, G): counts, or real values with ``method="mean"``. ``condition`` (n,): codes. ``control``: code of the control
    (or of another reference). ``cells`` (n,) bool: the cells to use, by default all; the published protocol uses all
    cells, the held-out one the test cells. ``control_cells`` (n,) bool: take the control cells from here instead of
    ``cells``, for instance if there are no test controls. A condition without cells is NaN; DataError if no control
    cell is chosen.
    """
    n_conditions = int(condition.max()) + 1 if n_conditions is None else n_conditions
    means = condition_means(X, condition, n_conditions, cells=cells, method=method)
    chosen = np.ones(len(condition), bool) if cells is None else np.asarray(cells, bool)
    chosen = (chosen if control_cells is None else np.asarray(control_cells, bool)) & (condition == control)
    if not chosen.any():
        raise DataError("The cells chosen for the average effect include no control cell; choose some.")
    return means - condition_means(X, condition, n_conditions, cells=chosen, method=method)[control]


def ate_scores(data: np.ndarray, model: np.ndarray, *, top: int = TOP) -> dict[str, float]:
    """``ate_pearson`` and ``ate_r2`` over all conditions and genes at once, and over the top genes of each condition.

    ``data``, ``model`` (C, G): observed and predicted effects of the conditions to be scored, without the control. The
    ``top`` genes of a condition have its largest absolute *observed* effects; all genes count if there are fewer. R2 is
    the coefficient of determination (1 - residual / total), not a squared correlation. A correlation with a constant is
    NaN. ValueError if the shapes differ, are empty or not (C, G), or a value is not finite.
    """
    data, model = _effects(data, model)
    order = np.argsort(-np.abs(data), axis=1, kind="stable")[:, :top]
    at = [np.take_along_axis(x, order, 1).ravel() for x in (data, model)]
    return {
        "ate_pearson": float(pearson(data.ravel(), model.ravel())),
        "ate_r2": float(r2(data.ravel(), model.ravel())),
        f"ate_pearson_top{top}": float(pearson(*at)),
        f"ate_r2_top{top}": float(r2(*at)),
    }


def condition_scores(data: np.ndarray, model: np.ndarray) -> dict[str, np.ndarray]:
    """``ate_pearson`` and ``ate_r2`` of every condition over its genes: arrays (C,). ValueError as in ate_scores."""
    data, model = _effects(data, model)
    return {"ate_pearson": pearson(data, model), "ate_r2": r2(data, model)}


def interactions(effects: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Effect of each combination minus the sum of its own single effects, (C, G); NaN for other conditions.

    ``effects`` (C, G): of data or of a model, never singles of the one under combinations of the other. If both sides
    of a comparison subtract the same observed singles, they hold the same noise, and even "no change" correlates with
    the data (r = .73 on Norman pairs whose interactions have no reliability). ``members`` (C, P): perturbations of each
    condition, padded with -1.
    """
    excess = effects - additive(effects, members)
    excess[(members >= 0).sum(1) < 2] = np.nan
    return excess


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN if one side is constant."""
    varied = (np.ptp(a, -1) > 0) & (np.ptp(b, -1) > 0)  # a constant minus its mean may not be exactly 0
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    product = np.asarray(np.sqrt((a**2).sum(-1) * (b**2).sum(-1)))
    return np.divide((a * b).sum(-1), product, out=np.full_like(product, np.nan), where=varied & (product > 0))


def r2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Coefficient of determination along the last axis; NaN if the truth is constant."""
    total = np.asarray(((true - true.mean(-1, keepdims=True)) ** 2).sum(-1))
    residual = ((true - predicted) ** 2).sum(-1)
    return 1 - np.divide(residual, total, out=np.full_like(total, np.nan), where=(np.ptp(true, -1) > 0) & (total > 0))


def _effects(data: np.ndarray, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    data, model = np.asarray(data, float), np.asarray(model, float)
    if data.shape != model.shape or data.ndim != 2 or not data.size:
        raise ValueError(
            f"The effects have the shapes {data.shape} (data) and {model.shape} (model); they must be equal (C, G) and "
            "not empty."
        )
    if not (np.isfinite(data).all() and np.isfinite(model).all()):
        raise ValueError("Effects to be scored must be finite; leave out conditions without cells.")
    return data, model
