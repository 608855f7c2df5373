"""Tests of held-out and predicted cells, and their agreement: against scipy and scikit-learn, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import average_precision_score, matthews_corrcoef

from samsvae.errors import DataError
from samsvae.evaluation.metrics import expression_agreement as module
from samsvae.evaluation.metrics.average_precision import average_precision
from samsvae.evaluation.metrics.expression_agreement import (
    EXPRESSION_SCORES,
    ExpressionTests,
    expression_agreement,
    expression_tests,
)


@pytest.fixture(scope="module")
def cells():
    """Cells with few distinct values: gene 0 is constant, gene 1 differs; condition 3 has one cell, 4 has none."""
    rng = np.random.default_rng(0)
    condition = rng.permutation(np.repeat([0, 1, 2, 3], [40, 25, 30, 1]))
    x = rng.poisson(1.5, (len(condition), 12)).astype(float)
    x[:, 0] = 2
    x[condition == 1, 1] += 5
    return np.log2(1 + (1e4 * x) / x.sum(1, keepdims=True)), condition


def test_numbers_equal_scipys(cells):
    Y, condition = cells
    found = expression_tests(Y, condition, 5)
    assert found.z.shape == found.q.shape == found.difference.shape == (4, 12)
    for c in (1, 2):
        ours, control = Y[condition == c], Y[condition == 0]
        p = stats.mannwhitneyu(ours, control, use_continuity=False, method="asymptotic").pvalue
        np.testing.assert_allclose(2 * stats.norm.sf(np.abs(found.z[c - 1])), p, rtol=1e-9)
        np.testing.assert_allclose(found.q[c - 1], stats.false_discovery_control(p), rtol=1e-9)
        np.testing.assert_allclose(found.difference[c - 1], ours.mean(0) - control.mean(0), rtol=1e-9)
    assert found.z[0, 1] > 3
    for part in (found.z, found.q, found.difference):
        assert np.isnan(part[2:]).all()  # one cell, no cell


def test_sparse_cells_blocks_and_order_do_not_matter(cells, monkeypatch):
    Y, condition = cells
    expected = expression_tests(Y, condition, 5)
    order = np.random.default_rng(1).permutation(len(Y))
    monkeypatch.setattr(module, "_BLOCK", 5 * len(Y))
    for found in (
        expression_tests(sparse.csr_matrix(Y), condition, 5),
        expression_tests(Y[order], condition[order], 5),
    ):
        np.testing.assert_array_equal(found.z, expected.z)
        np.testing.assert_array_equal(found.q, expected.q)
        np.testing.assert_allclose(found.difference, expected.difference, rtol=1e-12, atol=1e-14)


def test_a_constant_gene_has_no_score():
    Y = np.array([[1.0, 0], [1, 1], [1, 2], [1, 3]])
    found = expression_tests(Y, np.array([0, 0, 1, 1]), 2)
    assert found.z[0, 0] == 0 and found.q[0, 0] == 1 and found.z[0, 1] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda Y, c: (Y, np.where(c == 0, 1, c)), "at least two control cells, but there are 0"),
        (lambda Y, c: (Y[:-1], c), r"condition has the shape \(96,\), but it must be \(95,\)"),
        (lambda Y, c: (np.where(Y > 12, np.nan, Y * 9), c), "not finite"),
        (lambda Y, c: (Y, np.where(c == 3, 5, c)), "condition has the code 5 .* from 0 to 4"),
        (lambda Y, c: (Y[:, :0], c), "no empty dimension"),
    ],
)
def test_impossible_cells_end_in_one_sentence(cells, change, message):
    with pytest.raises(DataError, match=message):
        expression_tests(*change(*cells), 5)


def made(n_genes: int, significant: int, seed: int) -> ExpressionTests:
    rng = np.random.default_rng(seed)
    q = rng.uniform(0.1, 1, (1, n_genes))
    q[0, rng.permutation(n_genes)[:significant]] = 0.01
    return ExpressionTests(rng.normal(size=(1, n_genes)), q, rng.normal(size=(1, n_genes)))


def test_scores_by_hand():
    truth, prediction = made(60, 20, 0), made(60, 30, 1)
    found = {name: value[0] for name, value in expression_agreement(truth, prediction).items()}
    assert tuple(found) == EXPRESSION_SCORES
    true, predicted = truth.q[0] < 0.05, prediction.q[0] < 0.05
    assert found["n_significant"] == 20 and found["auprc_chance"] == pytest.approx(1 / 3)
    assert found["mcc"] == pytest.approx(matthews_corrcoef(true, predicted))
    assert found["jaccard"] == (true & predicted).sum() / (true | predicted).sum()
    same = truth.difference[0] * prediction.difference[0] > 0
    assert found["sign"] == pytest.approx(same[true].mean())
    first, second = (set(np.argsort(-np.abs(tests.z[0]))[:50]) for tests in (truth, prediction))
    assert found["overlap50"] == len(first & second) / 50 and np.isnan(found["overlap100"])
    order = np.argsort(-np.abs(prediction.z[0]))
    precision = np.cumsum(true[order]) / np.arange(1, 61)
    assert found["auprc"] == pytest.approx(precision[true[order]].mean())


def test_perfect_agreement():
    truth = made(60, 20, 0)
    truth.z[:] = np.where(truth.q < 0.05, 5, 1) * np.sign(truth.z)
    found = {name: value[0] for name, value in expression_agreement(truth, truth).items()}
    assert all(found[name] == pytest.approx(1) for name in ("auprc", "mcc", "jaccard", "sign", "overlap20"))


def test_empty_sets_and_few_genes():
    """The rule on signs reads the truth alone; undefined scores are NaN."""
    nothing, nine, ten = made(60, 0, 0), made(60, 9, 1), made(60, 10, 2)
    empty = {name: value[0] for name, value in expression_agreement(nothing, nothing).items()}
    assert empty["jaccard"] == 1 and empty["n_significant"] == 0 and empty["auprc_chance"] == 0
    assert all(np.isnan(empty[name]) for name in ("auprc", "mcc", "sign"))
    assert np.isnan(expression_agreement(nine, ten)["sign"][0])
    assert not np.isnan(expression_agreement(ten, nothing)["sign"][0])
    assert expression_agreement(ten, nothing)["jaccard"][0] == 0


def test_targets_are_left_out_after_bh():
    truth, prediction = made(60, 20, 0), made(60, 30, 1)
    target = int(np.flatnonzero(truth.q[0] < 0.05)[0])
    left_out = np.zeros((1, 60), bool)
    left_out[0, target] = True
    found = expression_agreement(truth, prediction, left_out)
    without = [
        ExpressionTests(*(np.delete(part, target, 1) for part in (tests.z, tests.q, tests.difference)))
        for tests in (truth, prediction)
    ]
    np.testing.assert_equal(found, expression_agreement(*without))
    assert found["n_significant"] == 19


def test_conditions_that_one_side_lacks_are_undefined():
    truth, prediction = made(60, 20, 0), made(60, 30, 1)
    prediction.z[:] = np.nan
    assert all(np.isnan(value[0]) for value in expression_agreement(truth, prediction).values())
    with pytest.raises(DataError, match=r"prediction.z has the shape \(1, 59\), but it must be \(1, 60\)"):
        expression_agreement(truth, made(59, 3, 0))


def test_average_precision_counts_distinct_thresholds():
    assert average_precision(np.array([1, 0, 1, 0], bool), np.array([2, 2, 1, 0])) == pytest.approx(0.5 / 2 + 1 / 3)
    assert np.isnan(average_precision(np.zeros(3, bool), np.arange(3)))
    assert np.isnan(average_precision(np.ones(3, bool), np.arange(3)))
    rng = np.random.default_rng(0)
    for size in (2, 30, 300):
        label, score = rng.permutation(size) < max(1, size // 4), rng.integers(0, 20, size)
        assert average_precision(label, score) == pytest.approx(average_precision_score(label, score), abs=1e-14)
