"""Regression on dosages against numpy's least squares and the textbook's standard errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from samsvae.errors import DataError
from samsvae.evaluation.metrics.estimates import at_reference
from samsvae.evaluation.regression import effects, regress


def cells(n=300, t=6, g=12, seed=0):
    rng = np.random.default_rng(seed)
    d = (rng.random((n, t)) < 0.3).astype(float)
    x = rng.poisson(np.exp(rng.normal(1, 1, g) + d @ rng.normal(0, 0.5, (t, g))))
    x[:, 0] += 1
    return x, d, rng


def reference(x, design):
    """Coefficients and squared standard errors, by another way than the code under test."""
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    coefficients, residuals, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    variance = residuals / (len(y) - rank)
    return coefficients, np.outer(np.diag(np.linalg.inv(design.T @ design)), variance)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("more", [False, True])
def test_numpy_and_the_textbook(kind, more, monkeypatch):
    monkeypatch.setattr("samsvae.evaluation.metrics.estimates._BLOCK", 500)  # several blocks of cells
    x, d, rng = cells()
    rows = np.flatnonzero(rng.random(len(x)) < 0.8)
    batch = rng.normal(size=(len(x), 2)) if more else None
    found = regress(kind(x), sparse.csr_matrix(d), rows, more=batch)
    design = np.column_stack([np.ones(len(x)), d, *([batch] if more else [])])[rows]
    coefficients, se2 = reference(x[rows], design)
    np.testing.assert_allclose(found.effect, coefficients[1:7], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.intercept, coefficients[0], rtol=1e-9)
    np.testing.assert_allclose(found.se2, se2[1:7], rtol=1e-8)
    np.testing.assert_array_equal(found.n, d[rows].sum(0))
    assert not found.undetermined.any()


def test_collinear_and_empty_columns_are_nan_and_do_not_disturb_the_others():
    x, d, _ = cells()
    clean = regress(x, sparse.csr_matrix(d), np.arange(len(x)))
    twin = np.column_stack([d, d[:, 1], np.zeros(len(d))])  # 6 repeats 1; no cell received 7
    found = regress(x, sparse.csr_matrix(twin), np.arange(len(x)))
    assert np.flatnonzero(found.undetermined).tolist() == [1, 6, 7]
    assert np.isnan(found.effect[found.undetermined]).all() and np.isnan(found.se2[found.undetermined]).all()
    others = [0, 2, 3, 4, 5]
    np.testing.assert_allclose(found.effect[others], clean.effect[others], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.se2[others], clean.se2[others], rtol=1e-8)


def test_what_cannot_be_fitted_is_said():
    x, _, _ = cells()
    one = np.eye(6)[np.arange(len(x)) % 6]  # every cell received one: the intercept is not determined
    with pytest.raises(DataError, match="do not determine what a cell without perturbations is like"):
        regress(x, sparse.csr_matrix(one), np.arange(len(x)))
    with pytest.raises(DataError, match="7 cells are too few for a regression on 6 perturbations"):
        many = np.array([[0] * 6, *np.eye(6)])
        regress(x[:7], sparse.csr_matrix(many), np.arange(7))


def test_intervals_cover_simulated_effects_and_centring_hardly_needs_covariances():
    """Gaussian values with known effects: z scores are standard normal, also of centred effects."""
    rng = np.random.default_rng(1)
    d = (rng.random((400, 20)) < 0.2).astype(float)
    true = rng.normal(0, 0.3, (20, 500))
    y = 1 + d @ true + rng.normal(0, 0.7, (400, 500))
    found = regress(y, sparse.csr_matrix(d), np.arange(400), method="mean")
    z = (found.effect - true) / np.sqrt(found.se2)
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.03
    delta, se2 = at_reference(effects(found), np.arange(20), "centred")
    z = (delta - (true - true.mean(0))) / np.sqrt(se2)
    assert abs(z.std() - 1) < 0.05
