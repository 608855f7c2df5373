"""Scores of models on the cells of new perturbations: bounds, gain over a baseline, effects, and true targets.

Letters: n cells, C conditions (by code), T perturbations, L latents, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.arrays import Screen
from samsvae.data.cells import Dosage, cells_of
from samsvae.evaluation.metrics.effects import pearson
from samsvae.evaluation.metrics.recovery import mask_scores, match_by_correlation
from samsvae.evaluation.model_effects import condition_means, library_of
from samsvae.evaluation.pools import Pools, observed_effects, old_conditions
from samsvae.evaluation.transfer import bounds
from samsvae.evaluation.transfer_baselines import TRAIN_MEAN
from samsvae.models.model import Model


@dataclass(frozen=True)
class Target:
    """What models are scored on: some cells of the new conditions, and their known values.

    ``cells`` (n,) bool. ``observed`` (C, G): their effects. ``train_mean``: the negative log-likelihood of the baseline
    of this name, by name of a condition; {} for a screen of real values.
    """

    screen: Screen
    pools: Pools
    dosage: Dosage
    cells: np.ndarray
    observed: np.ndarray
    train_mean: Mapping[str, float]


def target_of(screen: Screen, pools: Pools, dosage: Dosage, baselines: pd.DataFrame, variant: str) -> Target:
    """The cells that a variant scores: the test cells of new conditions ('ours'), or all their cells.

    ``baselines``: the table of `transfer_baselines`.
    """
    cells = pools.test if variant == "ours" else pools.every
    at = baselines["run"].eq(TRAIN_MEAN) & baselines["metric"].eq("inll") & baselines["variant"].eq(variant)
    mean = baselines[at].set_index("perturbation")["value"].to_dict()
    return Target(screen, pools, dosage, cells, observed_effects(screen, pools, cells), mean)


def model_scores(
    model: Model, target: Target, codes: np.ndarray, *, particles: int, evaluation: EvaluationConfig
) -> dict[str, np.ndarray]:
    """Scores of a model for the new conditions ``codes`` (c,): by metric, an array (c,).

    ``nelbo``, ``inll``, ``gain`` and ``effect_pearson`` (docs/outputs.md); ``evaluation`` says how effects are sampled.
    """
    screen, at = target.screen, target.pools.of(target.cells, codes)
    cells = cells_of(screen, at, target.dosage, model.input_mean.device)
    by_condition = bounds(model, cells, group=screen.condition[at], particles=particles)
    found = {metric: values[codes] for metric, values in by_condition.items()}
    if target.train_mean:
        found["gain"] = np.array([target.train_mean[name] for name in screen.conditions[codes]]) - found["inll"]
    found["effect_pearson"] = pearson(predicted_effects(model, target, codes, evaluation), target.observed[codes])
    return found


def predicted_effects(model: Model, target: Target, codes: np.ndarray, evaluation: EvaluationConfig) -> np.ndarray:
    """Effects (c, G) of conditions as a model predicts them, against the same reference as the observed ones."""
    control = target.screen.control
    reference = old_conditions(target.screen, target.pools) if control is None else np.array([control])
    means = condition_means(
        model,
        target.dosage.members[np.concatenate([codes, reference])],
        samples=evaluation.ate_samples,
        library=library_of(evaluation, target.screen),
        transform=target.screen.transform,
        closed_form=evaluation.ate_closed_form,
    )
    return means[: len(codes)] - means[len(codes) :].mean(0)


def shift_scores(model: Model, target: Target, codes: np.ndarray, truth: ad.AnnData) -> dict[str, float]:
    """How well the entries of the new embeddings that are not 0 name the true targets of a simulation.

    ``shift_precision``, ``shift_recall`` and ``shift_f1`` over all conditions ``codes`` together. Learned latents are
    matched to true ones by their absolute correlations in old test cells, or validation cells if there are none.
    """
    pools, screen = target.pools, target.screen
    old = next(cells for cells in map(pools.old, ("test", "val")) if cells.any())
    learned = model.posterior_mean(cells_of(screen, old, target.dosage, model.input_mean.device)).cpu().numpy()
    match = match_by_correlation(np.asarray(truth.obsm["z_true"])[old], learned)
    mask = np.asarray(truth.uns["truth"]["mask"])[screen.members[codes, 0]]
    embedding = model.perturbation_tables()["embedding"].cpu().numpy()
    found = embedding[target.dosage.members[codes, 0]] != 0
    names = ("shift_precision", "shift_recall", "shift_f1")
    return dict(zip(names, mask_scores(mask, found, match), strict=True))
