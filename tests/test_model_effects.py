"""Predicted effects: the right perturbations and means, and independent draws for each condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.config.zoo import ROWS
from samsvae.data.cells import encode
from samsvae.evaluation import model_effects
from samsvae.evaluation.model_effects import condition_means, dosage_batch, effect_draws, sample
from samsvae.models.noise import Streams


@pytest.mark.parametrize("name", ROWS)
def test_means_of_a_condition_do_not_depend_on_other_conditions(name):
    """Without posterior spread, a condition has the same mean whether it is requested alone or with others."""
    net = model(name).eval()
    generator = torch.Generator().manual_seed(1)
    for key, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, 0, 0.5, generator=generator)
        if key.endswith("logits"):
            torch.nn.init.constant_(parameter, 30.0)  # masks of ones
        if key.startswith("latents") and ("log_scale" in key or "log_var" in key):
            torch.nn.init.constant_(parameter, -10.0)
    members = encode(screen(pairs=ROWS[name].model.get("effect") != "prior_mean"), "sum").members
    together = condition_means(net, members, samples=4000, closed_form=True, seed=1)
    for c in range(len(members)):
        alone = condition_means(net, members[[c]], samples=4000, closed_form=True, seed=2)
        np.testing.assert_allclose(alone[0], together[c], atol=0.12)
    if ROWS[name].model.get("effect") != "none":
        assert np.abs(together[0] - together[-1]).max() > 0.15  # 'a' is not the control (svae, by sampling: 0.198)


class Zeros(Streams):
    """Noise of zeros, which is the same however it is drawn."""

    def __call__(self, name: str, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape)


@pytest.mark.parametrize("budget", [9 * 7, 9 * 50, 9 * 120, 9 * 10**6])
def test_means_do_not_depend_on_how_the_work_is_divided(budget, monkeypatch):
    """Samples of one condition in several parts, several conditions at a time, or all at once."""
    monkeypatch.setattr(model_effects, "Streams", Zeros)
    net, members = with_spread("sams_vae_mf", -1.0), encode(screen(), "sum").members
    expected = condition_means(net, members, samples=50, closed_form=True)
    monkeypatch.setitem(model_effects.BUDGET, "cpu", budget)
    found = condition_means(net, members, samples=50, closed_form=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.2


def test_log2_of_sampled_counts_by_hand():
    net = model("cpa_vae_mf").eval()
    members = np.array([[0, 4], [4, 4]])
    cells = sample(net, members, samples=50, library=300.0, seed="0/effects").numpy()
    assert cells.shape == (50, 2, 9) and (cells == np.round(cells)).all()
    assert cells.sum(-1).mean() == pytest.approx(300, rel=0.15)


def test_published_sampler_and_closed_form_agree_in_the_mean():
    net = model("sams_vae_corr").eval()
    members = encode(screen(), "sum").members
    sampled = condition_means(net, members, samples=3000, transform="mean")
    closed = condition_means(net, members, samples=3000, transform="mean", closed_form=True)
    np.testing.assert_allclose(sampled, closed, rtol=0.12)


@pytest.mark.parametrize(("library", "floor"), [(30.0, 1e-4), (1e4, 1e-4), (30.0, 4.0)])
def test_the_expectation_is_that_of_the_sampled_counts_at_every_depth(library, floor):
    """The logarithm of the mean would be off by 0.5 if counts are low. A floor of 4 more than doubles the depth."""
    net = model("sams_vae_corr", mean_floor=floor).eval()
    torch.nn.init.constant_(net.likelihood.log_concentration, 3.0)  # nearly equal sums in all cells
    members = encode(screen(), "sum").members
    sampled, closed = (
        condition_means(net, members, samples=40_000, library=library, closed_form=closed) for closed in (False, True)
    )
    np.testing.assert_allclose(sampled, closed, atol=0.08)
    draws = effect_draws(net, members[:1], against=members[-1], draws=400, cells=50, library=library)
    np.testing.assert_allclose(draws.mean(0)[0], closed[0] - closed[-1], atol=0.06)


def test_the_expectation_includes_the_variance_of_the_sum_over_genes():
    """With nine genes, a mean at a fixed sum would be too low by Var(S) / (2 log 2 E[S]^2)."""
    net = model("sams_vae_corr").eval()
    torch.nn.init.constant_(net.likelihood.log_concentration, 1.5)
    none = encode(screen(), "sum").members[-1:]
    sampled, closed, mean = (
        condition_means(net, none, samples=40_000, **how)[0]
        for how in ({}, {"closed_form": True}, {"closed_form": True, "transform": "mean"})
    )
    at_fixed_sum = (mean + mean**2 / np.exp(1.5)).sum() / mean.sum() ** 2 / (2 * np.log(2))
    assert at_fixed_sum > 0.015 and abs((sampled - closed).mean()) < 0.1 * at_fixed_sum


@pytest.mark.parametrize("transform", ["log2", "mean"])
def test_effects_of_poisson_counts_without_sampled_cells(transform):
    """There is no table for their log2, so it is sampled."""
    net = model("cpa_vae_corr", likelihood="poisson").eval()
    torch.nn.init.normal_(net.likelihood.mean.bias, 0, 2.0, generator=torch.Generator().manual_seed(1))
    members = encode(screen(), "sum").members
    options = {"samples": 20_000, "transform": transform}
    sampled, closed = (condition_means(net, members, **options, closed_form=closed) for closed in (False, True))
    np.testing.assert_allclose(sampled, closed, atol=0.2 if transform == "log2" else 0.05)
    draws = effect_draws(net, members[:1], against=members[-1], draws=400, cells=50, transform=transform)
    np.testing.assert_allclose(draws.mean(0)[0], closed[0] - closed[-1], atol=0.25 if transform == "log2" else 0.05)


def test_conditions_that_share_a_perturbation_have_independent_draws():
    net = model("sams_vae_corr")
    batch = dosage_batch(net, np.array([[0, 2], [0, 4], [4, 4]]), 1e4)
    assert batch.rows.tolist() == [0, 2, 0] and batch.dosage.index.tolist() == [[0, 1], [2, 0], [0, 0]]
    assert batch.dosage.dose.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert batch.received.index[:2, 0].tolist() == [0, 0] and batch.received.index[0, 1] == 2


def test_the_same_seed_gives_the_same_effects():
    net, members = model("sams_vae_corr").eval(), encode(screen(), "sum").members
    first, again, other = (condition_means(net, members, samples=20, seed=s) for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def with_spread(name: str, log_scale: float):
    """A model with embeddings far from 0, a given posterior spread, and masks of ones."""
    net = model(name).eval()
    for key, parameter in net.named_parameters():
        if key.endswith("logits"):
            torch.nn.init.constant_(parameter, 30.0)
        elif key.startswith("latents.") and key.endswith("log_scale"):
            torch.nn.init.constant_(parameter, log_scale)
        elif key.endswith("loc"):
            torch.nn.init.normal_(parameter, 0, 1.0, generator=torch.Generator().manual_seed(2))
    return net


@pytest.mark.parametrize("name", ["sams_vae_mf", "cpa_vae_mf", "svae_plus", "cond_vae"])
def test_draws_of_effects_have_the_mean_of_the_closed_form(name):
    net = with_spread(name, -1.0)
    pairs = name != "svae_plus"
    members = encode(screen(pairs=pairs), "sum").members
    draws = effect_draws(net, members[:-1], against=members[-1], draws=300, cells=10)
    means = condition_means(net, members, samples=20_000, closed_form=True)
    error = draws.std(0) / np.sqrt(300)
    assert draws.shape == (300, len(members) - 1, 9)
    assert (np.abs(draws.mean(0) - (means[:-1] - means[-1])) < 5 * error + 0.03).all()


def test_the_spread_of_draws_comes_from_the_perturbations_latents():
    """Without posterior spread there is hardly any, because a condition and control share the noise of their cells."""
    members = encode(screen(), "sum").members
    spread = [
        effect_draws(with_spread("cpa_vae_mf", s), members[:-1], against=members[-1], draws=40, cells=500).std(0).mean()
        for s in (-9.0, -2.0, 0.0)
    ]
    assert spread[0] < 0.3 * spread[1] < 0.3 * spread[2]
    net = with_spread("cpa_vae_mf", 0.0)
    draws, largest = (
        effect_draws(net, members, against=members[-1], draws=7, **more)
        for more in ({}, {"summary": lambda draws: draws.max(0, keepdims=True)})
    )
    assert (draws.max(0, keepdims=True) == largest).all()
    control = effect_draws(with_spread("cpa_vae_mf", 0.0), members[-1:], against=members[-1], draws=5, cells=3)
    assert (control == 0).all()
