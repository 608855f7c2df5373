"""The mean of log2(1 + c x) over negative binomial counts x of given means, without a draw of them.

x is Poisson's of a rate, the rate m t of a gamma variable t of mean 1 and shape theta. Over the rate's logarithm the
mean of log2(1 + c x) is one curve for all genes; that over t is a sum of its points, weighted by the density of log t.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from samsvae.config.vocabulary import FLOOR

#: Distance of the points on a curve, in the logarithm of a mean or rate: errors are 2e-4 or less up to a scale of
#: 100, which are libraries of 100 and more, and 6e-4 up to 1e5.
STEP = 1.0 / 32.0

#: Where the density of log t is looked at: below, counts are 0; above, concentrations from 1e-3 on leave nothing.
LOG_T = (-25.0, 12.0)

#: The largest concentration of which this distance shows the density; above, the way to Poisson's is as 1 / theta.
WIDEST = 200.0

#: The largest rate of which Poisson's probabilities are added up, of counts up to TOP; above, two terms of a series.
SERIES, TOP = 200.0, 400


class Log2Mean:
    """E log2(1 + scale x) of counts x (..., G) of given means and concentrations theta (G,), as a function of means.

    ``largest``: mean that is asked for. Means below the likelihood's floor are taken to be there.
    """

    def __init__(self, theta: Tensor, scale: float, largest: float):
        true = theta.double().cpu().numpy()[:, None]
        own = np.minimum(true, WIDEST)
        self.low = math.log(FLOOR)
        points = math.ceil((math.log(max(largest, 2 * FLOOR)) - self.low) / STEP) + 2
        log_t = np.arange(LOG_T[0], LOG_T[1], STEP)
        log_rate = self.low + LOG_T[0] + STEP * np.arange(points + len(log_t) - 1)
        poisson = _poisson(np.exp(log_rate), scale)
        norm = np.array([math.lgamma(x) for x in own[:, 0]])[:, None]
        density = np.exp(own * (log_t - np.exp(log_t) + np.log(own)) - norm)
        curves = STEP * density @ np.lib.stride_tricks.sliding_window_view(poisson, points)  # (G, points)
        at_once = poisson[-round(LOG_T[0] / STEP) :][:points]  # t = 1: no spread of the rate
        curves = at_once + own / true * (curves - at_once)
        self.value, self.slope = (
            torch.from_numpy(np.ascontiguousarray(part)).to(theta).flatten()
            for part in (curves[:, :-1], np.diff(curves, axis=1))
        )
        self.last = points - 2
        self.start = torch.arange(len(own), device=theta.device, dtype=torch.int32) * (points - 1)

    def __call__(self, mean: Tensor) -> Tensor:
        at = torch.log(mean).sub_(self.low).mul_(1.0 / STEP).clamp_(0.0, self.last)
        point = at.floor()
        index = (point.int() + self.start).flatten()
        rest = at.sub_(point).flatten()
        value, slope = (part.index_select(0, index) for part in (self.value, self.slope))
        return torch.addcmul(value, slope, rest, out=value).view(mean.shape)


def _poisson(rate: np.ndarray, scale: float) -> np.ndarray:
    """E log2(1 + scale x) of Poisson counts of ascending rates."""
    low = rate[rate <= SERIES][:, None]
    count = np.arange(TOP + 1)
    log_p = count * np.log(low) - low - np.array([math.lgamma(k + 1.0) for k in count])
    sums = np.exp(log_p) @ np.log1p(scale * count)
    high = rate[len(low) :]
    spread = 0.5 * high * (scale / (1.0 + scale * high)) ** 2
    return np.concatenate([sums, np.log1p(scale * high) - spread]) / math.log(2.0)
