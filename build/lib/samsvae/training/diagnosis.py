"""Error diagnosis: inputs that a model cannot read, and the term, cell or gene behind a loss that is not finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.errors import ConfigError, DataError, some
from samsvae.models.batch import Batch
from samsvae.models.model import Draw, Model
from samsvae.models.noise import Noise
from samsvae.training.objective import objective, only_own_perturbations

#: Cells that are looked at together.
CHUNK = 4096


def check_inputs(model: Model, *splits: Cells) -> None:
    """ConfigError if a model cannot read the dosages or values of the cells, or is normal for integer counts.

    DataError for cells whose library size is not above 0, if the likelihood divides by it, and for cells without the
    covariates of the model.
    """
    if model.levels and any(cells.covariates is None for cells in splits):
        raise DataError(f"the model reads {len(model.covariates)} covariates, which the cells do not have.")
    for cells in splits:
        empty = (~((cells.library > 0) & torch.isfinite(cells.library))).cpu().numpy()
        if empty.any() and model.config.likelihood == "nb":
            raise DataError(
                f"the library size must be above 0, but {empty.sum()} cells have other values: "
                f"{some(cells.names[empty])}. Remove these cells."
            )
    if model.config.likelihood.startswith("normal") and not all(x.counts.dtype.is_floating_point for x in splits):
        raise ConfigError(
            f"likelihood: {model.config.likelihood!r} is not allowed for counts: effects are computed from "
            "log2(1 + counts per 10,000), and this likelihood can predict negative values. Allowed: 'nb', 'poisson'."
        )
    real = [x.counts for x in splits if x.counts.dtype.is_floating_point]
    logs = model.config.input.startswith("log") or not model.config.likelihood.startswith("normal")
    if logs and any((part < 0).any() for x in real for part in x.split(CHUNK)):
        raise ConfigError(
            f"likelihood: {model.config.likelihood!r} with input: {model.config.input!r} is not allowed for a screen "
            "with negative values. Set likelihood: normal (or normal_fixed) and input: standardise (or none)."
        )
    if model.config.effect != "prior_mean":
        return
    for cells in splits:
        several = ((cells.index < cells.n_perturbations).sum(-1) > 1).cpu().numpy()
        if several.any():
            raise ConfigError(
                "encoding: 'sum' is not allowed for this model (SVAE+, sVAE, iVAE), which accepts one perturbation "
                f"per cell: {several.sum()} cells received several ({some(cells.names[several], 3)}). "
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
    trained: bool = True,
) -> str:
    """The result of ``diagnose`` for the last of some batches, and what to do about it.

    ``noise`` must be in its state before the first one. ``trained``: whether a step has changed the weights.
    """
    for at in parts:
        batch = cells.batch(at, own=only_own_perturbations(cells, config))
        draw = model.draw(batch, noise, config.particles)
        _, terms = objective(model, batch, draw, config, n_cells=n_cells or len(cells), warmup=warmup)
    names = cells.names[parts[-1].cpu()]
    advice = odd_values(model, batch, names) or (lower_rates(config) if trained else "")
    return f"{diagnose(model, batch, draw, terms, names, genes)} {advice}".rstrip()


def odd_values(model: Model, batch: Batch, cells: np.ndarray) -> str:
    """A sentence that names cells whose counts no likelihood can have; '' if there are none."""
    odd = {"The counts of cell {} are not finite.": ~torch.isfinite(batch.x).all(-1)}
    if model.config.likelihood == "nb":
        odd = {"The counts of cell {} are negative.": (batch.x < 0).any(-1), **odd}
    return next((text.format(some(cells[bad.cpu().numpy()], 3)) for text, bad in odd.items() if bad.any()), "")


def lower_rates(config: TrainingConfig) -> str:
    """The advice to lower the learning rates, with their values."""
    names = ("learning_rate", "rate_mask", "rate_embedding")
    rates = {name: getattr(config, name) or config.learning_rate for name in names}
    return f"Lower the learning rates ({', '.join(f'{name}: {rate}' for name, rate in rates.items())})."


def diagnose(
    model: Model,
    batch: Batch,
    draw: Draw,
    terms: dict[str, Tensor],
    cells: np.ndarray,
    genes: np.ndarray | None,
) -> str:
    """A sentence that names the term of a loss that is not finite, and the cell, gene or weight that caused it."""
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        return f"the weights {some(broken, 3)} are not finite, because a gradient of the previous step was not."
    for name, term in terms.items():
        bad = ~torch.isfinite(term.detach())
        if not bad.any():
            continue
        where = some(cells[bad.expand(-1, len(cells)).any(0).cpu().numpy()], 3) if bad.ndim == 2 else "all cells"
        if name == "reconstruction":
            with torch.no_grad():
                scores = model.decode(draw.values, batch).log_prob(batch.x)
            columns = (~torch.isfinite(scores)).flatten(0, -2).any(0).cpu().numpy()
            which = some(np.flatnonzero(columns) if genes is None else genes[columns], 3)
            return f"the term 'reconstruction' is not finite for gene {which}, cell {where}."
        return f"the term {name!r} is not finite for cell {where}."
    return "the sum of the terms is not finite, although each term is."
