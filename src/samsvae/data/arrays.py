"""The training arrays of a screen and the split table, as files: read, checked, large counts memory-mapped."""

from __future__ import annotations

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
from samsvae.files import atomic


@dataclass(frozen=True)
class Screen:
    """A filtered screen as written by ``samsvae.screens.pack.write_arrays``; large counts are a map of the file."""

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


#: The arrays that a screen needs, by name.
FIELDS = tuple(item.name for item in fields(Screen) if item.default is MISSING)

#: Bytes of counts from which they stay in the file, of which processes share the pages that they have read.
MAPPED = 2**26


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
            archive = file.zip if isinstance(file, np.lib.npyio.NpzFile) else None
            counts = None if archive is None else _mapped(path, archive)
            given: dict[str, Any] = {} if counts is None else {"counts": counts}
            given |= {name: file[name] for name in FIELDS if name not in given}
            return Screen(**given, **_labels(file, given))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of training arrays ({error}). Needed: {', '.join(FIELDS)}.") from None


def _labels(file: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> dict[str, Any]:
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


def _verify(path: str, file: IO[bytes], start: int, member: zipfile.ZipInfo) -> None:
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


def read_split(path: Path | str, cells: Sequence[str] | np.ndarray) -> np.ndarray:
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
