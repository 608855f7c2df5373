"""Observed effects of the conditions in the data.

Letters: n cells, C conditions, P most perturbations in a condition, G genes.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.vocabulary import SPLITS, UNPERTURBED
from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.matched_parts import part_of
from samsvae.evaluation.metrics.effects import average_effect, condition_means
from samsvae.evaluation.metrics.estimates import condition_moments
from samsvae.evaluation.regression import dosages, level_columns, regress


def effects(screen: Screen, split: np.ndarray, *, reference: str) -> ad.AnnData:
    """Effects (C, G), with a row for each condition that has training, validation or test cells.

    X is computed from all cells of a condition, in any split or none (``published``). The layers ``train`` and
    ``held_out`` use the training and the test cells alone; a condition without such cells is NaN. ``reference`` names
    the condition that is subtracted; with '' the mean of all rows is subtracted. A layer whose split has no reference
    cell uses the reference's validation cells instead (Norman has no test controls), and ``held_out`` its training
    cells if there are none either. DataError if the reference has neither training nor validation cells.

    In a screen with covariates, cells are compared with reference cells of their own level (`matched_parts`), and
    ``n_matched`` counts those in levels that have any. If effects are relative to the zero dosage, rows are single
    perturbations, and effects are coefficients of a regression (`regression`).
    """
    if screen.by_dosage:
        return _effects_by_dosage(screen, split)
    counts = np.stack([np.bincount(screen.condition[split == s], minlength=len(screen.conditions)) for s in SPLITS])
    control = int(np.flatnonzero(screen.conditions == reference)[0]) if reference else None
    in_split = counts.sum(0) > 0
    if control is not None:
        in_split[control] = False

    def delta(cells: np.ndarray, *instead: str) -> np.ndarray:
        """Effects in ``cells``; if they have no reference cell, against the first split in ``instead`` with one."""
        n_conditions = len(screen.conditions)
        if screen.covariates is not None:
            return _matched(screen, cells, control, [split == s for s in instead], in_split)
        if control is None:
            means = condition_means(screen.counts, screen.condition, n_conditions, cells=cells, method=screen.transform)
            return means - np.nanmean(means[in_split], axis=0)
        at_control = screen.condition == control
        control_cells = next((c for c in (cells, *(split == s for s in instead)) if (c & at_control).any()), None)
        if control_cells is None:
            raise DataError(f"The reference {reference!r} has no cell in training or validation; split some there.")
        return average_effect(
            screen.counts,
            screen.condition,
            control,
            n_conditions=n_conditions,
            cells=cells,
            control_cells=control_cells,
            method=screen.transform,
        )

    layers = {
        "train": delta(split == "train", "val")[in_split],
        "held_out": delta(split == "test", "val", "train")[in_split],
    }
    return ad.AnnData(
        delta(np.ones(len(split), bool))[in_split],
        _obs(screen, counts, in_split, control),
        pd.DataFrame(index=screen.genes.astype(object)),
        layers=layers,
        uns={"reference": reference, "transform": screen.transform, "members": screen.members[in_split]},
    )


def _references(screen: Screen, control: int | None) -> np.ndarray:
    """The cells that others are compared with (n,) bool: those of the reference, or all."""
    return np.ones(len(screen.condition), bool) if control is None else screen.condition == control


def _matched(
    screen: Screen, cells: np.ndarray, control: int | None, instead: list[np.ndarray], in_split: np.ndarray
) -> np.ndarray:
    """Effects (C, G) in ``cells`` (n,) bool, matched to reference cells of their own level, here or in ``instead``."""
    at_reference = _references(screen, control)
    found = next((c for c in (cells, *instead) if (c & at_reference).any()), None)
    if found is None:
        raise DataError("The reference has no cell in training or validation; split some there.")
    part = part_of(screen, cells, found & at_reference)
    n_conditions = len(screen.conditions)
    means = condition_moments(part.X, screen.condition, n_conditions, cells=part.rows, method=part.method).mean
    return means - np.nanmean(means[in_split], axis=0) if control is None else means


def _obs(screen: Screen, counts: np.ndarray, in_split: np.ndarray, control: int | None) -> pd.DataFrame:
    """The table of the rows: cells in all, in each split and, with covariates, matched ones; perturbations."""
    n_conditions = len(screen.conditions)
    columns = {
        "n_cells": np.bincount(screen.condition, minlength=n_conditions),
        **{f"n_{name}": number for name, number in zip(SPLITS, counts, strict=True)},
        "n_perturbations": (screen.members >= 0).sum(1),
    }
    if screen.covariates is not None:
        every = np.ones(len(screen.condition), bool)
        used = part_of(screen, every, _references(screen, control), "all cells").rows
        columns["n_matched"] = np.bincount(screen.condition[used], minlength=n_conditions)
    return pd.DataFrame(columns, index=screen.conditions.astype(object))[in_split]


def _effects_by_dosage(screen: Screen, split: np.ndarray) -> ad.AnnData:
    """Effects (T, G) of the single perturbations, relative to the zero dosage."""
    dosage, more = dosages(screen), level_columns(screen)

    def fitted(cells: np.ndarray) -> np.ndarray:
        return regress(screen.counts, dosage, np.flatnonzero(cells), more=more, method=screen.transform).effect

    cells = {"cells": np.ones(len(split), bool), **{name: split == name for name in SPLITS}}
    numbers = {f"n_{name}": np.asarray(dosage[at].sum(0)).ravel().astype(int) for name, at in cells.items()}
    return ad.AnnData(
        fitted(cells["cells"]),
        pd.DataFrame({**numbers, "n_perturbations": 1}, index=screen.perturbations.astype(object)),
        pd.DataFrame(index=screen.genes.astype(object)),
        layers={"train": fitted(cells["train"]), "held_out": fitted(cells["test"])},
        uns={
            "reference": UNPERTURBED,
            "transform": screen.transform,
            "members": np.arange(len(screen.perturbations))[:, None],
        },
    )
