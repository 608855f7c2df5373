"""The likelihood of counts: a negative binomial whose mean is the library size times a softmax (eq. 2).

A fused kernel computes the sum over genes: compiled C code on a CPU, Triton on a GPU. On a CPU without a compiler,
torch's operations run in blocks that fit the cache, with explicit gradients and a table of gamma terms. Letters: K
particles, n cells, G genes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samsvae.config.vocabulary import FLOOR
from samsvae.models.distributions import NegativeBinomial
from samsvae.ops import cpu_negative_binomial
from samsvae.ops.softmax_nb import gamma_terms, softmax_nb

#: The smallest normal float32.
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class SoftmaxNegativeBinomial:
    """Negative binomial counts with mean l softmax(logits) + ``floor`` (eq. 2); the logits are ``product`` + ``bias``.

    Shapes: ``product`` (..., n, G), ``library`` l (n,), ``concentration`` (G,), ``bias`` (G,), by default 0; value
    (n, G). ``log_likelihood``, which training uses, never holds the complete mean in memory.
    """

    product: Tensor
    library: Tensor
    concentration: Tensor
    floor: float = FLOOR
    bias: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        return self.product if self.bias is None else self.product + self.bias

    @property
    def mean(self) -> Tensor:
        return (self.library[:, None] * torch.softmax(self.logits, dim=-1)).add_(self.floor)

    def log_prob(self, value: Tensor) -> Tensor:
        return NegativeBinomial(self.mean, self.concentration).log_prob(value)

    def sample(self, generator: torch.Generator) -> Tensor:
        return NegativeBinomial(self.mean, self.concentration).sample(generator)

    def log_likelihood(self, value: Tensor) -> Tensor:
        """log_prob summed over genes (..., n)."""
        product, library, theta = self.product, self.library, self.concentration
        on_gpu = product.device.type != "cpu" or torch.compiler.is_compiling()
        if on_gpu or cpu_negative_binomial.fits(product, theta, value):
            bias = torch.zeros_like(theta) if self.bias is None else self.bias
            fused = softmax_nb if on_gpu else cpu_negative_binomial.softmax_nb
            return fused(product, bias, library, theta, value, self.floor)
        logits = self.logits if product.ndim == 3 else self.logits.reshape(-1, *product.shape[-2:])
        rest = _MeanTerms.apply(logits, library, theta, value, self.floor)
        return rest.view(product.shape[:-1]) + _GammaTerms.apply(theta, value)


class _GammaTerms(torch.autograd.Function):
    """On a CPU: sum_g lgamma(x + theta) - lgamma(theta) - x log(theta) - lgamma(x + 1) for every cell (n,).

    These terms of the likelihood of x (n, G) depend neither on the mean nor on the particle and are computed once for
    all particles. For integer counts the first three equal sum_{j < x} log(1 + j / theta), which a table holds for
    small counts.
    """

    TABLE = 64  # largest count in the table; the gamma functions are used above it

    @staticmethod
    def forward(ctx, theta: Tensor, x: Tensor) -> Tensor:
        index, large = _GammaTerms.places(x)
        ctx.save_for_backward(theta, x, index, large)
        if index is None or large is None:
            return gamma_terms(theta, x).sum(-1)
        j = torch.arange(_GammaTerms.TABLE + 1, dtype=theta.dtype, device=theta.device)[:, None]
        table = _GammaTerms.below(torch.log1p(j / theta)) - torch.lgamma(j + 1.0)
        return _GammaTerms.look_up(table, index, large, theta, x, gamma_terms).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, x, index, large = ctx.saved_tensors
        if index is None:
            return torch.mv(_d_gammas(theta, x).T, grad), None
        j = torch.arange(_GammaTerms.TABLE + 1, dtype=theta.dtype, device=theta.device)[:, None]
        table = _GammaTerms.below(-j / (theta * (theta + j)))
        return torch.mv(_GammaTerms.look_up(table, index, large, theta, x, _d_gammas).T, grad), None

    @staticmethod
    def places(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The position of every count in the table (n G,), and the counts above it; None if counts are not integers."""
        if not torch.equal(x, x.floor()):
            return None, None
        genes = x.shape[-1]
        index = x.clamp(max=_GammaTerms.TABLE).int() * genes + torch.arange(genes, dtype=torch.int32)
        # numpy compares and searches ten times faster
        return index.flatten(), torch.from_numpy(np.flatnonzero(x.numpy() > _GammaTerms.TABLE))

    @staticmethod
    def below(terms: Tensor) -> Tensor:
        """For each row, the sum of the rows before it."""
        return F.pad(terms[:-1].cumsum(0), (0, 0, 1, 0))

    @staticmethod
    def look_up(table: Tensor, index: Tensor, large: Tensor, theta: Tensor, x: Tensor, formula: Callable) -> Tensor:
        found = table.flatten().index_select(0, index)
        found[large] = formula(theta[large % x.shape[-1]], x.flatten()[large])
        return found.view(x.shape)


def _d_gammas(theta: Tensor, x: Tensor) -> Tensor:
    return torch.digamma(x + theta) - torch.digamma(theta) - x / theta


class _MeanTerms(torch.autograd.Function):
    """On a CPU: sum_g x log(m) - (x + theta) log(1 + m / theta) (K, n), m = l softmax(logits) + floor.

    The gradients are explicit:
    d/dm = x / m - (x + theta) / (m + theta); d/dtheta = (1 + x / theta) m / (m + theta) - log(1 + m / theta).
    Cells are processed in blocks that fit a CPU's cache, so that each number is read while it is there.
    """

    BLOCK = 2**17  # logits per block

    @staticmethod
    def forward(ctx, logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> Tensor:
        particles, n, genes = logits.shape
        cells = max(1, _MeanTerms.BLOCK // (particles * genes))
        out = logits.new_empty(particles, n)
        slopes = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        spreads = torch.empty_like(logits) if ctx.needs_input_grad[2] else None
        for start in range(0, n, cells):
            at = slice(start, start + cells)
            size, count = library[at, None], x[at]
            count_theta = count + theta
            share = torch.softmax(logits[:, at], -1).mul_(size)
            mean = share + floor
            spread = torch.log1p(mean / theta)
            out[:, at] = torch.log(mean).mul_(count).addcmul_(count_theta, spread, value=-1.0).sum(-1)
            if slopes is None and spreads is None:
                continue
            weight = (mean + theta).reciprocal_()
            if slopes is not None:
                slope = torch.div(count, mean).addcmul_(count_theta, weight, value=-1.0).mul_(share)
                total = slope.sum(-1, keepdim=True).div_(size.clamp(min=TINY))  # 0 / TINY for a library size of 0
                torch.addcmul(slope, share, total, value=-1.0, out=slopes[:, at])
            if spreads is not None:
                torch.sub(weight.mul_(mean).mul_(count_theta / theta), spread, out=spreads[:, at])
        ctx.save_for_backward(slopes, spreads)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes, spreads = ctx.saved_tensors
        d_logits = None if slopes is None else slopes * grad[..., None]
        d_theta = None if spreads is None else torch.mv(spreads.flatten(0, 1).T, grad.flatten())
        return d_logits, None, d_theta, None, None
