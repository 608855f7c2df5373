"""What is wrong: inputs a model cannot read, and the term, cell or gene behind a loss that is not finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.errors import ConfigError, some
from samsvae.models.batch import Batch
from samsvae.models.model import Draw, Model
from samsvae.models.noise import Noise
from samsvae.training.objective import objective, only_own_perturbations


def check_inputs(model: Model, *splits: Cells) -> None:
    """ConfigError where a model cannot read the dosages of the cells, or is not one of counts where they are."""
    if model.config.likelihood.startswith("normal") and not all(x.counts.dtype.is_floating_point for x in splits):
        raise ConfigError(
            f"likelihood: {model.config.likelihood!r} is not allowed for counts, whose effects are taken of "
            "log2(1 + counts per 10,000), which its values may have none of. Allowed: 'nb', 'poisson'."
        )
    if model.config.effect != "prior_mean":
        return
    for cells in splits:
        several = ((cells.index < cells.n_perturbations).sum(-1) > 1).cpu().numpy()
        if several.any():
            raise ConfigError(
                f"encoding: 'sum' is not allowed for this model (SVAE+, sVAE, iVAE): it accepts one perturbation "
                f"a cell, and {several.sum()} cells received several ({some(cells.names[several], 3)}). "
                "Allowed: 'unique'."
            )


@torch.no_grad()
def culprit(
    model: Model,
    cells: Cells,
    parts: list[Tensor],
    config: TrainingConfig,
    noise: Noise,
    genes: np.ndarray | None,
    *,
    n_cells: int | None = None,
    warmup: float | Tensor = 1.0,
) -> str:
    """What ``diagnose`` says of the last of some batches, the noise being that before the first of them."""
    for at in parts:
        batch = cells.batch(at, own=only_own_perturbations(cells, config))
        draw = model.draw(batch, noise, config.particles)
        _, terms = objective(model, batch, draw, config, n_cells=n_cells or len(cells), warmup=warmup)
    return diagnose(model, batch, draw, terms, cells.names[parts[-1].cpu()], genes)


def diagnose(
    model: Model,
    batch: Batch,
    draw: Draw,
    terms: dict[str, Tensor],
    cells: np.ndarray,
    genes: np.ndarray | None,
) -> str:
    """One sentence that names the term of a loss that is not finite, and the cell, gene or weight behind it."""
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        return f"the weights {some(broken, 3)} are not finite (a gradient of the step before was not); lower the rates."
    for name, term in terms.items():
        bad = ~torch.isfinite(term.detach())
        if not bad.any():
            continue
        where = some(cells[bad.expand(-1, len(cells)).any(0).cpu().numpy()], 3) if bad.ndim == 2 else "all cells"
        if name == "reconstruction":
            with torch.no_grad():
                scores = model.decode(draw.values, batch).log_prob(batch.x)
            columns = (~torch.isfinite(scores)).flatten(0, -2).any(0).cpu().numpy()
            named = some(np.flatnonzero(columns) if genes is None else genes[columns], 3)
            return f"the term 'reconstruction' is not finite for gene {named}, cell {where}."
        return f"the term {name!r} is not finite for cell {where}."
    return "the sum of the terms is not finite, though each term is."
