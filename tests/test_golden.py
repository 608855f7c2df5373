"""Every row of the papers against numbers of the SAMS-VAE reference, under its weights, inputs and noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import LATENT, Golden, our_name

from samsvae.model import given
from samsvae.settings import TrainingConfig
from samsvae.training import Adam, objective

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz")) or ["missing"]
BUFFERS = {
    "model.p_E_loc",
    "model.p_E_scale",
    "model.p_mask_probs",
    "guide.treatment_one_hot",
    "guide.gs_temperature",
}
BUFFERS |= {"model.mask_beta_concentration_1", "model.mask_beta_concentration_2"}


@pytest.fixture(params=NAMES)
def golden(request, shared) -> Golden:
    return Golden(shared / "data" / "golden" / f"{request.param}.npz")


def close(ours, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    ours = np.broadcast_to(ours, theirs.shape)
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


def test_all_weights_are_taken_over(golden):
    assert golden.unmapped <= BUFFERS
    assert not golden.missing.missing_keys and not golden.missing.unexpected_keys


def test_draws_terms_and_bounds(golden):
    arrays, model = golden.arrays, golden.model
    draw = model.draw(golden.batch, given(golden.noise), golden.particles)
    for key in arrays:
        if key.startswith("sample/") and not key.endswith("mask_soft"):
            name = key.removeprefix("sample/")
            close(draw.values[LATENT.get(name, name)], arrays[key])
    terms = model.terms(golden.batch, draw)
    for key in arrays:
        name = key.removeprefix("loss/")
        if key.startswith("loss/") and name not in (
            "elbo_per_particle_cell",
            "total",
            "iwelbo_training_total",
        ):
            close(terms.get(LATENT.get(name, name), torch.zeros(())), arrays[key])
    close(sum(terms.values()), arrays["loss/elbo_per_particle_cell"])
    n = len(golden.batch.x)
    for name, key in (("elbo", "loss/total"), ("iwelbo", "loss/iwelbo_training_total")):
        close(objective(model, golden.batch, draw, TrainingConfig(objective=name), n_cells=n)[0], arrays[key])
    weights = sum(terms[name] for name in terms if name in ("reconstruction", "z", "z_basal"))
    close(weights, arrays["out/predictive_iwelbo_terms"])
    close(torch.logsumexp(weights, 0) - math.log(golden.particles), arrays["out/predictive_iwelbo"])


def test_likelihood_parameters(golden):
    if "p/nb_mu_plus_eps" not in golden.arrays:
        pytest.skip("not a negative binomial row")
    draw = golden.model.draw(golden.batch, given(golden.noise), golden.particles)
    likelihood = golden.model.decode(draw.values, golden.batch)
    close(likelihood.mean, golden.arrays["p/nb_mu_plus_eps"])
    close(likelihood.concentration, golden.arrays["p/nb_concentration"])
    close(likelihood.log_prob(golden.batch.x), golden.arrays["p/log_prob_X"])


def test_gradients_and_one_adam_step(golden):
    model, config = golden.model, TrainingConfig()
    optimiser = Adam(model, config)
    draw = model.draw(golden.batch, given(golden.noise), golden.particles)
    objective(model, golden.batch, draw, config, n_cells=len(golden.batch.x))[0].backward()
    parameters = dict(model.named_parameters())
    named = {k: our_name(k.split("/", 1)[1], model) for k in golden.arrays if k.startswith(("grad/", "adam1/"))}
    assert {named[k] for k in named if k.startswith("grad/")} == set(parameters)
    for key in (k for k in named if k.startswith("grad/")):
        theirs, ours = golden.arrays[key], parameters[named[key]].grad
        assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max() + 1e-12, key
    optimiser.step()
    for key in (k for k in named if k.startswith("adam1/") and named[k] in parameters):
        assert np.abs(parameters[named[key]].detach().numpy() - golden.arrays[key]).max() <= 1e-6, key
