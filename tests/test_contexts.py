"""A held-out context: its split, its truth and baseline, and a model that predicts its effects."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from test_workflow import snakemake

from samsvae.api import load
from samsvae.config.splits import SplitConfig
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.matched_parts import held_out_context
from samsvae.evaluation.split_scores import split_tables
from samsvae.evaluation.truth import truth_of
from samsvae.screens.custom import screen_of
from samsvae.screens.pack import arrays_of
from samsvae.screens.splits import make_split
from samsvae.tables import read

OPTIONS = {"perturbation_column": "gene", "control": "control", "separator": "+", "covariates": ["line", "batch"]}
HOW = {"kind": "held_out_context", "context_column": "line", "context": "C", "separator": "+"}


def contexts(n: int = 1500, genes: int = 60, *, seed: int = 0, depth: float = 3000.0):
    """Three cell lines with profiles of their own, in which the same perturbations shift the same genes.

    Returns the AnnData, and the log shift of every perturbation p0 to p7 (8, G). p8 occurs in line C alone, p7 only in
    line A and C.
    """
    rng = np.random.default_rng(seed)
    program = rng.normal(0, 0.9, (3, genes)) * (rng.random((3, genes)) < 0.3)
    shifts = np.vstack([(np.eye(3)[np.arange(9) % 3] * rng.uniform(0.6, 1.4, (9, 1))) @ program, np.zeros(genes)])
    names = np.array([*(f"p{i}" for i in range(9)), "control"])
    line = rng.choice(3, n, p=[0.5, 0.25, 0.25])
    code = rng.choice(10, n, p=[*[0.075] * 8, 0.05, 0.35])
    code[(code == 8) & (line != 2)] = 0
    code[(code == 7) & (line == 1)] = 1
    profile = rng.normal(0, 1, genes) + rng.normal(0, 0.8, (3, genes))
    rate = np.exp(profile[line] + shifts[code] + rng.normal(0, 0.2, (n, 2)) @ rng.normal(0, 0.5, (2, genes)))
    counts = rng.poisson(depth * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame(
        {"gene": names[code], "line": np.array(["A", "B", "C"])[line], "batch": rng.choice(["x", "y"], n)},
        index=[f"c{i}" for i in range(n)],
    )
    return ad.AnnData(counts, obs, pd.DataFrame(index=[f"g{i}" for i in range(genes)])), shifts[:8]


@pytest.fixture(scope="module")
def made():
    data, _ = contexts()
    screen = screen_of(data, **OPTIONS)
    screen.obs.attrs |= {"controls": ["control"], "covariates": ["line", "batch"]}
    return screen, make_split(screen.obs, **HOW)


def test_models_see_only_controls_of_the_held_out_context(made, caplog):
    screen, split = made
    inside = (screen.obs["line"] == "C").to_numpy()
    control = (screen.obs["condition"] == "control").to_numpy()
    part = split["split"].to_numpy()
    assert set(part[inside & ~control]) == {"test", "none"}
    assert (part[inside & ~control] == "none").sum() == (screen.obs["condition"] == "p8").sum()
    assert set(part[~inside]) == {"train", "val"}
    n = (inside & control).sum()
    assert (part[inside & control] == "test").sum() == pytest.approx(0.2 * n, abs=1)
    assert (part[inside & control] == "val").sum() == pytest.approx(0.16 * n, abs=1)
    assert (part[~inside] == "val").mean() == pytest.approx(0.2, abs=0.01)
    make_split(screen.obs, **HOW)
    assert "1 conditions (" in caplog.text and "cannot be predicted and are left out: 'p8'" in caplog.text


def test_a_context_that_cannot_be_held_out_gets_one_sentence(made):
    obs = made[0].obs
    for changes, message in (
        ({"context": "D"}, "has no 'D'"),
        ({"context_column": "gene"}, "'gene' is no covariate of the screen; list it in the option covariates"),
    ):
        with pytest.raises(DataError, match=message):
            make_split(obs, **(HOW | changes))
    line, control = obs["line"] == "C", obs["condition"] == "control"
    for cells, message in (
        (~(line & control), "no control cell in 'C'"),
        (~line | control, "no perturbed cell in 'C'"),
        (line | control, "no perturbed cell in another context than 'C'"),
    ):
        with pytest.raises(DataError, match=message):
            make_split(obs[cells], **HOW)
    for changes in ({"kind": "random", "context": "C"}, {"kind": "held_out_context", "context": "C"}):
        with pytest.raises(ConfigError, match=r"(context_column|context): required"):
            SplitConfig(**changes)


def test_effects_are_observed_in_the_held_out_context(made):
    """Against plain means: in line C for test cells, and the mean of lines A and B for the baseline."""
    screen, split = arrays_of(made[0]), made[1]["split"].to_numpy()
    covariate, inside = held_out_context(screen, split)
    assert screen.covariates.names[covariate] == "line"
    np.testing.assert_array_equal(inside, made[0].obs["line"] == "C")
    truth = truth_of(screen, split)
    y = np.log2(1 + 1e4 * screen.counts / screen.counts.sum(1, keepdims=True))
    obs = made[0].obs

    def matched(cells, controls):
        return np.mean([y[i] - y[controls & (obs["batch"] == obs["batch"].iloc[i])].mean(0) for i in cells], 0)

    train, test, control = split == "train", split == "test", (obs["condition"] == "control").to_numpy()
    in_line = {name: (obs["line"] == name).to_numpy() for name in "ABC"}
    for c, name in enumerate(screen.conditions):
        at = (obs["condition"] == name).to_numpy()
        if name in ("control", "p8"):
            assert np.isnan(truth.other_contexts[c]).all()
            continue
        found = matched(np.flatnonzero(at & test), test & control & in_line["C"])
        np.testing.assert_allclose(truth.test.delta[c], found, atol=1e-9)
        each = [
            matched(np.flatnonzero(at & train & in_line[line]), train & control & in_line[line])
            for line in ("A" if name == "p7" else "AB")
        ]
        np.testing.assert_allclose(truth.other_contexts[c], np.mean(each, 0), atol=1e-9)
        np.testing.assert_allclose(
            truth.every.delta[c], matched(np.flatnonzero(at & in_line["C"]), control & in_line["C"])
        )
    scored = {str(screen.conditions[c]) for c in truth.rows}
    assert scored == {f"p{i}" for i in range(8)} and "seen" in truth.sets
    worth, each = split_tables(screen, split, truth)
    of = worth[worth["metric"] == "pearson_centred"].set_index("model")["value"]
    assert of["other_contexts"] > 0.7 > of["no_change"]
    assert set(each.loc[each["model"] == "other_contexts", "condition"]) == scored
    # a random split holds out no context, and has no such baseline
    random = make_split(made[0].obs, kind="random")["split"].to_numpy()
    assert held_out_context(screen, random) is None and "other_contexts" not in truth_of(screen, random).baselines
    assert np.isfinite(
        effects(screen, split, reference="control")[[f"p{i}" for i in range(8)]].layers["held_out"]
    ).all()
    assert held_out_context(replace(screen, covariates=None), split) is None


@pytest.mark.slow
def test_from_yaml_to_the_report(root, tmp_path):
    data, _ = contexts(n=600, genes=30)
    data.write_h5ad(tmp_path / "lines.h5ad")
    options = {"perturbation_column": "gene", "control": "control", "covariates": ["line", "batch"]}
    grid = [{"model": ["sams_vae_corr"], "covariate_effect": ["additive", "none"], "steps": [20], "seed": [0]}]
    few = {"ate_samples": 50, "iwelbo_particles": 3, "bound_particles": 3, "bound_cells": 50, "effect_draws": 4}
    split = {"kind": "held_out_context", "context_column": "line", "context": "C"}
    config = {
        "experiments": ["lines"],
        "pathvars": {"results": "results", "logs": "logs", "benchmarks": "benchmarks"},
        "screens": {"lines": {"kind": "custom", "source": {"path": "lines.h5ad"}, "options": options}},
        "settings": {"lines": {"screen": "lines", "split": split, "evaluation": few, "grid": grid}},
    }
    (tmp_path / "lines.yaml").write_text(yaml.safe_dump(config))
    snakemake(root, tmp_path, "--", "lines_worth", "lines_effects", "report", config=tmp_path / "lines.yaml")
    runs = sorted((tmp_path / "results/lines/runs").glob("*/model.pt"))
    levels = sorted((load(path).covariates for path in runs), key=len)
    assert levels == [{}, {"line": ["A", "B", "C"], "batch": ["x", "y"]}]
    worth = read(tmp_path / "results/lines/worth.tsv")
    assert {"other_contexts", "sams_vae_corr"} <= set(worth["model"])
    log = (tmp_path / "logs/filter/lines.log").read_text()  # genes: auto makes the split there
    assert "cannot be predicted and are left out: 'p8'" in log
    assert (tmp_path / "results/report.html").is_file()
