"""The intercept-only negative binomial, compared with scipy's nbinom and one-dimensional optimiser."""

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from samsvae.config.vocabulary import FLOOR
from samsvae.evaluation.metrics.likelihood import THETA, fit_intercept_nb, intercept_nb_log_likelihood, nb_log_prob

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
