"""Properties that any implementation must have: bounds on a known evidence, unbiased batches, gradients, precision."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from small_model import dense_batch, model, screen

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS
from samsvae.data.cells import cells_of, encode
from samsvae.models.model import Model
from samsvae.models.noise import Streams, given
from samsvae.training.objective import objective

FLOOR = 1e-4  # added to every variance of the model
SINGLE = [name for name in ROWS if ROWS[name].model.get("effect") == "prior_mean"]


def cells(name: str):
    made = screen(pairs=name not in SINGLE)
    return cells_of(made, np.arange(len(made.cells)), encode(made, "sum"))


def noise_for(net: Model, n: int, particles: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Noise for every latent of n cells, in float64."""
    made, streams = {}, Streams(seed)

    def recorded(name, kind, shape):
        made[name] = streams(name, kind, shape).double()
        return made[name].float()

    net.draw(cells(net_row(net)).batch(slice(0, n)), recorded, particles)
    return made


def net_row(net: Model) -> str:
    return "svae_plus" if net.config.effect == "prior_mean" else "sams_vae_corr"


# ---- an evidence in closed form ------------------------------------------------------------------------------------


class Linear:
    """x = W (z + sum_t d_t E_t) + c + noise, z and E standard normal: CPA-VAE with a linear decoder, two latents.

    Biases of 50 keep every leaky ReLU in its linear part. The columns of W are orthogonal under the noise, so that the
    posteriors of E and of z given E factorise over the latents, like the guide. ``shift`` and ``widen`` move the guide
    away from the posterior.
    """

    def __init__(self, dosage: np.ndarray, *, shift: float = 0.0, widen: float = 1.0):
        rng = np.random.default_rng(2)
        n, genes = len(dosage), 4
        self.dosage, self.noise = dosage, rng.uniform(0.5, 2.0, genes)
        first, second = rng.normal(size=(2, genes))
        second -= first * (first @ (second / self.noise)) / (first @ (first / self.noise))
        self.w, self.centre = np.stack([first, second], 1), rng.normal(size=genes)
        effects = rng.normal(size=(dosage.shape[1], 2))
        z = rng.normal(size=(n, 2)) + dosage @ effects
        self.x = self.centre + z @ self.w.T + rng.normal(size=(n, genes)) * np.sqrt(self.noise)
        config = ModelConfig(
            mask="ones",
            encoder_reads="x_offset",
            likelihood="normal_fixed",
            n_latent=2,
            n_layers=1,
            width=2,
            input="none",
        )
        self.net = Model(config, genes, dosage.shape[1]).double()
        self.set_weights(shift, widen)
        self.batch = dense_batch(torch.tensor(self.x), torch.tensor(dosage))

    @torch.no_grad()
    def set_weights(self, shift: float, widen: float) -> None:
        weights = dict(self.net.named_parameters())

        def put(name: str, value) -> None:
            weights[name].copy_(torch.as_tensor(np.asarray(value, float)).reshape(weights[name].shape))

        a = np.diag(self.w.T @ (self.w / self.noise[:, None]))  # precision of x about each latent
        for name, value in (("weight", np.eye(2)), ("bias", [50.0, 50.0])):
            put(f"decoder.layers.0.{name}", value)
        put("likelihood.mean.weight", self.w)
        put("likelihood.mean.bias", self.centre - 50 * self.w.sum(1))
        put("likelihood.log_var", np.log(self.noise - FLOOR))
        # z | x, o has precision 1 + a and mean W' (x - c - W o) / noise / (1 + a)
        reads = (self.w / self.noise[:, None]).T / (1 + a)[:, None]
        put("latents.1.network.layers.0.weight", np.hstack([reads, -np.diag(a / (1 + a))]))
        put("latents.1.network.layers.0.bias", [50.0, 50.0])
        put("latents.1.head.mean.weight", np.eye(2))
        put("latents.1.head.mean.bias", -50 - reads @ self.centre + shift)
        put("latents.1.head.log_var.weight", np.zeros((2, 2)))
        put("latents.1.head.log_var.bias", np.log(widen**2 / (1 + a) - FLOOR))
        # E_t | X: every cell of t adds the precision a / (1 + a) of x with z integrated out
        alone = self.dosage * (self.dosage.sum(1, keepdims=True) == 1)
        precision = 1 + alone.sum(0)[:, None] * (a / (1 + a))
        put("latents.0.loc", alone.T @ (self.x - self.centre) @ reads.T / precision + shift)
        put("latents.0.log_scale", np.log(widen / np.sqrt(precision) - FLOOR))

    def log_evidence(self) -> float:
        """log p(X | D) of all cells together: cells with the same perturbation covary through its embedding."""
        within, between = self.w @ self.w.T + np.diag(self.noise), self.w @ self.w.T
        n = len(self.x)
        covariance = np.kron(np.eye(n), within) + np.kron(self.dosage @ self.dosage.T, between)
        return multivariate_normal(np.tile(self.centre, n), covariance).logpdf(self.x.ravel())

    def elbo(self, particles: int, seed: int) -> torch.Tensor:
        """ELBO of the complete split, one number per particle, because its cells share the draws of E."""
        with torch.no_grad():
            return self.net.elbo(self.batch, Streams64(seed), particles).sum(1)


class Streams64(Streams):
    def __call__(self, name, kind, shape):
        return torch.randn(shape, generator=self.generator(name), dtype=torch.float64)


ALONE = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], float)
PAIRS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], float)


def test_with_the_exact_posterior_every_draw_gives_the_evidence_of_the_complete_split():
    """For every draw, up to rounding: a term that is counted twice or with a wrong weight would show."""
    toy = Linear(ALONE)
    found = toy.elbo(20, seed=1)
    assert (found - toy.log_evidence()).abs().max() < 1e-8
    assert toy.net.log_terms(toy.batch, noise=noise_of(toy, 20))["embedding"].std() > 0.1  # the terms do vary


def noise_of(toy: Linear, particles: int) -> dict[str, torch.Tensor]:
    sizes = {"embedding": toy.net.n_perturbations, "z_basal": len(toy.x)}
    streams = Streams64(4)
    return {name: streams(name, "normal", (particles, size, 2)) for name, size in sizes.items()}


@pytest.mark.parametrize(("dosage", "shift", "widen"), [(ALONE, 0.15, 1.1), (PAIRS, 0.1, 1.2)])
def test_bounds_rise_with_particles_to_the_evidence(dosage, shift, widen):
    """E[ELBO] <= E[IWELBO_K] <= log p(X), increasing with K up to log p(X), all within Monte Carlo error."""
    toy = Linear(dosage, shift=shift, widen=widen)
    draws = toy.elbo(409_600, seed=3)
    evidence = toy.log_evidence()
    means, errors = [], []
    for k in (1, 4, 16, 64, 1024):
        bound = torch.logsumexp(draws.reshape(-1, k), 1) - math.log(k)
        means.append(bound.mean().item())
        errors.append(bound.std().item() / math.sqrt(len(bound)))
    assert means[0] < evidence - 0.1  # there is something to gain
    assert all(high > low for low, high in pairwise(means))
    assert all(mean < evidence + 4 * error for mean, error in zip(means, errors, strict=True))
    assert abs(means[-1] - evidence) < 4 * errors[-1] + 0.01


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_the_batches_of_an_epoch_add_up_to_the_complete_split(name):
    """With the same draws, the batches of an epoch sum to the ELBO of all cells, for any batch size."""
    net, data = model(name).eval(), cells(name)
    noise = noise_for(net, len(data), 3)
    noise = {key: value.float() for key, value in noise.items()}
    whole = sum(net.log_terms(data.batch(slice(None)), noise=noise).values()).sum(1)
    per_cell = [latent.name for latent in net.latents if latent.plate == "cell" or latent.name == "cell_mask"]
    for sizes in (1, 7, 50, 119):
        total = 0.0
        for at in torch.randperm(len(data), generator=torch.Generator().manual_seed(sizes)).split(sizes):
            part = {key: value[:, at] if key in per_cell else value for key, value in noise.items()}
            total = total + sum(net.log_terms(data.batch(at), noise=part).values()).sum(1)
        torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-2)


def test_the_mean_of_random_batches_is_that_of_the_split():
    """Random batches with separate noise: n / b times the sum of a batch estimates the sum over all cells."""
    net, data = model("sams_vae_corr"), cells("sams_vae_corr")
    with torch.no_grad():
        whole = torch.stack([net.elbo(data.batch(slice(None)), Streams(f"a{i}"), 20).mean() for i in range(60)])
        generator = torch.Generator().manual_seed(0)
        parts = []
        for i in range(1500):
            at = torch.randperm(len(data), generator=generator)[:16]
            parts.append(net.elbo(data.batch(at), Streams(f"b{i}"), 4).mean())
    parts = torch.stack(parts)
    error = math.hypot(parts.std() / math.sqrt(len(parts)), whole.std() / math.sqrt(len(whole)))
    assert abs(parts.mean() - whole.mean()) < 4 * error < 2.0


# ---- gradients and precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sams_vae_mf", "sams_vae_corr_e", "sams_vae_corr_z", "sams_vae_corr"])
def test_the_gradient_of_a_mask_is_that_of_its_relaxation(name):
    """d loss / d logits = (d loss / d M at the hard M) dM~/ds, plus the direct effect of the logits in log q(M)."""
    net, data = model(name, temperature=0.6).double(), cells(name)
    data = replace(data, library=data.library.double(), share=data.share.double())
    batch, noise = data.batch(slice(0, 30)), noise_for(net, 30, 3)
    mask = net.latents[0]
    torch.nn.init.normal_(mask.logits, generator=torch.Generator().manual_seed(1))
    sum(net.log_terms(batch, noise=noise).values()).mean().backward()
    found, mask.logits.grad = mask.logits.grad, None

    soft = torch.sigmoid((mask.logits.detach() + noise["mask"]) / 0.6)
    hard = soft.round().requires_grad_()
    rest = {key: value for key, value in noise.items() if key != "mask"}
    sum(net.log_terms(batch, noise=rest, values={"mask": hard}).values()).mean().backward()
    relaxed = (hard.grad * soft * (1 - soft) / 0.6).sum(0)
    torch.testing.assert_close(found, relaxed + mask.logits.grad)
    assert relaxed.abs().max() > 1e-3


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal", "normal_fixed"])
def test_single_precision_agrees_with_double(name, likelihood):
    """The loss agrees to 1e-5 of its size, and every gradient in its direction."""
    net, data = model(name, likelihood=likelihood), cells(name)
    net.fit_inputs(data)
    net.eval()
    noise = noise_for(net, 60, 4)
    single = -sum(net.log_terms(data.batch(slice(0, 60)), noise={k: v.float() for k, v in noise.items()}).values())
    single.mean().backward()
    gradients = {key: p.grad.double() for key, p in net.named_parameters()}
    exact = replace(data, library=data.library.double(), share=data.share.double())
    net.double().zero_grad()
    double = -sum(net.log_terms(exact.batch(slice(0, 60)), noise=noise).values())
    double.mean().backward()
    assert (single - double).abs().max() <= 1e-5 * double.abs().max()
    assert abs(single.mean() - double.mean()) <= 1e-5 * abs(double.mean())
    for key, parameter in net.named_parameters():
        assert (gradients[key] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-7, key


# ---- options of the objective --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"), [(name, {}) for name in ROWS] + [("sams_vae_bb", {"guide_mask_prob": "beta"})]
)
def test_closed_forms_equal_draws_in_expectation(name, changes):
    """Every term in closed form is the mean of its Monte Carlo form, and so is the objective."""
    net, data = model(name, mask_logit_init=0.7, **changes).eval(), cells(name)
    batch = data.batch(slice(0, 8))
    draw = net.draw(batch, Streams(3), 6000)
    with torch.no_grad():
        drawn, closed = net.terms(batch, draw), net.terms(batch, draw, analytic_kl=True)
    for key, value in drawn.items():
        gap = (value - closed[key]).expand(6000, 8)
        error = gap.std(0) / math.sqrt(6000)
        assert (gap.mean(0).abs() <= 5 * error + 1e-4).all(), key
    if any(not torch.equal(drawn[key], closed[key]) for key in drawn):
        assert sum(closed[key].var() for key in closed) < sum(value.var() for value in drawn.values())


WEIGHTS = {"weight_z": 0.3, "weight_embedding": 0.0, "weight_mask": 2.0, "weight_mask_prob": 5.0}
OF_TERM = {"z": "weight_z", "z_basal": "weight_z", "embedding": "weight_embedding", "mask": "weight_mask",
           "cell_mask": "weight_mask", "mask_prob": "weight_mask_prob"}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_weights_of_single_terms(name):
    net, data = model(name), cells(name)
    batch = data.batch(slice(0, 20))
    draw = net.draw(batch, Streams(1), 3)
    terms = net.terms(batch, draw)
    for config in ({}, *({key: value} for key, value in WEIGHTS.items()), {**WEIGHTS, "kl_weight": 0.5}):
        all_of_them = config.get("kl_weight", 1.0)
        expected = -sum(
            (value * (1.0 if key == "reconstruction" else all_of_them * config.get(OF_TERM[key], 1.0))).mean()
            for key, value in terms.items()
        )
        found = objective(net, batch, draw, TrainingConfig(**config), n_cells=120)[0]
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    half = objective(net, batch, draw, TrainingConfig(kl_weight=0.5), n_cells=120)[0]
    assert objective(net, batch, draw, TrainingConfig(), n_cells=120, warmup=0.5)[0].item() == half.item()


@pytest.mark.parametrize("name", ["sams_vae_corr", "cpa_vae_mf", "sams_vae_bb"])
def test_an_extra_share_counts_the_prior_again_for_every_weighted_cell(name):
    """A weight of 1/n_t + w in each of n_t cells gives 1 + w n_t times the term, and nothing if n_t is 0."""
    net, data = model(name), cells(name)
    n_t = 1.0 / data.share
    shared = net.draw_shared(Streams(0), 2)
    batch = data.batch(slice(None))
    draw = replace(net.draw(batch, Streams(1), 2, shared=shared), guides=shared.guides)
    for latent in net.latents[:-1]:
        prior = latent.prior(shared.values, batch)
        if prior is None:
            continue
        value = shared.values[latent.name]
        term = (prior.log_prob(value) - shared.guides[latent.name].log_prob(value)).sum(-1).expand(2, 4)
        found = net.terms(batch, draw, extra_share=0.03)[latent.name].expand(2, 120).sum(1)
        torch.testing.assert_close(found, ((1 + 0.03 * n_t) * term).sum(1), rtol=1e-4, atol=1e-3)
    none = replace(batch, plate_weight=torch.zeros_like(batch.plate_weight))
    assert not net.terms(none, draw, extra_share=0.03)["embedding"].any()
    loss = objective(net, batch, draw, TrainingConfig(extra_share=0.03), n_cells=120)[0]
    assert loss.item() == pytest.approx(-sum(net.terms(batch, draw, extra_share=0.03).values()).mean().item(), rel=1e-5)


def test_given_noise_is_a_stream():
    net, data = model("sams_vae_corr"), cells("sams_vae_corr")
    batch, noise = data.batch(slice(0, 5)), {k: v.float() for k, v in noise_for(model("sams_vae_corr"), 5, 2).items()}
    torch.testing.assert_close(net.elbo(batch, given(noise), 2), sum(net.log_terms(batch, noise=noise).values()))
