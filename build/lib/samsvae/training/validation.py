"""The validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.data.streaming import batches
from samsvae.errors import NumericalError
from samsvae.models.model import Model
from samsvae.models.noise import Streams, set_stream_states, stream_states
from samsvae.ops.cuda_graphs import Steps
from samsvae.ops.device import memory_for
from samsvae.training.diagnosis import culprit
from samsvae.training.steps import batch_loss


def validation_step(
    model: Model, cells: Cells, config: TrainingConfig, noise: Streams, n_cells: int
) -> Callable[..., Tensor]:
    """A function from the positions of validation cells to their loss; call it without gradients."""
    sizes = {"size": min(_validation_size(config), len(cells)), "n_cells": n_cells}
    return batch_loss(model, cells, config.in_validation(), noise, particles=config.validation_particles, **sizes)


def _validation_size(config: TrainingConfig) -> int:
    return max(config.batch_size, 512)


@torch.no_grad()
def validation_loss(
    model: Model,
    cells: Cells,
    config: TrainingConfig,
    noise: Streams,
    *,
    n_cells: int | None = None,
    between: Callable[[], None] = lambda: None,
    steps: Steps | None = None,
) -> float:
    """Mean over cells of the training objective, with fresh noise, in evaluation mode and without warm-up.

    ``n_cells``: number of training cells, used by ``plate: every_step`` (default: the number of ``cells``).
    ``between`` is called after every batch. ``steps``: computes the loss of a batch with this noise, if steps are
    captured. NumericalError if a loss is not finite.
    """
    mode = model.training
    model.eval()
    n_cells = len(cells) if n_cells is None else n_cells
    steps = Steps(validation_step(model, cells, config, noise, n_cells), noise) if steps is None else steps
    before = stream_states(noise)
    parts, losses = [], []
    size = _validation_size(config)
    fewer = f"validation_particles ({config.validation_particles})"
    advice = f"Lower {fewer} or batch_size ({config.batch_size}; validation reads {size} cells at a time)."
    with memory_for("validation", advice):
        for at, *counts in batches(cells, torch.arange(len(cells)), size):
            parts.append(at)
            losses.append(steps(at, *counts))
            between()
    total = 0.0
    for number, (at, loss) in enumerate(zip(parts, torch.stack(losses).tolist(), strict=True)):
        if not math.isfinite(loss):
            set_stream_states(noise, before)
            config = replace(config.in_validation(), particles=config.validation_particles)
            cause = culprit(model, cells, parts[: number + 1], config, noise, None, n_cells=n_cells)
            raise NumericalError(f"In validation: {cause}")
        total += loss * len(at)
    model.train(mode)
    return total / len(cells)
