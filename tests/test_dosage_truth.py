"""The honest protocol without a control: conditions are perturbations, and their effects come from a regression."""

from __future__ import annotations

from dataclasses import asdict, replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae import fit
from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.vocabulary import UNPERTURBED
from samsvae.data.arrays import Covariates
from samsvae.evaluation.any_truth import truth_or_reason
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.dosage_truth import NO_CELLS, NO_CONTROL
from samsvae.evaluation.run import evaluate
from samsvae.evaluation.split_scores import split_tables
from samsvae.evaluation.truth_file import read_truth, write_truth
from samsvae.figures.data_card import draw as draw_data_card
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.screens.custom import screen_of
from samsvae.screens.data_card import data_card
from samsvae.screens.pack import arrays_of, write_arrays
from samsvae.screens.screen import write_screen

T, G = 6, 15


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(0)
    dosage = (rng.random((600, T)) < 0.35).astype(int)
    log_effects = rng.normal(0, 0.6, (T, G))
    x = rng.poisson(np.exp(1.5 + dosage @ log_effects)) + (np.arange(G) == 0)
    adata = ad.AnnData(x.astype(np.float32), pd.DataFrame(index=[f"c{i}" for i in range(600)]))
    adata.obsm["guides"] = pd.DataFrame(dosage, adata.obs_names, [f"p{t}" for t in range(T)])
    split = rng.choice(["train", "val", "test"], 600, p=[0.6, 0.1, 0.3])
    screen = arrays_of(screen_of(adata, perturbations="obsm:guides", control=None))
    return screen, split, x, dosage, log_effects


def least_squares(x, dosage):
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    return np.linalg.lstsq(np.column_stack([np.ones(len(x)), dosage]), y, rcond=None)[0][1:]


def test_the_truth_is_a_regression_of_each_part_of_the_cells(simulated, tmp_path):
    screen, split, x, dosage, _ = simulated
    truth = truth_or_reason(screen, split)
    assert truth.names.tolist() == [*(f"p{t}" for t in range(T)), UNPERTURBED]
    for name in ("test", "train"):
        at = split == name
        found = getattr(truth, name).delta
        np.testing.assert_allclose(found[:T], least_squares(x[at], dosage[at]), rtol=1e-8, atol=1e-10)
        assert np.isnan(found[T]).all()
    assert [rows.tolist() for rows in truth.sets.values()] == [[True] * T + [False]] and list(truth.sets) == ["seen"]
    assert truth.cells == NO_CELLS and truth.no_control == NO_CONTROL
    tested = split == "test"
    for t in range(T):
        np.testing.assert_array_equal(np.sort(truth.libraries[t]), np.sort(x[tested & (dosage[:, t] > 0)].sum(1)))
    write_truth(truth, tmp_path / "truth.npz")
    again = read_truth(tmp_path / "truth.npz")
    assert again.no_control == NO_CONTROL
    np.testing.assert_array_equal(again.test.se2, truth.test.se2)


def test_scores_against_a_control_are_undefined_and_centred_ones_stay(simulated):
    screen, split, *_ = simulated
    table, each = split_tables(screen, split, truth_or_reason(screen, split))
    against = table["metric"].str.endswith("_control") & (table["model"] != "no_change")
    assert against.any() and table.loc[against, "value"].isna().all()
    assert set(table.loc[against, "reason"]) == {NO_CONTROL}
    value = table.set_index(["model", "metric"])["value"]
    assert 0.8 < value["train_mean", "pearson_centred"] <= value["ceiling", "pearson_centred"] + 0.05 <= 1.05
    assert set(each["condition"]) == {f"p{t}" for t in range(T)}


def test_effects_of_the_data_have_one_row_per_perturbation(simulated):
    screen, split, x, dosage, log_effects = simulated
    data = effects(screen, split, reference=UNPERTURBED)
    assert data.obs_names.tolist() == [f"p{t}" for t in range(T)] and data.uns["reference"] == UNPERTURBED
    np.testing.assert_allclose(data.X, least_squares(x, dosage), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(data.obs["n_test"], dosage[split == "test"].sum(0))
    centred = log_effects - log_effects.mean(1, keepdims=True)
    assert np.corrcoef(data.X.ravel(), centred.ravel())[0, 1] > 0.9


def test_a_split_that_cannot_be_scored_says_why(simulated):
    screen, split, *_ = simulated
    few = split.copy()
    few[np.flatnonzero(split == "test")[7:]] = "none"
    assert truth_or_reason(screen, few) == "fewer than 3 perturbations have 10 test cells."


def test_covariates_are_columns_of_the_regression(simulated):
    screen, split, x, dosage, _ = simulated
    batch = np.random.default_rng(1).integers(0, 3, len(x))
    with_levels = replace(screen, covariates=Covariates(("batch",), (("a", "b", "c"),), batch[:, None]))
    truth = truth_or_reason(with_levels, split)
    at = split == "test"
    expected = least_squares(x[at], np.column_stack([dosage, batch == 1, batch == 2])[at])
    np.testing.assert_allclose(truth.test.delta[:T], expected[:T], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        effects(with_levels, split, reference=UNPERTURBED).X,
        least_squares(x, np.column_stack([dosage, batch == 1, batch == 2]))[:T],
        rtol=1e-8,
        atol=1e-10,
    )


@pytest.fixture
def files(simulated, tmp_path):
    """The AnnData, and the files of the screen and of its split."""
    screen, split, x, dosage, _ = simulated
    index = [f"c{i}" for i in range(len(x))]
    adata = ad.AnnData(x.astype(np.float32), pd.DataFrame(index=index), pd.DataFrame(index=screen.genes))
    adata.obsm["guides"] = pd.DataFrame(dosage, index, screen.perturbations)
    write_screen(screen_of(adata, perturbations="obsm:guides", control=None), tmp_path / "screen.h5ad")
    pd.DataFrame({"cell": index, "split": split}).to_csv(tmp_path / "cells.tsv", sep="\t", index=False)
    return adata, tmp_path


def test_a_run_is_scored(simulated, files):
    """From files to files: effects of single perturbations, whatever combinations cells received."""
    screen, split, *_ = simulated
    adata, folder = files
    write_arrays(folder / "screen.h5ad", folder / "arrays.npz")
    data = effects(screen, split, reference=UNPERTURBED)
    write_h5ad(data, folder / "reference.h5ad")
    write_truth(truth_or_reason(screen, split), folder / "truth.npz")
    fit(adata, perturbation="obsm:guides", control=None, steps=150, width=32, progress=False).save(folder / "model.pt")
    names = {"model": "model.pt", "arrays": "arrays.npz", "split": "cells.tsv", "reference": "reference.h5ad"}
    outputs = {name: folder / f"out_{name}" for name in ("scores", "per_condition", "effects", "perturbations")}
    outputs |= {name: folder / f"out_{name}" for name in ("bound", "worth", "worth_conditions")}
    config = EvaluationConfig(iwelbo_particles=3, bound_particles=10, bound_cells=5, ate_samples=20, effect_draws=10)
    evaluate(
        {name: folder / file for name, file in names.items()} | {"truth": folder / "truth.npz", "screen": None},
        outputs, settings=asdict(config), simulated=False, rules="r", device="cpu",
    )  # fmt: skip
    predicted = read_h5ad(outputs["effects"])
    assert predicted.obs_names.tolist() == data.obs_names.tolist()
    assert np.corrcoef(predicted.X.ravel(), data.X.ravel())[0, 1] > 0.6
    worth = pd.read_csv(outputs["worth"], sep="\t").set_index("metric")
    assert worth.loc["pearson_centred", "value"] > 0.5 and worth.loc["pearson_control", "reason"] == NO_CONTROL


def test_the_data_card_counts_perturbations(simulated, files):
    screen, split, _, dosage, _ = simulated
    _, tmp_path = files
    card = data_card(tmp_path / "screen.h5ad", tmp_path / "cells.tsv")
    cells = card.conditions.set_index("condition")["cells"]
    assert cells.to_dict() == dict(zip(screen.perturbations, dosage.sum(0), strict=True))
    facts = card.facts.set_index("item")["value"]
    assert facts["perturbations"] == str(T) and "control cells" not in facts
    received = dosage.sum(1)
    assert facts["perturbations per cell"] == f"median {np.median(received):.0f}, from 0 to {received.max()}"
    assert facts["cells without perturbation"] == str((received == 0).sum())
    split_cells = card.splits.set_index(["split", "kind"])["cells"]
    several = "several perturbations"
    assert split_cells["test", several] == ((received > 1) & (split == "test")).sum()
    axes = {ax.get_label(): ax for part in draw_data_card(**vars(card)).subfigs for ax in part.axes}
    legends = {
        name: [text.get_text() for text in axes[name].get_legend().get_texts()] for name in ("conditions", "splits")
    }
    assert legends == {
        "conditions": [f"perturbations ({T})"], "splits": ["no perturbation", "one perturbation", several]
    }  # fmt: skip
    assert not card.findings["finding"].str.contains("controls").any()
