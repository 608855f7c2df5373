"""Splits of kind transfer: new interventions, their test cells and the pool of cells to adapt to."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.config.splits import SplitConfig
from samsvae.data.arrays import read_split
from samsvae.errors import ConfigError, DataError
from samsvae.screens.screen import assemble, provenance, write_screen
from samsvae.screens.splits import write_split
from samsvae.screens.transfer_split import new_conditions, split_screen, strongest_conditions

SIZES = {"ctrl": 120, "A": 60, "B": 45, "C": 30, "D": 24, "A+B": 40, "E": 12}


@pytest.fixture(scope="module")
def screen():
    """Seven conditions, two of them stronger than the rest (D, then B), and an annotation."""
    rng = np.random.default_rng(0)
    labels = np.repeat(list(SIZES), list(SIZES.values()))
    rates = np.full((len(labels), 80), 6.0)
    rates[labels == "D", :20] *= 6
    rates[labels == "B", :10] *= 4
    order = rng.permutation(len(labels))
    counts, labels = rng.poisson(rates)[order], labels[order]
    facts = provenance("raw.h5ad", filter="custom", parameters={}, source_shape=counts.shape, kept_shape=counts.shape)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"g{i}" for i in range(80)])
    pathways = {"A": "ribosome", "C": "ribosome", "D": "exosome"}
    names = {"condition": labels, "control": "ctrl", "separator": "+"}
    return assemble(sp.csr_matrix(counts), obs, var, provenance=facts, pathway_of=pathways, **names)


@pytest.fixture(scope="module")
def path(screen, tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    write_screen(screen, path)
    return path


def split_of(path, **settings):
    return split_screen(path, vars(SplitConfig(kind="transfer", test_fraction=0.0, val_fraction=0.1, **settings)))


def test_half_of_the_cells_of_a_new_condition_are_test_cells_and_the_others_are_ranked(path):
    table = split_of(path, conditions=["B", "C"])
    for name in ("B", "C"):
        rows = table[table["condition"] == name]
        assert (rows["split"] == "none").all()
        sizes = rows["transfer"].value_counts()
        assert sizes["new_test"] == SIZES[name] // 2 and sizes["new_adapt"] == SIZES[name] - SIZES[name] // 2
        ranks = rows.loc[rows["transfer"] == "new_adapt", "rank"]
        assert sorted(ranks) == list(range(1, len(ranks) + 1))
        assert not np.array_equal(ranks, np.sort(ranks))
    old = table[~table["condition"].isin(["B", "C"])]
    assert (old["transfer"] == "").all() and (old["rank"] == 0).all()
    assert old["split"].value_counts().to_dict() == {"train": 230, "val": 26}
    assert set(table.loc[table["condition"] == "A+B", "split"]) <= {"train", "val"}


def test_the_cells_of_a_condition_depend_on_the_seed_and_its_name_alone(path):
    pd.testing.assert_frame_equal(split_of(path, conditions=["B", "C"]), split_of(path, conditions=["C", "B"]))
    alone, other = (split_of(path, conditions=["C"], split_seed=seed) for seed in (0, 1))
    both = split_of(path, conditions=["B", "C"])
    mine = alone["condition"] == "C"
    assert alone.loc[mine, "rank"].equals(both.loc[mine, "rank"])
    assert not alone.loc[mine, "rank"].equals(other.loc[mine, "rank"])


@pytest.mark.parametrize(("asked", "known"), [(10, 10), ("all", 23), (1, 1)])
def test_the_upper_bound_trains_on_the_first_cells_of_each_pool(path, asked, known):
    table, without = split_of(path, conditions=["B"], new_cells=asked), split_of(path, conditions=["B"])
    used = table[(table["condition"] == "B") & (table["split"] != "none")]
    assert sorted(used["rank"]) == list(range(1, known + 1)) and (used["transfer"] == "new_adapt").all()
    assert (used["split"] == "val").sum() == max(1, known // 10)
    pd.testing.assert_frame_equal(table[["transfer", "rank"]], without[["transfer", "rank"]])


@pytest.mark.parametrize(
    ("way", "found"),
    [
        ({"last": 2}, ["D", "E"]),
        ({"pathway": "ribosome"}, ["A", "A+B", "C"]),
        ({"strongest": 2}, ["D", "B"]),
        ({"conditions": ["B+ctrl+A", "C"]}, ["A+B", "C"]),
    ],
)
def test_four_ways_to_choose(screen, way, found):
    screen.obs.attrs["controls"] = ["ctrl"]
    assert new_conditions(screen, **way) == found


def test_the_strength_is_the_linear_mmd_of_principal_components(screen):
    y = np.log1p(1e4 * screen.X.toarray() / screen.X.toarray().sum(1, keepdims=True))
    scores = (y - y.mean(0)) @ np.linalg.svd(y - y.mean(0), full_matrices=False)[2][:50].T
    labels = screen.obs["condition"].to_numpy(str)
    control = scores[labels == "ctrl"]

    def mmd(name):
        cells = scores[labels == name]
        return (cells @ cells.T).mean() + (control @ control.T).mean() - 2 * (cells @ control.T).mean()

    names = sorted(set(SIZES) - {"ctrl"})
    assert strongest_conditions(screen, 5) == sorted(names, key=mmd, reverse=True)[:5]


def test_a_condition_with_too_few_test_cells_is_left_out_with_a_warning(path, caplog):
    table = split_of(path, conditions=["B", "E"])
    assert "1 of 2 new interventions have fewer than 11 test cells and are left out: 'E'" in caplog.text
    rows = table[table["condition"] == "E"]
    assert (rows["split"] == "none").all() and (rows["transfer"] == "").all()
    with pytest.raises(DataError, match="has no new intervention with 11 test cells"):
        split_of(path, conditions=["E"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "needs exactly one of conditions, last, pathway, strongest"),
        ({"last": 2, "pathway": "x"}, "exactly one of .*; given: last and pathway"),
        ({"kind": "random", "last": 2}, "last: not allowed for a split of kind 'random'"),
        ({"kind": "random", "new_cells": 3}, "new_cells: not allowed for a split of kind 'random'"),
        ({"last": 2, "new_cells": -1}, "new_cells: -1 is not allowed"),
        ({"last": 0}, "last: 0 is not allowed"),
        ({"kind": "held_out", "conditions": ("A",), "last": 2}, "last: not allowed for a split of kind 'held_out'"),
    ],
)
def test_settings_that_do_not_go_together(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        SplitConfig(**{"kind": "transfer", **settings})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"last": 5}, "last: 5 is not allowed; the screen has 5 perturbations"),
        ({"pathway": "ribosom"}, "the annotation has 'exosome', 'ribosome'"),
        ({"strongest": 6}, "strongest: 6 is not allowed; the screen has 6 conditions"),
        ({"conditions": ["Z"]}, "no cell has the condition 'Z'"),
        ({"conditions": ["ctrl"]}, "no cell has the condition 'ctrl'"),
    ],
)
def test_what_the_screen_lacks(path, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        split_of(path, **settings)


def test_the_split_of_a_simulation_is_kept_and_the_table_can_be_read(screen, tmp_path):
    given = screen.copy()
    given.obs["split"] = np.where(given.obs["condition"] == "B", "none", "train")
    given.obs.iloc[:40, given.obs.columns.get_loc("split")] = "val"
    write_screen(given, tmp_path / "screen.h5ad")
    table = split_of(tmp_path / "screen.h5ad", conditions=["B"])
    old = given.obs["condition"].to_numpy(str) != "B"
    assert (table["split"][old] == given.obs["split"].to_numpy(str)[old]).all()
    write_split(table, tmp_path / "cells.tsv")
    assert read_split(tmp_path / "cells.tsv", given.obs_names).tolist() == table["split"].tolist()
