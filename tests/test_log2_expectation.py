"""Expectations of log2(1 + c x) over counts, compared with sums over scipy's probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from samsvae.config.vocabulary import FLOOR
from samsvae.evaluation.log2_expectation import STEP, WIDEST, Log2Mean

THETA = (0.01, 0.1, 0.7, 3.0, 20.0, WIDEST - 1, WIDEST + 1, 1e3, 1e6)


@pytest.mark.parametrize(("scale", "error"), [(0.3, 2e-4), (1.0, 2e-4), (54.0, 2e-4), (1e4, 6e-4)])
@pytest.mark.parametrize("mean", [1e-4, 1e-3, 0.02, 0.4, 0.7, 1.7, 3.3, 41.0, 190.0, 210.0, 9e3])
def test_expectations_are_sums_over_counts(scale, error, mean):
    mean = FLOOR * np.exp((np.floor(np.log(mean / FLOOR) / STEP) + 0.5) * STEP)  # halfway between two points
    found = Log2Mean(torch.tensor(THETA, dtype=torch.float64), scale, 1e4)(torch.full((2, len(THETA)), mean).double())
    for theta, value, other in zip(THETA, *found.tolist(), strict=True):
        counts = stats.nbinom(theta, theta / (theta + mean))
        if (top := int(counts.isf(1e-12)) + 10) < 2e6:  # otherwise the sum is too long
            k = np.arange(top)
            assert value == other == pytest.approx((counts.pmf(k) * np.log2(1 + scale * k)).sum(), abs=error)


def test_each_gene_has_its_concentration_and_means_are_clamped_to_the_table():
    theta = torch.tensor([0.2, 50.0])
    curve = Log2Mean(theta, 1.0, 100.0)
    mean = torch.tensor([[1.0, 1.0], [5.0, 80.0]])
    apart = [Log2Mean(theta[[g]], 1.0, 100.0)(mean[:, [g]]) for g in range(2)]
    torch.testing.assert_close(curve(mean), torch.cat(apart, 1))
    assert (curve(mean)[0, 0] < curve(mean)[0, 1]) and curve(mean).dtype == torch.float32
    assert (curve(torch.tensor([[0.0, 1e-9]])) == curve(torch.full((1, 2), 1e-4))).all()
