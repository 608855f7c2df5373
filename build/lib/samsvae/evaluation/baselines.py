"""Baselines: predictions that need no model, and their scores.

Letters: C conditions, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen
from samsvae.evaluation.metrics.baselines import additive, mean_of_perturbations
from samsvae.evaluation.metrics.likelihood import fit_intercept_nb, intercept_nb_log_likelihood
from samsvae.evaluation.scores import per_condition, score


def baselines(data: ad.AnnData) -> dict[str, np.ndarray]:
    """Effects (C, G) that each baseline predicts from the training cells alone; NaN if it makes no prediction."""
    train, members = data.layers["train"], np.asarray(data.uns["members"])
    seen = np.isfinite(train).all(1)
    predicted = {"mean_of_perturbations": mean_of_perturbations(train, seen), "train_mean": train}
    if members.shape[1] > 1:
        predicted["additive"] = additive(train, members)
    return predicted


def likelihood_baseline(screen: Screen, split: np.ndarray) -> Iterator[dict[str, object]]:
    """Mean log-likelihood of validation and of test cells under the intercept-only negative binomial, in nats.

    No rows if the screen has real values instead of counts.
    """
    if screen.counts.dtype.kind not in "iu":
        return
    train = split == "train"
    fitted = fit_intercept_nb(screen.counts[train], screen.library[train])
    for name in ("val", "test"):
        at = split == name
        if at.any():
            value = float(intercept_nb_log_likelihood(fitted, screen.counts[at], screen.library[at]).mean())
            yield {"protocol": "held-out", "metric": "log_likelihood", "split": name, "value": value}


def baseline_tables(screen: Screen, split: np.ndarray, data: ad.AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables for all baselines: scores (model, protocol, metric, split, value), and scores of each condition."""
    predictions = baselines(data)
    rows = [{"model": "intercept_nb", **row} for row in likelihood_baseline(screen, split)]
    rows += [{"model": name, **row} for name, predicted in predictions.items() for row in score(predicted, data)]
    each = [per_condition(predicted, data).assign(model=name) for name, predicted in predictions.items()]
    return pd.DataFrame(rows), pd.concat(each, ignore_index=True)
