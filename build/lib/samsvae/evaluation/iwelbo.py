"""Bounds of the log-likelihood of held-out cells (IWELBO and ELBO), in blocks of particles and cells.

Letters: K particles, n cells, T perturbations (R of them in a block), L latents, G genes. Equation numbers refer to
docs/model.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsvae.data.cells import Cells
from samsvae.models.batch import Batch
from samsvae.models.model import Draw, Model, add_up
from samsvae.models.noise import Streams
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu

#: Most floats in an array (k, n', G): fits the cache of a CPU, or keeps a GPU busy without filling its memory, which
#: several jobs may share. Noise is drawn array by array, so a budget that depended on the memory would change results.
BUDGET = {"cpu": 2**20, "cuda": 2**24}

#: Most floats in an array (k, T, L).
SHARED = 2**24

#: Most particles in a block, which computes once what all its particles share (first layer of x, log x!).
PARTICLES = 64


@torch.no_grad()
@memory_for(
    "IWELBO",
    "It needs little and no more for more particles, so other work fills the memory: end it, "
    "or on a GPU lower jobs_per_gpu.",
)
@fast_cpu
def iwelbo(
    model: Model,
    cells: Cells,
    *,
    particles: int = 100,
    seed: int = 0,
    joint: bool = False,
    cells_at_once: int | None = None,
    on_weights: Callable[[np.ndarray], None] | None = None,
) -> Tensor:
    """Predictive IWELBO of every cell (n,), in nats (eq. 13); with ``joint``, the bound of the training objective.

    The shared latents are drawn once per particle, the same for all cells. Memory does not grow with K.
    ``cells_at_once``: cells in a block; by default as many as `BUDGET` allows. ``on_weights`` gets the log weights of
    all cells (k, n), in float32, for one block of particles after the other; they do not change the bound.
    """
    noise = Streams(f"{seed}/iwelbo", cells.device)
    out = torch.full((len(cells),), -math.inf, device=cells.device, dtype=torch.float32)
    every = out  # (k, n), the log weights of a block of particles
    for at, batch, k, shared in _blocks(model, cells, noise, particles, cells_at_once):
        weights = model.log_weights(batch, noise, k, shared, joint=joint)
        out[at] = torch.logaddexp(out[at], torch.logsumexp(weights, dim=0))
        if on_weights:
            every = out.new_empty(k, len(cells)) if at.start == 0 else every
            every[:, at] = weights
            if at.stop >= len(cells):
                on_weights(every.cpu().numpy())
    return out - math.log(particles)


@torch.no_grad()
@memory_for("NELBO", "It needs little and no more for more draws, so other work fills the memory: end it.")
@fast_cpu
def nelbo(model: Model, cells: Cells, *, draws: int = 10, seed: int = 0) -> Tensor:
    """Negative ELBO of every cell (n,), in nats: -log p(x | z) plus the KL of z in closed form (eq. 12).

    A mean over ``draws`` of one z per cell. Like those of `iwelbo`, the draws of the shared latents are the same for
    all cells and not scored against their prior.
    """
    noise = Streams(f"{seed}/nelbo", cells.device)
    out = torch.zeros(len(cells), device=cells.device, dtype=torch.float32)
    for at, batch, k, shared in _blocks(model, cells, noise, draws, None):
        terms = model.terms(batch, model.draw(batch, noise, k, shared=shared), analytic_kl=True)
        out[at] -= add_up(terms.values()).sum(0)
    return out / draws


def _blocks(
    model: Model, cells: Cells, noise: Streams, particles: int, cells_at_once: int | None
) -> Iterator[tuple[slice, Batch, int, Draw]]:
    """Blocks of particles and cells: positions of the cells, their batch, particles, and draws of the shared latents.

    The shared latents are drawn once per particle, the same for all cells.
    """
    kind = cells.device.type
    size = max(1, model.n_perturbations) * model.config.n_latent
    most = min(PARTICLES, BUDGET[kind] // model.n_genes, SHARED // size)
    at_once = max(1, min(particles, most))
    n_cells = cells_at_once or max(1, BUDGET[kind] // (at_once * model.n_genes))
    for first in range(0, particles, at_once):
        k = min(at_once, particles - first)
        shared = model.draw_shared(noise, k)
        for start in range(0, len(cells), n_cells):
            at = slice(start, start + n_cells)
            batch = cells.batch(at, own=True)
            assert batch.rows is not None  # ``own`` lists them
            yield at, batch, k, _select_rows(shared, batch.rows)


def _select_rows(shared: Draw, rows: Tensor) -> Draw:
    """Select the draws (K, R, L) of some perturbations, and their guides, from the draws (K, T, L) of all."""

    def select(value: Any) -> Any:
        return value.index_select(-2, rows) if isinstance(value, Tensor) and value.ndim > 1 else value

    guides = {
        name: replace(guide, **{field.name: select(getattr(guide, field.name)) for field in fields(guide)})
        for name, guide in shared.guides.items()
    }
    return Draw({name: select(value) for name, value in shared.values.items()}, guides)
