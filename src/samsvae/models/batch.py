"""The input of the model: a batch of cells, with their perturbations as sparse multi-hot dosages.

Letters: n cells, P largest number of perturbations in a cell, T perturbations (R of them drawn), L latents, G genes, V
covariates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class CellTable(Protocol):
    """Cells that can be read in batches, such as ``samsvae.data.cells.Cells``."""

    @property
    def counts(self) -> Splittable: ...

    @property
    def covariates(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def batch(self, at: Tensor | slice) -> Batch: ...


class Splittable(Protocol):
    """Counts (n, G) that can be read in chunks of rows: a tensor, or rows of a file."""

    def split(self, size: int) -> Iterable[Tensor]: ...


@dataclass(frozen=True)
class Batch:
    """Some cells, ready for the model.

    ``rows`` (R,): the perturbations whose latents are drawn (None: all T, in order). ``dosage.index`` (n, P) points
    into them. ``plate_weight`` (n, P): 1/n_t of a cell's perturbations, 0 for padding or if n_t is 0.
    ``covariates``: the level of each covariate, as a code; a leading dimension gives particles levels of their own.
    """

    x: Tensor  # (n, G)
    library: Tensor  # (n,)
    dosage: MultiHot
    plate_weight: Tensor
    rows: Tensor | None = None
    covariates: Tensor | None = None  # (n, V) or (K, n, V) int64

    @property
    def received(self) -> MultiHot:
        """The dosage indexed by all T perturbations, for layers with weights for each of them."""
        if self.rows is None:
            return self.dosage
        return MultiHot(self.dosage.rows_of(self.rows[:, None])[..., 0], self.dosage.dose)


def plate_weights(n_cells: Tensor, dtype: torch.dtype) -> Tensor:
    """Plate weights (T,) from n_cells (T,): 1 / n_t, or 0 if no cell received t (eq. 11)."""
    n_cells = n_cells.double()
    return torch.where(n_cells > 0, 1.0 / n_cells.clamp(min=1.0), 0.0).to(dtype)


@dataclass(frozen=True)
class MultiHot:
    """A sparse one-hot (or dosage) input, which selects rows of weights to add up.

    ``index`` (n, P): the rows; ``dose`` (n, P): their factors. Padding has the dose 0 and any index.
    """

    index: Tensor
    dose: Tensor

    def gather(self, table: Tensor) -> Tensor:
        """sum_p dose[p] * table[..., index[p], :]; table (..., T, L) gives (..., n, L)."""
        if self.index.shape[-1] == 1:
            return self._selected(table) * self.dose
        return (self.rows_of(table) * self.dose[..., None]).sum(-2)

    def rows_of(self, table: Tensor) -> Tensor:
        """table[..., index, :] (..., n, P, L)."""
        rows = self._selected(table)
        return rows.reshape(*rows.shape[:-2], *self.index.shape, rows.shape[-1])  # torch.compile fails on unflatten

    def _selected(self, table: Tensor) -> Tensor:
        table = table if table.shape[-2] else F.pad(table, (0, 0, 0, 1))  # a row for the padding
        return table.index_select(-2, self.index.flatten())


@dataclass(frozen=True)
class OneHot:
    """A one-hot input for each of some perturbations: ``rows`` (R,), or None for all T in order."""

    rows: Tensor | None

    def gather(self, table: Tensor) -> Tensor:
        """The rows (R, L) of a table (T, L)."""
        return table if self.rows is None else table.index_select(0, self.rows)
