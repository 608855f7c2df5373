"""An optimisation step, and the loss of a batch, which training and validation share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.models.batch import Batch
from samsvae.models.model import Model
from samsvae.models.noise import Noise, given
from samsvae.training.objective import objective, only_own_perturbations
from samsvae.training.optimiser import Adam


def batch_loss(
    model: Model,
    cells: Cells,
    config: TrainingConfig,
    noise: Noise,
    *,
    particles: int,
    size: int,
    n_cells: int,
    warmup: float | Tensor = 1.0,
) -> Callable[..., Tensor]:
    """A function from the positions of cells (and their counts, if already read) to their loss.

    With ``compile``, batches of the full ``size`` use fewer and larger kernels. Their noise is drawn beforehand, from
    the same streams in the same order.
    """

    def loss_under(at: Tensor, counts: tuple[Tensor, ...], noise: Noise) -> Tensor:
        batch = cells.batch(at, *counts, own=only_own_perturbations(cells, config))
        draw = model.draw(batch, noise, particles)
        return objective(model, batch, draw, config, n_cells=n_cells, warmup=warmup)[0]

    if not config.compile:
        return lambda at, *counts: loss_under(at, counts, noise)
    fused = torch.compile(
        lambda at, counts, values: loss_under(at, counts, given(values)), dynamic=False, fullgraph=True
    )
    requests: list[tuple[str, str, tuple[int, ...]]] = []

    def loss(at: Tensor, *counts: Tensor) -> Tensor:
        if len(at) < size:
            return loss_under(at, counts, noise)
        if not requests:
            requests.extend(noise_requests(model, cells.batch(at, *counts), particles))
        return fused(at, counts, {name: noise(name, kind, shape) for name, kind, shape in requests})

    return loss


def training_step(
    model: Model,
    cells: Cells,
    config: TrainingConfig,
    optimiser: Adam,
    noise: Noise,
    bad: Tensor,
    warmup: float | Tensor,
) -> Callable[..., Tensor]:
    """A training step: a function from the positions of cells (and their counts, if already read) to their loss.

    ``bad``, a scalar tensor, becomes 1 if the loss is not finite; while it is 1, no step changes a weight.
    """
    # Adam depends on the scale of the loss through its eps and the weight decay
    scale = float(len(cells)) if config.loss_scale == "n_cells" else 1.0
    sizes = {"size": min(config.batch_size, len(cells)), "n_cells": len(cells), "particles": config.particles}
    loss_of = batch_loss(model, cells, config, noise, **sizes, warmup=warmup)

    def step(at: Tensor, *counts: Tensor) -> Tensor:
        loss = loss_of(at, *counts)
        with torch.no_grad():
            torch.maximum(bad, (loss - loss).ne(0.0), out=bad)  # inf - inf and nan differ from 0
        optimiser.clear()
        (loss if scale == 1.0 else loss * scale).backward()
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimiser.step(bad)
        return loss.detach()

    return step


@torch.no_grad()
def noise_requests(model: Model, batch: Batch, particles: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """The name, kind and shape of the noise that a draw of the model needs, in order; draws from no stream."""
    requests = []

    def record(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        requests.append((name, kind, tuple(shape)))
        return torch.zeros(shape, device=batch.x.device, dtype=torch.float32)

    mode = model.training
    model.eval()  # no dropout, and no update of the moments of batch norm
    model.draw(batch, record, particles)
    model.train(mode)
    return requests
