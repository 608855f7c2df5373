"""Reads the tables and lists that users write. Every field stays text, even if it looks like a number.

A file may be compressed, may start with a byte order mark and may have the line ends of Windows.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import logging
import lzma
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pandas as pd

from samsvae.config.screens import CustomOptions
from samsvae.errors import DataError, nearest, some

log = logging.getLogger(__name__)

#: The name that `read_user_table` gives to row names without a heading, as R's write.table writes them.
ROW_NAMES = "(row names)"

#: Endings of compressed files; the ending before them decides between commas and tabs.
COMPRESSED = (".gz", ".bz2", ".xz", ".zip")

_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)? *|[+-]?inf(inity)?", re.IGNORECASE)
_LEADING_ZERO = re.compile(r" *[+-]?0\d")
_BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def read_user_table(path: str | Path) -> pd.DataFrame:
    """Read a user's table as text: comma-separated if it is a .csv, compressed or not, and tab-separated otherwise.

    An empty field is ''. If R has written row names without a heading, they are the first column, `ROW_NAMES`.
    DataError if the file is missing or is not a table.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with _plain(Path(path)) as source:
            table = pd.read_csv(source, sep=_separator(Path(path)), dtype=str, keep_default_na=False, **_options(path))
    except Exception as error:  # pandas and the decompressors raise many types
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable table ({reason}).") from error
    return table if isinstance(table.index, pd.RangeIndex) else _with_row_names(table, path)


def read_list(path: str | Path) -> list[str]:
    """The distinct lines of a user's text file, stripped, without empty ones. DataError if it cannot be read."""
    try:
        with _plain(Path(path)) as source:
            content = source.read()
        lines = content.decode(_encoding(content)).splitlines()
    except Exception as error:  # the decompressors raise many types
        raise DataError(f"{path}: not a readable list ({' '.join(str(error).split())}).") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def typed(text: pd.Series, *, exact: bool = False) -> pd.Series:
    """A column of text as numbers or booleans if all its fields are, else as text; '' is a missing value.

    Numbers stay text if that keeps two texts apart ('1.1' and '1.10'), or if one starts with a zero ('007'). With
    `exact`, as labels need, values stay text unless each is written exactly as it stands ('1', but not '1.50').
    """
    present = text[text != ""]
    values = _booleans(text, present) if present.isin(list(_BOOLEANS)).all() else _numbers(text, present)
    if exact and values is not None and (values[present.index].astype(str) != present).any():
        values = None
    return text.mask(text == "") if values is None else values


def _booleans(text: pd.Series, present: pd.Series) -> pd.Series:
    if not len(present):
        return pd.Series(float("nan"), text.index, float, name=text.name)
    return text.map(_BOOLEANS).astype(bool if len(present) == len(text) else "boolean")  # h5ad takes no gap in a bool


def _numbers(text: pd.Series, present: pd.Series) -> pd.Series | None:
    """The numbers as pandas reads them from a file, or None if the column holds something else or would lose text."""
    distinct = present.unique()
    if not all(_NUMBER.fullmatch(value) and not _LEADING_ZERO.match(value) for value in distinct):
        return None
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
    column = pd.read_csv(io.StringIO("\n".join(["x", *text, ""])), sep="\t", low_memory=False, **options)["x"]
    if column.dtype.kind not in "iuf" or column.nunique() != len(distinct):
        return None
    return column.set_axis(text.index).rename(text.name)


def join_cell_table(obs: pd.DataFrame, options: CustomOptions, source: str | Path) -> pd.DataFrame:
    """obs with the columns of the option cell_table, which lists a cell at most once; labels stay as they are written.

    Cells that a table with the labels does not list have no label, which the option unlabelled may allow. DataError if
    the table lacks any other cell of the source.
    """
    if options.cell_table is None:
        return obs
    cell_table, column = options.cell_table, options.perturbation_column
    table = read_user_table(cell_table)
    table = table.set_index(table.columns[0])
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()].unique()
        raise DataError(f"{cell_table}: column {table.index.name!r} has cells more than once: {some(twice)}.")
    at = table.index.get_indexer(obs.index)
    missing = at < 0
    droppable = options.unlabelled == "drop" and column in table and not missing.all()
    if missing.any():
        lacks = f"column {table.index.name!r} lacks {int(missing.sum())} cells of {source}: {some(obs.index[missing])}"
        if not droppable:
            raise DataError(f"{cell_table}: {lacks}.")
        log.warning("%s: %s; they are dropped as unlabelled", cell_table, lacks)
    # A column keeps its type if unlisted cells get the values of another cell; without a label they are dropped.
    new = pd.DataFrame({name: typed(table[name], exact=name == column) for name in table}, table.index).iloc[at]
    new.index = obs.index
    if missing.any():
        labels = table[column].iloc[at].set_axis(new.index)
        new[column] = labels.mask(missing | (labels == ""))
    return pd.concat([obs.drop(columns=[c for c in new if c in obs]), new], axis=1)


def read_annotation(path: str | Path) -> Mapping[str, str]:
    """perturbation -> pathway, from a table with these two columns."""
    return pairs_in(read_user_table(path), path, "perturbation", "pathway")


def read_targets(path: str | Path) -> Mapping[str, str]:
    """guide -> target, from a table with these two columns."""
    return pairs_in(read_user_table(path), path, "guide", "target")


def pairs_in(table: pd.DataFrame, where: str | Path, key: str, value: str) -> Mapping[str, str]:
    """key -> value of the rows that have both; DataError if a column is missing or a key has several rows."""
    for column in (key, value):
        if column not in table:
            raise DataError(f"{where}: no column {column!r}.{nearest(column, table.columns)}")
    table = table[(table[key] != "") & (table[value] != "")]
    twice = table[key][table[key].duplicated()].unique()
    if len(twice):
        raise DataError(f"{where}: column {key!r} has names more than once: {some(twice)}.")
    return dict(zip(table[key], table[value], strict=True))


def _plain(path: Path) -> IO[bytes]:
    """The open file, decompressed: by its content, because a browser may decompress a file and leave its name."""
    with open(path, "rb") as file:
        start = file.read(8)
    opened = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), open)
    return opened(path, "rb")


def _open_zip(path: Path, mode: str) -> IO[bytes]:
    """The only file in a zip; ValueError if there are several."""
    with zipfile.ZipFile(path) as folder:
        names = folder.namelist()
        if len(names) != 1:
            raise ValueError(f"the zip holds {len(names)} files, but one is needed")
        return io.BytesIO(folder.read(names[0]))


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    raise ValueError("it is compressed with zstd; unpack it first: zstd -d FILE")


_OPENERS: dict[bytes, Callable[[Path, str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"PK\x03\x04": _open_zip,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def _separator(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return "," if name.suffix.lower() == ".csv" else "\t"


def _options(path: str | Path) -> dict[str, Any]:
    """Options of pandas.read_csv: the encoding; one piece, so that the rows of a column are not read differently."""
    with _plain(Path(path)) as source:
        start = source.read(4)
    return {"encoding": _encoding(start), "low_memory": False}


def _encoding(start: bytes) -> str:
    """UTF-8, or UTF-16 if its byte order mark says so (the 'Unicode text' of spreadsheets)."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _with_row_names(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """The table with its row names as first column; DataError if the header lacks something other than their name."""
    header = f"{path}: the first line has {len(table.columns)} names ({some(table.columns)}), but the rows have"
    if table.index.nlevels > 1:
        raise DataError(f"{header} {table.index.nlevels + len(table.columns)} fields. Name every column.")
    if (table.iloc[:, -1] == "").all():
        raise DataError(f"{header} one field more, which is empty. Remove the separator at the end of each row.")
    return table.rename_axis(ROW_NAMES).reset_index()
