"""Files written aside, then renamed: whoever reads a path sees the old file or the whole new one."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_table(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """A tidy TSV of rows with equal keys; floats with 9 digits, nothing for None and NaN."""
    with atomic(path) as aside, open(aside, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(_field(value) for value in row.values())


def _field(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.9g}"


def write_json(content: object, path: str | Path) -> None:
    """JSON with sorted keys, indented."""
    with atomic(path) as aside:
        aside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
