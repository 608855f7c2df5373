"""The honest protocol for a split: scores of the baselines, the ceiling and a technical duplicate (docs/evaluation.md).

Baselines read training cells alone. Needs no model, so that a job of a split does not import torch. Letters: n cells,
C conditions, G genes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.calibrations import calibrations
from samsvae.evaluation.cell_baselines import cell_baselines
from samsvae.evaluation.cell_calibrations import cell_calibrations
from samsvae.evaluation.cell_scores import cell_scores, energy_ceiling
from samsvae.evaluation.effect_scores import ceilings, coverage_rows, scores, yardstick
from samsvae.evaluation.metrics.calibration import Calibration
from samsvae.evaluation.score_tables import CEILING, DUPLICATE, Scored, tables, undefined
from samsvae.evaluation.truth import Truth


def split_tables(screen: Screen, split: np.ndarray, truth: Truth | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of all baselines, of the ceiling and of a technical duplicate: both tables, with a column model.

    The columns ``drf`` and ``bds`` of the first say what a metric is worth on this screen (S9). A split without effects
    to score (``truth`` is the reason) has one row that says why.
    """
    if isinstance(truth, str):
        first, second = undefined(truth)
        return first.assign(model=CEILING, drf=np.nan, bds=np.nan), second.assign(model="")
    known, duplicate = _calibrated(screen, truth)
    cells = cell_baselines(screen, split, truth)
    every: dict[str, Iterable[Scored]] = {
        **{
            name: chain(scores(truth, predicted), cell_scores(truth, cells[name]) if name in cells else ())
            for name, predicted in truth.baselines.items()
        },
        CEILING: chain(ceilings(truth), energy_ceiling(truth)),
        **({DUPLICATE: duplicate} if duplicate else {}),
    }
    found = {name: tables(truth.names, each) for name, each in every.items()}
    parts = [table.assign(model=name) for name, (table, _) in found.items()]
    if "seen" in truth.sets:
        parts.append(coverage_rows(yardstick(truth), "seen").assign(model="train_mean"))
    table = pd.concat(parts, ignore_index=True)
    for name in ("drf", "bds"):
        table[name] = [getattr(known[m], name) if m in known else np.nan for m in table["metric"]]
    return table, pd.concat([each.assign(model=name) for name, (_, each) in found.items()], ignore_index=True)


def _calibrated(screen: Screen, truth: Truth) -> tuple[dict[str, Calibration], list[Scored]]:
    """What each metric is worth on this screen, and the scores of a technical duplicate."""
    if truth.no_control:  # halves of cells are compared with controls
        return {}, []
    try:
        of_cells, duplicate = cell_calibrations(screen, truth)
        return calibrations(screen, truth) | of_cells, duplicate
    except DataError:  # too few controls for halves
        return {}, []
