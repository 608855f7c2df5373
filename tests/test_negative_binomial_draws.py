"""Draws of counts against the distribution functions of scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from samsvae.ops import cpu_negative_binomial
from samsvae.ops import negative_binomial_draws as sampling
from samsvae.ops.cpu_negative_binomial import draw_by_inversion, kernel, resolve_kernel
from samsvae.ops.negative_binomial_draws import negative_binomial

N = 200_000


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def chosen(request):
    """Every test runs with torch's operations and with compiled inversion."""
    if resolve_kernel("auto") != "compiled" and request.param == "compiled":
        pytest.skip("no C compiler works here")
    with kernel(request.param):
        yield request.param


def fits(draws: np.ndarray, cdf) -> bool:
    """A chi-squared test of counts, in bins with an expectation of at least 50."""
    top = int(draws.max()) + 2
    p = np.diff(cdf(np.arange(-1, top)))
    p[-1] += 1 - p.sum()  # and all larger counts
    bins = np.cumsum(p) * len(draws) // 50
    edges = np.flatnonzero(np.diff(bins, prepend=-1))
    expected = np.add.reduceat(p, edges) * len(draws)
    observed = np.add.reduceat(np.bincount(draws.astype(int), minlength=top + 1)[: len(p)], edges)
    if expected[-1] < 25:
        expected = np.append(expected[:-2], expected[-2:].sum())
        observed = np.append(observed[:-2], observed[-2:].sum())
    assert observed.sum() == len(draws)
    return len(expected) == 1 or stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


#: mean and concentration: clusters, inversion, long tails, gamma shapes below and above 1, table, rejection, Poisson
CASES = [
    (1e-4, 1.0), (0.05, 2.0), (0.3, 0.05), (0.5, 1e6), (0.6, 4.0), (0.8, 0.3), (3.5, 1.5), (5.9, 2.0),
    (3.9, 50.0), (2.0, 1e6), (0.5, 1e-3), (2.0, 0.1), (6.0, 0.5),
    (6.0, 3.0), (30.0, 1.5), (39.0, 1e6), (70.0, 5.0),
    (40.0, 0.4), (40.0, 30.0), (127.0, 1e6), (129.0, 1e6), (300.0, 2.0), (300.0, 1e6), (20_000.0, 1e5),
]  # fmt: skip


@pytest.mark.parametrize(("mean", "theta"), CASES)
def test_counts_have_the_negative_binomial_distribution(mean, theta):
    m, t = torch.full((N, 1), mean), torch.tensor([theta])
    x = negative_binomial(m, t, torch.Generator().manual_seed(1)).numpy().ravel()
    assert fits(x, stats.nbinom(theta, theta / (theta + mean)).cdf)
    other = stats.nbinom(theta, theta / (theta + 1.05 * mean))
    assert mean < 0.5 or theta < 0.3 or not fits(x, other.cdf)  # a mean that is 5 % larger would show


def test_genes_and_cells_keep_their_places():
    """Means of every size in any order, drawn by different methods; particles come first."""
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(rng.permutation(np.geomspace(0.2, 1e4, 30))).float()
    mean = torch.from_numpy(rng.permutation(np.geomspace(1e-3, 3e3, 30))).float() * torch.tensor([[1.0], [0.5], [2.0]])
    x = negative_binomial(mean.expand(20_000, 3, 30), theta, torch.Generator().manual_seed(0)).double()
    error = torch.sqrt((mean + mean**2 / theta) / 20_000)
    assert x.shape == (20_000, 3, 30) and (x == x.round()).all() and (x >= 0).all()
    assert ((x.mean(0) - mean).abs() < 5 * error).all()


@pytest.mark.parametrize("theta", [0.1, 1.0, 1e5])
def test_rare_counts_of_cells_of_many_means(theta):
    """Clusters are drawn at the rate of the largest mean; the other cells drop some."""
    means = torch.tensor([0.0, 0.01, 0.1, 0.3, 0.5])
    rows = means.repeat(N + 100)[:, None]
    assert rows[:: len(rows) // 64].max() == 0.5  # otherwise the others would count as far values
    x = negative_binomial(rows, torch.tensor([theta]), torch.Generator().manual_seed(4))
    for mean, own in zip(means.tolist(), x.view(-1, len(means)).T.numpy(), strict=True):
        assert fits(own, stats.nbinom(theta, theta / (theta + mean)).cdf) if mean else not own.any()


def test_clusters_fall_on_all_cells_equally_and_independently():
    n, genes, mean, theta = 2 * (sampling.BLOCK // 2000), 2000, 0.05, 2.0  # two blocks
    x = negative_binomial(torch.full((n, genes), mean), torch.full((genes,), theta), torch.Generator().manual_seed(5))
    seen, p = (x > 0).double(), 1 - (theta / (theta + mean)) ** theta
    for axis, size in ((0, n), (1, genes)):
        square = ((seen.sum(axis) - size * p) ** 2 / (size * p * (1 - p))).sum().item()
        assert 1e-4 < stats.chi2.cdf(square, x.numel() // size) < 1 - 1e-4
    first, second = seen.view(2, -1).numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / len(first) ** 0.5


def test_far_values_have_the_concentration_of_their_gene():
    mean, theta = torch.full((N, 2), 0.5), torch.tensor([2.0, 20.0])
    mean[1::3] = 90.0
    mean[:: N // 64] = 0.5  # the sampled rows
    x = negative_binomial(mean, theta, torch.Generator().manual_seed(3))
    for gene, own in enumerate(theta.tolist()):
        assert fits(x[mean[:, gene] == 90.0, gene].numpy(), stats.nbinom(own, own / (own + 90.0)).cdf)


def test_means_of_a_gene_that_are_far_apart():
    """The typical mean of a gene decides the method, not the correctness."""
    mean = torch.cat([torch.full((N, 1), 0.5), torch.full((N // 100, 1), 90.0)])
    for order in (mean, mean.flip(0)):
        x = negative_binomial(order, torch.tensor([2.0]), torch.Generator().manual_seed(3))[:, 0]
        for value in (0.5, 90.0):
            assert fits(x[order[:, 0] == value].numpy(), stats.nbinom(2.0, 2.0 / (2.0 + value)).cdf)


@pytest.mark.parametrize("theta", [2.0, 20.0, 1e6])
def test_a_mean_that_no_sampled_row_has(theta):
    """Every 15th of 1,000 rows is sampled: of five conditions in turn, only the first."""
    mean = torch.full((200, 5, 1), 0.5)
    mean[:, 3] = 300.0
    x = negative_binomial(mean, torch.tensor([theta]), torch.Generator().manual_seed(0))[:, 3].numpy().ravel()
    assert stats.ks_1samp(x, stats.nbinom(theta, theta / (theta + 300.0)).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_keep_the_tail_for_every_uniform_number(dtype):
    """Accepted slots and alternative counts, summed over all uniform numbers that can be drawn."""
    accept, other = (table.view(-1, sampling.WIDE).double().numpy() for table in sampling._tables(dtype))
    level = sampling.WIDE * torch.finfo(dtype).eps / 2  # the part of a slot is a multiple of this
    keep = np.clip(np.ceil(accept / level) * level, 0, 1)
    for rate in (1, 20, 100):
        p = keep[rate] / sampling.WIDE
        np.add.at(p, other[rate].astype(int), (1 - keep[rate]) / sampling.WIDE)
        assert p[int(stats.poisson(rate).isf(1e-7)) + 1 :].sum() < 3e-7
        assert p @ np.arange(sampling.WIDE) == pytest.approx(rate, rel=2e-6)


def test_the_last_uniform_number_gives_no_outlier():
    """Sums in float32 may end below it; the exact counts here are 15, 38 and 96."""
    mean, theta = torch.tensor([1.0, 3.9, 3.9]), torch.tensor([3.0, 3.0, 0.5])
    ratio = mean / (mean + theta)
    none = torch.exp(-theta * torch.log1p(mean / theta))
    x = sampling._inverse(torch.full((3,), 1 - 2.0**-24), none, ratio, ratio * (theta - 1))
    assert x[0] < 70 and x[1] < 70


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("which", ["mean", "theta"])
def test_invalid_parameters_are_rejected(which, value):
    mean, theta = torch.full((70, 2), 3.0), torch.tensor([1.0, 2.0])
    (mean if which == "mean" else theta)[-1] = value
    with pytest.raises(ValueError, match="finite"):
        negative_binomial(mean, theta, torch.Generator())


@pytest.mark.parametrize("shape", [0.05, 0.9, 1.0, 1.7, 1e3, 1e6])
def test_gamma_variables(shape):
    x = sampling._gamma(torch.tensor([shape]), torch.Size((50_000, 1)), torch.Generator().manual_seed(0))
    assert stats.kstest(x.double().numpy().ravel(), stats.gamma(shape).cdf).pvalue > 1e-4


def test_means_with_a_gradient_give_counts_without():
    theta = torch.ones(2, requires_grad=True)
    x = negative_binomial(torch.rand(70, 2) * torch.tensor([0.1, 90.0]) * theta, theta, torch.Generator())
    assert not x.requires_grad and (x == x.round()).all()


def test_seeds_dtypes_and_no_cells():
    mean, theta = torch.rand(50, 7) * 30, torch.rand(7) + 0.5
    first, again, other = (negative_binomial(mean, theta, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert negative_binomial(mean.double(), theta.double(), torch.Generator()).dtype == torch.float64
    assert negative_binomial(mean[:0], theta, torch.Generator()).shape == (0, 7)


def test_compiled_inversion_takes_the_smallest_count_that_reaches_the_uniform_number(chosen, monkeypatch):
    """Against scipy's quantiles, for rows of a length that fills no block, by one thread and by several."""
    if chosen == "plain":
        pytest.skip("it is about compiled code")
    rng = np.random.default_rng(0)
    mean = torch.from_numpy(rng.uniform(0, 80, (40, 77)) * (rng.random((40, 77)) < 0.9)).float()
    theta = torch.from_numpy(np.geomspace(1.5, 1e6, 77)).float()
    u = torch.rand(mean.shape, generator=torch.Generator().manual_seed(0)).double().numpy()
    x = draw_by_inversion(mean, theta, torch.Generator().manual_seed(0))
    m, t = mean.double().numpy(), theta.double().numpy()
    law = stats.nbinom(t, t / (t + m))
    # a count is right if the distribution function passes u there, up to the rounding of its sum
    assert (law.cdf(x.numpy()) > u - 2e-6).all() and (law.cdf(x.numpy() - 1) < u + 2e-6).all()
    assert not x[mean == 0].any()
    monkeypatch.setattr(cpu_negative_binomial, "PER_THREAD", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(draw_by_inversion(mean, theta, torch.Generator().manual_seed(0)), x)
