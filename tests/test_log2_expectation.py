"""Expectations of log2(1 + 1e4 x / S), compared with sums over scipy's probabilities and with sampled cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from samsvae.config.vocabulary import FLOOR
from samsvae.evaluation.log2_expectation import STEP, WIDEST, Log2Mean

THETA = np.array([0.01, 0.1, 0.7, 3.0, 20.0, WIDEST - 1, WIDEST + 1, 1e3, 1e6])


@pytest.mark.parametrize(("depth", "error"), [(3e4, 3e-4), (1e4, 3e-4), (185.0, 1e-3)])
@pytest.mark.parametrize("mean", [1e-4, 1e-3, 0.02, 0.4, 0.7, 1.7, 3.3, 41.0])
def test_the_expansion_is_summed_over_counts(depth, error, mean):
    """f + f' (x - m) + f'' ((x - m)^2 + Var rest) / 2, with the derivatives of log2(1 + 1e4 x / S) by S at S = L."""
    mean = FLOOR * np.exp((np.floor(np.log(mean / FLOOR) / STEP) + 0.5) * STEP)  # halfway between two points
    cells = np.full((2, len(THETA)), mean)
    found = Log2Mean(torch.from_numpy(THETA), [1e3, depth], 1e4, FLOOR)(torch.from_numpy(cells), torch.tensor([1, 1]))
    variance = mean + mean**2 / THETA
    for gene, (theta, value, other) in enumerate(zip(THETA, *found.tolist(), strict=True)):
        counts = stats.nbinom(theta, theta / (theta + mean))
        if (top := int(counts.isf(1e-13)) + 10) > 2e6:  # the sum is too long
            continue
        k = np.arange(top)
        f, c = np.log2(1 + 1e4 * k / depth), 1e4
        first = (1 / (depth + c * k) - 1 / depth) / np.log(2)
        second = (1 / depth**2 - 1 / (depth + c * k) ** 2) / np.log(2)
        rest = variance.sum() - variance[gene]
        expected = (counts.pmf(k) * (f + first * (k - mean) + second * ((k - mean) ** 2 + rest) / 2)).sum()
        assert value == other == pytest.approx(expected, abs=error + 1e-3 * abs(expected - f[-1]) * (theta < 0.1))


@pytest.mark.parametrize(("depth", "genes", "heavy"), [(188.0, 299, 0.0), (75.0, 200, 0.4), (3000.0, 300, 0.1)])
def test_sampled_cells_have_this_mean(depth, genes, heavy):
    """Also shallow ones, and with a gene that holds 40 % of all counts: the bias is below 1 % of an estimate's error.

    The error is that of a mean over 100 cells.
    """
    rng = np.random.default_rng(1)
    share = rng.dirichlet(np.full(genes, 0.3)) * (1 - heavy)
    share[0] += heavy
    theta, mean = np.exp(rng.normal(size=genes)), depth * share + FLOOR
    found = Log2Mean(torch.from_numpy(theta), [mean.sum()], depth, FLOOR)(torch.from_numpy(mean)[None])[0].numpy()
    x = rng.negative_binomial(theta, theta / (theta + mean), size=(40_000, genes))
    y = np.log2(1 + 1e4 * x / np.maximum(x.sum(1, keepdims=True), 1))
    bias = ((found - y.mean(0)) ** 2 - y.var(0) / len(y)).sum()
    assert bias < 0.01 * y.var(0).sum() / 100
    seen = y.std(0) > 0
    assert np.quantile(np.abs(found - y.mean(0))[seen] / (y.std(0)[seen] / len(y) ** 0.5), 0.9) < 3.0


def test_each_gene_has_its_concentration_and_each_cell_its_depth():
    theta = torch.tensor([0.2, 50.0])
    curve = Log2Mean(theta, [100.0, 400.0], 300.0, FLOOR)
    mean = torch.tensor([[20.0, 80.0], [80.0, 320.0], [20.0, 80.0]])
    both = curve(mean, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(both[[0, 2]], Log2Mean(theta, [100.0], 300.0, FLOOR)(mean[[0, 2]]))
    torch.testing.assert_close(both[[1]], Log2Mean(theta, [400.0], 300.0, FLOOR)(mean[[1]]))
    assert both.dtype == torch.float32
    assert (curve(torch.tensor([[0.0, 1e-9]])) == curve(torch.full((1, 2), 1e-4))).all()
