"""The likelihood bound of a run's test cells by number of particles, and how far its weights can be trusted (S10).

Letters: K particles, n cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.cells import Cells
from samsvae.errors import DataError
from samsvae.evaluation.bound import SAMPLE, TABLE, TEST
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.metrics.constants import HONEST
from samsvae.evaluation.metrics.importance_weights import SIZES, Bound, ImportanceWeights, WeightSummary
from samsvae.models.model import Model

#: Why a split without test cells has no bound.
NO_CELLS = "the split has no test cells."


def sampled(split: np.ndarray, n_cells: int) -> np.ndarray:
    """Positions of a sample of at most ``n_cells`` test cells, in order; the same for every model of a split (n,)."""
    test = np.flatnonzero(split == TEST)
    return test[np.sort(np.random.default_rng(0).permutation(len(test))[:n_cells])]


def model_bounds(
    model: Model, split: np.ndarray, cells_at: Callable[[np.ndarray], Cells], config: EvaluationConfig
) -> tuple[float | None, pd.DataFrame]:
    """The published IWELBO of the test cells, and a table of bounds and weights with the columns TABLE.

    ``split`` (n,): names of splits. ``cells_at``: the cells at some positions. The rows are bounds with 1, 10, 100 and
    more particles, up to ``iwelbo_particles`` on all test cells and up to ``bound_particles`` on their sample, and the
    scores of the weights of all these particles. The published IWELBO is the last bound on all test cells. Without test
    cells, or with weights that are not numbers, a row says so; without test cells the published IWELBO is None.
    """
    test = np.flatnonzero(split == TEST)
    if not len(test):
        return None, pd.DataFrame([_row("iwelbo", TEST, 0, 0, reason=NO_CELLS)], columns=list(TABLE))
    cells = cells_at(test)
    published, every = weighed(model, cells, config.iwelbo_particles)
    if isinstance(every, WeightSummary):
        last = every.bounds[config.iwelbo_particles]
        every.bounds[last.size] = Bound(last.size, published, last.error, last.blocks)
    rows = _rows(TEST, len(test), config.iwelbo_particles, every)
    chosen = sampled(split, config.bound_cells)
    _, some = weighed(model, cells_at(chosen), config.bound_particles)
    rows += _rows(SAMPLE, len(chosen), config.bound_particles, some)
    return published, pd.DataFrame(rows, columns=list(TABLE))


def weighed(model: Model, cells: Cells, particles: int, seed: int = 0) -> tuple[float, WeightSummary | str]:
    """The mean IWELBO of cells, in nats, and the summary of its weights from the same pass (eq. 13).

    The summary is a sentence if a weight is not a number.
    """
    weights = ImportanceWeights(particles, len(cells), [*(size for size in SIZES if size < particles), particles])
    problems: list[str] = []

    def add(block: np.ndarray) -> None:
        if not problems:
            try:
                weights.add(block)
            except DataError as error:
                problems.append(str(error))

    value = iwelbo(model, cells, particles=particles, seed=seed, on_weights=add).mean().item()
    return value, problems[0] if problems else weights.summary()


def _rows(cells: str, n_cells: int, particles: int, found: WeightSummary | str) -> list[dict[str, object]]:
    if isinstance(found, str):
        return [_row("iwelbo", cells, n_cells, particles, reason=found)]
    rows = [
        _row("iwelbo", cells, n_cells, bound.size, bound.value, bound.error, bound.blocks)
        for bound in found.bounds.values()
    ]
    return rows + [_row(name, cells, n_cells, particles, value) for name, value in found.scores().items()]


def _row(
    metric: str,
    cells: str,
    n_cells: int,
    particles: int,
    value: float = np.nan,
    error: float = np.nan,
    blocks: int | None = None,
    reason: str = "",
) -> dict[str, object]:
    return dict(zip(TABLE, (HONEST, metric, cells, n_cells, particles, value, error, blocks, reason), strict=True))
