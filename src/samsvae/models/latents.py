"""The latent variables of the family: prior and approximate posterior of each, side by side.

The approximate posterior q of a latent is called its guide. Letters: K particles, n cells, P largest number of
perturbations in a cell, T perturbations (R of them drawn), L latents, G genes. Equation numbers refer to docs/model.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from samsvae.config.model import ModelConfig
from samsvae.config.vocabulary import FLOOR, MASKED
from samsvae.models.batch import Batch, OneHot
from samsvae.models.distributions import Bernoulli, Beta, Distribution, Normal, Point
from samsvae.models.levels import level_parts
from samsvae.models.networks import MLP, GaussianHead

#: The values drawn so far, by the name of the latent; ``offset``: that of the batch's cells, if it was computed.
Values = Mapping[str, Tensor]

Plate = Literal["cell", "perturbation"]


@dataclass
class Draw:
    """Values of the latents drawn from their guides, the guides, and the noise of normal draws, by the latent's name.

    ``offset``: that of the cells of the batch (see `offset`), which the guide, the prior and the decoder read.
    """

    values: dict[str, Tensor]
    guides: dict[str, Distribution]
    noise: dict[str, Tensor] = field(default_factory=dict)
    offset: Tensor | None = None

    def add(self, name: str, guide: Distribution, value: Tensor, noise: Tensor | None = None) -> None:
        self.values[name], self.guides[name] = value, guide
        if noise is not None and isinstance(guide, Normal):
            self.noise[name] = noise

    @property
    def known(self) -> Values:
        """The values and, if it was computed, the offset; only for the batch of the draw."""
        return self.values if self.offset is None else {**self.values, "offset": self.offset}


class Latent(Protocol):
    """A latent variable of the model (an ``nn.Module``). Both methods read the latents that were drawn before it."""

    name: str  # of its noise stream and of its term in the loss
    plate: Plate  # one value per cell, or one per perturbation
    per_cell: bool  # whether a latent of the perturbations has a value of its own in every cell

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Distribution:
        """Approximate posterior; a latent of the cells also reads ``inputs`` (n, G), the normalised counts."""

    def prior(self, values: Values, batch: Batch) -> Distribution | None:
        """Prior; None if the latent has no term in the loss."""


def _rows(table: Tensor, batch: Batch) -> Tensor:
    """The rows (R, L) of the batch's perturbations, from a table (T, L) with one row per perturbation."""
    return table if batch.rows is None else table.index_select(0, batch.rows)


def shift(values: Values) -> Tensor:
    """M * E, or E alone if the model has no mask: (K, R, L), or (R, L) for a learned E without a mask."""
    embedding = values["embedding"]
    return values["mask"] * embedding if "mask" in values else embedding


def offset(values: Values, batch: Batch) -> Tensor:
    """o = sum_t d_t (E_t * M_t) for each cell (eq. 1): (K, n, L), or (n, L) for a learned E without a mask."""
    if "offset" in values:
        return values["offset"]
    if "cell_mask" not in values:
        return batch.dosage.gather(shift(values))
    # every cell has its own mask: (K, n, P, L)
    rows = batch.dosage.rows_of(values["embedding"])
    return (values["cell_mask"] * rows * batch.dosage.dose[..., None]).sum(-2)


class MaskProbability(nn.Module):
    """pi ~ Beta(a, b), with a point mass at sigmoid(s) or Beta(e^u, e^w) with free u and w as guide (eq. 5).

    Both guides start with the mean sigmoid(init). The free Beta starts with a concentration of 2, so it is flat if init
    is 0.
    """

    name = "mask_prob"
    plate: Plate = "perturbation"
    per_cell = False
    a: Tensor
    b: Tensor

    def __init__(self, n_perturbations: int, n_latent: int, *, a: float, b: float, init: float, guide: str = "point"):
        super().__init__()
        size = (n_perturbations, n_latent)
        self.is_point = guide == "point"
        if self.is_point:
            self.logits = nn.Parameter(torch.full(size, float(init), dtype=torch.float32))
        else:
            start = torch.sigmoid(torch.tensor([float(init), -float(init)], dtype=torch.float32)) * 2.0
            self.log_a = nn.Parameter(torch.log(start[0]).expand(size).clone())
            self.log_b = nn.Parameter(torch.log(start[1]).expand(size).clone())
        self.register_buffer("a", torch.tensor(float(a), dtype=torch.float32), persistent=False)
        self.register_buffer("b", torch.tensor(float(b), dtype=torch.float32), persistent=False)

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Point | Beta:
        if not self.is_point:
            return Beta(torch.exp(_rows(self.log_a, batch)), torch.exp(_rows(self.log_b, batch)))
        eps = torch.finfo(torch.float32).eps  # the Beta density is not defined at 0 and 1
        # the gradient of hardtanh is one operation; that of clamp, which has the same values, takes five
        return Point(nn.functional.hardtanh(torch.sigmoid(_rows(self.logits, batch)), eps, 1.0 - eps))

    def prior(self, values: Values, batch: Batch) -> Beta:
        return Beta(self.a, self.b)


class Mask(nn.Module):
    """M ~ Bern(alpha), with Bernoulli(sigmoid(s)) as guide and straight-through draws (eq. 6).

    If a mask probability pi was drawn before, p(M | pi) = q(M | pi) = Bern(pi) and the term is 0. ``per_cell`` draws a
    mask for every cell instead of one per particle, as the training in the SVAE+ paper does.
    """

    plate: Plate = "perturbation"
    prior_logit: Tensor

    def __init__(
        self,
        n_perturbations: int,
        n_latent: int,
        *,
        prior_prob: float | None,
        temperature: float,
        init: float,
        per_cell: bool = False,
    ):
        super().__init__()
        self.name = "cell_mask" if per_cell else "mask"
        self.temperature = temperature
        self.per_cell = per_cell
        self.shape = (n_perturbations, n_latent)
        if prior_prob is not None:
            self.logits = nn.Parameter(torch.full(self.shape, float(init), dtype=torch.float32))
            prior_logit = math.log(prior_prob / (1.0 - prior_prob))
            self.register_buffer("prior_logit", torch.tensor(prior_logit, dtype=torch.float32), persistent=False)

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Bernoulli:
        if "mask_prob" in values:
            logits = torch.logit(values["mask_prob"], torch.finfo(torch.float32).eps)
        else:
            logits = _rows(self.logits, batch)
        if self.per_cell:
            logits = batch.dosage.rows_of(logits)  # (n, P, L)
        return Bernoulli(logits, self.temperature)

    def prior(self, values: Values, batch: Batch) -> Bernoulli | None:
        return None if "mask_prob" in values else Bernoulli(self.prior_logit)


class FixedMask(nn.Module):
    """A mask that is not inferred: ``values`` (T, L), ones until others are set. It has no term in the loss.

    The transfer to new perturbations fixes inferred masks in this way (`samsvae.training.transfer`).
    """

    name = "mask"
    plate: Plate = "perturbation"
    per_cell = False
    values: Tensor

    def __init__(self, n_perturbations: int, n_latent: int):
        super().__init__()
        self.register_buffer("values", torch.ones(n_perturbations, n_latent, dtype=torch.float32))

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Point:
        return Point(_rows(self.values, batch))

    def prior(self, values: Values, batch: Batch) -> None:
        return None


class Embedding(nn.Module):
    """E ~ N(0, beta^2). The guide is N(mu, (exp(u) + 1e-4)^2) with free mu and u (``mean_field``; eq. 7), or a network
    of [M_t, onehot(t)] with a mean and a log-variance head (``given_mask``; eq. 8)."""

    name = "embedding"
    plate: Plate = "perturbation"
    per_cell = False
    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(self, n_perturbations: int, n_latent: int, *, prior_scale: float, network: dict | None):
        super().__init__()
        self.reads_mask = network is not None
        self.register_buffer("prior_loc", torch.tensor(0.0, dtype=torch.float32), persistent=False)
        self.register_buffer("prior_scale", torch.tensor(float(prior_scale), dtype=torch.float32), persistent=False)
        if network is None:
            self.loc = nn.Parameter(torch.zeros(n_perturbations, n_latent, dtype=torch.float32))
            self.log_scale = nn.Parameter(torch.zeros(n_perturbations, n_latent, dtype=torch.float32))
        else:
            self.network = MLP((n_latent, n_perturbations), **network)
            self.head = GaussianHead(network["width"], n_latent)

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Normal:
        if not self.reads_mask:
            return Normal(_rows(self.loc, batch), torch.exp(_rows(self.log_scale, batch)) + FLOOR)
        return self.head(self.network(values["mask"], OneHot(batch.rows)))

    def prior(self, values: Values, batch: Batch) -> Normal:
        return Normal(self.prior_loc, self.prior_scale)

    @torch.no_grad()
    def start_quiet(self, scale: float) -> None:
        """Start with a small standard deviation."""
        if self.reads_mask:
            self.head.log_var.bias.fill_(2.0 * math.log(scale))
        else:
            self.log_scale.fill_(math.log(scale))
            self.loc.copy_(scale * torch.randn(self.loc.shape, generator=torch.Generator().manual_seed(0)))


class LearnedEmbedding(nn.Module):
    """E as a free parameter without a prior or a term in the loss; it starts from ``init_scale`` times N(0, 1)."""

    name = "embedding"
    plate: Plate = "perturbation"
    per_cell = False

    def __init__(self, n_perturbations: int, n_latent: int, *, init_scale: float):
        super().__init__()
        start = torch.empty(n_perturbations, n_latent, dtype=torch.float32)
        if not start.is_meta:  # a draw on the meta device does nothing, but imports a compiler for more than a second
            start.normal_().mul_(init_scale)
        self.loc = nn.Parameter(start)

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Point:
        return Point(_rows(self.loc, batch))

    def prior(self, values: Values, batch: Batch) -> None:
        return None


class CellState(nn.Module):
    """The state z (or z_basal) of a cell. The prior is N(0, I), or N(o, I) if the effect is ``prior_mean`` (eq. 4). The
    guide is a network of x, [x, o] or [x, d] (eq. 9), where x is passed as ``inputs``, the normalised counts (eq. 10).
    With ``covariates``, the sizes of their levels, their one-hot codes follow x.
    """

    plate: Plate = "cell"
    per_cell = False
    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        name: str,
        n_genes: int,
        n_perturbations: int,
        n_latent: int,
        *,
        effect: str,
        reads: str,
        network: dict,
        covariates: Sequence[int] = (),
    ):
        super().__init__()
        self.name = name
        self.n_latent = n_latent
        self.covariates = tuple(covariates)
        self.effect = effect
        self.reads = reads
        second = {"x": (), "x_offset": (n_latent,), "x_dosage": (n_perturbations,)}[reads]
        levels = (sum(self.covariates),) if self.covariates else ()
        self.network = MLP((n_genes, *levels, *second), **network)
        self.head = GaussianHead(network["width"], n_latent)
        self.register_buffer("prior_loc", torch.tensor(0.0, dtype=torch.float32), persistent=False)
        self.register_buffer("prior_scale", torch.tensor(1.0, dtype=torch.float32), persistent=False)

    def guide(self, values: Values, batch: Batch, inputs: Tensor | None = None) -> Normal:
        if inputs is None:
            raise ValueError(f"the guide of {self.name!r} reads the normalised counts: pass inputs (n, G)")
        second = {"x": (), "x_offset": ("offset",), "x_dosage": ("dosage",)}[self.reads]
        parts = [batch.received if part == "dosage" else offset(values, batch) for part in second]
        return self.head(self.network(inputs, *level_parts(batch, self.covariates), *parts))

    def prior(self, values: Values, batch: Batch) -> Normal:
        if self.effect == "prior_mean":
            return Normal(offset(values, batch), self.prior_scale)
        return Normal(self.prior_loc.expand(len(batch.library), self.n_latent), self.prior_scale)


def network_settings(config: ModelConfig, width: int, n_layers: int) -> dict[str, Any]:
    """The arguments of an `MLP`, but for the sizes of its input."""
    return {
        "width": width,
        "n_layers": n_layers,
        "activation": config.activation,
        "residual": config.residual,
        "batch_norm": config.batch_norm,
        "dropout": config.dropout,
    }


def latents_of(config: ModelConfig, n_genes: int, n_perturbations: int, covariates: Sequence[int]) -> list[Latent]:
    """The latents of a configuration, in the order in which they are drawn."""
    size = (n_perturbations, config.n_latent)
    latents: list[Latent] = []
    beta_bernoulli = config.mask == "beta_bernoulli"
    if beta_bernoulli:
        latents.append(
            MaskProbability(
                *size,
                a=config.beta_a,
                b=config.beta_b,
                init=config.mask_logit_init,
                guide=config.guide_mask_prob,
            )
        )
    if config.mask in MASKED:
        latents.append(
            Mask(
                *size,
                prior_prob=None if beta_bernoulli else config.mask_prior,
                temperature=config.temperature,
                init=config.mask_logit_init,
                per_cell=config.mask_per_cell,
            )
        )
    elif config.mask == "fixed":
        latents.append(FixedMask(*size))
    if config.embedding == "random":
        given_mask = config.guide_embedding == "given_mask"
        network = network_settings(config, config.embedding_width, config.embedding_layers)
        network |= {"batch_norm": False, "dropout": 0.0}  # only networks that read cells have these
        latents.append(Embedding(*size, prior_scale=config.embedding_scale, network=network if given_mask else None))
    elif config.embedding == "learned":
        latents.append(LearnedEmbedding(*size, init_scale=config.embedding_init))
    latents.append(
        CellState(
            "z_basal" if config.effect == "additive" else "z",
            n_genes,
            *size,
            effect=config.effect,
            reads=config.encoder_reads,
            network=network_settings(config, config.width, config.n_layers),
            covariates=covariates,
        )
    )
    return latents
