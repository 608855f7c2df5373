"""Predicted against observed cells as distributions (S7 of docs/evaluation.md).

Letters: n cells, G genes, k components, C conditions (0 is the control). Rows of results are the
conditions 1 to C - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse
from scipy.spatial import distance

from samsvae.errors import DataError
from samsvae.evaluation.metrics.checked import checked, checked_codes
from samsvae.evaluation.metrics.checked_cells import checked_cells

#: Components in which distances are measured.
COMPONENTS = 20

_BLOCK = 2**20  # distances or values at a time, to save memory


@dataclass(frozen=True)
class Components:
    """The first principal components of training cells: cells become (y - mean) @ vectors, without scaling."""

    mean: np.ndarray  #: (G,)
    vectors: np.ndarray  #: (G, k), orthonormal columns

    def scores(self, Y: np.ndarray | sparse.spmatrix) -> np.ndarray:
        """Cells Y (n, G), dense or sparse, as (n, k). DataError if shapes or values are impossible."""
        Y = checked_cells("Y", Y, len(self.mean))
        return np.asarray(Y @ self.vectors) - self.mean @ self.vectors


def components(Y: np.ndarray | sparse.spmatrix, k: int = COMPONENTS) -> Components:
    """Components of training cells' y: the SVD of Y (n, G), dense or sparse, minus its mean (S7).

    There are min(k, n, G). DataError if shapes or values are impossible.
    """
    Y = checked_cells("Y", Y)
    step = max(1, _BLOCK // Y.shape[1])
    blocks = (Y[start : start + step] for start in range(0, Y.shape[0], step))
    return components_of_blocks((block if isinstance(block, np.ndarray) else block.toarray() for block in blocks), k)


def components_of_blocks(blocks: Iterable[np.ndarray], k: int = COMPONENTS) -> Components:
    """`components` of cells that come in blocks (n, G) each, at least one: memory does not grow with their number.

    The G x G matrix of products is added up about the mean of the first block, so that it loses no digits.
    """
    n, start, total, products = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        if not n:
            start = block.mean(0)
            total, products = np.zeros_like(start), np.zeros((len(start), len(start)))
        block = block - start
        n, total, products = n + len(block), total + block.sum(0), products + block.T @ block
    shift = total / n
    products -= n * np.outer(shift, shift)
    k = min(k, n, len(start))
    vectors = linalg.eigh(products, subset_by_index=[len(start) - k, len(start) - 1])[1][:, ::-1]
    return Components(start + shift, vectors)


def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Euclidean distance of cells a (n, k) to cells b (m, k), in blocks of bounded memory."""
    a, b = checked("a", a, ("n", "k")), checked("b", b, ("m", np.shape(a)[1]))
    return _total(a, b) / (len(a) * len(b))


def mean_distance_within(a: np.ndarray) -> float:
    """Mean Euclidean distance of the n (n - 1) pairs of distinct cells in a (n, k); NaN with a single cell."""
    a = checked("a", a, ("n", "k"))
    return _total(a, a) / (len(a) * (len(a) - 1)) if len(a) > 1 else np.nan


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased energy distance of cells a (n, k) and b (m, k), which may be below 0 (S7); NaN with a single cell."""
    return 2 * mean_distance(a, b) - mean_distance_within(a) - mean_distance_within(b)


def _total(a: np.ndarray, b: np.ndarray) -> float:
    step = max(1, _BLOCK // len(b))
    return sum(float(distance.cdist(a[start : start + step], b).sum()) for start in range(0, len(a), step))


@dataclass(frozen=True)
class Energies:
    """Energy distances of the conditions 1 to C - 1 to their held-out cells (S7), NaN where one side has < 2 cells."""

    energy: np.ndarray  #: (C - 1,), of the predicted cells
    energy_of_control: np.ndarray  #: (C - 1,), of the training controls

    @property
    def n_conditions(self) -> int:
        """Conditions for which both are defined: the sums of ``energy_share`` are over these."""
        return int(np.count_nonzero(np.isfinite(self.energy + self.energy_of_control)))

    @property
    def energy_share(self) -> float:
        """Sum of ``energy`` over sum of ``energy_of_control``: 0 is perfect, 1 no better than control cells.

        NaN if no condition is defined, or if the sum below the line is not positive: then nothing is measurable.
        """
        used = np.isfinite(self.energy + self.energy_of_control)
        below = self.energy_of_control[used].sum()
        return float(self.energy[used].sum() / below) if below > 0 else np.nan


def energies(
    predicted: np.ndarray,
    predicted_condition: np.ndarray,
    observed: np.ndarray,
    observed_condition: np.ndarray,
    control: np.ndarray,
    n_conditions: int,
) -> Energies:
    """Energy distances of predicted cells, and of training controls, to the held-out cells of each condition (S7).

    Cells are scores of `Components`: ``predicted`` (n, k) and ``observed`` (m, k) with their codes, ``control`` (m', k)
    the training controls. Cells of condition 0 are ignored. DataError if shapes, codes or values are impossible, or
    if there are fewer than two training controls.
    """
    predicted = checked("predicted", predicted, ("n", "k"))
    k = predicted.shape[1]
    observed, control = checked("observed", observed, ("m", k)), checked("control", control, ("m'", k))
    if len(control) < 2:
        raise DataError("control has one cell, but energy distances need at least two training controls.")
    sides = [
        _by_condition(cells, checked_codes(name, codes, len(cells), n_conditions), n_conditions)
        for name, cells, codes in (
            ("predicted_condition", predicted, predicted_condition),
            ("observed_condition", observed, observed_condition),
        )
    ]
    energy, of_control = np.full(n_conditions - 1, np.nan), np.full(n_conditions - 1, np.nan)
    within_control = mean_distance_within(control)
    for c, (ours, theirs) in enumerate(zip(*sides, strict=True)):
        if c == 0 or len(theirs) < 2:
            continue
        within = mean_distance_within(theirs)
        of_control[c - 1] = 2 * mean_distance(control, theirs) - within_control - within
        if len(ours) > 1:
            energy[c - 1] = 2 * mean_distance(ours, theirs) - mean_distance_within(ours) - within
    return Energies(energy, of_control)


def _by_condition(cells: np.ndarray, codes: np.ndarray, n_conditions: int) -> list[np.ndarray]:
    order = np.argsort(codes, kind="stable")
    return np.split(cells[order], np.cumsum(np.bincount(codes, minlength=n_conditions))[:-1])


def variance_ratio(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Sum over genes of predicted variances (C, G) over that of the observed ones (C, G), per condition: (C,) (S7).

    NaN where a variance is undefined (fewer than two cells) or the observed variances are all 0. Its summary is the
    mean of log2 over conditions. DataError if shapes differ or a variance is negative.
    """
    predicted = checked("predicted", predicted, ("C", "G"), finite=False)
    observed = checked("observed", observed, predicted.shape, finite=False)
    if (predicted < 0).any() or (observed < 0).any():
        raise DataError("A variance is negative; pass the sample variances of y.")
    above, below = predicted.sum(1), observed.sum(1)
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
