"""Sizes of the papers' screens and models, and synthetic cells of any size: shared by the benchmarks."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import numpy as np

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.data.arrays import Screen


@dataclass(frozen=True)
class Shape:
    """Sizes of the data, and the settings of model and training that differ from the defaults."""

    genes: int
    perturbations: int
    cells: int  # enough for timing steps
    whole: int = 0  # cells in the complete screen
    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    pairs: int = 0
    controls: float = 0.0  # share of the cells
    library: float = 1e4  # mean count of a cell

    def settings(self, model: str) -> tuple[ModelConfig, TrainingConfig]:
        return ModelConfig(**{**row(model).model, **self.model}), TrainingConfig(precision="float32", **self.training)


#: Settings as in config/config.yaml, but the simulation's cells hold counts here.
SHAPES = {
    "replogle": Shape(1187, 680, 10_240, 118_641, controls=0.017),
    "norman": Shape(
        5000,
        105,
        5_120,
        111_255,
        {"n_latent": 200, "embedding_layers": 4, "embedding_width": 400},
        {"steps": 30_000, "gradient_clip": 100.0},
        pairs=131,
        controls=0.1,
    ),
    "simulation": Shape(
        100,
        100,
        12_800,
        100_000,
        {"n_latent": 15, "n_layers": 2, "width": 100, "embedding_width": 100, "mask_prior": 2 / 15, "beta_b": 5.0},
        {"steps": 24_000, "batch_size": 128, "learning_rate": 1e-3},
        library=1e3,
    ),
    "toy": Shape(
        12,
        5,
        96,
        2_000,
        {"n_latent": 4, "n_layers": 2, "width": 16, "embedding_width": 8, "mask_prior": 0.2, "embedding_scale": 2.0},
        {"batch_size": 24, "particles": 3, "gradient_clip": 100.0},
        pairs=3,
        controls=0.1,
        library=100,
    ),
}


def synthetic_screen(
    shape: Shape, cells: int = 0, *, pool: int | None = None, dtype: type = np.int16, seed: int = 0
) -> Screen:
    """Counts like those of Perturb-seq: negative binomial of concentration 1, 40 % not zero, uneven library sizes.

    ``cells``: their number, by default that of the shape. ``pool``: the number of distinct cells; they are repeated,
    each repeat under a condition of its own.
    """
    rng, cells = np.random.default_rng(seed), cells or shape.cells
    names = np.array([f"p{t}" for t in range(shape.perturbations)])
    members = np.full((shape.perturbations + shape.pairs + 1, 2 if shape.pairs else 1), -1)
    members[: len(names), 0] = range(len(names))
    for c in range(shape.pairs):
        members[len(names) + c] = rng.choice(len(names), 2, replace=False)
    treated = len(members) - 1
    condition = np.where(rng.random(cells) < shape.controls, treated, rng.integers(treated, size=cells))

    drawn = min(pool or cells, cells)
    profile = _profile(shape)
    library = shape.library * rng.lognormal(-0.06, 0.35, (drawn, 1))
    counts = np.empty((drawn, shape.genes), dtype)
    for start in range(0, drawn, 512):  # in parts, so that drawing the cells does not set the peak of memory
        mean = library[start : start + 512] * profile
        found = rng.poisson(mean * rng.exponential(size=mean.shape))
        counts[start : start + 512] = np.minimum(found, np.iinfo(dtype).max)
    counts = counts if drawn == cells else np.resize(counts, (cells, shape.genes))
    return Screen(
        counts=counts,
        library=counts.sum(1, dtype=np.float32),
        cells=np.arange(cells).astype(f"U{len(str(cells))}"),
        genes=np.array([f"gene{g}" for g in range(shape.genes)]),
        condition=condition.astype(np.int32),
        conditions=np.array([*("+".join(names[m[m >= 0]]) for m in members[:-1]), "control"]),
        members=members,
        perturbations=names,
    )


def _profile(shape: Shape) -> np.ndarray:
    """Shares of the genes (G,): lognormal, with the spread at which 40 % of the counts are above 0."""
    normal = statistics.NormalDist()
    score = np.array([normal.inv_cdf((g + 0.5) / shape.genes) for g in range(shape.genes)])
    low, high = 0.0, 10.0
    for _ in range(40):
        sigma = (low + high) / 2
        share = np.exp(sigma * score - (sigma * score).max())
        share /= share.sum()
        mean = shape.library * share
        low, high = (sigma, high) if (mean / (1 + mean)).mean() > 0.4 else (low, sigma)
    return share
