"""The training objective: ELBO or IWELBO with its weights (eq. 11, 15)."""

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
    """Loss of a batch per cell under given draws (eq. 11, or eq. 15 for ``iwelbo``), and the terms it is made of.

    Minus the mean over particles and cells. ``n_cells``: size of the split, by which ``plate: every_step`` shares out.
    ``warmup``: a number, or a scalar of float64 that a captured step reads anew.
    """
    plate = 1.0 / n_cells if config.plate == "every_step" else None
    terms = model.terms(batch, draw, analytic_kl=config.analytic_kl, plate=plate, extra_share=config.extra_share)
    total = add_up(term * _weight(name, config, warmup) for name, term in terms.items())
    if config.objective == "iwelbo":
        total = torch.logsumexp(total, dim=0) - math.log(total.shape[0])
    loss = -total.mean()
    if config.mask_penalty:
        loss = loss + config.mask_penalty * draw.guides["mask_prob"].mean.mean()
    return loss, terms


def _weight(term: str, config: TrainingConfig, warmup: float | Tensor) -> float | Tensor:
    """What a term of the ELBO counts: 1 for the reconstruction, for a latent its own weight times that of all."""
    if term == "reconstruction":
        return 1.0
    weights = {"mask_prob": config.weight_mask_prob, "embedding": config.weight_embedding}
    weights |= dict.fromkeys(("mask", "cell_mask"), config.weight_mask)
    return config.kl_weight * warmup * weights.get(term, config.weight_z)


def only_own_perturbations(cells: Cells, config: TrainingConfig) -> bool:
    """Whether batches leave out the perturbations that none of their cells received.

    Exact where the loss reads no term of them. Not where steps are captured or compiled, for one shape each.
    """
    host = cells.device.type == "cpu" and not config.compile
    return host and config.plate != "every_step" and not config.mask_penalty
