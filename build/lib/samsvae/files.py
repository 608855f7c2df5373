"""Atomic writes, and digests of what was written.

A file is written under a temporary name and renamed, so a reader never sees half of it. A job records the digests of
its outputs in a hidden folder next to them (`record`), and every job and reader compares them (`verify`). Files without
a record, such as those that a person has made, are not compared.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TextIO

from samsvae.errors import DataError

#: Message for each errno that means that the disk takes no more data.
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota on its disk is used up",
    errno.EFBIG: "it exceeds the largest file size allowed here",
}

#: The folder with the records of the files next to it: one per job, with a line for each output as sha256sum prints it.
DIGESTS = ".digests"

#: A process reads a file of at least so many bytes again only after its time or size has changed.
LARGE = 2**20

#: The format of every table that is written: separator, line end, digits of floats, and None or NaN.
SEPARATOR, LINE_END, DIGITS, MISSING = "\t", "\n", 9, ""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` at the end, or remove it on an error.

    Temporary files that killed processes left for ``path`` are removed first. If two processes write the same path at
    once, the first one loses its file and raises FileNotFoundError, because it is assumed to be dead. Raises OSError
    with the name of ``path`` if the disk takes no more data (`NO_ROOM`), no matter which error a library raises.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path)
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except Exception as error:
        if number := no_room(error):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def remove_left(path: Path) -> None:
    """Remove the temporary files for ``path`` that were never renamed because their process was killed."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.\d+{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if name.fullmatch(other.name):
            other.unlink(missing_ok=True)


def no_room(error: BaseException | None) -> int | None:
    """The errno in `NO_ROOM` of an error or of its causes; h5py may give it in the text of the message alone."""
    while error is not None:
        for number in NO_ROOM:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def write_table(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Write rows with equal keys as TSV: floats with `DIGITS` digits, None and NaN as empty fields."""
    with atomic(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(_Rows(file), delimiter=SEPARATOR, lineterminator=_Rows.END)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(_field(value) for value in row.values())


@contextmanager
def any_length() -> Iterator[None]:
    """Let the csv module read fields of any length, such as labels of more than 131,072 letters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _field(value: object) -> object:
    if not isinstance(value, float):
        return value
    return MISSING if math.isnan(value) else f"{value:.{DIGITS}g}"


class _Rows:
    """A file that takes rows which end in `END` and writes `LINE_END` instead.

    The csv module quotes a field for the characters of its line end only, but readers also end a line at a bare
    carriage return. With `END` it quotes both, so that every label can be read again.
    """

    END = "\r\n"

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, row: str) -> int:
        return self.file.write(row.removesuffix(self.END) + LINE_END)


class Frame(Protocol):
    """A table that can write itself as text (a pandas DataFrame; this module does not need pandas)."""

    def to_csv(self, path_or_buf: Any, **options: Any) -> None: ...


def write_frame(table: Frame, path: str | Path, *, digits: int = DIGITS, index_label: str | None = None) -> None:
    """Write a DataFrame in the same format as `write_table`; with ``index_label``, its index is the first column."""
    with atomic(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        table.to_csv(
            _Rows(file),
            sep=SEPARATOR,
            lineterminator=_Rows.END,
            float_format=f"%.{digits}g",
            na_rep=MISSING,
            index=index_label is not None,
            index_label=index_label,
        )


def write_json(content: object, path: str | Path) -> None:
    """Write indented JSON with sorted keys."""
    with atomic(path) as aside:
        aside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def digest_of(path: str | Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal. The last large files of a process are not read again."""
    state = os.stat(path)
    if state.st_size < LARGE:
        return _read_digest(str(path))
    return _cached_digest(str(path), state.st_mtime_ns, state.st_size)


def _read_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _cached_digest(path: str, mtime_ns: int, size: int) -> str:
    return _read_digest(path)


def checksum_record(path: str | Path) -> Path:
    """Where the SHA-256 of a download is recorded whose checksum nobody publishes, as `sha256sum -c` reads it."""
    return Path(path).with_name(f"{Path(path).name}.sha256")


def recorded_checksum(path: str | Path) -> str:
    """The checksum that the first download of a file recorded next to it ('sha256:...'); '' if there is none."""
    with suppress(OSError, UnicodeDecodeError):
        found = re.match(r"[0-9a-f]{64}\b", checksum_record(path).read_text())
        return f"sha256:{found[0]}" if found else ""
    return ""


def record(paths: Iterable[str | Path]) -> None:
    """Record the digests of files that one job has written. The record is named after the first file of a folder."""
    for folder, names in _by_folder(path for path in paths if Path(path).is_file()).items():
        lines = [f"{digest_of(folder / name)}  {name}\n" for name in names]
        with atomic(folder / DIGESTS / names[0]) as aside:
            aside.write_text("".join(lines), encoding="utf-8")


def forget(paths: Iterable[str | Path]) -> None:
    """Remove the records of files that are about to be written, so that nothing compares new files with old records."""
    for folder, names in _by_folder(paths).items():
        for path, known in _records(folder).items():
            if path.name in names or not (known or {}).keys().isdisjoint(names):
                path.unlink(missing_ok=True)


def verify(paths: Iterable[str | Path]) -> None:
    """DataError that names the files whose content differs from what was recorded, and what to do about it."""
    changed = []
    for folder, names in _by_folder(paths).items():
        records = _records(folder)
        broken = [str(path) for path, known in records.items() if known is None]
        if broken:
            raise DataError(f"{broken[0]}: the record of digests is damaged. Delete it and rerun the same command.")
        known = {name: digest for listed in records.values() for name, digest in (listed or {}).items()}
        there = [name for name in names if name in known and (folder / name).is_file()]
        changed += [str(folder / name) for name in there if digest_of(folder / name) != known[name]]
    if changed:
        listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        what, them = (listed, "it") if len(changed) == 1 else (f"{len(changed)} files ({listed})", "them")
        raise DataError(
            f"{what}: the content does not match what was written (damaged, or edited by hand). "
            f"Delete {them} and rerun the same command."
        )


def _by_folder(paths: Iterable[str | Path]) -> dict[Path, list[str]]:
    """The names of files by their folder."""
    found: dict[Path, list[str]] = {}
    for path in map(Path, paths):
        found.setdefault(path.parent, []).append(path.name)
    return found


def _records(folder: Path) -> dict[Path, dict[str, str] | None]:
    """The records of a folder: name -> digest for each; None for a record that is damaged."""
    found: dict[Path, dict[str, str] | None] = {}
    try:
        paths = sorted(path for path in (folder / DIGESTS).iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return found
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # another job of this folder has just begun
            continue
        lines = re.findall(r"([0-9a-f]{64})  ([^\n]+)\n", text)
        whole = bool(lines) and "".join(f"{digest}  {name}\n" for digest, name in lines) == text
        found[path] = {name: digest for digest, name in lines} if whole else None
    return found
