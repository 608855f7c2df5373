"""The transfer of a model to new perturbations: stages 2 and 3 of the SVAE+ paper (docs/model.md, "Transfer").

Stage 1 is a training that saw no cell of the new perturbations. Stage 2 fixes the masks and trains the rest again.
Stage 3 freezes everything but the embeddings mu of the new perturbations. Letters: n cells, T perturbations, L latents,
K particles, G genes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.vocabulary import MASKED
from samsvae.data.cells import Cells
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.models.latents import CellState, FixedMask, LearnedEmbedding, Mask, MaskProbability
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.training.adapt_rows import adapt_rows, cells_with
from samsvae.training.diagnosis import check_inputs
from samsvae.training.loop import train
from samsvae.training.state import Keep, Trained

#: Learning rate and, if the settings give none, epochs of stage 3 as released.
RATE, EPOCHS = 5e-3, 300

#: Entries of mu below so many standard errors are 0 under `sparse`.
STANDARD_ERRORS = 2.0

#: Particles and rounds of `by_iwelbo`.
PARTICLES, ROUNDS = 50, 15

#: Most floats in an array (K, n', G).
BUDGET = 2**20

#: Logit of a mask, or log of the shape of a Beta, at which a mask is 1.
CERTAIN = 20.0


# ---- stage 2 -------------------------------------------------------------------------------------------------------


def harden(model: Model, new: Sequence[int]) -> Model:
    """A copy of a model with fixed masks, at the start of stage 2.

    The mask of an old perturbation is [pi > 1/2], also if that leaves it empty. The ``new`` ones (positions in 0 to
    T - 1) have a mask of ones and mu = 0. A mask of ones stays (iVAE); a model without effects has no masks (VAE).
    ConfigError for a model of another kind, and for a position outside 0 to T - 1.
    """
    _check_kind(model)
    if wrong := [t for t in new if not 0 <= t < model.n_perturbations]:
        raise ConfigError(
            f"new: {some(wrong)} is not the position of a perturbation. Allowed: 0 to {model.n_perturbations - 1}."
        )
    hard, rows = copy.deepcopy(model), list(new)
    if model.config.effect == "none":
        return hard
    if model.config.mask in MASKED:
        fixed = FixedMask(model.n_perturbations, model.config.n_latent).to(model.input_mean)
        fixed.values.copy_(model.perturbation_tables()["mask_probability"] > 0.5)
        hard.config = replace(model.config, mask="fixed", mask_per_cell=False, guide_mask_prob="point")
        others = [latent for latent in hard.latents if latent.name not in ("mask_prob", "mask", "cell_mask")]
        hard.latents = nn.ModuleList([fixed, *others])  # type: ignore[assignment, list-item]
    with torch.no_grad():
        for latent in hard.latents:
            if isinstance(latent, FixedMask):
                latent.values[rows] = 1.0
        embedding_of(hard).loc[rows] = 0.0
    return hard


def refit_settings(config: TrainingConfig, *, released: bool = False) -> TrainingConfig:
    """The settings of stage 2 from those of stage 1: no penalty, and no warm-up of the KL.

    ``released``: as in the authors' code, beta is 1, the KL of the first epoch has the weight 0 (but for SVAE+), and
    the weights of the last step are kept.
    """
    config = replace(config, mask_penalty=0.0, warmup_epochs=0)
    return _as_released(config) if released else config


def refit(
    model: Model,
    new: Sequence[int],
    train_cells: Cells,
    val_cells: Cells,
    config: TrainingConfig,
    *,
    released: bool = False,
    keep: Keep | None = None,
) -> tuple[Model, Trained]:
    """Stage 2: a hardened copy of a model, trained again with a new optimiser, and how that training went.

    ``config``: the settings of stage 1. The new perturbations keep mu = 0 to the bit: no cell received them, and the
    weight decay of 0 is 0. DataError if a cell of theirs is among the cells; otherwise the errors of `harden` and of
    ``train``.
    """
    for name, cells in (("training", train_cells), ("validation", val_cells)):
        if seen := sorted(set(new) & set(cells.index.flatten().tolist())):
            raise DataError(
                f"new: {some(seen)} has {name} cells, but no stage before the last may see a new perturbation. Remove "
                "them from the split."
            )
    hard = harden(model, new)
    return hard, train(hard, train_cells, val_cells, refit_settings(config, released=released), keep=keep)


# ---- stage 3 -------------------------------------------------------------------------------------------------------


def closed_form(model: Model, cells: Cells) -> Tensor:
    """mu (T, L) where the KL of z is smallest: the mean of the encoder's mean over the cells of each perturbation.

    In evaluation mode q(z | x) does not depend on mu, so this is where gradient descent on the ELBO ends. Rows of
    perturbations without cells, and entries whose mask is 0, stay as they are.
    """
    return _replaced(model, cells, _means(model.posterior_mean(cells), cells))


def sparse(model: Model, cells: Cells, *, standard_errors: float = STANDARD_ERRORS) -> Tensor:
    """The closed form, with 0 for entries whose absolute value is below ``standard_errors`` standard errors (T, L).

    The standard error is the sd (n - 1) of the encoder's mean over the k cells of a perturbation, over the root of k;
    with one cell it is not known, and every entry is 0.
    """
    encoded = model.posterior_mean(cells).double()
    mean, number = _means(encoded, cells), _number(cells)[:, None]
    variance = (_means(encoded**2, cells) - mean**2).clamp(min=0.0) * number / (number - 1.0)
    certain = mean.abs() >= standard_errors * torch.sqrt(variance / number)  # false for the NaN of a single cell
    return _replaced(model, cells, torch.where(certain, mean, 0.0))


@torch.no_grad()
def by_iwelbo(model: Model, cells: Cells, *, particles: int = PARTICLES, rounds: int = ROUNDS, seed: int = 0) -> Tensor:
    """mu (T, L) that maximises the importance-weighted bound of the cells, by EM from the closed form.

    z_k is drawn from q(z | x) once. A round weights it by softmax_k(log p(x | z_k) + log p(z_k | mu) - log q(z_k | x))
    and sets mu to the mean of the weighted z over the cells. Unlike the closed form, this can correct the encoder.
    """
    z, weight = _weighted_draws(model, cells, particles, Streams(f"{seed}/adapt", cells.device))
    at = _received(cells).clamp(max=cells.n_perturbations - 1)  # a cell without perturbation counts for none
    mask, mu = _mask(model)[at], closed_form(model, cells)
    for _ in range(rounds):
        prior = -0.5 * (z - mask * mu[at]).square().sum(-1)
        share = torch.softmax(weight + prior, 0)
        mu = _replaced(model, cells, _means((share[..., None] * z).sum(0), cells))
    return mu


#: How mu of new perturbations is found in `adapt`, if q(z | x) does not depend on it.
WAYS: dict[str, Callable[..., Tensor]] = {"closed_form": closed_form, "iwelbo": by_iwelbo, "sparse": sparse}

#: The way of `adapt` that fits every model: `adapt_rows`.
GRADIENT = "gradient"


def default_way(config: ModelConfig) -> str:
    """How `adapt` fits a model if nothing else is said: by the closed form where there is one."""
    return GRADIENT if _reason_against_ways(config) else "closed_form"


def adapt(
    model: Model,
    cells: Cells,
    how: str | None = None,
    *,
    new: Collection[int] | None = None,
    config: TrainingConfig | None = None,
    seed: int = 0,
    **options: float,
) -> Model:
    """Stage 3: a copy of a model whose ``new`` perturbations are fitted to their cells; all else is the same bits.

    ``new``: positions in 0 to T - 1; by default every perturbation of the cells. ``how``: a name in `WAYS`, or
    'gradient', which fits models of every kind by the objective of ``config``, the settings of the training
    (`adapt_rows`); by default `default_way`. ``options`` are those of its function, and ``seed`` is if it has one.
    Under `WAYS` a mask that is still inferred is ones for the new perturbations. A model without effects is returned as
    it is. ConfigError for a way that is unknown or that the model does not have, and for an unknown option; DataError
    for new perturbations without cells.
    """
    how = default_way(model.config) if how is None else how
    functions: dict[str, Callable[..., object]] = {**WAYS, GRADIENT: adapt_rows}
    if how not in functions:
        raise ConfigError(f"adapt: {how!r} is not known.{nearest(how, functions)}")
    known = [p.name for p in signature(functions[how]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"{unknown[0]!r} is not an option of adapt: {how!r}.{nearest(unknown[0], known)}")
    options |= {"seed": seed} if "seed" in known else {}
    if how != GRADIENT and model.config.effect != "none" and (reason := _reason_against_ways(model.config)):
        raise ConfigError(f"adapt: {how!r} is not possible with {reason}. Allowed: {GRADIENT!r}.")
    own = cells_with(cells, _perturbations_of(cells) if new is None else new)
    if not len(own):
        raise DataError("new perturbations need at least one cell, but there are none.")
    check_inputs(model, own)
    if model.config.effect == "none":
        return copy.deepcopy(model).eval()
    new = _perturbations_of(own) if new is None else new
    if how == GRADIENT:
        return adapt_rows(model, own, new, config, **options)  # type: ignore[arg-type]  # steps and seed are whole
    fitted = copy.deepcopy(model).eval()
    with torch.no_grad():
        _open_masks(fitted, list(new))
        embedding_of(fitted).loc.copy_(WAYS[how](fitted, own, **options))
    return fitted


class Released(NamedTuple):
    """Models with the running statistics of batch norm after stage 3, and before it; one model if these are equal."""

    model: Model
    statistics_kept: Model


def adapt_settings(config: TrainingConfig) -> TrainingConfig:
    """The settings of stage 3 as released, from those of stage 1: the last weights, validated once at the end."""
    epochs = config.epochs or EPOCHS
    config = replace(config, mask_penalty=0.0, epochs=epochs, validation_every=epochs, patience=None)
    return _as_released(replace(config, learning_rate=RATE, rate_mask=None, rate_embedding=None))


def adapt_as_released(model: Model, cells: Cells, config: TrainingConfig) -> Released:
    """Stage 3 as in the authors' code: mu by Adam, in training mode, for the perturbations of ``cells``.

    So mu is fitted to a posterior under dropout and the batch statistics of these cells alone, which is not the one
    that is scored. Batch norm's running statistics of the encoder follow these cells, but for SVAE+; those of the
    decoder stay. ``config``: the settings of stage 1. Errors: those of `adapt` and ``train``.
    """
    kept = _prepared(model, cells)
    if model.config.effect == "none":
        return Released(kept, kept)
    trained = copy.deepcopy(kept)
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter is embedding_of(trained).loc)
    train(trained, cells, cells, adapt_settings(config))
    with torch.no_grad():
        # the decay moved the rows of the others too
        embedding_of(kept).loc.copy_(_replaced(kept, cells, embedding_of(trained).loc.double()))
    if _is_scaled(config):
        return Released(kept, kept)
    drifted = copy.deepcopy(kept)
    _encoder(drifted).network.norms.load_state_dict(_encoder(trained).network.norms.state_dict())
    return Released(drifted, kept)


# ---- parts ---------------------------------------------------------------------------------------------------------


def embedding_of(model: Model) -> LearnedEmbedding:
    """The learned embedding of a model; ConfigError if it has none."""
    for latent in model.latents:
        if isinstance(latent, LearnedEmbedding):
            return latent
    raise ConfigError(f"embedding: {model.config.embedding!r} cannot be transferred. Allowed: 'learned'.")


def _encoder(model: Model) -> CellState:
    return next(latent for latent in model.latents if isinstance(latent, CellState))


def _mask(model: Model) -> Tensor:
    """The fixed mask (T, L); ones for a model that has no other."""
    ones = torch.ones_like(embedding_of(model).loc)
    return next((latent.values for latent in model.latents if isinstance(latent, FixedMask)), ones)


def _is_scaled(config: TrainingConfig) -> bool:
    """Whether the loss is multiplied by the number of cells: in the authors' code this is SVAE+ alone."""
    return config.loss_scale == "n_cells"


def _as_released(config: TrainingConfig) -> TrainingConfig:
    warmup = 0 if _is_scaled(config) else 1  # the weight is 0 in the first epoch
    return replace(config, kl_weight=1.0, warmup_epochs=warmup, keep_weights="last")


def _check_kind(model: Model) -> None:
    """ConfigError unless z has the prior N(M E, 1) with a learned E, or N(0, 1) and no effects."""
    config = model.config
    if config.effect != "none" and (config.effect, config.embedding) != ("prior_mean", "learned"):
        raise ConfigError(
            f"effect: {config.effect!r} with embedding: {config.embedding!r} cannot be transferred. Allowed: "
            "'prior_mean' with 'learned' (SVAE+, sVAE, iVAE), or 'none' (VAE)."
        )


def _prepared(model: Model, cells: Cells) -> Model:
    """A copy of a hardened model in evaluation mode; errors of `adapt` for the model and the cells."""
    _check_kind(model)
    if model.config.mask in MASKED:
        raise ConfigError(f"mask: {model.config.mask!r} is still inferred. Fix it first (harden, refit).")
    if not len(cells):
        raise DataError("new perturbations need at least one cell, but there are none.")
    check_inputs(model, cells)
    return copy.deepcopy(model).eval()


def _reason_against_ways(config: ModelConfig) -> str:
    """The setting that rules `WAYS` out, or '': neither q(z | x) nor p(x | z) may depend on the perturbation."""
    if (config.effect, config.embedding) != ("prior_mean", "learned"):
        return f"effect: {config.effect!r} and embedding: {config.embedding!r}"
    return "" if config.encoder_reads == "x" else f"encoder_reads: {config.encoder_reads!r}"


def _open_masks(model: Model, rows: list[int]) -> None:
    """Set the inferred masks of some perturbations to ones, as certainly as float32 allows."""
    for latent in model.latents:
        if isinstance(latent, MaskProbability | Mask):
            for name, parameter in latent.named_parameters(recurse=False):
                parameter[rows] = -CERTAIN if name == "log_b" else CERTAIN


def _perturbations_of(cells: Cells) -> list[int]:
    """The perturbations that the cells received, sorted."""
    return [t for t in cells.index.unique().tolist() if t < cells.n_perturbations]


def _received(cells: Cells) -> Tensor:
    """The perturbation of each cell (n,), T for none."""
    return cells.index.amin(1)


def _number(cells: Cells) -> Tensor:
    """How many of the cells received each perturbation: float64 (T,)."""
    return torch.bincount(_received(cells), minlength=cells.n_perturbations + 1)[:-1].double()


def _means(values: Tensor, cells: Cells) -> Tensor:
    """Means of values (n, L) over the cells of each perturbation: float64 (T, L), NaN without cells."""
    total = values.new_zeros(cells.n_perturbations + 1, values.shape[1], dtype=torch.float64)
    return total.index_add_(0, _received(cells), values.double())[:-1] / _number(cells)[:, None]


def _replaced(model: Model, cells: Cells, mu: Tensor) -> Tensor:
    """mu of the model (T, L), with new values for the perturbations of the cells, where their mask is not 0."""
    old = embedding_of(model).loc.detach()
    return torch.where((_number(cells) > 0)[:, None] & (_mask(model) != 0), mu.to(old), old)


def _weighted_draws(model: Model, cells: Cells, particles: int, noise: Streams) -> tuple[Tensor, Tensor]:
    """z (K, n, L) from q(z | x), and log p(x | z) - log q(z | x) (K, n)."""
    chunk = max(1, BUDGET // (particles * model.n_genes))
    draws, weights = [], []
    for start in range(0, len(cells), chunk):
        batch = cells.batch(slice(start, start + chunk))
        draw = model.draw(batch, noise, particles)
        z = draw.values["z"]
        log_q = draw.guides["z"].log_prob(z).sum(-1)
        draws.append(z)
        weights.append(model.decode(draw.values, batch).log_likelihood(batch.x) - log_q)
    return torch.cat(draws, 1), torch.cat(weights, 1)
