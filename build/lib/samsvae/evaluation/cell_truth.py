"""Cells as the truth of the honest protocol: what predicted cells are compared with (S6, S7).

Letters: n cells, S scored conditions, G genes, D tested genes, k components.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.evaluation.metrics.distributions import Components, components_of_blocks, energies, energy_distance
from samsvae.evaluation.metrics.estimates import LEAST_FOR_VARIANCE, LogCounts, mean_and_variance, transformed
from samsvae.evaluation.metrics.expression_agreement import ExpressionTests, expression_tests


@dataclass(frozen=True)
class CellTruth:
    """Test cells of the scored conditions, in the order of `Truth.rows`.

    ``genes`` (D,): indices of the tested genes. ``left_out`` (S, D) bool: the targets of each condition. ``components``
    of training cells; ``cells``: the test cells of each condition in them, (n, k). ``energy_of_control`` (S,): energy
    distance of the training controls to these. ``variance`` (S, G) of the test cells. ``tests``: of the test cells
    against the test controls.
    """

    genes: np.ndarray
    left_out: np.ndarray
    components: Components
    cells: list[np.ndarray]
    energy_of_control: np.ndarray
    variance: np.ndarray
    tests: ExpressionTests


@dataclass(frozen=True)
class Cells:
    """Counts of cells: the ``rows`` (n,) of ``X``, and the ``group`` (n,) of each: 0 the control, i + 1 condition i.

    Conditions are numbered as in a `CellTruth`.
    """

    X: np.ndarray
    rows: np.ndarray
    group: np.ndarray

    def of(self, group: int) -> np.ndarray:
        """Rows (n,) of ``X`` with the cells of a group."""
        return self.rows[self.group == group]


@dataclass(frozen=True)
class PredictedCells:
    """What is measured of predicted cells; NaN for conditions with fewer than two of them.

    ``energy`` (S,): energy distance to the test cells. ``variance`` (S, G). ``tests`` against predicted controls.
    """

    energy: np.ndarray
    variance: np.ndarray
    tests: ExpressionTests


def cell_truth(
    screen: Screen, *, rows: np.ndarray, control: int, train: np.ndarray, test: np.ndarray, genes: np.ndarray
) -> CellTruth | str:
    """The test cells of the conditions ``rows`` (S,), or the reason why cells are not scored.

    ``train`` and ``test`` (n,) bool: cells of both sides, each with its controls. ``genes`` (G,) bool: those to
    test, at least one.
    """
    if screen.transform != "log2":
        return "the screen has real values, and only counts of cells are compared"
    tested = np.flatnonzero(genes)
    n_groups, target = len(rows) + 1, target_of(screen)
    held_out, controls = grouped(screen, rows, control, test), np.flatnonzero(train & (screen.condition == control))
    found = components_of_blocks(y for _, y in transformed(screen.counts, np.flatnonzero(train)))
    of_condition = [held_out.of(group) for group in range(1, n_groups)]
    cells = [in_components(found, screen.counts, each) for each in of_condition]
    both = (np.concatenate(cells), np.repeat(np.arange(1, n_groups), [len(each) for each in cells]))
    of_control = energies(*both, *both, in_components(found, screen.counts, controls), n_groups).energy_of_control
    targets = np.where(screen.members[rows] < 0, -1, target[screen.members[rows]])
    return CellTruth(
        genes=tested,
        left_out=(targets[:, :, None] == tested).any(1),
        components=found,
        cells=cells,
        energy_of_control=of_control,
        variance=np.stack([mean_and_variance(screen.counts, each)[1] for each in of_condition]),
        tests=expression_tests(LogCounts(held_out.X, held_out.rows, tested), held_out.group, n_groups),
    )


def in_components(components: Components, X: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The cells ``rows`` (n,) of counts in components: (n, k)."""
    return np.concatenate([components.scores(y) for _, y in transformed(X, rows)])


def target_of(screen: Screen) -> np.ndarray:
    """The gene that each perturbation targets, (T,): that with its name, or with its part before a '_'; -1 if none."""
    position = {name: g for g, name in enumerate(screen.genes.tolist())}
    names = screen.perturbations.tolist()
    return np.array([position.get(name, position.get(name.partition("_")[0], -1)) for name in names], int)


def grouped(screen: Screen, rows: np.ndarray, control: int, chosen: np.ndarray) -> Cells:
    """The chosen cells (n,) bool of a screen that are controls or in the conditions ``rows``, in the screen's order."""
    group = np.full(len(screen.conditions), -1)
    group[control], group[rows] = 0, np.arange(len(rows)) + 1
    at = np.flatnonzero(chosen & (group[screen.condition] >= 0))
    return Cells(screen.counts, at, group[screen.condition[at]])


def measured(truth: CellTruth, parts: Iterable[Cells]) -> PredictedCells:
    """Measure predicted cells, which may come in parts: each has some conditions and all controls."""
    energy = np.full(len(truth.cells), np.nan)
    variance = np.full(truth.variance.shape, np.nan)
    tests = ExpressionTests(*(np.full(truth.tests.z.shape, np.nan) for _ in range(3)))
    for cells in parts:
        found = expression_tests(LogCounts(cells.X, cells.rows, truth.genes), cells.group, len(energy) + 1)
        for i in np.flatnonzero(np.bincount(cells.group)[1:] >= LEAST_FOR_VARIANCE).tolist():
            rows = cells.of(i + 1)
            energy[i] = energy_distance(in_components(truth.components, cells.X, rows), truth.cells[i])
            variance[i] = mean_and_variance(cells.X, rows)[1]
            for into, values in ((tests.z, found.z), (tests.q, found.q), (tests.difference, found.difference)):
                into[i] = values[i]
    return PredictedCells(energy, variance, tests)
