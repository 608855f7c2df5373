"""The latent state of given cells, with and without the effect of their perturbations, and their counterfactuals.

Letters: S draws, n cells, P largest number of perturbations in a cell, T perturbations, L latents, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from samsvae.data.cells import Cells
from samsvae.models.batch import Batch, MultiHot
from samsvae.models.latents import offset
from samsvae.models.model import Draw, Model
from samsvae.models.noise import Streams
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu

#: Most floats in an array (S, n', G). Noise is drawn block by block, so this changes the draws.
BUDGET = {"cpu": 2**22, "cuda": 2**24}


@torch.no_grad()
@memory_for("latents", "Pass fewer cells at a time.")
@fast_cpu
def latent_means(model: Model, cells: Cells, *, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """The state z of every cell and its state without the effect of its perturbations, z_basal: (n, L) each.

    Both are means of the approximate posterior at typical values of the shared latents (`Model.typical_values`).
    """
    parts = []
    for start in range(0, len(cells), chunk):
        batch = cells.batch(slice(start, start + chunk))
        parts.append(_states(model, model.typical_values(batch), batch))
    z, basal = zip(*parts, strict=True)
    return torch.cat(z), torch.cat(basal)


def _states(model: Model, values: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """z and z_basal from values of the latents.

    They are equal if the perturbations act in the decoder alone, or not at all. If they move the prior of z
    (``prior_mean``), z_basal is the deviation of z from it.
    """
    if model.config.effect == "additive":
        return values["z_basal"] + offset(values, batch), values["z_basal"]
    z = values["z"]
    return z, z - offset(values, batch) if model.config.effect == "prior_mean" else z


@torch.no_grad()
@memory_for("counterfactual", "Lower draws, or pass fewer cells at a time.")
@fast_cpu
def counterfactual(
    model: Model, cells: Cells, members: np.ndarray, *, draws: int = 20, sample: bool = False, seed: int = 0
) -> np.ndarray:
    """Counts (n, G), float32, of the same cells if they had received other perturbations, at their own library sizes.

    ``members`` (P,): indices of these perturbations, padded with T. z_basal is drawn from the approximate
    posterior of a cell given its counts and what it received; then its perturbations are exchanged and it is decoded.
    The result is the mean of the likelihood over ``draws``, or, with ``sample``, counts from one draw.
    """
    noise = Streams(f"{seed}/counterfactual", cells.device)
    draws = 1 if sample else draws
    shared = model.draw_shared(noise, draws)
    index = torch.as_tensor(members, device=cells.device)
    dose = (index < model.n_perturbations).to(cells.library.dtype)
    index = index.clamp(max=max(0, model.n_perturbations - 1))
    at_once = max(1, BUDGET[cells.device.type] // (draws * model.n_genes))
    out = np.empty((len(cells), model.n_genes), np.float32)
    for start in range(0, len(cells), at_once):
        at = slice(start, start + at_once)
        batch = cells.batch(at)
        n = len(batch.library)
        dosage = MultiHot(index.expand(n, -1), dose.expand(n, -1))
        other = replace(batch, dosage=dosage, plate_weight=torch.zeros_like(dosage.dose))
        own = model.draw(batch, noise, draws, shared=shared).values
        likelihood = model.decode(_exchanged(model, own, batch, other, noise, draws, shared), other)
        x = likelihood.sample(noise.generator("x"))[0] if sample else likelihood.mean.mean(0)
        out[at] = x.cpu().numpy()
    return out


def _exchanged(
    model: Model, own: dict[str, Tensor], batch: Batch, other: Batch, noise: Streams, draws: int, shared: Draw
) -> dict[str, Tensor]:
    """The latents of cells (``own``) with the perturbations of ``other`` in place of those of ``batch``."""
    per_cell = [latent.name for latent in model.latents if latent.per_cell]  # a mask of every cell's own perturbations
    if model.config.effect != "prior_mean" and not per_cell:
        return own  # the decoder reads the perturbations
    theirs = model.draw(other, noise, draws, shared=shared).values
    exchanged = own | {name: theirs[name] for name in per_cell}
    if model.config.effect != "prior_mean":
        return exchanged
    _, basal = _states(model, own, batch)
    return exchanged | {"z": basal + offset(theirs, other)}
