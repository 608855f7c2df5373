"""The mean of log2(1 + c x) over negative binomial counts x with given means, without sampling counts.

A negative binomial count x is Poisson with rate m t, where m is its mean and t a gamma variable with mean 1 and shape
theta. For a given rate, the mean of log2(1 + c x) is one curve over the log rate, the same for all genes. The mean over
t is a sum of points of this curve, weighted by the density of log t.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from samsvae.config.vocabulary import FLOOR

#: Distance between points of a curve, in the log of a mean or rate. Errors are at most 2e-4 for scales up to 100
#: (libraries of 100 and more) and at most 6e-4 for scales up to 1e5.
STEP = 1.0 / 32.0

#: Range of log t. Below it counts are 0; above it the density is negligible for concentrations from 1e-3 on.
LOG_T = (-25.0, 12.0)

#: The largest concentration whose density this distance resolves; above, the step to Poisson shrinks as 1 / theta.
WIDEST = 200.0

#: Up to this rate, Poisson probabilities of counts up to LAST_COUNT are summed; above it, a series with two terms.
LAST_SUM, LAST_COUNT = 200.0, 400


class Log2Mean:
    """E log2(1 + scale x) of counts x (..., G) with concentrations theta (G,), as a function of their means (..., G).

    ``largest``: the largest mean that will be needed. Means below the likelihood's floor count as the floor.
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
        fixed_rate = poisson[-round(LOG_T[0] / STEP) :][:points]  # t = 1
        curves = fixed_rate + own / true * (curves - fixed_rate)
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
    """E log2(1 + scale x) of Poisson counts x, for rates in ascending order."""
    low = rate[rate <= LAST_SUM][:, None]
    count = np.arange(LAST_COUNT + 1)
    log_p = count * np.log(low) - low - np.array([math.lgamma(k + 1.0) for k in count])
    sums = np.exp(log_p) @ np.log1p(scale * count)
    high = rate[len(low) :]
    spread = 0.5 * high * (scale / (1.0 + scale * high)) ** 2
    return np.concatenate([sums, np.log1p(scale * high) - spread]) / math.log(2.0)
