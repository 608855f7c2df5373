"""The API on an AnnData: the weights are the same as in the workflow, and errors name the problem."""

from __future__ import annotations

import pickle
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_model import screen

from samsvae import api
from samsvae.api import fit, load
from samsvae.config import first_fit
from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.errors import ConfigError, DataError, SamsvaeError
from samsvae.evaluation import model_effects as effects
from samsvae.fitted import Fitted
from samsvae.screens.custom import filter_screen
from samsvae.screens.pack import write_arrays
from samsvae.screens.splits import random_split, write_split
from samsvae.study.train_run import fit as fit_files
from samsvae.training.loop import train

SMALL = {"n_latent": 4, "width": 16, "embedding_width": 8, "mask_prior": 0.2}
SHORT = {
    "steps": 30,
    "batch_size": 32,
    "particles": 2,
    "validation_particles": 2,
    "learning_rate": 0.01,
    "validation_every": 1,
}
HOW = {"perturbation": "guide", "control": "none", "separator": "+"}


@pytest.fixture
def cells() -> ad.AnnData:
    synthetic = screen(n=150)
    label = np.array(["a", "b", "c", "d", "c+a", "none"])[synthetic.condition]
    obs = pd.DataFrame({"guide": label, "batch": "x"}, index=synthetic.cells)
    x = np.log1p(synthetic.counts.astype(np.float32))
    layers = {"counts": sp.csr_matrix(synthetic.counts.astype(np.float32))}
    return ad.AnnData(x, obs, pd.DataFrame(index=synthetic.genes), layers=layers)


@pytest.fixture
def fitted(cells):
    return fit(cells, "sams_vae_corr", **HOW, layer="counts", progress=False, **SMALL, **SHORT)


def test_the_same_weights_as_from_files(cells, fitted, tmp_path):
    cells.write_h5ad(tmp_path / "raw.h5ad")
    options = {"perturbation_column": "guide", "control": "none", "separator": "+", "counts": "layer:counts"}
    filtered = filter_screen(tmp_path / "raw.h5ad", tmp_path / "screen.h5ad", **options)
    write_arrays(tmp_path / "screen.h5ad", tmp_path / "arrays.npz")
    write_split(random_split(filtered.obs, test_fraction=0.0), tmp_path / "cells.tsv")
    chosen = row("sams_vae_corr")
    settings = {
        "run": "r", "model": "sams_vae_corr", "encoding": "sum",
        "config": vars(ModelConfig(**{**first_fit.MODEL, **chosen.model, **first_fit.START, **SMALL})),
        "training": vars(TrainingConfig(**{**first_fit.TRAINING, **SHORT})) | {"patience": "auto"},
    }  # fmt: skip
    out = {name: tmp_path / name for name in ("model", "history", "run")}
    fit_files(settings, tmp_path / "arrays.npz", tmp_path / "cells.tsv", "cpu", out=out)
    other = load(out["model"]).checkpoint
    assert other.genes == fitted.genes and other.perturbations == fitted.perturbations == ("a", "b", "c", "d")
    for name, value in fitted.checkpoint.model.state_dict().items():
        assert (other.model.state_dict()[name] == value).all(), name
    assert len(fitted.history) == 8 and fitted.history["val_loss"].notna().all()
    # labels mean the same as in the screen of the run
    facts = fitted.checkpoint.facts
    assert other.facts == {key: value for key, value in facts.items() if key != "reads"} | {"run": "r"}
    pd.testing.assert_frame_equal(load(out["model"]).history, fitted.history)
    pd.testing.assert_frame_equal(load(out["model"]).effects(["c+a", "none"]), fitted.effects(["c+a", "none"]))
    assert set(load(out["model"]).sample([], n=2).obs["condition"]) == {"none"}


def test_a_file_of_an_older_version_with_fewer_facts(fitted, tmp_path, caplog):
    facts = dict(fitted.checkpoint.facts)
    for name in ("control", "controls", "separator", "training_cells"):
        del facts[name]
    Fitted(replace(fitted.checkpoint, facts=facts)).save(tmp_path / "old.pt")
    old = load(tmp_path / "old.pt")
    np.testing.assert_array_equal(old.effects([["a", "c"]])["effect"], fitted.effects(["a+c"])["effect"])
    assert set(old.sample([], n=2).obs["condition"]) == {"control"} and not caplog.text


def test_the_anndata_is_not_changed(cells):
    before = cells.copy()
    fit(cells, "cpa_vae_mf", **HOW, layer="counts", progress=False, **SMALL, **SHORT)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert (cells.X == before.X).all() and cells.layers["counts"].dtype == np.float32


def test_effects_have_intervals_in_the_requested_order(fitted):
    table = fitted.effects(["a+c", ["d"], "c"], level=0.8, draws=50, cells=10)
    assert list(table.columns) == ["condition", "gene", "effect", "low", "high"]
    assert table["condition"].drop_duplicates().tolist() == ["a+c", "d", "c"]
    assert table["gene"].tolist() == [*fitted.genes] * 3
    assert (table["low"] <= table["effect"]).mean() > 0.95 and (table["effect"] <= table["high"]).mean() > 0.95
    assert (table["low"] < table["high"]).mean() > 0.8
    model = fitted.checkpoint.model
    means = effects.condition_means(model, np.array([[0, 2], [4, 4]]), samples=20_000, closed_form=True)
    pair = fitted.effects([["c", "a"]], draws=400)
    np.testing.assert_allclose(pair["effect"], means[0] - means[1], atol=0.1)
    assert set(fitted.effects(draws=2, cells=2)["condition"]) == {"a", "b", "c", "d"}
    wide, narrow = (fitted.effects(["a"], level=level) for level in (0.95, 0.5))
    assert ((wide["high"] - wide["low"]) >= (narrow["high"] - narrow["low"])).all()


def test_samples_are_counts_of_any_dosage(fitted):
    found = fitted.sample(["a", "b", "d"], n=40, library=500.0)
    assert found.shape == (40, 9) and not np.mod(found.X, 1).any()
    assert set(found.obs["condition"]) == {"a+b+d"} and list(found.var_names) == list(fitted.genes)
    assert np.asarray(found.X.sum(1)).mean() == pytest.approx(500, rel=0.2)
    assert set(fitted.sample([], n=2).obs["condition"]) == {"none"}
    assert (fitted.sample("none", n=5).X == fitted.sample("none", n=5).X).all()
    assert (fitted.sample("a", n=5, seed=1).X != fitted.sample("a", n=5, seed=2).X).any()


def test_masks_and_embeddings_are_named(fitted):
    assert list(fitted.mask_probability.index) == list(fitted.embedding.index) == ["a", "b", "c", "d"]
    assert fitted.mask_probability.shape == fitted.embedding.shape == (4, 4)
    assert ((fitted.mask_probability > 0) & (fitted.mask_probability < 1)).all(axis=None)


def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path / "model.pt")
    found = load(tmp_path / "model.pt")
    pd.testing.assert_frame_equal(found.effects(["a+c"]), fitted.effects(["a+c"]))
    pd.testing.assert_frame_equal(found.mask_probability, fitted.mask_probability)
    assert found.sample("none", n=3).obs["condition"].tolist() == ["none"] * 3


def test_in_the_unique_encoding_a_combination_is_a_perturbation_of_its_own(cells):
    found = fit(cells, "svae_plus", **HOW, layer="counts", encoding="unique", progress=False, **SMALL, **SHORT)
    assert found.perturbations == ("a", "a+c", "b", "c", "d")
    assert set(found.effects(["a+c"], draws=2)["condition"]) == {"a+c"}
    same = found.effects(["a+c"], seed=1)["effect"]
    np.testing.assert_array_equal(found.effects(["c + a"], seed=1)["effect"], same)
    with pytest.raises(DataError, match=r"'a\+b' is not a perturbation of the model"):
        found.effects(["b+a"])  # the two were never combined, so there is no such perturbation


def test_a_split_column_and_options_of_the_screen(cells):
    cells.obs["part"] = np.resize(["train", "train", "val", "none"], cells.n_obs)
    found = fit(
        cells, "cond_vae", **HOW, layer="counts", split="part", genes=["gene1", "gene5"], progress=False, **SHORT,
        n_latent=2, width=8,
    )  # fmt: skip
    assert found.genes == ("gene1", "gene5")
    with pytest.raises(DataError, match=r"mask_probability: the model 'cond_vae' has none\.$"):
        _ = found.mask_probability


@pytest.mark.parametrize(("part", "warned"), [("train", False), ("val", True), ("test", True), ("none", True)])
def test_a_training_without_controls_is_warned_about(cells, caplog, part, warned):
    parts = np.tile(["train", "train", "val"], 50)
    cells.obs["part"] = np.where(cells.obs["guide"] == "none", part, parts)
    fit(cells, "cond_vae", **HOW, layer="counts", split="part", progress=False, **SMALL, **(SHORT | {"steps": 2}))
    assert ("no training cell is a control ('none')" in caplog.text) == warned


def test_the_split_of_genes_split_is_used_for_training(cells, monkeypatch):
    seen = {}
    monkeypatch.setattr(api, "train", lambda net, *parts, **_: seen.update(parts=parts[:2]) or train(net, *parts, **_))
    cells.obs["split"] = np.resize(["train", "test", "train", "val"], cells.n_obs)
    how = {**HOW, "layer": "counts", "progress": False, "n_latent": 2, "width": 8, **SHORT}
    fit(cells, "cond_vae", genes=5, genes_split={"kind": "given"}, zero_cells="drop", **how)
    for part, name in zip(seen["parts"], ("train", "val"), strict=True):
        assert part.names.tolist() == cells.obs_names[cells.obs["split"] == name].tolist()


@pytest.mark.parametrize("model", ["sams_vae_corr", "cond_vae", "svae_plus"])
def test_effects_without_training_cells_give_a_warning(cells, caplog, tmp_path, model):
    """Without cells only the prior trains the approximate posterior, but the effects look like ordinary ones."""
    unique = model == "svae_plus"
    cells.obs["part"] = np.resize(["train", "train", "val"], cells.n_obs)
    cells.obs.loc[cells.obs["guide"] == "b", "part"] = "val"
    cells.obs.loc[cells.obs["guide"] == "c+a", "part"] = "none"
    how = {**HOW, "layer": "counts", "progress": False, **SHORT, **(SMALL if model != "cond_vae" else {})}
    found = fit(cells, model, split="part", encoding="unique" if unique else "sum", **how)
    never = ("a+c", "b") if unique else ("b",)  # combinations of perturbations with training cells are fine
    assert found.checkpoint.untrained == never
    assert f"no training cell received {', '.join(map(repr, never))}" in caplog.text
    found.save(tmp_path / "model.pt")
    for asked, said in ((["a", "c"], ()), (["a", "b"], ("b",)), (["a+c"], ("a+c",) if unique else ()), (None, never)):
        caplog.clear()
        load(tmp_path / "model.pt").effects(asked, draws=2, cells=2)
        assert len(caplog.records) == bool(said) and all(f"{name!r}" in caplog.text for name in said)
    caplog.clear()
    load(tmp_path / "model.pt").sample(["b"], n=2)
    assert "no training cell received 'b'" in caplog.text


def test_a_label_stands_for_one_dosage(cells):
    how = {**HOW, "layer": "counts", "progress": False, **SMALL, **SHORT, "encoding": "unique"}
    one = fit(cells, "svae_plus", **how)
    with pytest.raises(DataError, match=r"\['a', 'c'\] is not allowed: the model reads one perturbation per cell"):
        one.effects(["a+c", ["a", "c"]])
    with pytest.raises(DataError, match=r"\['a', 'b'\] is not allowed"):
        one.sample(["a", "b"])
    both = fit(cells, "cpa_vae_mf", **how).effects(["a+c", ["a", "c"], ["a+c"]], draws=2)
    assert both["condition"].drop_duplicates().tolist() == ["a+c", "['a', 'c']"]
    effect = both["effect"].to_numpy().reshape(3, -1)
    assert (effect[0] != effect[1]).any() and (effect[0] == effect[2]).all()


def test_a_perturbation_is_named_once(fitted):
    for call in (fitted.sample, lambda condition: fitted.effects([condition])):
        with pytest.raises(DataError, match=r"\['a', 'c', 'a'\] names 'a' more than once"):
            call(["a", "c", "a"])


def test_an_effect_does_not_depend_on_the_other_conditions(fitted):
    many = fitted.effects(["b", "a+c", "a"])
    pd.testing.assert_frame_equal(many.iloc[18:].reset_index(drop=True), fitted.effects("a"))


@pytest.mark.parametrize("given", ["x.h5ad", None, np.ones((3, 2)), pd.DataFrame({"guide": ["a"]})])
def test_what_is_no_anndata_is_one_sentence(given):
    with pytest.raises(ConfigError, match=r"adata: .* is not an AnnData in memory; pass ") as error:
        fit(given, "sams_vae_corr", **HOW, progress=False, **SMALL, **SHORT)
    assert "\n" not in str(error.value)
    assert given is None or not isinstance(given, str) or "pass anndata.read_h5ad('x.h5ad')" in str(error.value)


def test_what_is_no_condition_is_one_sentence(fitted):
    with pytest.raises(DataError, match=r"condition: <object .* is not allowed; pass a label or a list"):
        fitted.effects(object())
    with pytest.raises(DataError, match="'3' is not a perturbation of the model"):
        fitted.effects(3)


@pytest.mark.parametrize("name", ["guide", "batch"])
def test_columns_of_one_name(cells, name):
    """An error if the column is used; other columns of one name, in obs or var, do no harm."""
    cells.obs["more"] = "x"
    cells.obs.columns = ["guide", "batch", name]
    cells.var["a"], cells.var["b"] = 1, 2
    cells.var.columns = ["a", "a"]
    if name == "guide":
        with pytest.raises(DataError, match=r"obs has 2 columns called 'guide'. Rename or remove all but one"):
            fit(cells, "sams_vae_corr", **HOW, layer="counts", progress=False, **SMALL, **SHORT)
    else:
        fit(cells, "sams_vae_corr", **HOW, layer="counts", progress=False, **SMALL, **SHORT | {"steps": 2})


@pytest.mark.parametrize("seed", [2**32, 2**63, 10**400])
def test_a_seed_that_no_generator_takes(cells, seed):
    with pytest.raises(ConfigError, match=r"seed: .* is not allowed; .* (at most|or less)"):
        fit(cells, "sams_vae_corr", **HOW, layer="counts", progress=False, seed=seed, **SMALL, **SHORT)


def test_the_largest_seed_trains(cells):
    seed = 2**32 - 1
    fit(cells, "sams_vae_corr", **HOW, layer="counts", progress=False, seed=seed, **SMALL, **SHORT | {"steps": 2})


def test_repr(fitted):
    assert repr(fitted) == "Fitted(sams_vae_corr: 9 genes, 4 perturbations, encoding 'sum')"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "sams_vae_cor"}, "Did you mean 'sams_vae_corr'"),
        ({"model": ["cond_vae"]}, r"model: \['cond_vae'\] is not a known model"),
        ({"perturbation": "guides"}, "'guides'.*Did you mean 'guide'"),
        ({"control": "ctrl"}, "has no control cell"),
        ({"layer": "count"}, "has no 'layer:count', which the option counts requests. Did you mean 'layer:counts'"),
        ({"layer": None}, "must hold counts"),
        ({"steps": 0}, "steps: 0"),
        ({"stepz": 3}, "'stepz'.*Did you mean 'steps'"),
        ({"encoding": "add"}, "encoding: 'add'"),
        ({"split": "batch"}, "'x'"),
        ({"split": "part"}, "no column 'part'"),
        ({"device": "cuda"}, r"device: 'cuda' is not allowed \(torch sees no GPU here\). Allowed: cpu"),
        ({"device": "gpu"}, "device: 'gpu' is not allowed. Allowed: cpu"),
        ({"min_cells": "many"}, "min_cells: 'many' is not allowed. Allowed: a whole number"),
        ({"genes": 1.5}, "genes: 1.5 is not allowed"),
        ({"genes": 5, "genes_split": {"kindd": "random"}}, "unknown key 'kindd'. Did you mean 'kind'"),
        ({"genes": 5, "genes_split": {"kind": "random"}, "split": "batch"}, "split and genes_split: pass only one"),
        ({"keep_obs": "batches"}, "no column 'batches'. Did you mean 'batch'"),
        ({"separator": 1}, "separator: 1 is not allowed"),
        ({"likelihood": "normal"}, "likelihood: 'normal' is not allowed for counts.*Allowed: 'nb', 'poisson'"),
    ],
)
def test_errors_name_the_problem(cells, monkeypatch, changes, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SamsvaeError, match=said):
        fit(cells, **{"model": "cpa_vae_mf", **HOW, "layer": "counts", "progress": False, **SMALL, **SHORT, **changes})


def test_unknown_conditions_and_levels(fitted):
    with pytest.raises(DataError, match=r"'x' is not a perturbation of the model.* Allowed: a, b, c, d"):
        fitted.effects(["a+x"])
    with pytest.raises(ConfigError, match="level: 1"):
        fitted.effects(level=1.5)


@pytest.mark.parametrize("kind", [int, float, bool])
def test_labels_that_are_numbers(cells, kind):
    """A column may hold numbers; a condition is then a number, one of numpy, or its text."""
    cells.obs["guide"] = (np.arange(cells.n_obs) % (2 if kind is bool else 4)).astype(kind)
    how = {**HOW, "control": kind(0), "layer": "counts", "progress": False, **SMALL, **SHORT}
    found = fit(cells, "sams_vae_corr", **how)
    one, text = kind(1), str(kind(1))
    assert text in found.perturbations and str(kind(0)) not in found.perturbations
    for asked in (one, [one], [[one]], np.array([one]), pd.Index([one]), np.array([one])[0]):
        pd.testing.assert_frame_equal(found.effects(asked, draws=3), found.effects([text], draws=3))
    for asked in (one, np.array([one])[0]):
        assert (found.sample(asked, n=3).X == found.sample(text, n=3).X).all()
    assert (found.sample([one], n=3).X == found.sample([text], n=3).X).all()
    assert (found.effects([kind(0)], draws=3)["effect"] == 0).all()
    if kind is int:
        assert set(found.effects([[1, 3]], draws=3)["condition"]) == {"1+3"}
        with pytest.raises(DataError, match=r"'4' is not a perturbation of the model.* Allowed: 1, 2, 3"):
            found.effects(4)


@pytest.mark.parametrize("condition", [None, [None], {"a": [1]}.items(), [["a", "b"]]])
def test_a_condition_that_is_neither_a_label_nor_a_list(fitted, condition):
    with pytest.raises(DataError, match=r"condition: .* is not allowed; pass a label or a list of perturbations"):
        fitted.sample(condition)
    with pytest.raises(DataError, match=r"condition: .* is not allowed; pass a label or a list of perturbations"):
        fitted.effects([condition])


def test_settings_that_are_numbers_of_numpy(cells, tmp_path):
    how = {**HOW, "layer": "counts", "progress": False, **SMALL, **SHORT}
    plain = {"seed": 3, "batch_size": 16, "learning_rate": 0.25, "analytic_kl": True, "min_cells": 2}
    of_numpy = {"seed": np.int64(3), "batch_size": np.int32(16), "learning_rate": np.float32(0.25)}
    of_numpy |= {"analytic_kl": np.True_, "min_cells": np.uint8(2)}
    first, second = (fit(cells, "sams_vae_corr", **how | settings) for settings in (plain, of_numpy))
    pd.testing.assert_frame_equal(first.history, second.history)
    second.save(tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").checkpoint.facts == first.checkpoint.facts
    with pytest.raises(ConfigError, match=r"seed: 1\.5 is not allowed\. Allowed: a whole number"):
        fit(cells, "sams_vae_corr", **how | {"seed": np.float64(1.5)})
    with pytest.raises(ConfigError, match="steps: True is not allowed"):
        fit(cells, "sams_vae_corr", **how | {"steps": np.True_})


@pytest.mark.parametrize("name", ["sams_vae_corr", "sams_vae_bb", "svae_plus_lopez", "vae"])
def test_a_fitted_model_can_be_pickled(cells, name):
    """For a process pool or joblib; activations are functions of a module."""
    alone = cells[cells.obs["guide"] != "c+a"].copy()
    found = fit(alone, name, **HOW, layer="counts", progress=False, **SMALL, **SHORT)
    again = pickle.loads(pickle.dumps(found))
    pd.testing.assert_frame_equal(again.effects("a", draws=3), found.effects("a", draws=3))
    pd.testing.assert_frame_equal(again.history, found.history)


def test_progress_is_logged_on_stderr(cells, capsys):
    fit(cells, "cpa_vae_mf", **HOW, layer="counts", **SMALL, **SHORT)
    assert "best validation loss" in capsys.readouterr().err


def test_a_label_means_the_same_as_in_the_anndata(cells):
    cells.obs["guide"] = cells.obs["guide"].replace({"none": "ctrl", "d": "ctrl + d"})
    found = fit(
        cells, "cpa_vae_mf", perturbation="guide", control=["ctrl", "safe"], separator="+", layer="counts",
        progress=False, **SMALL, **SHORT,
    )  # fmt: skip
    assert found.perturbations == ("a", "b", "c", "d")
    for label, plain in (("d+ctrl", "d"), ("safe+d", "d"), ("a+a", "a"), (" c + a ", "a+c"), ("d", ["d"])):
        np.testing.assert_array_equal(found.effects([label])["effect"], found.effects([plain])["effect"])
    assert (found.effects(["safe"])["effect"] == 0).all()
    np.testing.assert_array_equal(found.effects("a+c")["effect"], found.effects(["a+c"])["effect"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f: f.effects([]), "the list is empty"),
        (lambda f: f.effects(draws=0), "draws: 0"),
        (lambda f: f.effects(cells=0), "cells: 0"),
        (lambda f: f.effects(library=-1.0), "library: -1"),
        (lambda f: f.sample("a", n=0), "n: 0"),
        (lambda f: f.sample("a", n=1.5), "n: 1.5 .*whole number"),
        (lambda f: f.effects(draws=1.5), "draws: 1.5 .*whole number"),
        (lambda f: f.effects(cells=True), "cells: True"),
        (lambda f: f.effects(library="deep"), "library: 'deep'"),
        (lambda f: f.effects(level="high"), "level: 'high'"),
    ],
)
def test_numbers_and_lists_that_are_not_allowed(fitted, call, said):
    with pytest.raises(ConfigError, match=said):
        call(fitted)


def test_genes_as_an_index_and_a_number_of_numpy(cells):
    how = {**HOW, "layer": "counts", "progress": False, **SMALL, **SHORT}
    assert fit(cells, "cond_vae", genes=cells.var_names[2:5], **{k: v for k, v in how.items()}).genes == (
        "gene2",
        "gene3",
        "gene4",
    )
    with pytest.raises(SamsvaeError, match="genes: "):
        fit(cells, "cond_vae", genes=[], **how)
