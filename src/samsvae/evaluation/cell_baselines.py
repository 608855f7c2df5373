"""Cells predicted without a model: training cells (S4, S7)."""

from __future__ import annotations

import zlib

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.evaluation.cell_truth import Cells, CellTruth, PredictedCells, grouped, measured
from samsvae.evaluation.matched_parts import held_out_context
from samsvae.evaluation.metrics.estimates import mean_and_variance
from samsvae.evaluation.metrics.expression_agreement import ExpressionTests
from samsvae.evaluation.truth import Truth


def cell_baselines(screen: Screen, split: np.ndarray, truth: Truth) -> dict[str, PredictedCells | str]:
    """Training cells as predictions of test cells, by the name of the baseline, or why cells are not scored.

    ``no_change``: the training controls. ``mean_of_perturbations``: as many cells as are tested, of random other
    perturbations. ``train_mean``: the condition's own training cells. All are tested against the training controls,
    which are those of the held-out context if there is one.
    """
    if isinstance(truth.cells, str):
        return dict.fromkeys(("no_change", "mean_of_perturbations", "train_mean"), truth.cells)
    context = held_out_context(screen, split)
    train = split == "train"
    if context is not None:  # the controls of other contexts differ from those of this one
        train = train & (context[1] | (screen.condition != truth.control))
    own = grouped(screen, truth.rows, truth.control, train)
    number = [len(each) for each in truth.cells.cells]
    trained = np.flatnonzero((split == "train") & (screen.condition != truth.control))
    return {
        "no_change": _no_change(screen, truth.cells, own.of(0)),
        "mean_of_perturbations": measured(truth.cells, [others(screen, truth, trained, own.of(0), number)]),
        "train_mean": measured(truth.cells, [own]),
    }


def others(
    screen: Screen, truth: Truth, perturbed: np.ndarray, controls: np.ndarray, number: list[int], *, repeat: int = 0
) -> Cells:
    """Random perturbed cells of other conditions for every scored condition, and the controls.

    ``perturbed`` and ``controls``: rows of the screen. ``number``: of cells that each scored condition gets; fewer if
    there are not as many. They are drawn by ``default_rng([0, repeat, crc32(name)])``.
    """
    rows = [controls]
    for c, n in zip(truth.rows, number, strict=True):
        other = perturbed[screen.condition[perturbed] != c]
        rng = np.random.default_rng([0, repeat, zlib.crc32(str(truth.names[c]).encode())])
        rows.append(rng.choice(other, min(n, len(other)), replace=False))
    return Cells(screen.counts, np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(each) for each in rows]))


def _no_change(screen: Screen, truth: CellTruth, controls: np.ndarray) -> PredictedCells:
    """The training controls as the prediction for every condition: no gene differs from control."""
    nothing = np.zeros_like(truth.tests.z)
    variance = np.broadcast_to(mean_and_variance(screen.counts, controls)[1], truth.variance.shape)
    return PredictedCells(truth.energy_of_control, variance, ExpressionTests(nothing, nothing + 1, nothing))
