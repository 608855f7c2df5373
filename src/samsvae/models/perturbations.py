"""What belongs to single perturbations in a model, and models with other perturbations made from it.

A perturbation has rows of tables (masks, embeddings), and columns of first layers that read its dosage or its one-hot
code. Everything else is shared. Letters: T perturbations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from samsvae.models.latents import CellState, Embedding, LearnedEmbedding
from samsvae.models.model import Model


def perturbation_parts(model: Model) -> dict[str, int | None]:
    """The parameters and buffers with a part for every perturbation, by name.

    The value is the first of the last T columns of a layer's weights, or None for a table with T rows.
    """
    found: dict[str, int | None] = {}
    for number, latent in enumerate(model.latents):
        assert isinstance(latent, nn.Module)
        if latent.plate == "perturbation":
            own = chain(latent.named_parameters(recurse=False), latent.named_buffers(recurse=False))
            found |= {f"latents.{number}.{name}": None for name, value in own if value.ndim == 2}
        if isinstance(latent, Embedding) and latent.reads_mask:
            found[f"latents.{number}.network.layers.0.weight"] = model.config.n_latent
        if isinstance(latent, CellState) and latent.reads == "x_dosage":
            found[f"latents.{number}.network.layers.0.weight"] = model.n_genes + sum(model.covariates)
    if model.config.effect == "decoder_input":
        found["decoder.layers.0.weight"] = model.config.n_latent + model.decoder_levels
    return found


def rows_of(tensor: Tensor, column: int | None) -> Tensor:
    """The part of every perturbation (T, ...) in a tensor of `perturbation_parts`, as a view."""
    return tensor if column is None else tensor[:, column:].T


@torch.no_grad()
def select(model: Model, perturbations: Sequence[int | None]) -> Model:
    """A copy of a model whose perturbations are those at some positions; None stands for a new one.

    A new perturbation has the mask of an untrained model, an embedding of mean 0, and weights 0 where a layer reads it.
    All else, and the rows of the others, are the same bits.
    """
    found = Model(model.config, model.n_genes, len(perturbations), levels=model.levels)
    found = found.to(model.input_mean).train(model.training)
    parts, old = perturbation_parts(model), model.state_dict()
    learned = {f"latents.{i}.loc" for i, latent in enumerate(model.latents) if isinstance(latent, LearnedEmbedding)}
    for name, value in found.state_dict().items():
        if name not in parts:
            value.copy_(old[name])
            continue
        column = parts[name]
        if column is not None:
            value[:, :column] = old[name][:, :column]
        rows = rows_of(value, column)
        if column is not None or name in learned:
            rows.zero_()
        for at, number in enumerate(perturbations):
            if number is not None:
                rows[at] = rows_of(old[name], column)[number]
    return found


def add_perturbations(model: Model, number: int) -> Model:
    """A copy of a model with new perturbations after its own, as in `select`; cells of the old ones score the same."""
    return select(model, [*range(model.n_perturbations), *[None] * number])


def reset_perturbations(model: Model, new: Collection[int]) -> Model:
    """A copy of a model in which some perturbations (positions) are reset, as new ones in `select`."""
    return select(model, [None if t in new else t for t in range(model.n_perturbations)])


@torch.no_grad()
def copy_perturbations(source: Model, target: Model, pairs: Sequence[tuple[int, int]]) -> None:
    """Copy the parts of perturbations from one model to another of the same kind; ``pairs``: (in source, in target)."""
    theirs, ours = source.state_dict(), target.state_dict()
    for name, column in perturbation_parts(target).items():
        rows = rows_of(ours[name], column)
        for start, end in pairs:
            rows[end] = rows_of(theirs[name], column)[start]
