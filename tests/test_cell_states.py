"""Latent states of cells, counterfactuals and effects of latents, against the same computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.config.zoo import ROWS
from samsvae.data.cells import cells_of, encode
from samsvae.evaluation import cell_states, latent_genes
from samsvae.evaluation.cell_states import counterfactual, latent_means
from samsvae.evaluation.latent_genes import latent_effects
from samsvae.evaluation.masks import latent_names
from samsvae.models.noise import Streams


class Zeros(Streams):
    """Noise of zeros: every draw is the mean, or the more likely mask."""

    def __call__(self, name: str, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape)


class Given(Streams):
    """Noise that is always the same states of cells (S, 1, L)."""

    z = torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(3))

    def __call__(self, name: str, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self.z if shape == self.z.shape else torch.zeros(shape)


def without_spread(name: str, **changes):
    """A model with random weights whose approximate posteriors have hardly any spread; half of its masks are on."""
    net = model(name, **changes).eval()
    generator = torch.Generator().manual_seed(1)
    for key, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, 0, 0.5, generator=generator)
        if key.endswith("logits"):
            parameter.data = torch.where(parameter > 0, 30.0, -30.0)
        if key.startswith("latents") and ("log_scale" in key or "log_var" in key):
            torch.nn.init.constant_(parameter, -30.0)
    return net


def some_cells(name: str):
    """Cells, and their dosages (n, T)."""
    cells = screen(n=40, pairs=ROWS[name].model.get("effect") != "prior_mean")
    dosage = encode(cells, "sum")
    found = cells_of(cells, np.arange(40), dosage)
    dense = np.zeros((40, 5), np.float32)
    np.put_along_axis(dense, found.index.numpy(), 1.0, axis=1)
    return found, dense[:, :4]


def shifts(net) -> np.ndarray:
    """Mask times embedding of every perturbation (T, L)."""
    tables = {key: value.numpy() for key, value in net.perturbation_tables().items()}
    if "embedding" not in tables:
        return np.zeros((net.n_perturbations, net.config.n_latent), np.float32)
    return np.round(tables.get("mask_probability", np.ones_like(tables["embedding"]))) * tables["embedding"]


def moves(name: str) -> bool:
    """Whether perturbations move the state of a cell, rather than act in the decoder or not at all."""
    return ROWS[name].model.get("effect", "additive") in ("additive", "prior_mean")


@pytest.mark.parametrize("name", ROWS)
def test_the_basal_state_is_the_state_without_what_a_cell_received(name):
    net, (cells, dosage) = without_spread(name), some_cells(name)
    z, basal = latent_means(net, cells, chunk=7)
    np.testing.assert_allclose(z, net.posterior_mean(cells), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z - basal, dosage @ shifts(net), rtol=1e-4, atol=1e-5)
    assert ((z - basal).abs().max() > 0.1) == moves(name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in ROWS), ("sams_vae_bb", {"mask_per_cell": True, "guide_embedding": "mean_field"})],
)
def test_a_counterfactual_exchanges_the_perturbations(name, changes, monkeypatch):
    monkeypatch.setattr(cell_states, "Streams", Zeros)
    net, (cells, _) = without_spread(name, **changes), some_cells(name)
    _, basal = latent_means(net, cells)
    with torch.no_grad():
        for received in ([1], []):
            code = torch.zeros(40, 4)
            code[:, received] = 1.0
            state = basal + torch.from_numpy(shifts(net)[received].sum(0))
            parts = (basal, code) if net.config.effect == "decoder_input" else (state,)
            expected = net.likelihood(net.decoder(*parts), cells.library).mean
            members = np.array([*received, 4, 4])[:2]
            for budget in (2**22, 9 * 3 * 7):
                monkeypatch.setitem(cell_states.BUDGET, "cpu", budget)
                found = counterfactual(net, cells, members, draws=3)
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_samples_are_counts_around_the_expectation():
    net, (cells, _) = without_spread("sams_vae_corr"), some_cells("sams_vae_corr")
    with torch.no_grad():
        net.likelihood.log_concentration.fill_(4.0)
    members = np.array([2])
    mean = counterfactual(net, cells, members, draws=2)
    samples = [counterfactual(net, cells, members, sample=True, seed=seed) for seed in range(200)]
    assert not np.mod(samples, 1).any() and (samples[0] != samples[1]).any()
    np.testing.assert_allclose(np.mean(samples, (0, 1)), mean.mean(0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["sams_vae_corr", "cond_vae", "svae_plus", "vae"])
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_the_effect_of_a_latent_by_hand(name, likelihood, monkeypatch):
    """A log ratio of mean counts; means of real values may be negative, so they are subtracted."""
    monkeypatch.setattr(latent_genes, "Streams", Given)
    net = without_spread(name, likelihood=likelihood)
    found = latent_effects(net, library=1e4, step=1.5, draws=50)
    assert found.shape == (4, 9) and latent_names(4) == ["z0", "z1", "z2", "z3"]

    @torch.no_grad()
    def mean(z: torch.Tensor) -> np.ndarray:
        second = (torch.zeros(len(z), 4),) if net.config.effect == "decoder_input" else ()
        return net.likelihood(net.decoder(z, *second), torch.full((len(z),), 1e4)).mean.numpy().mean(0)

    z = Given.z[:, 0]
    for latent in range(4):
        raised = mean(z + 1.5 * torch.eye(4)[latent])
        expected = np.log2(raised / mean(z)) if likelihood == "nb" else raised - mean(z)
        np.testing.assert_allclose(found[latent], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found).max() > 0.1
