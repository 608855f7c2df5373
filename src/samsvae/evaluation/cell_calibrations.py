"""Which scores of cells tell a replicate from other perturbed cells on a screen, and what a replicate scores (S2, S9).

Letters: n cells, S scored conditions, D tested genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.evaluation.cell_baselines import others
from samsvae.evaluation.cell_scores import EXPRESSION, expression, why_few
from samsvae.evaluation.cell_truth import Cells, CellTruth, grouped, in_components
from samsvae.evaluation.metrics.calibration import REPEATS, Calibration, calibration
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS
from samsvae.evaluation.metrics.distributions import energy_distance
from samsvae.evaluation.metrics.estimates import LogCounts
from samsvae.evaluation.metrics.expression_agreement import ExpressionTests, expression_tests
from samsvae.evaluation.metrics.halves import halves
from samsvae.evaluation.score_tables import Score, Scored
from samsvae.evaluation.truth import Truth

#: Scores by name, (S,) each.
Named = dict[str, np.ndarray]


def cell_calibrations(screen: Screen, truth: Truth) -> tuple[dict[str, Calibration], list[Scored]]:
    """Calibration of the scores of cells on halves of all cells, and the scores of a technical duplicate.

    Half A is the truth, half B the positive, as many random other perturbed cells of half B the negative. The technical
    duplicate is half B: the mean of its scores over repeats, for differential expression only, since the ceiling of
    the energy is 0. Conditions with fewer than two cells in a half are left out.
    """
    if isinstance(truth.cells, str):
        return {}, []
    place = in_components(truth.cells.components, screen.counts, np.arange(len(screen.condition)))
    cuts = halves(screen.condition, screen.conditions, repeats=REPEATS)
    pairs = [_scored(screen, truth, truth.cells, place, cut, repeat) for repeat, cut in enumerate(cuts)]
    positive, negative = (
        {name: np.array([pair[side][name] for pair in pairs]) for name in ("energy_share", *EXPRESSION)}
        for side in (0, 1)
    )
    kept = np.isfinite(positive["energy_share"] + negative["energy_share"]).all(0)
    if kept.sum() < LEAST_CONDITIONS:
        return {}, []
    found = {
        name: calibration(positive[name][:, kept], negative[name][:, kept], higher_is_better=name != "energy_share")
        for name in positive
        if name != "auprc_chance"
    }
    return found, list(_duplicate(truth, truth.cells, {name: positive[name] for name in EXPRESSION}, kept))


def _scored(
    screen: Screen, truth: Truth, cells: CellTruth, place: np.ndarray, cut: np.ndarray, repeat: int
) -> tuple[Named, Named]:
    """The scores of half B, and of other perturbed cells of it, against half A; energies for ``energy_share``.

    ``place`` (n, k): all cells in components. ``cut`` (n,): 0 and 1 for the cells of the halves.
    """
    a, b = (grouped(screen, truth.rows, truth.control, cut == half) for half in (0, 1))
    size = len(truth.rows)
    number = np.bincount(b.group, minlength=size + 1)[1:].tolist()
    perturbed = np.flatnonzero((cut == 1) & (screen.condition != truth.control))
    c = others(screen, truth, perturbed, b.of(0), number, repeat=repeat)
    energy = np.full((2, size), np.nan)
    for i in np.flatnonzero(np.array(number) > 0).tolist():
        energy[:, i] = [energy_distance(place[half.of(i + 1)], place[a.of(i + 1)]) for half in (b, c)]
    true = _tests(a, cells.genes, size)
    # one call for both, which sorts their controls once
    new = c.group > 0
    both = Cells(screen.counts, np.r_[b.rows, c.rows[new]], np.r_[b.group, c.group[new] + size])
    tests = _tests(both, cells.genes, 2 * size)

    def side(energies: np.ndarray, at: slice) -> Named:
        found = ExpressionTests(tests.z[at], tests.q[at], tests.difference[at])
        return {"energy_share": energies, **expression(true, found, cells.left_out)}

    return side(energy[0], slice(size)), side(energy[1], slice(size, None))


def _tests(cells: Cells, genes: np.ndarray, n_conditions: int) -> ExpressionTests:
    return expression_tests(LogCounts(cells.X, cells.rows, genes), cells.group, n_conditions + 1)


def _duplicate(truth: Truth, cells: CellTruth, scores: Named, kept: np.ndarray) -> Iterator[Scored]:
    """The mean over repeats of scores (R, S) of the conditions ``kept`` (S,) bool in which predictions have a score."""
    predicted = expression(cells.tests, cells.tests, cells.left_out)
    for where, rows in truth.sets.items():
        here = rows[truth.rows] & kept
        for name, values in scores.items():
            known = np.isfinite(values) & np.isfinite(predicted[name])
            mean = np.full(len(kept), np.nan)
            np.divide(np.where(known, values, 0).sum(0), known.sum(0), out=mean, where=known.any(0))
            yield name, where, truth.rows[here], Score(mean[here], reason=why_few(name, mean[here]))
