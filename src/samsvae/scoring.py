"""Importance-weighted bounds of held-out cells, streamed over particles and cells.

Letters: K particles, n cells, R perturbations, L latents, G genes. Equation numbers refer to docs/model.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samsvae.data.batch import Cells
from samsvae.model import Model, Streams

#: Floats of the largest array (k, n', G) held at once: small enough for a CPU's cache, large enough for a GPU.
BUDGET = {"cpu": 2**21, "cuda": 2**28}


@torch.no_grad()
def iwelbo(
    model: Model,
    cells: Cells,
    *,
    particles: int = 100,
    seed: int = 0,
    joint: bool = False,
    cells_at_once: int = 256,
) -> Tensor:
    """Predictive IWELBO of every cell (n,), in nats (eq. 13); with ``joint`` that of the training objective.

    The shared latents are drawn once per particle, the same for all cells. Memory does not grow with K.
    """
    device = cells.counts.device
    noise = Streams(f"{seed}/iwelbo", device)
    n_cells = min(cells_at_once, len(cells))
    at_once = max(1, min(particles, BUDGET[device.type] // (n_cells * model.n_genes)))
    out = torch.full((len(cells),), -math.inf, device=device)
    for first in range(0, particles, at_once):
        k = min(at_once, particles - first)
        shared = model.draw_shared(noise, k)
        for start in range(0, len(cells), n_cells):
            at = slice(start, start + n_cells)
            weights = model.log_weights(cells.batch(at), noise, k, shared, joint=joint)
            out[at] = torch.logaddexp(out[at], torch.logsumexp(weights, dim=0))
    return out - math.log(particles)
