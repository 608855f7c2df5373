"""False discovery rates, in numpy: importing scipy.stats for them would double the start-up time of a job."""

from __future__ import annotations

import numpy as np


def false_discovery_rates(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q of the p values (..., D) of D tests.

    The q of a test is the smallest p' D / n(p') over all p' >= p, where n(p') tests have a p of at most p'.
    """
    p = np.asarray(p, float)
    n = p.shape[-1]
    order = np.argsort(p, -1)
    rate = np.take_along_axis(p, order, -1) * (n / np.arange(1, n + 1))
    rate = np.minimum.accumulate(rate[..., ::-1], -1)[..., ::-1]
    q = np.empty_like(p)
    np.put_along_axis(q, order, rate, -1)
    return np.minimum(q, 1.0)
