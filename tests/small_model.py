"""A small synthetic screen and models for the tests of the core; needs only numpy and torch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from samsvae.config.model import ModelConfig
from samsvae.config.zoo import row
from samsvae.data.arrays import Screen
from samsvae.models.batch import Batch, MultiHot, plate_weights
from samsvae.models.model import Model

SIZES = {"n_latent": 4, "width": 16, "embedding_width": 8, "mask_prior": 0.2}


def screen(n: int = 120, genes: int = 9, *, pairs: bool = True, seed: int = 0) -> Screen:
    """Counts of cells with none, one or (``pairs``) two of four perturbations; gene 0 is zero in all cells."""
    rng = np.random.default_rng(seed)
    conditions = ["a", "b", "c", "d", "a+c", "control"] if pairs else ["a", "b", "c", "d", "control"]
    members = np.full((len(conditions), 2 if pairs else 1), -1)
    members[:4, 0] = range(4)
    if pairs:
        members[4] = (0, 2)
    codes = rng.integers(len(conditions), size=n)
    codes[: len(conditions)] = range(len(conditions))
    profile = rng.dirichlet(np.ones(genes), size=len(conditions))
    counts = rng.poisson(rng.gamma(4, 50, size=(n, 1)) * profile[codes]).astype(np.int16)
    counts[:, 0], counts[:, 1] = 0, counts[:, 1] + 1
    return Screen(
        counts=counts,
        library=counts.sum(1).astype(np.float32),
        cells=np.array([f"cell{i}" for i in range(n)]),
        genes=np.array([f"gene{g}" for g in range(genes)]),
        condition=codes,
        conditions=np.array(conditions),
        members=members,
        perturbations=np.array(["a", "b", "c", "d"]),
        controls=("control",),
        separator="+" if pairs else "",
    )


def model(name: str, genes: int = 9, perturbations: int = 4, *, seed: int = 0, **changes) -> Model:
    config = ModelConfig(**{**row(name).model, **SIZES, **changes})
    return Model(config, genes, perturbations, seed=seed)


def dense_batch(x: Tensor, dosage: Tensor, *, library: Tensor | None = None, n_cells: Tensor | None = None) -> Batch:
    """A batch from counts (n, G) and dense dosages (n, T). ``n_cells`` (T,): of the split, by default of this batch."""
    received = dosage != 0
    # the perturbations of a cell come first, in their order; the rest have dose 0 and are padding
    index = received.int().argsort(dim=-1, descending=True, stable=True)[:, : max(1, int(received.sum(-1).max()))]
    dose = dosage.gather(-1, index).to(x.dtype)
    multi_hot = MultiHot(index, dose)
    library = x.sum(-1) if library is None else library
    share = plate_weights(received.sum(0) if n_cells is None else n_cells, x.dtype)
    return Batch(x, library.to(x.dtype), multi_hot, share[index] * (dose != 0))
