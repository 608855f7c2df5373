"""The intercept-only negative binomial, compared with scipy's nbinom and one-dimensional optimiser."""

import json

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from samsvae.config.vocabulary import FLOOR
from samsvae.evaluation.metrics.likelihood import (
    THETA,
    fit_intercept_nb,
    intercept_nb_log_likelihood,
    nb_log_prob,
    own_profile,
)

RNG = np.random.default_rng(0)


def draw(n, proportion, theta, rng=RNG):
    library = rng.integers(500, 1500, n).astype(float)
    mean = library[:, None] * proportion
    return rng.negative_binomial(theta, theta / (theta + mean)), library


PROPORTION, TRUE_THETA = np.array([0.001, 0.01, 0.1]), np.array([0.3, 2.0, 20.0])


@pytest.fixture(scope="module")
def counts():
    return draw(3000, PROPORTION, TRUE_THETA)


def scipy_log_prob(x, mean, theta):
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean))


def test_log_prob_equals_scipys():
    x, mean, theta = RNG.integers(0, 500, 200), RNG.gamma(1, 50, 200), RNG.gamma(1, 5, 200) + 0.01
    np.testing.assert_allclose(nb_log_prob(x, mean, theta), scipy_log_prob(x, mean, theta), rtol=1e-9)


def test_fit_is_the_maximum_that_scipy_finds(counts):
    x, library = counts
    fit = fit_intercept_nb(x, library)
    np.testing.assert_allclose(fit.proportion, x.sum(0) / library.sum())
    for g, (p, theta) in enumerate(zip(fit.proportion, fit.theta, strict=True)):
        mean = library * p + FLOOR
        best = optimize.minimize_scalar(
            lambda r, g=g, mean=mean: -scipy_log_prob(x[:, g], mean, np.exp(r)).sum(),
            bounds=(-6, 8), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        assert np.log(theta) == pytest.approx(best.x, abs=1e-4)
    np.testing.assert_allclose(fit.theta, TRUE_THETA, rtol=0.25)


def test_theta_given_the_profile_of_each_group(counts):
    """The maximum that scipy finds. Groups without differences give nearly the same theta, others a larger one."""
    x, library = counts
    group = np.arange(3000) % 3 * 2  # codes 0, 2 and 4
    mixed = np.where((group == 4)[:, None], RNG.binomial(x, 0.25), x)
    fit, pooled = fit_intercept_nb(mixed, library, group=group), fit_intercept_nb(mixed, library)
    np.testing.assert_array_equal(fit.proportion, pooled.proportion)
    assert (fit.theta[1:] > 1.3 * pooled.theta[1:]).all()
    profiles = {code: mixed[group == code].sum(0) / library[group == code].sum() for code in (0, 2, 4)}
    mean = library[:, None] * np.stack([profiles[code] for code in group]) + FLOOR
    for g in range(3):
        best = optimize.minimize_scalar(
            lambda r, g=g: -scipy_log_prob(mixed[:, g], mean[:, g], np.exp(r)).sum(),
            bounds=(-6, 8), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        assert np.log(fit.theta[g]) == pytest.approx(best.x, abs=1e-4)
    same = fit_intercept_nb(sparse.csr_matrix(x), library, group=group).theta
    np.testing.assert_allclose(same, fit_intercept_nb(x, library).theta, rtol=0.01)


def test_own_profile_is_shrunk_by_one_cell():
    fit = fit_intercept_nb(*draw(500, PROPORTION, TRUE_THETA))
    none = own_profile(np.zeros((0, 3)), np.zeros(0), fit, mean_library=1000.0)
    np.testing.assert_allclose(none.proportion, fit.proportion)
    two = own_profile(np.array([[5, 0, 20], [1, 0, 0]]), np.array([900.0, 1100.0]), fit, mean_library=1000.0)
    np.testing.assert_allclose(two.proportion, (np.array([6, 0, 20]) / 2000 * 2 + fit.proportion) / 3)
    assert two.theta is fit.theta


def test_the_baselines_of_a_transfer_have_their_published_values(shared):
    """Pooled profile, and own profile of 10, 30 and 50 cells: means over the new perturbations."""
    folder = shared / "data" / "golden_svae"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} (golden files of the SVAE+ paper)")
    sim, expected = np.load(folder / "sim_small_1.npz"), json.loads((folder / "reference_small_1.json").read_text())
    x, y, part = sim["x"], sim["y"], sim["part"]
    library, train = x.sum(1), part == "train"
    fit = fit_intercept_nb(x[train], library[train], group=y[train])

    def score(fits) -> float:
        cells = [(y == t) & (part == "test") for t in np.flatnonzero(~sim["seen"])]
        pairs = zip(fits, cells, strict=True)
        return np.mean([intercept_nb_log_likelihood(f, x[at], library[at]).mean() for f, at in pairs])

    pooled = fit_intercept_nb(x[train], library[train])
    assert score([pooled] * 8) == pytest.approx(expected["baselines"]["train_mean"], abs=2e-3)
    for k in (10, 30, 50):
        rows = [np.flatnonzero((y == t) & (part == "adapt"))[:k] for t in np.flatnonzero(~sim["seen"])]
        own = [own_profile(x[at], library[at], fit, mean_library=library[train].mean()) for at in rows]
        assert score(own) == pytest.approx(expected["baselines"][f"own_profile_{k}"], abs=2e-3)


def test_sparse_and_dense_agree(counts):
    x, library = counts
    for form in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array):
        fit = fit_intercept_nb(form(x), library)
        np.testing.assert_array_equal(fit.theta, fit_intercept_nb(x, library).theta)
        np.testing.assert_allclose(
            intercept_nb_log_likelihood(fit, form(x).tocsr(), library), intercept_nb_log_likelihood(fit, x, library)
        )


def test_held_out_likelihood_equals_scipys(counts):
    fit = fit_intercept_nb(*counts)
    x, library = draw(2500, PROPORTION, TRUE_THETA)
    expected = scipy_log_prob(x, library[:, None] * fit.proportion + FLOOR, fit.theta).sum(1)
    np.testing.assert_allclose(intercept_nb_log_likelihood(fit, x, library), expected, rtol=1e-8)


def test_all_zero_and_underdispersed_genes_have_finite_likelihoods():
    x = np.column_stack([np.zeros(100, int), np.full(100, 5), np.arange(100) % 7])
    library = np.full(100, 20.0)
    fit = fit_intercept_nb(x, library)
    assert fit.proportion[0] == 0 and fit.theta[0] == pytest.approx(THETA[0], rel=1e-6)
    assert fit.theta[1] == pytest.approx(THETA[1], rel=1e-6)
    seen = intercept_nb_log_likelihood(fit, np.array([[3, 5, 1]]), np.array([20.0]))
    assert np.isfinite(seen).all()
    poisson = stats.poisson.logpmf(5, 5 + FLOOR)
    np.testing.assert_allclose(nb_log_prob(np.array([5.0]), np.array([5 + FLOOR]), fit.theta[1:2]), poisson, rtol=1e-4)


def test_no_counts_at_all():
    fit = fit_intercept_nb(np.zeros((4, 2), int), np.ones(4))
    np.testing.assert_allclose(fit.theta, THETA[0], rtol=1e-6)
