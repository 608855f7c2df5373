"""Effects of perturbations that are added to cells with others, in screens without a control.

If hardly any cell received nothing, no cell resembles the zero dosage, and a network that is asked about it guesses. So
an effect is the mean change when a perturbation is added to dosages that cells of the screen received, as a regression
on dosages measures it (`samsvae.evaluation.regression`).
Letters: S draws, B backgrounds, C conditions, P most perturbations in a condition, T perturbations, G genes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from samsvae.evaluation.model_effects import expected
from samsvae.models.batch import Batch, MultiHot
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu
from samsvae.training.checkpoint import Checkpoint

#: Most floats of an array (S, 2 B, G) that are in memory at a time.
BUDGET = 2**23

Result = TypeVar("Result")


def backgrounds_of(checkpoint: Checkpoint) -> np.ndarray | None:
    """The dosages (B, P) to which perturbations are added, padded with T; None if effects are against a control."""
    named = checkpoint.facts.get("backgrounds")
    if not named:
        return None
    position = {name: t for t, name in enumerate(checkpoint.perturbations)}
    width = max(1, *map(len, named))
    return np.array([[position[name] for name in each] + [len(position)] * (width - len(each)) for each in named])


@torch.no_grad()
@memory_for("effects", "Lower draws or cells.")
@fast_cpu
def added_effect_draws(
    model: Model,
    members: np.ndarray,
    *,
    backgrounds: np.ndarray,
    library: float,
    use: Callable[[int, np.ndarray], Result],
    draws: int = 100,
    cells: int = 25,
    transform: str = "log2",
    levels: Levels | None = None,
    seed: int = 0,
) -> list[Result]:
    """Effects of conditions under ``draws`` from the approximate posterior, one condition at a time.

    ``members`` (C, P) and ``backgrounds`` (B, P): indices of the model's perturbations, padded with T. One effect is
    the mean over backgrounds, and over at least ``cells`` cells in all, of the expected transformed counts with the
    perturbations of the condition minus those without them. Both sides share the latents of cells and perturbations.
    ``use(c, effects)`` gets the draws (S, G), float32, of condition c; its results are returned in order. The draws of
    a condition do not depend on the others. ``library``: counts per cell. ``levels``: as in `model_effects`.
    """
    each = -(-cells // len(backgrounds))  # cells of a background
    streams = Streams(f"{seed}/added effects", model.input_mean.device)
    value, noise_of = expected(model, library, transform), _Noise(model, streams, draws, each, len(backgrounds))
    n = max(1, BUDGET // (2 * draws * each * model.n_genes))

    def effect(row: np.ndarray) -> Tensor:
        total = streams.generator("x")  # of likelihoods without a closed form
        found = torch.zeros(draws, model.n_genes, dtype=torch.float64, device=model.input_mean.device)
        for start in range(0, len(backgrounds), n):
            chosen = backgrounds[start : start + n]
            batch = _with_and_without(model, row, chosen, library)
            noise = noise_of(batch, slice(start, start + len(chosen)))
            x = value(model.predict(batch, noise, draws * each, repeats=each, levels=levels), total)
            with_it, without = x.unflatten(0, (draws, each)).mean(1).unflatten(1, (2, -1)).unbind(1)
            found += (with_it - without).sum(1)
        return found / len(backgrounds)

    return [use(c, effect(row).float().cpu().numpy()) for c, row in enumerate(members)]


class _Noise:
    """Noise that belongs to perturbations and to cells, however many of them are drawn at a time."""

    def __init__(self, model: Model, streams: Streams, draws: int, each: int, n_backgrounds: int):
        self.model, self.streams, self.draws, self.drawn = model, streams, draws, dict[str, Tensor]()
        for latent in model.latents:
            if latent.plate == "cell":
                shape = (draws * each, n_backgrounds, model.config.n_latent)
                self.drawn[latent.name] = streams(latent.name, "normal", shape)
        self.of_cells = tuple(self.drawn)

    def __call__(self, batch: Batch, at: slice) -> Callable[[str, str, tuple[int, ...]], Tensor]:
        def noise(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
            if name in self.of_cells:
                return self.drawn[name][:, at].repeat(1, 2, 1)  # the same with and without
            if name not in self.drawn:
                every = (shape[0], self.model.n_perturbations, *shape[2:])
                self.drawn[name] = self.streams(name, kind, every)
            return self.drawn[name] if batch.rows is None else self.drawn[name][:, batch.rows]

        return noise


def _with_and_without(model: Model, row: np.ndarray, backgrounds: np.ndarray, library: float) -> Batch:
    """Cells (2 B) with the perturbations of a condition and a background, then with those of the background alone."""
    added = [t for t in row.tolist() if t < model.n_perturbations]
    others = [[t for t in each if t < model.n_perturbations and t not in added] for each in backgrounds.tolist()]
    cells = [[*added, *each] for each in others] + others
    rows = sorted({t for each in cells for t in each})
    position = {t: i for i, t in enumerate(rows)}
    width = max(1, *map(len, cells))
    index = np.array([[position[t] for t in each] + [-1] * (width - len(each)) for each in cells])
    device = model.input_mean.device
    at = torch.as_tensor(index, device=device)
    libraries = torch.full((len(cells),), library, dtype=torch.float32, device=device)
    drawn = torch.as_tensor(rows, dtype=torch.long, device=device)
    dosage = MultiHot(at.clamp(min=0), (at >= 0).float())
    return Batch(libraries.new_zeros(len(cells), 0), libraries, dosage, torch.zeros_like(dosage.dose), drawn)
