"""The cells of new perturbations: what models adapt to, what they are scored on, and the effects observed there.

Letters: n cells, C conditions (by code), G genes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samsvae.config.transfer import ALL_CELLS
from samsvae.config.vocabulary import NEW_ADAPT, NEW_TEST
from samsvae.data.arrays import Screen, read_split
from samsvae.errors import DataError
from samsvae.evaluation.metrics.effects import condition_means
from samsvae.tables import damaged, read

#: How many cells of each new perturbation are read: a number, or 'all'.
Number = int | str


@dataclass(frozen=True)
class Pools:
    """The cells of new conditions in a split of kind 'transfer'.

    ``condition`` (n,): codes. ``split`` (n,): train, val, test or none. ``rank`` (n,): place of a cell in the pool of
    its condition, from 1; 0 outside the pools. ``test`` (n,) bool: the test cells of new conditions.
    """

    condition: np.ndarray
    split: np.ndarray
    rank: np.ndarray
    test: np.ndarray

    @property
    def every(self) -> np.ndarray:
        """All cells of the new conditions, (n,) bool."""
        return self.test | (self.rank > 0)

    @property
    def new(self) -> np.ndarray:
        """The new conditions that have test cells, as sorted codes."""
        return np.unique(self.condition[self.test])

    def old(self, name: str) -> np.ndarray:
        """The cells of old conditions in a split, (n,) bool."""
        return (self.split == name) & ~self.every

    def enough(self, number: Number) -> np.ndarray:
        """The new conditions with at least ``number`` cells in their pool, as codes."""
        size = np.bincount(self.condition[self.rank > 0], minlength=self.condition.max() + 1)
        return self.new[size[self.new] >= (1 if number == ALL_CELLS else int(number))]

    def first(self, number: Number) -> np.ndarray:
        """The first ``number`` cells of every pool that is large enough, (n,) bool."""
        last = len(self.rank) if number == ALL_CELLS else int(number)
        return (self.rank > 0) & (self.rank <= last) & np.isin(self.condition, self.enough(number))

    def of(self, cells: np.ndarray, codes: Collection[int]) -> np.ndarray:
        """The given cells (n,) bool that are in one of these conditions."""
        return cells & np.isin(self.condition, list(codes))


def read_pools(path: str | Path, screen: Screen) -> Pools:
    """The pools of a split's table of cells (`screens.transfer_split.add_new`), in the order of the screen's cells.

    DataError if the table is damaged, does not fit the screen or has no new condition.
    """
    split, table = read_split(path, screen.cells), read(path).set_index("cell")
    if missing := [name for name in ("transfer", "rank") if name not in table]:
        raise damaged(path, f"no column {missing[0]!r}, which a split of kind 'transfer' has")
    table = table.loc[screen.cells]
    part = table["transfer"].to_numpy(object)
    pools = Pools(screen.condition, split, np.where(part == NEW_ADAPT, table["rank"], 0), part == NEW_TEST)
    if not len(pools.new):
        raise DataError(f"{path}: no cell is a test cell of a new perturbation ({NEW_TEST!r} in column 'transfer').")
    return pools


def old_conditions(screen: Screen, pools: Pools) -> np.ndarray:
    """The perturbed conditions with training cells that are not new, as codes."""
    codes = np.unique(screen.condition[pools.old("train")])
    return codes[(screen.members[codes] >= 0).any(1) & ~np.isin(codes, pools.new)]


def observed_effects(screen: Screen, pools: Pools, cells: np.ndarray) -> np.ndarray:
    """Effects (C, G) in some cells (n,) bool, against the old training cells: those of the control or, without one, the
    mean of the old conditions. NaN for a condition without cells.
    """

    def means(used: np.ndarray) -> np.ndarray:
        return condition_means(
            screen.counts, screen.condition, len(screen.conditions), cells=used, method=screen.transform
        )

    control, known = screen.control, means(pools.old("train"))
    return means(cells) - (known[old_conditions(screen, pools)].mean(0) if control is None else known[control])
