"""The levels of the covariates that a model reads, such as batches or donors, and how often they occur in its training.

Letters: V covariates, J combinations of levels, S levels of all covariates, K particles, n cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samsvae.models.batch import Batch

#: Multiples of it, without their whole part, fill the unit interval evenly.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Levels:
    """``sizes`` (V,): number of levels of each covariate. ``combinations`` (J, V): codes. ``cells`` (J,): how many
    training cells have each combination, or any other weights of at least 0."""

    sizes: tuple[int, ...]
    combinations: tuple[tuple[int, ...], ...]
    cells: tuple[float, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], codes: np.ndarray) -> Levels:
        """The levels of some cells, from their codes (n, V)."""
        found, n = np.unique(codes, axis=0, return_counts=True)
        return cls(tuple(sizes), tuple(map(tuple, found.tolist())), tuple(n.tolist()))

    @property
    def total(self) -> int:
        """S, the number of inputs of a network that reads them."""
        return sum(self.sizes)

    def fixed(self, codes: Sequence[int | None]) -> Levels:
        """The same with some covariates (V,) at one level in all cells; None leaves a covariate as it is."""
        pairs = [
            tuple(old if new is None else new for old, new in zip(row, codes, strict=True)) for row in self.combinations
        ]
        rows = dict.fromkeys(pairs)
        cells = [sum(n for pair, n in zip(pairs, self.cells, strict=True) if pair == row) for row in rows]
        return Levels(self.sizes, tuple(rows), tuple(cells))

    def spread(self, particles: int, device: torch.device | str = "cpu") -> Tensor:
        """Codes (K, 1, V) for particles: each combination as often as its share of the cells, evenly mixed.

        No draws: the same number of particles gets the same levels, so conditions and control do not differ in them.
        """
        share = np.cumsum(np.asarray(self.cells, float))
        at = (GOLDEN * np.arange(particles) + 0.5) % 1.0
        # the last combination takes what rounding leaves
        chosen = np.searchsorted(share[:-1] / share[-1], at, side="right")
        return torch.from_numpy(np.array(self.combinations)[chosen])[:, None].to(device)


def level_parts(batch: Batch, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The part of a network's input that holds the levels of cells, as ones and zeros (..., n, S); () if no covariates.

    ValueError if the batch has no levels.
    """
    if not sizes:
        return ()
    codes = batch.covariates
    if codes is None:
        raise ValueError(f"the model reads {len(sizes)} covariates, but the batch has none: pass covariates (n, V)")
    return (one_hot(codes, sizes).to(batch.library),)


def one_hot(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """The levels (..., V) of covariates with ``sizes`` (V,) levels as booleans (..., S)."""
    parts = [codes[..., v, None] == torch.arange(size, device=codes.device) for v, size in enumerate(sizes)]
    return torch.cat(parts, -1)
