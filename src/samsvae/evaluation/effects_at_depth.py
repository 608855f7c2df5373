"""Effects that a model predicts for cells as deep as the observed ones, with draws from the approximate posterior.

An effect in log2(1 + counts per 10,000) depends on the depth of the cells. Here each condition, and the control, has
the library sizes of its own observed cells. Letters: C conditions, P largest number of perturbations in a condition, T
perturbations, G genes, S draws of the latents of perturbations, n observed cells of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from samsvae.errors import DataError
from samsvae.evaluation.log2_expectation import Log2Mean
from samsvae.evaluation.model_effects import dosage_batch, transformed
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.models.networks import Observed
from samsvae.models.noise import Streams
from samsvae.models.softmax_nb import SoftmaxNegativeBinomial
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu

#: Distance between neighbouring depths, in log: a cell gets one of its two neighbours, with the right mean of the log.
STEP = 0.2

#: Steps of sequences that fill the unit interval evenly (fractional parts of their multiples).
EVEN, ALSO_EVEN = 0.6180339887498949, 0.7548776662466927


Result = TypeVar("Result")


@torch.no_grad()
@fast_cpu
@memory_for("effects", "Lower draws or cells.")
def effect_draws_at_depth(
    model: Model,
    members: np.ndarray,
    libraries: Sequence[np.ndarray],
    *,
    control: np.ndarray,
    control_libraries: np.ndarray,
    use: Callable[[int, np.ndarray], Result],
    levels: Sequence[Levels] | None = None,
    draws: int = 100,
    cells: int = 6,
    seed: int = 0,
) -> list[Result]:
    """Effects against control under ``draws`` from the approximate posterior, one condition at a time.

    ``use(c, effects)`` gets the draws (S, G), float32, of condition c; its results are returned in the order of the
    conditions. ``members`` (C, P): indices of the model's perturbations, padded with T; ``control`` (P,): the same for
    the control. ``libraries``: the library sizes (n,) of each condition's observed cells. Each draw is a mean over
    ``cells`` cells (an even number) of the expectation over their counts; their depths are quantiles of the library
    sizes. All conditions share the noise of cells with the control, and half of the cells have the negative noise of
    the others. Counts of a likelihood without a closed form are sampled; real values are not transformed and have no
    depth. ``levels``: of the covariates of each condition's observed cells; the control then has the same. DataError if
    a condition has no library size above 0, or ``cells`` is odd.
    """
    if cells % 2:
        raise DataError(f"cells: {cells} is not allowed; it must be even, because half of the cells mirror the others.")
    sizes = [*libraries, control_libraries]
    for each in sizes:
        if not len(each) or not (np.asarray(each) > 0).all():
            raise DataError("library sizes: every condition, and the control, needs at least one, all above 0.")
    depths = [_quantiles(np.asarray(each, float), draws, cells) for each in sizes]
    value = _expectation(model, depths)
    streams = Streams(f"{seed}/effects at depth", model.input_mean.device)
    common = _mirrored_noise(model, streams, draws, cells)

    def mean(row: np.ndarray, at: np.ndarray, levels: Levels | None = None) -> Tensor:
        own = Streams(f"{seed}/effects at depth", model.input_mean.device)

        def noise(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
            return common[name].expand(shape) if name in common else own(name, kind, shape)

        batch = dosage_batch(model, row[None], 1.0)
        likelihood = model.predict(batch, noise, draws * cells, repeats=cells, levels=levels)
        return value(likelihood, at, own.generator("x")).unflatten(0, (draws, cells)).mean(1)

    rows = list(enumerate(zip(members, depths[:-1], strict=True)))
    if levels is not None:
        return [
            use(c, (mean(row, at, levels[c]) - mean(control, depths[-1], levels[c])).cpu().numpy())
            for c, (row, at) in rows
        ]
    reference = mean(control, depths[-1])
    return [use(c, (mean(row, at) - reference).cpu().numpy()) for c, (row, at) in rows]


def _quantiles(library: np.ndarray, draws: int, cells: int) -> np.ndarray:
    """Log depths (S cells,): in each draw, evenly spaced quantiles of the library sizes, shifted from draw to draw.

    They are rounded to multiples of STEP, up or down, so that their mean stays the same.
    """
    shift = (EVEN * np.arange(draws)) % 1.0
    at = ((np.arange(cells) + shift[:, None]) / cells).ravel()
    # the mirror images of cells are in the second half, so that both halves have the same depths
    order = np.r_[np.arange(0, cells, 2), np.arange(1, cells, 2)]
    at = at.reshape(draws, cells)[:, order].ravel()
    log = np.log(np.quantile(library, at, method="inverted_cdf")) / STEP
    threshold = (ALSO_EVEN * np.arange(draws * cells)) % 1.0
    return STEP * (np.floor(log) + (log - np.floor(log) > threshold))


def _mirrored_noise(model: Model, streams: Streams, draws: int, cells: int) -> dict[str, Tensor]:
    """Standard noise (S cells, 1, L) of the latents of cells; the second half of each draw is minus the first."""
    found = {}
    for latent in model.latents:
        if latent.plate == "cell":
            half = streams(latent.name, "normal", (draws, cells // 2, 1, model.config.n_latent))
            found[latent.name] = torch.cat([half, -half], 1).flatten(0, 1)
    return found


def _expectation(
    model: Model, depths: Sequence[np.ndarray]
) -> Callable[[Observed, np.ndarray, torch.Generator], Tensor]:
    kind = model.config.likelihood
    if kind.startswith("normal"):
        return lambda likelihood, at, generator: likelihood.mean[:, 0]
    if kind != "nb":
        return lambda likelihood, at, generator: transformed(likelihood.sample(generator)[:, 0], "log2")
    grid = np.unique(np.concatenate(depths))
    device, floor = model.input_mean.device, model.likelihood.floor
    sizes = np.exp(grid)
    totals = sizes + floor * model.n_genes
    log2 = Log2Mean(torch.exp(model.likelihood.log_concentration), totals.tolist(), float(totals.max()), floor)

    def expected(likelihood: Observed, at: np.ndarray, generator: torch.Generator) -> Tensor:
        assert isinstance(likelihood, SoftmaxNegativeBinomial)
        # cells of one depth together read few parts of the curves, which then stay in the cache
        order = np.argsort(at, kind="stable")
        depth = torch.from_numpy(np.searchsorted(grid, at[order])).to(device)
        size = torch.from_numpy(sizes).to(likelihood.logits)[depth]
        rows = torch.from_numpy(order).to(device)
        mean = torch.softmax(likelihood.logits[rows, 0], -1).mul_(size[:, None]).add_(floor)
        found = torch.empty_like(mean)
        found[rows] = log2(mean, depth)
        return found

    return expected
