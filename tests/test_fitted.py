"""What a fitted model says about cells, effects and genes, against the truth of a simulated screen."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from simulated_cells import GENES, SHORT, simulated, truth

from samsvae import Fitted, fit, load
from samsvae.errors import CheckpointError, ConfigError, DataError
from samsvae.training import checkpoint

HOW = {"perturbation": "guide", "control": "control", "separator": "+", "progress": False}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return simulated()


@pytest.fixture(scope="module")
def fitted(cells) -> Fitted:
    # after 400 steps, some seeds have not found every effect; after 1,000, seeds 0 to 5 have
    return fit(cells, **HOW, **SHORT | {"steps": 1000})


def log2_means(x: np.ndarray) -> np.ndarray:
    return np.log2(x.mean(0) / x.mean())


# ---- cells ---------------------------------------------------------------------------------------------------------


def test_latents_are_ready_for_scanpy(cells, fitted):
    given = cells[::-1].copy()
    assert fitted.latents(given) is None
    assert given.obsm["X_samsvae"].shape == (900, 6) and given.obsm["X_samsvae"].dtype == np.float32
    assert given.uns["X_samsvae"] == {"model": "sams_vae_corr", "perturbation": "guide", "layer": "X"}
    # by the order of the AnnData: each cell has the shift of its own label
    shift = given.obsm["X_samsvae"] - given.obsm["X_samsvae_basal"]
    by_label = {label: shift[(given.obs["guide"] == label).to_numpy()] for label in given.obs["guide"].unique()}
    assert all(np.ptp(rows, axis=0).max() < 1e-4 for rows in by_label.values())
    np.testing.assert_allclose(by_label["A+B"][0], by_label["A"][0] + by_label["B"][0], atol=1e-4)
    assert np.abs(by_label["control"]).max() < 1e-6 < 0.3 < np.abs(by_label["A"]).max()
    # the basal state follows the state of the cell, and hardly tells what it received
    basal = np.c_[given.obsm["X_samsvae_basal"], np.ones(900)]
    state = given.obs["state"].to_numpy()
    predicted = basal @ np.linalg.lstsq(basal, state, rcond=None)[0]
    assert np.corrcoef(predicted, state)[0, 1] > 0.8


def test_latents_are_written_to_files(cells, fitted, tmp_path):
    given = cells[:30].copy()
    fitted.latents(given, key_added="X_z")
    given.write_h5ad(tmp_path / "a.h5ad")
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(found.obsm["X_z_basal"], given.obsm["X_z_basal"])


def test_cells_without_a_label_have_no_latents(cells, fitted):
    given = cells[:20].copy()
    given.obs["guide"] = given.obs["guide"].astype(object)
    given.obs.iloc[3, 0] = np.nan
    with pytest.raises(DataError, match="no label in 1 cell"):
        fitted.latents(given)
    fitted.latents(given, unlabelled="drop")
    assert np.isnan(given.obsm["X_samsvae"]).any(1).tolist() == [number == 3 for number in range(20)]
    score = fitted.score(given, particles=5, unlabelled="drop")
    assert score.isna().tolist() == [number == 3 for number in range(20)]
    assert fitted.predict(given, "A", draws=2, unlabelled="drop").n_obs == 19


def test_the_score_prefers_cells_with_their_own_label(cells, fitted):
    given = cells[cells.obs["guide"].isin(["A", "B"])]
    swapped = given.copy()
    swapped.obs["guide"] = np.where(given.obs["guide"] == "A", "B", "A")
    own, other = fitted.score(given, particles=20), fitted.score(swapped, particles=20)
    assert own.index.equals(given.obs_names) and own.name == "iwelbo"
    assert (own > other).mean() > 0.95
    assert fitted.score(given, particles=200).mean() > fitted.score(given, particles=1).mean()


@pytest.mark.parametrize("condition", ["A", "B", "C", "A+B"])
def test_a_counterfactual_has_the_effect_and_keeps_the_cell(cells, fitted, condition):
    """Controls as if they had received a perturbation: the true effect, and the cell's own state."""
    controls = cells[cells.obs["guide"] == "control"]
    found, same = fitted.predict(controls, condition), fitted.predict(controls, [])
    assert found.obs_names.equals(controls.obs_names) and set(found.obs["condition"]) == {condition}
    np.testing.assert_allclose(found.X.sum(1), controls.X.sum(1), rtol=1e-3)  # at their own library sizes
    expected = truth(condition) - np.log2((2 ** truth(condition)).mean())  # of proportions
    np.testing.assert_allclose(log2_means(found.X) - log2_means(same.X), expected, atol=0.35)
    share = found.X[:, 10:15].sum(1) / found.X.sum(1)
    assert np.corrcoef(np.log(share), controls.obs["state"])[0, 1] > 0.7


def test_what_a_cell_received_is_exchanged_not_added(cells, fitted):
    """Cells of A as if they had received nothing look like controls."""
    treated, controls = (cells[cells.obs["guide"] == label] for label in ("A", "control"))
    found = fitted.predict(treated, "control")
    assert set(found.obs["condition"]) == {"control"}
    np.testing.assert_allclose(log2_means(found.X), log2_means(controls.X), atol=0.35)
    sampled = fitted.predict(treated, "control", sample=True)
    assert not np.mod(sampled.X, 1).any()
    np.testing.assert_allclose(log2_means(sampled.X), log2_means(controls.X), atol=0.4)


def test_other_cells_may_have_more_genes_in_another_order(cells, fitted):
    more = ad.concat([cells, ad.AnnData(cells.X[:, :2] * 0 + 5, cells.obs, pd.DataFrame(index=["x", "y"]))], axis=1)
    more.obs = cells.obs
    more = more[:, ["x", *GENES[::-1], "y"]].copy()
    np.testing.assert_allclose(fitted.score(more, particles=5), fitted.score(cells, particles=5), rtol=1e-5)


def test_bad_cells_are_one_sentence(cells, fitted, tmp_path):
    other = cells.copy()
    other.obs["guide"] = other.obs["guide"].replace({"C": "D"})
    with pytest.raises(DataError, match=r"the model does not know 'D'\..* or add them to the model with adapt"):
        fitted.score(other)
    with pytest.raises(DataError, match="g3"):
        fitted.latents(cells[:, [gene for gene in GENES if gene != "g3"]].copy())
    with pytest.raises(ConfigError, match="'stepz' is not an option"):
        fitted.score(cells, stepz=3)
    with pytest.raises(ConfigError, match="particles: 0"):
        fitted.score(cells, particles=0)
    controls = cells[cells.obs["guide"] == "control"]
    with pytest.raises(DataError, match="new: no cell received a perturbation"):
        fitted.adapt(controls, perturbation="guide", progress=False)
    with pytest.raises(DataError, match="'Z' is not a perturbation of the model"):
        fitted.predict(cells, "Z")
    facts = {key: value for key, value in fitted.checkpoint.facts.items() if key != "reads"}
    nameless = Fitted(replace(fitted.checkpoint, facts=facts))
    with pytest.raises(ConfigError, match="the model does not know the obs column with the perturbations; pass it"):
        nameless.score(cells)
    pd.testing.assert_series_equal(
        nameless.score(cells[:9], particles=2, perturbation="guide"), fitted.score(cells[:9], particles=2)
    )


def test_cells_are_read_as_in_the_fit(cells):
    """The layer, and the options of the screen that concern single cells."""
    given = ad.AnnData(np.log1p(cells.X), cells.obs.copy(), cells.var, layers={"counts": cells.X})
    given.obs["depth"] = cells.X.sum(1) * 2.0
    given.obs.loc[given.obs_names[0], "guide"] = ""
    how = {"layer": "counts", "library_size": "depth", "unlabelled": "drop"}
    found = fit(given, **HOW, **how, **SHORT | {"steps": 3})
    reads = found.checkpoint.facts["reads"]
    assert reads == {"perturbation": "guide", **how, "library_scale": "0.5"}
    scores = found.score(given, particles=2)
    assert np.isnan(scores.iloc[0]) and scores.notna().sum() == 899
    plain = ad.AnnData(cells.X, given.obs, cells.var)
    pd.testing.assert_series_equal(found.score(plain, particles=2, layer="X"), scores)


def test_guides_are_read_as_in_the_fit(cells, tmp_path):
    """New cells are labelled with guides too, also after the model was saved."""
    guides = cells.copy()
    numbers = np.arange(len(guides)) % 3 + 1
    guides.obs["guide"] = [
        label if label == "control" else "+".join(f"{part}g{number}" for part in label.split("+"))
        for label, number in zip(guides.obs["guide"], numbers, strict=True)
    ]
    found = fit(guides, **HOW, target_pattern="(.)g[0-9]+", **SHORT | {"steps": 3})
    assert found.perturbations == fit(cells, **HOW, **SHORT | {"steps": 3}).perturbations
    found.save(tmp_path / "model.pt")
    scores = load(tmp_path / "model.pt").score(guides[:200])
    np.testing.assert_array_equal(scores, found.score(guides[:200]))


def test_a_cell_has_the_same_library_size_among_others(cells):
    """A measured size is scaled so that the sizes of all training cells sum to their kept counts."""
    few = [*GENES[:10]]
    found = fit(cells, **HOW, genes=few, library_size="all", **SHORT | {"steps": 3})
    scale = float(found.checkpoint.facts["reads"]["library_scale"])
    assert scale == pytest.approx(cells[:, few].X.sum() / cells.X.sum())
    some = cells[cells.obs["guide"] == "A"].copy()
    for given in (cells, some):
        counts = found.predict(given, [], draws=5).to_df().sum(1)
        np.testing.assert_allclose(counts, given.X.sum(1) * scale, rtol=1e-3)


# ---- effects and genes ---------------------------------------------------------------------------------------------


def test_differential_expression_finds_the_true_genes(fitted):
    table = fitted.differential_expression(["A", "B", "C"], delta=0.5)
    assert list(table.columns) == ["condition", "gene", "effect", "sd", "probability", "lfsr"]
    effects = fitted.effects(["A", "B", "C"], draws=400)
    np.testing.assert_array_equal(table["effect"], effects["effect"])
    changed = np.concatenate([truth(label) != 0 for label in "ABC"])
    assert (table["probability"][changed] > 0.98).all() and (table["lfsr"][changed] < 0.02).all()
    # proportions of all other genes move a little when three genes move a lot
    assert (table["probability"][table["condition"] == "C"] < 0.2).all()
    assert table["lfsr"].between(0, 1).all() and (table["lfsr"][table["condition"] == "C"] > 0.2).all()
    assert (table["sd"] > 0).all()


def test_differential_expression_counts_draws(fitted, monkeypatch):
    from samsvae.evaluation import effect_tables

    drawn = np.array([[-1.0, 0.0, 0.2], [1.0, 0.0, 0.6], [3.0, 0.0, -0.1], [2.0, 0.0, 0.9]])
    monkeypatch.setattr(effect_tables, "effect_draws", lambda *_, summary, **__: summary(drawn)[:, None])
    monkeypatch.setattr(effect_tables.Names, "label", lambda *_: "A")
    few = Fitted(replace(fitted.checkpoint, genes=("x", "y", "z")))
    found = few.differential_expression("A", delta=0.5, draws=4)
    assert found["effect"].tolist() == [1.25, 0.0, 0.4]
    assert found["probability"].tolist() == [1.0, 0.0, 0.5]
    assert found["lfsr"].tolist() == [0.25, 1.0, 0.25]


def test_a_model_without_a_posterior_of_effects_has_no_probabilities(cells):
    found = fit(cells, "cond_vae", **HOW, **SHORT | {"steps": 3})
    with pytest.raises(DataError, match="'cond_vae' has no posterior of its effects"):
        found.differential_expression("A")


def test_latent_genes_and_embeddings_give_the_effects(fitted):
    """The latents that A switches on, times its embedding, raise the genes that A raises."""
    table = fitted.latent_genes()
    assert list(table.index) == list(fitted.embedding.columns) == [f"z{n}" for n in range(6)]
    assert list(table.columns) == GENES and table.index.name == "latent" and table.columns.name == "gene"
    for label in ("A", "B"):
        shift = (fitted.mask_probability * fitted.embedding).loc[label]
        predicted = shift.to_numpy() @ table.to_numpy()
        assert np.corrcoef(predicted, truth(label))[0, 1] > 0.6
    half = fitted.latent_genes(step=0.5)
    assert (np.abs(half).max(axis=1) < np.abs(table).max(axis=1)).all()


# ---- training, history, files --------------------------------------------------------------------------------------


def test_the_history_survives_a_file(fitted, tmp_path):
    fitted.save(tmp_path / "model.pt")
    found = load(tmp_path / "model.pt").history
    pd.testing.assert_frame_equal(found, fitted.history)
    assert list(found.columns) == ["step", "epoch", "train_loss", "val_loss"] and len(found) > 3
    old = replace(fitted.checkpoint, facts={k: v for k, v in fitted.checkpoint.facts.items() if k != "history"})
    checkpoint.save(old, tmp_path / "old.pt")
    assert load(tmp_path / "old.pt").history.shape == (0, 4)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    for bad in ({"step": [1]}, {**content["facts"]["history"], "step": ["a"]}, [1], {**found, "step": [1, 2]}):
        torch.save(content | {"facts": content["facts"] | {"history": bad}}, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match="history"):
            load(tmp_path / "bad.pt")


def test_training_goes_on(cells):
    first = fit(cells, **HOW, **SHORT | {"steps": 60})
    weights = {name: value.clone() for name, value in first.checkpoint.model.state_dict().items()}
    more = first.train_more(cells, steps=200, progress=False)
    assert all((first.checkpoint.model.state_dict()[name] == value).all() for name, value in weights.items())
    steps = more.history["step"].to_numpy()
    assert (np.diff(steps) > 0).all() and steps[-1] == 260 and (np.diff(more.history["epoch"]) > 0).all()
    pd.testing.assert_frame_equal(more.history[: len(first.history)], first.history)
    before, after = first.history["val_loss"].min(), more.history["val_loss"].min()
    assert more.history["val_loss"].iloc[len(first.history)] < first.history["val_loss"].iloc[0]  # not from the start
    assert after < before and more.checkpoint.facts["best_step"] > 60
    assert more.checkpoint.facts["training_cells"] == first.checkpoint.facts["training_cells"]  # the same split
    assert more.score(cells, particles=10).mean() > first.score(cells, particles=10).mean()
    again = first.train_more(cells, steps=200, progress=False).checkpoint.model.state_dict()
    assert all((again[name] == value).all() for name, value in more.checkpoint.model.state_dict().items())


def test_more_training_on_other_cells(cells, fitted, tmp_path):
    fitted.save(tmp_path / "model.pt")
    other = simulated(seed=1)
    other = other[other.obs["guide"] != "C"].copy()
    other.obs["part"] = np.resize(["train", "val"], other.n_obs)
    other.var_names = GENES
    found = load(tmp_path / "model.pt").train_more(other[:, GENES[::-1]], split="part", steps=5, progress=False)
    assert found.perturbations == ("A", "B", "C") and found.checkpoint.untrained == ()
    with pytest.raises(DataError, match="no cell is 'val'"):
        other.obs["part"] = "train"
        fitted.train_more(other, split="part", progress=False)
    with pytest.raises(ConfigError, match="'stepz'"):
        fitted.train_more(cells, stepz=3, progress=False)
    imported = {key: value for key, value in fitted.checkpoint.facts.items() if key != "training"}
    with pytest.raises(ConfigError, match="no settings of a training"):
        Fitted(replace(fitted.checkpoint, facts=imported)).train_more(cells, progress=False)


# ---- matrices of guides, and covariates ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guides() -> ad.AnnData:
    """Cells that received some of five guides, by counts of two or more, in two batches that differ in one gene."""
    rng = np.random.default_rng(0)
    received = rng.random((400, 5)) < 0.3
    log2 = received @ np.c_[2.0 * np.eye(5), np.zeros((5, 7))]
    batch = rng.integers(2, size=400)
    log2[:, 11] += 2.0 * batch
    found = ad.AnnData(rng.poisson(10 * 2.0**log2).astype(np.float32))
    found.obs["batch"] = [f"b{number}" for number in batch]
    counts = np.where(received, rng.integers(2, 9, (400, 5)), rng.integers(0, 2, (400, 5)))
    found.obsm["guides"] = pd.DataFrame(counts, found.obs_names, [f"P{number}" for number in range(5)])
    return found


def test_cells_with_a_matrix_of_guides_and_covariates(guides, caplog):
    """The threshold and the covariates are those of the fit, and a cell does not depend on the others."""
    how = {"perturbation": "obsm:guides", "control": None, "threshold": 2, "covariates": ["batch"], "progress": False}
    found = fit(guides, **how, **SHORT)
    assert found.perturbations == ("P0", "P1", "P2", "P3", "P4")
    some = guides[:30].copy()
    found.latents(some)
    found.latents(guides)
    np.testing.assert_allclose(some.obsm["X_samsvae"], guides.obsm["X_samsvae"][:30], atol=1e-5)
    received = guides.obsm["guides"].to_numpy() >= 2
    shift = guides.obsm["X_samsvae"] - guides.obsm["X_samsvae_basal"]
    assert np.abs(shift[~received.any(1)]).max() < 1e-6 < np.abs(shift[received.any(1)]).max()
    none = guides[~received.any(1)].copy()  # no cell of the matrix received anything
    caplog.clear()
    treated, same = found.predict(none, ["P1"]), found.predict(none, [])
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    ratio = log2_means(treated.X) - log2_means(same.X)
    assert np.argmax(ratio) == 1 and ratio[1] > 1.2
    by_batch = [same[(none.obs["batch"] == level).to_numpy()].X[:, 11].mean() for level in ("b0", "b1")]
    assert by_batch[1] > 2 * by_batch[0]  # a counterfactual stays in its batch
    other = some.copy()
    other.obs["batch"] = "b7"
    with pytest.raises(DataError, match="b7"):
        found.score(other)
