"""Atomic writes: a file is written under a temporary name and renamed, so a reader never sees half of it."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

#: Message for each errno that means that the disk takes no more data.
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota on its disk is used up",
    errno.EFBIG: "it exceeds the largest file size allowed here",
}

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
