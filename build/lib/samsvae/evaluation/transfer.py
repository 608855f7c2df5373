"""Bounds of the cells of new perturbations (docs/model.md, "Transfer"), per perturbation or condition.

Letters: n cells, T perturbations.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from samsvae.data.cells import Cells
from samsvae.evaluation.iwelbo import iwelbo, nelbo
from samsvae.models.model import Model


def bounds(
    model: Model,
    cells: Cells,
    *,
    group: np.ndarray | None = None,
    particles: int = 1000,
    draws: int = 10,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """``nelbo`` and ``inll`` (T,) in nats per cell: means over the cells of each perturbation, NaN without cells.

    ``nelbo``: -log p(x | z) + KL of z, with ``draws`` of z per cell. ``inll``: minus the IWELBO with ``particles``; the
    bound depends on them, so always report both. ``group`` (n,): codes to average over in place of perturbations.
    """
    each = {
        "nelbo": nelbo(model, cells, draws=draws, seed=seed),
        "inll": -iwelbo(model, cells, particles=particles, seed=seed),
    }
    return {
        name: by_perturbation(values, cells) if group is None else by_group(values, group, int(group.max()) + 1)
        for name, values in each.items()
    }


def by_perturbation(values: Tensor, cells: Cells) -> np.ndarray:
    """Means of values (n,) over the cells of each perturbation, float64 (T,); NaN for one without cells."""
    return by_group(values, cells.index.amin(1).cpu().numpy(), cells.n_perturbations + 1)[:-1]


def by_group(values: Tensor, group: np.ndarray, number: int) -> np.ndarray:
    """Means of values (n,) over the cells of each group 0 to ``number`` - 1, float64; NaN for one without cells."""
    total = np.bincount(group, values.detach().double().cpu().numpy(), number)
    size = np.bincount(group, minlength=number)
    return np.divide(total, size, out=np.full(number, np.nan), where=size > 0)
