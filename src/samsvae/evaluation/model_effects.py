"""Effects of perturbations as a model predicts them, by the published sampler or by the likelihood's expectation.

Letters: S samples, C conditions, P most perturbations in a condition, T perturbations, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from samsvae.config.vocabulary import FLOOR, LIBRARY
from samsvae.evaluation.log2_expectation import Log2Mean
from samsvae.models.batch import Batch, MultiHot
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops.onednn import fast_cpu

#: Floats of the largest array (s, c, G) held at once: enough to hide the cost of calls.
BUDGET = {"cpu": 2**22, "cuda": 2**28}


def dosage_batch(model: Model, members: np.ndarray, library: float) -> Batch:
    """A cell per condition that asks for a draw of its own of every latent it needs.

    ``members`` (C, P): rows of the model's perturbations, T where there is none. Conditions that share a
    perturbation get independent draws of it, as the published protocol samples each anew.
    """
    device = model.input_mean.device
    members = torch.as_tensor(members, device=device)
    given = members < model.n_perturbations
    index = torch.full_like(members, int(given.sum()))
    index[given] = torch.arange(int(given.sum()), device=device)
    rows = members[given]
    library = torch.full((len(members),), float(library), device=device)
    empty = torch.zeros(len(members), 0, device=device)
    return Batch(empty, library, MultiHot(index, given.float()), torch.zeros(len(rows), device=device), rows)


@torch.no_grad()
@fast_cpu
def sample(model: Model, members: np.ndarray, *, samples: int, library: float = LIBRARY, seed: int | str = 0) -> Tensor:
    """Sampled cells x (S, C, G) of each dosage: shared latents from the guide, z from its prior (eq. 14)."""
    noise = Streams(f"{seed}/samples", model.input_mean.device)
    return model.predict(dosage_batch(model, members, library), noise, samples).sample(noise.generator("x"))


@torch.no_grad()
@fast_cpu
def condition_means(
    model: Model,
    members: np.ndarray,
    *,
    samples: int = 2500,
    library: float = LIBRARY,
    transform: str = "log2",
    closed_form: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Mean of the transformed samples of every condition, float64 (C, G): the published ATE is a difference of two.

    ``transform``: ``log2`` is log2(1 + 1e4 x_g / sum_g x), ``mean`` none. ``closed_form`` puts the expectation under
    the likelihood in the place of each sampled cell, which lowers the variance of the estimate (not of Poisson's).
    """
    device = model.input_mean.device
    noise = Streams(f"{seed}/effects", device)
    value = _expectation(model, library, transform) if closed_form else partial(_sampled, transform=transform)
    cells = max(1, BUDGET[device.type] // model.n_genes)
    at_once = max(1, cells // samples)
    out = []
    for start in range(0, len(members), at_once):
        batch = dosage_batch(model, members[start : start + at_once], library)
        total = torch.zeros(len(batch.library), model.n_genes, dtype=torch.float64, device=device)
        for first in range(0, samples, cells):
            likelihood = model.predict(batch, noise, min(cells, samples - first))
            total += value(likelihood, noise.generator("x")).sum(0)
        out.append(total / samples)
    return torch.cat(out).cpu().numpy()


def _transformed(x: Tensor, transform: str) -> Tensor:
    """``x``, which may be overwritten, as effects compare it."""
    if transform != "log2":
        return x
    return torch.log1p_(x.mul_(LIBRARY / x.sum(-1, keepdim=True).clamp_(min=1.0))).div_(math.log(2.0))


#: From the likelihood of cells (s, C, G), and a stream of noise, to what effects compare.
Value = Callable[[object, torch.Generator], Tensor]


def _sampled(likelihood, generator: torch.Generator, *, transform: str) -> Tensor:
    return _transformed(likelihood.sample(generator), transform)


def _expectation(model: Model, library: float, transform: str) -> Value:
    """The expectation of transformed cells; under a logarithm of other counts than the negative binomial's, draws.

    The sum over genes is taken to be what it is in the mean.
    """
    if transform != "log2":
        return lambda likelihood, generator: likelihood.mean
    if model.config.likelihood != "nb":
        return partial(_sampled, transform=transform)
    whole = library + FLOOR * model.n_genes
    log2 = Log2Mean(torch.exp(model.likelihood.log_concentration), LIBRARY / whole, whole)
    return lambda likelihood, generator: log2(likelihood.mean)


@torch.no_grad()
@fast_cpu
def effect_draws(
    model: Model,
    members: np.ndarray,
    *,
    against: np.ndarray,
    draws: int = 100,
    cells: int = 25,
    library: float = LIBRARY,
    transform: str = "log2",
    summary: Callable[[np.ndarray], np.ndarray] = lambda draws: draws,
    seed: int = 0,
) -> np.ndarray:
    """Effects of conditions under draws of the perturbations' latents from the guide, float32 (S, C, G).

    One effect is the mean over ``cells`` of the transformed counts' expectation, minus the same under the dosage
    ``against`` (P,). A condition and what it is held against share the noise of their cells, so that the spread over
    draws is that of the perturbations' latents and hardly that of cells. A condition's draws do not depend on the
    others asked for. ``summary``: what is kept of them, from (S, G) to (s, G).
    """
    device = model.input_mean.device
    streams = Streams(f"{seed}/effect draws", device)
    seeds = [latent.name for latent in model.latents if latent.plate == "cell"]
    common = {name: streams(name, "normal", (draws * cells, 1, model.config.n_latent)) for name in seeds}

    out, value = [], _expectation(model, library, transform)
    for row in members:
        own = Streams(f"{seed}/effect draws", device)

        def noise(name: str, kind: str, shape: tuple[int, ...], own: Streams = own) -> Tensor:
            return common[name].expand(shape) if name in common else own(name, kind, shape)

        batch = dosage_batch(model, np.stack([row, against]), library)
        x = value(model.predict(batch, noise, draws * cells, repeats=cells), own.generator("x"))
        x = x.unflatten(0, (draws, cells)).mean(1)  # (S, 2, G)
        out.append(summary((x[:, 0] - x[:, 1]).cpu().numpy()))
    return np.stack(out, 1)
