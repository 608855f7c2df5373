"""Differential expression in cells sampled from a model, compared with the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.arrays import read_screen
from samsvae.evaluation.metrics.de import de_agreement, differential_expression
from samsvae.evaluation.model_effects import library_of, sample
from samsvae.evaluation.screen_names import check_names, dosages
from samsvae.training.checkpoint import load


def expression_of_runs(
    models: Iterable[str], arrays: str, data: pd.DataFrame, *, settings: Mapping[str, Any], device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`model_expression` of several checkpoints of one data set, one below the other."""
    found = [model_expression(model, arrays, data, settings=settings, device=device) for model in models]
    tests, agreement = (pd.concat(parts, ignore_index=True) for parts in zip(*found, strict=True))
    return tests, agreement


def model_expression(
    model: str, arrays: str, data: pd.DataFrame, *, settings: Mapping[str, Any], device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Differential expression in sampled cells, for the conditions with the most significant genes in the data.

    ``model``, ``arrays``: paths of a checkpoint and of its screen's arrays. ``data``: ``differential_expression`` of
    the data; the Wilcoxon tests with padj < 0.05 choose the ``de_conditions`` conditions. ``settings``: an
    EvaluationConfig as a dict. The control and each condition get ``de_cells`` sampled cells. Returns two tables, both
    with a column run: the tests in the sampled cells, and their agreement with the data (``de_agreement``).
    CheckpointError if the checkpoint has other genes or perturbations than the screen.
    """
    config = EvaluationConfig(**settings)
    checkpoint, screen = load(model, device), read_screen(arrays)
    check_names(checkpoint, screen)
    significant = data[(data["method"] == "wilcoxon") & (data["padj"] < 0.05)].groupby("condition", sort=False).size()
    order = significant.reindex(data["condition"].unique(), fill_value=0).sort_values(ascending=False, kind="stable")
    conditions = list(order.index[: config.de_conditions])
    assert screen.control is not None  # the tests of the data are against it
    control = str(screen.conditions[screen.control])
    names = [*conditions, control]
    cells = sample(
        checkpoint.model,
        dosages(checkpoint, screen, names),
        samples=config.de_cells,
        library=library_of(config, screen),
    )
    counts = cells.flatten(0, 1).cpu().numpy()
    labels = np.tile(names, config.de_cells)
    tests = differential_expression(counts, labels, screen.genes, control=control)
    agreement = de_agreement(data[data["condition"].isin(conditions)], tests)
    run = checkpoint.facts["run"]
    return tests.assign(run=run), agreement.assign(run=run)
