"""Cells sampled from a model, as deep as the observed ones, and measured like those of a prediction without a model.

Letters: n cells, C conditions, P largest number of perturbations in a condition, T perturbations, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from samsvae.evaluation.cell_truth import Cells, PredictedCells, measured
from samsvae.evaluation.model_effects import BUDGET, dosage_batch
from samsvae.evaluation.truth import Truth
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu


def predicted_cells(model: Model, truth: Truth, dosage: np.ndarray, *, seed: int = 0) -> PredictedCells | str:
    """Measure cells sampled from a model: as many per condition as test cells, with their library sizes (S6, S7).

    The control is sampled like a condition. ``dosage`` (C, P): indices of the model's perturbations in every condition,
    padded with T. A string is the reason why there are no cells to compare.
    """
    if isinstance(truth.cells, str):
        return truth.cells
    if model.config.likelihood.startswith("normal"):
        return "the model predicts real values, and only counts of cells are compared"
    return measured(truth.cells, sampled(model, truth, dosage, seed=seed))


def sampled(model: Model, truth: Truth, dosage: np.ndarray, *, seed: int = 0) -> Iterator[Cells]:
    """Sampled cells of some conditions at a time, each with the control.

    Conditions are drawn in the order of their names, so that their order in the screen does not matter.
    """
    noise = Streams(f"{seed}/cells at depth", model.input_mean.device)
    most = max(1, BUDGET[model.input_mean.device.type] // model.n_genes)

    def draw(codes: list[int]) -> np.ndarray:
        of = np.repeat(codes, [len(truth.libraries[c]) for c in codes])
        library = np.concatenate([truth.libraries[c] for c in codes])
        levels = None
        if model.levels and not isinstance(truth.levels, str):
            levels = truth.levels.combinations[np.concatenate([truth.levels.cells[c] for c in codes])]
        parts = (slice(start, start + most) for start in range(0, len(of), most))
        return np.concatenate(
            [
                sample_at_depth(model, dosage[of[at]], library[at], noise, None if levels is None else levels[at])
                for at in parts
            ]
        )

    control = draw([truth.control])
    order = np.argsort(truth.names[truth.rows], kind="stable")
    size = np.array([len(truth.libraries[c]) for c in truth.rows[order]])
    block = (np.cumsum(size) - 1) // max(most, len(control))  # tests repeat the control in each block
    for number in np.unique(block):
        at = order[block == number]
        counts = np.concatenate([control, draw(truth.rows[at].tolist())])
        group = np.repeat([0, *(at + 1)], [len(control), *size[block == number]])
        yield Cells(counts, np.arange(len(counts)), group)


@torch.no_grad()
@memory_for("sampled cells", "End other work that fills the memory.")
@fast_cpu
def sample_at_depth(
    model: Model, members: np.ndarray, library: np.ndarray, noise: Streams, levels: np.ndarray | None = None
) -> np.ndarray:
    """Sampled counts (n, G) of cells with the dosages ``members`` (n, P) and the library sizes ``library`` (n,).

    Every cell has draws of its own of the latents of its perturbations and of its state (eq. 14). ``levels`` (n, V):
    codes of its covariates.
    """
    batch = dosage_batch(model, members, library)
    if levels is not None:
        batch = replace(batch, covariates=torch.as_tensor(levels, dtype=torch.int64, device=batch.library.device))
    x = model.predict(batch, noise, 1).sample(noise.generator("x"))
    return x[0].cpu().numpy()
