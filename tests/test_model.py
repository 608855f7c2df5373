"""Properties that every model of the family must have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import dense_batch, model, screen

from samsvae.config.model import ModelConfig
from samsvae.config.zoo import ROWS, TABLE_1, row
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError
from samsvae.evaluation import iwelbo as iwelbo_module
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.models import model as model_module
from samsvae.models.noise import Streams, given

SHARED = ("mask_prob", "mask", "embedding")
SINGLE = [name for name in ROWS if ROWS[name].model.get("effect") == "prior_mean"]


def cells(name: str, **kwargs):
    made = screen(pairs=name not in SINGLE, **kwargs)
    return cells_of(made, np.arange(len(made.cells)), encode(made, "sum"))


def noise_of(net, n: int, particles: int, seed: int = 0) -> dict:
    made, streams = {}, Streams(seed)

    def record(name, kind, shape):
        made[name] = streams(name, kind, shape)
        return made[name]

    net.draw(cells_for(net).batch(slice(0, n)), record, particles)
    return made


def cells_for(net):
    return cells("svae_plus" if net.config.effect == "prior_mean" else "sams_vae_corr")


@pytest.mark.parametrize("name", ROWS)
def test_every_row_gives_finite_terms_and_gradients(name):
    net, data = model(name), cells(name)
    net.fit_inputs(data)
    loss = -net.elbo(data.batch(slice(None)), Streams(0), 3).mean()
    loss.backward()
    assert torch.isfinite(loss)
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


def test_the_table_has_the_eight_rows_of_the_paper():
    assert len(TABLE_1) == 8 and len({(ROWS[r].method, ROWS[r].inference) for r in TABLE_1}) == 8


@pytest.mark.parametrize("name", ["sams_vae_corr", "cpa_vae_mf", "svae_plus", "sams_vae_bb"])
def test_plates_count_every_perturbation_once_over_an_epoch(name):
    net, data = model(name), cells(name)
    shared = net.draw_shared(Streams(1), 2)
    batch = data.batch(slice(None))
    terms = net.terms(batch, replace(net.draw(batch, Streams(2), 2, shared=shared), guides=shared.guides))
    for latent in net.latents:
        if latent.name not in terms:
            continue
        prior = latent.prior(shared.values, batch)
        value = shared.values[latent.name]
        each = prior.log_prob(value) - shared.guides[latent.name].log_prob(value)
        torch.testing.assert_close(terms[latent.name].sum(-1), each.sum((-1, -2)).expand_as(terms[latent.name][..., 0]))


@pytest.mark.parametrize("name", TABLE_1)
def test_two_half_batches_give_the_terms_of_the_complete_batch(name):
    net, data = model(name), cells(name)
    noise = noise_of(net, 120, 3)
    whole = net.elbo(data.batch(slice(None)), given(noise), 3)
    for at in (slice(0, 50), slice(50, 120)):
        cut = {k: v[:, at] if k in ("z", "z_basal") else v for k, v in noise.items()}
        torch.testing.assert_close(net.elbo(data.batch(at), given(cut), 3), whole[:, at], rtol=1e-5, atol=1e-4)


def test_sams_vae_with_a_mask_of_ones_is_cpa_vae():
    data = cells("sams_vae_corr_z")
    cpa, sams = model("cpa_vae_corr"), model("sams_vae_corr_z")
    at = {latent.name: i for i, latent in enumerate(sams.latents)}
    renamed = {f"latents.{i}.": f"latents.{at[latent.name]}." for i, latent in enumerate(cpa.latents)}
    weights = {renamed.get(k[:10], k[:10]) + k[10:]: v for k, v in cpa.state_dict().items()}
    sams.load_state_dict({**sams.state_dict(), **weights})
    with torch.no_grad():
        sams.latents[0].logits.fill_(200.0)  # P(mask = 1) is 1 to the last bit
    noise = noise_of(sams, 120, 3)
    batch = data.batch(slice(None))
    terms = sams.terms(batch, sams.draw(batch, given(noise), 3))
    theirs = cpa.terms(batch, cpa.draw(batch, given(noise), 3))
    for name in ("reconstruction", "embedding", "z_basal"):
        torch.testing.assert_close(terms[name], theirs[name])


def test_an_extra_latent_changes_no_other_noise():
    streams = [Streams(7), Streams(7)]
    streams[1]("mask", "logistic", (3, 4))
    assert torch.equal(streams[0]("z", "normal", (5,)), streams[1]("z", "normal", (5,)))
    assert not torch.equal(streams[0]("z", "normal", (5,)), streams[0]("z", "normal", (5,)))


def test_a_perturbation_without_cells_has_no_weight():
    made = screen()
    keep = made.condition != 1
    data = cells_of(made, keep, encode(made, "sum"))
    assert data.share[1] == 0 and torch.isfinite(data.share).all()
    assert torch.isfinite(model("sams_vae_corr").elbo(data.batch(slice(None)), Streams(0), 2)).all()


def test_inputs_are_standardised_and_a_constant_gene_survives():
    data, net = cells("sams_vae_mf"), model("sams_vae_mf")
    net.fit_inputs(data)
    out = net.inputs(data.batch(slice(None))).numpy()
    expected = np.log1p(data.counts.numpy().astype(float))
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out[:, 1:].std(0, ddof=1), 1, rtol=1e-5)
    assert (out[:, 0] == 0).all() and net.input_sd[0] == 1
    np.testing.assert_allclose(net.input_mean, expected.mean(0), rtol=1e-6)


def test_moments_do_not_depend_on_how_many_cells_are_read_at_once(monkeypatch):
    """A GPU reads more cells at once than a CPU."""
    found = []
    for values in (2**24, 9 * 7, 9):
        monkeypatch.setitem(model_module.MOMENTS, "cpu", values)
        net = model("sams_vae_mf")
        net.fit_inputs(cells("sams_vae_mf"))
        found.append((net.input_mean, net.input_sd))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("kind", ["log_standardise", "standardise", "log", "none"])
def test_kinds_of_input(kind):
    data, net = cells("sams_vae_mf"), model("sams_vae_mf", input=kind)
    net.fit_inputs(data)
    x = data.counts.numpy().astype(float)
    x = np.log1p(x) if kind.startswith("log") else x
    if kind.endswith("standardise"):
        sd = x.std(0, ddof=1)
        x = (x - x.mean(0)) / np.where(sd > 0, sd, 1)
    np.testing.assert_allclose(net.inputs(data.batch(slice(None))), x, rtol=1e-5, atol=1e-5)


def test_scale_of_the_embeddings_prior_and_size_of_their_network():
    net = model("sams_vae_corr", embedding_scale=2.5, embedding_layers=3, embedding_width=5)
    prior = net.latents[1].prior({}, None)
    assert (prior.loc.item(), prior.scale.item()) == (0.0, 2.5)
    assert [tuple(layer.weight.shape) for layer in net.latents[1].network.layers] == [(5, 8), (5, 5), (5, 5)]


@pytest.mark.parametrize("init", [-1.0, 0.0, 2.0])
def test_both_guides_of_a_mask_probability_start_from_the_same_mean(init):
    batch = model("sams_vae_bb").no_cells()
    for guide in ("point", "beta"):
        net = model("sams_vae_bb", guide_mask_prob=guide, mask_logit_init=init)
        mean = net.latents[0].guide({}, batch).mean
        torch.testing.assert_close(mean, torch.full((4, 4), init).sigmoid())


@pytest.mark.parametrize("guide", ["point", "beta"])
def test_masks_of_single_cells_follow_the_probabilities_of_what_the_cells_received(guide):
    net = model("sams_vae_bb", mask_per_cell=True, guide_embedding="mean_field", guide_mask_prob=guide)
    data = cells("sams_vae_bb")
    batch = data.batch(slice(None))
    for parameter in net.latents[0].parameters():
        torch.nn.init.constant_(parameter, 3.0)
        parameter.data[1] = -3.0
    values = net.draw(batch, Streams(0), 400).values
    n, several = data.index.shape
    assert values["cell_mask"].shape == (400, n, several, 4)
    means = values["cell_mask"].mean((0, 3))[data.index < 4]
    probability = values["mask_prob"].expand(400, 4, 4).mean((0, 2))
    torch.testing.assert_close(means, probability[data.index[data.index < 4]], atol=0.06, rtol=0.0)


def test_dosages_are_factors_of_the_rows():
    data = cells("sams_vae_corr")
    batch = data.batch(slice(None))
    dense = torch.zeros(len(data), 5).scatter_(1, data.index, 1.0)[:, :4]
    table = torch.randn(3, 4, 2)
    torch.testing.assert_close(batch.dosage.gather(table), dense @ table)
    torch.testing.assert_close(batch.plate_weight.sum(1), (dense / dense.sum(0)).sum(1))
    twice = dense_batch(batch.x, 2.0 * dense, n_cells=torch.tensor([0, 5, 1, 2]))
    torch.testing.assert_close(twice.dosage.gather(table), 2.0 * dense @ table)
    expected = dense @ torch.tensor([0.0, 0.2, 1.0, 0.5])
    torch.testing.assert_close(twice.plate_weight.sum(1), expected)


def test_sum_and_unique_encodings():
    made = screen()
    total, unique = encode(made, "sum"), encode(made, "unique")
    assert total.names == ("a", "b", "c", "d") and unique.names == ("a", "b", "c", "d", "a+c")
    assert total.members.tolist() == [[0, 4], [1, 4], [2, 4], [3, 4], [0, 2], [4, 4]]
    assert unique.members.tolist() == [[0], [1], [2], [3], [4], [5]]
    with pytest.raises(ConfigError, match="unique"):
        encode(made, "uniqe")


def test_rows_of_some_perturbations_equal_those_of_all():
    """Drawing only two perturbations gives the same rows as drawing all of them."""
    net = model("sams_vae_corr")
    rows = torch.tensor([3, 1])
    empty = replace(net.no_cells(), rows=rows)
    noise = {"mask": torch.randn(5, 4, 4), "embedding": torch.randn(5, 4, 4)}
    every = net.draw_shared(given(noise), 5).values
    some = net.draw_shared(given({k: v[:, rows] for k, v in noise.items()}), 5, empty).values
    for name in noise:
        torch.testing.assert_close(some[name], every[name][:, rows])


@pytest.mark.parametrize("name", ROWS)
def test_a_batch_with_only_its_own_perturbations_has_the_same_terms_and_gradients(name):
    """No cell of the batch received b or d, so their draws have no effect."""
    net, data = model(name).eval(), cells(name)
    net.fit_inputs(data)
    at = torch.tensor([i for i, row in enumerate(data.index) if not {1, 3} & set(row.tolist())][:20])
    every, own = data.batch(at), data.batch(at, own=True)
    assert own.rows.tolist() == [0, 2]
    noise = noise_of(net, len(at), 3)
    some = {k: v[:, own.rows] if v.ndim > 2 and v.shape[1] == 4 and k in SHARED else v for k, v in noise.items()}

    def found(batch, values):
        net.zero_grad()
        terms = net.terms(batch, net.draw(batch, given(values), 3))
        sum(terms.values()).mean().backward()
        return terms, {key: p.grad.clone() for key, p in net.named_parameters()}

    torch.testing.assert_close(found(own, some), found(every, noise))


@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus"])
def test_iwelbo_rises_with_particles_and_streams(name, monkeypatch):
    net, data = model(name), cells(name)
    net.fit_inputs(data)
    means = [iwelbo(net, data, particles=k, seed=1).mean().item() for k in (1, 5, 50, 500)]
    assert means == sorted(means)
    monkeypatch.setitem(iwelbo_module.BUDGET, "cpu", 120 * 9 * 7)  # seven particles at a time
    assert iwelbo(net, data, particles=500, seed=1).mean().item() == pytest.approx(means[-1], abs=0.5)


@pytest.mark.parametrize("name", ROWS)
def test_prediction_has_the_shape_of_samples_times_cells_times_genes(name):
    net, data = model(name), cells(name)
    likelihood = net.eval().predict(data.batch(slice(0, 6)), Streams(0), 11)
    assert likelihood.mean.shape == (11, 6, 9)
    torch.testing.assert_close(likelihood.mean.sum(-1), data.library[:6].expand(11, 6), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["sams_vae_corr", "sams_vae_mf", "sams_vae_bb", "cpa_vae_corr"])
def test_posterior_mean_is_the_state_plus_each_cells_own_offset(name):
    """Computed by hand: the more likely mask times the embedding, summed over the perturbations of each cell."""
    net, data = model(name), cells(name)
    for key, parameter in net.named_parameters():
        if key.endswith(("logits", "loc")):
            torch.nn.init.normal_(parameter, 0, 2.0, generator=torch.Generator().manual_seed(len(key)))
    net.fit_inputs(data)
    tables = net.perturbation_tables()
    effect = tables["embedding"] * tables.get("mask_probability", torch.ones(())).round()
    padded = torch.nn.functional.pad(effect, (0, 0, 0, 1))
    offset = padded[data.index].sum(1)
    batch = data.batch(slice(None))
    reads = (offset,) if net.config.encoder_reads == "x_offset" else ()
    latent = net.latents[-1]
    basal = latent.head(latent.network(net.inputs(batch), *reads)).mean
    torch.testing.assert_close(net.posterior_mean(data), basal + offset)


def test_joint_bound_adds_the_shared_terms():
    net, data = model("sams_vae_corr"), cells("sams_vae_corr")
    predictive = iwelbo(net, data, particles=1, seed=3)
    joint = iwelbo(net, data, particles=1, seed=3, joint=True)
    shared = net.draw_shared(Streams("3/iwelbo"), 1)
    total = sum(
        (
            net.latents[i].prior(shared.values, None).log_prob(shared.values[k])
            - shared.guides[k].log_prob(shared.values[k])
        )
        .sum()
        .item()
        for i, k in ((0, "mask"), (1, "embedding"))
    )
    assert (joint - predictive).sum().item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"mask_prior": 0.0}, "mask_prior"),
        ({"n_latent": 0}, "n_latent"),
        ({"mask": "ones", "guide_embedding": "given_mask"}, "guide_embedding"),
        ({"embedding": "none"}, "effect"),
        ({"mask_per_cell": True}, "mask_per_cell"),
        ({"mask": "beta_bernoulli", "mask_per_cell": True, "guide_embedding": "given_mask"}, "guide_embedding: mean"),
        ({"dropout": 1.0}, "dropout"),
        ({"guide_mask_prob": "beta"}, "guide_mask_prob"),
        ({"effect": "decoder_input"}, "embedding"),
    ],
)
def test_settings_without_a_model_are_rejected(changes, what):
    with pytest.raises(ConfigError, match=what):
        ModelConfig(**changes)


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'sams_vae_corr'"):
        row("samsvae_corr")
