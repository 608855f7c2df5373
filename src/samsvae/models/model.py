"""The one probabilistic core: draw the guide, score the terms, ELBO, IWELBO, prediction. It names no model.

A model is an ordered tuple of latents plus what the decoder reads; a published method is a row of ``zoo``.
Letters: K particles, n cells, P most perturbations in a cell, T perturbations (R of them drawn), L latents, G genes.
Equation numbers refer to docs/model.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from samsvae.config.model import ModelConfig
from samsvae.config.vocabulary import MASKED
from samsvae.models.batch import Batch, CellTable, MultiHot
from samsvae.models.distributions import Bernoulli, Distribution, closed_kl
from samsvae.models.latents import CellState, Embedding, Latent, LearnedEmbedding, Mask, MaskProbability, offset
from samsvae.models.networks import MLP, Likelihood, Observed
from samsvae.models.noise import Noise, given

#: Values of the input whose moments are taken at once: few enough for a cache.
MOMENTS = 2**18


@dataclass(frozen=True)
class Draw:
    """Values of the latents, drawn from the guide, and the guide's distributions, by the latent's name."""

    values: dict[str, Tensor]
    guides: dict[str, Distribution]


class Model(nn.Module):
    """A model of the family for given genes and perturbations.

    Weights are initialised from ``seed``; the moments of the encoder's input are set by ``fit_inputs``.
    """

    input_mean: Tensor  # (G,)
    input_sd: Tensor  # (G,)

    def __init__(self, config: ModelConfig, n_genes: int, n_perturbations: int, *, seed: int = 0):
        super().__init__()
        self.config = config
        self.n_genes = n_genes
        self.n_perturbations = n_perturbations
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # a ModuleList registers the weights of the latents; every latent is a module
            self.latents: Sequence[Latent] = nn.ModuleList(_latents(config, n_genes, n_perturbations))  # type: ignore[assignment, arg-type]
            network = _network(config, config.width, config.n_layers)
            second = (n_perturbations,) if config.effect == "decoder_input" else ()
            self.decoder = MLP((config.n_latent, *second), **network | {"dropout": 0.0})
            self.likelihood = Likelihood(config.likelihood, config.width, n_genes)
        self.register_buffer("input_mean", torch.zeros(n_genes))
        self.register_buffer("input_sd", torch.ones(n_genes))

    # ---- inputs ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_inputs(self, cells: CellTable) -> None:
        """Set mean and sd (n - 1) of the encoder's input over the training cells (eq. 10); sd 0 becomes 1."""
        if self.config.input not in ("log_standardise", "standardise"):
            return
        n = len(cells)
        centre: Tensor | None = None
        total, square = torch.zeros(2, self.n_genes, dtype=torch.float64, device=self.input_mean.device)
        for chunk in cells.counts.split(max(1, MOMENTS // self.n_genes)):
            values = self._transform(chunk.to(self.input_mean.device).double())
            # one pass: about a centre near the mean nothing large cancels
            centre = values.mean(0) if centre is None else centre
            total += values.sub_(centre).sum(0)
            square += values.square_().sum(0)
        if centre is None:
            raise ValueError("the mean and sd of the inputs need at least one training cell")
        mean = centre + total / n
        sd = torch.sqrt((square - total**2 / n).clamp(min=0.0) / max(n - 1, 1))
        self.input_mean.copy_(mean)
        # a constant gene's sd is 0 but for rounding
        self.input_sd.copy_(torch.where(sd > 1e-9 * (1.0 + mean.abs()), sd, 1.0))

    def _transform(self, x: Tensor) -> Tensor:
        return torch.log1p(x) if self.config.input in ("log_standardise", "log") else x

    def inputs(self, batch: Batch) -> Tensor:
        """The normalised counts (n, G) that the encoder reads (eq. 10)."""
        return (self._transform(batch.x) - self.input_mean) / self.input_sd

    # ---- guide and terms ---------------------------------------------------------------------------------------

    def draw(
        self,
        batch: Batch,
        noise: Noise,
        particles: int,
        *,
        shared: Draw | None = None,
        values: dict[str, Tensor] | None = None,
    ) -> Draw:
        """Draw every latent from the guide, in order.

        Latents of ``shared`` are taken from there and their guides not asked again. ``values`` stand in the place of
        draws; their guides are, so that they can be scored.
        """
        drawn = dict(shared.values) if shared else {}
        guides: dict[str, Distribution] = {}
        for latent in self.latents:
            name = latent.name
            if name in drawn:
                continue
            guides[name] = latent.guide(drawn, batch, self._inputs_of(latent, batch))
            if values is None or name not in values:
                drawn[name] = _draw(latent, guides[name], noise, particles)
                continue
            needed = _shape(latent, guides[name], particles)
            if tuple(values[name].shape) != needed:
                raise ValueError(f"values of {name!r} have shape {tuple(values[name].shape)}, needed is {needed}")
            drawn[name] = values[name]
        return Draw(drawn, guides)

    def _inputs_of(self, latent: Latent, batch: Batch) -> Tensor | None:
        return self.inputs(batch) if latent.plate == "cell" else None

    def decode(self, values: dict[str, Tensor], batch: Batch) -> Observed:
        """p(x | z) of every particle and cell: (K, n, G)."""
        config = self.config
        z = values["z_basal"] + offset(values, batch) if config.effect == "additive" else values["z"]
        parts = (z, batch.received) if config.effect == "decoder_input" else (z,)
        return self.likelihood(self.decoder(*parts), batch.library)

    def terms(
        self,
        batch: Batch,
        draw: Draw,
        *,
        analytic_kl: bool = False,
        plate: float | None = None,
        extra_share: float = 0.0,
    ) -> dict[str, Tensor]:
        """The terms of the ELBO (eq. 11), each (K, n) or broadcastable to it.

        ``reconstruction`` is log p(x | .), every other log p - log q of the latent of that name, summed over L;
        those of a perturbation enter a cell by the plate weight. ``analytic_kl``: in closed form where there is one.
        ``extra_share`` is added to every plate weight 1/n_t (not to 0, the weight of n_t = 0). ``plate`` weighs every
        perturbation's term alike in every cell, in place of the plate weights.
        """
        terms = {"reconstruction": self.decode(draw.values, batch).log_likelihood(batch.x)}
        for latent in self.latents:
            guide = draw.guides.get(latent.name)
            if guide is None or (prior := latent.prior(draw.values, batch)) is None:
                continue
            if analytic_kl and (kl := closed_kl(guide, prior)) is not None:
                term = -kl
            else:
                value = draw.values[latent.name]
                term = prior.log_prob(value) - guide.log_prob(value)
            term = term.sum(-1)
            if latent.plate == "perturbation":
                term = _shared_out(term, batch, extra_share) if plate is None else plate * term.sum(-1, keepdim=True)
            terms[latent.name] = term
        return terms

    def elbo(self, batch: Batch, noise: Noise, particles: int) -> Tensor:
        """ELBO of every particle and cell (K, n) (eq. 11)."""
        return add_up(self.terms(batch, self.draw(batch, noise, particles)).values())

    def log_terms(
        self,
        batch: Batch,
        *,
        noise: dict[str, Tensor] | None = None,
        values: dict[str, Tensor] | None = None,
        **options,
    ) -> dict[str, Tensor]:
        """The terms of the ELBO (K, n) under given noise, or at given values, of the latents (eq. 11).

        Both are named by the latents (``names``). ``noise``: standard logistic for ``mask`` and ``cell_mask``, standard
        normal for the others; (K, T, L) of a perturbation's latent, (K, n, L) of a cell's. ``values``: the same
        shapes; they are held against prior and guide as a draw would be. A latent without a choice (a point mass, a
        learned embedding) needs neither. ``options`` are those of ``terms``. A latent that adds nothing has zeros.
        ValueError names the latent whose noise is missing, or whose noise or values are of another shape.
        """
        noise, values = noise or {}, values or {}
        if unknown := sorted({*noise, *values} - set(self.names)):
            raise ValueError(f"no latent is called {' or '.join(map(repr, unknown))}; this model has {self.names}")
        particles = next((len(x) for x in (*noise.values(), *values.values())), 1)
        found = self.terms(batch, self.draw(batch, given(noise), particles, values=values), **options)
        nothing = batch.x.new_zeros(())
        every = ("reconstruction", *self.names)
        return {name: found.get(name, nothing).expand(particles, len(batch.x)) for name in every}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the latents, in guide order: those of their noise and of their terms."""
        return tuple(latent.name for latent in self.latents)

    # ---- evaluation --------------------------------------------------------------------------------------------

    def draw_shared(self, noise: Noise, particles: int, batch: Batch | None = None) -> Draw:
        """One draw of the perturbations' latents from the guide, to be shared by all cells: (K, R, L) each."""
        batch = self.no_cells() if batch is None else batch
        values: dict[str, Tensor] = {}
        guides: dict[str, Distribution] = {}
        for latent in self._shared():
            guides[latent.name] = latent.guide(values, batch)
            values[latent.name] = _draw(latent, guides[latent.name], noise, particles)
        return Draw(values, guides)

    def log_weights(self, batch: Batch, noise: Noise, particles: int, shared: Draw, *, joint: bool = False) -> Tensor:
        """log p(x | .) + log p(z | .) - log q(z | .) (K, n) under one draw of the shared latents (eq. 13).

        ``joint`` adds the terms of the shared latents by their plate weights (the bound that training uses).
        """
        draw = self.draw(batch, noise, particles, shared=shared)
        if joint:
            draw = Draw(draw.values, {**shared.guides, **draw.guides})
        return add_up(self.terms(batch, draw).values())

    def predict(self, batch: Batch, noise: Noise, particles: int, *, repeats: int = 1):
        """p(x | z) (K, n, G) for dosages alone: shared latents from the guide, z from its prior (eq. 14).

        Only ``library``, ``dosage`` and ``rows`` of the batch are read. ``repeats``: cells that follow one another and
        have a draw of the shared latents in common (K is a multiple of it).
        """
        values = self.draw_shared(noise, particles // repeats, batch).values
        if repeats > 1:
            # a point mass has no particles to repeat
            values = {k: v.repeat_interleave(repeats, 0) if v.ndim == 3 else v for k, v in values.items()}
        for latent in self.latents:
            if latent.name not in values:
                source = latent.prior(values, batch) if latent.plate == "cell" else latent.guide(values, batch)
                assert source is not None  # a latent of the cells has a prior
                values[latent.name] = _draw(latent, source, noise, particles)
        return self.decode(values, batch)

    @torch.no_grad()
    def posterior_mean(self, cells: CellTable, *, chunk: int = 4096) -> Tensor:
        """Mean of q(z | x, .) at typical values of the shared latents, plus the offset where it is additive: (n, L).

        Typical: the mean of an embedding, the likelier value of a mask (the networks only ever see masks of 0 and 1).

        The latent state of every cell, as used for the recovery of latents in simulations.
        """
        out = []
        for start in range(0, len(cells), chunk):
            batch = cells.batch(slice(start, start + chunk))
            values: dict[str, Tensor] = {}
            for latent in self.latents:
                values[latent.name] = _typical(latent.guide(values, batch, self._inputs_of(latent, batch)))
            out.append(values["z_basal"] + offset(values, batch) if self.config.effect == "additive" else values["z"])
        return torch.cat(out)

    @torch.no_grad()
    def perturbation_tables(self) -> dict[str, Tensor]:
        """``mask_probability`` and ``embedding`` (T, L), as far as the model has them.

        The embedding is the mean of its guide, given the likelier value of every mask where the guide reads masks.
        """
        batch = self.no_cells()
        values: dict[str, Tensor] = {}
        means: dict[str, Tensor] = {}
        for latent in self._shared():
            guide = latent.guide(values, batch)
            values[latent.name], means[latent.name] = _typical(guide), guide.mean.detach()
        tables = {"mask_probability": means.get("mask", means.get("mask_prob")), "embedding": means.get("embedding")}
        return {name: table for name, table in tables.items() if table is not None}

    def no_cells(self) -> Batch:
        """A batch of no cells, through which the latents of all perturbations can be asked for."""
        empty = torch.zeros(0, 1, device=self.input_mean.device)
        return Batch(empty, empty[:, 0], MultiHot(empty.long(), empty), empty[:, 0])

    def _shared(self) -> list[Latent]:
        """The latents of the perturbations that all cells share: not a mask that is drawn for every cell."""
        return [latent for latent in self.latents if latent.plate == "perturbation" and not latent.per_cell]


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more terms, in their order."""
    total, *rest = terms
    for term in rest:
        total = total + term
    return total


def _network(config: ModelConfig, width: int, n_layers: int) -> dict[str, Any]:
    return {
        "width": width,
        "n_layers": n_layers,
        "activation": config.activation,
        "residual": config.residual,
        "batch_norm": config.batch_norm,
        "dropout": config.dropout,
    }


def _latents(config: ModelConfig, n_genes: int, n_perturbations: int) -> list[Latent]:
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
    if config.embedding == "random":
        given_mask = config.guide_embedding == "given_mask"
        network = _network(config, config.embedding_width, config.embedding_layers)
        network |= {"batch_norm": False, "dropout": 0.0}  # those are for networks that read cells
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
            network=_network(config, config.width, config.n_layers),
        )
    )
    return latents


def _draw(latent: Latent, distribution: Distribution, noise: Noise, particles: int) -> Tensor:
    """K draws of a distribution, whose own shape may or may not start with K already."""
    if distribution.noise_kind is None:
        return distribution.mean  # a point mass
    shape = (*_shape(latent, distribution, particles), *distribution.noise_shape)
    return distribution.draw(noise(latent.name, distribution.noise_kind, shape))


def _shape(latent: Latent, distribution: Distribution, particles: int) -> tuple[int, ...]:
    """The shape of K values of a latent."""
    dims = 3 if latent.per_cell else 2
    return (particles, *distribution.mean.shape[-dims:])


def _typical(distribution: Distribution) -> Tensor:
    """The mean of a distribution; for a mask the more likely value."""
    return torch.round(distribution.mean) if isinstance(distribution, Bernoulli) else distribution.mean


def _shared_out(term: Tensor, batch: Batch, extra: float) -> Tensor:
    """Terms of the perturbations (K, R) or (R,) as shares of the cells: sum_t 1[d_t != 0] (1 / n_t + w) term_t."""
    share = batch.share + extra * (batch.share > 0) if extra else batch.share
    weighted = (term * share)[..., None]  # (K, R, 1)
    received = replace(batch.dosage, dose=(batch.dosage.dose != 0).to(term.dtype))
    return received.gather(weighted)[..., 0]
