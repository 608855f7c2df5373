"""Pathways predicted from masks, embeddings, effects and training means: planted signals are found, noise is not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.metrics.constants import FEATURES
from samsvae.evaluation.metrics.table import METRICS
from samsvae.evaluation.pathways import pathways_of_runs, run_pathways, train_mean_pathways
from samsvae.matrices import write_h5ad
from samsvae.screens.screen import assemble, write_screen
from samsvae.tables import read, write

SETTINGS = {"pathway_repeats": 2, "pathway_trees": 10, "pathway_permutations": 3}
FEW = dict.fromkeys(SETTINGS, 1)


def masks(separate: bool, also: str = ""):
    """A run's matrices and effects, and the table of a screen.

    The screen has two guides for each of 8 genes in each of 3 pathways, and 6 perturbations without a pathway.
    ``separate``: masks determine pathways; ``also``: so do the embedding or the effects, which are noise otherwise.
    """
    rng = np.random.default_rng(0)
    rows = [(f"p{p}_g{g}_{i}", f"p{p}_g{g}", f"p{p}") for p in range(3) for g in range(8) for i in range(2)]
    rows += [(f"other{i}", f"other{i}", "") for i in range(6)]
    names, genes, pathways = zip(*rows, strict=True)
    table = pd.DataFrame({"gene": genes, "pathway": pathways, "n_cells": 9}, index=list(names))
    of = np.array([int(p[1:]) if p else 0 for p in pathways])
    on = of if separate else rng.integers(3, size=len(rows))
    probability = np.where(np.arange(5) == on[:, None], 0.95, 0.05) + 0.01 * rng.random((len(rows), 5))
    signal = 4.0 * (np.arange(5) == of[:, None])
    embedding, effects = (rng.normal(size=(len(rows), 5)) + signal * (also == name) for name in FEATURES[1:])
    order = rng.permutation(len(rows))  # the run and the screen have different orders
    index = pd.DataFrame(index=np.array(names)[order])
    found = ad.AnnData(obs=index, obsm={"mask_probability": probability[order], "embedding": embedding[order]})
    predicted = ad.AnnData(np.vstack([effects, effects[:1]]), pd.DataFrame(index=[*names, f"{names[0]}+{names[1]}"]))
    return found, predicted, table


def accuracies(found: pd.DataFrame, features: str) -> pd.DataFrame:
    rows = found[(found["features"] == features) & (found["metric"] == "accuracy")]
    return rows.set_index("classifier")


def test_masks_that_determine_their_pathways():
    found = accuracies(run_pathways(*masks(True), SETTINGS), "mask")
    assert set(found.index) == {"logistic", "forest", "knn", "majority"}
    for name in ("logistic", "forest", "knn"):
        row = found.loc[name]
        assert row["mean"] == 1.0 and row["sd"] == 0.0 and row["n"] == 2
        assert row["null_mean"] < 0.6
    assert found.loc["majority", "mean"] == pytest.approx(1 / 3)  # of those with a pathway
    assert np.isnan(found.loc["majority", "null_mean"])


def test_random_masks_are_no_better_than_permuted_labels():
    found = accuracies(run_pathways(*masks(False), SETTINGS), "mask")
    for name in ("logistic", "forest", "knn"):
        row = found.loc[name]
        assert row["mean"] < 0.6 and abs(row["mean"] - row["null_mean"]) < 0.25


@pytest.mark.parametrize("planted", FEATURES[1:])
def test_only_the_features_with_the_signal_predict(planted):
    found = run_pathways(*masks(False, planted), FEW)
    assert set(found["features"]) == set(FEATURES)
    for features in FEATURES[1:]:
        rows = accuracies(found, features)
        assert list(rows.index) == ["logistic", "knn"] and rows[["null_mean", "null_sd"]].isna().all(None)
        assert (rows["mean"] > 0.95).all() if features == planted else (rows["mean"] < 0.6).all()


def test_every_feature_is_of_the_perturbations_with_training_cells():
    """If only one pathway has training cells, nothing can be predicted, although all effects are known."""
    perturbations, effects, table = masks(True)
    without = ~perturbations.obs_names.str.startswith("p0")
    for name in ("mask_probability", "embedding"):
        perturbations.obsm[name][without] = np.nan
    assert not len(run_pathways(perturbations, effects, table, FEW))
    perturbations.obsm["mask_probability"][perturbations.obs_names.str.startswith("p1")] = 0.5
    perturbations.obsm["embedding"][perturbations.obs_names.str.startswith("p1")] = 0.5
    found = run_pathways(perturbations, effects, table, FEW)
    assert accuracies(found, "mask").loc["majority", "mean"] == 0.5  # of two pathways
    assert set(found["features"]) == set(FEATURES)


def test_runs_and_training_means_from_files(tmp_path):
    perturbations, effects, table = masks(True, "effects")
    screen = assemble(
        np.ones((len(table) + 1, 1), int), pd.DataFrame(index=[f"c{i}" for i in range(len(table) + 1)]),
        pd.DataFrame(index=["g"]), condition=[*table.index, "ctrl"], control="ctrl", separator="", provenance={},
        gene_of=table["gene"].to_dict(), pathway_of=table["pathway"].to_dict(),
    )  # fmt: skip
    write_screen(screen, tmp_path / "screen.h5ad")
    files = {run: [str(tmp_path / run / f"{name}.h5ad") for name in ("perturbations", "effects")] for run in "ab"}
    other = masks(False)
    for run, matrices in (("a", (perturbations, effects)), ("b", other[:2])):
        for matrix, path in zip(matrices, files[run], strict=True):
            write_h5ad(matrix, path)
    paths = list(zip(*files.values(), strict=True))
    write(pathways_of_runs(*paths, str(tmp_path / "screen.h5ad"), FEW), tmp_path / "runs.tsv")
    found = read(tmp_path / "runs.tsv")
    for run, matrices in (("a", (perturbations, effects)), ("b", other[:2])):
        rows = found[found["run"] == run].drop(columns="run").reset_index(drop=True)
        expected = run_pathways(*matrices, table, FEW)[list(rows)].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, expected, check_dtype=False, rtol=1e-8)

    # the effects in training cells are those that the model of the run a predicts
    nowhere = np.full(effects.shape, np.nan)
    write_h5ad(ad.AnnData(nowhere, effects.obs, layers={"train": effects.X}), tmp_path / "data.h5ad")
    baseline = train_mean_pathways(str(tmp_path / "data.h5ad"), str(tmp_path / "screen.h5ad"), FEW)
    assert set(baseline["model"]) == {"train_mean"} and set(baseline["metric"]) <= set(METRICS)
    of_run = found[(found["run"] == "a") & (found["features"] == "effects")]
    assert baseline["value"].tolist() == pytest.approx(of_run["mean"].tolist(), rel=1e-8)
