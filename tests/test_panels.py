"""Which run a figure shows, and the numbers that it draws, worked out by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae.errors import DataError
from samsvae.evaluation.metrics.effects import interactions
from samsvae.evaluation.metrics.selection import shown
from samsvae.figures import combinations as combinations_figure
from samsvae.figures import curves as curves_figure
from samsvae.figures import effects as effects_figure
from samsvae.figures import masks as masks_figure
from samsvae.figures import own_screen as own_screen_figure
from samsvae.figures import recovery as recovery_figure
from samsvae.figures import runs as panels
from samsvae.screens.screen import assemble, write_screen
from samsvae.study.collect import collect_scores
from samsvae.tables import of_experiments, write, write_h5ad

METHODS = {"sams_vae_corr": "SAMS-VAE", "cpa_vae_corr": "CPA-VAE", "cond_vae": "Conditional VAE", "svae_plus": "SVAE+"}


def rows(model: str, run: str, *, protocol: str = "published", of: dict, **columns) -> list[dict]:
    """The rows of one run: ``of`` maps (metric, split) to a value."""
    own = {"run": run, "model": model, "method": METHODS.get(model, "baseline"), "inference": "", **columns}
    own |= {"dataset": "d", "split_name": f"s{columns.get('split_seed', 0)}", "protocol": protocol}
    return [own | {"metric": metric, "split": split, "value": value} for (metric, split), value in of.items()]


def table(*parts: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


def seeds(prior: float, val: list[float], test: list[float], model: str = "sams_vae_corr") -> list[dict]:
    """Runs of one setting, a seed each, highest seed first."""
    found = []
    for seed in reversed(range(len(val))):
        of = {("iwelbo", "val"): val[seed], ("iwelbo", "test"): test[seed], ("ate_pearson", "all"): seed / 10}
        found += rows(model, f"{model}-{prior}-{seed}", of=of, mask_prior=prior, seed=seed)
    return found


#: prior 0.1 has the best mean on validation (-10), 0.01 the best single run there (-8) and the best test scores
SCORES = table(seeds(0.1, [-11, -9], [-30, -31]), seeds(0.01, [-8, -20], [-5, -6]), seeds(0.2, [-12, -12], [-1, -1]))


# ---- the run to show -----------------------------------------------------------------------------------------------


def test_the_run_shown_is_chosen_on_validation_data():
    assert panels.best_run(SCORES, "sams_vae_corr") == "sams_vae_corr-0.1-0"
    turned = SCORES.copy()  # test scores turned round change nothing; validation scores do
    turned.loc[turned["split"] == "test", "value"] *= -1
    assert panels.best_run(turned, "sams_vae_corr") == "sams_vae_corr-0.1-0"
    turned.loc[turned["split"] == "val", "value"] *= -1
    assert panels.best_run(turned, "sams_vae_corr") == "sams_vae_corr-0.01-0"


def test_the_run_shown_is_of_the_model_asked_for_and_of_the_published_protocol():
    better = seeds(0.1, [-1, -1], [-1, -1], model="cpa_vae_corr")
    other = rows("sams_vae_corr", "held-out", protocol="held-out", of={("iwelbo", "val"): 0.0}, mask_prior=9.0, seed=0)
    scores = pd.concat([SCORES, table(better, other)], ignore_index=True)
    assert panels.best_run(scores, "sams_vae_corr") == "sams_vae_corr-0.1-0"
    assert panels.best_run(scores, "cpa_vae_corr") == "cpa_vae_corr-0.1-0"


def test_a_setting_with_a_seed_that_failed_is_not_shown():
    scores = SCORES[SCORES["run"] != "sams_vae_corr-0.1-1"].copy()  # the seed that is left is the best of all
    scores.loc[(scores["run"] == "sams_vae_corr-0.1-0") & (scores["split"] == "val"), "value"] = -1.0
    assert panels.best_run(scores, "sams_vae_corr") == "sams_vae_corr-0.2-0"


def test_a_run_shown_is_among_those_that_rules_ask_for():
    """Settings of one row with other seeds: whichever is chosen, the run shown is one that the rules asked for."""
    scores = table(seeds(0.1, [-9, -9], [0, 0]), seeds(0.2, [-5, -5, -8, -9], [0] * 4))
    scores = scores[~scores["run"].isin(["sams_vae_corr-0.2-0", "sams_vae_corr-0.2-1"])]
    grid = scores[["run", "model", "method", "inference", "mask_prior", "seed", "dataset", "split_name"]]
    assert panels.best_run(scores, "sams_vae_corr") == "sams_vae_corr-0.2-2"
    assert set(shown(grid)["run"]) == {"sams_vae_corr-0.1-0", "sams_vae_corr-0.2-2"}


def test_files_of_a_run():
    paths = ["r/e/runs/sams_vae_corr-seed10/effects.h5ad", "r/e/runs/sams_vae_corr-seed1/effects.h5ad"]
    assert panels.of_run(paths, "sams_vae_corr-seed1") == paths[1]
    with pytest.raises(DataError, match="'sams_vae_corr-seed2'"):
        panels.of_run(paths, "sams_vae_corr-seed2")


def test_models_only_leaves_out_baselines_other_protocols_and_names_of_files():
    scores = table(
        rows("cond_vae", "a", of={("iwelbo", "val"): 1.0}, seed=0),
        rows("cond_vae", "a", of={("iwelbo", "val"): 2.0}, seed=0, protocol="held-out"),
        rows("additive", "additive", of={("ate_pearson", "all"): 3.0}, seed=0),
    )
    found = panels.models_only(scores)
    assert found["value"].tolist() == [1.0] and not {"dataset", "split_name"} & set(found)


def test_one_setting_for_each_model_and_number_of_cells():
    """Chosen by the mean over data seeds, for 10 and for 100 cells apart."""
    parts = []
    for cells, b, val, f1 in (
        (10, 2, [-5, -5], 0.1),
        (10, 5, [-4, -5], 0.2),  # best with 10 cells
        (100, 2, [-1, -2], 0.3),  # best with 100 cells
        (100, 5, [-2, -3], 0.9),
    ):
        for seed, value in enumerate(val):
            of = {("iwelbo", "val"): value, ("mask_f1/true-positives", "test"): f1}
            parts.append(rows("svae_plus", f"{cells}-{b}-{seed}", of=of, cells=cells, beta_b=b, data_seed=seed))
    found = recovery_figure.one_setting(table(*parts))
    assert sorted(found["run"].unique()) == ["10-5-0", "10-5-1", "100-2-0", "100-2-1"]
    assert len(found) == 8 and set(found.loc[found["metric"] != "iwelbo", "value"]) == {0.2, 0.3}
    without = table(*[[{k: v for k, v in row.items() if k != "cells"} for row in part] for part in parts[2:6]])
    assert sorted(recovery_figure.one_setting(without)["run"].unique()) == ["100-2-0", "100-2-1"]


# ---- Norman --------------------------------------------------------------------------------------------------------


def test_norman_scores_are_relative_to_the_model_that_saw_no_pair():
    """By hand: each split against its own reference, then mean and sd over the splits."""
    parts = []
    for split, base in ((0, -100.0), (1, -118.0)):  # the splits differ far more than the models do
        for model, encoding, fraction, gain in (
            ("sams_vae_corr", "sum", 0.0, 0.0),
            ("sams_vae_corr", "sum", 1.0, 3.0 + split),
            ("sams_vae_corr", "unique", 0.0, -7.0),
            ("svae_plus", "unique", 1.0, 1.0 - split),
        ):
            of = {
                ("iwelbo", "test"): base + gain,
                ("iwelbo", "val"): 0.0,
                ("ate_pearson", "test"): 0.5 + split / 10,
                ("ate_pearson", "all"): 0.9,
            }
            columns = {"encoding": encoding, "fraction": fraction, "split_seed": split}
            parts.append(rows(model, f"{model}{encoding}{fraction}{split}", of=of, **columns))
        columns = {"encoding": np.nan, "fraction": 1.0, "split_seed": split}
        parts.append(rows("additive", "additive", of={("ate_pearson", "test"): 0.4}, **columns))
        parts.append(rows("additive", "additive", of={("ate_pearson", "test"): 0.1}, protocol="held-out", **columns))
    found = combinations_figure.norman_summary(table(*parts)).set_index(["model", "encoding", "fraction", "metric"])
    relative = {
        ("sams_vae_corr", "sum", 0.0): [0.0, 0.0],
        ("sams_vae_corr", "sum", 1.0): [3.0, 4.0],
        ("sams_vae_corr", "unique", 0.0): [-7.0, -7.0],
        ("svae_plus", "unique", 1.0): [1.0, 0.0],
    }
    for key, values in relative.items():
        row = found.loc[(*key, "iwelbo_relative")]
        assert (row["mean"], row["sd"], row["n"]) == pytest.approx((np.mean(values), np.std(values, ddof=1), 2))
        assert found.loc[(*key, "ate_pearson"), "mean"] == pytest.approx(0.55)
    assert found.loc[("additive", "sum", 1.0, "ate_pearson"), ["mean", "n"]].tolist() == pytest.approx([0.4, 2])
    assert len(found) == 9


def test_norman_needs_the_reference_of_every_split():
    columns = {"encoding": "sum", "split_seed": 0}
    of = {("iwelbo", "test"): -1.0, ("iwelbo", "val"): -1.0, ("ate_pearson", "test"): 0.5}
    scores = table(
        rows("sams_vae_corr", "a", of=of, fraction=0.0, **columns),
        rows("cond_vae", "b", of=of, fraction=0.0, encoding="sum", split_seed=1),
    )
    with pytest.raises(DataError, match="split_seed 1"):
        combinations_figure.norman_summary(scores)


DATA = np.array([[1.0, 0.0], [5.0, -1.0], [0.0, 0.0], [2.0, 1.0], [7.0, 7.0]])  # A, A+B, A+C, B, C on two genes
PREDICTED = np.array([[1.0, 1], [2, 2], [9, 9], [1, 2], [9, 9]])


def pair_runs():
    """Scores of a model with two settings and of one with one, at fractions 0 and 1 of two splits."""
    parts = []
    for model, encoding, prior, val in (
        ("cond_vae", "sum", 0.1, -7.0),
        ("cond_vae", "unique", 0.1, -1.0),
        ("sams_vae_corr", "sum", 0.1, -9.0),
        ("sams_vae_corr", "sum", 0.2, -5.0),  # the better
    ):
        for split in (1, 0):
            for fraction in (0.0, 1.0):
                columns = {"encoding": encoding, "mask_prior": prior, "fraction": fraction, "split_seed": split}
                run = f"{model}-{encoding}-{prior}-{split}-{fraction:g}"
                parts.append(rows(model, run, of={("iwelbo", "val"): val, ("iwelbo", "test"): 0.0}, **columns))
    return table(*parts)


@pytest.fixture
def pairs(tmp_path):
    """Effects of data and of every run: A, B, C alone, A+B of the test cells, A+C not."""
    names, members = ["A", "A+B", "A+C", "B", "C"], np.array([[0, -1], [0, 1], [0, 2], [1, -1], [2, -1]])
    obs = pd.DataFrame({"n_train": [5, 0, 5, 5, 5], "n_test": [0, 3, 0, 0, 0]}, index=names)
    var = pd.DataFrame(index=["g1", "g2"])
    scores = pair_runs()
    references, files = [], []
    for split in ("s1", "s0"):
        references.append(str(tmp_path / "splits" / "d" / split / "effects.h5ad"))
        own = obs if split == "s1" else obs.assign(n_train=[5, 2, 5, 5, 5])
        write_h5ad(ad.AnnData(DATA, own.copy(), var.copy(), uns={"members": members}), references[-1])
    for run in scores["run"].unique():
        files.append(str(tmp_path / "runs" / run / "effects.h5ad"))
        best = run in ("cond_vae-sum-0.1-0-1", "sams_vae_corr-sum-0.2-0-1")
        effect = (PREDICTED if run.startswith("cond") else DATA) if best else 100 * DATA
        write_h5ad(ad.AnnData(effect, obs.copy(), var.copy())[::-1, ::-1].copy(), files[-1])
    cells = [*names, "ctrl"]
    screen = assemble(
        np.ones((6, 2), int),
        pd.DataFrame(index=[f"cell{i}" for i in range(6)]),
        var.copy(),
        condition=cells,
        control="ctrl",
        separator="+",
        provenance={"source": "made"},
    )
    return (scores, files, references), screen, tmp_path


def test_norman_interactions_by_hand(pairs):
    """A+B: data 5 - (1 + 2) = 2 and -1 - (0 + 1) = -2; model 2 - (1 + 1) = 0 and 2 - (1 + 2) = -1.

    Of each model the setting of best validation, the largest fraction and the first split, whose training has the pair.
    """
    inputs, screen, folder = pairs
    write_screen(screen, folder / "screen.h5ad")
    found = combinations_figure.norman_interactions(*inputs, folder / "screen.h5ad")
    columns = ["model", "fraction", "pair", "seen", "gene", "observed", "predicted"]
    assert found[columns].to_numpy().tolist() == [
        ["cond_vae", 1.0, "A+B", True, "g1", 2.0, 0.0],
        ["cond_vae", 1.0, "A+B", True, "g2", -2.0, -1.0],
        ["sams_vae_corr", 1.0, "A+B", True, "g1", 2.0, 2.0],
        ["sams_vae_corr", 1.0, "A+B", True, "g2", -2.0, -2.0],
    ]
    assert found["run"].unique().tolist() == ["cond_vae-sum-0.1-0-1", "sams_vae_corr-sum-0.2-0-1"]
    assert "made" not in found


def test_norman_interactions_of_one_split_say_that_the_pair_was_not_seen(pairs):
    (scores, files, references), screen, folder = pairs
    write_screen(screen, folder / "screen.h5ad")
    found = combinations_figure.norman_interactions(
        scores[scores["split_seed"] == 1], files, references, folder / "screen.h5ad"
    )
    assert not found["seen"].any()


def test_norman_interactions_beside_what_was_put_into_a_miniature(pairs):
    (scores, files, references), screen, folder = pairs
    made = pd.DataFrame([[0.5, 0.25], [3.0, 4.0]], index=["A+B", "A+C"], columns=["g2", "g1"])
    screen.uns["miniature_truth"] = made
    write_screen(screen, folder / "screen.h5ad")
    found = combinations_figure.norman_interactions(
        scores[scores["model"] == "cond_vae"], files, references, folder / "screen.h5ad"
    )
    assert found.set_index("gene")["made"].to_dict() == {"g1": 0.25, "g2": 0.5}


def test_interactions_of_what_is_no_pair_are_unknown():
    found = interactions(np.ones((3, 2)), np.array([[0, -1], [0, 1], [1, -1]]))
    assert np.isnan(found[[0, 2]]).all() and (found[1] == -1).all()


# ---- masks, effects, own screens -----------------------------------------------------------------------------------


def test_accuracy_of_pathways_by_classifier_and_model():
    def file(model, mean, sd, metric="accuracy", classifier="knn", null=0.2):
        own = {"model": model, "classifier": classifier, "metric": metric, "mean": mean, "sd": sd, "n": 3}
        return own | {"null_mean": null, "null_sd": 0.05}

    found = masks_figure.accuracy_table(
        pd.DataFrame(
            [
                file("sams_vae_corr", 0.5, 0.01),
                file("sams_vae_corr", 0.7, 0.03),
                file("svae_plus", 0.4, 0.02),
                file("svae_plus", 0.9, 0.02, metric="balanced_accuracy"),
                file("svae_plus", 0.3, 0.0, classifier="majority", null=np.nan),
            ]
        )
    ).set_index("model")
    assert found.loc["sams_vae_corr", ["mean", "sd"]].tolist() == pytest.approx([0.6, np.std([0.5, 0.7], ddof=1)])
    assert found.loc["svae_plus", ["mean", "sd"]].tolist() == pytest.approx([0.4, 0.02])  # one run: over repeats
    assert found["majority"].tolist() == [0.3, 0.3] and found["null_mean"].tolist() == [0.2, 0.2]


def test_effects_of_the_run_shown_in_the_order_of_the_data(tmp_path):
    names, genes = ["p1", "p2", "p3"], ["g1", "g2"]
    obs = pd.DataFrame(index=names)
    write_h5ad(ad.AnnData(np.zeros((3, 2)), obs, pd.DataFrame(index=genes)), tmp_path / "data.h5ad")
    files = []
    for run in SCORES["run"].unique():
        values = np.arange(6.0).reshape(3, 2) + (0 if run == "sams_vae_corr-0.1-0" else 100)
        matrix = ad.AnnData(values, obs.copy(), pd.DataFrame(index=genes))
        files.append(str(tmp_path / run / "effects.h5ad"))
        write_h5ad(matrix[[2, 0, 1], ::-1].copy(), files[-1])
    screen = assemble(
        np.ones((4, 2), int),
        pd.DataFrame(index=list("wxyz")),
        pd.DataFrame(index=genes),
        condition=["p3", "p1", "p2", "ctrl"],
        control="ctrl",
        separator="",
        provenance={},
        gene_of={"p1": "G1", "p2": "G2", "p3": "G3"},
        pathway_of={"G1": "one", "G3": "two"},
    )
    write_screen(screen, tmp_path / "screen.h5ad")
    shown = effects_figure.tables(
        SCORES, files, tmp_path / "data.h5ad", tmp_path / "screen.h5ad", model="sams_vae_corr"
    )
    assert shown["model"].to_numpy().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert shown["data"].index.tolist() == shown["model"].index.tolist() == names
    assert shown["pathway"].to_dict() == {"p1": "one", "p2": "", "p3": "two"}


def test_histories_are_named_by_their_experiment(tmp_path):
    for name in ("norman_ood", "replogle"):
        (tmp_path / name).mkdir()
        write(pd.DataFrame({"run": ["000"], "step": [1], "val_loss": [2.0]}), tmp_path / name / "histories.tsv")
    found = of_experiments([tmp_path / name / "histories.tsv" for name in ("replogle", "norman_ood")])
    assert found[["experiment", "run"]].to_numpy().tolist() == [["replogle", "000"], ["norman_ood", "000"]]


def test_curves_say_how_much_data_a_run_saw_where_runs_differ(tmp_path):
    runs = {"norman_ood": {"fraction": [1, 0.25]}, "simulation_sams": {"cells": [30, 30]}, "replogle": {"seed": [0, 1]}}
    for name, axis in runs.items():
        write(pd.DataFrame({"run": ["a", "b"], **axis}), tmp_path / name / "grid.tsv")
        history = {"run": ["a", "a", "b"], "step": [1, 2, 1], "val_loss": 2.0}
        write(pd.DataFrame(history), tmp_path / name / "histories.tsv")
    found = curves_figure.tables(*([tmp_path / name / file for name in runs] for file in ("histories.tsv", "grid.tsv")))
    columns = ["experiment", "run", "step", "amount"]
    assert found[columns].to_numpy().tolist()[:4] == [
        ["norman_ood", "b", 1, "fraction 0.25"],  # least first
        ["norman_ood", "a", 1, "fraction 1"],
        ["norman_ood", "a", 2, "fraction 1"],
        ["simulation_sams", "a", 1, ""],
    ]
    assert len(found) == 9 and set(found.loc[found["experiment"] != "norman_ood", "amount"]) == {""}


def test_an_own_screen_shows_the_settings_of_best_validation(tmp_path):
    """Held-out effects alone, and of the baselines those that may be compared; no run of a setting not chosen."""
    grid = pd.DataFrame(
        [("one", "cond_vae", 0.1, 0), ("bad", "sams_vae_corr", 0.2, 0), ("two", "sams_vae_corr", 0.1, 1)],
        columns=["run", "model", "mask_prior", "seed"],
    ).assign(method="", inference="", dataset="d", split_name="s")
    obs, var = pd.DataFrame({"n_test": [2, 0]}, index=["A", "B"]), pd.DataFrame(index=["g1", "g2"])
    held_out = np.array([[1.0, 2.0], [np.nan, np.nan]])
    reference = tmp_path / "reference.h5ad"
    write_h5ad(ad.AnnData(np.full((2, 2), 50.0), obs, var, layers={"held_out": held_out}), reference)
    of, score_files = {"per_condition": [], "effects": [], "perturbations": []}, []
    for run, val, test in (("one", -7.0, -1.0), ("bad", -20.0, -50.0), ("two", -8.0, -99.0)):
        own = {"run": run, "protocol": "published", "metric": "iwelbo"}
        folder = tmp_path / "runs" / run
        write(pd.DataFrame([own | {"split": "val", "value": val}, own | {"split": "test", "value": test}]),
              folder / "scores.tsv")  # fmt: skip
        score_files.append(folder / "scores.tsv")
        each = {"condition": ["A", "A"], "protocol": ["published", "held-out"], "ate_pearson": [0.9, val], "ate_r2": 0}
        write(pd.DataFrame(each).assign(run=run), folder / "per_condition.tsv")
        write_h5ad(ad.AnnData(np.full((2, 2), val), obs.copy(), var.copy()), folder / "effects.h5ad")
        obsm = {} if run == "one" else {"mask_probability": np.full((2, 3), val)}
        write_h5ad(ad.AnnData(obs=pd.DataFrame(index=["A", "B"]), obsm=obsm), folder / "perturbations.h5ad")
        for name, files in of.items():
            files.append(str(next(folder.glob(f"{name}.*"))))
    base = {"protocol": "held-out", "split": "test"}
    write(pd.DataFrame([base | {"model": "intercept_nb", "metric": "log_likelihood", "value": -12.0},
                        base | {"model": "train_mean", "metric": "ate_r2", "value": 0.1}]),
          tmp_path / "d" / "s" / "baselines.tsv")  # fmt: skip
    each = {"condition": "A", "protocol": "held-out", "ate_pearson": [0.1, 0.2], "ate_r2": 0.0}
    write(pd.DataFrame(each).assign(model=["train_mean", "mean_of_perturbations"]), tmp_path / "each.tsv")
    screen = assemble(
        np.ones((3, 2), int), pd.DataFrame(index=list("xyz")), var.copy(), condition=["A", "B", "ctrl"],
        control="ctrl", separator="", provenance={},
    )  # fmt: skip
    write_screen(screen, tmp_path / "screen.h5ad")

    shown = own_screen_figure.tables(
        collect_scores(grid, score_files, [], [tmp_path / "d" / "s" / "baselines.tsv"]),
        of["per_condition"], of["effects"], of["perturbations"], tmp_path / "each.tsv", reference,
        tmp_path / "screen.h5ad",
    )  # fmt: skip
    # of 'one', whose validation is best; it has no masks: those of 'two', whose setting is its model's best
    assert shown["model_effects"].to_numpy().tolist() == [[-7.0, -7.0]]
    assert (shown["mask_probability"] == -8.0).all(None)
    assert (shown["name"], shown["mask_name"]) == (panels.label("cond_vae"), panels.label("sams_vae_corr"))
    assert shown["data_effects"].to_numpy().tolist() == [[1.0, 2.0]] and shown["data_effects"].index.tolist() == ["A"]
    assert shown["mask_probability"].shape == (2, 3) and shown["pathway"] is None
    assert shown["per_condition"].set_index("model")["value"].to_dict() == {
        "cond_vae": -7.0, "sams_vae_corr": -8.0, "mean_of_perturbations": 0.2,
    }  # fmt: skip
    assert shown["per_condition"]["run"].tolist()[:2] == ["one", "two"]
    likelihood = shown["scores"][shown["scores"]["metric"] == "iwelbo"]
    test = likelihood[likelihood["split"] == "test"].set_index("model")["value"].to_dict()
    assert test == {"cond_vae": -1.0, "sams_vae_corr": -99.0, "intercept_nb": -12.0}
