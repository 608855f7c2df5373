"""Tables with the scores of new perturbations (docs/outputs.md): written, read and collected. Needs no torch.

Letters: T perturbations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.evaluation.collect import of_runs
from samsvae.tables import read_rows

#: Columns that identify a row of a table of a transfer; the value and its number of particles follow (docs/outputs.md).
KEY = ("run", "dataset", "split_name", "variant", "stage", "adapt", "cells", "perturbation", "metric")

COLUMNS = (
    *("run", "model", "seed", "dataset", "split_name", "held_out", "variant", "stage", "adapt", "cells"),
    *("perturbation", "metric", "particles", "value"),
)

#: Metrics that depend on the number of particles of the bound.
OF_PARTICLES = ("inll", "gain")

#: In the column perturbation: over the perturbations that were scored.
MEAN, SD, ALL = "(mean)", "(sd)", "(all)"


def over_perturbations(values: np.ndarray) -> tuple[float, float]:
    """Mean and sd (n - 1) of values (T,) over the perturbations that have one; the sd of a single value is NaN."""
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else float("nan")
    return mean, float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def tidy(values: Mapping[str, np.ndarray], names: Sequence[str], *, particles: int | None) -> pd.DataFrame:
    """Scores of perturbations as rows: perturbation, metric, particles, value; then their mean and sd.

    ``values``: by metric, an array (T,) in the order of ``names``. ``particles``: of the bound; None for a likelihood.
    """
    rows = []
    for metric, each in values.items():
        mean, sd = over_perturbations(each)
        k = float(particles) if particles and metric in OF_PARTICLES else np.nan
        for name, value in zip((*names, MEAN, SD), (*each.tolist(), mean, sd), strict=True):
            rows.append({"perturbation": name, "metric": metric, "particles": k, "value": value})
    return pd.DataFrame(rows, columns=["perturbation", "metric", "particles", "value"])


def together(**numbers: float) -> pd.DataFrame:
    """Numbers about all perturbations together, as rows like those of `tidy`."""
    rows = [
        {"perturbation": ALL, "metric": name, "particles": np.nan, "value": float(value)}
        for name, value in numbers.items()
    ]
    return pd.DataFrame(rows, columns=["perturbation", "metric", "particles", "value"])


def read_transfer(path: str | Path) -> pd.DataFrame:
    """A table of a transfer (docs/outputs.md), with ``cells`` as text ('0', '10', 'all').

    DataError as for `tables.read_rows`.
    """
    return _as_text(read_rows(path, KEY, "value"))


def collect_transfer(grid: pd.DataFrame, runs: Iterable[str], baselines: Iterable[str]) -> pd.DataFrame:
    """The tables of all runs of an experiment and of the baselines for every split, as one.

    DataError if a table is damaged, or is not that of one run of the grid.
    """
    tables = [of_runs(grid, runs, KEY, "value"), *(read_rows(path, KEY, "value") for path in baselines)]
    return pd.concat([_as_text(table) for table in tables], ignore_index=True)


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text in the columns that may look like numbers, such as cells without 'all'."""
    return table.astype({"cells": str, "held_out": str})
