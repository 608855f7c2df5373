"""Effects of single perturbations by least squares, for cells that received several.

The transformed counts of a cell, log2(1 + 1e4 x / sum x), are regressed on an intercept, its dosages and, if given,
further columns. The effect of a perturbation is its coefficient: what adding it does to the mean of the screen's cells,
the other perturbations being equal. Letters: n cells, T perturbations, K further columns, G genes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.metrics.effects import Counts
from samsvae.evaluation.metrics.estimates import Effects, transformed

#: An eigenvalue of the scaled normal matrix, relative to the largest one, below which it counts as 0.
SINGULAR = 1e-9


class Regression(NamedTuple):
    """Least squares of every gene.

    ``effect`` and ``se2`` (T, G): coefficients of the dosages and their squared standard errors, the residual variance
    of the gene times the diagonal of (X'X)^-1; NaN where the cells do not determine the coefficient. ``intercept``
    (G,). ``n`` (T,): the cells that received each perturbation. ``undetermined`` (T,) bool.
    """

    effect: np.ndarray
    se2: np.ndarray
    intercept: np.ndarray
    n: np.ndarray
    undetermined: np.ndarray


def dosages(screen: Screen) -> sparse.csr_matrix:
    """What each cell received, (n, T) of ones."""
    members = screen.members[screen.condition]
    cell, place = np.nonzero(members >= 0)
    ones = np.ones(len(cell))
    return sparse.csr_matrix((ones, (cell, members[cell, place])), (len(members), len(screen.perturbations)))


def level_columns(screen: Screen) -> np.ndarray | None:
    """The levels of covariates as columns (n, K) of 0 and 1, without the first of each; None without covariates."""
    if screen.covariates is None:
        return None
    sizes, codes = screen.covariates.sizes, screen.covariates.codes
    parts = [codes[:, [v]] == np.arange(1, size) for v, size in enumerate(sizes)]
    return np.concatenate(parts, axis=1).astype(float)


def regress(
    X: Counts, dosage: sparse.csr_matrix, rows: np.ndarray, *, more: np.ndarray | None = None, method: str = "log2"
) -> Regression:
    """Effects of perturbations in the cells ``rows`` (k,) by ordinary least squares.

    X (n, G): counts, dense or sparse; ``method`` as in `estimates.transformed`. ``dosage`` (n, T), sparse. ``more``
    (n, K): further columns, such as covariates. A perturbation that no cell received, or whose dosage is a combination
    of other columns, has no coefficient of its own (NaN). The transformed counts are dense in blocks of cells only, so
    memory is that of (T + K + 1)^2 and of a few (T + K + 1, G). DataError unless there are more cells than columns that
    differ, or if the intercept is not determined, as when all cells received the same number of perturbations.
    """
    columns = [sparse.csr_matrix(np.ones((len(rows), 1))), dosage[rows]]
    if more is not None:
        columns.append(sparse.csr_matrix(np.asarray(more, float)[rows]))
    design = sparse.hstack(columns, format="csr")
    products, squares = np.zeros((design.shape[1], X.shape[1])), np.zeros(X.shape[1])
    for at, y in transformed(X, rows, method):
        products += design[at].T @ y
        squares += np.einsum("ng,ng->g", y, y)
    inverse, rank, free = _inverse((design.T @ design).toarray())
    if len(rows) <= rank:
        raise DataError(f"{len(rows)} cells are too few for a regression on {dosage.shape[1]} perturbations.")
    if free[0]:
        raise DataError(
            "there are no control cells, and the dosages do not determine what a cell without perturbations is like."
        )
    coefficients = inverse @ products
    residual = np.maximum(squares - np.einsum("cg,cg->g", coefficients, products), 0) / (len(rows) - rank)
    of_dosages = slice(1, 1 + dosage.shape[1])
    effect, se2 = coefficients[of_dosages].copy(), np.outer(np.diag(inverse)[of_dosages], residual)
    undetermined = free[of_dosages]
    effect[undetermined], se2[undetermined] = np.nan, np.nan
    n = np.asarray(dosage[rows].sum(0)).ravel().astype(int)
    return Regression(effect, se2, coefficients[0], n, undetermined)


def effects(found: Regression) -> Effects:
    """A regression as `Effects`, with a last row of NaN for the reference.

    Coefficients share no control, so the own part of an error is all of it. The covariances of coefficients are left
    out when effects are centred; they vanish as dosages become independent.
    """
    delta, se2 = (np.vstack([values, np.full(values.shape[1], np.nan)]) for values in (found.effect, found.se2))
    return Effects(delta, se2, se2)


def _inverse(normal: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """The pseudoinverse of a normal matrix, its rank, and the columns that it does not determine (bool).

    A coefficient is determined if no direction in which the fit stays the same changes it.
    """
    scale = np.sqrt(np.maximum(np.diag(normal), 0))
    scale[scale == 0] = 1
    values, vectors = np.linalg.eigh(normal / np.outer(scale, scale))
    kept = values > SINGULAR * values[-1]
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T / np.outer(scale, scale)
    free = (vectors[:, ~kept] ** 2).sum(1) > SINGULAR
    return inverse, int(kept.sum()), free
