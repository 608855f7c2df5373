"""Cells compared with control cells of their own level of covariates, such as their batch (S1).

A level is one combination of the covariates' levels. Letters: n cells, C conditions, J levels, G genes.
"""

from __future__ import annotations

import numpy as np

from samsvae.evaluation.metrics.effects import Counts
from samsvae.evaluation.metrics.estimates import Weights, level_shares, mean_and_variance, transformed_block

#: Fewest control cells of a level; with one, the level has no variance.
LEAST_CONTROLS = 2


class Matched:
    """Transformed cells minus the mean of the controls of their level, for one block of rows at a time: (n, G).

    Its means over the cells of a condition are matched effects: sum_j w_j (m_cj - m_0j), with w_j the share of the
    condition's cells in level j. Cells of levels that are not ``usable`` (n,) have no controls, and must not be read.
    """

    ndim = 2

    def __init__(self, X: Counts, level: np.ndarray, controls: np.ndarray, *, method: str):
        self.X, self.level, self.method, self.shape = X, level, method, X.shape
        n_levels = int(level.max(initial=-1)) + 1
        used = np.bincount(level[controls], minlength=n_levels) >= LEAST_CONTROLS
        self.usable = used[level]
        self.means, self.error = np.full((n_levels, X.shape[1]), np.nan), np.zeros((n_levels, X.shape[1]))
        for j in np.flatnonzero(used):
            rows = np.flatnonzero(controls & (level == j))
            self.means[j], variance = mean_and_variance(X, rows, method=method)
            self.error[j] = variance / len(rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return transformed_block(self.X[rows], self.method) - self.means[self.level[rows]]

    def weights(self, condition: np.ndarray, n_conditions: int, cells: np.ndarray) -> Weights:
        """The weights of the controls in the effects of conditions, from some cells (n,) bool."""
        return Weights(level_shares(condition, self.level, cells, (n_conditions, len(self.means))), self.error)
