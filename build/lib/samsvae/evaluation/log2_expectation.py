"""The mean of log2(1 + 1e4 x / S) over the counts x of a cell and their sum S, without sampling counts.

The counts of a cell are independent negative binomials, so S varies too, and contains x. For a given mean m of a gene
and mean L of S, the function of x and S is expanded to second order in S around L; x is kept exact, because it may be
large compared with L. The terms are curves over log m that depend on L and on the gene's concentration alone.

A negative binomial count is Poisson with rate m t, where t is a gamma variable with mean 1 and shape theta. For a given
rate, the mean of a function of x is one curve over the log rate, the same for all genes. The mean over t is a sum of
points of this curve, weighted by the density of log t. Letters: G genes, K depths L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samsvae.config.vocabulary import LIBRARY

#: Distance between points of a curve, in the log of a mean or rate. The error of a curve is below 3e-4 for depths of
#: 10,000, and below 1e-3 for depths of 185.
STEP = 1.0 / 32.0

#: Range of log t. Below it counts are 0; above it the density is negligible for concentrations from 1e-3 on.
LOG_T = (-25.0, 12.0)

#: Points with a smaller weight for every gene are left out.
NEGLIGIBLE = 1e-9

#: The largest concentration whose density this distance resolves; above, the step to Poisson shrinks as 1 / theta.
WIDEST = 200.0

#: Up to this rate, Poisson probabilities of counts up to LAST_COUNT are summed; above it, a series with two terms.
LAST_SUM, LAST_COUNT = 200.0, 400


class Log2Mean:
    """E log2(1 + 1e4 x_g / S) of the counts of cells (..., G) with concentrations theta (G,), from their means.

    ``depths`` (K,): the sums of the means of a cell that will be needed. ``largest``: the largest mean of a gene.
    ``floor``: of the means of the likelihood; smaller means count as the floor.
    """

    def __init__(self, theta: Tensor, depths: Sequence[float], largest: float, floor: float):
        self.low = math.log(floor)
        self.points = math.ceil((math.log(max(largest, 2 * floor)) - self.low) / STEP) + 2
        concentration = theta.double().cpu().numpy()[:, None]
        mix = _Mixture(concentration, self.low, self.points)
        mean = np.exp(self.low + STEP * np.arange(self.points))
        # a row has value and slope of both curves, which are read together
        table = torch.empty(len(depths), len(concentration), self.points - 1, 2, 2, dtype=theta.dtype)
        for k, depth in enumerate(depths):  # one after the other: their double precision needs much memory
            curves = np.stack(_curves(mix, mean, concentration, depth))
            table[k] = torch.from_numpy(np.stack([curves[..., :-1], np.diff(curves)], -1)).movedim(0, -2)
        self.table = table.flatten(0, 2).flatten(1).to(theta.device)
        self.inverse = 1.0 / theta
        self.genes, self.last = len(concentration), self.points - 2

    def __call__(self, mean: Tensor, at: Tensor | int = 0) -> Tensor:
        """The expectations (..., G) for the means of cells. ``at``: the position of the depth of each cell (...)."""
        point = torch.log(mean).sub_(self.low).mul_(1.0 / STEP).clamp_(0.0, self.last)
        rest = point.frac()
        depth = torch.as_tensor(at, device=mean.device)[..., None]
        curve = self.genes * depth + torch.arange(self.genes, device=mean.device)  # tables are (K, G, points)
        index = (curve * (self.points - 1) + point.long()).expand(mean.shape).flatten()
        rows = self.table.index_select(0, index).view(*mean.shape, 4)
        value, spread = (torch.addcmul(rows[..., i], rows[..., i + 1], rest) for i in (0, 2))
        variance = (mean + mean * mean * self.inverse).sum(-1, keepdim=True)  # of S
        return value.addcmul_(spread, variance)


def _curves(mix: _Mixture, mean: np.ndarray, theta: np.ndarray, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Two curves (G, points): the part without, and the factor of, the variance of S.

    With f(x, S) = log2(1 + c x / S), S - L = (x - m) + (rest - its mean) and f', f'' its derivatives by S at S = L,
    E f = E[f + f' (x - m) + f'' (x - m)^2 / 2] + E[f''] (Var S - Var x) / 2.
    """
    f, first, x_first, second, x_second, xx_second = (mix(*each) for each in _functions(LIBRARY / depth))
    square = xx_second - 2.0 * mean * x_second + (mean**2 - mean - mean**2 / theta) * second
    value = f + (x_first - mean * first) / depth + 0.5 * square / depth**2
    return value, 0.5 * second / depth**2


def _functions(s: float) -> Iterator[tuple]:
    """f, L f', x L f', L^2 f'', x L^2 f'' and x^2 L^2 f'' as functions of x, each with its second derivative by x.

    ``s``: c / L. With a = 1 / (1 + s x): L f' = (a - 1) / ln 2 and L^2 f'' = (1 - a^2) / ln 2.
    """

    def a(x: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + s * x)

    unit = 1.0 / math.log(2.0)
    yield lambda x: unit * np.log1p(s * x), lambda x: -unit * (s * a(x)) ** 2
    yield lambda x: unit * (a(x) - 1.0), lambda x: unit * 2 * s**2 * a(x) ** 3
    yield lambda x: unit * x * (a(x) - 1.0), lambda x: unit * (2 * s**2 * x * a(x) ** 3 - 2 * s * a(x) ** 2)
    yield lambda x: unit * (1.0 - a(x) ** 2), lambda x: -unit * 6 * s**2 * a(x) ** 4
    yield (
        lambda x: unit * x * (1.0 - a(x) ** 2),
        lambda x: unit * (4 * s * a(x) ** 3 - 6 * s**2 * x * a(x) ** 4),
    )
    yield (
        lambda x: unit * x**2 * (1.0 - a(x) ** 2),
        lambda x: unit * (2.0 - 2 * a(x) ** 2 + 8 * s * x * a(x) ** 3 - 6 * s**2 * x**2 * a(x) ** 4),
    )


class Part(NamedTuple):
    """Genes that need the same part of a curve."""

    genes: np.ndarray  # (G,) bool
    points: slice
    weights: np.ndarray  # (genes, points)


def _part(density: np.ndarray, genes: np.ndarray) -> Part:
    """The points that some genes need, and their weights in float32, which halves the time of products."""
    needed = np.flatnonzero((density[genes] > NEGLIGIBLE).any(0))
    points = slice(int(needed[0]), int(needed[-1]) + 1)
    return Part(genes, points, density[genes, points].astype(np.float32))


class _Mixture:
    """Means of functions of negative binomial counts, as curves (G, points) over the log of their mean."""

    def __init__(self, theta: np.ndarray, low: float, points: int):
        self.true, self.own, self.points = theta, np.minimum(theta, WIDEST), points
        log_t = np.arange(LOG_T[0], LOG_T[1], STEP)
        self.rate = np.exp(low + LOG_T[0] + STEP * np.arange(points + len(log_t) - 1))
        norm = np.array([math.lgamma(x) for x in self.own[:, 0]])[:, None]
        density = STEP * np.exp(self.own * (log_t - np.exp(log_t) + np.log(self.own)) - norm)
        # most genes need a small part of the range, so they are kept apart from those that need more of it
        low_half = (density[:, : len(log_t) // 2] > NEGLIGIBLE).any(1)
        self.parts = [_part(density, genes) for genes in (low_half, ~low_half) if genes.any()]
        self.count = np.arange(LAST_COUNT + 1.0)
        rate = self.rate[self.rate <= LAST_SUM][:, None]
        factorial = np.array([math.lgamma(k + 1.0) for k in self.count])
        self.probability = np.exp(self.count * np.log(rate) - rate - factorial)

    def __call__(self, function, second_derivative) -> np.ndarray:
        high = self.rate[len(self.probability) :]
        poisson = np.concatenate(
            [self.probability @ function(self.count), function(high) + 0.5 * high * second_derivative(high)]
        )
        windows = np.lib.stride_tricks.sliding_window_view(poisson.astype(np.float32), self.points)
        curves = np.empty((len(self.own), self.points))
        for genes, at, weights in self.parts:
            curves[genes] = weights @ windows[at]
        fixed_rate = poisson[-round(LOG_T[0] / STEP) :][: self.points]  # t = 1
        return fixed_rate + self.own / self.true * (curves - fixed_rate)
