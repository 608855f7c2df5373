"""Cells as the model reads them: counts resident on the device, dosages as indices.

Letters: n cells, P most perturbations in a cell, T perturbations, G genes, C conditions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samsvae.config.vocabulary import ENCODINGS
from samsvae.data.arrays import Screen
from samsvae.errors import ConfigError, nearest
from samsvae.models.batch import Batch, MultiHot, plate_weights

#: Part of the free memory of a card that the counts of a split may take; more of them are streamed.
ROOM = 0.5

#: Bytes of a split's counts above which, on a CPU, its cells are read when a batch asks for them.
READ_LATE = 2**31


@dataclass(frozen=True)
class Dosage:
    """How conditions become perturbations of the model.

    ``names`` (T,): the model's perturbations. ``members`` (C, P): rows of names, T where there is none.
    """

    names: tuple[str, ...]
    members: np.ndarray


def encode(screen: Screen, encoding: str) -> Dosage:
    """Dosage encoding of a screen: ``sum`` (a pair is two ones) or ``unique`` (a pair is one of its own)."""
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


@dataclass(frozen=True)
class FileRows:
    """Some rows of a matrix that stays in its file: indexed and split like a tensor (n, G) on the host."""

    source: Tensor  # (N, G), mapped
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
        return self.source[self.rows[at]]

    def split(self, size: int) -> Iterator[Tensor]:
        return (self[start : start + size] for start in range(0, len(self), size))


@dataclass(frozen=True)
class Cells:
    """The cells of one split, on one device, in the dtype of the file until a batch is read.

    Where ``streamed``, the counts stay on the host, or in their file, and are read batch by batch
    (``samsvae.data.streaming``).
    """

    counts: Tensor | FileRows  # (n, G)
    library: Tensor  # (n,)
    index: Tensor  # (n, P) int64, T = none
    n_perturbations: int
    names: np.ndarray  # (n,) cell names, for messages
    share: Tensor  # (T,) 1 / n_t, 0 where no cell of this split received t
    streamed: bool = False

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.library.device

    def __len__(self) -> int:
        return len(self.counts)

    def batch(self, at: Tensor | slice, counts: Tensor | None = None, *, own: bool = False) -> Batch:
        """The cells at some positions (n',), with the plate weights of the whole split.

        ``counts`` (n', G): those of the cells, where they are at hand already. ``own``: with rows for the
        perturbations that these cells received, and for no others.
        """
        index, share, rows = self.index[at], self.share, None
        dose = (index < self.n_perturbations).to(self.library.dtype)
        if counts is None:
            counts = self.counts[at.to(self.counts.device) if isinstance(at, Tensor) else at]
        if own:
            position = torch.zeros(self.n_perturbations + 1, dtype=torch.long, device=index.device)
            position[index.flatten()] = 1
            rows = position[:-1].nonzero()[:, 0]
            position[rows] = torch.arange(len(rows), device=index.device)
            position[-1] = len(rows)
            index, share = position[index], share[rows]
        return Batch(counts.to(self.library), self.library[at], MultiHot(index, dose), share, rows)


def cells_of(screen: Screen, rows: np.ndarray, dosage: Dosage, device: torch.device | str = "cpu") -> Cells:
    """Put the cells at ``rows`` (a mask or positions) on a device; many of a mapped file stay there."""
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
            warnings.simplefilter("ignore")  # that the file is not to be written to, which nobody does
            counts = FileRows(torch.from_numpy(screen.counts), torch.from_numpy(rows))
    else:
        on_host = torch.from_numpy(np.ascontiguousarray(screen.counts[rows]))
        counts = on_host if streamed else on_host.to(device)
    return Cells(
        counts=counts,
        library=torch.from_numpy(screen.library[rows].astype(np.float32)).to(device),
        index=index.to(device),
        n_perturbations=n_perturbations,
        names=screen.cells[rows],
        share=plate_weights(n_cells, torch.float32).to(device),
        streamed=streamed,
    )


def _free(device: torch.device) -> int:
    """Bytes of a card that are free, or that torch holds unused."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
