"""Effects of perturbations that a model predicts, by sampled counts (as published) or by their expectation.

Letters: S samples, C conditions, P largest number of perturbations in a condition, T perturbations, G genes. Equation
numbers refer to docs/model.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.vocabulary import LIBRARY
from samsvae.data.arrays import Screen
from samsvae.evaluation.log2_expectation import Log2Mean
from samsvae.models.batch import Batch, MultiHot
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.models.networks import Observed
from samsvae.models.noise import Streams
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu

#: Most floats in an array (s, c, G): enough to hide the cost of calls. Noise is drawn array by array, so a budget that
#: depended on the free memory would change results.
BUDGET = {"cpu": 2**22, "cuda": 2**24}


def library_of(config: EvaluationConfig, screen: Screen) -> float:
    """Counts of a sampled cell: ``ate_library``, or the median over the cells of the screen."""
    if config.ate_library == "median":
        return float(np.median(screen.library))
    return LIBRARY if config.ate_library is None else config.ate_library


def dosage_batch(model: Model, members: np.ndarray, library: float | np.ndarray) -> Batch:
    """A batch with one cell per condition, whose latents are drawn for it alone.

    ``members`` (C, P): indices of the model's perturbations, padded with T. ``library``: that of all cells, or
    of each (C,). Conditions that share a perturbation get independent draws of its latents, because the published
    protocol samples each condition separately.
    """
    device = model.input_mean.device
    perturbation = torch.as_tensor(members, device=device)
    given = perturbation < model.n_perturbations
    index = torch.zeros_like(perturbation)
    index[given] = torch.arange(int(given.sum()), device=device)
    rows = perturbation[given]
    libraries = torch.as_tensor(np.full(len(members), library, np.float32), device=device)
    empty = libraries.new_zeros(len(members), 0)
    return Batch(empty, libraries, MultiHot(index, given.float()), torch.zeros_like(index, dtype=torch.float32), rows)


@torch.no_grad()
@memory_for("samples", "Sample fewer cells at a time.")
@fast_cpu
def sample(
    model: Model,
    members: np.ndarray,
    *,
    samples: int,
    library: float = LIBRARY,
    levels: Levels | None = None,
    seed: int | str = 0,
) -> Tensor:
    """Sampled cells x (S, C, G) for the dosages ``members`` (C, P), padded with T (eq. 14).

    The perturbations' latents are drawn from the approximate posterior, the cell state from its prior. ``levels``: of
    covariates, by default as in the training cells.
    """
    noise = Streams(f"{seed}/samples", model.input_mean.device)
    batch = dosage_batch(model, members, library)
    return model.predict(batch, noise, samples, levels=levels).sample(noise.generator("x"))


@torch.no_grad()
@memory_for(
    "effects",
    "They need little and no more for more samples, so other work fills the memory: end it, or on a "
    "GPU lower jobs_per_gpu.",
)
@fast_cpu
def condition_means(
    model: Model,
    members: np.ndarray,
    *,
    samples: int = 2500,
    library: float = LIBRARY,
    transform: str = "log2",
    closed_form: bool = False,
    levels: Levels | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Mean of the transformed samples of every condition, float64 (C, G): the published ATE is a difference of two.

    ``members`` (C, P): indices of the model's perturbations, padded with T. ``samples``: cells per condition.
    ``transform``: ``log2`` is log2(1 + 1e4 x_g / sum_g x), ``mean`` is none. ``closed_form`` replaces each sampled cell
    by its expectation under the likelihood, which lowers the variance of the estimate; log2 of Poisson counts is still
    sampled. ``levels``: of covariates, by default as in the training cells.
    """
    device = model.input_mean.device
    noise = Streams(f"{seed}/effects", device)
    value = expected(model, library, transform) if closed_form else partial(_sampled, transform=transform)
    cells = max(1, BUDGET[device.type] // model.n_genes)
    at_once = max(1, cells // samples)
    out = []
    for start in range(0, len(members), at_once):
        batch = dosage_batch(model, members[start : start + at_once], library)
        total = torch.zeros(len(batch.library), model.n_genes, dtype=torch.float64, device=device)
        for first in range(0, samples, cells):
            likelihood = model.predict(batch, noise, min(cells, samples - first), levels=levels)
            total += value(likelihood, noise.generator("x")).sum(0)
        out.append(total / samples)
    return torch.cat(out).cpu().numpy()


def transformed(x: Tensor, transform: str) -> Tensor:
    """The transformed counts; ``x`` may be overwritten."""
    if transform != "log2":
        return x
    return torch.log1p_(x.mul_(LIBRARY / x.sum(-1, keepdim=True).clamp_(min=1.0))).div_(math.log(2.0))


#: Gives the transformed counts (s, C, G) of cells, or their expectation, from p(x | z) and a stream of noise.
Value = Callable[[Observed, torch.Generator], Tensor]


def _sampled(likelihood: Observed, generator: torch.Generator, *, transform: str) -> Tensor:
    return transformed(likelihood.sample(generator), transform)


def expected(model: Model, library: float, transform: str) -> Value:
    """The expectation of transformed counts; for log2 of counts that are not negative binomial, samples."""
    if transform != "log2":
        return lambda likelihood, generator: likelihood.mean
    if model.config.likelihood != "nb":
        return partial(_sampled, transform=transform)
    floor = model.likelihood.floor
    total = library + floor * model.n_genes
    log2 = Log2Mean(torch.exp(model.likelihood.log_concentration), [total], total, floor)
    return lambda likelihood, generator: log2(likelihood.mean)


@torch.no_grad()
@memory_for("effects", "Lower draws or cells.")
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
    levels: Levels | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Effects of conditions under ``draws`` from the approximate posterior of the perturbations, float32 (S, C, G).

    ``members`` (C, P): indices of the model's perturbations, padded with T. One effect is the mean over ``cells`` of
    the expected transformed counts, minus the same for the dosage ``against`` (P,). Both sides share the noise of their
    cells, so the spread over draws reflects the perturbations' latents and hardly that of cells. The draws of a
    condition do not depend on the other conditions in the request. ``summary`` maps the draws (S, G) of one condition
    to the values to return, (s, G). ``levels``: of covariates, by default as in the training cells; both sides have the
    same.
    """
    device = model.input_mean.device
    streams = Streams(f"{seed}/effect draws", device)
    names = [latent.name for latent in model.latents if latent.plate == "cell"]
    common = {name: streams(name, "normal", (draws * cells, 1, model.config.n_latent)) for name in names}

    out, value = [], expected(model, library, transform)
    for row in members:
        own = Streams(f"{seed}/effect draws", device)

        def noise(name: str, kind: str, shape: tuple[int, ...], own: Streams = own) -> Tensor:
            return common[name].expand(shape) if name in common else own(name, kind, shape)

        batch = dosage_batch(model, np.stack([row, against]), library)
        x = value(model.predict(batch, noise, draws * cells, repeats=cells, levels=levels), own.generator("x"))
        x = x.unflatten(0, (draws, cells)).mean(1)  # (S, 2, G)
        out.append(summary((x[:, 0] - x[:, 1]).cpu().numpy()))
    return np.stack(out, 1)
