"""Cells as the model reads them: counts resident on the device, dosages as indices (numpy and torch only).

Letters: n cells, P most perturbations in a cell, T perturbations, G genes, C conditions.
"""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samsvae.config.vocabulary import ENCODINGS, SPLITS
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.files import atomic
from samsvae.models.batch import Batch, MultiHot, plate_weights


@dataclass(frozen=True)
class Screen:
    """A filtered screen as written by ``samsvae.screens.screen.write_arrays``; large counts are a map of the file."""

    counts: np.ndarray  # (n, G) integers, or float32 of a real-valued simulation
    library: np.ndarray  # (n,)
    cells: np.ndarray  # (n,) names
    genes: np.ndarray  # (G,) names
    condition: np.ndarray  # (n,) codes into conditions
    conditions: np.ndarray  # (C,) names, the control among them
    members: np.ndarray  # (C, P) codes into perturbations, -1 where there is none
    perturbations: np.ndarray  # (T,) names
    controls: tuple[str, ...] = ()  # the labels that mean the control, its name first; () where there is none
    separator: str = ""  # what joins the labels of a combination


#: Part of the free memory of a card that the counts of a split may take; more of them are streamed.
ROOM = 0.5

#: The arrays that a screen needs, by name.
FIELDS = tuple(item.name for item in fields(Screen) if item.default is MISSING)

#: Bytes of counts from which they stay in the file, of which processes share the pages that they have read.
MAPPED = 2**26

#: Bytes of a split's counts above which, on a CPU, its cells are read when a batch asks for them.
READ_LATE = 2**31


def read_screen(path: Path | str) -> Screen:
    """Read the training arrays of a screen; DataError where the file is damaged or not of that form.

    The last one read is remembered: runs that share a process share it. Its arrays are not to be written to.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: not a file of training arrays ({error}). Needed: {', '.join(FIELDS)}.") from None
    return _read_screen(str(path), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read_screen(path: str, mtime_ns: int, size: int) -> Screen:
    try:
        with np.load(path, allow_pickle=False) as file:
            counts = _mapped(path, file.zip) if isinstance(file, np.lib.npyio.NpzFile) else None
            given: dict[str, np.ndarray] = {} if counts is None else {"counts": counts}
            given |= {name: file[name] for name in FIELDS if name not in given}
            return Screen(**given, **_labels(file, given))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of training arrays ({error}). Needed: {', '.join(FIELDS)}.") from None


def _labels(file: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> dict:
    """How labels are read; files of before the version that wrote it know the control's name alone."""
    if "controls" in file:
        return {"controls": tuple(file["controls"].tolist()), "separator": str(file["separator"])}
    return {"controls": tuple(given["conditions"][(given["members"] < 0).all(1)].tolist())}


def _mapped(path: str, archive: zipfile.ZipFile) -> np.memmap | None:
    """The counts of an npz as a read-only map of the file; None where they are small, or compressed."""
    member = archive.getinfo("counts.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
        return None
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # where a zip's header of a member has the lengths of its two last parts
        start = member.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
        _verify(path, file, start, member)
        file.seek(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _verify(path: str, file, start: int, member: zipfile.ZipInfo) -> None:
    """BadZipFile where a member is not what its checksum says. Done once for a file: a note beside it says so."""
    state = os.fstat(file.fileno())
    note, text = Path(path).with_name(f".{Path(path).name}.verified"), f"{state.st_size} {state.st_mtime_ns}\n"
    try:
        if note.read_text() == text:
            return
    except OSError:
        pass
    file.seek(start)
    checksum, left = 0, member.file_size
    while left and (block := file.read(min(left, 2**22))):
        checksum, left = zlib.crc32(block, checksum), left - len(block)
    if left or checksum != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
    with suppress(OSError), atomic(note) as aside:  # a folder that may not be written to: verified every time
        aside.write_text(text)


def read_split(path: Path | str, cells: Sequence[str]) -> np.ndarray:
    """The split of every cell of a screen (n,), from a table with the columns cell and split, in any row order."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    lines = Path(path).read_text().splitlines()
    header = lines[0].split("\t") if lines else []
    for column in ("cell", "split"):
        if column not in header:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, header)}")
    at_cell, at_split = header.index("cell"), header.index("split")
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}: line {number} has {len(row)} fields; needed are {len(header)}.")
    split_of = {row[at_cell]: row[at_split] for row in rows}
    if len(split_of) < len(rows):
        twice = [name for name, times in Counter(row[at_cell] for row in rows).items() if times > 1]
        raise DataError(f"{path}: column 'cell' names more than once {some(twice)}.")
    unknown = sorted(set(split_of.values()) - {*SPLITS, "none"})
    if unknown:
        raise DataError(f"{path}: column 'split' holds {some(unknown)}.{nearest(unknown[0], (*SPLITS, 'none'))}")
    missing = [cell for cell in cells if cell not in split_of]
    if missing or len(split_of) != len(cells):
        extra = set(split_of) - set(cells)
        what = f"has no row for {some(missing)}" if missing else f"names cells not in the screen: {some(extra)}"
        raise DataError(f"{path}: the split table does not fit the screen; it {what}.")
    return np.array([split_of[cell] for cell in cells])


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
    if mapped and streamed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file is not to be written to, which nobody does
            counts = FileRows(torch.from_numpy(screen.counts), torch.from_numpy(rows))
    else:
        counts = torch.from_numpy(np.ascontiguousarray(screen.counts[rows]))
    return Cells(
        counts=counts if streamed else counts.to(device),
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
