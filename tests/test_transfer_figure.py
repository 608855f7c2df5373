"""The numbers of the figure of transfers: which scores it reads, how it pairs them, and what its note says."""

from __future__ import annotations

import anndata as ad
import figure_tables
import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.transfer_verdicts import ONLY_RELEASED
from samsvae.figures import transfer
from samsvae.figures.transfer_tables import OWN_PROFILE, few_of, paired
from samsvae.tables import write

LOPEZ = ("vae", "beta_vae", "ivae", "svae", "svae_plus_lopez")


def numbers(models=LOPEZ, *, compared=None, separator="", **options):
    table, scores = figure_tables.transfers(models, **{"sd": 0.3, **options})
    return transfer.arguments(scores, table, separator=separator, compared=compared or {})


def said(fig) -> str:
    return " ".join(fig.get_suptitle().split())


@pytest.fixture(scope="module")
def simulated():
    return numbers((*LOPEZ, "sams_vae_corr"), refit=True, perturbations=20, compared={"new_cells": 0})


def test_the_last_stage_of_every_method_is_read(simulated):
    """k = 0 is the second training (9 nats above the first in the table), or the first if there is none."""
    means = simulated["scores"].set_index(["model", "variant", "adapt", "cells"])["mean"]
    for model, at_0, at_10 in (("ivae", -199.1, -187.5), ("svae_plus_lopez", -200.9, -190.5)):
        assert means[model, "ours", "none", "0"] == pytest.approx(at_0 + 220.4, abs=0.6)
        assert means[model, "ours", "closed_form", "10"] == pytest.approx(at_10 + 220.4, abs=0.6)
    assert means["sams_vae_corr", "ours", "gradient", "all"] == pytest.approx(220.4 - 189.8, abs=0.6)
    assert means["ivae", "as_released", "adam", "all"] == pytest.approx(220.4 - 197.3, abs=0.6)
    assert means["ivae", "ours", "refit", "all"] == pytest.approx(220.4 - 176.8, abs=0.6)  # also if compared leaves it
    assert means[OWN_PROFILE, "ours", "profile", "10"] == pytest.approx(220.4 - 194.5)


def test_perturbations_left_out_are_counted(simulated):
    counts = simulated["scores"].set_index(["model", "cells"])["perturbations"]
    assert set(counts.xs("100", level="cells")) == {10} and set(counts.xs("all", level="cells")) == {20}
    ticks = [t.get_text() for t in transfer.draw(**simulated).axes[2].get_xticklabels()]
    assert ticks == ["0", "10", "30", "100\n(10 of 20)", "all"]


def test_the_reference_values_hold_only_as_released(simulated):
    """SVAE+ is 3.0 nats below iVAE in ours and 5.0 above it as released (means of two seeds)."""
    of = simulated["comparisons"].set_index(["claim", "variant", "model", "against"])["difference"]
    assert of["transfer", "ours", "svae_plus_lopez", "ivae"] == pytest.approx(-3.0, abs=0.8)
    assert of["transfer", "as_released", "svae_plus_lopez", "ivae"] == pytest.approx(5.0, abs=0.8)
    verdicts = simulated["verdicts"].set_index(["claim", "model"])
    (claim, _) = verdicts.index.get_level_values("claim").unique()
    assert verdicts.loc[(claim, "svae_plus_lopez"), "verdict"] == ONLY_RELEASED
    assert verdicts.loc[(claim, "svae_plus_lopez"), "seeds"] == 5
    note = said(transfer.draw(**simulated))
    assert "SVAE+ (Lopez): holds only as released (5 seeds; worse than iVAE \N{MINUS SIGN}" in note
    assert "is a model better than the cells themselves? Yes: " in note


def test_one_seed_decides_nothing():
    shown = numbers(("ivae", "svae_plus_lopez", "cond_vae"), seeds=1, cells=("0", "10", "all"))
    assert set(shown["verdicts"]["verdict"]) == {"undecided: 1 seed, 5 are needed"}
    note = said(transfer.draw(**shown))
    assert "SVAE+ (Lopez): undecided: 1 seed, 5 are needed (minus iVAE" in note
    assert "themselves? Undecided: 1 seed, 5 are needed: Conditional VAE" in note
    for word in ("Yes", "worse than", "better than", "holds", "does not hold"):
        assert word not in note.replace("is a model better than", "")


def test_data_sets_are_the_unit_of_seeds_where_there_are_enough():
    """Five data sets of two trainings are five seeds; four of two are eight."""
    for sets, seeds in ((5, 5), (4, 8)):
        parts = [figure_tables.transfers(("ivae", "svae_plus_lopez"), seeds=2, seed=i) for i in range(sets)]
        tables = []
        for each in zip(*parts, strict=True):
            of = [t.assign(dataset=f"d{i}", data_seed=i, run=t["run"].where(t["run"] == t["model"], t["run"] + f"-{i}"))
                  for i, t in enumerate(each)]  # fmt: skip
            tables.append(pd.concat(of, ignore_index=True))
        shown = transfer.arguments(tables[1], tables[0].drop(columns="data_seed"), separator="", compared={})
        row = shown["comparisons"].query("claim == 'transfer' and variant == 'ours'").iloc[0]
        assert (row["seeds"], row["perturbations"]) == (seeds, 8 * sets)


def test_pathways_are_held_out_one_at_a_time_and_all_are_compared():
    shown = numbers(held_out=figure_tables.PATHWAYS[:3], effects=True)
    assert set(shown["scores"]["held_out"]) == {"(all)", *figure_tables.PATHWAYS[:3]}
    row = shown["comparisons"].query("claim == 'transfer' and against == 'ivae' and variant == 'ours'").iloc[0]
    assert (row["seeds"], row["perturbations"]) == (5, 24)
    ax = next(ax for ax in transfer.draw(**shown).axes if ax.get_label() == "held out")
    first = [t.get_text() for t in ax.texts[:6]]  # VAE, beta-VAE, iVAE, sVAE, SVAE+, own profile
    assert sorted(first) == list("123456") and first[2] == "1"


def test_settings_are_chosen_on_validation_data():
    """Of two settings the one that is better on validation data is shown, though it is worse on new cells."""
    good, scores = figure_tables.transfers(("ivae",), sd=0)
    bad, other = (t.assign(run=t["run"].where(t["run"] == t["model"], t["run"] + "-b")) for t in (good, scores))
    bad.loc[bad["metric"] == "gain", "value"] -= 50
    other["value"] += 1
    both = pd.concat([scores.assign(beta_b=2), other.assign(beta_b=10)], ignore_index=True)
    table = pd.concat([good, bad[bad["model"] == "ivae"]], ignore_index=True)
    shown = transfer.arguments(both, table, separator="", compared={})
    assert shown["scores"].query("model == 'ivae'")["mean"].max() < 0


def test_the_number_of_few_cells():
    assert few_of(["0", "10", "30", "all"]) == "10" and few_of(["0", "100", "30"]) == "30"
    assert few_of(["0", "all"]) == ""


def test_pairs_are_trainings_of_one_seed_on_one_perturbation():
    columns = ["model", "seed", "perturbation", "value"]
    rows = [("a", "s0", "P", 3.0), ("a", "s1", "P", 5.0), ("b", "s1", "P", 1.0), ("b", "s1", "Q", 9.0),
            (OWN_PROFILE, "", "P", 2.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns).assign(
        **dict.fromkeys(["dataset", "split_name", "held_out"], "d"),
        metric="gain", variant="ours", cells="10", adapt="closed_form",
    )  # fmt: skip
    table["training"] = table["seed"]
    both = paired(table, "a", "b", cells="10")
    assert both[["seed", "value"]].to_numpy().tolist() == [["s1", 4.0]]
    assert paired(table, "a", OWN_PROFILE, cells="10")["value"].tolist() == [1.0, 3.0]


def test_combinations_have_a_colour_of_their_own():
    names = [f"G{i}" if i < 3 else f"G{i}+H" for i in range(8)]
    shown = numbers(effects=True, names=names, separator="+")
    ax = next(ax for ax in transfer.draw(**shown).axes if ax.get_label() == "effects")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["3 single", "5 combinations"]
    colours = {line.get_color(): len(line.get_xdata()) for line in ax.lines if line.get_marker() != "None"}
    assert sorted(colours.values()) == [3, 5]


def test_without_all_cells_the_panels_of_few_cells_remain():
    shown = numbers(cells=("0", "10"), held_out=figure_tables.PATHWAYS[:2], effects=True)
    table = shown["scores"][shown["scores"]["cells"] != "all"]
    rest = {name: shown[name][shown[name]["cells"] != "all"] for name in ("perturbations", "comparisons")}
    fig = transfer.draw(**{**shown, **rest, "scores": table})
    assert [ax.get_label() for ax in fig.axes] == ["scheme", "few cells", "effects"]


def test_methods_without_a_release_have_neither_claim_nor_variants():
    shown = numbers(("sams_vae_corr", "cond_vae"), effects=True)
    fig = transfer.draw(**shown)
    assert [ax.get_label() for ax in fig.axes] == ["scheme", "few cells", "effects"]
    assert "Claim" not in said(fig) and shown["stages"] == 2 and shown["verdicts"].empty


def test_a_screen_of_real_values_has_effects_alone():
    table, scores = figure_tables.transfers(LOPEZ, effects=True)
    table = table[table["metric"] == "effect_pearson"]
    fig = transfer.draw(**transfer.arguments(scores, table, separator="", compared={}))
    assert [ax.get_label() for ax in fig.axes] == ["scheme", "effects"]


def test_the_tables_are_read_from_files(tmp_path):
    table, scores = figure_tables.transfers(("ivae", "svae_plus_lopez"), seeds=2, cells=("0", "10", "all"))
    write(table, tmp_path / "transfer.tsv")
    write(scores, tmp_path / "scores.tsv")
    ad.AnnData(np.zeros((1, 1)), uns={"separator": ""}).write_h5ad(tmp_path / "screen.h5ad")
    names = {"scores": "scores.tsv", "transfer": "transfer.tsv", "screen": "screen.h5ad"}
    inputs = {name: str(tmp_path / file) for name, file in names.items()}
    shown = transfer.tables(**inputs, compared={})
    assert shown["verdicts"]["verdict"].tolist()[0].startswith("undecided: 2 seeds")
    assert not shown["perturbations"]["combination"].any()
