"""What each latent does to the expression of each gene, through the decoder.

Letters: S draws, L latents, G genes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from samsvae.evaluation.model_effects import dosage_batch
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu


@torch.no_grad()
@memory_for("latent_genes", "Lower draws.")
@fast_cpu
def latent_effects(model: Model, *, library: float, step: float = 1.0, draws: int = 200, seed: int = 0) -> np.ndarray:
    """Log2 fold change of the mean expression of every gene if one latent is raised by ``step``: (L, G), float64.

    The means are over ``draws`` unperturbed cells whose states come from the prior N(0, I), so a step of 1 is one
    standard deviation of the basal state. For real values, whose means may be negative, it is the difference of means.
    """
    batch = dosage_batch(model, np.full((1, 1), model.n_perturbations), library)
    if model.levels:
        batch = replace(batch, covariates=model.levels.spread(draws, model.input_mean.device))
    noise = Streams(f"{seed}/latent genes", model.input_mean.device)
    values = model.draw_shared(noise, 1, batch).values
    (state,) = (latent.name for latent in model.latents if latent.plate == "cell")
    z = noise(state, "normal", (draws, 1, model.config.n_latent))

    def mean(z: torch.Tensor) -> np.ndarray:
        return model.decode(values | {state: z}, batch).mean.double().mean((0, 1)).cpu().numpy()

    before, out = mean(z), np.empty((model.config.n_latent, model.n_genes))
    for latent, raised in enumerate(out):
        shifted = z.clone()
        shifted[..., latent] += step
        raised[:] = mean(shifted)
    return out - before if model.config.likelihood.startswith("normal") else np.log2(out / before)
