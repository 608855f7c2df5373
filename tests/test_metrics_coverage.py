"""Coverage of intervals: nominal for a right posterior, and each number by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from samsvae.errors import DataError
from samsvae.evaluation.metrics.coverage import (
    COVERAGE_SCORES,
    LEVELS,
    coverage,
    join,
    normal_intervals,
    posterior_intervals,
)

C, G = 12, 400


@pytest.fixture(scope="module")
def right():
    """A posterior from which the true effects come, and observations with an error as large as its spread."""
    rng = np.random.default_rng(0)
    centre = rng.normal(0, 2, (C, G))
    draws = centre + rng.normal(size=(200, C, G))
    return draws, centre, centre + rng.normal(size=(C, G)) + rng.normal(size=(C, G)), np.ones((C, G))


def test_a_right_posterior_has_nominal_coverage(right):
    draws, _, observed, se2 = right
    found = coverage(posterior_intervals(draws, observed, se2))
    assert tuple(found) == COVERAGE_SCORES
    assert found["n"] == C * G and found["n_top"] == C * 20
    for level in LEVELS:
        error = np.sqrt(level * (1 - level) / (C * G))
        assert abs(found[f"coverage{level}"] - level) < 3 * error + 0.005
        assert abs(found[f"coverage_top{level}"] - level) < 3 * np.sqrt(level * (1 - level) / (C * 20)) + 0.005
        # the truth is wider by the root of 2
        naive = 1 - 2 * stats.norm.sf(stats.norm.ppf((1 + level) / 2) / np.sqrt(2))
        assert abs(found[f"naive{level}"] - naive) < 0.025
    assert found["pit_mean"] == pytest.approx(0.5, abs=0.02)
    assert found["posterior_share"] == pytest.approx(0.5, abs=0.01)


def test_a_wrong_posterior_shows(right):
    draws, _, observed, se2 = right
    narrow = coverage(posterior_intervals(draws.mean(0) + (draws - draws.mean(0)) / 100, observed, se2))
    assert narrow["coverage0.8"] < 0.7 and narrow["posterior_share"] < 0.01
    assert coverage(posterior_intervals(draws + 3, observed, se2))["pit_mean"] < 0.1


def test_the_normal_limit_agrees_with_many_draws(right):
    _, centre, observed, se2 = right
    quantiles = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None, None]
    one, other = (array[:2, :50] for array in (observed, centre))
    limit = normal_intervals(other, np.full_like(other, 4), one, se2[:2, :50])
    many = posterior_intervals(other + 2 * quantiles, one, se2[:2, :50])
    np.testing.assert_allclose(limit.u, many.u, atol=1e-3)
    np.testing.assert_allclose(limit.variance, many.variance, rtol=0.01)
    assert (limit.inside != many.inside).mean() < 0.01
    assert 0.2 < limit.inside[0].mean() < 0.9


def test_one_gene_by_hand():
    intervals = posterior_intervals(np.array([-1.0, 1, 3]).reshape(3, 1, 1), np.array([[1.0]]), np.array([[4.0]]))
    assert intervals.u[0, 0] == pytest.approx((stats.norm.cdf(1) + 0.5 + stats.norm.cdf(-1)) / 3)
    assert intervals.mean[0, 0] == 1 and intervals.variance[0, 0] == 4
    assert coverage(intervals)["posterior_share"] == 0.5


def test_genes_without_an_error_are_not_scored_but_may_be_at_the_top():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(50, 1, 30)) * 0.1
    draws[:, 0, :3] += 10
    observed, se2 = rng.normal(size=(1, 30)), np.ones((1, 30))
    se2[0, :2], observed[0, 2] = 0, np.nan
    found = coverage(posterior_intervals(draws, observed, se2))
    assert found["n"] == 27 and found["n_top"] == 17
    nothing = coverage(posterior_intervals(draws, observed, 0 * se2))
    assert nothing["n"] == 0 and all(np.isnan(nothing[name]) for name in COVERAGE_SCORES[2:])


def test_blocks_of_conditions_join(right):
    draws, _, observed, se2 = right
    whole = coverage(posterior_intervals(draws, observed, se2))
    parts = [posterior_intervals(draws[:, at], observed[at], se2[at]) for at in (slice(0, 5), slice(5, C))]
    assert coverage(join(parts)) == whole
    genes = np.random.default_rng(1).permutation(G)
    shuffled = coverage(posterior_intervals(draws[..., genes], observed[:, genes], se2[:, genes]))
    assert shuffled == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("draws", "observed", "se2", "message"),
    [
        (np.zeros((1, 2, 3)), np.zeros((2, 3)), np.ones((2, 3)), "at least two draws"),
        (np.zeros((4, 3)), np.zeros((2, 3)), np.ones((2, 3)), r"draws has the shape \(4, 3\)"),
        (np.zeros((4, 2, 3)), np.zeros((3, 2)), np.ones((2, 3)), r"observed has the shape \(3, 2\)"),
        (np.zeros((4, 2, 3)), np.zeros((2, 3)), -np.ones((2, 3)), "se2 has the negative value -1"),
        (np.full((4, 2, 3), np.nan), np.zeros((2, 3)), np.ones((2, 3)), "draws of condition 0 has 12 values"),
    ],
)
def test_impossible_draws_end_in_one_sentence(draws, observed, se2, message):
    with pytest.raises(DataError, match=message):
        posterior_intervals(draws, observed, se2)


def test_no_blocks():
    with pytest.raises(DataError, match="at least one block"):
        join([])
