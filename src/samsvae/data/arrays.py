"""Reads and checks the training arrays of a screen and the split table; large counts are memory-mapped."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from samsvae.config.vocabulary import SPLITS
from samsvae.errors import DataError, nearest, some
from samsvae.files import SEPARATOR, any_length, atomic, verify


@dataclass(frozen=True)
class Covariates:
    """Categories of cells that are no perturbation, such as batches or donors; V of them."""

    names: tuple[str, ...]  # (V,)
    levels: tuple[tuple[str, ...], ...]  # (V,) names of the levels of each, sorted
    codes: np.ndarray  # (n, V) codes into levels

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of levels of each covariate."""
        return tuple(map(len, self.levels))

    @property
    def named(self) -> dict[str, list[str]]:
        """The levels by the name of the covariate."""
        return {name: list(levels) for name, levels in zip(self.names, self.levels, strict=True)}

    def strata(self) -> tuple[np.ndarray, np.ndarray]:
        """The combinations of levels that occur (J, V), and that of each cell (n,)."""
        combinations, stratum = np.unique(self.codes, axis=0, return_inverse=True)
        return combinations, stratum.reshape(-1)


@dataclass(frozen=True)
class Screen:
    """A filtered screen as written by ``samsvae.screens.pack.write_arrays``; large counts are memory-mapped."""

    counts: np.ndarray  # (n, G) integers, or float32 for a real-valued simulation
    library: np.ndarray  # (n,)
    cells: np.ndarray  # (n,) names
    genes: np.ndarray  # (G,) names
    condition: np.ndarray  # (n,) codes into conditions
    conditions: np.ndarray  # (C,) names, including the control
    members: np.ndarray  # (C, P) codes into perturbations, -1 as padding
    perturbations: np.ndarray  # (T,) names
    controls: tuple[str, ...] = ()  # the labels that mean the control, its name first; () without a control
    separator: str = ""  # joins the labels of a combination
    covariates: Covariates | None = None
    by_dosage: bool = False  # without a control: effects are of single perturbations, relative to the zero dosage

    @property
    def transform(self) -> str:
        """The transform before effects are taken: ``log2`` for counts, ``mean`` (none) for real values."""
        return "log2" if self.counts.dtype.kind in "iu" else "mean"

    @property
    def control(self) -> int | None:
        """The code of the control, the condition without perturbations; None without one."""
        untreated = np.flatnonzero((self.members < 0).all(1))
        return int(untreated[0]) if len(untreated) else None


#: The names of the arrays that a file must have.
FIELDS = tuple(item.name for item in fields(Screen) if item.default is MISSING)

#: Counts of at least so many bytes stay in the file; processes share the pages that were read.
MAPPED = 2**26


def read_screen(path: Path | str) -> Screen:
    """Read the training arrays of a screen; DataError if the file is damaged or has another format.

    The last screen is cached, so that the runs of a process share it. Do not write to its arrays.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: not a file of training arrays ({error}). Needed: {', '.join(FIELDS)}.") from None
    return _read_screen(str(path), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read_screen(path: str, mtime_ns: int, size: int) -> Screen:
    try:
        # opened here, because numpy leaves a damaged archive open
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            archive = file.zip if isinstance(file, np.lib.npyio.NpzFile) else None
            counts = None if archive is None else _mapped(path, archive)
            given: dict[str, Any] = {} if counts is None else {"counts": counts}
            given |= {name: file[name] for name in FIELDS if name not in given}
            return Screen(**given, **read_labels(file, given))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of training arrays ({error}). Needed: {', '.join(FIELDS)}.") from None


def read_labels(file: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How labels are read, and the covariates if there are any: the fields of a `Screen` that have a default.

    Files written by older versions know only the name of the control.
    """
    if "controls" not in file:
        return {"controls": tuple(given["conditions"][(given["members"] < 0).all(1)].tolist())}
    found: dict[str, Any] = {"controls": tuple(file["controls"].tolist()), "separator": str(file["separator"])}
    found |= {"by_dosage": bool(file["by_dosage"])} if "by_dosage" in file else {}
    return found | ({"covariates": _covariates(file)} if "covariate_names" in file else {})


def _covariates(file: Mapping[str, np.ndarray]) -> Covariates:
    names, level, of = (file[key] for key in ("covariate_names", "covariate_levels", "covariate_of_level"))
    levels = tuple(tuple(level[of == v].tolist()) for v in range(len(names)))
    return Covariates(tuple(names.tolist()), levels, file["covariates"])


def _mapped(path: str, archive: zipfile.ZipFile) -> np.memmap | None:
    """The counts of an npz file as a read-only memory map; None if they are small or compressed."""
    member = archive.getinfo("counts.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
        return None
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # a member's zip header has the lengths of its last two fields there
        start = member.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
        _verify(path, file, start, member)
        file.seek(start)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _verify(path: str, file: IO[bytes], start: int, member: zipfile.ZipInfo) -> None:
    """BadZipFile if a member does not match its checksum. Checked once per file; a marker file records the result."""
    state = os.fstat(file.fileno())
    marker, text = Path(path).with_name(f".{Path(path).name}.verified"), f"{state.st_size} {state.st_mtime_ns}\n"
    try:
        if marker.read_text() == text:
            return
    except OSError:
        pass
    file.seek(start)
    checksum, left = 0, member.file_size
    while left and (block := file.read(min(left, 2**22))):
        checksum, left = zlib.crc32(block, checksum), left - len(block)
    if left or checksum != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
    with suppress(OSError), atomic(marker) as aside:  # in a read-only folder the file is verified every time
        aside.write_text(text)


def read_split(path: Path | str, cells: Sequence[str] | np.ndarray) -> np.ndarray:
    """The split of every cell of a screen (n,), from a table with the columns cell and split, in any row order.

    DataError if the table has another format, another set of cells or an unknown split.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    verify([path])
    lines = _lines(path)
    _, header = lines[0] if lines else (1, [])
    for column in ("cell", "split"):
        if column not in header:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, header)}")
    at_cell, at_split = header.index("cell"), header.index("split")
    rows = [row for _, row in lines[1:]]
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}: line {number} has {len(row)} fields; needed: {len(header)}.")
    split_of = {row[at_cell]: row[at_split] for row in rows}
    if len(split_of) < len(rows):
        twice = [name for name, times in Counter(row[at_cell] for row in rows).items() if times > 1]
        raise DataError(f"{path}: column 'cell' lists more than once: {some(twice)}.")
    unknown = sorted(set(split_of.values()) - {*SPLITS, "none"})
    if unknown:
        raise DataError(f"{path}: column 'split' holds {some(unknown)}.{nearest(unknown[0], (*SPLITS, 'none'))}")
    missing = [cell for cell in cells if cell not in split_of]
    if missing or len(split_of) != len(cells):
        extra = set(split_of) - set(cells)
        problem = f"has no row for {some(missing)}" if missing else f"names cells not in the screen: {some(extra)}"
        raise DataError(f"{path}: the split table does not fit the screen; it {problem}.")
    return np.array([split_of[cell] for cell in cells])


def _lines(path: Path | str) -> list[tuple[int, list[str]]]:
    """The fields of every line of a table, each with the number of its last line (a quoted field may have several)."""
    try:
        with open(path, newline="", encoding="utf-8") as file, any_length():
            reader = csv.reader(file, delimiter=SEPARATOR, strict=True)
            return [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a readable table ({error}).") from None
