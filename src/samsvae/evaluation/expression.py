"""Differential expression in cells sampled from a model, against the data's."""

from __future__ import annotations

import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.arrays import read_screen
from samsvae.evaluation.model_effects import sample
from samsvae.evaluation.run import check_names, dosages
from samsvae.training.checkpoint import load


def model_expression(
    model: str, arrays: str, data: pd.DataFrame, *, settings: dict, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Differential expression in sampled cells, for the conditions with the most expressed genes in the data.

    ``data``: the tests of the data (Wilcoxon and t-test). As many cells are sampled of every condition and of control
    (``de_cells``). Returns the model's tests and their agreement with the data's.
    """
    from samsvae.evaluation.metrics.de import de_agreement, differential_expression

    config = EvaluationConfig(**settings)
    checkpoint, screen = load(model, device), read_screen(arrays)
    check_names(checkpoint, screen)
    significant = data[(data["method"] == "wilcoxon") & (data["padj"] < 0.05)].groupby("condition", sort=False).size()
    order = significant.reindex(data["condition"].unique(), fill_value=0).sort_values(ascending=False, kind="stable")
    conditions = list(order.index[: config.de_conditions])
    control = next(name for name, row in zip(screen.conditions, screen.members, strict=True) if (row < 0).all())
    names = [*conditions, control]
    cells = sample(
        checkpoint.model,
        dosages(checkpoint, screen, names),
        samples=config.de_cells,
        library=config.ate_library,
    )
    counts = cells.flatten(0, 1).cpu().numpy()
    labels = np.tile(names, config.de_cells)
    tests = differential_expression(counts, labels, screen.genes, control=control)
    agreement = de_agreement(data[data["condition"].isin(conditions)], tests)
    run = checkpoint.facts["run"]
    return tests.assign(run=run), agreement.assign(run=run)
