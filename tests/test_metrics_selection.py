"""Choice of hyper-parameters in small tables, compared with results by hand."""

import numpy as np
import pandas as pd
import pytest

from samsvae.errors import DataError
from samsvae.evaluation.selection import best_runs, best_settings, chosen, of_best_settings, relative_to, shown, summary


def scores():
    """Two models. sams: prior 0.1 is best on validation (mean -11), prior 0.01 has the best single test run (-5)."""
    rows = []
    for model, prior, seed, val, test in [
        ("sams", 0.1, 0, -10.0, -20.0),
        ("sams", 0.1, 1, -12.0, -22.0),
        ("sams", 0.01, 0, -30.0, -5.0),
        ("sams", 0.01, 1, -14.0, -40.0),
        ("cpa", np.nan, 0, -15.0, -25.0),
        ("cpa", np.nan, 1, -17.0, -27.0),
    ]:
        run = {"experiment": "e", "run": f"{model}{prior}{seed}", "model": model, "mask_prior": prior, "seed": seed}
        run |= {"protocol": "published"}
        rows += [run | {"metric": "iwelbo", "split": "val", "value": val}]
        rows += [run | {"metric": "iwelbo", "split": "test", "value": test}]
        rows += [run | {"metric": "ate_pearson", "split": "all", "value": -val / 100}]
    return pd.DataFrame(rows)


def test_validation_mean_over_seeds_chooses():
    best = best_settings(scores(), ["model"]).set_index("model")
    assert list(best.columns) == ["mask_prior", "mean", "sd", "n"]
    assert best.loc["sams"].to_list() == pytest.approx([0.1, -11, np.sqrt(2), 2])
    assert np.isnan(best.loc["cpa", "mask_prior"]) and best.loc["cpa", "mean"] == -16


def test_row_order_does_not_matter():
    shuffled = scores().sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(best_settings(scores(), ["model"]), best_settings(shuffled, ["model"]))


def test_a_setting_with_failed_seeds_does_not_win():
    table = scores()
    failed = (table["mask_prior"] == 0.1) & (table["seed"] == 1)
    table.loc[failed, "value"] = np.nan
    assert best_settings(table, ["model"]).set_index("model").loc["sams", "mask_prior"] == 0.01
    dropped = best_settings(table[~failed], ["model"]).set_index("model")
    assert dropped.loc["sams", "mask_prior"] == 0.01


def test_over_everything_and_named_settings():
    assert best_settings(scores(), [], settings=["model", "mask_prior"])["mask_prior"].to_list() == [0.1]
    best = best_settings(scores(), [], settings=["model"])  # means over priors and seeds: cpa -16, sams -16.5
    assert best[["model", "mean", "n"]].to_numpy().tolist() == [["cpa", -16, 2]]


def test_published_rule_takes_the_best_test_run():
    best = best_runs(scores(), ["model"]).set_index("model")
    assert best.loc["sams", "run"] == "sams0.010" and best.loc["sams", "value"] == -5
    assert best.loc["cpa", "seed"] == 0


def test_chosen_keeps_all_metrics_of_the_choice():
    got = chosen(scores(), best_settings(scores(), ["model"]))
    assert len(got) == 4 * 3 and set(got["metric"]) == {"iwelbo", "ate_pearson"}
    assert set(got.loc[got["model"] == "sams", "mask_prior"]) == {0.1}
    run = chosen(scores(), best_runs(scores(), ["model"]))
    assert set(run["run"]) == {"sams0.010", "cpanan0"} and len(run) == 2 * 3


def norman():
    rows = [
        ("sams_vae_corr", "sum", 0.0, 0, -100.0),
        ("sams_vae_corr", "sum", 0.0, 1, -130.0),
        ("sams_vae_corr", "sum", 0.5, 0, -90.0),
        ("cpa_vae_corr", "sum", 0.0, 0, -103.0),
        ("cpa_vae_corr", "unique", 0.0, 1, -126.0),
    ]
    table = pd.DataFrame(rows, columns=["model", "encoding", "fraction", "split_seed", "value"])
    return table.assign(metric="iwelbo", split="test")


REFERENCE = {"model": "sams_vae_corr", "encoding": "sum", "fraction": 0}


def test_relative_to_the_reference_of_the_same_split():
    got = relative_to(norman(), REFERENCE, ["split_seed"])
    assert got["value"].to_list() == [0, 0, 10, -3, 4] and set(got["metric"]) == {"iwelbo_relative"}
    assert list(got.columns) == list(norman().columns)
    assert norman()["value"].to_list() == [-100, -130, -90, -103, -126]


def test_relative_to_a_mean_of_seeds_and_to_a_missing_reference():
    two = pd.concat([norman(), norman().iloc[[0]].assign(value=-110.0)])
    assert relative_to(two, REFERENCE, ["split_seed"])["value"].to_list() == [5, 0, 15, 2, 4, -5]
    with pytest.raises(DataError, match="split_seed 1"):
        relative_to(norman().drop(index=1), REFERENCE, ["split_seed"])
    with pytest.raises(DataError, match="Did you mean 'split_seed'"):
        relative_to(norman(), REFERENCE, ["splitseed"])


def test_summary():
    got = summary(norman(), ["model", "fraction"])
    row = got[(got["model"] == "sams_vae_corr") & (got["fraction"] == 0)].iloc[0]
    assert (row["mean"], row["n"]) == (-115, 2) and row["sd"] == pytest.approx(np.std([-100, -130], ddof=1))
    assert got["sd"].isna().sum() == 1  # a single run has no sd


def test_unknown_metric_is_named():
    with pytest.raises(DataError, match="Did you mean 'iwelbo'"):
        best_settings(scores(), ["model"], metric="iwelb")


def test_the_run_shown_is_the_first_seed_of_each_setting_even_if_seeds_differ():
    runs = pd.DataFrame(
        [("a1", 0.1, 1), ("a0", 0.1, 0), ("b3", 0.2, 3), ("b2", 0.2, 2), ("c", np.nan, 7)],
        columns=["run", "mask_prior", "seed"],
    ).assign(model="sams", method="SAMS-VAE", dataset="d", split_name=list("vwxyz"))
    assert shown(runs)["run"].tolist() == ["a0", "b2", "c"]
    assert shown(runs, ["data_seed"])["run"].tolist() == list(runs["run"])  # these seeds are settings, not replicates
    assert shown(pd.concat([runs, runs]))["run"].tolist() == ["a0", "b2", "c"]  # a score table has many rows per run


def test_scores_of_the_best_settings_need_no_column_of_seeds():
    """A grid with a single seed has no column seed."""
    table = scores()[scores()["seed"] == 0].drop(columns="seed")
    assert sorted(of_best_settings(table)["run"].unique()) == ["cpanan0", "sams0.10"]
