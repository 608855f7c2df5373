"""Effects of conditions with their standard errors, each from one set of cells and its own controls (S1).

Letters: n cells, G genes, C conditions (a code each), S scored conditions. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import DataError
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS, TOP
from samsvae.evaluation.metrics.effects import METHODS, Counts

#: ``control``: minus the control's mean. ``centred``: minus the mean effect of the scored conditions.
REFERENCES = ("control", "centred")

#: Fewest test cells of a scored condition, and cells behind a variance.
LEAST_CELLS, LEAST_FOR_VARIANCE = 10, 2

_BLOCK = 2**22  # values transformed at a time, to save memory

_IMPOSSIBLE = "Counts must be finite and not negative; correct the counts before they are scored."


class RowBlocks(Protocol):
    """Cells whose values (n, G) are computed when rows are read, such as `Matched` ones."""

    @property
    def ndim(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


#: Cells that can be read in blocks of rows.
Values: TypeAlias = "Counts | RowBlocks"


class Moments(NamedTuple):
    """Cells, means and variances (n - 1) of conditions: ``n`` (C,), ``mean`` and ``variance`` (C, G).

    A mean of no cell and a variance of fewer than two cells are NaN.
    """

    n: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Weights(NamedTuple):
    """How the controls of each level of covariates enter effects.

    ``of`` (C, J): the share of a condition's cells in a level. ``error`` (J, G): the squared error of the mean of the
    level's controls; 0 where it is not used.
    """

    of: np.ndarray
    error: np.ndarray

    def se2(self, weights: np.ndarray) -> np.ndarray:
        """The controls' part of the squared error of sums, sum_j w_j^2 v_0j / n_0j: (S, G) for weights (S, J)."""
        return weights**2 @ self.error


class Effects(NamedTuple):
    """Effects against control: ``delta``, their squared standard errors ``se2``, and ``own``, all (C, G).

    ``own`` is the condition's part of ``se2``, its variance divided by its number of cells. The control's row and those
    of conditions with fewer than two cells are NaN.
    """

    delta: np.ndarray
    se2: np.ndarray
    own: np.ndarray


def log2_counts(X: Counts) -> np.ndarray:
    """log2(1 + (1e4 x_g) / sum_g x) of every cell, float64 (n, G); 0 for a cell without counts (S1).

    The product comes first, so that equal proportions give equal values. X (n, G): counts, dense or sparse. DataError
    for negative or undefined counts.
    """
    x = np.asarray(X if isinstance(X, np.ndarray) else X.toarray(), float)
    total = x.sum(1, keepdims=True)
    if not np.isfinite(total).all() or x.min(initial=0) < 0:
        raise DataError(_IMPOSSIBLE)
    return np.log2(1 + (LIBRARY * x) / np.where(total > 0, total, 1))


class LogCounts:
    """`log2_counts` of the cells ``rows`` (n,) and ``genes`` (D,), ascending, for one block of genes at a time.

    ``values[:, at]`` computes those of a slice of the genes, so memory is that of a block. X: counts of all genes, over
    which a cell's sum is taken (S1). DataError as in log2_counts.
    """

    def __init__(self, X: np.ndarray, rows: np.ndarray, genes: np.ndarray):
        self.X, self.rows, self.genes, self.shape = X, rows, genes, (len(rows), len(genes))
        step = max(1, _BLOCK // max(1, X.shape[1]))
        parts = [X[rows[start : start + step]].sum(1, dtype=float) for start in range(0, len(rows), step)]
        total = np.concatenate(parts)[:, None]
        if not np.isfinite(total).all():
            raise DataError(_IMPOSSIBLE)
        self.total = np.where(total > 0, total, 1)

    def __getitem__(self, at: tuple[slice, slice]) -> np.ndarray:
        genes = self.genes[at[1]]
        first = genes.min(initial=self.X.shape[1])
        x = self.X[:, first : genes.max(initial=0) + 1][self.rows][:, genes - first]  # reads neighbours together
        if x.min(initial=0) < 0:
            raise DataError(_IMPOSSIBLE)
        return np.log2(1 + (LIBRARY * x.astype(float)) / self.total)


def transformed(X: Values, rows: np.ndarray, method: str = "log2") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The cells ``rows`` (k,) of X in blocks: positions in ``rows``, transformed values float64 (block, G).

    ``method``: ``log2`` is log2_counts, ``mean`` is no transform (real-valued simulations). DataError for another
    method and for values that are not finite.
    """
    if method not in METHODS:
        raise DataError(f"method {method!r} is unknown; allowed: {', '.join(METHODS)}.")
    step = max(1, _BLOCK // max(1, X.shape[1]))
    for start in range(0, len(rows), step):
        at = np.arange(start, min(start + step, len(rows)))
        yield at, transformed_block(X[rows[at]], method)


def transformed_block(block: Counts, method: str) -> np.ndarray:
    """One block of `transformed`."""
    if method == "log2":
        return log2_counts(block)
    y = np.asarray(block if isinstance(block, np.ndarray) else block.toarray(), float)
    if not np.isfinite(y).all():
        raise DataError("Values to be averaged must be finite; leave out the cells that are not.")
    return y


def mean_and_variance(X: Values, rows: np.ndarray, *, method: str = "log2") -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (n - 1) of the transformed cells ``rows`` (k,), (G,) each; NaN as in Moments.

    The variance is taken about the mean of each block, so that it loses no digits, and blocks are merged.
    """
    n, mean, squares = 0, np.full(X.shape[1], np.nan), np.zeros(X.shape[1])
    for _, y in transformed(X, rows, method):
        here = y.mean(0)
        squares += ((y - here) ** 2).sum(0)
        if n:
            apart = here - mean
            squares += apart**2 * n * len(y) / (n + len(y))
            here = mean + apart * len(y) / (n + len(y))
        n, mean = n + len(y), here
    return mean, squares / (n - 1) if n >= LEAST_FOR_VARIANCE else np.full(X.shape[1], np.nan)


def condition_moments(
    X: Values,
    condition: np.ndarray,
    n_conditions: int,
    *,
    cells: np.ndarray | None = None,
    method: str = "log2",
) -> Moments:
    """Cells, mean and variance of the transformed cells of each condition, in one pass (S1).

    X (n, G): counts, dense or sparse. ``condition`` (n,): codes 0 to C - 1. ``cells`` (n,) bool: the cells to use, by
    default all. ``method`` as in transformed. DataError for other shapes or codes.
    """
    condition, X = checked_cells(X, condition, n_conditions)
    chosen = np.ones(len(condition), bool) if cells is None else np.asarray(cells)
    if chosen.shape != condition.shape or chosen.dtype != bool:
        raise DataError(
            f"cells must be one boolean for each of {len(condition)} cells, not {chosen.dtype}{chosen.shape}."
        )
    n = np.bincount(condition[chosen], minlength=n_conditions)
    mean, variance = (np.full((n_conditions, X.shape[1]), np.nan) for _ in range(2))
    for c in np.flatnonzero(n):
        rows = np.flatnonzero(chosen & (condition == c))
        mean[c], variance[c] = mean_and_variance(X, rows, method=method)
    return Moments(n, mean, variance)


def checked_cells(X: Values, condition: np.ndarray, n_conditions: int) -> tuple[np.ndarray, Values]:
    """``condition`` and X, whose rows can be chosen. DataError if their shapes differ or a code is not allowed."""
    condition = np.asarray(condition)
    if X.ndim != 2 or condition.shape != (X.shape[0],):
        raise DataError(f"The counts {X.shape} need one condition per cell, not an array of shape {condition.shape}.")
    if len(condition) and not (condition.min() >= 0 and condition.max() < n_conditions):
        raise DataError(
            f"Conditions must be codes from 0 to {n_conditions - 1}; they reach from {condition.min()} to "
            f"{condition.max()}."
        )
    return condition, sparse.csr_matrix(X) if sparse.issparse(X) else X


def effects(
    moments: Moments, *, control: int = 0, controls: Moments | None = None, weights: Weights | None = None
) -> Effects:
    """Effects d = m_c - m_0 and squared standard errors e^2 = v_c / n_c + v_0 / n_0 (S1): rows (C, G) each.

    ``control``: code of the control. ``controls``: where the control comes from, by default ``moments``; for instance
    validation cells where the test split has no control. ``weights``: of the controls, if the moments are those of
    `Matched` cells; the controls' part of the error is then sum_j w_j^2 v_0j / n_0j. DataError if the control has fewer
    than 2 cells.
    """
    source = moments if controls is None else controls
    if source.n[control] < LEAST_FOR_VARIANCE:
        raise DataError(
            f"The control has {source.n[control]} of the chosen cells; effects with an error need at least "
            f"{LEAST_FOR_VARIANCE}."
        )
    n = np.where(moments.n >= LEAST_FOR_VARIANCE, moments.n, np.nan)[:, None]
    n[control] = np.nan
    own = moments.variance / n
    delta = np.where(np.isnan(n), np.nan, moments.mean - source.mean[control])
    if weights is None:
        return Effects(delta, own + source.variance[control] / source.n[control], own)
    return Effects(delta, own + weights.se2(weights.of), own)


def level_shares(condition: np.ndarray, level: np.ndarray, cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The share of each condition's cells in each level, (C, J); 0 for a condition without cells."""
    n = np.zeros(shape)
    np.add.at(n, (condition[cells], level[cells]), 1.0)
    return n / np.maximum(n.sum(1, keepdims=True), 1)


def at_reference(effects: Effects, rows: np.ndarray, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Effects and squared standard errors of the scored conditions at a reference (S1): (S, G) each.

    ``rows``: the scored conditions, indices or (C,) bool. ``reference``: one of REFERENCES. With ``centred`` each side
    is minus its own mean over the scored conditions, the control cancels, and e'^2 = q_c (1 - 2 / S) + sum_c q_c / S^2.
    DataError for another reference, an undefined effect or fewer than 3 conditions.
    """
    delta, se2, own = (values[rows] for values in effects)
    checked_effects(delta, se2)
    if reference == "control":
        return delta, se2
    size = len(delta)
    return centred(delta, reference), own * (1 - 2 / size) + own.sum(0) / size**2


def centred(values: np.ndarray, reference: str = "centred") -> np.ndarray:
    """Predicted effects (S, G) at a reference: minus their own mean, or as they are. DataError for another one."""
    if reference not in REFERENCES:
        raise DataError(f"reference {reference!r} is unknown; allowed: {', '.join(REFERENCES)}.")
    return values - values.mean(0) if reference == "centred" else values


def checked_effects(truth: np.ndarray, *others: np.ndarray, least: int = LEAST_CONDITIONS) -> None:
    """DataError unless all are finite and of one shape (S, G) with at least ``least`` conditions and one gene."""
    shapes = [np.shape(values) for values in (truth, *others)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or not shapes[0][1]:
        raise DataError(f"Effects must have one shape (conditions, genes); they have {', '.join(map(str, shapes))}.")
    if shapes[0][0] < least:
        raise DataError(f"There are {shapes[0][0]} conditions to score; at least {least} are needed.")
    for values in (truth, *others):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            raise DataError(
                f"Row {row} of the effects to score (from 0) has a value that is not finite; leave out the conditions "
                "without cells and those that are not predicted."
            )


def scored_sets(
    n_train: np.ndarray,
    n_test: np.ndarray,
    *,
    control: int | None = 0,
    least_cells: int = LEAST_CELLS,
    least_conditions: int = LEAST_CONDITIONS,
) -> dict[str, np.ndarray]:
    """The conditions that are scored (S1): ``seen``, ``unseen`` and ``all``, (C,) bool each.

    ``n_train``, ``n_test`` (C,): cells. Scored conditions have ``least_cells`` test cells (2 at least, for an error);
    seen ones also have a training effect (2 training cells), unseen ones no training cell. A set of fewer than
    ``least_conditions`` is left out. ``control`` is never scored.
    """
    n_train, n_test = np.asarray(n_train), np.asarray(n_test)
    scored = n_test >= max(least_cells, LEAST_FOR_VARIANCE)
    if control is not None:
        scored[control] = False
    sets = {"seen": scored & (n_train >= LEAST_FOR_VARIANCE), "unseen": scored & (n_train == 0), "all": scored}
    return {name: rows for name, rows in sets.items() if rows.sum() >= least_conditions}


def detected(X: Counts, controls: np.ndarray) -> np.ndarray:
    """Genes with a count in at least max(3, 1 %) of the training control cells (S1): (G,) bool.

    ``controls`` (n,) bool: those cells. A filter that looks at perturbed cells would reveal the sign of effects.
    DataError if no cell is chosen.
    """
    controls = np.asarray(controls, bool)
    if not controls.any():
        raise DataError("No training control cell is chosen; detected genes are those that control cells express.")
    X = sparse.csr_matrix(X) if sparse.issparse(X) else X
    number = np.asarray((X[np.flatnonzero(controls)] > 0).sum(0)).ravel()
    return (number >= 3) & (100 * number >= controls.sum())  # in integers: 1 % of 700 is 7


def top_train(delta: np.ndarray, se2: np.ndarray, *, top: int = TOP) -> np.ndarray:
    """The ``top`` genes of largest |d| / e in the training cells, ties by gene order (S1): indices (S, top).

    ``delta``, ``se2`` (S, G): training effects. An effect of 0 has the ratio 0, even if its error is 0. Genes that
    one cell expresses, and no control cell, all have the ratio 1: rounding decides between them. All genes if there
    are fewer. DataError as in checked_effects.
    """
    checked_effects(delta, se2, least=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(delta == 0, 0, np.abs(delta) / np.sqrt(se2))
    return np.argsort(-ratio, axis=1, kind="stable")[:, :top]
