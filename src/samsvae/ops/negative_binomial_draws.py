"""Draws of counts by vectorised arithmetic, for the CPU, where torch's own draw one value after the other.

No approximation but that of float32, whose uniform numbers have 24 bits: single probabilities are right to 6e-8, and
tails of less than 1e-7 are cut (the mean of a concentration of 1e-5 is 0.3 % too low by that). On other devices
torch's own draws are taken.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import count as count_from

import numpy as np
import torch
from torch import Tensor

#: Values drawn at once: enough to hide the cost of calls, few enough for a cache.
BLOCK = 2**19

#: Genes below this mean, and with a tail (m / theta) not longer than this, are drawn by inversion, but values of a mean
#: above FAR; those of them that are sums of fewer than RARE clusters in the cells looked at, cluster by cluster.
LOW, LONG, FAR, RARE = 6.0, 8.0, 16.0, 0.6

#: Rates from which Poisson draws are by rejection; below, they are steps of GRID, drawn from tables of WIDE counts,
#: and a rest.
HIGH, GRID, WIDE = 128.0, 1.0, 256

#: Terms of a distribution function after which one looks at what is still short of it, and goes on with that alone
#: where it is FEW.
LOOKS, FEW = (3, 7, 14), 0.5

#: A term below this is less than float32 can add to a distribution function.
LEAST = 1e-10


@torch.no_grad()
def negative_binomial(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Counts (..., G) of mean m (..., G) and concentration theta (G,), variance m + m^2 / theta.

    ValueError where these are not finite, a mean is below 0, or theta is not above 0.
    """
    if mean.device.type != "cpu":
        rate = torch._standard_gamma(theta.expand(mean.shape), generator=generator) * (mean / theta)
        return torch.poisson(rate, generator=generator)
    rows = mean.reshape(-1, mean.shape[-1])
    if not rows.numel():
        return torch.empty_like(mean)
    for values, least in ((rows, 0.0), (theta, torch.finfo(theta.dtype).tiny)):
        low, high = values.aminmax()
        if not (low >= least and high < math.inf):  # nor is NaN
            raise ValueError("means of a negative binomial must be finite and not below 0, concentrations above 0")
    # by gene, not by value: the means of a gene are much alike, and columns cost less to take apart
    some = rows[:: max(1, len(rows) // 64)]
    usual, most = some.mean(0), some.amax(0)
    short = usual < LONG * theta
    rare = short & (theta * torch.log1p(most / theta) < RARE)
    low = short & ~rare & (usual < LOW)
    most = torch.where(rare, most, torch.where(low, FAR, math.inf))
    ways = {_by_clusters: rare, _by_inversion: low, _by_mixture: ~(rare | low)}
    order = torch.cat([genes.nonzero()[:, 0] for genes in ways.values()])
    out = torch.minimum(rows, most).index_select(1, order)  # the genes of a way side by side
    last = 0
    for draw, genes in ways.items():
        first, last = last, last + int(genes.sum())
        if first == last:
            continue
        own, step = theta[genes], max(1, BLOCK // (last - first))
        for start in range(0, len(rows), step):
            block = out[start : start + step, first:last]
            block.copy_(draw(block.contiguous(), own, generator))
    out = out.index_select(1, order.argsort())
    far = _where(rows.numpy() > most.numpy())
    if len(far):
        own = theta.index_select(0, far % rows.shape[1])
        x = _by_mixture(rows.flatten().index_select(0, far)[None], own, generator)
        out.view(-1).index_copy_(0, far, x[0])
    return out.view(mean.shape)


def _by_clusters(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Counts (n, g) as sums of clusters: theta log(1 + m / theta) of them in the mean, a Poisson variable, each of
    a logarithmic variable's size (Quenouille 1949). What costs is the clusters, not the cells without one.
    """
    n, genes = mean.shape
    most = torch.log1p(mean.amax(0) / theta)  # of clusters in a cell, in units of theta
    number = torch.poisson(n * theta * most, generator=generator).long()
    gene = torch.repeat_interleave(number)
    cell = torch.rand(len(gene), generator=generator, dtype=torch.float64).mul_(n).long()
    at = cell.mul_(genes).add_(gene)
    # they come as often as in the cell with the most; of the others' some are dropped
    m, t = mean.flatten().index_select(0, at), theta.index_select(0, gene)
    rate = torch.log1p(m / t)
    u = torch.rand(len(at), generator=generator, dtype=mean.dtype)
    kept = _where((u * most.index_select(0, gene)).numpy() < rate.numpy())
    at, m, t, rate = (value.index_select(0, kept) for value in (at, m, t, rate))
    ratio = m / (m + t)
    u = torch.rand(len(at), generator=generator, dtype=mean.dtype)
    size = _inverse(u, ratio / rate, ratio, -ratio, first=1)
    return torch.zeros_like(mean).view(-1).index_add_(0, at, size).view(n, genes)


def _by_inversion(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    none = torch.log1p(mean / theta).mul_(-theta).exp_()
    ratio = mean / (mean + theta)
    slope = ratio * (theta - 1.0)
    return _inverse(u.flatten(), none.flatten(), ratio.flatten(), slope.flatten()).view(mean.shape)


def _by_mixture(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts of rates that are gamma variables."""
    rate = _gamma(theta, mean.shape, generator).mul_(mean / theta)
    return _poisson(rate.flatten(), generator).view(mean.shape)


def _where(mask: np.ndarray) -> Tensor:
    """Positions of what is true in a flattened mask. numpy compares and searches several times faster than torch."""
    return torch.from_numpy(np.flatnonzero(mask))


def _inverse(u: Tensor, p: Tensor, a: Tensor | None, b: Tensor, first: int = 0) -> Tensor:
    """The first count whose distribution function reaches u, from p_first = p and p_k = p_{k-1} (a + b / k).

    a = 0 (None), b = rate is Poisson's; a = m / (m + theta), b = a (theta - 1) the negative binomial's; b = -a, of
    counts from 1 on, the logarithmic one's. All (n,).
    """
    u = u - p
    x, at, one = torch.gt(u, 0.0).to(u.dtype).add_(first), None, torch.empty_like(u)
    count = x
    for k in count_from(first + 1):
        if k - first in LOOKS or k % LOOKS[-1] == 0:
            left = _where((u.numpy() > 0.0) & (p.numpy() >= LEAST))
            if not len(left):
                break
            if len(left) < FEW * len(u):  # what is short of u so far has the count k
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
    """Gamma(shape, 1) variables (n, g) of shapes (g,): Marsaglia and Tsang's rejection.

    Shapes below 1 are drawn at shape + 1 and multiplied by u^(1 / shape).
    """
    small = _where(shape.numpy() < 1.0)
    d = shape.index_add(0, small, torch.ones_like(small, dtype=shape.dtype)) - 1.0 / 3.0
    c = torch.rsqrt(9.0 * d)
    x = torch.randn(size, generator=generator, dtype=shape.dtype)
    u = torch.rand(size, generator=generator, dtype=shape.dtype)
    square = x * x
    v = (x * c).add_(1.0)
    value = (v * v).mul_(v).mul_(d)
    # most pass a test without logarithms, which what is below 0 fails too
    at = _where(torch.addcmul(u, square, square, value=0.0331).numpy() >= 1.0)
    if len(at):
        column = at % size[1]
        x, u, flat = x.view(-1).index_select(0, at), u.view(-1).index_select(0, at), value.view(-1)
        while len(at):
            scale = d.index_select(0, column)
            t = x * c.index_select(0, column)
            # d (1 - v + log v) at v = (1 + t)^3, without the cancellation of a large d
            room = scale * (3.0 * (torch.log1p(t) - t - t * t) - t**3)
            fits = torch.log(u) < 0.5 * x * x + room  # NaN, which t <= -1 gives, does not
            flat.index_copy_(0, at, (1.0 + t) ** 3 * scale)  # what does not fit is written over
            left = _where(~fits.numpy())
            at, column = at.index_select(0, left), column.index_select(0, left)
            x = torch.randn(len(at), generator=generator, dtype=shape.dtype)
            u = torch.rand(len(at), generator=generator, dtype=shape.dtype)
    if len(small):
        power = torch.rand((size[0], len(small)), generator=generator, dtype=shape.dtype)
        power.log_().div_(shape.index_select(0, small)).exp_()
        value.index_copy_(1, small, power.mul_(value.index_select(1, small)))
    return value


def _poisson(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts of rates (n,).

    Below HIGH a rate is a step of a grid, drawn from a table, and a rest, drawn by inversion: their counts add up.
    Above, by rejection.
    """
    out = torch.empty_like(rate)
    high = rate.numpy() >= HIGH
    at = _where(high)
    low = None
    if len(at):
        far = rate.index_select(0, at)
        while len(at):
            x, fits = _proposal(far, generator)
            out.index_copy_(0, at, x)  # what does not fit is written over
            left = _where(~fits.numpy())
            at, far = at.index_select(0, left), far.index_select(0, left)
        low = _where(~high)
        rate = rate.index_select(0, low)
    step = torch.floor(rate / GRID)
    rest = torch.addcmul(rate, step, torch.tensor(GRID, dtype=rate.dtype), value=-1.0).clamp_(min=0.0)
    u = torch.rand(len(rate), generator=generator, dtype=rate.dtype)
    x = _inverse(u, torch.exp(-rest), None, rest)
    accept, other = _tables(rate.dtype)
    u = torch.rand(len(rate), generator=generator, dtype=rate.dtype).mul_(WIDE)
    slot = torch.floor(u)
    at = torch.add(slot, step, alpha=WIDE).to(torch.int64)
    x += torch.where(u - slot < accept.index_select(0, at), slot, other.index_select(0, at))
    return x if low is None else out.index_copy_(0, low, x)


@lru_cache(maxsize=2)
def _tables(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Walker's alias tables of the Poisson distributions of the grid, one after the other: a slot is drawn evenly;
    it is kept with the first table's probability, else the second says what is drawn instead."""
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
    # a uniform number is a multiple of eps / 2: half a step off, else 0 would accept the least probability
    accept -= WIDE * torch.finfo(dtype).eps / 4.0
    return torch.from_numpy(accept.ravel()).to(dtype), torch.from_numpy(other.ravel()).to(dtype)


def _proposal(rate: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A count for each rate of 10 or more, and whether it is accepted: Hoermann's transformed rejection (PTRS)."""
    b = torch.sqrt(rate).mul_(2.53).add_(0.931)
    a = b.mul(0.02483).sub_(0.059)
    u = torch.rand(len(rate), generator=generator, dtype=rate.dtype).sub_(0.5)
    v = torch.rand(len(rate), generator=generator, dtype=rate.dtype)
    s = 0.5 - u.abs()
    x = (2.0 * a / s).add_(b).mul_(u).add_(rate).add_(0.43).floor_()
    fits = (s >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2.0))
    at = _where((~fits & (x > 0.0) & ((s >= 0.013) | (v <= s))).numpy())
    if len(at):
        k, r, b, a, s, v = (value.index_select(0, at) for value in (x, rate, b, a, s, v))
        # log p(k) by Stirling's series, in which nothing large cancels; a rate of HIGH gives no small k
        t = (r - k) / k
        log_p = k * (torch.log1p(t) - t) - 0.5 * torch.log(2.0 * math.pi * k) - 1.0 / (12.0 * k) + 1.0 / (360.0 * k**3)
        inverse = 1.1239 + 1.1328 / (b - 3.4)
        fits[at] = torch.log(v * inverse / (a / (s * s) + b)) <= log_p
    return x, fits
