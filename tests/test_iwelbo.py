"""Importance-weighted bounds, compared with models whose log p(x) is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from small_model import model, screen

from samsvae.config.model import ModelConfig
from samsvae.data.arrays import Screen
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.evaluation import iwelbo as scoring
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.models.model import Model
from samsvae.models.noise import Streams

FLOOR = 1e-4  # of every variance of the model


class LinearGaussian:
    """x = W (z + e_t) + c + noise with one latent z ~ N(0, 1): the linear corner of the family.

    The networks have biases so large that leaky ReLUs pass everything on. Whether z_basal is shifted (``additive``)
    or the prior mean moves (``prior_mean``), log p(x) is that of N(W e_t + c, W W' + diag(v)).
    """

    def __init__(self, effect: str, n: int = 40, genes: int = 5):
        rng = np.random.default_rng(0)
        self.slope, self.centre = rng.normal(0, 1, genes), rng.normal(0, 2, genes)
        self.variance, self.effects = rng.uniform(0.5, 2, genes), np.array([1.5, -2.0, 0.3])
        codes = np.resize([0, 1, 2, 3], n)  # 3: the control
        self.shift = np.append(self.effects, 0.0)[codes]
        z = rng.normal(size=n) + self.shift
        x = self.centre + np.outer(z, self.slope) + rng.normal(size=(n, genes)) * np.sqrt(self.variance)
        self.screen = Screen(
            counts=x.astype(np.float32),
            library=np.ones(n, np.float32),
            cells=np.array([f"cell{i}" for i in range(n)]),
            genes=np.array([f"gene{g}" for g in range(genes)]),
            condition=codes,
            conditions=np.array(["a", "b", "c", "control"]),
            members=np.array([[0], [1], [2], [-1]]),
            perturbations=np.array(["a", "b", "c"]),
        )
        config = ModelConfig(
            embedding="learned", mask="ones", effect=effect, encoder_reads="x_offset", likelihood="normal_fixed",
            n_latent=1, n_layers=1, width=2, input="none",
        )  # fmt: skip
        self.net = Model(config, genes, 3)
        self.effect = effect
        self.set_weights()

    @torch.no_grad()
    def set_weights(self):
        """Decoder as above; the approximate posterior of z is exact: N(mean linear in [x, o], constant)."""
        weights = dict(self.net.named_parameters())

        def put(name: str, value) -> None:
            weights[name].copy_(torch.as_tensor(np.array(value), dtype=torch.float32).reshape(weights[name].shape))

        put("latents.0.loc", self.effects)
        put("decoder.layers.0.weight", [[1.0], [0.0]])
        put("decoder.layers.0.bias", [50.0, 0.0])
        put("likelihood.mean.weight", np.stack([self.slope, 0 * self.slope], 1))
        put("likelihood.mean.bias", self.centre - 50 * self.slope)
        put("likelihood.log_var", np.log(self.variance - FLOOR))
        precision = 1 + (self.slope**2 / self.variance).sum()
        reads_x = self.slope / self.variance / precision
        # additive: z_basal | x, o has mean reads_x (x - c - W o); prior_mean: z has that mean + o
        reads_o = -(reads_x @ self.slope) + (self.effect == "prior_mean")
        put("latents.1.network.layers.0.weight", [[*reads_x, reads_o], [0.0] * (len(reads_x) + 1)])
        put("latents.1.network.layers.0.bias", [50.0, 0.0])
        put("latents.1.head.mean.weight", [1.0, 0.0])
        put("latents.1.head.mean.bias", -50 - reads_x @ self.centre)
        put("latents.1.head.log_var.weight", [0.0, 0.0])
        put("latents.1.head.log_var.bias", math.log(1 / precision - FLOOR))

    def cells(self) -> Cells:
        return cells_of(self.screen, np.arange(len(self.screen.cells)), encode(self.screen, "sum"))

    def log_p(self) -> np.ndarray:
        covariance = np.outer(self.slope, self.slope) + np.diag(self.variance)
        mean = self.centre + np.outer(self.shift, self.slope)
        return np.array(
            [multivariate_normal(m, covariance).logpdf(x) for m, x in zip(mean, self.screen.counts, strict=True)]
        )


@pytest.mark.parametrize("effect", ["additive", "prior_mean"])
def test_under_the_exact_posterior_every_particle_gives_log_p(effect, monkeypatch):
    """For any K and any blocks of cells and particles; a misplaced or repeated cell would change the result."""
    toy = LinearGaussian(effect)
    expected = toy.log_p()
    assert np.ptp(expected) > 3
    for particles, at_once in ((1, 256), (7, 256), (7, 40), (7, 13), (7, 1)):
        found = iwelbo(toy.net, toy.cells(), particles=particles, cells_at_once=at_once).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3)
    monkeypatch.setitem(scoring.BUDGET, "cpu", 13 * 5 * 3)  # blocks of three particles; the last block has one
    found = iwelbo(toy.net, toy.cells(), particles=7, cells_at_once=13).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("effect", ["additive", "prior_mean"])
def test_under_another_posterior_the_bound_approaches_log_p(effect):
    toy = LinearGaussian(effect)
    with torch.no_grad():
        toy.net.latents[1].head.log_var.bias.add_(1.0)  # too wide
        toy.net.latents[1].head.mean.bias.add_(0.3)  # and shifted
    expected = toy.log_p().mean()
    means = [iwelbo(toy.net, toy.cells(), particles=k, seed=2).mean().item() for k in (1, 5, 5000)]
    assert means == sorted(means) and means[0] < expected - 0.3
    assert means[-1] == pytest.approx(expected, abs=0.02)


def test_a_posterior_that_ignores_x_loses_its_information():
    """If the approximate posterior equals the prior, one particle gives E[log p(x | z)], known in closed form."""
    toy = LinearGaussian("additive")
    with torch.no_grad():
        for parameter in toy.net.latents[1].parameters():
            parameter.zero_()
        toy.net.latents[1].head.log_var.bias.fill_(math.log(1 - FLOOR))
    x, mean = toy.screen.counts, toy.centre + np.outer(toy.shift, toy.slope)
    square = (x - mean) ** 2 + toy.slope**2
    expected = -0.5 * (square / toy.variance + np.log(2 * np.pi * toy.variance)).sum(1)
    draws = np.stack([iwelbo(toy.net, toy.cells(), particles=1, seed=s).numpy() for s in range(400)])
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected) < 5 * error).all()


@pytest.mark.parametrize("name", ["sams_vae_corr", "cpa_vae_mf", "svae_plus", "cond_vae"])
def test_it_is_the_log_of_the_mean_weight_of_shared_draws(name, monkeypatch):
    """Computed from single weights in float64 with the same noise; for K = 1 it is the weight itself."""
    made = screen(pairs=name != "svae_plus")
    net, cells = model(name), cells_of(made, np.arange(30), encode(made, "sum"))
    net.fit_inputs(cells)
    for particles in (1, 6):
        noise = Streams("4/iwelbo")
        shared = net.draw_shared(noise, particles)
        with torch.no_grad():
            weights = net.log_weights(cells.batch(slice(None)), noise, particles, shared).double().numpy()
        assert weights.shape == (particles, 30)
        found = iwelbo(net, cells, particles=particles, seed=4).numpy()
        np.testing.assert_allclose(found, np.log(np.exp(weights - 50).mean(0)) + 50, rtol=1e-5)


def test_seeds():
    net, made = model("sams_vae_corr"), screen()
    cells = cells_of(made, np.arange(120), encode(made, "sum"))
    first, again, other = (iwelbo(net, cells, particles=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_weights_too_small_for_a_float_do_not_become_infinite():
    """log p is below -1e4 nats, so that exp gives 0."""
    toy = LinearGaussian("additive")
    toy.screen.counts[0] += 1e3
    found = iwelbo(toy.net, toy.cells(), particles=5).numpy()
    assert found[0] < -1e4 and np.isfinite(found).all()
    np.testing.assert_allclose(found, toy.log_p(), rtol=1e-3)
