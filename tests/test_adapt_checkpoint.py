"""New perturbations added to a trained model by name: from an AnnData, with files, combinations and errors."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from small_model import model, screen

from samsvae.api import load
from samsvae.config.zoo import ROWS, row
from samsvae.errors import ConfigError, DataError
from samsvae.fitted import Fitted
from samsvae.models.perturbations import select
from samsvae.training.checkpoint import Checkpoint

HOW = {"perturbation": "guide", "layer": "counts", "progress": False}
FAST = {"steps": 3}


def adata(*labels: str) -> ad.AnnData:
    """Cells with these labels in turn, and a gene more than the model has, in another order."""
    made = screen(n=60)
    obs = pd.DataFrame({"guide": np.resize(labels, 60)}, index=made.cells)
    counts = np.column_stack([made.counts[:, ::-1], np.ones(60, np.int16)]).astype(np.float32)
    var = pd.DataFrame(index=[*made.genes[::-1], "more"])
    return ad.AnnData(np.log1p(counts), obs, var, layers={"counts": counts})


def known(name: str = "sams_vae_corr", trained: tuple[str, ...] = ("a", "b"), **facts) -> Fitted:
    """A model with random weights, as if trained on some perturbations."""
    net = model(name, perturbations=len(trained)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.3)
    facts = {
        "run": name, "model": name, "encoding": "sum", "control": "none", "controls": ["none"], "separator": "+",
        "library": 900.0, "training_cells": dict.fromkeys(trained, 30), **facts,
    }  # fmt: skip
    checkpoint = Checkpoint(net, tuple(f"gene{g}" for g in range(9)), trained, facts)
    return Fitted(checkpoint)


def weights(fitted: Fitted, *perturbations: int) -> list[torch.Tensor]:
    return list(select(fitted.checkpoint.model, perturbations).state_dict().values())


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [name for name in ROWS if row(name).model.get("effect") != "none"])
def test_a_model_gets_new_perturbations_and_keeps_its_own(name, tmp_path, caplog):
    """Effects and samples work for the new names, also after saving and loading; those of trained ones stay."""
    before = known(name)
    options = {} if row(name).model.get("effect") == "prior_mean" else FAST
    found = before.adapt(adata("x", "none", "w"), **HOW, **options)
    assert before.perturbations == ("a", "b") and found.perturbations == ("a", "b", "w", "x")
    assert equal(weights(found, 0, 1), weights(before, 0, 1))
    found.save(tmp_path / "model.pt")
    again = load(tmp_path / "model.pt")
    assert again.checkpoint.facts == found.checkpoint.facts and equal(weights(again, 2, 3), weights(found, 2, 3))
    assert again.checkpoint.facts["training_cells"] == {"a": 30, "b": 30, "w": 20, "x": 20}
    assert again.checkpoint.facts["added"] == ["w", "x"]
    trained = ["a", "b"]
    pd.testing.assert_frame_equal(again.effects(trained, draws=4), before.effects(trained, draws=4))
    assert np.abs(again.effects(["x"], draws=4)["effect"]).max() > 0 and again.sample("w", n=3).shape == (3, 9)
    for table in again.checkpoint.tables().values():
        assert torch.isfinite(table).all() and len(table) == 4
    assert not caplog.text


def test_combinations_of_new_and_trained_perturbations():
    """They are used, and can be predicted; effects of the trained ones are not touched."""
    before = known("sams_vae_corr_z")
    found = before.adapt(adata("x+a", "none", "x", "y + none"), **HOW, **FAST)
    assert found.perturbations == ("a", "b", "x", "y") and equal(weights(found, 0, 1), weights(before, 0, 1))
    assert found.checkpoint.facts["training_cells"]["x"] == 30
    assert set(found.effects(["a+x", ["x", "y"], ["b", "y"]], draws=2)["condition"]) == {"a+x", "x+y", "b+y"}
    unique = known("svae_plus", ("a", "a+b", "b"), encoding="unique").adapt(adata("x+a", "x"), **HOW)
    assert unique.perturbations == ("a", "a+b", "b", "a+x", "x")
    assert set(unique.effects(["x+a"], draws=2)["condition"]) == {"x+a"}


def test_only_the_named_perturbations_are_added():
    before = known("cpa_vae_mf")
    cells = adata("x", "a", "y", "x+y", "none", "x+a")
    found = before.adapt(cells, new=["x"], **HOW, **FAST)
    assert found.perturbations == ("a", "b", "x")
    assert found.checkpoint.facts["training_cells"]["x"] == 20  # not those that also received y
    both = found.adapt(cells[cells.obs["guide"] != "a"], new=["y"], **HOW, **FAST)
    assert both.perturbations == ("a", "b", "x", "y") and equal(weights(both, 0, 1, 2), weights(found, 0, 1, 2))
    again = before.adapt(cells, new="x", **HOW, **FAST)
    assert equal(weights(again, 0, 1, 2), weights(found, 0, 1, 2))


def test_an_added_perturbation_can_be_fitted_again_and_an_untrained_one_keeps_its_place():
    before = known("cpa_vae_mf", ("a", "b", "c"), training_cells={"a": 30, "b": 0, "c": 30})
    found = before.adapt(adata("b", "x"), **HOW, **FAST)
    assert found.perturbations == ("a", "b", "c", "x") and not found.checkpoint.untrained
    assert equal(weights(found, 0, 2), weights(before, 0, 2)) and not equal(weights(found, 1), weights(before, 1))
    more = found.adapt(adata("x"), **HOW, **FAST)
    assert equal(weights(more, 0, 1, 2), weights(found, 0, 1, 2)) and not equal(weights(more, 3), weights(found, 3))
    assert more.checkpoint.facts["added"] == ["b", "x"] and more.checkpoint.facts["training_cells"]["x"] == 60


def test_the_counts_of_the_genes_of_the_model_are_used_in_its_order():
    before, cells = known("svae_plus"), adata("x")
    found = before.adapt(cells, **HOW)
    x = torch.tensor(screen(n=60).counts).float()
    net = before.checkpoint.model
    with torch.no_grad():
        encoder = net.latents[-1]
        inputs = (torch.log1p(x) - net.input_mean) / net.input_sd
        mean = encoder.head(encoder.network(inputs)).mean.mean(0)
    torch.testing.assert_close(found.checkpoint.model.latents[2].loc[2].detach(), mean, rtol=1e-4, atol=1e-6)
    other = before.adapt(cells[:, ::-1], how="closed_form", **HOW)
    assert equal(weights(other, 2), weights(found, 2))


def test_the_seed_decides_the_noise():
    before, cells = known("sams_vae_mf"), adata("x")
    first, again, other = (before.adapt(cells, seed=seed, **HOW, **FAST) for seed in (0, 0, 1))
    assert equal(weights(first, 2), weights(again, 2)) and not equal(weights(first, 2), weights(other, 2))


def change(cells: ad.AnnData, what: str) -> ad.AnnData:
    if what == "gene":
        return cells[:, [name != "gene3" for name in cells.var_names]].copy()
    cells.layers["counts"][4, 2] += 0.5
    return cells


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        ("x", {"new": ["a"]}, "new: the model was trained on 'a', and adapting changes no trained perturbation"),
        ("xa", {}, "new: cells with 'a' have no perturbation that is new to the model. Remove these cells, or"),
        ("x", {"new": ["xx"]}, "new: no cell received 'xx'. Did you mean 'x'"),
        ("x", {"new": []}, "new: the list is empty"),
        ("n", {}, "new: no cell received a perturbation"),
        ("x", {"perturbation": "guides"}, "no column 'guides'. Did you mean 'guide'"),
        ("x", {"layer": None}, "must hold counts"),
        ("x", {"how": "sparse"}, r"adapt: 'sparse' is not possible with effect: 'additive'.*Allowed: 'gradient'"),
        ("x", {"how": "gradiant"}, "adapt: 'gradiant' is not known. Did you mean 'gradient'"),
        ("x", {"stepz": 3}, "'stepz' is not an option of adapt: 'gradient'. Did you mean 'steps'"),
        ("x", {"steps": 2.5}, "steps: 2.5 is not allowed; it must be a whole number"),
        ("x", {"rate": 0}, "rate: 0 is not allowed; it must be a number above 0"),
    ],
)
def test_an_error_is_one_sentence(labels, changes, said):
    names = {"x": "x", "a": "a", "n": "none"}
    with pytest.raises((ConfigError, DataError), match=said) as error:
        known().adapt(adata(*(names[letter] for letter in labels)), **{**HOW, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("what", "said"),
    [("gene", "has no gene 'gene3', which the option genes requests"), ("count", "must hold counts .*gene 'gene6'")],
)
def test_other_genes_and_values_that_are_no_counts(what, said):
    with pytest.raises(DataError, match=said):
        known().adapt(change(adata("x"), what), **HOW)


def test_a_model_without_effects_has_nothing_to_add_to():
    with pytest.raises(ConfigError, match="the model 'vae' has no effects of perturbations"):
        known("vae").adapt(adata("x"), **HOW)


def test_a_perturbation_that_was_only_combined_with_an_untrained_one():
    before = known("cpa_vae_mf", training_cells={"a": 30, "b": 0})
    with pytest.raises(DataError, match="every cell of 'x' also received a perturbation without training cells"):
        before.adapt(adata("x+b", "none"), new=["x"], **HOW)


def test_facts_of_an_older_file():
    before = known("sams_vae_mf")
    facts = {"run": "old", "encoding": "sum"}
    old = Fitted(replace(before.checkpoint, facts=facts))
    found = old.adapt(adata("x"), **HOW, **FAST)
    assert found.perturbations == ("a", "b", "x") and found.checkpoint.facts == {**facts, "added": ["x"]}
