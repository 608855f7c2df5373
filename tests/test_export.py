"""The export of finished runs: long tables and mean profiles, against the matrices that they come from."""

from __future__ import annotations

import json
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from simulated_cells import simulated

from samsvae.cli import main
from samsvae.config.grid import Run, run_settings
from samsvae.errors import ConfigError, DataError
from samsvae.matrices import write_h5ad
from samsvae.screens.custom import filter_screen
from samsvae.study import export
from samsvae.study.plan import Plan

CONFIG = {
    "experiments": ["mine"],
    "screens": {"cells": {"kind": "custom", "source": {"path": "cells.h5ad"}}},
    "settings": {"mine": {"screen": "cells", "grid": [{"model": ["sams_vae_corr", "cond_vae"]}]}},
}
GENES = ["g0", "g1", "g2"]
DATA = np.array([[1.0, 0.0, -1.0], [0.5, 0.0, 0.0]])
PREDICTED = DATA * 0.5
MEAN = np.array([2.0, 3.0, 4.0])


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    """A study with two finished runs, one with masks and one without."""
    monkeypatch.chdir(tmp_path)
    cells = simulated(200)[:, GENES].copy()
    cells.var["gene_name"] = ["ATF2", "STAT1", "IRF1"]
    cells.write_h5ad("cells.h5ad")
    plan = Plan(CONFIG, results="results", benchmarks="results/benchmarks")
    for run in plan.runs["mine"].values():
        finish(plan, run)
    return plan


def finish(plan: Plan, run: Run) -> None:
    for path in map(plan.results.parent.__truediv__, plan.files_of(run).values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settings = json.dumps({**run_settings(run), "seconds": 1.0})
    (plan.results.parent / plan.run_file(run, "run.json")).write_text(settings)
    screen = plan.data_file(run.dataset, "screen.h5ad")
    filter_screen("cells.h5ad", screen, perturbation_column="guide", control="control", separator="+", genes="all")
    conditions, var = ["A", "A+B"], pd.DataFrame(index=GENES)
    obs = pd.DataFrame({"n_train": [30, 0], "n_test": [10, 9], "n_perturbations": [1, 2]}, index=conditions)
    uns = {"reference": "control", "transform": "log2"}
    write_h5ad(ad.AnnData(DATA[::-1], obs[::-1], var, uns=uns), plan.split_file(run, "effects.h5ad"))
    model = ad.AnnData(
        PREDICTED, obs[["n_perturbations"]], var.assign(reference_mean=MEAN), uns={"reference": "control"}
    )
    write_h5ad(model, plan.run_file(run, "effects.h5ad"))
    names, obsm = ["A", "B", "C"], {}
    if run.row == "sams_vae_corr":
        obsm = {"mask_probability": np.arange(6).reshape(3, 2) / 10, "embedding": np.arange(6).reshape(3, 2) * 1.0}
    write_h5ad(ad.AnnData(obs=pd.DataFrame(index=names), obsm=obsm), plan.run_file(run, "perturbations.h5ad"))


def screen_of(plan: Plan, run: Run) -> ad.AnnData:
    return ad.read_h5ad(plan.data_file(run.dataset, "screen.h5ad"))


def test_effects_in_long_form(plan):
    run = next(iter(plan.runs["mine"].values()))
    table = export.effect_rows(plan, run, screen_of(plan, run))
    assert len(table) == 6 and set(table["run"]) == {run.id} and set(table["model"]) == {"sams_vae_corr"}
    wide = table.pivot(index="condition", columns="gene", values="effect").loc[["A", "A+B"], GENES]
    np.testing.assert_allclose(wide, PREDICTED)
    wide = table.pivot(index="condition", columns="gene", values="observed").loc[["A", "A+B"], GENES]
    np.testing.assert_allclose(wide, DATA)  # by name: the file has another order
    assert table.set_index(["condition", "gene"]).loc[("A+B", "g1"), ["symbol", "n_train", "n_test"]].tolist() == [
        "STAT1",
        0,
        9,
    ]


def test_masks_and_embeddings_in_long_form(plan):
    masked, without = plan.runs["mine"].values()
    table = export.perturbation_rows(plan, masked, screen_of(plan, masked))
    assert table["perturbation"].tolist() == ["A", "A", "B", "B", "C", "C"]
    assert table["latent"].tolist() == ["z0", "z1"] * 3 and table["target"].tolist() == table["perturbation"].tolist()
    np.testing.assert_allclose(table["embedding"], range(6))
    np.testing.assert_allclose(table["mask_probability"], np.arange(6) / 10, rtol=1e-6)
    assert export.perturbation_rows(plan, without, screen_of(plan, without)) is None


def test_profiles_are_means_in_the_unit_of_scanpy(plan):
    run = next(iter(plan.runs["mine"].values()))
    found = export.profiles(plan, run, screen_of(plan, run))
    assert found.obs_names.tolist() == ["A", "A+B", "control"] and found.obs["is_reference"].tolist() == [
        False,
        False,
        True,
    ]
    np.testing.assert_allclose(2 ** (found.X / np.log(2)), 2 ** np.vstack([PREDICTED + MEAN, MEAN]), rtol=1e-5)
    assert (
        found.var["symbol"].tolist() == ["ATF2", "STAT1", "IRF1"] and found.uns["unit"] == "ln(1 + counts per 10,000)"
    )


def test_a_file_of_an_older_version_has_no_profile(plan):
    run = next(iter(plan.runs["mine"].values()))
    path = plan.run_file(run, "effects.h5ad")
    old = ad.read_h5ad(path)
    del old.var["reference_mean"]
    write_h5ad(old, path)
    with pytest.raises(DataError, match=r"has no means of the reference, .* Score the run again"):
        export.profiles(plan, run, screen_of(plan, run))


def test_without_pyarrow_one_sentence(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs pyarrow, which is not installed: pip install pyarrow"):
        export.write_export(CONFIG)
    assert not (plan.results / "mine" / "export").exists()


def test_the_files(plan):
    """Needs pyarrow, an extra; the tables that are written are tested above without it."""
    pytest.importorskip("pyarrow")
    (folder,) = export.write_export(CONFIG, ["mine"])
    effects = pd.read_parquet(folder / "effects.parquet")
    assert len(effects) == 12 and effects["run"].nunique() == 2 and effects["effect"].dtype == np.float32
    run, other = plan.runs["mine"].values()
    expected = pd.concat([export.effect_rows(plan, each, screen_of(plan, each)) for each in (run, other)])
    pd.testing.assert_frame_equal(effects.astype(expected.dtypes), expected.reset_index(drop=True))
    masks = pd.read_parquet(folder / "perturbations.parquet")
    assert set(masks["run"]) == {run.id} and len(masks) == 6
    assert {path.stem for path in (folder / "means").iterdir() if path.suffix == ".h5ad"} == {run.id, other.id}
    first = (folder / "effects.parquet").read_bytes()
    export.write_export(CONFIG)
    assert (folder / "effects.parquet").read_bytes() == first
    with pytest.raises(ConfigError, match="'mein' is not listed"):
        export.write_export(CONFIG, ["mein"])
    (plan.results / "mine" / "runs" / run.id / "run.json").unlink()
    (plan.results / "mine" / "runs" / other.id / "run.json").unlink()
    with pytest.raises(DataError, match="no run has finished"):
        export.write_export(CONFIG)


def test_the_command_names_what_it_needs(capsys):
    assert main(["export", "--snakefile", "nowhere/Snakefile"]) == 1
    assert "no such file" in capsys.readouterr().err
