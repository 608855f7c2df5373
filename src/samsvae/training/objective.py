"""The training objective: ELBO or IWELBO with weighted terms (eq. 11, 15)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.models.batch import Batch
from samsvae.models.model import Draw, Model, add_up


def objective(
    model: Model, batch: Batch, draw: Draw, config: TrainingConfig, *, n_cells: int, warmup: float | Tensor = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss per cell of a batch with given draws (eq. 11, or eq. 15 for ``iwelbo``), and its terms.

    The loss is minus the mean over particles and cells. ``n_cells``: size of the split; with ``plate: every_step`` the
    terms of the perturbations have the weight 1 / n_cells. ``warmup``: a number, or a float64 scalar tensor that a
    captured step reads at every replay.
    """
    plate = 1.0 / n_cells if config.plate == "every_step" else None
    terms = model.terms(batch, draw, analytic_kl=config.analytic_kl, plate=plate, extra_share=config.extra_share)
    total = add_up(_weighted(name, term, config, warmup) for name, term in terms.items())
    if config.objective == "iwelbo":
        total = torch.logsumexp(total, dim=0) - math.log(total.shape[0])
    loss = -total.mean()
    if config.mask_penalty:
        loss = loss + config.mask_penalty * draw.guides["mask_prob"].mean.mean()
    return loss, terms


def _weighted(name: str, term: Tensor, config: TrainingConfig, warmup: float | Tensor) -> Tensor:
    """A term of the ELBO times its weight: 1 for the reconstruction; kl_weight, warm-up and its own for a latent."""
    if name == "reconstruction":
        return term
    weights = {"mask_prob": config.weight_mask_prob, "embedding": config.weight_embedding}
    weights |= dict.fromkeys(("mask", "cell_mask"), config.weight_mask)
    weight = config.kl_weight * warmup * weights.get(name, config.weight_z)
    return term if isinstance(weight, float) and weight == 1.0 else term * weight


def only_own_perturbations(cells: Cells, config: TrainingConfig) -> bool:
    """Whether batches leave out the perturbations that none of their cells received.

    This is exact if the loss has no term for them. It is not used if steps are captured or compiled, because every
    batch would have another shape.
    """
    host = cells.device.type == "cpu" and not config.compile
    return host and config.plate != "every_step" and not config.mask_penalty
