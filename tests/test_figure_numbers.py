"""Which run a figure shows, and the numbers that figures draw, worked out by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae.errors import DataError
from samsvae.evaluation.metrics.effects import interactions
from samsvae.evaluation.selection import shown
from samsvae.figures import combinations as combinations_figure
from samsvae.figures import conditions, pair_scores, score_table
from samsvae.figures import curves as curves_figure
from samsvae.figures import effects as effects_figure
from samsvae.figures import expression as expression_figure
from samsvae.figures import masks as masks_figure
from samsvae.figures import recovery as recovery_figure
from samsvae.figures import runs as panels
from samsvae.figures import scores as scores_figure
from samsvae.figures.interactions import interaction_table, list_tested_conditions
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.screens.screen import assemble, write_screen
from samsvae.tables import of_experiments, read, write

METHODS = {"sams_vae_corr": "SAMS-VAE", "cpa_vae_corr": "CPA-VAE", "cond_vae": "Conditional VAE", "svae_plus": "SVAE+"}


def rows(model: str, run: str, *, protocol: str = "published", of: dict, **columns) -> list[dict]:
    """The rows of one run: ``of`` maps (metric, split) to a value."""
    own = {"run": run, "model": model, "method": METHODS.get(model, "baseline"), "inference": "", **columns}
    own |= {"dataset": "d", "split_name": f"s{columns.get('split_seed', 0)}", "protocol": protocol}
    return [own | {"metric": metric, "split": split, "value": value} for (metric, split), value in of.items()]


def table(*parts: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


def seeds(prior: float, val: list[float], test: list[float], model: str = "sams_vae_corr") -> list[dict]:
    """Runs of one setting with one seed each, highest seed first."""
    found = []
    for seed in reversed(range(len(val))):
        of = {("iwelbo", "val"): val[seed], ("iwelbo", "test"): test[seed], ("ate_pearson", "all"): seed / 10}
        found += rows(model, f"{model}-{prior}-{seed}", of=of, mask_prior=prior, seed=seed)
    return found


def write_inputs(scores: pd.DataFrame, folder) -> tuple[str, list[str]]:
    """Write the grid for some scores, and RUN/scores.tsv of every run, below ``folder``."""
    own = ["run", "protocol", "metric", "split", "value"]
    grid = scores.drop(columns=[c for c in own if c != "run"]).drop_duplicates("run")
    write(grid, folder / "grid.tsv")
    paths = []
    for run, of in scores.groupby("run", sort=False):
        paths.append(str(folder / "runs" / str(run) / "scores.tsv"))
        write(of[own], paths[-1])
    return str(folder / "grid.tsv"), paths


#: prior 0.1 has the best mean on validation (-10), 0.01 the best single run there (-8) and the best test scores
SCORES = table(seeds(0.1, [-11, -9], [-30, -31]), seeds(0.01, [-8, -20], [-5, -6]), seeds(0.2, [-12, -12], [-1, -1]))


# ---- the run to show -----------------------------------------------------------------------------------------------


def test_the_run_shown_is_chosen_on_validation_data():
    assert panels.shown_run(SCORES, "sams_vae_corr").run == "sams_vae_corr-0.1-0"
    turned = SCORES.copy()  # reversing test scores changes nothing; reversing validation scores does
    turned.loc[turned["split"] == "test", "value"] *= -1
    assert panels.shown_run(turned, "sams_vae_corr").run == "sams_vae_corr-0.1-0"
    turned.loc[turned["split"] == "val", "value"] *= -1
    assert panels.shown_run(turned, "sams_vae_corr").run == "sams_vae_corr-0.01-0"


def test_the_run_shown_is_of_the_requested_model_or_of_the_best():
    better = table(seeds(0.1, [-1, -1], [-1, -1], model="cpa_vae_corr"))
    scores = pd.concat([SCORES, better], ignore_index=True)
    asked = panels.shown_run(scores, "sams_vae_corr")
    assert (asked.model, asked.run) == ("sams_vae_corr", "sams_vae_corr-0.1-0")
    assert asked.sentence == (
        "Shown: SAMS-VAE, corr. $z_b$, $E$, run sams_vae_corr-0.1-0 (the first of 2 seeds; settings chosen on "
        "validation data)."
    )
    best = panels.shown_run(scores, "svae_plus")  # no candidate
    assert (best.model, best.run) == ("cpa_vae_corr", "cpa_vae_corr-0.1-0") == panels.shown_run(scores)[:2]
    assert "best validation IWELBO of 2 models" in best.sentence
    single = panels.shown_run(scores[scores["run"] == "cpa_vae_corr-0.1-1"])
    assert single.run == "cpa_vae_corr-0.1-1" and "(one seed;" in single.sentence


def test_other_protocols_do_not_choose_the_run_shown():
    other = rows("sams_vae_corr", "held-out", protocol="held-out", of={("iwelbo", "val"): 0.0}, mask_prior=9.0, seed=0)
    scores = panels.models_only(pd.concat([SCORES, table(other)], ignore_index=True))
    assert panels.shown_run(scores, "sams_vae_corr").run == "sams_vae_corr-0.1-0"


def test_a_setting_with_a_seed_that_failed_is_not_shown():
    scores = SCORES[SCORES["run"] != "sams_vae_corr-0.1-1"].copy()  # the seed that is left has the best score of all
    scores.loc[(scores["run"] == "sams_vae_corr-0.1-0") & (scores["split"] == "val"), "value"] = -1.0
    assert panels.shown_run(scores).run == "sams_vae_corr-0.2-0"


def test_the_run_shown_is_among_those_that_rules_request():
    """The settings have different seeds; whichever is chosen, the rules have requested the run to show."""
    scores = table(seeds(0.1, [-9, -9], [0, 0]), seeds(0.2, [-5, -5, -8, -9], [0] * 4))
    scores = scores[~scores["run"].isin(["sams_vae_corr-0.2-0", "sams_vae_corr-0.2-1"])]
    grid = scores[["run", "model", "method", "inference", "mask_prior", "seed", "dataset", "split_name"]]
    assert panels.shown_run(scores).run == "sams_vae_corr-0.2-2"
    assert set(shown(grid)["run"]) == {"sams_vae_corr-0.1-0", "sams_vae_corr-0.2-2"}


def test_the_largest_amount_of_data_is_drawn_and_named():
    scores = pd.DataFrame({"run": list("abc"), "fraction": [0.0, 1.0, 1.0], "cells": 30, "split_seed": [0, 0, 1]})
    found, words = panels.of_largest_amount(scores)
    assert found["run"].tolist() == ["b", "c"] and words == "fraction 1"
    assert panels.of_largest_amount(scores.drop(columns="fraction"))[1] == ""
    assert panels.replicates(scores) == "split seed" and panels.replicates(scores.assign(seed=[0, 1, 2])) == "run"
    assert panels.replicates(scores.head(1)) == "seed"


def test_figures_compare_runs_with_the_requested_values():
    scores = pd.DataFrame({"run": list("abc"), "n_latent": [100, 200, 100], "n_layers": [1, 1, 2]})
    assert panels.restricted(scores, {"n_latent": 100})["run"].tolist() == ["a", "c"]
    assert panels.restricted(scores, {"n_latent": 100, "n_layers": 1})["run"].tolist() == ["a"]
    assert panels.restricted(scores, {"width": 7})["run"].tolist() == list("abc")  # no axis of this grid


def test_scores_are_restricted_before_the_largest_amount_is_taken(tmp_path):
    """``compared`` may name an amount that is not the largest; baselines are then of the splits of these runs."""
    parts = []
    for fraction, value in ((0.5, -2.0), (1.0, -1.0)):
        of = {("iwelbo", "val"): value, ("iwelbo", "test"): value, ("ate_pearson", "all"): 0.1}
        parts += rows("cond_vae", f"cond_vae-frac{fraction}", of=of, fraction=fraction, split_seed=fraction)
        base = {("ate_pearson", "all"): fraction}
        parts += rows("mean_of_perturbations", "mean_of_perturbations", of=base, fraction=fraction, split_seed=fraction)
    write(pd.DataFrame(parts), tmp_path / "scores.tsv")
    empty = {"per_condition": [], "baseline_conditions": [], "published": [], "comparable": False}
    for compared, value, base, amount in (({"fraction": 0.5}, -2.0, 0.5, ""), ({}, -1.0, 1.0, "fraction 1")):
        found = scores_figure.tables(scores=str(tmp_path / "scores.tsv"), compared=compared, **empty)
        assert found["table"]["test_iwelbo"].tolist() == [value] and found["amount"] == amount
        assert found["baselines"]["value"].tolist() == [base]


def test_the_table_of_scores_names_every_setting_that_was_chosen():
    parts = [
        rows("cond_vae", f"r{width}", of={("iwelbo", "val"): width, ("iwelbo", "test"): 1.0}, width=width, seed=0)
        for width in (8, 16)
    ]
    scores = panels.models_only(table(*parts))
    best, _ = panels.of_settings(scores, ["model"])
    assert score_table.build_table(scores, best)["settings"].tolist() == ["width = 16"]


def test_files_of_a_split():
    scores = pd.DataFrame({"run": ["a", "b"], "dataset": ["d", "d"], "split_name": ["s0", "s1"]})
    paths = ["r/e/splits/d/s0/effects.h5ad", "r/e/splits/d/s1/effects.h5ad"]
    assert panels.of_split(paths, scores, "b") == paths[1]
    with pytest.raises(DataError, match="'d/s1'"):
        panels.of_split(paths[:1], scores, "b")


def test_short_names_are_genes_and_differ():
    table = pd.DataFrame({"gene": ["G", "G", ""]}, index=["g1", "g2", "other"])
    assert panels.short_names(table) == {"g1": "G", "g2": "G #2", "other": "other"}


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
    """Chosen by the mean over data seeds, separately for 10 and 100 cells."""
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
    found, reference = pair_scores.summarise(table(*parts))
    assert reference == "SAMS-VAE, corr. $z_b$, $E$ at fraction 0"
    found = found.set_index(["model", "encoding", "fraction", "metric"])
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


def test_baselines_are_of_the_data_sets_whose_runs_were_chosen():
    """A grid may vary the data: the models are then scored on the best of them, and so must be the baselines."""
    parts = []
    for genes, value in ((10, -1.0), (20, -2.0)):
        of = {("iwelbo", "val"): value, ("iwelbo", "test"): value, ("ate_pearson", "test"): 0.5}
        columns = {"encoding": "sum", "fraction": np.nan, "split_seed": 0, "genes": genes}
        parts.append(rows("cond_vae", f"cond_vae{genes}", of=of, **columns))
        parts.append(rows("additive", "additive", of={("ate_pearson", "test"): genes / 100}, **columns))
        for row in (*parts[-1], *parts[-2]):
            row["dataset"] = f"d-genes{genes}"
    found, _ = pair_scores.summarise(table(*parts))
    assert found.set_index("model").loc["additive", ["mean", "n"]].tolist() == [0.1, 1]


def test_norman_needs_the_reference_of_every_split():
    columns = {"encoding": "sum", "split_seed": 0}
    of = {("iwelbo", "test"): -1.0, ("iwelbo", "val"): -1.0, ("ate_pearson", "test"): 0.5}
    scores = table(
        rows("sams_vae_corr", "a", of=of, fraction=0.0, **columns),
        rows("cond_vae", "b", of=of, fraction=0.0, encoding="sum", split_seed=1),
    )
    with pytest.raises(DataError, match="split_seed 1"):
        pair_scores.summarise(scores)


DATA = np.array([[1.0, 0.0], [5.0, -1.0], [0.0, 0.0], [2.0, 1.0], [7.0, 7.0]])  # A, A+B, A+C, B, C on two genes
PREDICTED = np.array([[1.0, 1], [2, 2], [9, 9], [1, 2], [9, 9]])


def pair_runs():
    """Scores of a model with two settings and of one with a single setting, at fractions 0 and 1 of two splits."""
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
    """Effects in the data and of every run: A, B and C alone, A+B with test cells, A+C without."""
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

    Each model: its best setting on validation data, the largest fraction, the first split, which trains on the pair.
    """
    inputs, screen, folder = pairs
    write_screen(screen, folder / "screen.h5ad")
    found = interaction_table(*inputs, folder / "screen.h5ad")
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
    found = interaction_table(scores[scores["split_seed"] == 1], files, references, folder / "screen.h5ad")
    assert not found["seen"].any()


def test_norman_interactions_next_to_the_simulated_ones_of_a_miniature(pairs):
    (scores, files, references), screen, folder = pairs
    made = pd.DataFrame([[0.5, 0.25], [3.0, 4.0]], index=["A+B", "A+C"], columns=["g2", "g1"])
    screen.uns["miniature_truth"] = made
    write_screen(screen, folder / "screen.h5ad")
    found = interaction_table(scores[scores["model"] == "cond_vae"], files, references, folder / "screen.h5ad")
    assert found.set_index("gene")["made"].to_dict() == {"g1": 0.25, "g2": 0.5}


def test_interactions_are_of_the_largest_fraction_without_training_cells(pairs):
    """At fraction 1 the pair has training cells, at 0 and 0.5 it has none."""
    (scores, files, references), screen, folder = pairs
    write_screen(screen, folder / "screen.h5ad")
    scores = scores[(scores["model"] == "cond_vae") & (scores["encoding"] == "sum") & (scores["split_seed"] == 0)]
    half = scores[scores["fraction"] == 0].assign(fraction=0.5, run="half")
    scores = pd.concat([scores, half], ignore_index=True)
    scores["split_name"] = scores["fraction"].map({0.0: "s1", 0.5: "s1", 1.0: "s0"})  # unseen in s1, seen in s0
    run = scores.loc[scores["fraction"] == 0, "run"].iloc[0]
    files = [*files, panels.of_run(files, run).replace(run, "half")]
    write_h5ad(read_h5ad(panels.of_run(files, run)), files[-1])
    found = interaction_table(scores, files, references, folder / "screen.h5ad")
    assert found["fraction"].unique().tolist() == [0.5] and not found["seen"].any() and len(found) == 2
    seen = interaction_table(scores[scores["fraction"] == 1], files, references, folder / "screen.h5ad")
    assert seen["fraction"].unique().tolist() == [1.0] and seen["seen"].all()


def test_combinations_figure_from_files(pairs):
    """Scores, interactions and the words of the figure; one sentence if no combination has test cells."""
    (scores, files, references), screen, folder = pairs
    write_screen(screen, folder / "screen.h5ad")
    kinds = {"s0": "norman_ood-split0", "s1": "norman_ood-split1"}
    scores = scores.assign(split_name=scores["split_name"].map(kinds))
    extra = scores[scores["split"] == "test"].assign(metric="ate_pearson", value=0.5)
    grid, paths = write_inputs(pd.concat([scores, extra], ignore_index=True), folder)
    moved, baselines = [], []
    for path in references:
        name = kinds[path.split("/")[-2]]
        moved.append(str(folder / "splits" / "d" / name / "effects.h5ad"))
        write_h5ad(read_h5ad(path), moved[-1])
        base = {"model": "additive", "protocol": "published", "metric": "ate_pearson", "split": "test", "value": 0.4}
        baselines.append(str(folder / "splits" / "d" / name / "baselines.tsv"))
        write(pd.DataFrame([base]), baselines[-1])
        reason = "the pooled reliability of the interactions is -0.23, below 0.1"
        worth = [("additive", "pearson_centred", "all", 0.5, ""), ("ceiling", "pearson_centred", "all", 0.8, ""),
                 ("additive", "pearson_centred", "unseen", 0.1, ""), ("train_mean", "pearson_centred", "all", 0.2, ""),
                 ("ceiling", "interaction_nmse", "all", np.nan, reason)]  # fmt: skip
        table_of_split = pd.DataFrame(worth, columns=["model", "metric", "set", "value", "reason"])
        write(table_of_split, folder / "splits" / "d" / name / "worth.tsv")
    honest = []
    for i, path in enumerate(paths):
        run = path.split("/")[-2]
        row = {"run": run, "metric": "pearson_centred", "set": "unseen", "value": 0.1 * i}
        honest.append(str(folder / "runs" / run / "worth.tsv"))
        write(pd.DataFrame([row, {**row, "metric": "nmse_centred"}]), honest[-1])
    inputs = {"grid": grid, "scores": paths, "effects": files, "screen": str(folder / "screen.h5ad"),
              "baselines": baselines, "published": [], "comparable": False, "worth": honest,
              "baseline_worth": [path.replace("baselines.tsv", "worth.tsv") for path in baselines]}  # fmt: skip
    found = combinations_figure.tables(**inputs, references=moved)
    assert (found["kind"], found["unit"], found["targets"]) == ("norman_ood", "split seed", "combinations")
    assert found["reference"] == "SAMS-VAE, corr. $z_b$, $E$ at fraction 0" and found["published"] is None
    additive = found["scores"][found["scores"]["model"] == "additive"]
    assert additive[additive["metric"] == "ate_pearson"]["mean"].tolist() == [0.4] and len(found["interactions"]) == 4
    ours = found["scores"][found["scores"]["metric"] == "pearson_centred"]
    lines = ours[ours["model"].isin(["additive", "ceiling"])].groupby("model")["mean"].unique()
    assert lines["additive"].tolist() == [0.5] and lines["ceiling"].tolist() == [0.8]  # of all conditions
    assert "train_mean" not in set(ours["model"]) and found["reason"] == (
        "The honest protocol scores no interactions: the pooled reliability of the interactions is -0.23, below 0.1."
    )
    combinations_figure.draw(**found)
    for path in moved:
        data = read_h5ad(path)
        data.obs["n_test"] = [3, 0, 0, 0, 0]
        write_h5ad(data, path)
    none = combinations_figure.tables(**inputs, references=moved)
    assert none["scores"] is None and none["message"].startswith("No combination of perturbations has test cells")


def test_tested_conditions_are_marked_as_combinations_or_not(pairs):
    (_, _, references), *_ = pairs
    assert list_tested_conditions(references)["combination"].to_dict() == {"A+B": True}


def test_without_the_published_reference_the_best_model_on_validation_is_the_reference():
    parts = []
    for split in (0, 1):
        for model, val, test in (("cond_vae", -5.0, -30.0), ("cpa_vae_corr", -4.0, -20.0 - split)):
            of = {("iwelbo", "val"): val, ("iwelbo", "test"): test, ("ate_pearson", "test"): 0.5}
            parts.append(rows(model, f"{model}{split}", of=of, encoding="sum", split_seed=split, fraction=np.nan))
    found, reference = pair_scores.summarise(table(*parts))
    relative = found[found["metric"] == "iwelbo_relative_to_best"].set_index("model")["mean"]
    assert relative.to_dict() == {"cond_vae": -9.5, "cpa_vae_corr": 0.0}  # (-10 - 9) / 2
    assert reference == "CPA-VAE, corr. $z_b$ on the same split"


def test_conditions_that_are_not_pairs_have_no_interactions():
    found = interactions(np.ones((3, 2)), np.array([[0, -1], [0, 1], [1, -1]]))
    assert np.isnan(found[[0, 2]]).all() and (found[1] == -1).all()


# ---- masks, effects, curves ----------------------------------------------------------------------------------------


def test_accuracy_of_pathways_by_classifier_features_and_model():
    def file(run, mean, sd, metric="accuracy", classifier="knn", features="mask", null=0.2):
        own = {"run": run, "features": features, "classifier": classifier, "metric": metric, "mean": mean, "sd": sd}
        return own | {"n": 3, "null_mean": null, "null_sd": 0.05}

    runs = pd.Series({"a": "sams_vae_corr", "b": "sams_vae_corr", "c": "svae_plus"})
    baseline = {"model": "train_mean", "metric": "effects_pathway_accuracy/knn", "value": 0.8, "sd": 0.04}
    found = masks_figure.accuracy_table(
        pd.DataFrame(
            [
                file("a", 0.5, 0.01),
                file("b", 0.7, 0.03),
                file("c", 0.4, 0.02),
                file("c", 0.9, 0.02, metric="balanced_accuracy"),
                file("c", 0.3, 0.0, classifier="majority", null=np.nan),
                file("c", 0.6, 0.02, features="embedding", null=np.nan),
                file("other settings", 0.1, 0.02),
            ]
        ),
        runs,
        [pd.DataFrame([baseline, baseline | {"metric": "effects_pathway_balanced_accuracy/knn"}])],
    ).set_index(["features", "model"])
    assert found.loc[("mask", "sams_vae_corr"), ["mean", "sd"]].tolist() == pytest.approx([0.6, np.sqrt(0.02)])
    assert found.loc[("mask", "svae_plus"), ["mean", "sd"]].tolist() == pytest.approx([0.4, 0.02])  # one run: repeats
    assert found.loc[("embedding", "svae_plus"), "mean"] == 0.6
    assert found.loc[("effects", "train_mean"), ["mean", "sd"]].tolist() == [0.8, 0.04]
    assert len(found) == 4 and (found["majority"] == 0.3).all()
    assert found["null_mean"].loc["mask"].tolist() == [0.2, 0.2]


def test_expression_is_of_conditions_that_the_split_has(tmp_path):
    """The tests of the data are of all cells; a split that leaves a condition out has no effect for it to draw."""
    names, genes, run = ["p1", "p2"], ["g1", "g2"], "sams_vae_corr-0.1-0"
    effects = ad.AnnData(np.zeros((2, 2)), pd.DataFrame(index=names), pd.DataFrame(index=genes))
    write_h5ad(effects, tmp_path / "d" / "s0" / "effects.h5ad")
    write_h5ad(effects, tmp_path / run / "effects.h5ad")
    rows = [
        {"condition": condition, "gene": gene, "method": "wilcoxon", "score": 1.0, "log_fold_change": 1.0,
         "pvalue": 0.01, "padj": 0.01}
        for condition in (*names, "left out") for gene in genes
    ]  # fmt: skip
    write(pd.DataFrame(rows), tmp_path / "data.tsv")
    tests = pd.concat(
        [pd.DataFrame(rows[:4]).assign(run=name, score=score) for name, score in ((run, 1.0), ("o", 2.0))]
    )
    write(tests, tmp_path / "tests.tsv")  # those of a run that is not shown are left out
    agreement = {"condition": "left out", "method": "wilcoxon", "metric": "de_overlap20", "value": 0.5}
    write(pd.DataFrame([agreement | {"run": name, "value": value} for name, value in ((run, 0.5), ("o", 0.9))]),
          tmp_path / "agreement.tsv")  # fmt: skip
    labels = {"condition": ["p1", "p2", "ctrl"], "control": "ctrl", "separator": "", "provenance": {}}
    screen = assemble(np.ones((3, 2), int), pd.DataFrame(index=list("xyz")), pd.DataFrame(index=genes), **labels)
    write_screen(screen, tmp_path / "screen.h5ad")
    grid, scores = write_inputs(SCORES, tmp_path)
    shown = expression_figure.tables(
        grid=grid, scores=scores, effects=[str(tmp_path / run / "effects.h5ad")], data=str(tmp_path / "data.tsv"),
        tests=[str(tmp_path / "tests.tsv")], screen=str(tmp_path / "screen.h5ad"), shown="",
        agreement=[str(tmp_path / "agreement.tsv")],
        references=[str(tmp_path / "d" / "s0" / "effects.h5ad")],
    )  # fmt: skip
    assert sorted(set(shown["data_de"]["condition"])) == names
    assert set(shown["model_de"]["score"]) == {1.0} and list(shown["overlap"]["overlap"]) == [0.5]
    assert "scatter p1" in {ax.get_label() for ax in expression_figure.draw(**shown).axes}


def test_effects_of_the_run_shown_in_the_order_of_the_data(tmp_path):
    names, genes = ["p1", "p2", "p3"], ["g1", "g2"]
    obs = pd.DataFrame(index=names)
    reference = str(tmp_path / "d" / "s0" / "effects.h5ad")
    write_h5ad(ad.AnnData(np.zeros((3, 2)), obs, pd.DataFrame(index=genes)), reference)
    grid, scores = write_inputs(SCORES, tmp_path)
    files, per_condition = [], []
    parts = [
        worth_conditions([(value, "unseen")]).assign(model=model)
        for model, value in (("no_change", 0.0), ("ridge_pc", 0.2), ("ceiling", 0.6))
    ]
    write(pd.concat(parts), tmp_path / "d" / "s0" / "worth_conditions.tsv")
    for i, run in enumerate(SCORES["run"].unique()):
        per_condition.append(str(tmp_path / "runs" / run / "worth_conditions.tsv"))
        write(
            worth_conditions([(0.3 if run == "sams_vae_corr-0.1-0" else i, "unseen")]).assign(run=run),
            per_condition[-1],
        )
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
    asked = {
        "grid": grid, "scores": scores, "effects": files, "references": [reference], "per_condition": per_condition,
        "baseline_conditions": [str(tmp_path / "d" / "s0" / "worth_conditions.tsv")],
        "screen": str(tmp_path / "screen.h5ad"), "shown": "sams_vae_corr",
    }  # fmt: skip
    shown = effects_figure.tables(**asked)
    assert shown["each"].to_numpy().tolist() == [
        ["sams_vae_corr", "sams_vae_corr-0.1-0", "A", 0.3], ["ridge_pc", "ridge_pc", "A", 0.2],
        ["ceiling", "ceiling", "A", 0.6],
    ]  # fmt: skip
    assert effects_figure.tables(**{**asked, "per_condition": []})["each"] is None
    assert shown["model"].to_numpy().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert shown["data"].index.tolist() == shown["model"].index.tolist() == names
    assert shown["pathway"].to_dict() == {"p1": "one", "p2": "", "p3": "two"}
    assert (shown["shown"], shown["kind"]) == ("sams_vae_corr", "perturbations")
    assert shown["names"] == {"p1": "G1", "p2": "G2", "p3": "G3"}


def test_histories_are_named_by_their_experiment(tmp_path):
    for name in ("norman_ood", "replogle"):
        (tmp_path / name).mkdir()
        write(pd.DataFrame({"run": ["000"], "step": [1], "val_loss": [2.0]}), tmp_path / name / "histories.tsv")
    found = of_experiments([tmp_path / name / "histories.tsv" for name in ("replogle", "norman_ood")])
    assert found[["experiment", "run"]].to_numpy().tolist() == [["replogle", "000"], ["norman_ood", "000"]]


def test_curves_say_how_much_data_a_run_saw_if_runs_differ(tmp_path):
    runs = {"norman_ood": {"fraction": [1, 0.25]}, "simulation_sams": {"cells": [30, 30]}, "replogle": {"seed": [0, 1]}}
    found = {}
    for name, axis in runs.items():
        write(pd.DataFrame({"run": ["a", "b"], **axis}), tmp_path / name / "grid.tsv")
        history = {"run": ["a", "a", "b"], "step": [1, 2, 1], "val_loss": 2.0}
        write(pd.DataFrame(history), tmp_path / name / "histories.tsv")
        files = {"grid": tmp_path / name / "grid.tsv", "histories": tmp_path / name / "histories.tsv"}
        found[name] = curves_figure.tables(**{key: str(path) for key, path in files.items()})
    assert found["norman_ood"]["histories"][["run", "step", "amount"]].to_numpy().tolist() == [
        ["b", 1, "fraction 0.25"],  # least first
        ["a", 1, "fraction 1"],
        ["a", 2, "fraction 1"],
    ]
    for name in ("simulation_sams", "replogle"):
        assert set(found[name]["histories"]["amount"]) == {""} and found[name]["name"] == name


def test_masks_of_the_model_shown_or_of_the_best_masked_one(tmp_path):
    names = ["p1", "p2"]
    grid, scores = write_inputs(pd.concat([SCORES, table(seeds(5.0, [-3], [-1], model="svae_plus"))]), tmp_path)
    files = []
    for at, path in enumerate(scores):
        run = path.split("/")[-2]
        obsm = {key: np.full((2, 3), at / 10) for key in ("mask_probability", "embedding")}
        files.append(str(tmp_path / "runs" / run / "perturbations.h5ad"))
        write_h5ad(ad.AnnData(obs=pd.DataFrame(index=names), obsm=obsm), files[-1])
    screen = assemble(
        np.ones((3, 2), int), pd.DataFrame(index=list("xyz")), pd.DataFrame(index=["g1", "g2"]),
        condition=["p1", "p2", "ctrl"], control="ctrl", separator="", provenance={}, gene_of={"p1": "G", "p2": "G"},
    )  # fmt: skip
    write_screen(screen, tmp_path / "d" / "screen.h5ad")
    write(read(grid).assign(dataset="d"), grid)
    inputs = {"grid": grid, "scores": scores, "perturbations": files, "screen": str(tmp_path / "d" / "screen.h5ad")}
    inputs |= {"pathways": [], "baselines": []}
    shown = masks_figure.tables(**inputs, shown="sams_vae_corr")
    at = [path.split("/")[-2] for path in scores].index("sams_vae_corr-0.1-0")
    assert (shown["mask_probability"] == at / 10).all(None) and shown["name"] == "SAMS-VAE, corr. $z_b$, $E$"
    assert shown["mask_probability"].index.tolist() == ["G", "G #2"]
    assert shown["pathway"] is None and shown["accuracy"] is None
    table_of_masks = shown["stability"].set_index("model")
    assert table_of_masks["seeds"].tolist() == [2, 1] and set(table_of_masks.index) == {"sams_vae_corr", "svae_plus"}
    assert table_of_masks.loc["svae_plus", ["mask_density", "mask_active_latents"]].tolist() == [1, 3]
    best = masks_figure.tables(**inputs, shown="sams_vae_bb")
    assert best["name"] == "SVAE+" and (best["mask_probability"] == (len(files) - 1) / 10).all(None)
    masks_figure.draw(**best)


# ---- scores --------------------------------------------------------------------------------------------------------


def worth_conditions(values: list[tuple[float, str]]) -> pd.DataFrame:
    """Scores of the condition A in some sets by the honest protocol: the correlation, and another metric."""
    rows = [
        {"metric": metric, "set": where, "condition": "A", "value": value + other, "weight": 1.0}
        for value, where in values
        for metric, other in (("pearson_centred", 0), ("discrimination", 0.5))
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def experiment(tmp_path):
    """Three runs of two models; 'bad' has the worse validation score of its model. One condition has test cells."""
    parts, per_condition = [], []
    for run, model, prior, val, test in (
        ("one", "cond_vae", 0.1, -7.0, -1.0), ("bad", "sams_vae_corr", 0.2, -20.0, -50.0),
        ("two", "sams_vae_corr", 0.1, -8.0, -99.0),
    ):  # fmt: skip
        of = {("iwelbo", "val"): val, ("iwelbo", "test"): test, ("ate_pearson", "all"): 0.5}
        parts.append(rows(model, run, of=of, mask_prior=prior, seed=0))
        per_condition.append(str(tmp_path / "runs" / run / "worth_conditions.tsv"))
        write(worth_conditions([(val - 1, "seen"), (val, "all")]).assign(run=run), per_condition[-1])
    base = [
        {"model": "intercept_nb", "protocol": "held-out", "metric": "log_likelihood", "split": "test", "value": -12.0},
        {"model": "mean_of_perturbations", "protocol": "published", "metric": "ate_pearson", "split": "all",
         "value": 0.3},
    ]  # fmt: skip
    names = {"method": "baseline", "dataset": "d", "split_name": "s0"}
    scores = pd.concat([table(*parts), pd.DataFrame(base).assign(**names, run=lambda t: t["model"])])
    write(scores, tmp_path / "scores.tsv")
    parts = [
        worth_conditions([(value, "seen")]).assign(model=model)
        for model, value in (("train_mean", 0.1), ("shrunk", 0.2), ("ridge_pc", 0.3), ("ceiling", 0.4))
    ]
    of_split = str(tmp_path / "splits" / "d" / "s0" / "worth_conditions.tsv")
    write(pd.concat(parts), of_split)
    return {
        "scores": str(tmp_path / "scores.tsv"), "per_condition": per_condition, "baseline_conditions": [of_split],
        "published": [], "comparable": False, "compared": {},
    }  # fmt: skip


def test_scores_show_the_settings_of_best_validation(experiment):
    """Honest scores of all conditions, next to baselines and the ceiling; no run of a setting that was not chosen."""
    shown = scores_figure.tables(**experiment)
    found = shown["table"].set_index("model")
    assert found["test_iwelbo"].to_dict() == {"cond_vae": -1.0, "sams_vae_corr": -99.0}
    assert found["settings"].to_dict() == {"cond_vae": "", "sams_vae_corr": "α = 0.1"}
    assert not [c for c in found if "published" in c or "mask_pathway" in c]  # nothing is published, no run has masks
    assert shown["per_condition"].set_index("model")["value"].to_dict() == {
        "cond_vae": -7.0, "sams_vae_corr": -8.0, "shrunk": 0.2, "ridge_pc": 0.3, "ceiling": 0.4,
    }  # fmt: skip
    assert shown["per_condition"]["run"].tolist()[:2] == ["one", "two"]
    assert set(shown["runs"]["run"]) == {"one", "two"}
    assert shown["baselines"].to_numpy().tolist() == [
        ["test_iwelbo", "intercept_nb", -12.0],
        ["ate_pearson", "mean_of_perturbations", 0.3],
    ]
    scores_figure.draw(**shown)


def test_scores_without_held_out_conditions_have_no_lower_panel(experiment):
    shown = scores_figure.tables(**(experiment | {"per_condition": [], "baseline_conditions": []}))
    assert shown["per_condition"] is None
    assert "conditions" not in {ax.get_label() for ax in scores_figure.draw(**shown).axes}


def test_scores_by_condition_are_read_for_the_runs_and_splits_drawn(experiment):
    paths = experiment["per_condition"], experiment["baseline_conditions"]
    other = conditions.table(*paths, {"bad": "sams_vae_corr"}, {("d", "s1")})
    assert other[["model", "run", "value"]].to_numpy().tolist() == [["sams_vae_corr", "bad", -20.0]]
    assert conditions.table([], experiment["baseline_conditions"], {}, {("d", "s0")}) is None


def test_scores_of_the_largest_fraction_pool_split_seeds():
    """By hand: fraction 1 alone; mean and sd over two splits; baselines over the splits of that fraction."""
    parts = []
    for fraction in (0.0, 1.0):
        for split in (0, 1):
            of = {("iwelbo", "val"): -5.0, ("iwelbo", "test"): -10 * fraction - split, ("ate_pearson", "all"): 0.5}
            parts.append(rows("cond_vae", f"{fraction}{split}", of=of, fraction=fraction, split_seed=split))
            own = {"fraction": fraction, "split_seed": split, "protocol": "held-out"}
            parts.append(rows("intercept_nb", "x", of={("log_likelihood", "test"): -50 * fraction - split}, **own))
    scores, amount = panels.of_largest_amount(table(*parts))
    best, ours = panels.of_settings(panels.models_only(scores), ["model"])
    found = score_table.build_table(panels.models_only(scores), best).iloc[0]
    assert (found["test_iwelbo"], found["test_iwelbo_sd"]) == pytest.approx((-10.5, np.std([-10, -11], ddof=1)))
    assert (found["n_runs"], amount, panels.replicates(ours.drop_duplicates("run"))) == (2, "fraction 1", "split seed")
    assert score_table.baseline_table(scores)["value"].tolist() == [-50.5]


def test_settings_that_differ_between_runs_are_named():
    row = pd.Series({"model": "beta_vae", "kl_weight": 2.0, "n_layers": 2, "encoding": "unique"})
    assert score_table.settings_text(row, ["n_layers", "kl_weight"]) == "2 layers, β = 2"
    assert score_table.settings_text(row, ["encoding"]) == "unique encoding"
