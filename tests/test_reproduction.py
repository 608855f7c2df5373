"""Published numbers next to ours: which runs are compared, the differences and the verdicts."""

from __future__ import annotations

import re

import figure_tables
import numpy as np
import pandas as pd
import pytest

from samsvae.config.zoo import ROWS
from samsvae.figures.published import NUMBERS, numbers
from samsvae.study.figure_plan import FigurePlan
from samsvae.study.plan import Plan
from samsvae.study.report_contents import report_of
from samsvae.study.report_tables import reproductions as parts_of_page
from samsvae.study.reproduction import reproduction
from samsvae.tables import read, write


@pytest.fixture
def source(root, tmp_path):
    """A function that writes scores and returns what `FigurePlan.reproductions` says about them."""

    def made(scores: pd.DataFrame | None, file: str = "replogle_table1.tsv", **changed) -> dict:
        if scores is not None:
            write(scores, tmp_path / "scores.tsv")
        found = {"task": "replogle", "experiment": "mine", "compared": {}, "not_comparable": ""}
        found |= {"figure": "scores" if file.endswith(".tsv") else "combinations"}
        found |= {"published": str(root / "resources" / "published" / file)}
        return found | {"scores": "" if scores is None else str(tmp_path / "scores.tsv")} | changed

    return made


def at(table: pd.DataFrame, model: str, metric: str, **where) -> pd.Series:
    rows = table[(table["model"] == model) & (table["metric"] == metric)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    (row,) = rows.to_dict("records")
    return pd.Series(row)


# ---- Table 1 -------------------------------------------------------------------------------------------------------


def test_every_number_of_table_1_has_a_row_with_ours_of_the_settings_best_on_validation(source):
    scores = figure_tables.replogle_scores()
    table = reproduction([source(scores)])
    assert len(table) == 8 + 5 + 8 and not table["mean"].isna().any()  # IWELBO and ATE of all, masks of five
    of = scores[(scores["model"] == "sams_vae_corr") & (scores["mask_prior"] == 0.01)]  # better by construction
    test = of[(of["metric"] == "iwelbo") & (of["split"] == "test")]["value"]
    row = at(table, "sams_vae_corr", "iwelbo")
    assert (row["published_mean"], row["published_sd"], row["published_n"], row["n"]) == (-1756.27, 0.10, 5, 5)
    assert row["mean"] == pytest.approx(np.mean(test)) and row["sd"] == pytest.approx(np.std(test, ddof=1))
    assert row["difference"] == pytest.approx(np.mean(test) + 1756.27)
    assert row["spread"] == "published" and row["difference_in_sd"] == pytest.approx((np.mean(test) + 1756.27) / 0.10)
    assert row["verdict"] == f"differs by {row['difference_in_sd']:+.1f} sd"


def test_without_a_published_sd_the_unit_is_ours(source):
    row = at(reproduction([source(figure_tables.replogle_scores())]), "cond_vae", "ate_pearson")
    assert np.isnan(row["published_sd"]) and row["spread"] == "ours"
    assert row["difference_in_sd"] == pytest.approx((row["mean"] - 0.765) / row["sd"])
    single = reproduction([source(figure_tables.replogle_scores(seeds=1))])
    assert at(single, "cond_vae", "ate_pearson")["verdict"] == "undecided: no sd"
    assert np.isfinite(at(single, "cond_vae", "iwelbo")["difference_in_sd"])  # the published sd is the unit


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [(0.19, "within 2 sd"), (-0.19, "within 2 sd"), (0.21, "differs by +2.1 sd"), (-0.35, "differs by -3.5 sd")],
)
def test_a_difference_is_more_than_two_sd(source, shift, verdict):
    scores = figure_tables.replogle_scores(seeds=1)
    at_test = (scores["model"] == "sams_vae_corr") & (scores["metric"] == "iwelbo") & (scores["split"] == "test")
    table = reproduction([source(scores.assign(value=scores["value"].where(~at_test, -1756.27 + shift)))])
    assert at(table, "sams_vae_corr", "iwelbo")["verdict"] == verdict


def test_runs_that_do_not_exist_are_named_so(source):
    scores = figure_tables.replogle_scores()
    table = reproduction([source(scores[scores["model"] != "cpa_vae_mf"])])
    assert set(table.loc[table["model"] == "cpa_vae_mf", "verdict"]) == {"not run"}
    none = reproduction([source(None, experiment="")])
    assert set(none["verdict"]) == {"not run"} and len(none) == 21 and none["mean"].isna().all()
    other = reproduction([source(scores, compared={"n_latent": 200})])  # no run has 200 latents
    assert set(other["verdict"]) == {"not run"}


@pytest.mark.parametrize("reason", ["miniature screen", "other data"])
def test_other_screens_are_kept_apart(source, reason):
    table = reproduction([source(figure_tables.replogle_scores(), not_comparable=reason)])
    assert set(table["verdict"]) == {f"not comparable: {reason}"}
    assert table[["difference", "difference_in_sd"]].isna().all(None) and (table["spread"] == "").all()


# ---- Norman --------------------------------------------------------------------------------------------------------


def norman_scores(fractions=(0.0, 1.0), seeds=(0, 1), *, split="test") -> pd.DataFrame:
    """Two models, each with a mask prior that is better on validation data, by known values."""
    rows = []
    for i, model in enumerate(("sams_vae_corr", "cond_vae")):
        for fraction in fractions:
            for seed in seeds:
                for prior, worse in ((0.01, 0.0), (0.1, 5.0)):
                    run = f"{model}-{prior}-{fraction}-{seed}"
                    base = -1780.0 + 10 * fraction + seed - 2 * i - worse
                    head = {"run": run, "model": model, "method": ROWS[model].method, "encoding": "sum"}
                    head |= {"inference": ROWS[model].inference, "mask_prior": prior, "fraction": fraction}
                    head |= {"split_seed": seed, "dataset": "norman", "split_name": f"s{seed}{fraction}"}
                    head |= {"protocol": "published"}
                    values = [("iwelbo", "val", base), ("iwelbo", "test", base + 3 * i)]
                    values += [("ate_pearson", split, 0.7 + 0.1 * seed), ("ate_pearson_top20", split, 0.9)]
                    rows += [head | {"metric": m, "split": s, "value": v} for m, s, v in values]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("file", ["norman_ood.csv", "norman_data_efficiency.csv"])
def test_every_number_of_a_norman_table_has_a_row(source, file):
    table = reproduction([source(norman_scores(), file)])
    assert len(table) == 45 * 6 and not table.duplicated(list(NUMBERS[:5])).any()
    run = table["verdict"] != "not run"
    assert run.sum() == 2 * 2 * 6 and set(table.loc[run, "model"]) == {"sams_vae_corr", "cond_vae"}
    assert (table.loc[run, "n"] == 2).all() and set(table.loc[run, "fraction"]) == {0, 1}


def test_the_relative_iwelbo_is_that_of_each_split_seed(source):
    table = reproduction([source(norman_scores(), "norman_ood.csv")])
    row = at(table, "cond_vae", "iwelbo_relative", fraction=1, encoding="sum", split="test")
    assert (row["mean"], row["sd"]) == (10 - 2 + 3, 0)  # equal for both seeds, though the IWELBO is not
    assert at(table, "cond_vae", "iwelbo", fraction=1, encoding="sum", split="val")["mean"] == -1780 + 10 - 2 + 0.5
    effect = at(table, "cond_vae", "ate_pearson", fraction=1, encoding="sum")
    assert (effect["split"], effect["mean"]) == ("test", pytest.approx(0.75))
    reference = at(table, "sams_vae_corr", "iwelbo_relative", fraction=0, encoding="sum", split="test")
    assert (reference["mean"], reference["verdict"]) == (0, "the reference, 0 for both")


def test_effects_of_all_conditions_stand_for_those_with_test_cells_if_all_have_some(source):
    of_all = reproduction([source(norman_scores(split="all"), "norman_ood.csv")])
    pd.testing.assert_frame_equal(of_all, reproduction([source(norman_scores(), "norman_ood.csv")]))


def test_a_split_seed_whose_reference_is_missing_has_no_relative_iwelbo(source):
    """A preview compares what has finished."""
    scores = norman_scores()
    lost = (scores["model"] == "sams_vae_corr") & (scores["fraction"] == 0) & (scores["split_seed"] == 1)
    table = reproduction([source(scores[~lost], "norman_ood.csv")])
    relative = at(table, "cond_vae", "iwelbo_relative", fraction=1, encoding="sum", split="test")
    assert (relative["n"], relative["mean"]) == (1, 11)
    assert at(table, "cond_vae", "iwelbo", fraction=1, encoding="sum", split="test")["n"] == 2
    none = reproduction([source(scores[scores["model"] == "cond_vae"], "norman_ood.csv")])
    assert set(none.loc[none["metric"] == "iwelbo_relative", "verdict"]) == {"not run"}


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(Exception, match=r"norman_odd\.csv: not a table of published numbers.*'norman_ood\.csv'"):
        numbers(tmp_path / "norman_odd.csv")


# ---- the plan ------------------------------------------------------------------------------------------------------


def planned(config: dict) -> FigurePlan:
    return FigurePlan(Plan(config, results="results", benchmarks="b"), resources="resources")


def reasons(config: dict) -> list[tuple[str, str, str]]:
    return [(s["task"], s["experiment"], s["not_comparable"]) for s in planned(config).reproductions()]


def test_the_papers_are_compared_and_miniatures_are_not(configuration):
    tasks = ("replogle", "norman_ood", "norman_efficiency")
    assert reasons(configuration("config.yaml")) == [(task, task, "") for task in tasks]
    assert reasons(configuration("config.yaml", "demo.yaml")) == [(task, task, "miniature screen") for task in tasks]
    plan = planned(configuration("config.yaml"))
    assert (
        plan.published() == ["results/published.tsv"] and "results/norman_ood/scores.tsv" in plan.reproduction_files()
    )
    assert plan.reproductions()[0]["compared"] == {"n_latent": 100}


def test_an_experiment_on_other_cells_counts_only_if_there_is_no_other(configuration):
    config = configuration("config.yaml")
    config["settings"]["rpe1"] = config["settings"]["replogle"] | {"screen": "replogle_rpe1"}
    config["experiments"] = ["rpe1"]
    assert reasons(config) == [
        ("replogle", "rpe1", "other data"),
        ("norman_ood", "", ""),
        ("norman_efficiency", "", ""),
    ]
    config["experiments"] = ["rpe1", "replogle"]
    assert reasons(config)[0] == ("replogle", "replogle", "")


def test_a_study_without_a_published_experiment_has_no_such_table(configuration):
    config = configuration("config.yaml")
    config["experiments"] = ["simulation_sams"]
    assert planned(config).published() == []


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_counts_verdicts_and_shows_every_number(source, tmp_path):
    sources = [source(None, "norman_ood.csv", task="norman_ood", experiment="")]
    table = reproduction([source(figure_tables.replogle_scores()), *sources])
    table.loc[:3, "verdict"] = ["within 2 sd", "within 2 sd", "differs by +3.0 sd", "differs by -9.1 sd"]
    table.loc[:3, "difference"] = [0.1, 0.1, 0.1, -0.1]
    table = table.drop(index=range(4, 21))
    reason, found = parts_of_page(table)
    assert reason == "" and [(task, sentence) for task, sentence, _ in found] == [
        ("replogle", "4 numbers. Within 2 sd: 2. Differs: 2 (ours is higher: 1, lower: 1)."),
        ("norman_ood", "270 numbers. Not run: 270."),
    ]
    names = [[column.name for column in part.columns] for *_, part in found]
    assert "Fraction" not in names[0] and names[1][1:3] == ["Encoding", "Fraction"]
    assert found[0][2].rows[0][:3] == ["Conditional VAE, amortized MF", "IWELBO, test", "−1766.10 ± 0.18"]
    assert found[0][2].rows[3][4] == "differs by −9.1 sd"
    write(table, tmp_path / "published.tsv")
    report_of(tmp_path / "page.html", [], title="t", published=[tmp_path / "published.tsv"])
    page = (tmp_path / "page.html").read_text()
    assert 'href="#_reproduction"' in page and 'href="published.tsv"' in page and "−1766.10 ± 0.18" in page


def test_the_page_of_miniatures_is_one_sentence(source, tmp_path):
    table = reproduction([source(figure_tables.replogle_scores(), not_comparable="miniature screen")])
    write(table, tmp_path / "published.tsv")
    assert read(tmp_path / "published.tsv")["mean"].notna().all()
    report_of(tmp_path / "page.html", [], title="t", published=[tmp_path / "published.tsv"])
    (section,) = re.findall(
        r'<section[^>]*aria-labelledby="_reproduction">.*?</section>', (tmp_path / "page.html").read_text(), re.S
    )
    text = " ".join(re.sub("<[^>]+>", " ", section).split())
    assert text == (
        "Reproduction No score of this study is compared with the 21 published numbers: its screens are synthetic "
        "miniatures (21 numbers). All published numbers"
    )
