"""What the data say, to hold models against: effects of the conditions, and predictions that need no model.

Letters: n cells, C conditions, P most perturbations in a condition, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.vocabulary import SPLITS
from samsvae.data.cells import Screen
from samsvae.errors import DataError
from samsvae.evaluation.metrics.baselines import additive, mean_of_perturbations
from samsvae.evaluation.metrics.effects import ate_scores, average_effect, condition_means, condition_scores
from samsvae.evaluation.metrics.likelihood import fit_intercept_nb, intercept_nb_log_likelihood


def effects(screen: Screen, split: np.ndarray, *, reference: str) -> ad.AnnData:
    """Effects of every condition that has cells in a split, (C, G): one row per condition, a column per gene.

    X is the published reference: all cells, whatever their split. Layers ``train`` and ``held_out`` are from the
    cells of that split alone, NaN where a condition has none. ``reference`` names the condition that is
    subtracted; '' subtracts the mean of the conditions that have a row. Where the reference has no cell in the split
    that a layer is of, its validation cells stand in (Norman has no test controls).
    """
    counts = np.stack([np.bincount(screen.condition[split == s], minlength=len(screen.conditions)) for s in SPLITS])
    control = int(np.flatnonzero(screen.conditions == reference)[0]) if reference else None
    transform = "log2" if screen.counts.dtype.kind in "iu" else "mean"
    kept = counts.sum(0) > 0
    if control is not None:
        kept[control] = False

    def delta(cells: np.ndarray) -> np.ndarray:
        chosen = {"n_conditions": len(screen.conditions), "cells": cells, "method": transform}
        if control is None:
            means = condition_means(screen.counts, screen.condition, **chosen)
            return means - np.nanmean(means[kept], axis=0)
        at_control = screen.condition == control
        stand_in = cells if (cells & at_control).any() else split == "val"
        if not (stand_in & at_control).any():
            raise DataError(f"The reference {reference!r} has no cell in the training, test or validation split.")
        return average_effect(screen.counts, screen.condition, control, control_cells=stand_in, **chosen)

    obs = pd.DataFrame(
        {
            "n_cells": np.bincount(screen.condition, minlength=len(screen.conditions))[kept],
            **{f"n_{name}": number[kept] for name, number in zip(SPLITS, counts, strict=True)},
            "n_perturbations": (screen.members >= 0).sum(1)[kept],
        },
        index=screen.conditions[kept].astype(object),
    )
    layers = {"train": delta(split == "train")[kept], "held_out": delta(split == "test")[kept]}
    return ad.AnnData(
        delta(np.ones(len(split), bool))[kept],
        obs,
        pd.DataFrame(index=screen.genes.astype(object)),
        layers=layers,
        uns={"reference": reference, "transform": transform, "members": screen.members[kept]},
    )


def score(predicted: np.ndarray, data: ad.AnnData) -> Iterator[dict[str, object]]:
    """Scores of predicted effects (C, G) against those of the data: rows protocol, metric, split, value.

    ``published``: against all cells, for all conditions and for those that have cells in each split.
    ``held-out``: against the test cells alone. Conditions without a prediction are left out.
    """
    known = np.isfinite(predicted).all(1)
    chosen = {"all": known, **{name: known & (data.obs[f"n_{name}"] > 0).to_numpy() for name in SPLITS}}
    for split, at in chosen.items():
        if at.any():
            for metric, value in ate_scores(data.X[at], predicted[at]).items():
                yield {"protocol": "published", "metric": metric, "split": split, "value": value}
    at = chosen["test"]
    if at.any():
        truth = data.layers["held_out"][at]
        for metric, value in ate_scores(truth, predicted[at]).items():
            yield {"protocol": "held-out", "metric": metric, "split": "test", "value": value}
        each = condition_scores(truth, predicted[at])["ate_pearson"]
        if np.isfinite(each).any():
            value = float(np.nanmean(each))
            yield {"protocol": "held-out", "metric": "ate_pearson_per_condition", "split": "test", "value": value}


def per_condition(predicted: np.ndarray, data: ad.AnnData) -> pd.DataFrame:
    """Agreement of predicted effects (C, G) with the data's, condition by condition: both protocols."""
    tables = []
    for protocol, truth in (("published", data.X), ("held-out", data.layers["held_out"])):
        at = np.isfinite(predicted).all(1) & np.isfinite(truth).all(1)
        scores = condition_scores(truth[at], predicted[at]) if at.any() else {"ate_pearson": [], "ate_r2": []}
        tables.append(pd.DataFrame({"condition": data.obs_names[at], "protocol": protocol, **scores}))
    return pd.concat(tables, ignore_index=True)


def baselines(data: ad.AnnData) -> dict[str, np.ndarray]:
    """Predicted effects (C, G) of each baseline, from the training cells alone; NaN where it says nothing."""
    train, members = data.layers["train"], np.asarray(data.uns["members"])
    seen = np.isfinite(train).all(1)
    made = {"mean_of_perturbations": mean_of_perturbations(train, seen), "train_mean": train}
    if members.shape[1] > 1:
        made["additive"] = additive(train, members)
    return made


def likelihood_baseline(screen: Screen, split: np.ndarray) -> Iterator[dict[str, object]]:
    """Mean log-likelihood of held-out cells under the intercept-only negative binomial (counts only)."""
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
    """Scores of every baseline (model, protocol, metric, split, value), and those of the effects by condition."""
    made = baselines(data)
    rows = [{"model": "intercept_nb", **row} for row in likelihood_baseline(screen, split)]
    rows += [{"model": name, **row} for name, predicted in made.items() for row in score(predicted, data)]
    each = [per_condition(predicted, data).assign(model=name) for name, predicted in made.items()]
    return pd.DataFrame(rows), pd.concat(each, ignore_index=True)
