"""New perturbations of a model: what belongs to one, models with more of them, and their fit by the objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS, TABLE_1, row
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.transfer import by_perturbation
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.models.perturbations import (
    add_perturbations,
    perturbation_parts,
    reset_perturbations,
    rows_of,
    select,
)
from samsvae.models.start import initialise
from samsvae.screens.pack import arrays_of
from samsvae.screens.simulate import sparse_shift
from samsvae.training.adapt_rows import row_settings
from samsvae.training.loop import train
from samsvae.training.transfer import adapt, default_way

#: The perturbations of the small screen are a, b, c and d.
NEW = [3, 1]
SHORT = {"steps": 4}
EFFECTS = [name for name in ROWS if row(name).model.get("effect") != "none"]


def cells(name: str, n: int = 120) -> Cells:
    """Cells with none, one or, if the model reads them, two perturbations."""
    made = screen(n, pairs=row(name).model.get("effect") != "prior_mean")
    return cells_of(made, np.arange(n), encode(made, "sum"))


def random_model(name: str, **changes) -> Model:
    """A model whose weights are random, as if trained."""
    net = model(name, **changes).eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.3)
    return net


def options(net: Model) -> dict:
    return SHORT if default_way(net.config) == "gradient" else {}


def same(ours: Model, theirs: Model) -> bool:
    both = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in both)


def part_of(net: Model, t: int) -> dict[str, torch.Tensor]:
    return {name: rows_of(net.state_dict()[name], at)[t] for name, at in perturbation_parts(net).items()}


# ---- models with more perturbations --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_cells_score_the_same_bits_in_a_model_with_more_perturbations(name):
    net, some_cells = random_model(name), cells(name)
    big = add_perturbations(net, 3)
    index = torch.where(some_cells.index == 4, 7, some_cells.index)
    share = torch.cat([some_cells.share, torch.zeros(3)])
    more = replace(some_cells, index=index, n_perturbations=7, share=share)
    with torch.no_grad():
        ours, theirs = (
            m.elbo(c.batch(slice(None), own=True), Streams(1), 5) for m, c in ((net, some_cells), (big, more))
        )
    assert torch.equal(ours, theirs)
    tables = big.perturbation_tables()
    for key, table in net.perturbation_tables().items():
        assert torch.equal(tables[key][:4], table)
    assert same(select(big, range(4)), net) and big.config == net.config and not big.training


def test_a_new_perturbation_starts_without_an_effect():
    """Weights 0, an embedding of mean 0, and the mask of an untrained model, whatever its row was."""
    for name in EFFECTS:
        net = reset_perturbations(random_model(name), NEW)
        fresh = model(name)
        for t in NEW:
            for key, value in part_of(net, t).items():
                start = part_of(fresh, t)[key] if "logits" in key else torch.zeros_like(value)
                assert torch.equal(value, start), (name, key)
    beta = reset_perturbations(random_model("svae_plus", guide_mask_prob="beta"), [0])
    assert torch.equal(part_of(beta, 0)["latents.0.log_a"], torch.zeros(4))


# ---- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EFFECTS)
def test_only_the_new_perturbations_change_and_the_same_seed_gives_the_same_bytes(name):
    net, some_cells = random_model(name), cells(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fitted = adapt(net, some_cells, new=NEW, **options(net))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert not fitted.training and all(p.requires_grad for p in fitted.parameters())
    parts = perturbation_parts(net)
    assert all(torch.equal(value, fitted.state_dict()[key]) for key, value in before.items() if key not in parts)
    assert same(select(fitted, [0, 2]), select(net, [0, 2]))
    for t in NEW:
        assert any(not torch.equal(value, part_of(net, t)[key]) for key, value in part_of(fitted, t).items())
    assert same(adapt(net, some_cells, new=NEW, **options(net)), fitted)


@pytest.mark.parametrize("name", ["cond_vae", "sams_vae_corr", "cpa_vae_mf"])
def test_permuted_names_permute_the_results(name):
    net, some_cells = random_model(name), cells(name)
    order = torch.tensor([0, 3, 2, 1, 4])
    swapped = replace(some_cells, index=order[some_cells.index])
    ours, theirs = (adapt(net, c, new=NEW, **SHORT) for c in (some_cells, swapped))
    assert same(select(ours, [1, 3]), select(theirs, [3, 1]))


def test_the_fit_does_not_depend_on_what_is_not_its_own():
    """Cells without the new perturbation, and what was in the rows that start again."""
    net, some_cells = random_model("sams_vae_corr_z"), cells("sams_vae_corr_z")
    fitted = adapt(net, some_cells, new=[3], **SHORT)
    only = some_cells.subset((some_cells.index == 3).any(1).nonzero()[:, 0])
    for other, at in ((net, only), (reset_perturbations(net, [1, 3]), some_cells), (net, some_cells)):
        assert all(
            torch.equal(v, part_of(fitted, 3)[k]) for k, v in part_of(adapt(other, at, new=[3], **SHORT), 3).items()
        )


def test_the_terms_of_a_new_perturbation_have_the_weight_of_its_cells():
    """The first step of Adam follows the gradient of minus the bound per cell, its KL shared by the cells."""
    net, some_cells = random_model("cpa_vae_mf"), cells("cpa_vae_mf")
    fitted = adapt(net, some_cells, new=[1], config=TrainingConfig(analytic_kl=True), steps=1, rate=1e-3)
    start = reset_perturbations(net, [1])
    own = some_cells.subset((some_cells.index == 1).any(1).nonzero()[:, 0])
    draw = start.draw(own.batch(slice(None), own=True), Streams(0), 5)
    terms = start.terms(own.batch(slice(None), own=True), draw, analytic_kl=True)
    kl = 0.5 * (draw.guides["embedding"].scale.square() + draw.guides["embedding"].loc.square() - 1).sum()
    kl = kl - torch.log(draw.guides["embedding"].scale).sum()
    (kl / len(own) - (terms["reconstruction"] + terms["z_basal"]).mean()).backward()
    for key in ("loc", "log_scale"):
        gradient = start.get_parameter(f"latents.0.{key}").grad[1]
        step = fitted.get_parameter(f"latents.0.{key}")[1] - start.get_parameter(f"latents.0.{key}")[1]
        torch.testing.assert_close(step, -1e-3 * gradient / (gradient.abs() + 1e-8), rtol=1e-3, atol=1e-7)


def test_it_runs_in_evaluation_mode():
    """With batch norm and dropout: a single cell will do, and the running statistics stay."""
    net, some_cells = random_model("sams_vae_corr", batch_norm=True, dropout=0.5), cells("sams_vae_corr")
    one = some_cells.subset((some_cells.index == 3).any(1).nonzero()[:1, 0])
    config = row_settings(TrainingConfig(batch_size=2, weight_decay=0.1, kl_weight=0.5), steps=3, rate=0.01, seed=1)
    assert (config.weight_decay, config.kl_weight, config.steps, config.batch_size) == (0.0, 0.5, 3, 512)
    fitted = adapt(net, one, config=config, **SHORT)
    assert same(select(fitted, [0, 1, 2]), select(net, [0, 1, 2])) and not same(fitted, net)


def test_for_a_linear_posterior_the_gradient_ends_at_the_closed_form():
    net, some_cells = random_model("ivae", dropout=0.5), cells("ivae")
    config = TrainingConfig(analytic_kl=True)
    ours = adapt(net, some_cells, "gradient", new=NEW, config=config, steps=150, rate=0.05)
    theirs = adapt(net, some_cells, new=NEW)
    torch.testing.assert_close(ours.latents[0].loc, theirs.latents[0].loc, rtol=0.0, atol=0.02)


def test_under_the_closed_form_a_new_mask_that_is_still_inferred_is_ones():
    for name, changes in (("svae_plus", {}), ("svae_plus", {"guide_mask_prob": "beta"}), ("svae", {})):
        net, some_cells = random_model(name, **changes), cells(name)
        mask = adapt(net, some_cells, new=NEW).perturbation_tables()["mask_probability"]
        assert (mask[NEW] > 1 - 1e-6).all() and (mask[[0, 2]] < 0.9999).all()
        learned = adapt(net, some_cells, "gradient", new=NEW, **SHORT).perturbation_tables()["mask_probability"]
        assert (learned[NEW] < 0.9999).all()


# ---- small trainings -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated() -> list[Cells]:
    """Cells of eight perturbations: train, val, test, and to adapt to. The last two are not in train and val."""
    made = sparse_shift(
        seed=3, n_latent=3, n_perturbations=8, n_genes=20, cells=(60, 10, 30), n_held_out=2, depth=60_000,
        effect_mean=4.0,
    )  # fmt: skip
    arrays, held_out = arrays_of(made), made.obs["held_out"].to_numpy(bool)
    part = np.where(held_out, "none", made.obs["split"].to_numpy(str))
    place = np.arange(len(part)) % 100
    where = [part == "train", part == "val", place >= 70, (part == "train") | (held_out & (place < 60))]
    return [cells_of(arrays, at, encode(arrays, "sum")) for at in where]


@pytest.mark.parametrize("name", TABLE_1)
def test_adapted_perturbations_gain_and_old_ones_come_back(name, simulated):
    """A held-out effect is learnt, and a trained perturbation that is fitted again from the start scores the same."""
    train_cells, val_cells, test_cells, adapt_cells = simulated
    sizes = {"n_latent": 3, "width": 16, "n_layers": 1, "embedding_width": 16, "mask_prior": 0.2, "start": "data"}
    config = TrainingConfig(
        steps=150, batch_size=128, learning_rate=0.02, rate_mask=0.1, rate_embedding=0.1, particles=1,
        validation_every=50, patience=None, analytic_kl=True,
    )  # fmt: skip
    net = Model(ModelConfig(**{**row(name).model, **sizes}), 20, 8)
    initialise(net, train_cells)
    train(net, train_cells, val_cells, config)
    new = [0, 6, 7]
    untouched = reset_perturbations(net, [6, 7])
    options = {"steps": 160, "rate": 0.05} if default_way(net.config) == "gradient" else {}
    fitted = adapt(net, adapt_cells, new=new, config=config, **options)
    start, before, after = (
        by_perturbation(iwelbo(m, test_cells, particles=100), test_cells)
        for m in (reset_perturbations(net, new), untouched, fitted)
    )
    assert abs(after[0] - before[0]) < 0.5 < before[0] - start[0]
    assert (after[[6, 7]] > start[[6, 7]] + 0.5).all()
    assert same(select(fitted, range(1, 6)), select(net, range(1, 6)))


# ---- errors --------------------------------------------------------------------------------------------------------


def test_what_is_refused():
    net, some_cells = model("sams_vae_corr"), cells("sams_vae_corr")
    with pytest.raises(ConfigError, match=r"adapt: 'closed_form' is not possible with effect: 'additive'.*'gradient'"):
        adapt(net, some_cells, "closed_form")
    with pytest.raises(ConfigError, match=r"adapt: 'sparse' is not possible with encoder_reads: 'x_offset'"):
        adapt(model("ivae", encoder_reads="x_offset"), cells("ivae"), "sparse")
    with pytest.raises(DataError, match="new: no cell received '1'; a new perturbation needs at least one cell"):
        adapt(net, some_cells.subset((some_cells.index == 3).any(1).nonzero()[:, 0]), new=[1, 3])
