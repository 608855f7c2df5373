"""The golden files of the SAMS-VAE reference as inputs for our model; their README lists names and shapes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from small_model import dense_batch

from samsvae.interop.weights import LATENT_NAMES, ROW_NAMES, from_reference


class Golden:
    """A golden file: the model with its weights, the batch, the noise by the names of our latents, and the arrays."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        name = path.stem.rsplit("_L", 1)[0]
        self.row = ROW_NAMES.get(name, "sams_vae_corr")  # the extra files belong to that row
        self.state = {key.removeprefix("param/"): self.tensor(key) for key in self.arrays if key.startswith("param/")}
        self.model = from_reference(self.state, self.row)
        self.batch = dense_batch(
            self.tensor("in/X"),
            self.tensor("in/D"),
            library=self.tensor("in/library_size"),
            n_cells=self.tensor("in/D_obs_counts"),
        )
        found = {re.fullmatch(r"noise/(.+)_(?:eps|logistic)", key): key for key in self.arrays}
        self.noise = {our_latent(match[1]): self.tensor(key) for match, key in found.items() if match}

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))


def our_latent(name: str) -> str:
    return LATENT_NAMES.get(name, name)
