"""A simulated screen with known effects, as an AnnData: two programmes of genes, and a state that every cell has."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

GENES = [f"g{number}" for number in range(20)]

#: True effects (log2) of the perturbations on programmes of genes; C does nothing.
EFFECTS = {"A": {0: 2.0, 1: 2.0, 2: 2.0}, "B": {5: -2.0, 6: -2.0, 7: -2.0}, "C": {}}

#: The settings of a short fit.
SHORT = {"steps": 400, "batch_size": 128, "n_latent": 6, "width": 32, "embedding_width": 16, "learning_rate": 0.01}


def truth(label: str) -> np.ndarray:
    """The true log2 change of the rate of every gene (G,)."""
    found = np.zeros(len(GENES))
    for name in label.split("+"):
        for gene, effect in EFFECTS.get(name, {}).items():
            found[gene] += effect
    return found


def simulated(cells: int = 900, seed: int = 0) -> ad.AnnData:
    """Counts of cells that received A, B, C, A and B, or nothing; a state of the cell moves genes 10 to 14."""
    rng = np.random.default_rng(seed)
    labels = np.array(["A", "B", "C", "A+B", "control"])[rng.integers(5, size=cells)]
    state = rng.normal(size=cells)
    log2 = np.array([truth(label) for label in labels])
    log2[:, 10:15] += state[:, None]
    counts = rng.poisson(rng.gamma(10, 2.0, size=(cells, 1)) * 2.0**log2).astype(np.float32)
    obs = pd.DataFrame({"guide": labels, "state": state}, index=[f"cell{number}" for number in range(cells)])
    return ad.AnnData(counts, obs, pd.DataFrame(index=GENES))
