"""The simulations follow their papers: moments, sparsity, noise, normalisation, determinism."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse, stats

from samsvae.errors import ConfigError
from samsvae.screens.pack import write_arrays
from samsvae.screens.screen import check_screen, write_screen
from samsvae.screens.simulate import _orthogonal, _weights, sams, sparse_shift

SMALL = {"n_perturbations": 12, "n_features": 20, "cells": (30, 5, 10)}
SMALL_SHIFT = {"n_perturbations": 10, "n_genes": 20, "cells": (20, 5, 5), "n_held_out": 2}


@pytest.fixture(scope="module")
def published_sams():
    return sams(cells=(50, 10, 10), seed=3)


@pytest.fixture(scope="module")
def published_shift():
    return sparse_shift(cells=(40, 5, 5), seed=3, n_controls=100)


def shift_of(screen):
    return screen.uns["truth"]["mask"] * screen.uns["truth"]["effect"]


def test_sams_is_a_real_valued_screen(published_sams):
    check_screen(published_sams, "sams", real_valued=True)
    assert published_sams.shape == (100 * 70, 100)
    assert published_sams.uns["control"] == "" and published_sams.uns["reference"] == "000"
    assert list(published_sams.uns["perturbations"].index) == [f"{i:03d}" for i in range(100)]
    split = published_sams.obs.groupby(["condition", "split"], observed=True).size().unstack()
    assert (split[["train", "val", "test"]] == (50, 10, 10)).all(axis=None)


def test_sams_effects_and_mask(published_sams):
    truth = published_sams.uns["truth"]
    assert truth["mask"].mean() == pytest.approx(2 / 15, abs=4 * np.sqrt(2 / 15 * 13 / 15 / 1500))
    assert np.abs(truth["effect"]).mean() == pytest.approx(5, abs=4 * 0.5 / np.sqrt(1500))
    assert np.abs(truth["effect"]).std() == pytest.approx(0.5, rel=0.1)
    assert (truth["effect"] > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1500))


def test_sams_latents_are_standard_normal_about_the_shift(published_sams):
    code = published_sams.obs["condition"].astype(int).to_numpy()
    basal = published_sams.obsm["z_true"] - shift_of(published_sams)[code]
    assert stats.kstest(basal.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("exponentiate", [False, True])
def test_noise_is_a_fifth_of_the_variance(exponentiate):
    """Simulate the same cells with and without noise, which gives the exact mean and the share of the noise."""
    options = {"cells": (200, 0, 0), "n_perturbations": 20, "n_features": 10, "exponentiate": exponentiate}
    x = sams(**options).X.astype(float)
    mean = sams(**options, noise_share=0.0).X.astype(float)
    np.testing.assert_allclose((x - mean).var(0) / x.var(0), 0.2, rtol=0.15)
    assert abs(np.mean((x - mean).var(0) / mean.var(0)) - 0.25) < 0.01
    if exponentiate:
        assert (mean > 0).all()
        np.testing.assert_allclose(np.log(mean).std(0), 1, rtol=1e-4)
    else:
        np.testing.assert_allclose(mean.std(0), 1, rtol=1e-4)


def test_decoder_without_hidden_layers_is_linear_without_bias():
    linear = sams(**SMALL, n_layers=0, noise_share=0.0)
    z, x = linear.obsm["z_true"].astype(float), linear.X.astype(float)
    coefficient = np.linalg.lstsq(z, x, rcond=None)[0]
    np.testing.assert_allclose(z @ coefficient, x, atol=1e-4)


@pytest.mark.parametrize("shape", [(15, 40), (40, 40), (40, 15)])
def test_orthogonal_weights(shape):
    w = _orthogonal(np.random.default_rng(0), *shape)
    assert w.shape == shape
    product = w @ w.T if shape[0] <= shape[1] else w.T @ w
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-12)


def test_sparse_and_kaiming_weights():
    rng = np.random.default_rng(0)
    w = _weights(rng, 200, 50, "sparse", 0.8)
    assert ((w == 0).sum(1) == 40).all() and set((w == 0).any(0)) == set((w != 0).any(0)) == {True}
    kaiming = _weights(rng, 200, 50, "kaiming_normal", 0.8)
    assert (kaiming != 0).all() and stats.kstest(kaiming.ravel() * np.sqrt(200), "norm").pvalue > 1e-3
    assert (
        np.isfinite(sams(**SMALL, init="sparse").X).all() and np.isfinite(sams(**SMALL, init="kaiming_normal").X).all()
    )


def test_sparse_shift_is_a_screen(published_shift):
    check_screen(published_shift, "sparse_shift")
    assert published_shift.shape == (100 * 50 + 100, 100)
    assert published_shift.uns["control"] == "control"
    np.testing.assert_array_equal(published_shift.obs["library_size"], np.asarray(published_shift.X.sum(1)).ravel())


def test_held_out_interventions(published_shift):
    obs, table = published_shift.obs, published_shift.uns["perturbations"]
    assert list(table.index[table["held_out"]]) == [f"{i:03d}" for i in range(80, 100)]
    assert set(obs["condition"][obs["held_out"]]) == set(table.index[table["held_out"]])
    assert ((obs["split"] == "none") == obs["held_out"]).all()
    controls = obs["split"][obs["condition"] == "control"].value_counts()
    assert dict(controls[controls > 0]) == {"train": 80, "val": 10, "test": 10}
    trained = obs["split"][obs["condition"] == "000"].value_counts()
    assert dict(trained[trained > 0]) == {"train": 40, "val": 5, "test": 5}


def test_duplicate_targets_collapse():
    """Expected targets: the mean over k = 1, 2, 3 of 15 (1 - (14/15)^k) = 1.91; with n_latent 1 always one."""
    mask = sparse_shift(n_perturbations=4000, n_genes=2, cells=(1, 0, 0), n_held_out=0, seed=1).uns["truth"]["mask"]
    number = mask.sum(1)
    assert set(number) == {1, 2, 3}
    assert number.mean() == pytest.approx(np.mean([15 * (1 - (14 / 15) ** k) for k in (1, 2, 3)]), abs=0.05)
    one = sparse_shift(n_perturbations=50, n_latent=1, n_genes=5, cells=(2, 0, 0), n_held_out=0)
    assert (one.uns["truth"]["mask"] == 1).all()


def test_latents_of_sparse_shift_include_unshifted_controls(published_shift):
    z = published_shift.obsm["z_true"]
    code = published_shift.obs["condition"].cat.codes.to_numpy()  # 'control' sorts after the digits
    shift = np.vstack([shift_of(published_shift), np.zeros(15)])[code]
    assert stats.kstest((z - shift).ravel(), "norm").pvalue > 1e-3


def test_published_normalisation_fixes_gene_sums(published_shift):
    sums = np.asarray(published_shift.X.sum(0)).ravel()
    assert (np.abs(sums - 1e6) < 6e3).all()  # Poisson: sd 1e3
    assert stats.kstest((sums - 1e6) / 1e3, "norm").pvalue > 1e-3
    more = sparse_shift(cells=(80, 10, 10), seed=3, n_controls=200)
    ratio = published_shift.obs["library_size"].mean() / more.obs["library_size"].mean()
    assert ratio == pytest.approx(2, rel=0.01)  # twice the cells, half the counts


def test_per_cell_normalisation_fixes_library_sizes():
    screen = sparse_shift(**SMALL_SHIFT, normalisation="per_cell", library_size=5000.0)
    library = screen.obs["library_size"].to_numpy()
    assert library.mean() == pytest.approx(5000, abs=4 * np.sqrt(5000 / len(library)))
    assert library.std() == pytest.approx(np.sqrt(5000), rel=0.2)


def test_no_cell_is_without_counts():
    screen = sparse_shift(**SMALL_SHIFT, normalisation="per_cell", library_size=0.1)
    library = screen.obs["library_size"]
    assert library.min() == 1 and (library == 1).mean() > 0.9
    assert len(np.unique(screen.X.indices)) > 5  # more than one gene gets the molecules


@pytest.mark.parametrize("make, options", [(sams, SMALL), (sparse_shift, SMALL_SHIFT)])
def test_same_seed_same_bytes_and_truth_independent_of_cells(make, options, tmp_path):
    real = make is sams
    for name in ("one", "two"):
        write_screen(make(**options, seed=5), tmp_path / f"{name}.h5ad", real_valued=real)
        write_arrays(tmp_path / f"{name}.h5ad", tmp_path / f"{name}.npz")
    assert (tmp_path / "one.h5ad").read_bytes() == (tmp_path / "two.h5ad").read_bytes()
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()

    back = ad.read_h5ad(tmp_path / "one.h5ad")
    fewer, other = make(**options | {"cells": (7, 0, 0)}, seed=5), make(**options, seed=6)
    for key in ("mask", "effect"):
        np.testing.assert_array_equal(back.uns["truth"][key], fewer.uns["truth"][key])
    assert (other.uns["truth"]["effect"] != fewer.uns["truth"]["effect"]).any()
    dense = [x.toarray() if sparse.issparse(x) else x for x in (back.X, other.X)]
    assert (dense[0] != dense[1]).any()


@pytest.mark.parametrize(
    "make, options, word",
    [
        (sams, {"init": "orthogonl"}, "orthogonal"),
        (sams, {"cells": (0, 1, 1)}, "cells"),
        (sams, {"mask_prob": 1.5}, "mask_prob"),
        (sams, {"n_latent": 0}, "n_latent"),
        (sams, {"seed": -1}, "seed"),
        (sparse_shift, {"normalisation": "per-cell"}, "per_cell"),
        (sparse_shift, {"n_held_out": 100}, "n_held_out"),
        (sparse_shift, {"library_size": 0}, "library_size"),
    ],
)
def test_wrong_parameters_are_named(make, options, word):
    with pytest.raises(ConfigError, match=word):
        make(**options)
