"""Pathways predicted from what masked models learnt about perturbations, and from the training cells alone.

A mask that predicts pathways says something only if it does so better than the data that the model was trained on. So
the same classifiers also read the embedding, the model's effects and, once per split, the mean effects of the training
cells. Letters: T perturbations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.evaluation.collect import pathway_metrics
from samsvae.evaluation.metrics.constants import MAJORITY
from samsvae.evaluation.metrics.pathways import pathway_accuracy, permutation_null, permuted_labels
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations

log = logging.getLogger(__name__)

#: The columns of a table of accuracies.
ACCURACY = ("classifier", "metric", "mean", "sd", "n", "folds", "null_mean", "null_sd")

#: The baseline that predicts a pathway from the mean effects of the training cells.
BASELINE = "train_mean"


def pathways_of_runs(
    perturbations: Iterable[str], effects: Iterable[str], screen: str, settings: Mapping
) -> pd.DataFrame:
    """`run_pathways` of several runs of one data set, with a column run.

    ``perturbations``, ``effects``: files of the runs (``.../runs/RUN/file``), in one order. ``screen``: their screen.
    """
    table = read_perturbations(screen)
    parts = [
        run_pathways(read_h5ad(matrices), read_h5ad(predicted), table, settings).assign(run=Path(matrices).parent.name)
        for matrices, predicted in zip(perturbations, effects, strict=True)
    ]
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return found[["run", "features", *ACCURACY]]


def run_pathways(
    perturbations: ad.AnnData, effects: ad.AnnData, table: pd.DataFrame, settings: Mapping
) -> pd.DataFrame:
    """Accuracy of pathways predicted from a run's mask probabilities, embedding and effects.

    ``perturbations``: obsm mask_probability and embedding (T, L). ``effects``: X (conditions, genes), only the rows of
    single perturbations are read. ``table``, ``settings``: as in `predict_pathways`. All features are of the
    perturbations with training cells. Columns: features, then ACCURACY; only masks have a null, a forest and the
    majority. No rows if masks cannot be scored.
    """
    mask, embedding = (
        pd.DataFrame(np.asarray(perturbations.obsm[name]), perturbations.obs_names)
        for name in ("mask_probability", "embedding")
    )
    found = {"mask": predict_pathways(mask, table, settings, masks=True)}
    if len(found["mask"]):
        trained = mask.index[mask.notna().all(axis=1)]
        predicted = pd.DataFrame(np.asarray(effects.X), effects.obs_names).reindex(trained)
        found["embedding"] = predict_pathways(embedding.loc[trained], table, settings)
        found["effects"] = predict_pathways(predicted, table, settings)
    return pd.concat([part.assign(features=name) for name, part in found.items() if len(part) or name == "mask"])


def train_mean_pathways(effects: str, screen: str, settings: Mapping) -> pd.DataFrame:
    """Accuracy of pathways predicted from the mean effects of the training cells, as scores of a baseline.

    ``effects``: the observed effects of a split, with the layer train (`data_effects.effects`). Columns: model,
    protocol, metric, split, value, sd (over repeats).
    """
    data = read_h5ad(effects)
    means = pd.DataFrame(np.asarray(data.layers["train"]), data.obs_names)
    found = predict_pathways(means, read_perturbations(screen), settings).assign(features="effects")
    rows = {"model": BASELINE, "protocol": "published", "metric": pathway_metrics(found), "split": "all"}
    return pd.DataFrame(rows, index=found.index).assign(value=found["mean"], sd=found["sd"])


def predict_pathways(
    features: pd.DataFrame, table: pd.DataFrame, settings: Mapping, *, masks: bool = False
) -> pd.DataFrame:
    """Accuracy of pathways predicted from the features (T, L) of perturbations, by name.

    ``table``: gene and pathway of each perturbation; perturbations whose pathway is '', or which it does not list (such
    as a combination that is a perturbation of its own), are left out, and so are rows with NaN (no training cells) and
    pathways with a single gene, which no other gene can predict. ``settings``: an EvaluationConfig as a dict.
    ``masks``: features are mask probabilities, which alone are read by the forest and scored against permuted labels;
    forests of thousands of genes would take minutes per run. Columns: ACCURACY (null_mean and null_sd are NaN without
    a null). No rows, and a warning in the log, if fewer than two pathways are left.
    """
    known = table[["gene", "pathway"]].reindex(features.index).fillna("")
    known.loc[features.isna().any(axis=1), "pathway"] = ""
    genes = known.groupby("pathway")["gene"].transform("nunique")
    scored = ((known["pathway"] != "") & (genes > 1)).to_numpy()
    if known.loc[scored, "pathway"].nunique() < 2:
        log.warning("the annotation has fewer than two groups of two or more genes, so it cannot be predicted")
        return pd.DataFrame(columns=list(ACCURACY))
    values = features.to_numpy()[scored]
    pathway, gene = (known.loc[scored, column].to_numpy(str) for column in ("pathway", "gene"))
    trees = settings["pathway_trees"] if masks else 0
    found = pathway_accuracy(values, pathway, gene, repeats=settings["pathway_repeats"], trees=trees, masks=masks)
    if not masks:
        return found[found["classifier"] != MAJORITY].assign(null_mean=np.nan, null_sd=np.nan)
    permuted = permuted_labels(pathway, gene, n=settings["pathway_permutations"])
    null = permutation_null(values, permuted, gene, trees=trees)
    null = null.rename(columns={"mean": "null_mean", "sd": "null_sd"})[["classifier", "metric", "null_mean", "null_sd"]]
    return found.merge(null, on=["classifier", "metric"], how="left")
