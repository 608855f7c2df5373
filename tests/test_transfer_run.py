"""The transfer of runs, from files to files: stages, pools, baselines, caches, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small_files import settings
from small_jobs import PLACE, data
from small_model import screen

from samsvae.config.transfer import TransferConfig
from samsvae.data.arrays import Screen
from samsvae.data.cells import cells_of, encode
from samsvae.errors import CheckpointError, DataError, Interrupted
from samsvae.evaluation.metrics.likelihood import fit_intercept_nb
from samsvae.evaluation.pools import Pools, read_pools
from samsvae.evaluation.transfer_baselines import baseline_table, write_baselines
from samsvae.evaluation.transfer_tables import COLUMNS, collect_transfer, read_transfer
from samsvae.matrices import write_h5ad
from samsvae.screens.pack import arrays_of
from samsvae.screens.simulate import sparse_shift
from samsvae.screens.splits import write_split
from samsvae.screens.transfer_split import add_new
from samsvae.study.jobs import TRANSFERRED, Data, run_one
from samsvae.study.transfer_run import transfer_run
from samsvae.training import loop
from samsvae.training.checkpoint import load

BOTH = TransferConfig(
    variants=("ours", "as_released"), adapt=("closed_form", "iwelbo", "sparse"), cells=(0, 10, 16, "all"),
    particles=4, adapt_steps=2,
)  # fmt: skip
SPLIT = {"dataset": "sets", "split_name": "transfer-x", "held_out": "b and d", "new_cells": 0}

#: Short trainings; with batch norm, the last batch of an epoch is left out.
SHORT = {"epochs": 2, "steps": 6}


def made(pairs: bool = False) -> Screen:
    """Cells of four perturbations and a control; b has more than 32 cells and d has 28."""
    found = screen(240, pairs=pairs)
    kept = np.concatenate([np.flatnonzero(found.condition == c)[: 28 if c == 3 else 48] for c in range(6)])
    at = np.sort(kept)
    rows = {name: getattr(found, name)[at] for name in ("counts", "library", "cells", "condition")}
    return replace(found, **rows)


def transferring(
    folder: Path,
    how: TransferConfig = BOTH,
    new: tuple[str, ...] = ("b", "d"),
    simulation: ad.AnnData | None = None,
    *,
    new_cells: int | str = 0,
    pairs: bool = False,
) -> Data:
    """The files of a screen some of whose conditions are new, and how its runs are transferred."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = made(pairs) if simulation is None else arrays_of(simulation)
    label = np.resize(["train", "train", "train", "val"], len(cells.cells))
    if simulation is not None:
        label = simulation.obs["split"].to_numpy(str)
    found = data(folder, cells, label, reference="control" if simulation is None else "")
    table = pd.DataFrame({"cell": cells.cells, "condition": cells.conditions[cells.condition], "split": label})
    write_split(add_new(table, new, new_cells=new_cells), found.split)
    split, baselines = SPLIT | {"new_cells": new_cells}, folder / "baselines.tsv"
    names = {name: split[name] for name in ("dataset", "split_name", "held_out")}
    write_baselines(found.arrays, found.split, baselines, settings=vars(how), names=names)
    codes = {**found.codes, "refit": "r", "transfer": "x"}
    return replace(found, codes=codes, transfer={"settings": vars(how), "split": split}, baselines=[str(baselines)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of three models, transferred."""
    where = tmp_path_factory.mktemp("transfer")
    found = transferring(where)
    for name in ("ivae", "vae", "sams_vae_corr"):
        run_one(settings(name, **SHORT), found, where / name, PLACE)
    return where


def table_of(folder: Path, name: str, metric: str = "inll", perturbation: str = "(mean)") -> pd.Series:
    """One value per variant, stage, way and number of cells."""
    table = read_transfer(folder / name / "transfer.tsv" if name else folder / "baselines.tsv")
    at = (table["metric"] == metric) & (table["perturbation"] == perturbation)
    return table[at].set_index(["variant", "stage", "adapt", "cells"])["value"]


def parts(folder: Path) -> tuple[Screen, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The screen, and the positions of test cells and of pools (in their order) by condition, from the table alone."""
    cells, table = made(), pd.read_csv(folder / "cells.tsv", sep="\t", keep_default_na=False)
    test = {
        name: np.flatnonzero(g)
        for name in "bd"
        if (g := (table.condition == name) & (table.transfer == "new_test")).any()
    }
    pool = {}
    for name in "bd":
        own = table[(table.condition == name) & (table.transfer == "new_adapt")].sort_values("rank")
        pool[name] = own.index.to_numpy()
    return cells, test, pool


# ---- stages --------------------------------------------------------------------------------------------------------


def test_every_stage_variant_way_and_number_of_cells_has_a_score(folder):
    stages = [("ours", 1, "none", "0"), ("ours", 2, "none", "0")]
    stages += [("ours", 3, way, k) for k in ("10", "16", "all") for way in BOTH.adapt]
    stages += [("as_released", 1, "none", "0"), ("as_released", 2, "none", "0")]
    stages += [("as_released", 3, "adam", "all"), ("statistics_kept", 3, "adam", "all")]
    found = table_of(folder, "ivae")
    assert list(found.index) == stages and np.isfinite(found).all()
    assert list(table_of(folder, "sams_vae_corr").index) == [
        ("ours", 1, "none", "0"), ("ours", 3, "none", "0"), *(("ours", 3, "gradient", k) for k in ("10", "16", "all")),
    ]  # fmt: skip
    table = read_transfer(folder / "ivae" / "transfer.tsv")
    assert list(table.columns) == list(COLUMNS) and set(table["seed"]) == {0}
    assert set(table["held_out"]) == {"b and d"} and set(table["run"]) == {"ivae-seed0"}
    assert set(table[table["metric"].isin(["inll", "gain"])]["particles"]) == {4}
    assert table[~table["metric"].isin(["inll", "gain"])]["particles"].isna().all()


def test_a_pool_that_is_too_small_is_left_out_at_that_number_and_counted(folder):
    for name in ("ivae", "sams_vae_corr"):
        way = "closed_form" if name == "ivae" else "gradient"
        left, scored = (table_of(folder, name, metric, "(all)") for metric in ("n_left_out", "n_scored"))
        assert [left["ours", 3, way, k] for k in ("10", "16", "all")] == [0, 1, 0]
        assert [scored["ours", 3, way, k] for k in ("10", "16", "all")] == [2, 1, 2]
        table = read_transfer(folder / name / "transfer.tsv")
        at = (table["cells"] == "16") & (table["adapt"] == way) & (table["metric"] == "inll")
        assert list(table[at]["perturbation"]) == ["b", "(mean)", "(sd)"] and table[at]["value"].isna().tolist()[-1]
    assert table_of(folder, "", "n_left_out", "(all)")["ours", 0, "profile", "16"] == 1


def test_a_model_without_effects_is_scored_after_the_second_stage(folder):
    found = table_of(folder, "vae", perturbation="b")
    assert {found["ours", 3, "closed_form", k] for k in ("10", "16", "all")} == {found["ours", 2, "none", "0"]}
    assert found["ours", 1, "none", "0"] != found["ours", 2, "none", "0"]
    assert ad.read_h5ad(folder / "vae" / "transfer.h5ad").shape == (0, 0)


def test_the_adapted_rows_are_the_means_of_the_encoder_over_the_first_cells(folder):
    cells, _, pool = parts(folder)
    model = load(folder / "ivae" / ".refit_ours" / "model.pt").model
    found = ad.read_h5ad(folder / "ivae" / "transfer.h5ad")
    assert found.obs["cells"].dtype == object or str(found.obs["cells"].dtype) == "category"
    for k, name in (("10", "b"), ("10", "d"), ("16", "b"), ("all", "d")):
        first = pool[name] if k == "all" else pool[name][: int(k)]
        mean = model.posterior_mean(cells_of(cells, first, encode(cells, "sum"))).double().numpy().mean(0)
        np.testing.assert_allclose(found[f"ours/3/closed_form/{k}/{name}"].X[0], mean, rtol=1e-5, atol=1e-6)
    assert "ours/3/closed_form/16/d" not in found.obs_names
    old = load(folder / "sams_vae_corr" / "model.pt").model.perturbation_tables()
    assert set(ad.read_h5ad(folder / "sams_vae_corr" / "transfer.h5ad").layers) == {"mask_probability"} <= set(old)


def test_gain_is_the_paired_difference_to_the_training_mean(folder):
    for variant, scored in (("ours", "ours"), ("as_released", "as_released"), ("statistics_kept", "as_released")):
        way, k = ("closed_form", "10") if variant == "ours" else ("adam", "all")
        gains = []
        for name in "bd":
            mean = table_of(folder, "", perturbation=name)[scored, 0, "none", "0"]
            gains.append(mean - table_of(folder, "ivae", perturbation=name)[variant, 3, way, k])
            assert table_of(folder, "ivae", "gain", name)[variant, 3, way, k] == pytest.approx(gains[-1], abs=1e-6)
        assert table_of(folder, "ivae", "gain")[variant, 3, way, k] == pytest.approx(np.mean(gains), abs=1e-6)
        sd = table_of(folder, "ivae", "gain", "(sd)")[variant, 3, way, k]
        assert sd == pytest.approx(np.std(gains, ddof=1), abs=1e-6)


# ---- baselines -----------------------------------------------------------------------------------------------------


def test_baselines_by_hand(folder):
    """Both likelihoods by scipy, and the effect of ten cells by plain numpy."""
    cells, test, pool = parts(folder)
    split = pd.read_csv(folder / "cells.tsv", sep="\t")["split"].to_numpy()
    old = split == "train"
    assert not np.isin(cells.condition[old], [1, 3]).any()
    x, size = cells.counts.astype(float), cells.library.astype(float)
    pooled = x[old].sum(0) / size[old].sum()
    theta = fit_intercept_nb(cells.counts[old], cells.library[old]).theta
    within = fit_intercept_nb(cells.counts[old], cells.library[old], group=cells.condition[old]).theta
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    control = y[old & (cells.condition == 4)].mean(0)

    def inll(profile: np.ndarray, theta: np.ndarray, at: np.ndarray) -> float:
        mean = size[at, None] * profile + 1e-4
        return -stats.nbinom.logpmf(x[at], theta, theta / (theta + mean)).sum(1).mean()

    for name in "bd":
        found = table_of(folder, "", perturbation=name)
        assert found["ours", 0, "none", "0"] == pytest.approx(inll(pooled, theta, test[name]), rel=1e-6)
        ten, one = pool[name][:10], size[old].mean()
        profile = (x[ten].sum(0) + one * pooled) / (size[ten].sum() + one)
        assert found["ours", 0, "profile", "10"] == pytest.approx(inll(profile, within, test[name]), rel=1e-6)
        r = stats.pearsonr(y[ten].mean(0) - control, y[test[name]].mean(0) - control)[0]
        effect = table_of(folder, "", "effect_pearson", name)
        assert effect["ours", 0, "profile", "10"] == pytest.approx(r, rel=1e-6)
        assert effect["as_released", 0, "profile", "all"] == pytest.approx(1.0)  # the same cells on both sides


def test_baselines_of_the_reference_simulation(shared):
    """Numbers of the specification, from another implementation: the training mean, and own profiles of 10, 30, 50."""
    found = np.load(shared / "data" / "golden_svae" / "sim_small_1.npz")
    x, code, part = found["x"], found["y"], found["part"]
    names, n = np.array([f"{t:02}" for t in range(40)]), np.arange(len(code))
    cells = Screen(x, x.sum(1).astype(np.float32), n.astype(str), n[:50].astype(str), code, names, n[:40, None], names)
    rank = np.zeros(len(code), int)
    for t in range(40):
        own = np.flatnonzero((code == t) & (part == "adapt"))
        rank[own] = np.arange(1, len(own) + 1)
    split = np.where(np.isin(part, ["train", "val"]), part, "none")
    table = baseline_table(cells, Pools(code, split, rank, part == "test"), replace(BOTH, cells=(0, 10, 30, 50)))
    at = (table["perturbation"] == "(mean)") & (table["metric"] == "inll") & (table["variant"] == "ours")
    assert table[at]["value"].round(1).tolist() == [220.4, 194.5, 191.6, 191.1]


def test_collected_tables_name_runs_of_the_grid(folder):
    grid = pd.DataFrame({"run": ["ivae-seed0", "vae-seed0"]})
    files = [folder / name / "transfer.tsv" for name in ("ivae", "vae")]
    table = collect_transfer(grid, files, [folder / "baselines.tsv"])
    assert set(table["run"]) == {"ivae-seed0", "vae-seed0", "train_mean", "own_profile"}
    with pytest.raises(DataError, match=r"must hold one run of the grid"):
        collect_transfer(grid[:1], files, [])


# ---- other splits --------------------------------------------------------------------------------------------------


def test_a_method_without_a_second_stage_starts_from_untrained_rows(tmp_path):
    """The first stage leaves the columns of the conditional VAE for new perturbations at random numbers, not at 0."""
    how = replace(BOTH, variants=("ours",), cells=(0, 10), adapt_steps=2)
    run_one(settings("cond_vae", **SHORT), transferring(tmp_path, how), tmp_path / "cond_vae", PLACE)
    found = table_of(tmp_path, "cond_vae")
    assert list(found.index) == [("ours", 1, "none", "0"), ("ours", 3, "none", "0"), ("ours", 3, "gradient", "10")]
    assert found.iloc[0] != found.iloc[1] != found.iloc[2]


def test_a_training_with_new_cells_is_the_upper_bound_and_is_not_adapted(tmp_path):
    found = transferring(tmp_path, new_cells=16)
    run_one(settings("ivae", **SHORT), found, tmp_path / "ivae", PLACE)
    stages = [("ours", 1, "refit", "16"), ("ours", 2, "refit", "16")]
    assert list(table_of(tmp_path, "ivae").index) == stages
    assert table_of(tmp_path, "ivae", "n_left_out", "(all)").tolist() == [1, 1]  # d has 14 cells in its pool
    assert sorted(path.name for path in (tmp_path / "ivae").glob(".refit*")) == [".refit_ours"]


def test_sparse_shifts_are_compared_with_the_targets_of_a_simulation(tmp_path):
    truth = sparse_shift(n_perturbations=6, n_genes=12, cells=(20, 6, 6), n_held_out=2, n_latent=3)
    names = truth.obs["condition"].astype(str)
    found = transferring(tmp_path, replace(BOTH, variants=("ours",), cells=(10,)), tuple(names.unique()[-2:]), truth)
    write_h5ad(truth, tmp_path / "screen.h5ad")
    found = replace(found, simulated=True, screen=str(tmp_path / "screen.h5ad"))
    run_one(settings("ivae", **SHORT), found, tmp_path / "ivae", PLACE)
    precision, recall, f1 = (
        table_of(tmp_path, "ivae", f"shift_{name}", "(all)")["ours", 3, "sparse", "10"]
        for name in ("precision", "recall", "f1")
    )
    entries = ad.read_h5ad(tmp_path / "ivae" / "transfer.h5ad")
    found_entries = (entries[[f"ours/3/sparse/10/{name}" for name in names.unique()[-2:]]].X != 0).sum()
    true_entries = truth.uns["truth"]["mask"][-2:].sum()
    hits = precision * found_entries
    assert hits == pytest.approx(round(hits)) and hits == pytest.approx(recall * true_entries)
    assert f1 == pytest.approx(2 * hits / (found_entries + true_entries))


def test_a_combination_of_trained_perturbations_has_nothing_to_adapt(tmp_path):
    found = transferring(tmp_path, replace(BOTH, variants=("ours",)), ("a+c", "d"), pairs=True)
    run_one(settings("sams_vae_corr", **SHORT), found, tmp_path / "run", PLACE)
    table = read_transfer(tmp_path / "run" / "transfer.tsv")
    by_cells = table[table["metric"].eq("inll") & table["stage"].eq(3)].groupby("cells")["perturbation"].agg(list)
    assert by_cells["0"] == ["d", "a+c", "(mean)", "(sd)"] and by_cells["all"] == ["d", "(mean)", "(sd)"]
    assert table_of(tmp_path, "run", "n_left_out", "(all)")["ours", 3, "gradient", "all"] == 1


def test_a_model_that_was_trained_on_new_perturbations_is_refused(tmp_path):
    """Its file was copied from a run on another split."""
    seen = transferring(tmp_path / "seen", new=("d",))
    run_one(settings("ivae", **SHORT), seen, tmp_path / "run", PLACE)
    found = transferring(tmp_path / "new")
    inputs = {"model": tmp_path / "run" / "model.pt", "arrays": found.arrays, "split": found.split}
    inputs["baselines"] = found.baselines[0]
    with pytest.raises(CheckpointError, match=r"'b' is not new to this model, which was trained on \d+ of"):
        transfer_run(inputs, {}, {}, settings=vars(BOTH), split=SPLIT, evaluation=found.evaluation, device="cpu")
    with pytest.raises(DataError, match="no column 'transfer', which a split of kind 'transfer' has"):
        read_pools(data(tmp_path, made()).split, made())


# ---- caches --------------------------------------------------------------------------------------------------------


def test_a_variant_without_a_release_is_left_out_with_a_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = transferring(tmp_path, replace(BOTH, cells=(0,)))
    run_one(settings("cond_vae", **SHORT), found, tmp_path / "run", PLACE)
    assert caplog.text.count("'as_released' is left out, because there is no released transfer code for cond_vae") == 1
    assert set(read_transfer(tmp_path / "run" / "transfer.tsv")["variant"]) == {"ours"}


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_killed_transfer_resumes_and_gives_the_same_bytes(folder, tmp_path, monkeypatch, calls):
    """Stopped in the second training of either variant, or in the adaptation as released."""
    found = transferring(tmp_path)
    real, number = loop.TrainingState.validate, []

    def stops(state, between):
        number.append(state.step)
        if len(number) == {1: 3, 2: 5, 3: 7}[calls]:  # two validations in each training, one in the last stage
            raise Interrupted("stopped", saved=True)
        return real(state, between)

    always = replace(PLACE, save_every=1e-9)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop.TrainingState, "validate", stops)
        run_one(settings("ivae", **SHORT), found, tmp_path / "ivae", always)
    complete = {name for name in (".trained", ".refit_ours", ".refit_as_released")
                if (tmp_path / "ivae" / name / "stamp").is_file()}  # fmt: skip
    assert len(complete) == calls and not (tmp_path / "ivae" / "transfer.tsv").exists()
    before = {name: (tmp_path / "ivae" / name / "model.pt").stat().st_ino for name in complete}
    run_one(settings("ivae", **SHORT), found, tmp_path / "ivae", always)
    assert all((tmp_path / "ivae" / name / "model.pt").stat().st_ino == inode for name, inode in before.items())
    for name in ("transfer.tsv", "transfer.h5ad"):
        assert (tmp_path / "ivae" / name).read_bytes() == (folder / "ivae" / name).read_bytes()
    assert not list((tmp_path / "ivae").glob(".*/state.pt"))


def test_other_settings_of_the_transfer_train_nothing_again(folder, tmp_path):
    found = transferring(tmp_path)
    run_one(settings("ivae", **SHORT), found, tmp_path / "ivae", PLACE)
    models = [tmp_path / "ivae" / name / "model.pt" for name in (".trained", ".refit_ours")]
    before = [path.stat().st_mtime_ns for path in models]
    fewer = transferring(tmp_path, replace(BOTH, cells=(0, "all"), variants=("ours",), adapt=("sparse",)))
    run_one(settings("ivae", **SHORT), fewer, tmp_path / "ivae", PLACE)
    assert [path.stat().st_mtime_ns for path in models] == before
    table = read_transfer(tmp_path / "ivae" / "transfer.tsv")
    assert set(table["adapt"]) == {"none", "sparse"} and set(table["cells"]) == {"0", "all"}
    assert {path.name for path in (tmp_path / "ivae").glob("transfer*")} == set(TRANSFERRED.values())
