"""Vectorised negative binomial draws for the CPU, where torch draws one value after another.

The only approximation is that of float32, whose uniform numbers have 24 bits: single probabilities are accurate to
6e-8, and tails below 1e-7 are cut off (at a concentration of 1e-5 this makes the mean 0.3 % too low). On other devices
torch's own draws are used.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import count as count_from
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samsvae.ops.cpu_negative_binomial import draw_by_inversion, is_compiled

#: Number of values drawn at once: enough to hide the cost of calls, few enough to fit a cache.
BLOCK = 2**19


class Limits(NamedTuple):
    """Which genes are drawn how: with a mean below ``low`` and a tail (m / theta) of at most ``long`` by inversion,
    except for values with a mean above ``far``; with such a tail, and fewer than ``rare`` clusters expected in sampled
    cells, cluster by cluster; all others as Poisson counts with gamma-distributed rates."""

    low: float
    long: float
    far: float
    rare: float


#: Where each method is the fastest. Compiled inversion takes 3 to 14 ns for a count; it cannot take a mean above 80,
#: where the probability of 0 is no longer a normal float.
LIMITS = {"plain": Limits(6.0, 8.0, 16.0, 0.6), "compiled": Limits(40.0, 30.0, 80.0, 0.05)}

#: Poisson draws with a rate of HIGH or more use rejection. A smaller rate is a multiple of GRID, drawn from tables of
#: WIDE counts, plus a remainder.
HIGH, GRID, WIDE = 128.0, 1.0, 256

#: Inversion checks after so many terms which values are unfinished, and continues with these alone if they are less
#: than the fraction FEW.
CHECKS, FEW = (3, 7, 14), 0.5

#: A smaller term does not change a distribution function in float32.
NEGLIGIBLE = 1e-10


@torch.no_grad()
def negative_binomial(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Counts (..., G) with mean m (..., G), concentration theta (G,) and variance m + m^2 / theta.

    ValueError if a value is not finite, a mean is below 0 or a concentration is not above 0.
    """
    if mean.device.type != "cpu":
        rate = torch._standard_gamma(theta.expand(mean.shape), generator=generator) * (mean / theta)
        return torch.poisson(rate, generator=generator)
    rows = mean.reshape(-1, mean.shape[-1])
    if not rows.numel():
        return torch.empty_like(mean)
    for values, least in ((rows, 0.0), (theta, torch.finfo(theta.dtype).tiny)):
        low, high = values.aminmax()
        if not (low >= least and high < math.inf):  # also false for NaN
            raise ValueError("means of a negative binomial must be finite and not below 0, concentrations above 0")
    compiled = mean.dtype == theta.dtype == torch.float32 and is_compiled()
    limits = LIMITS["compiled" if compiled else "plain"]
    # a method for each gene, not each value: the means of a gene are similar, and columns are cheaper to separate
    sampled = rows[:: max(1, len(rows) // 64)]
    typical, most = sampled.mean(0), sampled.amax(0)
    short = typical < limits.long * theta
    rare = short & (theta * torch.log1p(most / theta) < limits.rare)
    low = short & ~rare & (typical < limits.low)
    most = torch.where(rare, most, torch.where(low, limits.far, math.inf).to(mean.dtype))
    inversion = draw_by_inversion if compiled else _by_inversion
    # inversion takes as many steps for a group of genes as for the one with the largest counts
    ordered = typical.argsort()
    methods = {
        draw: ordered[genes[ordered]]
        for draw, genes in ((_by_clusters, rare), (inversion, low), (_by_mixture, ~(rare | low)))
    }
    order = torch.cat(list(methods.values()))
    out = torch.minimum(rows, most).index_select(1, order)  # puts the genes of a method next to each other
    last = 0
    for draw, genes in methods.items():
        first, last = last, last + len(genes)
        if first == last:
            continue
        concentration, step = theta[genes], max(1, BLOCK // (last - first))
        for start in range(0, len(rows), step):
            block = out[start : start + step, first:last]
            block.copy_(draw(block.contiguous(), concentration, generator))
    out = out.index_select(1, order.argsort())
    far = _positions(rows.numpy() > most.numpy())
    if len(far):
        concentration = theta.index_select(0, far % rows.shape[1])
        x = _by_mixture(rows.flatten().index_select(0, far)[None], concentration, generator)
        out.view(-1).index_copy_(0, far, x[0])
    return out.view(mean.shape)


def _by_clusters(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Counts (n, g) as sums of clusters (Quenouille 1949): a Poisson number of clusters with mean
    theta log(1 + m / theta), each with a logarithmically distributed size. Only clusters cost time, not empty cells.
    """
    n, genes = mean.shape
    most = torch.log1p(mean.amax(0) / theta)  # largest expected number of clusters in a cell, in units of theta
    number = torch.poisson(n * theta * most, generator=generator).long()
    gene = torch.repeat_interleave(number)
    cell = torch.rand(len(gene), generator=generator, dtype=torch.float64).mul_(n).long()
    at = cell.mul_(genes).add_(gene)
    # clusters are drawn at the rate of the cell with the most; in other cells some are dropped
    m, t = mean.flatten().index_select(0, at), theta.index_select(0, gene)
    rate = torch.log1p(m / t)
    u = torch.rand(len(at), generator=generator, dtype=mean.dtype)
    kept = _positions((u * most.index_select(0, gene)).numpy() < rate.numpy())
    at, m, t, rate = (value.index_select(0, kept) for value in (at, m, t, rate))
    ratio = m / (m + t)
    u = torch.rand(len(at), generator=generator, dtype=mean.dtype)
    size = _inverse(u, ratio / rate, ratio, -ratio, first=1)
    return torch.zeros_like(mean).view(-1).index_add_(0, at, size).view(n, genes)


def _by_inversion(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Counts (n, g) by inversion of the distribution function, with torch's operations."""
    u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    none = torch.log1p(mean / theta).mul_(-theta).exp_()
    ratio = mean / (mean + theta)
    slope = ratio * (theta - 1.0)
    return _inverse(u.flatten(), none.flatten(), ratio.flatten(), slope.flatten()).view(mean.shape)


def _by_mixture(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Counts (n, g) as Poisson counts with gamma-distributed rates."""
    rate = _gamma(theta, mean.shape, generator).mul_(mean / theta)
    return _poisson(rate.flatten(), generator).view(mean.shape)


def _positions(mask: np.ndarray) -> Tensor:
    """Positions of True in a flattened mask. numpy compares and searches several times faster than torch."""
    return torch.from_numpy(np.flatnonzero(mask))


def _inverse(u: Tensor, p: Tensor, a: Tensor | None, b: Tensor, first: int = 0) -> Tensor:
    """The smallest count whose distribution function reaches u, with p_first = p and p_k = p_{k-1} (a + b / k).

    a = 0 (None) and b = rate give the Poisson distribution; a = m / (m + theta) and b = a (theta - 1) the negative
    binomial; b = -a with counts from 1 on the logarithmic distribution. All arguments are (n,).
    """
    u = u - p
    x, at, one = torch.gt(u, 0.0).to(u.dtype).add_(first), None, torch.empty_like(u)
    count = x
    for k in count_from(first + 1):
        if k - first in CHECKS or k % CHECKS[-1] == 0:
            left = _positions((u.numpy() > 0.0) & (p.numpy() >= NEGLIGIBLE))
            if not len(left):
                break
            if len(left) < FEW * len(u):  # values that have not reached u so far have the count k
                if at is not None:
                    x.index_copy_(0, at, count)
                u, p, b = (value.index_select(0, left) for value in (u, p, b))
                a = None if a is None else a.index_select(0, left)
                at = left if at is None else at.index_select(0, left)
                count, one = torch.full_like(u, float(k)), one[: len(left)]
        p = p * (b / k if a is None else torch.add(a, b, alpha=1.0 / k))
        u.sub_(p)
        count.add_(torch.gt(u, 0.0, out=one))
    return x if at is None else x.index_copy_(0, at, count)


def _gamma(shape: Tensor, size: torch.Size, generator: torch.Generator) -> Tensor:
    """Gamma(shape, 1) variables (n, g) for shapes (g,), by Marsaglia and Tsang's rejection.

    Shapes below 1 are drawn at shape + 1 and multiplied by u^(1 / shape).
    """
    small = _positions(shape.numpy() < 1.0)
    d = shape.index_add(0, small, torch.ones_like(small, dtype=shape.dtype)) - 1.0 / 3.0
    c = torch.rsqrt(9.0 * d)
    x = torch.randn(size, generator=generator, dtype=shape.dtype)
    u = torch.rand(size, generator=generator, dtype=shape.dtype)
    square = x * x
    v = (x * c).add_(1.0)
    value = (v * v).mul_(v).mul_(d)
    # most values pass a test without logarithms; values below 0 fail it
    at = _positions(torch.addcmul(u, square, square, value=0.0331).numpy() >= 1.0)
    if len(at):
        column = at % size[1]
        x, u, flat = x.view(-1).index_select(0, at), u.view(-1).index_select(0, at), value.view(-1)
        while len(at):
            scale = d.index_select(0, column)
            t = x * c.index_select(0, column)
            # d (1 - v + log v) at v = (1 + t)^3, without the cancellation of a large d
            room = scale * (3.0 * (torch.log1p(t) - t - t * t) - t**3)
            fits = torch.log(u) < 0.5 * x * x + room  # false for NaN, which t <= -1 gives
            flat.index_copy_(0, at, (1.0 + t) ** 3 * scale)  # rejected values are overwritten later
            left = _positions(~fits.numpy())
            at, column = at.index_select(0, left), column.index_select(0, left)
            x = torch.randn(len(at), generator=generator, dtype=shape.dtype)
            u = torch.rand(len(at), generator=generator, dtype=shape.dtype)
    if len(small):
        power = torch.rand((size[0], len(small)), generator=generator, dtype=shape.dtype)
        power.log_().div_(shape.index_select(0, small)).exp_()
        value.index_copy_(1, small, power.mul_(value.index_select(1, small)))
    return value


def _poisson(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts for rates (n,).

    A rate below HIGH is split into a grid point, drawn from a table, and a remainder, drawn by inversion; the two
    counts are added. Larger rates are drawn by rejection.
    """
    out = torch.empty_like(rate)
    high = rate.numpy() >= HIGH
    at = _positions(high)
    low = None
    if len(at):
        far = rate.index_select(0, at)
        while len(at):
            x, fits = _proposal(far, generator)
            out.index_copy_(0, at, x)  # rejected values are overwritten later
            left = _positions(~fits.numpy())
            at, far = at.index_select(0, left), far.index_select(0, left)
        low = _positions(~high)
        rate = rate.index_select(0, low)
    step = torch.floor(rate / GRID)
    remainder = torch.addcmul(rate, step, torch.tensor(GRID, dtype=rate.dtype), value=-1.0).clamp_(min=0.0)
    u = torch.rand(len(rate), generator=generator, dtype=rate.dtype)
    x = _inverse(u, torch.exp(-remainder), None, remainder)
    accept, other = _tables(rate.dtype)
    u = torch.rand(len(rate), generator=generator, dtype=rate.dtype).mul_(WIDE)
    slot = torch.floor(u)
    at = torch.add(slot, step, alpha=WIDE).to(torch.int64)
    x += torch.where(u - slot < accept.index_select(0, at), slot, other.index_select(0, at))
    return x if low is None else out.index_copy_(0, low, x)


@lru_cache(maxsize=2)
def _tables(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Walker's alias tables for the Poisson distributions of the grid, one after the other.

    A slot is drawn uniformly. It is accepted with the probability in the first table; otherwise the second table gives
    the count.
    """
    k = np.arange(WIDE)
    log_factorial = np.array([math.lgamma(i + 1.0) for i in k])
    accept, other = np.ones((round(HIGH / GRID), WIDE)), np.tile(k, (round(HIGH / GRID), 1))
    for row in range(len(accept)):
        rate = row * GRID
        p = np.exp(k * math.log(rate) - rate - log_factorial) if rate else (k == 0).astype(float)
        share = p / p.sum() * WIDE
        less, more = [list(np.flatnonzero(part)) for part in (share < 1.0, share >= 1.0)]
        while less and more:
            i, j = less.pop(), more[-1]
            accept[row, i], other[row, i] = share[i], j
            share[j] -= 1.0 - share[i]
            if share[j] < 1.0:
                less.append(more.pop())
    # uniform numbers are multiples of eps / 2; subtracting half a step keeps u = 0 from accepting tiny probabilities
    accept -= WIDE * torch.finfo(dtype).eps / 4.0
    return torch.from_numpy(accept.ravel()).to(dtype), torch.from_numpy(other.ravel()).to(dtype)


def _proposal(rate: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A count for each rate (10 or more) and whether it is accepted, by Hoermann's transformed rejection (PTRS)."""
    b = torch.sqrt(rate).mul_(2.53).add_(0.931)
    a = b.mul(0.02483).sub_(0.059)
    u = torch.rand(len(rate), generator=generator, dtype=rate.dtype).sub_(0.5)
    v = torch.rand(len(rate), generator=generator, dtype=rate.dtype)
    s = 0.5 - u.abs()
    x = (2.0 * a / s).add_(b).mul_(u).add_(rate).add_(0.43).floor_()
    fits = (s >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2.0))
    at = _positions((~fits & (x > 0.0) & ((s >= 0.013) | (v <= s))).numpy())
    if len(at):
        k, r, b, a, s, v = (value.index_select(0, at) for value in (x, rate, b, a, s, v))
        # log p(k) by Stirling's series, without cancellation of large terms; rates of HIGH or more give no small k
        t = (r - k) / k
        log_p = k * (torch.log1p(t) - t) - 0.5 * torch.log(2.0 * math.pi * k) - 1.0 / (12.0 * k) + 1.0 / (360.0 * k**3)
        inverse = 1.1239 + 1.1328 / (b - 3.4)
        fits[at] = torch.log(v * inverse / (a / (s * s) + b)) <= log_p
    return x, fits
