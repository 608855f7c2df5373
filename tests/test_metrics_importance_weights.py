"""Bounds and diagnostics of importance weights: against scipy, and for weights of known tails."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from samsvae.errors import DataError
from samsvae.evaluation.metrics.importance_weights import (
    Bound,
    ImportanceWeights,
    comparison_size,
    importance_weights,
    pareto_k,
    tail_size,
    undecided,
)


@pytest.fixture(scope="module")
def log_weights():
    return np.random.default_rng(0).normal(-300, 3, (230, 7))


def test_bounds_equal_scipys(log_weights):
    found = importance_weights(log_weights, (1, 10, 40, 230, 1000))
    for size, blocks in ((1, 230), (10, 23), (40, 5), (230, 1)):
        parts = log_weights[: blocks * size].reshape(blocks, size, 7)
        means = (logsumexp(parts, 1) - np.log(size)).mean(1)
        bound = found.bounds[size]
        assert bound.value == pytest.approx(means.mean(), rel=1e-13) and bound.blocks == blocks
        if blocks > 1:
            assert bound.error == pytest.approx(stats.sem(means), rel=1e-9)
    assert np.isnan(found.bounds[230].error)
    assert found.bounds[1000].blocks == 0 and np.isnan(found.bounds[1000].value)
    np.testing.assert_allclose(found.log_evidence, logsumexp(log_weights, 0) - np.log(230), rtol=1e-13)
    weights = np.exp(log_weights - log_weights.max(0))
    np.testing.assert_allclose(found.ess, weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-9)


@pytest.mark.parametrize("at_once", [1, 7, 64, 229])
def test_blocks_of_particles_do_not_matter(log_weights, at_once):
    whole = importance_weights(log_weights, (1, 10, 40))
    weights = ImportanceWeights(230, 7, (1, 10, 40))
    for start in range(0, 230, at_once):
        weights.add(log_weights[start : start + at_once])
    found = weights.summary()
    for size, bound in whole.bounds.items():
        assert found.bounds[size].value == pytest.approx(bound.value, rel=1e-13)
        assert found.bounds[size].error == pytest.approx(bound.error, rel=1e-9)
        assert found.bounds[size].blocks == bound.blocks
    np.testing.assert_allclose(found.ess, whole.ess, rtol=1e-9)
    np.testing.assert_array_equal(found.pareto_k, whole.pareto_k)
    assert weights._largest.shape == (tail_size(230) + 1, 7)


def test_equal_weights():
    found = importance_weights(np.full((100, 3), -2.0), (1, 10))
    assert found.bounds[10].value == pytest.approx(-2) and found.bounds[10].error == pytest.approx(0, abs=1e-14)
    np.testing.assert_allclose(found.ess, 100)
    assert np.isnan(found.pareto_k).all()
    assert found.scores()["ess_below_10"] == 0 and np.isnan(found.scores()["pareto_above_0.7"])


def test_more_particles_give_a_higher_bound_and_a_normal_example_its_evidence():
    """x = z + noise, both standard normal, with the prior as the proposal: log p(x) is that of N(0, 2)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=5)
    log_weights = stats.norm.logpdf(x, rng.normal(size=(20000, 5)))
    found = importance_weights(log_weights, (1, 10, 100))
    values = [bound.value for bound in found.bounds.values()]
    assert values == sorted(values)
    np.testing.assert_allclose(found.log_evidence, stats.norm.logpdf(x, scale=np.sqrt(2)), atol=0.03)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.5])
def test_the_shape_of_a_generalised_pareto_tail(k):
    n_tail = 400
    x = stats.genpareto.ppf((np.arange(n_tail) + 0.5) / n_tail, k)
    weights = np.concatenate([[3.0], 3 + x])  # the threshold, then exceedances
    fitted = stats.genpareto.fit(x, floc=0)[0]
    found = (pareto_k(np.log(weights)[::-1, None])[0] * (n_tail + 10) - 5) / n_tail
    assert found == pytest.approx(k, abs=0.03)
    assert found == pytest.approx(fitted, abs=0.03)
    assert pareto_k(1000 + np.log(weights)[:, None]) == pytest.approx(pareto_k(np.log(weights)[:, None]))


def test_tails_of_normal_log_weights_grow_heavier():
    rng = np.random.default_rng(0)
    shapes = [np.median(importance_weights(rng.normal(0, sd, (1000, 20)), (1,)).pareto_k) for sd in (0.3, 1, 3, 30)]
    assert shapes == sorted(shapes) and shapes[0] < 0.5 < 0.7 < shapes[2]
    for sd in (300, 30000):
        extreme = importance_weights(rng.normal(0, sd, (1000, 4)), (1,))
        assert (extreme.pareto_k > 1).all() and np.isfinite(extreme.pareto_k).all()
        np.testing.assert_allclose(extreme.ess, 1)


def test_few_particles_have_no_tail():
    assert [tail_size(K) for K in (4, 24, 100, 1000, 10000)] == [0, 4, 20, 95, 300]
    assert np.isnan(importance_weights(np.random.default_rng(0).normal(size=(24, 2)), (1,)).pareto_k).all()
    assert np.isnan(importance_weights(np.zeros((1, 2)), (1,)).pareto_k).all()


def test_weights_of_zero():
    log_weights = np.random.default_rng(0).normal(size=(100, 2))
    log_weights[:, 1] = -np.inf
    log_weights[::2, 0] = -np.inf
    found = importance_weights(log_weights, (10, 100))
    assert found.log_evidence[1] == -np.inf and np.isnan(found.ess[1]) and np.isnan(found.pareto_k[1])
    assert 1 < found.ess[0] <= 50
    assert found.bounds[10].value == -np.inf and np.isnan(found.bounds[10].error)


def test_summary_of_cells(log_weights):
    found = importance_weights(log_weights)
    scores = found.scores()
    assert scores["ess_median"] == np.median(found.ess) and scores["ess_5"] == np.quantile(found.ess, 0.05)
    assert scores["ess_below_10"] == np.mean(found.ess < 10) and 0 < scores["ess_below_10"] < 1
    assert scores["pareto_above_0.7"] == np.mean(found.pareto_k > 0.7) > 0


def test_bounds_are_compared_where_all_have_ten_blocks():
    def bounds(particles: int) -> dict[int, Bound]:
        return importance_weights(np.zeros((particles, 1)), (1, 10, 100)).bounds

    assert comparison_size(bounds(1000), bounds(1000)) == 100
    assert comparison_size(bounds(1000), bounds(999)) == 10
    assert comparison_size(bounds(9)) is None and comparison_size() is None


@pytest.mark.parametrize(
    ("difference", "error", "shares", "expected"),
    [
        (0.5, 0.2, (0.05, 0.1), False),
        (-0.5, 0.2, (0.0,), False),
        (0.39, 0.2, (0.0,), True),
        (9.0, 0.2, (0.0, 0.11), True),
        (9.0, float("nan"), (0.0,), True),
        (9.0, 0.2, (float("nan"),), True),
    ],
)
def test_what_is_undecided(difference, error, shares, expected):
    assert undecided(difference, error, shares) is expected


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros((3, 5)), r"log_weights has the shape \(3, 5\), but it must be \(k, 4\)"),
        (np.array([[0, 0, np.nan, 0]]), "log_weights is nan at particle 2 of cell 2"),
        (np.array([[0, np.inf, 0, 0]]), "log_weights is inf at particle 2 of cell 1"),
        (np.zeros((9, 4)), "11 particles were added, but 10 were announced"),
    ],
)
def test_impossible_weights_end_in_one_sentence(block, message):
    weights = ImportanceWeights(10, 4)
    weights.add(np.zeros((2, 4)))
    with pytest.raises(DataError, match=message):
        weights.add(block)
    with pytest.raises(DataError, match="2 particles were added, but 10"):
        weights.summary()
    with pytest.raises(DataError, match="at least 1"):
        ImportanceWeights(0, 4)
