"""Cells of another screen as a trained model reads them: its genes and its perturbations, by name."""

from __future__ import annotations

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.data.cells import Cells, Dosage, cells_of, encode
from samsvae.errors import DataError, nearest, some
from samsvae.training.adapt_checkpoint import in_order
from samsvae.training.checkpoint import Checkpoint
from samsvae.training.covariates import with_levels


def cells_for(checkpoint: Checkpoint, screen: Screen, rows: np.ndarray | None = None) -> Cells:
    """The cells at ``rows`` of a screen (a mask or positions; default: all), on the device of the model.

    DataError if the genes are not those of the model, if it does not know a perturbation or the level of a covariate,
    or if a covariate is missing.
    """
    screen = with_levels(in_order(screen, checkpoint.genes), checkpoint.covariates)
    dosage = encode(screen, checkpoint.facts["encoding"])
    position = {name: at for at, name in enumerate(checkpoint.perturbations)}
    if unknown := [name for name in dosage.names if name not in position]:
        raise DataError(
            f"perturbation: the model does not know {some(unknown)}.{nearest(unknown[0], position)} "
            "Remove their cells, or add them to the model with adapt."
        )
    place = np.array([position[name] for name in dosage.names] + [len(position)], np.int64)
    rows = np.arange(len(screen.cells)) if rows is None else rows
    known = Dosage(checkpoint.perturbations, place[dosage.members])
    return cells_of(screen, rows, known, checkpoint.model.input_mean.device)
