"""Cells as the model reads them: counts on the device, dosages as indices.

Letters: n cells, P largest number of perturbations in a cell, T perturbations, G genes, C conditions, V covariates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samsvae.config.vocabulary import ENCODINGS
from samsvae.data.arrays import Screen
from samsvae.errors import ConfigError, nearest
from samsvae.models.batch import Batch, MultiHot, plate_weights

#: Fraction of a GPU's free memory that the counts of a split may use; larger counts are streamed.
ROOM = 0.5

#: On a CPU, counts of a split with more bytes are read from the file batch by batch.
READ_LATE = 2**31


@dataclass(frozen=True)
class Dosage:
    """How conditions map to the perturbations of the model.

    ``names`` (T,): the perturbations. ``members`` (C, P): the perturbations of each condition as indices into
    ``names``, with T as padding.
    """

    names: tuple[str, ...]
    members: np.ndarray


def encode(screen: Screen, encoding: str) -> Dosage:
    """Dosage encoding of a screen: ``sum`` (a pair has two ones) or ``unique`` (a pair is a separate perturbation)."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"encoding: {encoding!r} is not known.{nearest(encoding, ENCODINGS)}")
    treated = (screen.members >= 0).any(axis=1)
    if encoding == "unique":
        names = screen.conditions[treated]
        members = np.full((len(screen.conditions), 1), len(names))
        members[treated, 0] = np.arange(len(names))
    else:
        names = screen.perturbations
        members = np.where(screen.members < 0, len(names), screen.members).astype(np.int64)
    return Dosage(tuple(str(name) for name in names), members)


def _found(index: Tensor, n_perturbations: int) -> tuple[Tensor, Tensor]:
    """The perturbations that occur in ``index`` (n, P), sorted, and the index into them, in which padding is 0."""
    position = torch.zeros(n_perturbations + 1, dtype=torch.long, device=index.device)
    position[index.flatten()] = 1
    position[-1] = 0
    rows = position.nonzero()[:, 0]
    position[rows] = torch.arange(len(rows), device=index.device)
    return rows, position[index]


def _rows_of(table: Tensor | FileRows, at: Tensor | slice) -> Tensor:
    """Rows of a table. On a CPU index_select copies them five times faster than an index does."""
    if isinstance(at, slice):
        return table[at]
    at = at.to(table.device)
    return table.index_select(0, at) if isinstance(table, Tensor) else table[at]


@dataclass(frozen=True)
class FileRows:
    """Some rows of a matrix that stays in its file; can be indexed and split like a tensor (n, G) on the host."""

    source: Tensor  # (N, G), memory-mapped
    rows: Tensor  # (n,) int64
    device = torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.source.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Tensor | slice) -> Tensor:
        return _rows_of(self.source, self.rows[at])

    def split(self, size: int) -> Iterator[Tensor]:
        return (self[start : start + size] for start in range(0, len(self), size))


@dataclass(frozen=True)
class Cells:
    """The cells of one split, on one device. Counts keep the dtype of the file until a batch is read.

    If ``streamed``, the counts stay on the host or in their file and are read batch by batch
    (``samsvae.data.streaming``).
    """

    counts: Tensor | FileRows  # (n, G)
    library: Tensor  # (n,)
    index: Tensor  # (n, P) int64, T as padding
    n_perturbations: int
    names: np.ndarray  # (n,) cell names, for messages
    share: Tensor  # (T,) 1 / n_t, or 0 if no cell of this split received t
    streamed: bool = False
    covariates: Tensor | None = None  # (n, V) int64, codes of the levels

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.library.device

    def __len__(self) -> int:
        return len(self.counts)

    # What batches read of the perturbations of every cell (n, P), found once. Padding points to any perturbation.
    @cached_property
    def _index(self) -> Tensor:
        return self.index.clamp(max=max(0, self.n_perturbations - 1))

    @cached_property
    def _dose(self) -> Tensor:
        return (self.index < self.n_perturbations).to(self.library.dtype)

    @cached_property
    def _plate_weight(self) -> Tensor:
        return F.pad(self.share, (0, 1))[self.index]

    @property
    def received(self) -> float:
        """How many perturbations a cell received on average."""
        return (self.index < self.n_perturbations).sum().item() / len(self)

    def subset(self, at: Tensor) -> Cells:
        """The cells at some positions (n',) as a split of its own, whose plate weights are those of its cells."""
        index = self.index[at]
        n_cells = torch.bincount(index.flatten(), minlength=self.n_perturbations + 1)[: self.n_perturbations]
        return replace(
            self,
            counts=self.counts[at.to(self.counts.device)],
            library=self.library[at],
            index=index,
            names=self.names[at.cpu().numpy()],
            share=plate_weights(n_cells, self.share.dtype),
            covariates=None if self.covariates is None else self.covariates[at],
        )

    def batch(self, at: Tensor | slice, counts: Tensor | None = None, *, own: bool = False) -> Batch:
        """The cells at some positions (n',), with the plate weights of the complete split.

        ``counts`` (n', G): the counts of these cells, if they were read before. ``own``: the batch has rows only for
        perturbations that these cells received.
        """
        if counts is None:
            counts = _rows_of(self.counts, at)
        if own:
            rows, index = _found(_rows_of(self.index, at), self.n_perturbations)
        else:
            rows, index = None, _rows_of(self._index, at)
        dosage = MultiHot(index, _rows_of(self._dose, at))
        levels = None if self.covariates is None else self.covariates[at]
        return Batch(counts.to(self.library), self.library[at], dosage, _rows_of(self._plate_weight, at), rows, levels)


def cells_of(screen: Screen, rows: np.ndarray, dosage: Dosage, device: torch.device | str = "cpu") -> Cells:
    """Put the cells at ``rows`` (a mask or positions) on a device; large memory-mapped counts stay in their file."""
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    device = torch.device(device)
    index = torch.from_numpy(dosage.members[screen.condition[rows]].astype(np.int64))
    n_perturbations = len(dosage.names)
    n_cells = torch.bincount(index.flatten(), minlength=n_perturbations + 1)[:n_perturbations]
    size = len(rows) * screen.counts[:1].nbytes
    mapped = isinstance(screen.counts, np.memmap)
    streamed = size > (READ_LATE if device.type == "cpu" else ROOM * _free(device))
    counts: Tensor | FileRows
    if mapped and streamed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the array is read-only; nothing writes to it
            counts = FileRows(torch.from_numpy(screen.counts), torch.from_numpy(rows))
    else:
        on_host = torch.from_numpy(np.ascontiguousarray(screen.counts[rows]))
        counts = on_host if streamed else on_host.to(device)
    levels = None if screen.covariates is None else screen.covariates.codes[rows].astype(np.int64)
    return Cells(
        counts=counts,
        library=torch.from_numpy(screen.library[rows].astype(np.float32)).to(device),
        index=index.to(device),
        n_perturbations=n_perturbations,
        names=screen.cells[rows],
        share=plate_weights(n_cells, torch.float32).to(device),
        streamed=streamed,
        covariates=None if levels is None else torch.from_numpy(levels).to(device),
    )


def _free(device: torch.device) -> int:
    """Bytes on a GPU that are free, or reserved by torch but unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
