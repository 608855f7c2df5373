"""Every row of the papers against results of the SAMS-VAE reference for the same weights, inputs and noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Golden, our_latent

from samsvae.config.training import TrainingConfig
from samsvae.interop.weights import to_reference
from samsvae.models.noise import given
from samsvae.training.objective import objective
from samsvae.training.optimiser import Adam

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz")) or ["missing"]
TOTALS = ("elbo_per_particle_cell", "total", "iwelbo_training_total")


@pytest.fixture(params=NAMES)
def golden(request, shared) -> Golden:
    return Golden(shared / "data" / "golden" / f"{request.param}.npz")


def close(ours, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    ours = np.broadcast_to(ours, theirs.shape)
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


def drawn(golden: Golden):
    return golden.model.draw(golden.batch, given(golden.noise), int(golden.arrays["in/n_particles"]))


def test_a_round_trip_keeps_every_bit(golden):
    back = to_reference(golden.model)
    assert set(back) == set(golden.state)
    for name, theirs in golden.state.items():
        assert back[name].dtype == theirs.dtype and torch.equal(back[name], theirs), name


def test_draws_equal_those_of_the_reference(golden):
    draw = drawn(golden)
    for key, theirs in golden.arrays.items():
        if key.startswith("sample/") and not key.endswith("mask_soft"):
            close(draw.values[our_latent(key.removeprefix("sample/"))], theirs)
    for name, theirs in (("mask", "sample/mask_soft"), ("embedding", "q/E_loc"), ("embedding", "q/E_scale")):
        if theirs in golden.arrays:
            guide = draw.guides[name]
            ours = guide.relaxed(golden.noise["mask"]) if name == "mask" else getattr(guide, theirs.rpartition("_")[2])
            close(ours, golden.arrays[theirs])


@pytest.mark.parametrize("given_what", ["noise", "values"])
def test_terms_and_bounds(golden, given_what):
    """With the noise of the reference, and with the values that the reference drew from it."""
    arrays, batch = golden.arrays, golden.batch
    values = {
        our_latent(key.removeprefix("sample/")): golden.tensor(key)
        for key in arrays
        if key.startswith("sample/") and not key.endswith("mask_soft")
    }
    terms = golden.model.log_terms(batch, **{given_what: {"noise": golden.noise, "values": values}[given_what]})
    theirs = {our_latent(key[5:]): value for key, value in arrays.items() if key.startswith("loss/")}
    total, training, per_cell = (theirs.pop(name) for name in ("total", "iwelbo_training_total", TOTALS[0]))
    assert set(theirs) <= set(terms)
    for name, value in terms.items():
        close(value, theirs.get(name, np.zeros(value.shape)))
    elbo = sum(terms.values())
    close(elbo, per_cell)
    close(-elbo.mean(), total)
    close(-(torch.logsumexp(elbo, 0) - math.log(len(elbo))).mean(), training)
    weights = terms["reconstruction"] + terms[golden.model.names[-1]]
    close(weights, arrays["out/predictive_iwelbo_terms"])
    close(torch.logsumexp(weights, 0) - math.log(len(elbo)), arrays["out/predictive_iwelbo"])


def test_likelihood_parameters(golden):
    likelihood = golden.model.decode(drawn(golden).values, golden.batch)
    close(likelihood.log_prob(golden.batch.x), golden.arrays["p/log_prob_X"])
    for name, key in (
        ("mean", "p/nb_mu_plus_eps"),
        ("concentration", "p/nb_concentration"),
        ("loc", "p/normal_loc"),
        ("scale", "p/normal_scale"),
        ("rate", "p/poisson_rate"),
    ):
        if key in golden.arrays:
            close(getattr(likelihood, name), golden.arrays[key])


def test_gradients_and_one_adam_step(golden):
    model, config = golden.model, TrainingConfig()
    optimiser = Adam(model, config)
    for name, key in (("iwelbo", "loss/iwelbo_training_total"), ("elbo", "loss/total")):
        loss = objective(
            model, golden.batch, drawn(golden), TrainingConfig(objective=name), n_cells=len(golden.batch.x)
        )[0]
        close(loss, golden.arrays[key])
    loss.backward()
    theirs = {kind: {k.removeprefix(kind): v for k, v in golden.arrays.items() if k.startswith(kind)} for kind in
              ("grad/", "adam1/")}  # fmt: skip
    ours = as_reference(model, {name: p.grad for name, p in model.named_parameters()})
    assert len(theirs["grad/"]) == len(list(model.parameters()))
    for name, value in theirs["grad/"].items():
        assert np.abs(ours[name].numpy() - value).max() <= 1e-4 * np.abs(value).max() + 1e-12, name
    optimiser.step()
    ours = to_reference(model)
    assert set(theirs["adam1/"]) >= set(theirs["grad/"])
    for name, value in theirs["adam1/"].items():
        assert np.abs(ours[name].numpy() - value).max() <= 1e-6, name


def as_reference(model, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename tensors from our parameter names to those of the reference; its other state stays unchanged."""
    twin = type(model)(model.config, model.n_genes, model.n_perturbations)
    twin.load_state_dict(tensors, strict=False)
    return to_reference(twin)
