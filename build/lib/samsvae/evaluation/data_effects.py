"""Observed effects of the conditions in the data.

Letters: n cells, C conditions, P most perturbations in a condition, G genes.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.vocabulary import SPLITS
from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.metrics.effects import average_effect, condition_means


def effects(screen: Screen, split: np.ndarray, *, reference: str) -> ad.AnnData:
    """Effects (C, G), with a row for each condition that has training, validation or test cells.

    X is computed from all cells of a condition, in any split or none (``published``). The layers ``train`` and
    ``held_out`` use the training and the test cells alone; a condition without such cells is NaN. ``reference`` names
    the condition that is subtracted; with '' the mean of all rows is subtracted. A layer whose split has no reference
    cell uses the reference's validation cells instead (Norman has no test controls), and ``held_out`` its training
    cells if there are none either. DataError if the reference has neither training nor validation cells.
    """
    counts = np.stack([np.bincount(screen.condition[split == s], minlength=len(screen.conditions)) for s in SPLITS])
    control = int(np.flatnonzero(screen.conditions == reference)[0]) if reference else None
    in_split = counts.sum(0) > 0
    if control is not None:
        in_split[control] = False

    def delta(cells: np.ndarray, *instead: str) -> np.ndarray:
        """Effects in ``cells``; if they have no reference cell, against the first split in ``instead`` with one."""
        n_conditions = len(screen.conditions)
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

    obs = pd.DataFrame(
        {
            "n_cells": np.bincount(screen.condition, minlength=len(screen.conditions))[in_split],
            **{f"n_{name}": number[in_split] for name, number in zip(SPLITS, counts, strict=True)},
            "n_perturbations": (screen.members >= 0).sum(1)[in_split],
        },
        index=screen.conditions[in_split].astype(object),
    )
    layers = {
        "train": delta(split == "train", "val")[in_split],
        "held_out": delta(split == "test", "val", "train")[in_split],
    }
    return ad.AnnData(
        delta(np.ones(len(split), bool))[in_split],
        obs,
        pd.DataFrame(index=screen.genes.astype(object)),
        layers=layers,
        uns={"reference": reference, "transform": screen.transform, "members": screen.members[in_split]},
    )
