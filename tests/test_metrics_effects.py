"""Average effects, their scores and baselines, compared with numbers by hand, loops and scikit-learn."""

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import r2_score

from samsvae.errors import DataError
from samsvae.evaluation.metrics import effects as module
from samsvae.evaluation.metrics.baselines import additive, mean_of_perturbations
from samsvae.evaluation.metrics.effects import (
    ate_scores,
    average_effect,
    condition_means,
    condition_scores,
    interactions,
    normalised_log2,
    pearson,
    r2,
)

RNG = np.random.default_rng(0)


def test_normalised_log2_by_hand():
    x = np.array([[1, 3], [0, 5], [0, 0]])
    expected = [[np.log2(2501), np.log2(7501)], [0, np.log2(10001)], [0, 0]]
    np.testing.assert_allclose(normalised_log2(x), expected)
    got = normalised_log2(sparse.csr_matrix(x.astype(np.int32)))
    np.testing.assert_allclose(got.toarray(), expected)
    assert got.nnz == 3 and got.dtype == float


def test_small_integers_do_not_overflow():
    x = np.full((1, 300), 255, np.uint8)
    np.testing.assert_allclose(normalised_log2(x), np.log2(1 + 1e4 / 300))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_average_effect_against_loops(form, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    x = RNG.poisson(2, (60, 5)).astype(np.uint8)
    condition, cells = RNG.integers(0, 4, 60), RNG.random(60) < 0.7
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True, dtype=float))
    for chosen in (None, cells):
        keep = np.ones(60, bool) if chosen is None else chosen
        expected = [y[keep & (condition == c)].mean(0) - y[keep & (condition == 2)].mean(0) for c in range(4)]
        np.testing.assert_allclose(average_effect(form(x), condition, 2, cells=chosen), expected, atol=1e-12)


def test_controls_may_come_from_other_cells():
    x = np.array([[0.0], [1.0], [5.0], [7.0], [100.0]])
    condition, cells = np.array([0, 0, 1, 1, 1]), np.array([False, False, True, True, False])
    with pytest.raises(DataError, match="control"):
        average_effect(x, condition, 0, cells=cells, method="mean")
    got = average_effect(x, condition, 0, cells=cells, control_cells=~cells, method="mean")
    assert np.isnan(got[0]).all() and got[1, 0] == 6 - 0.5
    split = average_effect(x, condition, 0, control_cells=np.arange(5) == 1, method="mean", n_conditions=3)
    assert split[1, 0] == pytest.approx(112 / 3 - 1) and np.isnan(split[2]).all()


def test_unknown_method():
    with pytest.raises(ValueError, match="log2, mean"):
        condition_means(np.ones((2, 2)), np.zeros(2, int), 1, method="median")


def test_scores_against_scipy_and_sklearn():
    data = RNG.standard_normal((6, 40))
    model = 0.5 * data + RNG.standard_normal((6, 40))
    got = ate_scores(data, model, top=20)
    assert got["ate_pearson"] == pytest.approx(stats.pearsonr(data.ravel(), model.ravel())[0])
    assert got["ate_r2"] == pytest.approx(r2_score(data.ravel(), model.ravel()))
    pairs = [
        (row[g], other[g])
        for row, other in zip(data, model, strict=True)
        for g in sorted(range(40), key=lambda g: -abs(row[g]))[:20]
    ]
    a, b = np.array(pairs).T
    assert got["ate_pearson_top20"] == pytest.approx(stats.pearsonr(a, b)[0])
    assert got["ate_r2_top20"] == pytest.approx(r2_score(a, b))
    each = condition_scores(data, model)
    np.testing.assert_allclose(
        each["ate_pearson"], [stats.pearsonr(*rows)[0] for rows in zip(data, model, strict=True)]
    )
    np.testing.assert_allclose(each["ate_r2"], r2_score(data.T, model.T, multioutput="raw_values"))


def test_perfect_and_constant_predictions():
    data = RNG.standard_normal((3, 10))
    assert all(value == pytest.approx(1) for value in ate_scores(data, data).values())
    nothing = ate_scores(data, np.zeros_like(data))
    assert np.isnan(nothing["ate_pearson"])
    assert nothing["ate_r2"] == pytest.approx(r2_score(data.ravel(), np.zeros(30)))
    assert np.isnan(condition_scores(data, np.zeros_like(data))["ate_pearson"]).all()


def test_a_constant_has_no_correlation_even_if_its_mean_is_rounded():
    constant, other = np.full(7, 0.1), RNG.standard_normal(7)
    assert (constant - constant.mean()).any()  # the mean of seven 0.1 is not 0.1
    assert np.isnan([pearson(constant, other), pearson(other, constant), r2(constant, other)]).all()
    rows = pearson(np.stack([constant, other]), np.stack([other, 2 * other]))
    assert np.isnan(rows[0]) and rows[1] == pytest.approx(1)
    assert r2(np.stack([constant, other]), np.stack([other, other]))[1] == 1


def test_effects_that_cannot_be_scored_raise_errors():
    with pytest.raises(ValueError, match="finite"):
        ate_scores(np.full((2, 2), np.nan), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="equal"):
        ate_scores(np.zeros((2, 2)), np.zeros((2, 3)))


# control, a, b, a+b, a+c (c is never given alone)
MEMBERS = np.array([[-1, -1], [0, -1], [1, -1], [0, 1], [0, 2]])
EFFECTS = np.array([[0.0, 0.0], [1.0, 2.0], [10.0, -5.0], [12.0, -3.0], [4.0, 4.0]])


def test_additive_and_interactions_by_hand():
    nan = [np.nan, np.nan]
    np.testing.assert_array_equal(additive(EFFECTS, MEMBERS), [[0, 0], [1, 2], [10, -5], [11, -3], nan])
    np.testing.assert_array_equal(interactions(EFFECTS, MEMBERS), [nan, nan, nan, [1, 0], nan])
    np.testing.assert_array_equal(interactions(EFFECTS + 1, MEMBERS)[3], [0, -1])


def test_additive_without_pairs():
    np.testing.assert_array_equal(additive(EFFECTS[:3], MEMBERS[:3, :1]), EFFECTS[:3])


def test_mean_of_perturbations():
    got = mean_of_perturbations(EFFECTS, np.array([0, 1, 1, 0, 0]))
    np.testing.assert_array_equal(got, np.tile([5.5, -1.5], (5, 1)))
