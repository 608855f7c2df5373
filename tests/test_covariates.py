"""Covariates: from obs columns to the arrays, the model, its checkpoint and its predictions."""

from __future__ import annotations

import copy
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from small_model import model, screen

from samsvae.api import fit, load
from samsvae.config.zoo import ROWS
from samsvae.data.arrays import Covariates, read_screen
from samsvae.data.cells import cells_of, encode
from samsvae.errors import CheckpointError, ConfigError, DataError
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means, effect_draws, sample
from samsvae.interop.weights import to_reference
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.models.perturbations import add_perturbations
from samsvae.models.softmax_nb import SoftmaxNegativeBinomial
from samsvae.screens.custom import filter_screen, screen_of
from samsvae.screens.pack import arrays_of, write_arrays
from samsvae.training import checkpoint
from samsvae.training.checkpoint import Checkpoint, levels_in, screen_facts

HOW = {"perturbation": "guide", "control": "none", "separator": "+"}
OPTIONS = {"perturbation_column": "guide", "control": "none", "separator": "+"}
TINY = {
    "n_latent": 3, "width": 16, "embedding_width": 8, "steps": 12, "batch_size": 64, "particles": 1,
    "validation_particles": 1, "validation_every": 1,
}  # fmt: skip


def adata(n: int = 150, seed: int = 0) -> ad.AnnData:
    made = screen(n=n)
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "guide": np.array(["a", "b", "c", "d", "c+a", "none"])[made.condition],
            "batch": pd.Categorical(rng.integers(1, 4, n)),
            "donor": rng.choice(["x", "y"], n, p=[0.8, 0.2]),
            "constant": "same",
            "gap": np.where(np.arange(n) == 3, None, "v"),
            "id": [f"id{i}" for i in range(n)],
            "condition": rng.choice(["stim", "rest"], n),
        },
        index=made.cells,
    )
    return ad.AnnData(made.counts.astype(np.float32), obs, pd.DataFrame(index=made.genes))


def levelled(net: Model, how: str = "additive", sizes=(3, 2)) -> Model:
    """The same kind of model that reads covariates; their weights are large, so that they matter."""
    combinations = tuple((a, b) for a in range(sizes[0]) for b in range(sizes[1]))
    config = replace(net.config, covariate_effect=how)
    levels = Levels(sizes, combinations, (5, 1, 2, 1, 0, 1))
    found = Model(config, net.n_genes, net.n_perturbations, levels=levels).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the weights of levels start at 0
        if how == "additive":
            found.level_offset.normal_(0.0, 1.0, generator=generator)
        else:
            decoder = found.decoder.layers[0].weight
            decoder[:, net.config.n_latent : net.config.n_latent + sum(sizes)].normal_(0.0, 2.0, generator=generator)
        encoder = found.latents[-1].network.layers[0].weight
        encoder[:, net.n_genes : net.n_genes + sum(sizes)].normal_(0.0, 1.0, generator=generator)
    return found


def test_the_arrays_hold_the_levels_as_text_and_codes(tmp_path):
    data = adata()
    data.write_h5ad(tmp_path / "in.h5ad")
    filter_screen(tmp_path / "in.h5ad", tmp_path / "s.h5ad", **OPTIONS, covariates=["donor", "batch"], keep_obs=["id"])
    write_arrays(tmp_path / "s.h5ad", tmp_path / "a.npz")
    for found in (
        read_screen(tmp_path / "a.npz"),
        arrays_of(screen_of(data, **OPTIONS, covariates=["donor", "batch"])),
    ):
        known = found.covariates
        assert known.names == ("donor", "batch") and known.levels == (("x", "y"), ("1", "2", "3"))
        for v, name in enumerate(known.names):
            assert np.array(known.levels[v])[known.codes[:, v]].tolist() == data.obs[name].astype(str).tolist()
        combinations, stratum = known.strata()
        np.testing.assert_array_equal(combinations[stratum], known.codes)
    with np.load(tmp_path / "a.npz") as with_them:
        filter_screen(tmp_path / "in.h5ad", tmp_path / "s.h5ad", **OPTIONS)
        write_arrays(tmp_path / "s.h5ad", tmp_path / "b.npz")
        with np.load(tmp_path / "b.npz") as without:
            extra = {"covariates", "covariate_names", "covariate_levels", "covariate_of_level"}
            assert set(with_them.files) - set(without.files) == extra
    assert read_screen(tmp_path / "b.npz").covariates is None


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["bach"], DataError, "no column 'bach'. Did you mean 'batch'"),
        (["gap"], DataError, "'gap', a covariate, has no value in 1 cells: 'cell3'"),
        (["constant"], DataError, "has the level 'same' in all cells"),
        (["id"], DataError, "has 150 levels in 150 cells"),
        (["condition"], DataError, "has a name that screens use themselves; rename the column"),
        (["guide"], ConfigError, "'guide' is the perturbation column"),
        (["batch", "batch"], ConfigError, "'batch' is listed more than once"),
    ],
)
def test_a_column_that_is_no_covariate_is_refused(columns, error, message):
    with pytest.raises(error, match=message):
        screen_of(adata(), **OPTIONS, covariates=columns)


def test_a_column_that_is_probably_a_measurement_is_named(caplog):
    data = adata()
    data.obs["age"] = np.arange(len(data)) % 60 + 0.5
    data.obs["plate"] = [f"plate{i % 60}" for i in range(len(data))]
    screen_of(data, **OPTIONS, covariates=["batch", "plate"])
    assert "holds numbers" not in caplog.text
    screen_of(data, **OPTIONS, covariates=["age"])
    assert "'age', a covariate, holds numbers, and models read each of its 60 levels as a category" in caplog.text


def test_levels_without_control_cells_are_named(caplog):
    data = adata()
    data.obs["batch"] = np.where(data.obs["guide"] == "none", "b0", data.obs["batch"].astype(str))
    screen_of(data, **OPTIONS, covariates=["batch"])
    assert "'batch', a covariate, has no control cell in '1', '2', '3'" in caplog.text


def test_levels_are_spread_as_often_as_in_the_cells():
    levels = Levels.of((3, 2), np.array([[0, 0]] * 50 + [[1, 1]] * 30 + [[2, 0]] * 20))
    assert levels.total == 5 and levels.combinations == ((0, 0), (1, 1), (2, 0)) and levels.cells == (50, 30, 20)
    codes = levels.spread(1000)[:, 0].numpy()
    for row, share in zip(levels.combinations, (0.5, 0.3, 0.2), strict=True):
        assert (codes == row).all(1).mean() == pytest.approx(share, abs=0.005)
        assert (codes[:20] == row).all(1).mean() == pytest.approx(share, abs=0.1)  # also of a few
    # one covariate fixed: the others keep their frequencies, also in combinations that never occurred
    assert levels.fixed([None, 1]) == Levels((3, 2), ((0, 1), (1, 1), (2, 1)), (50, 30, 20))
    assert levels.fixed([2, None]) == Levels((3, 2), ((2, 0), (2, 1)), (70, 30))


@pytest.mark.parametrize("how", ["additive", "interacting"])
@pytest.mark.parametrize("name", ROWS)
def test_the_networks_read_the_levels_one_hot(name, how):
    """Against a decoder whose first or last layer reads [., levels] by plain matrix products."""
    made = screen(pairs=False)
    net = levelled(model(name), how)
    rng = np.random.default_rng(0)
    known = Covariates(
        ("b", "d"), (("1", "2", "3"), ("x", "y")), np.stack([rng.integers(3, size=120), rng.integers(2, size=120)], 1)
    )
    cells = cells_of(replace(made, covariates=known), np.arange(120), encode(made, "sum"))
    batch = cells.batch(slice(0, 30))
    with torch.no_grad():
        values = net.posterior_mean(cells)
        changed = replace(cells, covariates=cells.covariates.flip(0))
        assert not torch.equal(net.posterior_mean(changed), values)
        ones = torch.zeros(30, 5)
        for i, (b, d) in enumerate(known.codes[:30]):
            ones[i, b] = ones[i, 3 + d] = 1
        z = torch.from_numpy(rng.normal(size=(1, 30, net.config.n_latent))).float()
        parts = [z[0]] if how == "additive" else [z[0], ones]
        if net.config.effect == "decoder_input":
            parts.append(torch.nn.functional.one_hot(batch.dosage.index[:, 0], 4) * batch.dosage.dose)
        whole = copy.deepcopy(net.decoder)
        whole.sizes = (sum(whole.sizes),)  # one part instead of several
        last = copy.deepcopy(net.likelihood)
        h = whole(torch.cat(parts, 1)[None])
        if how == "additive":
            last.mean.weight = torch.nn.Parameter(torch.cat([last.mean.weight, net.level_offset.T], 1))
            h = torch.cat([h, ones[None]], 2)
        expected = SoftmaxNegativeBinomial(last.mean(h), batch.library, torch.exp(last.log_concentration), last.floor)
        found = net.decode({"z": z, "z_basal": z, "embedding": torch.zeros(4, net.config.n_latent)}, batch)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    # subsets keep the levels of their cells
    torch.testing.assert_close(cells.subset(torch.arange(5, 9)).covariates, cells.covariates[5:9])
    with pytest.raises(ValueError, match="reads 2 covariates, but the batch has none"):
        net.decode(
            {"z": z, "z_basal": z, "embedding": torch.zeros(4, net.config.n_latent)}, replace(batch, covariates=None)
        )


@pytest.mark.parametrize("how", ["additive", "interacting"])
def test_no_level_has_an_effect_before_training(how):
    net = model("sams_vae_corr")
    levels = Levels((3,), ((0,), (1,), (2,)), (1, 1, 1))
    fresh = Model(replace(net.config, covariate_effect=how), 9, 4, levels=levels)
    made = replace(screen(), covariates=Covariates(("b",), (("1", "2", "3"),), np.arange(120)[:, None] % 3))
    cells = cells_of(made, np.arange(120), encode(made, "sum"))
    turned = replace(cells, covariates=(cells.covariates + 1) % 3)
    assert torch.equal(iwelbo(fresh, cells, particles=2), iwelbo(fresh, turned, particles=2))


def test_a_model_without_covariates_ignores_those_of_the_cells():
    made, net = screen(), model("sams_vae_corr").eval()
    codes = np.random.default_rng(0).integers(2, size=(120, 1))
    known = replace(made, covariates=Covariates(("b",), (("1", "2"),), codes))
    scores = [iwelbo(net, cells_of(s, np.arange(120), encode(s, "sum")), particles=3) for s in (made, known)]
    assert torch.equal(*scores)
    off = Model(replace(net.config, covariate_effect="none"), 9, 4, levels=Levels((2,), ((0,),), (1,)))
    assert off.levels is None and {k: v.shape for k, v in off.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }


@pytest.mark.parametrize("how", ["additive", "interacting"])
def test_predictions_average_over_levels_or_take_one(how):
    net = levelled(model("sams_vae_corr"), how)
    members = np.array([[0], [4]])
    share = np.array(net.levels.cells, float) / sum(net.levels.cells)
    options = {"samples": 4000, "closed_form": True}
    rows = [net.levels.fixed(row) for row in net.levels.combinations]
    each = np.stack([condition_means(net, members, levels=row, **options) for row in rows])
    together = condition_means(net, members, **options)
    np.testing.assert_allclose(together, np.tensordot(share, each, 1), atol=0.01)
    assert np.abs(each - together).max() > 0.1
    # an effect compares cells and controls of the same level
    draws = [
        effect_draws(net, members[:1], against=members[1], draws=2000, cells=2, levels=row).mean(0)[0] for row in rows
    ]
    np.testing.assert_allclose(draws, each[:, 0] - each[:, 1], atol=0.03)
    cells = sample(net, members, samples=50, levels=rows[2])
    assert torch.equal(cells, sample(net, members, samples=50, levels=rows[2]))
    assert not torch.equal(cells, sample(net, members, samples=50, levels=rows[3]))


@pytest.mark.parametrize("how", ["additive", "interacting"])
@pytest.mark.parametrize("name", ["cond_vae", "sams_vae_corr", "cpa_vae_mf", "svae_plus"])
def test_a_new_perturbation_leaves_the_weights_of_levels_alone(name, how):
    made = screen(pairs=False)
    codes = np.stack([np.arange(120) % 3, np.arange(120) % 2], 1)
    made = replace(made, covariates=Covariates(("b", "d"), (("1", "2", "3"), ("x", "y")), codes))
    net = levelled(model(name), how).eval()
    cells = cells_of(made, np.arange(120), encode(made, "sum"))
    grown = add_perturbations(net, 2).eval()
    assert grown.levels == net.levels
    bigger = replace(
        cells, index=torch.where(cells.index == 4, 6, cells.index), n_perturbations=6,
        share=torch.cat([cells.share, torch.zeros(2)]),
    )  # fmt: skip
    torch.testing.assert_close(grown.posterior_mean(bigger), net.posterior_mean(cells))


def test_a_checkpoint_restores_the_levels(tmp_path):
    made = screen(pairs=False)
    codes = np.stack([np.arange(120) % 3, np.arange(120) % 2], 1)
    made = replace(made, covariates=Covariates(("b", "d"), (("1", "2", "3"), ("x", "y")), codes))
    dosage = encode(made, "sum")
    known = screen_facts(made, dosage, cells_of(made, np.arange(120) < 90, dosage)) | {"encoding": "sum"}
    net = Model(model("cond_vae").config, 9, 4, levels=levels_in(known)).eval()
    checkpoint.save(Checkpoint(net, tuple(made.genes.tolist()), dosage.names, known), tmp_path / "m.pt")
    found = checkpoint.load(tmp_path / "m.pt")
    assert found.covariates == {"b": ["1", "2", "3"], "d": ["x", "y"]}
    assert found.model.levels == net.levels and net.levels.cells == (15,) * 6
    for name, value in net.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="no counterpart for covariates"):
        to_reference(net)
    for bad, message in (
        ({"covariates": None}, "'covariates' is None"),
        ({"covariate_cells": [[0, 1]]}, "fits no levels"),
        ({"covariate_cells": [[3, 0, 5]]}, "fits no levels"),
        ({"covariates": {"b": ["1", "2", "3"], "d": ["x", "y", "z"]}}, "size mismatch"),
    ):
        checkpoint.save(Checkpoint(net, tuple(made.genes.tolist()), dosage.names, known | bad), tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(tmp_path / "bad.pt")


def test_a_level_without_training_cells_is_named(caplog):
    made = screen(pairs=False)
    made = replace(made, covariates=Covariates(("b",), (("1", "2"),), (np.arange(120) >= 90).astype(int)[:, None]))
    dosage = encode(made, "sum")
    screen_facts(made, dosage, cells_of(made, np.arange(120) < 90, dosage))
    assert "no training cell has '2' of 'b'" in caplog.text


def test_from_a_notebook(tmp_path):
    data = adata(300)
    found = fit(data, **HOW, covariates=["batch", "donor"], progress=False, **TINY)
    found.save(tmp_path / "m.pt")
    again = load(tmp_path / "m.pt")
    assert again.covariates == {"batch": ["1", "2", "3"], "donor": ["x", "y"]}
    for each in ({}, {"covariates": {"batch": 2}}, {"covariates": {"batch": "2", "donor": "y"}}):
        pd.testing.assert_frame_equal(found.effects(["a"], draws=4, **each), again.effects(["a"], draws=4, **each))
    cells = found.sample("a", 200)
    share, sampled = (x.obs["batch"].astype(str).value_counts(normalize=True).sort_index() for x in (data, cells))
    np.testing.assert_allclose(sampled, share, atol=0.1)
    assert set(found.sample("a", 20, covariates={"donor": "y"}).obs["donor"]) == {"y"}
    for asked, message in (
        ({"batch": "9"}, "'batch' has no level '9' in the training cells"),
        ({"bach": "1"}, "reads no 'bach'. Did you mean 'batch'"),
    ):
        for predict in (found.effects, found.sample):
            with pytest.raises(DataError, match=message):
                predict("a", covariates=asked)
    without = fit(data, **HOW, progress=False, **TINY)
    with pytest.raises(DataError, match="the model reads none, so 'batch' has no effect"):
        without.effects("a", covariates={"batch": "1"})


def test_new_cells_need_the_covariates_of_the_model():
    data = adata(300)
    found = fit(data[data.obs["guide"] != "d"].copy(), **HOW, covariates=["batch"], progress=False, **TINY)
    new = data[data.obs["guide"] == "d"].copy()
    one = new[new.obs["batch"] == 2].copy()  # all of one level, which is fine
    added = found.adapt(one, perturbation="guide", steps=5, progress=False)
    assert "d" in added.perturbations and added.covariates == found.covariates
    added.effects(["d"], draws=2, covariates={"batch": 3})
    with pytest.raises(DataError, match="no column 'batch'"):
        found.adapt(ad.AnnData(new.X, new.obs.drop(columns="batch"), new.var), perturbation="guide", progress=False)
    new.obs["batch"] = "4"
    with pytest.raises(
        DataError, match=r"'batch' has the level '4', on which the model was not trained\. Allowed: 1, 2, 3"
    ):
        found.adapt(new, perturbation="guide", progress=False)


def test_functions_of_cells_read_their_levels():
    data = adata(300)
    found = fit(data, **HOW, covariates=["batch"], progress=False, **TINY)
    found.latents(data)
    other = data.copy()
    other.obs["batch"] = data.obs["batch"].astype(str).map({"1": "2", "2": "3", "3": "1"})
    found.latents(other)
    assert not np.allclose(data.obsm["X_samsvae"], other.obsm["X_samsvae"])
    assert not np.allclose(found.score(data, particles=2), found.score(other, particles=2))
    assert found.predict(data, "a", draws=2).shape == data.shape
    assert found.latent_genes(draws=4).shape == (3, data.n_vars)
    one = found.differential_expression("a", draws=8, covariates={"batch": 1})
    assert (one["effect"] != found.differential_expression("a", draws=8)["effect"]).any()
    more = found.train_more(data, steps=3, progress=False)
    assert more.covariates == found.covariates and more.checkpoint.model.levels == found.checkpoint.model.levels
    with pytest.raises(DataError, match="no column 'batch'"):
        found.score(ad.AnnData(data.X, data.obs.drop(columns="batch"), data.var))
