"""The probabilistic model of all methods: draws, terms of the bound, ELBO, IWELBO and prediction.

A model is a list of latents in the order of their draws, and a decoder. A published method is a row of ``zoo``; no
method is named here. The approximate posterior q is called the guide. Letters: K particles, n cells, P largest number
of perturbations in a cell, T perturbations (R of them drawn), L latents, G genes. Equation numbers refer to
docs/model.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from samsvae.config.model import ModelConfig
from samsvae.models.batch import Batch, CellTable, MultiHot
from samsvae.models.distributions import Bernoulli, Distribution
from samsvae.models.kl_terms import kl_terms
from samsvae.models.latents import CellState, Draw, Latent, Values, latents_of, network_settings, offset
from samsvae.models.levels import Levels, level_parts
from samsvae.models.networks import MLP, Likelihood, Observed
from samsvae.models.noise import Noise, given
from samsvae.ops.fused_latents import fused, normalised

#: Number of input values whose moments are computed at once: few enough for a CPU's cache, or to keep a GPU busy.
MOMENTS = {"cpu": 2**18, "cuda": 2**24}

INITIALISING = threading.Lock()


class Model(nn.Module):
    """A model for given genes and perturbations.

    ``seed`` initialises the weights; ``fit_inputs`` sets the moments of the encoder's input. With ``levels``, encoder
    and decoder also read the covariates of cells, as the setting ``covariate_effect`` says.
    """

    input_mean: Tensor  # (G,)
    input_sd: Tensor  # (G,)

    def __init__(
        self,
        config: ModelConfig,
        n_genes: int,
        n_perturbations: int,
        *,
        levels: Levels | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config = config
        self.levels = None if config.covariate_effect == "none" else levels
        self.n_genes = n_genes
        self.n_perturbations = n_perturbations
        # layers draw their weights from torch's own generator, which the lock keeps from the models of other threads
        with INITIALISING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
            latents = latents_of(config, n_genes, n_perturbations, self.covariates)
            # a ModuleList registers the weights; every latent is an nn.Module
            self.latents: Sequence[Latent] = nn.ModuleList(latents)  # type: ignore[assignment, arg-type]
            network = network_settings(config, config.width, config.n_layers)
            second = (n_perturbations,) if config.effect == "decoder_input" else ()
            inside = (self.decoder_levels,) if self.decoder_levels else ()
            self.decoder = MLP((config.n_latent, *inside, *second), **network | {"dropout": 0.0})
            self._start_levels_at_zero()
            self.likelihood = Likelihood(config.likelihood, config.width, n_genes, floor=config.mean_floor)
            zero = torch.zeros(sum(self.covariates), n_genes, dtype=torch.float32)
            self.level_offset = nn.Parameter(zero) if self.covariates and not inside else None
        self.register_buffer("input_mean", torch.zeros(n_genes, dtype=torch.float32))
        self.register_buffer("input_sd", torch.ones(n_genes, dtype=torch.float32))

    @torch.no_grad()
    def _start_levels_at_zero(self) -> None:
        """No level has an effect before training, so that a covariate without one costs little."""
        columns = slice(self.config.n_latent, self.config.n_latent + self.decoder_levels)
        self.decoder.layers[0].weight[:, columns] = 0.0
        for latent in self.latents:
            if isinstance(latent, CellState):
                latent.network.layers[0].weight[:, self.n_genes : self.n_genes + sum(self.covariates)] = 0.0

    @property
    def covariates(self) -> tuple[int, ...]:
        """The number of levels of each covariate (V,) that the networks read."""
        return self.levels.sizes if self.levels else ()

    @property
    def decoder_levels(self) -> int:
        """The number of levels of all covariates that the decoder's first layer reads."""
        return sum(self.covariates) if self.config.covariate_effect == "interacting" else 0

    # ---- inputs ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_inputs(self, cells: CellTable) -> None:
        """Set mean and sd (n - 1) of the encoder's input over the training cells (eq. 10); sd 0 becomes 1."""
        if self.config.input not in ("log_standardise", "standardise"):
            return
        n = len(cells)
        centre: Tensor | None = None
        total, square = torch.zeros(2, self.n_genes, dtype=torch.float64, device=self.input_mean.device)
        for chunk in cells.counts.split(max(1, MOMENTS[total.device.type] // self.n_genes)):
            values = self._transform(chunk.to(self.input_mean.device).double())
            # a centre near the mean avoids cancellation of large terms, so one pass is enough
            centre = values.mean(0) if centre is None else centre
            total += values.sub_(centre).sum(0)
            square += values.square_().sum(0)
        if centre is None:
            raise ValueError("the mean and sd of the inputs need at least one training cell")
        mean = centre + total / n
        sd = torch.sqrt((square - total**2 / n).clamp(min=0.0) / max(n - 1, 1))
        self.input_mean.copy_(mean)
        # the sd of a constant gene is 0 except for rounding
        self.input_sd.copy_(torch.where(sd > 1e-9 * (1.0 + mean.abs()), sd, 1.0))

    def _transform(self, x: Tensor) -> Tensor:
        return torch.log1p(x) if self.config.input in ("log_standardise", "log") else x

    def inputs(self, batch: Batch) -> Tensor:
        """The normalised counts (n, G) that the encoder reads (eq. 10)."""
        if self.config.input == "log_standardise" and fused(batch.x, self.input_mean):
            return normalised(batch.x, self.input_mean, self.input_sd)
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
        """Draw every latent from its guide, in order.

        Latents in ``shared`` keep their values, and their guides are not computed again. ``values`` replace draws, but
        their guides are computed, so that they can be scored. ValueError if such values have the wrong shape.
        """
        drawn = Draw(dict(shared.values) if shared else {}, {})
        for latent in self.latents:
            name = latent.name
            if name in drawn.values:
                continue
            if latent.plate == "cell" and self.config.embedding != "none":
                drawn.offset = offset(drawn.values, batch)
            guide = latent.guide(drawn.known, batch, self._inputs_of(latent, batch))
            if values is None or name not in values:
                drawn.add(name, guide, *_draw(latent, guide, noise, particles))
                continue
            needed = _shape(latent, guide, particles)
            if tuple(values[name].shape) != needed:
                raise ValueError(f"values of {name!r} have the shape {tuple(values[name].shape)}; needed: {needed}")
            drawn.add(name, guide, values[name])
        return drawn

    def _inputs_of(self, latent: Latent, batch: Batch) -> Tensor | None:
        return self.inputs(batch) if latent.plate == "cell" else None

    def decode(self, values: Values, batch: Batch) -> Observed:
        """p(x | z) for every particle and cell: (K, n, G)."""
        config = self.config
        z = values["z_basal"] + offset(values, batch) if config.effect == "additive" else values["z"]
        dosage = (batch.received,) if config.effect == "decoder_input" else ()
        levels = level_parts(batch, self.covariates)
        h = self.decoder(z, *(levels if self.decoder_levels else ()), *dosage)
        shift = None if self.level_offset is None else levels[0] @ self.level_offset
        return self.likelihood(h, batch.library, shift)

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

        ``reconstruction`` is log p(x | .). Every other term is log p - log q of the latent with that name, summed over
        L; the terms of a cell's perturbations are multiplied by their plate weights. ``analytic_kl`` uses the closed
        form if there is one. ``extra_share`` is added to every plate weight 1/n_t, but not to the weight 0 of n_t = 0.
        ``plate`` is a single weight for all perturbations in all cells, used instead of the plate weights.
        """
        terms = {"reconstruction": self.decode(draw.known, batch).log_likelihood(batch.x)}
        return terms | kl_terms(
            self.latents, draw, batch, analytic_kl=analytic_kl, plate=plate, extra_share=extra_share
        )

    def elbo(self, batch: Batch, noise: Noise, particles: int) -> Tensor:
        """ELBO for every particle and cell (K, n) (eq. 11)."""
        return add_up(self.terms(batch, self.draw(batch, noise, particles)).values())

    def log_terms(
        self,
        batch: Batch,
        *,
        noise: dict[str, Tensor] | None = None,
        values: dict[str, Tensor] | None = None,
        **options,
    ) -> dict[str, Tensor]:
        """The terms of the ELBO (K, n) for given noise or given values of the latents (eq. 11).

        Both are given by the names of the latents (``names``). ``noise``: standard logistic for ``mask`` and
        ``cell_mask``, standard normal for the others; (K, T, L) for a latent of the perturbations, (K, n, L) for one of
        the cells. ``values``: the same shapes; they are scored under prior and guide like a draw. A latent that is not
        random (a point mass, a learned embedding) needs neither. ``options`` are those of ``terms``. A latent without
        a term has zeros. ValueError names a latent with missing noise, or with noise or values of the wrong shape.
        """
        noise, values = noise or {}, values or {}
        if unknown := sorted({*noise, *values} - set(self.names)):
            allowed = ", ".join(self.names)
            raise ValueError(f"no latent is called {' or '.join(map(repr, unknown))}. Allowed: {allowed}.")
        particles = next((len(x) for x in (*noise.values(), *values.values())), 1)
        terms = self.terms(batch, self.draw(batch, given(noise), particles, values=values), **options)
        zero = batch.x.new_zeros(())
        names = ("reconstruction", *self.names)
        return {name: terms.get(name, zero).expand(particles, len(batch.x)) for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the latents, of their noise and of their terms, in the order of the draws."""
        return tuple(latent.name for latent in self.latents)

    # ---- evaluation --------------------------------------------------------------------------------------------

    def draw_shared(self, noise: Noise, particles: int, batch: Batch | None = None) -> Draw:
        """One draw of the perturbations' latents from their guides, shared by all cells: (K, R, L) each."""
        batch = self.no_cells() if batch is None else batch
        drawn = Draw({}, {})
        for latent in self._shared():
            guide = latent.guide(drawn.values, batch)
            drawn.add(latent.name, guide, _draw(latent, guide, noise, particles)[0])
        return drawn

    def log_weights(self, batch: Batch, noise: Noise, particles: int, shared: Draw, *, joint: bool = False) -> Tensor:
        """log p(x | .) + log p(z | .) - log q(z | .) (K, n) for one draw of the shared latents (eq. 13).

        ``joint`` adds the terms of the shared latents with their plate weights, as in the training bound.
        """
        draw = self.draw(batch, noise, particles, shared=shared)
        if joint:
            draw = replace(draw, guides={**shared.guides, **draw.guides})
        return add_up(self.terms(batch, draw).values())

    def predict(
        self, batch: Batch, noise: Noise, particles: int, *, repeats: int = 1, levels: Levels | None = None
    ) -> Observed:
        """p(x | z) (K, n, G) from dosages alone: shared latents from their guides, z from its prior (eq. 14).

        Only ``library``, ``dosage``, ``rows`` and ``covariates`` of the batch are read. ``repeats``: number of
        consecutive particles that share a draw of the shared latents; K is a multiple of it. Without covariates in the
        batch, the particles have those of ``levels``, by default as often as in the training cells.
        """
        if self.levels and batch.covariates is None:
            codes = (levels or self.levels).spread(particles, batch.library.device)
            batch = replace(batch, covariates=codes)
        values = self.draw_shared(noise, particles // repeats, batch).values
        if repeats > 1:
            # the value of a point mass has no particle axis to repeat
            values = {k: v.repeat_interleave(repeats, 0) if v.ndim == 3 else v for k, v in values.items()}
        for latent in self.latents:
            if latent.name not in values:
                source = latent.prior(values, batch) if latent.plate == "cell" else latent.guide(values, batch)
                assert source is not None  # a latent of the cells has a prior
                values[latent.name] = _draw(latent, source, noise, particles)[0]
        return self.decode(values, batch)

    @torch.no_grad()
    def posterior_mean(self, cells: CellTable, *, chunk: int = 4096) -> Tensor:
        """The latent state of every cell (n, L), used to score the recovery of latents in simulations.

        It is the mean of q(z | x, .) at typical values of the shared latents, plus the offset if the effect is
        additive.
        """
        out = []
        for start in range(0, len(cells), chunk):
            batch = cells.batch(slice(start, start + chunk))
            values = self.typical_values(batch)
            out.append(values["z_basal"] + offset(values, batch) if self.config.effect == "additive" else values["z"])
        return torch.cat(out)

    @torch.no_grad()
    def typical_values(self, batch: Batch) -> dict[str, Tensor]:
        """The mean of the guide of every latent, or the more likely value of a mask: networks see masks of 0 and 1."""
        values: dict[str, Tensor] = {}
        for latent in self.latents:
            values[latent.name] = _typical(latent.guide(values, batch, self._inputs_of(latent, batch)))
        return values

    @torch.no_grad()
    def perturbation_tables(self) -> dict[str, Tensor]:
        """``mask_probability`` and ``embedding`` (T, L), if the model has them.

        The embedding is the mean of its guide; a guide that reads masks gets the more likely value of every mask.
        """
        batch = self.no_cells()
        values: dict[str, Tensor] = {}
        means: dict[str, Tensor] = {}
        for latent in self._shared():
            guide = latent.guide(values, batch)
            values[latent.name], means[latent.name] = _typical(guide), guide.mean.detach()
        tables = {"mask_probability": means.get("mask", means.get("mask_prob")), "embedding": means.get("embedding")}
        return {name: table for name, table in tables.items() if table is not None}

    @torch.no_grad()
    def draws_perturbations(self) -> bool:
        """Whether a latent of the perturbations is random, so that effects have an interval."""
        values: dict[str, Tensor] = {}
        for latent in self._shared():
            guide = latent.guide(values, self.no_cells())
            values[latent.name] = _typical(guide)
            if guide.noise_kind is not None:
                return True
        return any(latent.per_cell for latent in self.latents)

    def no_cells(self) -> Batch:
        """A batch without cells, used to draw the latents of all perturbations."""
        empty = self.input_mean.new_zeros(0, 1)
        return Batch(empty, empty[:, 0], MultiHot(empty.long(), empty), empty)

    def _shared(self) -> list[Latent]:
        """The latents of the perturbations that all cells share: not a mask that is drawn for every cell."""
        return [latent for latent in self.latents if latent.plate == "perturbation" and not latent.per_cell]


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more terms, in their order."""
    total, *rest = terms
    for term in rest:
        total = total + term
    return total


def _draw(latent: Latent, distribution: Distribution, noise: Noise, particles: int) -> tuple[Tensor, Tensor | None]:
    """K draws from a distribution, which may or may not have a particle axis of size K already, and their noise."""
    if distribution.noise_kind is None:
        return distribution.mean, None  # a point mass
    shape = (*_shape(latent, distribution, particles), *distribution.noise_shape)
    drawn_from = noise(latent.name, distribution.noise_kind, shape)
    return distribution.draw(drawn_from), drawn_from


def _shape(latent: Latent, distribution: Distribution, particles: int) -> tuple[int, ...]:
    """The shape of K values of a latent."""
    dims = 3 if latent.per_cell else 2
    return (particles, *distribution.shape[-dims:])


def _typical(distribution: Distribution) -> Tensor:
    """The mean of a distribution; for a mask the more likely value."""
    return torch.round(distribution.mean) if isinstance(distribution, Bernoulli) else distribution.mean
