"""Scores of new perturbations after a transfer (docs/model.md, "Transfer"), per perturbation.

Letters: n cells, T perturbations.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from samsvae.data.cells import Cells
from samsvae.evaluation.iwelbo import iwelbo, nelbo
from samsvae.models.model import Model


def bounds(
    model: Model, cells: Cells, *, particles: int = 1000, draws: int = 10, seed: int = 0
) -> dict[str, np.ndarray]:
    """``nelbo`` and ``inll`` (T,) in nats per cell: means over the cells of each perturbation, NaN without cells.

    ``nelbo``: -log p(x | z) + KL of z, with ``draws`` of z per cell. ``inll``: minus the IWELBO with ``particles``,
    which must be written beside it, because the bound depends on them.
    """
    return {
        "nelbo": by_perturbation(nelbo(model, cells, draws=draws, seed=seed), cells),
        "inll": by_perturbation(-iwelbo(model, cells, particles=particles, seed=seed), cells),
    }


def by_perturbation(values: np.ndarray | Tensor, cells: Cells) -> np.ndarray:
    """Means of values (n,) over the cells of each perturbation, float64 (T,); NaN for one without cells."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    at, size = cells.index.amin(1).cpu().numpy(), cells.n_perturbations + 1
    total, number = np.bincount(at, values, size)[:-1], np.bincount(at, minlength=size)[:-1]
    return np.divide(total, number, out=np.full(size - 1, np.nan), where=number > 0)
