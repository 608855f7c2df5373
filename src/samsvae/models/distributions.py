"""Probability distributions of the model family, elementwise, with the noise as an argument.

Priors and approximate posteriors of the latents follow the `Distribution` protocol. Likelihoods of the counts have
``mean``, ``log_prob``, ``log_likelihood`` and ``sample``. Equation numbers refer to docs/model.md.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from samsvae.models.noise import standard_noise
from samsvae.ops.explicit_gradients import straight_through, usable
from samsvae.ops.negative_binomial_draws import negative_binomial

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)

#: The standard noise that a draw is a function of; None for a point mass, which needs no noise.
NoiseKind = Literal["normal", "logistic"] | None


class Distribution(Protocol):
    """The prior or the approximate posterior of a latent: a dataclass of tensors."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    noise_kind: ClassVar[NoiseKind]
    noise_shape: ClassVar[tuple[int, ...]]  # noise of one value; () if it takes a single number

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def mean(self) -> Tensor: ...

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or probability, elementwise."""

    def draw(self, noise: Tensor) -> Tensor:
        """A value, as a differentiable function of standard noise (..., *noise_shape)."""


@dataclass(frozen=True)
class Normal:
    """N(loc, scale^2)."""

    loc: Tensor
    scale: Tensor
    noise_kind: ClassVar[NoiseKind] = "normal"
    noise_shape: ClassVar[tuple[int, ...]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.loc.shape

    @property
    def mean(self) -> Tensor:
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * ((value - self.loc) / self.scale) ** 2 - torch.log(self.scale) - LOG_SQRT_2PI

    def draw(self, noise: Tensor) -> Tensor:
        return self.loc + self.scale * noise

    def log_likelihood(self, value: Tensor) -> Tensor:
        """log_prob summed over genes (..., n)."""
        return self.log_prob(value).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        shape = torch.broadcast_shapes(self.loc.shape, self.scale.shape)
        return self.draw(standard_noise("normal", shape, generator))

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other), elementwise, in closed form (eq. 12)."""
        ratio = self.scale / other.scale
        return 0.5 * (ratio**2 + ((self.loc - other.loc) / other.scale) ** 2 - 1.0) - torch.log(ratio)


@dataclass(frozen=True)
class Bernoulli:
    """Bernoulli(sigmoid(logits)), drawn by the straight-through binary concrete (eq. 6).

    A draw is exactly 0 or 1, with the gradient of the relaxed value. ``log_prob`` is that of a Bernoulli variable and
    linear in the value, so that its gradient also flows through the value.
    """

    logits: Tensor
    temperature: float = 1.0
    noise_kind: ClassVar[NoiseKind] = "logistic"
    noise_shape: ClassVar[tuple[int, ...]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.logits.shape

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.logits + F.logsigmoid(-self.logits)

    def relaxed(self, noise: Tensor) -> Tensor:
        """The value before rounding, clamped to [eps, 1 - eps]."""
        soft = torch.sigmoid((self.logits + noise) / self.temperature)
        eps = torch.finfo(soft.dtype).eps
        return soft.clamp(eps, 1.0 - eps)

    def draw(self, noise: Tensor) -> Tensor:
        if usable(self.logits, products=False):
            return straight_through(self.logits, noise, self.temperature)
        soft = self.relaxed(noise)
        return torch.round(soft).detach() + (soft - soft.detach())

    def kl(self, other: Bernoulli) -> Tensor:
        """KL(self || other), elementwise, in closed form (eq. 12)."""
        p = self.mean
        return p * (F.logsigmoid(self.logits) - F.logsigmoid(other.logits)) + (1.0 - p) * (
            F.logsigmoid(-self.logits) - F.logsigmoid(-other.logits)
        )


@dataclass(frozen=True)
class Beta:
    """Beta(a, b) on (0, 1), drawn as a ratio of two gamma variables, with implicit gradients of a and b (eq. 5)."""

    a: Tensor
    b: Tensor
    noise_kind: ClassVar[NoiseKind] = "normal"
    # for each gamma variable: six proposals, six acceptance tests, and the power for a shape below 1
    noise_shape: ClassVar[tuple[int, ...]] = (2, 13)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape

    @property
    def mean(self) -> Tensor:
        return self.a / (self.a + self.b)

    def log_prob(self, value: Tensor) -> Tensor:
        log_norm = torch.lgamma(self.a) + torch.lgamma(self.b) - torch.lgamma(self.a + self.b)
        return (self.a - 1.0) * torch.log(value) + (self.b - 1.0) * torch.log1p(-value) - log_norm

    def draw(self, noise: Tensor) -> Tensor:
        """A value for each array (2, 13) of normal noise (..., 2, 13), clamped to [eps, 1 - eps]."""
        return _BetaDraw.apply(self.a, self.b, noise)

    def kl(self, other: Beta) -> Tensor:
        """KL(self || other), elementwise, in closed form (eq. 12)."""
        total, other_total = self.a + self.b, other.a + other.b
        value = torch.digamma(total) * (other_total - total) + torch.lgamma(total) - torch.lgamma(other_total)
        for ours, theirs in ((self.a, other.a), (self.b, other.b)):
            value = value + (ours - theirs) * torch.digamma(ours) + torch.lgamma(theirs) - torch.lgamma(ours)
        return value


def _log_gamma_variable(shape: Tensor, noise: Tensor) -> Tensor:
    """Log of a Gamma(shape, 1) variable, from normal noise (..., 13).

    Marsaglia and Tsang's rejection at shape + 1, times u^(1 / shape). The first accepted one of six proposals is used;
    in at most one of 10^7 draws none is accepted, and the first one is used.
    """
    x, uniform, power = noise[..., :6], torch.special.log_ndtr(noise[..., 6:12]), noise[..., 12]
    d = (shape + 2.0 / 3.0)[..., None]
    v = (1.0 + x / torch.sqrt(9.0 * d)) ** 3
    log_v = torch.log(v.clamp(min=torch.finfo(v.dtype).tiny))
    accepted = (v > 0) & (uniform < 0.5 * x**2 + d * (1.0 - v + log_v))
    first = accepted.int().argmax(-1, keepdim=True)
    return torch.log(d[..., 0]) + log_v.gather(-1, first)[..., 0] + torch.special.log_ndtr(power) / shape


class _BetaDraw(torch.autograd.Function):
    """Beta draws with implicit gradients: dx/da and dx/db at a fixed value of the distribution function F(x; a, b)."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, noise: Tensor) -> Tensor:
        shapes = torch.stack(torch.broadcast_tensors(a, b), -1).expand(noise.shape[:-1])
        eps = torch.finfo(shapes.dtype).eps
        log_gammas = _log_gamma_variable(shapes, noise)
        x = torch.sigmoid(log_gammas[..., 0] - log_gammas[..., 1]).clamp(eps, 1.0 - eps)
        ctx.save_for_backward(shapes, x)
        ctx.sizes = a.shape, b.shape
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        shapes, x = ctx.saved_tensors
        parts = torch.stack([x, 1.0 - x], -1)
        total = shapes.sum(-1, keepdim=True).expand_as(shapes).contiguous()
        # the derivative of each part with respect to its own shape, up to the factor 1 - part
        slope = torch._dirichlet_grad(parts.contiguous(), shapes.contiguous(), total)
        slope = slope * (1.0 - parts) * grad[..., None]
        return slope[..., 0].sum_to_size(ctx.sizes[0]), -slope[..., 1].sum_to_size(ctx.sizes[1]), None


@dataclass(frozen=True)
class Point:
    """A point mass at a free value: nothing is drawn and log q is 0."""

    value: Tensor
    noise_kind: ClassVar[NoiseKind] = None
    noise_shape: ClassVar[tuple[int, ...]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def mean(self) -> Tensor:
        return self.value

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def draw(self, noise: Tensor | None = None) -> Tensor:
        return self.value


@dataclass(frozen=True)
class NegativeBinomial:
    """Negative binomial counts with mean m > 0 and concentration theta > 0 (variance m + m^2 / theta; eq. 2).

    Shapes: ``mean`` (..., n, G), ``concentration`` (G,), value (n, G).
    """

    mean: Tensor
    concentration: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        theta = self.concentration
        gammas = torch.lgamma(value + theta) - torch.lgamma(theta) - torch.lgamma(value + 1.0)
        # log1p keeps the Poisson limit of a large theta exact in float32
        spread = torch.log1p(self.mean / theta)
        return (gammas - value * torch.log(theta)) + value * torch.log(self.mean) - (value + theta) * spread

    def sample(self, generator: torch.Generator) -> Tensor:
        return negative_binomial(self.mean, self.concentration, generator)


@dataclass(frozen=True)
class Poisson:
    """Poisson counts with a given rate."""

    rate: Tensor

    @property
    def mean(self) -> Tensor:
        return self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.xlogy(value, self.rate) - self.rate - torch.lgamma(value + 1.0)

    def log_likelihood(self, value: Tensor) -> Tensor:
        """log_prob summed over genes (..., n)."""
        return self.log_prob(value).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.rate, generator=generator)
