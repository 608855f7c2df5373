"""Draws of counts, held against the distribution functions of scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from samsvae import sampling
from samsvae.sampling import negative_binomial

N = 200_000


def fits(draws: np.ndarray, cdf) -> bool:
    """A chi-squared test of counts, in bins that expect fifty or more."""
    top = int(draws.max()) + 2
    p = np.diff(cdf(np.arange(-1, top)))
    p[-1] += 1 - p.sum()  # and all that is above
    bins = np.cumsum(p) * len(draws) // 50
    edges = np.flatnonzero(np.diff(bins, prepend=-1))
    expected = np.add.reduceat(p, edges) * len(draws)
    observed = np.add.reduceat(np.bincount(draws.astype(int), minlength=top + 1)[: len(p)], edges)
    if expected[-1] < 25:
        expected = np.append(expected[:-2], expected[-2:].sum())
        observed = np.append(observed[:-2], observed[-2:].sum())
    assert observed.sum() == len(draws)
    return len(expected) == 1 or stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


#: mean and concentration: inversion, long tails, gamma shapes below and above 1, table and rejection, Poisson's limit
CASES = [
    (1e-4, 1.0), (0.05, 2.0), (0.8, 0.3), (3.5, 1.5), (3.9, 50.0), (2.0, 1e6), (0.5, 1e-3), (2.0, 0.1), (6.0, 0.5),
    (6.0, 3.0), (40.0, 0.4), (40.0, 30.0), (127.0, 1e6), (129.0, 1e6), (300.0, 2.0), (300.0, 1e6), (20_000.0, 1e5),
]  # fmt: skip


@pytest.mark.parametrize(("mean", "theta"), CASES)
def test_counts_have_the_negative_binomial_distribution(mean, theta):
    m, t = torch.full((N, 1), mean), torch.tensor([theta])
    x = negative_binomial(m, t, torch.Generator().manual_seed(1)).numpy().ravel()
    assert fits(x, stats.nbinom(theta, theta / (theta + mean)).cdf)
    other = stats.nbinom(theta, theta / (theta + 1.05 * mean))
    assert mean < 0.5 or theta < 0.3 or not fits(x, other.cdf)  # a mean of five in a hundred more would show


def test_genes_and_cells_keep_their_places():
    """Means of every size and order side by side, which go ways of their own; particles lead."""
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(rng.permutation(np.geomspace(0.2, 1e4, 30))).float()
    mean = torch.from_numpy(rng.permutation(np.geomspace(1e-3, 3e3, 30))).float() * torch.tensor([[1.0], [0.5], [2.0]])
    x = negative_binomial(mean.expand(20_000, 3, 30), theta, torch.Generator().manual_seed(0)).double()
    error = torch.sqrt((mean + mean**2 / theta) / 20_000)
    assert x.shape == (20_000, 3, 30) and (x == x.round()).all() and (x >= 0).all()
    assert ((x.mean(0) - mean).abs() < 5 * error).all()


def test_means_of_a_gene_that_are_far_apart():
    """What a gene's usual mean says decides the way, not whether it is right."""
    mean = torch.cat([torch.full((N, 1), 0.5), torch.full((N // 100, 1), 90.0)])
    for order in (mean, mean.flip(0)):
        x = negative_binomial(order, torch.tensor([2.0]), torch.Generator().manual_seed(3))[:, 0]
        for value in (0.5, 90.0):
            assert fits(x[order[:, 0] == value].numpy(), stats.nbinom(2.0, 2.0 / (2.0 + value)).cdf)


@pytest.mark.parametrize("shape", [0.05, 0.9, 1.0, 1.7, 1e3, 1e6])
def test_gamma_variables(shape):
    x = sampling._gamma(torch.tensor([shape]), torch.Size((50_000, 1)), torch.Generator().manual_seed(0))
    assert stats.kstest(x.double().numpy().ravel(), stats.gamma(shape).cdf).pvalue > 1e-4


def test_seeds_dtypes_and_no_cells():
    mean, theta = torch.rand(50, 7) * 30, torch.rand(7) + 0.5
    first, again, other = (negative_binomial(mean, theta, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert negative_binomial(mean.double(), theta.double(), torch.Generator()).dtype == torch.float64
    assert negative_binomial(mean[:0], theta, torch.Generator()).shape == (0, 7)
