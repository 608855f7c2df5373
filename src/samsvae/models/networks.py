"""Neural networks of the approximate posterior (the guide) and the decoder.

Letters: K particles, n cells, T perturbations, L latents, G genes, H hidden units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samsvae.config.vocabulary import FLOOR
from samsvae.models.batch import MultiHot, OneHot
from samsvae.models.distributions import Normal, Poisson
from samsvae.models.softmax_nb import SoftmaxNegativeBinomial
from samsvae.ops.cpu_negative_binomial import is_compiled
from samsvae.ops.explicit_gradients import gaussian_head, residual_network, usable
from samsvae.ops.precision import product

#: p(x | h), for each likelihood.
Observed = SoftmaxNegativeBinomial | Normal | Poisson

#: Functions of a module, because a lambda cannot be pickled. The leaky ReLU has torch's default slope, 0.01.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"leaky_relu": F.leaky_relu, "relu": F.relu}

#: Their slopes below 0.
SLOPES = {F.leaky_relu: 0.01, F.relu: 0.0}

#: What dropout draws from: a generator, the kept units (0 or 1, as large as the hidden layer) of one layer after
#: another, or None: torch's own generator.
Dropout = torch.Generator | Iterator[Tensor] | None


class MLP(nn.Module):
    """Residual MLP h1 = a(W1 v + b1); h_{j+1} = h_j + a(W h_j + b) (eq. 3).

    The input v comes in parts, each with its own leading dimensions, and the first layer is applied to each part
    separately. So a part that does not depend on the particle is computed once, and a one-hot part selects rows of
    weights. ``residual=False``, ``batch_norm`` and ``dropout`` give the networks of the SVAE+ paper.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        width: int,
        n_layers: int,
        *,
        activation: str = "leaky_relu",
        residual: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.sizes = sizes
        self.activation = ACTIVATIONS[activation]
        self.residual = residual
        self.dropout = dropout
        self.dropout_from: Dropout = None
        layers = [
            nn.Linear(sum(sizes), width, dtype=torch.float32),
            *(nn.Linear(width, width, dtype=torch.float32) for _ in range(n_layers - 1)),
        ]
        # a ModuleList registers the weights
        self.layers: Sequence[nn.Linear] = nn.ModuleList(layers)  # type: ignore[assignment]
        norms = (
            [nn.BatchNorm1d(width, momentum=0.01, eps=1e-3, dtype=torch.float32) for _ in self.layers]
            if batch_norm
            else []
        )
        self.norms = nn.ModuleList(norms)

    def forward(self, *parts: Tensor | MultiHot | OneHot) -> Tensor:
        first, *layers = self.layers
        weights = first.weight.split(self.sizes, dim=1) if len(parts) > 1 else (first.weight,)
        dense, start = [], None
        for part, weight in zip(parts, weights, strict=True):
            if isinstance(part, MultiHot | OneHot):
                rows = part.gather(weight.T)
                start = rows if start is None else start + rows
            else:
                dense.append((part, weight))
        if usable(first.bias) and not self.norms and not (self.dropout and self.training):
            pairs = [(layer.weight, layer.bias) for layer in layers]
            slope = SLOPES[self.activation]
            return residual_network(first.bias, start, dense, pairs, slope=slope, residual=self.residual)
        h: Tensor = first.bias if start is None else first.bias + start
        for part, weight in dense:
            h = h + F.linear(part, weight)
        h = self._finish(0, h)
        for j, layer in enumerate(layers, start=1):
            step = self._finish(j, layer(h))
            h = h + step if self.residual else step
        return h  # (..., H)

    def _finish(self, j: int, h: Tensor) -> Tensor:
        if self.norms:
            h = self.norms[j](h.reshape(-1, h.shape[-1])).reshape(h.shape)
        h = self.activation(h)
        return self._drop(h) if self.dropout and self.training else h

    def _drop(self, h: Tensor) -> Tensor:
        """Dropout; on a CPU a generator gives the same bits as F.dropout with torch's own in the same state."""
        if self.dropout_from is None:
            return F.dropout(h, self.dropout)
        share = 1.0 - self.dropout
        if isinstance(self.dropout_from, torch.Generator):
            kept = torch.empty_like(h).bernoulli_(share, generator=self.dropout_from)
        else:
            kept = next(self.dropout_from).to(h, copy=True)
        return h * kept.div_(share)


@contextlib.contextmanager
def dropout_from(model: nn.Module, source: Dropout) -> Iterator[None]:
    """Within the block, the dropout of a model draws from a generator, or is given; None: from torch's own."""
    networks = [module for module in model.modules() if isinstance(module, MLP)]
    for network in networks:
        network.dropout_from = source
    try:
        yield
    finally:
        for network in networks:
            network.dropout_from = None


class GaussianHead(nn.Module):
    """N(W h + b, exp(W' h + b') + 1e-4): mean and variance of a Gaussian approximate posterior (eq. 7)."""

    def __init__(self, width: int, n_out: int):
        super().__init__()
        self.mean = nn.Linear(width, n_out, dtype=torch.float32)
        self.log_var = nn.Linear(width, n_out, dtype=torch.float32)

    def forward(self, h: Tensor) -> Normal:
        if usable(h):
            mean, log_var = ((head.weight, head.bias) for head in (self.mean, self.log_var))
            return Normal(*gaussian_head(h, mean, log_var, FLOOR))
        return Normal(self.mean(h), torch.sqrt(torch.exp(self.log_var(h)) + FLOOR))


class Likelihood(nn.Module):
    """p(x | h) for one of four likelihoods (eq. 2).

    ``nb``: mean l softmax(W h + c) + floor, one concentration exp(r_g) per gene. ``poisson``: rate softplus(W h + c).
    ``normal``: mean W h + c, variance exp(W' h + c') + 1e-4. ``normal_fixed``: variance exp(v_g) + 1e-4.
    Only ``nb`` uses the library size l (n,) and the floor of the mean.
    """

    KINDS = ("nb", "normal", "normal_fixed", "poisson")
    log_var: nn.Linear | nn.Parameter

    def __init__(self, kind: str, width: int, n_genes: int, *, floor: float = FLOOR):
        super().__init__()
        self.kind = kind
        self.floor = floor
        self.mean = nn.Linear(width, n_genes, dtype=torch.float32)
        if kind == "nb":
            self.log_concentration = nn.Parameter(torch.zeros(n_genes, dtype=torch.float32))
        elif kind == "normal":
            self.log_var = nn.Linear(width, n_genes, dtype=torch.float32)
        elif kind == "normal_fixed":
            self.log_var = nn.Parameter(torch.zeros(n_genes, dtype=torch.float32))

    def forward(self, h: Tensor, library: Tensor, shift: Tensor | None = None) -> Observed:
        """``shift`` (n, G) or (K, n, G) is added to W h + c."""
        elsewhere = h.device.type != "cpu" or torch.compiler.is_compiling()
        if self.kind == "nb" and shift is None and (elsewhere or is_compiled()):
            # the kernel adds the bias, and reads products in bf16
            out, theta = product(h, self.mean.weight), torch.exp(self.log_concentration)
            return SoftmaxNegativeBinomial(out, library, theta, self.floor, self.mean.bias)
        out = self.mean(h)  # (..., n, G)
        if shift is not None:
            out = out + shift
        if self.kind == "nb":
            return SoftmaxNegativeBinomial(out, library, torch.exp(self.log_concentration), self.floor)
        if self.kind == "poisson":
            return Poisson(F.softplus(out))
        log_var = self.log_var(h) if isinstance(self.log_var, nn.Linear) else self.log_var
        return Normal(out, torch.sqrt(torch.exp(log_var) + FLOOR))
