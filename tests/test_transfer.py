"""The transfer to new perturbations: what may change, the closed form, and the variants of the last stage."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from small_model import model, screen

from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation.iwelbo import iwelbo, nelbo
from samsvae.evaluation.model_effects import condition_means, sample
from samsvae.evaluation.transfer import bounds, by_perturbation
from samsvae.evaluation.transfer_tables import over_perturbations
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.training.checkpoint import Checkpoint, load, save
from samsvae.training.loop import train
from samsvae.training.transfer import (
    WAYS,
    adapt,
    adapt_as_released,
    adapt_settings,
    embedding_of,
    harden,
    refit,
    refit_settings,
)
from samsvae.training.validation import validation_loss

ROWS = ("ivae", "ivae_drawn", "svae", "svae_plus_lopez")
NEW = [1, 3]
SHORT = {"batch_size": 32, "epochs": 4, "warmup_epochs": 2, "learning_rate": 1e-2}


def settings(name: str, **changes) -> TrainingConfig:
    return TrainingConfig(**{**row(name).training, **SHORT, **changes})


def parts(n: int = 240) -> tuple[Cells, Cells, Cells, Cells]:
    """Training and validation cells of the old perturbations a and c, and two sets of cells of the new ones b and d."""
    made = screen(n, pairs=False)
    dosage, at = encode(made, "sum"), np.arange(n)
    old = ~np.isin(made.condition, NEW)
    where = (old & (at % 4 > 0), old & (at % 4 == 0), ~old & (at % 2 == 0), ~old & (at % 2 == 1))
    return tuple(cells_of(made, part, dosage) for part in where)


def hardened(name: str, **changes) -> Model:
    """A hardened model with masks that are neither empty nor full."""
    net = model(name, **changes)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("logits"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return harden(net, NEW).eval()


def changed(before: Model, after: Model) -> set[str]:
    """Names of the tensors that differ, with the rows of mu that do."""
    ours, theirs = before.state_dict(), after.state_dict()
    found = {key for key, value in ours.items() if not torch.equal(value, theirs[key])}
    mu = next((key for key in found if key.endswith("loc")), None)
    if mu is None:
        return found
    rows = (ours[mu] != theirs[mu]).any(1).nonzero()[:, 0].tolist()
    return (found - {mu}) | {f"mu {row}" for row in rows}


# ---- stage 2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_hardened_masks_and_new_perturbations(name):
    net = model(name)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("logits"):
                parameter.copy_(torch.linspace(-1.0, 1.0, parameter.numel()).view_as(parameter))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    hard = harden(net, NEW)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    tables = hard.perturbation_tables()
    assert (tables["embedding"][NEW] == 0).all()
    assert torch.equal(tables["embedding"][[0, 2]], net.perturbation_tables()["embedding"][[0, 2]])
    if name == "ivae":
        assert hard.config == net.config
        return
    mask = tables["mask_probability"]
    assert hard.config.mask == "fixed" and (mask[NEW] == 1).all()
    assert mask[0].tolist() == [0] * 4 and mask[2].tolist() == [1] * 4  # one row is empty, which is no error
    twin = model(name)
    assert {n for n, _ in hard.named_parameters() if "logits" in n} == set()
    assert torch.equal(hard.decoder.layers[0].weight, twin.decoder.layers[0].weight)


def test_a_model_without_effects_has_nothing_to_harden():
    net = model("vae")
    assert not changed(net, harden(net, NEW)) and not changed(net, adapt(harden(net, NEW), parts()[2]))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("name", ["ivae", "svae_plus_lopez"])
def test_the_second_stage_trains_all_but_masks_and_new_perturbations(name, released):
    train_cells, val_cells, *_ = parts()
    net = model(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    hard, result = refit(net, NEW, train_cells, val_cells, settings(name), released=released)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    found = changed(harden(net, NEW), hard)
    fixed = {key for key in hard.state_dict() if key.endswith(("values", "input_mean", "input_sd"))}
    assert found == {key for key in hard.state_dict() if not key.endswith("loc")} - fixed | {"mu 0", "mu 2"}
    assert (embedding_of(hard).loc[NEW] == 0).all()
    assert len(result.history) == 4


def test_settings_of_the_stages():
    config = settings("svae", patience=45)
    ours, theirs = refit_settings(config), refit_settings(config, released=True)
    assert (ours.mask_penalty, ours.warmup_epochs, ours.keep_weights, ours.patience) == (0, 0, "best", 45)
    assert (theirs.mask_penalty, theirs.warmup_epochs, theirs.keep_weights) == (0, 1, "last")
    assert refit_settings(settings("svae_plus_lopez"), released=True).warmup_epochs == 0
    beta = settings("beta_vae")
    assert (refit_settings(beta).kl_weight, refit_settings(beta, released=True).kl_weight) == (2.0, 1.0)
    last = adapt_settings(config)
    assert (last.learning_rate, last.adam_eps, last.weight_decay, last.kl_weight) == (5e-3, 0.01, 1e-6, 1.0)
    assert (last.patience, last.epochs, last.validation_every) == (None, 4, 4)
    assert adapt_settings(replace(config, epochs=None)).epochs == 300


# ---- stage 3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ROWS)
def test_only_rows_of_new_perturbations_change(name, how):
    net, cells = hardened(name), parts()[2]
    fitted = adapt(net, cells, how)
    assert changed(net, fitted) == {"mu 1", "mu 3"} and not fitted.training
    only = adapt(net, cells_with(cells, 3), how)
    assert changed(net, only) == {"mu 3"}


def cells_with(cells: Cells, perturbation: int) -> Cells:
    at = (cells.index == perturbation).any(1)
    return replace(cells, counts=cells.counts[at], library=cells.library[at], index=cells.index[at],
                   names=cells.names[at.numpy()])  # fmt: skip


def encoded(net: Model, cells: Cells) -> np.ndarray:
    """The encoder's mean, by numpy in float64."""
    w = {key: value.double().numpy() for key, value in net.state_dict().items()}
    z = f"latents.{len(net.latents) - 1}"
    h = np.log1p(cells.counts.double().numpy())
    for j in range(net.config.n_layers):
        h = h @ w[f"{z}.network.layers.{j}.weight"].T + w[f"{z}.network.layers.{j}.bias"]
        norm = f"{z}.network.norms.{j}"
        h = (h - w[f"{norm}.running_mean"]) / np.sqrt(w[f"{norm}.running_var"] + 1e-3)
        h = np.maximum(h * w[f"{norm}.weight"] + w[f"{norm}.bias"], 0)
    return h @ w[f"{z}.head.mean.weight"].T + w[f"{z}.head.mean.bias"]


def test_the_closed_form_is_the_mean_of_the_encoder():
    net, cells = hardened("svae_plus_lopez"), parts()[2]
    m, at = encoded(net, cells), cells.index[:, 0].numpy()
    mu = embedding_of(adapt(net, cells)).loc.detach().numpy()
    few = embedding_of(adapt(net, cells, "sparse", standard_errors=1.0)).loc.detach().numpy()
    for t in NEW:
        mine = m[at == t]
        np.testing.assert_allclose(mu[t], mine.mean(0), rtol=1e-4, atol=1e-6)
        expected = np.where(np.abs(mine.mean(0)) >= stats.sem(mine), mine.mean(0), 0.0)
        np.testing.assert_allclose(few[t], expected, rtol=1e-4, atol=1e-6)


def test_sparse_keeps_nothing_of_a_single_cell():
    net, cells = hardened("ivae"), cells_with(parts()[2], 1)
    one = replace(cells, counts=cells.counts[:1], library=cells.library[:1], index=cells.index[:1])
    assert (embedding_of(adapt(net, one, "sparse")).loc[1] == 0).all()
    assert (embedding_of(adapt(net, one)).loc[1] != 0).all()


def test_the_closed_form_is_where_the_elbo_is_flat():
    net, cells = hardened("ivae"), parts()[2]
    fitted = adapt(net, cells)
    batch = cells.batch(slice(None))
    draw = fitted.draw(batch, Streams(0), 1)
    (-fitted.terms(batch, draw, analytic_kl=True)["z"].mean()).backward()
    assert embedding_of(fitted).loc.grad[NEW].abs().max() < 1e-5


def test_by_iwelbo_beats_the_closed_form_of_an_encoder_that_is_off():
    net, cells = hardened("ivae"), parts()[2]
    values = [iwelbo(adapt(net, cells, how), cells, particles=300).mean().item() for how in ("closed_form", "iwelbo")]
    assert values[1] > values[0]
    none = adapt(net, cells, "iwelbo", rounds=0)
    assert torch.equal(embedding_of(none).loc, embedding_of(adapt(net, cells)).loc)


@pytest.mark.parametrize("how", WAYS)
def test_permuted_names_permute_the_results(how):
    net, cells = hardened("svae_plus_lopez"), parts()[2]
    swapped = torch.where(cells.index == 1, 3, 1)
    ours, theirs = (embedding_of(adapt(net, c, how)).loc for c in (cells, replace(cells, index=swapped)))
    assert torch.equal(ours[[1, 3]], theirs[[3, 1]])


@pytest.mark.parametrize("name", ["ivae", "svae_plus_lopez"])
def test_as_released_only_the_encoders_statistics_follow_the_new_cells(name):
    """They do not for SVAE+."""
    net, cells, config = hardened(name), parts()[2], settings(name)
    drifted, kept = adapt_as_released(net, cells, config)
    assert changed(net, kept) == {"mu 1", "mu 3"}
    norms = f"latents.{len(net.latents) - 1}.network.norms"
    ends = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {key for key in net.state_dict() if key.startswith(norms) and key.endswith(ends)}
    assert changed(kept, drifted) == (set() if name == "svae_plus_lopez" else statistics)
    assert not drifted.training and all(p.requires_grad for p in drifted.parameters())
    again = adapt_as_released(net, cells, config)
    assert not changed(again.model, drifted) and not changed(again.statistics_kept, kept)


@pytest.mark.parametrize("name", ["ivae", "svae_plus_lopez"])
def test_as_released_mu_fits_the_posterior_under_batch_statistics(name):
    """Without dropout and with all cells in a batch, Adam ends at the mean of the encoder in training mode."""
    net, cells = hardened(name, dropout=0.0), parts()[2]
    kept = adapt_as_released(net, cells, settings(name, epochs=300, batch_size=128)).statistics_kept
    expected = by_rows(copy.deepcopy(net).train().posterior_mean(cells), cells)
    closed = by_rows(net.posterior_mean(cells), cells)
    mu = embedding_of(kept).loc.detach()[NEW].numpy()
    np.testing.assert_allclose(mu, expected, atol=0.01)
    assert np.abs(expected - closed).max() > 0.1


def by_rows(values: torch.Tensor, cells: Cells) -> np.ndarray:
    at = cells.index[:, 0].numpy()
    return np.stack([values.numpy()[at == t].mean(0) for t in NEW])


def test_adapting_trained_perturbations_changes_their_bound_little():
    train_cells, val_cells, *_ = parts(300)
    net = model("ivae")
    train(net, train_cells, val_cells, settings("ivae", epochs=15))
    hard, _ = refit(net, NEW, train_cells, val_cells, settings("ivae", epochs=15))
    again = adapt(hard, train_cells)
    assert changed(hard, again) == {"mu 0", "mu 2"}
    ours, theirs = (by_perturbation(iwelbo(m, val_cells, particles=200), val_cells) for m in (hard, again))
    assert np.nanmax(np.abs(ours - theirs)) < 0.5


def test_adapted_models_predict_new_perturbations_and_can_be_saved(tmp_path):
    net, cells = hardened("svae_plus_lopez"), parts()[2]
    fitted = adapt(net, cells)
    members = encode(screen(pairs=False), "sum").members
    before, after = (condition_means(m, members, samples=50, transform="mean", closed_form=True) for m in (net, fitted))
    assert np.isfinite(after).all() and sample(fitted, members, samples=3).shape == (3, 5, 9)
    differs = (before != after).any(1)
    assert differs.tolist() == [False, True, False, True, False]
    facts = {"run": "x", "encoding": "sum"}
    save(Checkpoint(fitted, tuple(f"g{i}" for i in range(9)), ("a", "b", "c", "d"), facts), tmp_path / "model.pt")
    found = load(tmp_path / "model.pt").model
    assert not changed(fitted, found) and found.config == fitted.config


# ---- errors --------------------------------------------------------------------------------------------------------


def test_what_is_refused():
    train_cells, val_cells, cells, _ = parts()
    net, config = model("ivae"), settings("ivae")
    with pytest.raises(ConfigError, match=r"new: '4' is not the position of a perturbation\. Allowed: 0 to 3"):
        harden(net, [1, 4])
    with pytest.raises(DataError, match="new: '0' has training cells"):
        refit(net, [0, 1], train_cells, val_cells, config)
    with pytest.raises(ConfigError, match=r"adapt: 'closed' is not known\. Did you mean 'closed_form'"):
        adapt(net, cells, "closed")
    with pytest.raises(ConfigError, match=r"mask: 'beta_bernoulli' is still inferred\. Fix it first"):
        adapt_as_released(model("svae"), cells, config)
    with pytest.raises(DataError, match="at least one cell, but there are none"):
        adapt(net, cells_with(cells, 0))
    for name in ("sams_vae_corr", "cond_vae"):
        for call in (lambda m: harden(m, NEW), lambda m: adapt_as_released(m, cells, config)):
            with pytest.raises(ConfigError, match=r"cannot be transferred\. Allowed: 'prior_mean' with 'learned'"):
                call(model(name))


# ---- what the stages rely on ---------------------------------------------------------------------------------------


def test_frozen_parameters_keep_every_bit():
    train_cells, val_cells, *_ = parts()
    net, frozen = model("sams_vae_corr"), {"decoder.layers.0.weight", "latents.0.logits"}
    before = {key: value.clone() for key, value in net.named_parameters()}
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(key not in frozen)
    train(net, train_cells, val_cells, TrainingConfig(steps=5, batch_size=32, weight_decay=0.1))
    same = {key for key, parameter in net.named_parameters() if torch.equal(parameter, before[key])}
    assert same == frozen


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_weights_that_are_kept(which):
    train_cells, val_cells, *_ = parts()
    config = TrainingConfig(steps=40, batch_size=32, learning_rate=0.3, validation_particles=2, keep_weights=which)
    net = model("sams_vae_corr")
    net.fit_inputs(train_cells)
    result = train(net, train_cells, val_cells, config)
    assert result.best_step < result.steps  # a rate so high that the loss grows again
    step, loss = (result.best_step, result.best_loss) if which == "best" else (40, result.history[-1]["val_loss"])
    again = validation_loss(net, val_cells, config, Streams(f"0/validation/{step}"), n_cells=len(train_cells))
    assert again == pytest.approx(loss, rel=1e-6)


# ---- scores --------------------------------------------------------------------------------------------------------


def test_bounds_by_perturbation():
    net, cells = hardened("ivae"), parts()[2]
    found = bounds(net, cells, particles=20, draws=3)
    at, each = cells.index[:, 0].numpy(), -iwelbo(net, cells, particles=20).numpy()
    for t in range(4):
        mine = each[at == t]
        assert found["inll"][t] == pytest.approx(mine.mean() if len(mine) else np.nan, nan_ok=True, rel=1e-6)
    mean, sd = over_perturbations(found["inll"])
    known = found["inll"][NEW]
    assert (mean, sd) == (pytest.approx(known.mean()), pytest.approx(known.std(ddof=1)))
    assert np.isnan(over_perturbations(np.array([2.0, np.nan]))[1])


def test_nelbo_averages_single_draws_with_the_kl_in_closed_form():
    """With 4,000 draws it equals the mean of the Monte-Carlo bound, and has less noise than that."""
    net, cells = hardened("ivae"), cells_with(parts()[2], 1)
    found = nelbo(net, cells, draws=4000)
    batch = cells.batch(slice(None))
    with torch.no_grad():
        free = -net.elbo(batch, Streams(1), 4000)
    error = free.std(0) / 4000**0.5
    assert ((found - free.mean(0)).abs() < 5 * error).all()
    assert nelbo(net, cells, draws=1).std() > 0 and not torch.equal(nelbo(net, cells, seed=1), nelbo(net, cells))
