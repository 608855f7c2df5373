"""Effects of the conditions in the data.

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
    """Effects of every condition that has cells in a split, (C, G): one row per condition, a column per gene.

    X is the published reference: all cells, whatever their split. Layers ``train`` and ``held_out`` are from the
    cells of that split alone, NaN where a condition has none. ``reference`` names the condition that is
    subtracted; '' subtracts the mean of the conditions that have a row. Where the reference has no cell in the split
    that a layer is of, its validation cells stand in (Norman has no test controls).
    """
    counts = np.stack([np.bincount(screen.condition[split == s], minlength=len(screen.conditions)) for s in SPLITS])
    control = int(np.flatnonzero(screen.conditions == reference)[0]) if reference else None
    transform = "log2" if screen.counts.dtype.kind in "iu" else "mean"
    kept = counts.sum(0) > 0
    if control is not None:
        kept[control] = False

    def delta(cells: np.ndarray) -> np.ndarray:
        chosen = {"n_conditions": len(screen.conditions), "cells": cells, "method": transform}
        if control is None:
            means = condition_means(screen.counts, screen.condition, **chosen)
            return means - np.nanmean(means[kept], axis=0)
        at_control = screen.condition == control
        stand_in = cells if (cells & at_control).any() else split == "val"
        if not (stand_in & at_control).any():
            raise DataError(f"The reference {reference!r} has no cell in the training, test or validation split.")
        return average_effect(screen.counts, screen.condition, control, control_cells=stand_in, **chosen)

    obs = pd.DataFrame(
        {
            "n_cells": np.bincount(screen.condition, minlength=len(screen.conditions))[kept],
            **{f"n_{name}": number[kept] for name, number in zip(SPLITS, counts, strict=True)},
            "n_perturbations": (screen.members >= 0).sum(1)[kept],
        },
        index=screen.conditions[kept].astype(object),
    )
    layers = {"train": delta(split == "train")[kept], "held_out": delta(split == "test")[kept]}
    return ad.AnnData(
        delta(np.ones(len(split), bool))[kept],
        obs,
        pd.DataFrame(index=screen.genes.astype(object)),
        layers=layers,
        uns={"reference": reference, "transform": transform, "members": screen.members[kept]},
    )
