"""Effects of perturbations that are added to cells with others."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from small_model import model

from samsvae import fit, load
from samsvae.config.vocabulary import UNPERTURBED
from samsvae.errors import CheckpointError
from samsvae.evaluation import added_effects
from samsvae.evaluation.added_effects import added_effect_draws
from samsvae.evaluation.model_effects import effect_draws
from samsvae.training import checkpoint

KEEP = {"use": lambda _, drawn: drawn, "library": 500.0}


def net():
    found = model("sams_vae_corr")
    with torch.no_grad():
        for parameter in found.decoder.parameters():
            parameter.mul_(3.0)  # effects that are not tiny
    return found


def test_one_empty_background_is_the_effect_against_the_zero_dosage():
    made = net()
    t = made.n_perturbations
    members = np.array([[0, t], [1, 2]])
    (one, two) = added_effect_draws(made, members, backgrounds=np.array([[t]]), draws=200, cells=40, **KEEP)
    expected = effect_draws(made, members, against=np.array([t, t]), draws=200, cells=40, library=500.0)
    for found, other in zip((one, two), expected.transpose(1, 0, 2), strict=True):
        error = np.sqrt((found.var(0) + other.var(0)) / 200)
        assert (np.abs(found.mean(0) - other.mean(0)) < 4 * error + 1e-3).all()


def test_neither_the_other_conditions_nor_the_budget_matters(monkeypatch):
    made = net()
    t = made.n_perturbations
    backgrounds = np.array([[0, 1], [2, t], [t, t], [1, 2]])
    every = added_effect_draws(made, np.array([[0], [1], [2]]), backgrounds=backgrounds, draws=6, cells=4, **KEEP)
    monkeypatch.setattr(added_effects, "BUDGET", 1)
    (alone,) = added_effect_draws(made, np.array([[1]]), backgrounds=backgrounds, draws=6, cells=4, **KEEP)
    np.testing.assert_allclose(alone, every[1], atol=2e-6)
    (nothing,) = added_effect_draws(made, np.array([[t]]), backgrounds=backgrounds, draws=6, cells=4, **KEEP)
    assert not nothing.any()  # adding nothing changes nothing


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    rng = np.random.default_rng(0)
    dosage = (rng.random((200, 4)) < 0.5).astype(int)
    x = rng.poisson(np.exp(1 + dosage @ rng.normal(0, 0.5, (4, 10)))) + 1.0
    adata = ad.AnnData(x.astype(np.float32), pd.DataFrame(index=[f"c{i}" for i in range(200)]))
    adata.obsm["guides"] = pd.DataFrame(dosage, adata.obs_names, list("ABCD"))
    return adata


def test_a_fit_without_a_control_is_saved_with_its_backgrounds(screen, tmp_path):
    short = {"steps": 20, "n_latent": 4, "width": 16, "embedding_width": 8, "progress": False}
    fitted = fit(screen, perturbation="obsm:guides", control=None, **short)
    received = {tuple(np.array(list("ABCD"))[row > 0]) for row in screen.obsm["guides"].to_numpy()}
    backgrounds = fitted.checkpoint.facts["backgrounds"]
    assert len(backgrounds) == checkpoint.BACKGROUNDS and {tuple(each) for each in backgrounds} <= received
    effects = fitted.effects(["A", "A+B", UNPERTURBED, ["C", "D"]])
    assert effects["condition"].unique().tolist() == ["A", "A+B", UNPERTURBED, "C+D"]
    assert not effects.loc[effects["condition"] == UNPERTURBED, "effect"].any()
    assert set(fitted.sample([], n=3).obs["condition"]) == {UNPERTURBED}
    fitted.save(tmp_path / "model.pt")
    pd.testing.assert_frame_equal(load(tmp_path / "model.pt").effects(["A", "A+B"]), fitted.effects(["A", "A+B"]))
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    stored["facts"]["backgrounds"] = [["A", "E"]]
    torch.save(stored, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="'backgrounds' has names that 'perturbations' lacks: 'E'"):
        load(tmp_path / "model.pt")
    fitted.latents(screen)  # cells are read from the same matrix
    assert screen.obsm["X_samsvae"].shape == (200, 4)
