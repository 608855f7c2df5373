"""Scores of new perturbations after a transfer (docs/model.md, "Transfer"): per perturbation, then their mean.

Letters: n cells, T perturbations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from samsvae.data.cells import Cells
from samsvae.evaluation.iwelbo import iwelbo, nelbo
from samsvae.models.model import Model
from samsvae.tables import read_rows

#: Columns that identify a row of a table of a transfer; the value and its number of particles follow (docs/outputs.md).
KEY = ("run", "dataset", "split_name", "variant", "stage", "adapt", "cells", "perturbation", "metric")

COLUMNS = (
    *("run", "model", "seed", "dataset", "split_name", "held_out", "variant", "stage", "adapt", "cells"),
    *("perturbation", "metric", "particles", "value"),
)

#: In the column perturbation: over the perturbations that were scored.
MEAN, SD, ALL = "(mean)", "(sd)", "(all)"


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


def over_perturbations(values: np.ndarray) -> tuple[float, float]:
    """Mean and sd (n - 1) of values (T,) over the perturbations that have one; the sd of a single value is NaN."""
    known = values[np.isfinite(values)]
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def read_transfer(path: str | Path) -> pd.DataFrame:
    """A table of a transfer (docs/outputs.md), with ``cells`` as text ('0', '10', 'all').

    DataError as for `tables.read_rows`.
    """
    table = read_rows(path, KEY, "value")
    return table.astype({"cells": str, "held_out": str})
