"""New perturbations fitted to their cells by the training objective, with all else frozen (docs/model.md, "Transfer").

This is the counterpart, for models of any kind, of the last stage of the SVAE+ paper. Letters: n cells, T
perturbations.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.errors import DataError, some
from samsvae.models.model import Model
from samsvae.models.perturbations import (
    copy_perturbations,
    perturbation_parts,
    reset_perturbations,
    rows_of,
    select,
)
from samsvae.training.loop import train

#: Steps, cells of a step (all, if there are fewer), learning rate and particles.
STEPS, CELLS, RATE, PARTICLES = 1000, 512, 1e-2, 5


def adapt_rows(
    model: Model,
    cells: Cells,
    new: Collection[int],
    config: TrainingConfig | None = None,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
) -> Model:
    """A copy of a model with the parts of its ``new`` perturbations (positions) fitted to their ``cells`` by Adam.

    They start as in `select`, also if a training changed their rows. All else is the same bits. The
    loss is that of ``config``, the settings of the training, without warm-up and penalty, in evaluation mode. The terms
    of a new perturbation enter each of its n_t cells with 1/n_t (eq. 11). Cells without a new perturbation are not
    used; old ones in combinations keep their posterior and add no term. The same seed and order of cells give the same
    bytes at any positions. DataError if a new perturbation has no cell.
    """
    used, rows = _cells_of(cells, new)
    own = [at for at, t in enumerate(rows) if t in new]
    small = reset_perturbations(select(model, rows), own)
    _free(small, own)
    counted = torch.zeros_like(used.share)
    counted[own] = used.share[own]
    used = replace(used, share=counted)
    train(small, used, used, row_settings(config, steps=steps, rate=rate, seed=seed), evaluation_mode=True)
    adapted = copy.deepcopy(model).eval()
    copy_perturbations(small, adapted, [(at, rows[at]) for at in own])
    return adapted


def row_settings(config: TrainingConfig | None, *, steps: int, rate: float, seed: int) -> TrainingConfig:
    """The settings of `adapt_rows` from those of the training: its objective, with another optimiser."""
    config = replace(
        config or TrainingConfig(), plate="epoch", loss_scale="one", warmup_epochs=0, mask_penalty=0.0, compile=False,
        last_batch="drop", drop_below=None, keep_weights="last", patience=None, rate_mask=None, rate_embedding=None,
    )  # fmt: skip
    return replace(
        config, steps=steps, epochs=None, validation_every=steps, batch_size=CELLS, particles=PARTICLES, seed=seed,
        learning_rate=rate, adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8, weight_decay=0.0, gradient_clip=None,
    )  # fmt: skip


def _cells_of(cells: Cells, new: Collection[int]) -> tuple[Cells, list[int]]:
    """The cells that received a new perturbation, and the perturbations in them.

    These are in the order of the cells, and the index of the cells points into them. So noise and batches do not depend
    on the positions of perturbations in the model.
    """
    used = cells_with(cells, new)
    rows = [t for t in dict.fromkeys(used.index.flatten().tolist()) if t < cells.n_perturbations]
    position = torch.full((cells.n_perturbations + 1,), len(rows), device=cells.device)
    position[rows] = torch.arange(len(rows), device=cells.device)
    return replace(used, index=position[used.index], n_perturbations=len(rows), share=used.share[rows]), rows


def cells_with(cells: Cells, new: Collection[int]) -> Cells:
    """The cells that received one of some perturbations (positions); DataError if one of these has no cell."""
    received = torch.isin(cells.index, torch.tensor(sorted(new), device=cells.device, dtype=torch.long))
    if missing := sorted(set(new) - set(cells.index[received].tolist())):
        raise DataError(f"new: no cell received {some(missing)}; a new perturbation needs at least one cell.")
    return cells.subset(received.any(1).nonzero()[:, 0])


def _free(model: Model, own: Sequence[int]) -> None:
    """Let gradients reach nothing but the parts of some perturbations; Adam leaves values without gradient alone."""
    parts = perturbation_parts(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parts)
        if name in parts:
            free = torch.zeros_like(parameter)
            rows_of(free, parts[name])[list(own)] = 1.0
            parameter.register_hook(free.mul)
