"""Reads selected cells and genes from h5ad files of any size: tables, and counts block by block, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from samsvae.errors import DataError, nearest
from samsvae.screens.hdf5 import as_text, is_group, place_of, reading, text_attribute

BLOCK_BYTES = 64 << 20  # bytes of a matrix per read: fast on disk, small in memory

PART = 1 << 22  # values converted to one sparse block

NAMES = 1 << 17  # strings per read; each one is a Python object

NO_TABLE = "is damaged, or not a table written by anndata 0.7 or later"

STORED_AS = ("encoding-type", "h5sparse_format")  # attributes that name the format of a sparse matrix

Names: TypeAlias = Sequence[Any] | np.ndarray  # of cells or genes


def _column_names(table: h5py.Group) -> list[str]:
    return [as_text(name) for name in table.attrs["column-order"]]


def read_table(table: h5py.Group, rows: np.ndarray | slice = slice(None)) -> pd.DataFrame:
    """Rows of obs or var (sorted positions; all rows by default).

    Reads one column at a time and keeps categorical labels as codes, so memory holds only the rows. DataError if
    `table` is not a data frame written by anndata 0.7 or later.
    """
    with reading(place_of(table), table, NO_TABLE):
        index = as_text(table.attrs["_index"])
        if len(lengths := {_length(table[name]) for name in (index, *_column_names(table))}) > 1:
            raise ValueError(f"its columns have {' or '.join(map(str, sorted(lengths)))} values")
        names = pd.Index(_column(table[index], rows), name=None if index == "_index" else index)
        columns = {name: _column(table[name], rows) for name in _column_names(table)}
        return pd.DataFrame(columns, names, copy=False)


def read_labels(table: h5py.Group, name: str) -> pd.Categorical:
    """One column of obs or var; DataError if there is no such column."""
    with reading(place_of(table), table, NO_TABLE):
        columns = _column_names(table)
        if name in columns:
            return pd.Categorical(_column(table[name], slice(None)))
    raise DataError(f"{place_of(table)} has no column {name!r}.{nearest(name, columns)}")


def _length(column: h5py.Dataset | h5py.Group) -> int:
    """The number of values of a column, which is a group if it is categorical or nullable."""
    if isinstance(column, h5py.Group):
        return len(column["codes" if "codes" in column else "values"])
    return len(column)


def _column(column: h5py.Dataset | h5py.Group, rows: np.ndarray | slice):
    """Rows of one column, as an array or a Categorical."""
    if isinstance(column, h5py.Group):
        if text_attribute(column, "encoding-type") != "categorical":  # nullable numbers or text
            return read_elem(column)[rows]
        ordered = bool(column.attrs["ordered"])
        return pd.Categorical.from_codes(column["codes"][:][rows], read_elem(column["categories"]), ordered=ordered)
    if "categories" in column.attrs:  # anndata 0.7: codes, with a reference to their list of categories
        categories = column.file[column.attrs["categories"]]
        ordered = bool(categories.attrs.get("ordered", False))
        return pd.Categorical.from_codes(column[:][rows], _column(categories, slice(None)), ordered=ordered)
    if h5py.check_string_dtype(column.dtype) is None:
        return column[:][rows]
    rows = np.arange(len(column))[rows]
    parts = [np.empty(0, object)]
    for start in range(0, len(column), NAMES):
        low, high = np.searchsorted(rows, (start, start + NAMES))
        if low < high:
            parts.append(column.asstr()[start : start + NAMES][rows[low:high] - start])
    return np.concatenate(parts)


def integer_counts(x, cells: Names, genes: Names, what: str) -> sp.csr_matrix:
    """`x` (cells, genes), dense or sparse, as CSR int32; DataError names the first value that is not a count.

    The message uses `cells` and `genes`, the names of the rows and columns, and `what`, the place ("FILE: X").
    """
    x = sp.csr_matrix(x) if sp.issparse(x) else _compressed(np.asarray(x))
    value = x.data
    if value.dtype.kind not in "biuf":
        raise DataError(f"{what} must hold counts (whole numbers from 0 to 2^31 - 1), but its type is {value.dtype}.")
    fits = (
        value < 2.0**31 if value.dtype.kind == "f" else value <= np.iinfo(np.int32).max
    )  # a float32 rounds the latter
    bad = ~((value >= 0) & fits & (value == np.floor(value)))  # NaN is also bad
    if bad.any():
        at = int(bad.argmax())
        row = int(np.searchsorted(x.indptr, at, side="right")) - 1
        raise DataError(
            f"{what} must hold counts (whole numbers from 0 to 2^31 - 1), but cell {str(cells[row])!r}, "
            f"gene {str(genes[x.indices[at]])!r} is {_exact(value[at])} ({int(bad.sum())} such values in this block)."
        )
    x = x.astype(np.int32)
    x.sum_duplicates()  # also sorts the columns of each row
    x.eliminate_zeros()
    return x


def _exact(value: np.number) -> str:
    """A number in few digits, but in all of them if it would look like another one (2.999999 like 3)."""
    short = f"{value:g}"
    if float(short) == value:
        return short
    return f"{value:.0f}" if value == np.floor(value) and abs(value) < 1e15 else str(value)


def _compressed(x: np.ndarray) -> sp.csr_matrix:
    """A dense matrix as CSR, in half the time and memory of scipy, which goes through int64 coordinates."""
    nonzero = x != 0
    starts = np.concatenate([[0], nonzero.sum(1).cumsum()])
    gene = np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape)
    return sp.csr_matrix((x[nonzero], gene[nonzero], starts), shape=x.shape)


def count_blocks(
    x: h5py.Dataset | h5py.Group,
    rows: np.ndarray,
    cols: np.ndarray,
    *,
    cells: Names,
    genes: Names,
    what: str,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[sp.csr_matrix]:
    """Read rows and columns (sorted positions) of a dense or CSR matrix in a file as CSR int32 blocks, in order.

    `cells` (len(rows)) and `genes` (len(cols)) are the names of the rows and columns read. Memory: about
    `block_bytes` for a file of any size. Stretches without a requested row are skipped.

    DataError if a value is not a count, or if the matrix cannot be read.
    """
    blocks = _csr_blocks if is_group(x) else _dense_blocks
    with reading(what, x):
        for low, high, block in blocks(x, rows, cols, what, block_bytes):
            yield integer_counts(block, cells[low:high], genes, what)


def real_blocks(x: h5py.Dataset, n_cells: int, n_genes: int, what: str) -> Iterator[np.ndarray]:
    """Read the real values of a simulation in blocks of rows; DataError for values that are not finite."""
    step = max(1, BLOCK_BYTES // (4 * max(n_genes, 1)))
    with reading(what, x):
        for start in range(0, n_cells, step):
            block = x[start : start + step]
            if not np.isfinite(block).all():
                raise DataError(f"{what} has values that are not finite.")
            yield block


def _dense_blocks(x: h5py.Dataset, rows: np.ndarray, cols: np.ndarray, what: str, block_bytes: int):
    """Yield (low, high, dense values of rows[low:high])."""
    n_cells, n_genes = x.shape
    width = max(x.dtype.itemsize * n_genes, 1)
    step = max(1, block_bytes // width)
    chunk = x.chunks[0] if x.chunks else 1
    if chunk <= step:
        step -= step % chunk  # decode no chunk twice
    elif chunk * width <= 4 * block_bytes:  # chunks as tall as h5py's default; taller ones are decoded repeatedly
        step = chunk
    buffer = np.empty((min(step, n_cells), n_genes), x.dtype)
    part = max(1, PART // max(len(cols), 1))
    for start in range(0, n_cells, step):
        stop = min(start + step, n_cells)
        first, last = np.searchsorted(rows, (start, stop))
        if first == last:
            continue
        if isinstance(x, h5py.Dataset):
            x.read_direct(buffer, np.s_[start:stop], np.s_[: stop - start])
        else:
            buffer[: stop - start] = x[start:stop]
        for low in range(first, last, part):
            high = min(low + part, last)
            local = rows[low:high] - start
            if len(cols) < n_genes:
                yield low, high, buffer[np.ix_(local, cols)]
            elif local[-1] - local[0] == high - low - 1:  # contiguous complete rows need no copy
                yield low, high, buffer[local[0] : local[-1] + 1]
            else:
                yield low, high, buffer[local]


def _csr_blocks(x: h5py.Group, rows: np.ndarray, cols: np.ndarray, what: str, block_bytes: int):
    """Yield (low, high, CSR values of rows[low:high])."""
    kind = text_attribute(x, *STORED_AS, default="unknown")
    if kind not in ("csr_matrix", "csr"):
        raise DataError(f"{what} is stored as {kind}; allowed: a dense matrix or csr_matrix.")
    n_cells, n_genes = (int(n) for n in _stored_shape(x))
    starts = sparse_starts(x, n_cells, "cells", what)
    most = max(1, block_bytes // 16)  # a value and its column take up to 16 bytes
    stop = 0
    while stop < n_cells:
        start = stop
        stop = max(start + 1, int(np.searchsorted(starts, starts[start] + most, side="right")) - 1)
        low, high = np.searchsorted(rows, (start, stop))
        if low == high:
            continue
        a, b = starts[start], starts[stop]
        gene = sparse_indices(x, a, b, n_genes, "genes", what)
        pieces = (x["data"][a:b], gene, starts[start : stop + 1] - a)
        block = sp.csr_matrix(pieces, shape=(stop - start, n_genes))
        if high - low < stop - start:
            block = block[rows[low:high] - start]
        yield low, high, block[:, cols] if len(cols) < n_genes else block


def sparse_starts(x: h5py.Group, n: int, kind: str, what: str) -> np.ndarray:
    """The indptr of n rows (or columns), int64 (n + 1); DataError if it does not fit the stored values."""
    if missing := [name for name in ("data", "indices", "indptr") if name not in x]:
        raise DataError(f"{what} is damaged: it has no {' and no '.join(missing)}.")
    for name in ("indices", "indptr"):
        if x[name].dtype.kind not in "iu":
            raise DataError(f"{what} is damaged: the type of its {name} is {x[name].dtype}; allowed: whole numbers.")
    starts, stored = x["indptr"][:].astype(np.int64), x["data"].shape[0]
    if len(starts) != n + 1 or starts[0] or starts[-1] != stored or (np.diff(starts) < 0).any():
        raise DataError(f"{what} is damaged: its indptr does not fit {n} {kind} and {stored} values.")
    if (indices := x["indices"].shape[0]) != stored:
        raise DataError(f"{what} is damaged: it has {stored} values, but {indices} indices.")
    return starts


def sparse_indices(x: h5py.Group, a: int, b: int, n: int, kind: str, what: str) -> np.ndarray:
    """Indices a to b, checked to be below n: scipy does not check and would read past its arrays.

    DataError for an index out of range.
    """
    found = x["indices"][a:b]
    if len(found) and not 0 <= found.min() <= found.max() < n:
        raise DataError(f"{what} is damaged: it has indices outside 0 to {n - 1}, the range for {n} {kind}.")
    return found


def matrix_shape(x: h5py.Dataset | h5py.Group) -> tuple[int, int]:
    """(cells, genes) of a dense or sparse matrix in an HDF5 file; DataError if it has no such shape."""
    with reading(place_of(x), x):
        cells, genes = _stored_shape(x)
        return int(cells), int(genes)


def _stored_shape(x):
    """The shape of a matrix; None for a sparse group in a file that does not state it."""
    return x.attrs.get("shape", x.attrs.get("h5sparse_shape")) if is_group(x) else x.shape


# ---- counts in a file or in memory ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Counts (n, G) to read from: dense, CSR or CSC, in an open HDF5 file, in a zarr store or in memory."""

    x: Any
    cells: pd.Index
    genes: pd.Index
    what: str  # "FILE: X", for messages
    block_bytes: int = BLOCK_BYTES

    @property
    def by_columns(self) -> bool:
        """Whether the matrix is a CSC matrix in a file, which is read by columns."""
        if not self.in_file:
            return False
        with reading(self.what, self.x):
            return text_attribute(self.x, *STORED_AS) in ("csc_matrix", "csc")

    @property
    def in_file(self) -> bool:
        return not (sp.issparse(self.x) or isinstance(self.x, np.ndarray))

    def check(self) -> None:
        """DataError if the shape of the matrix does not match its names, as in a file assembled by hand."""
        names = len(self.cells), len(self.genes)
        with reading(self.what):
            shape = _stored_shape(self.x)
            fits = shape is not None and tuple(shape) == names
        if not fits:
            raise DataError(f"{self.what} has the shape {shape}, but there are {names[0]} cells and {names[1]} genes.")

    def tiles(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, slice, sp.csr_matrix]]:
        """Read rows and columns (sorted positions) in tiles: (slice of `rows`, slice of `cols`, CSR int32 counts).

        Memory: one tile. DataError for a value that is not a count.
        """
        if self.by_columns:
            for at, block in self._column_tiles(rows, cols):
                yield slice(None), at, block
            return
        start = 0
        for block in self.blocks(rows, cols):
            yield slice(start, start + block.shape[0]), slice(None), block
            start += block.shape[0]

    def blocks(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[sp.csr_matrix]:
        """Read rows and columns in blocks of complete rows, in order; one block for CSC and for counts in memory."""
        names = {"cells": self.cells[rows], "genes": self.genes[cols], "what": self.what}
        if not self.in_file:
            return iter([integer_counts(self.x[rows][:, cols], **names)])
        if self.by_columns:
            return iter([sp.hstack([block for _, block in self._column_tiles(rows, cols)], "csr", np.int32)])
        return count_blocks(self.x, rows, cols, block_bytes=self.block_bytes, **names)

    def read(self, rows: np.ndarray, cols: np.ndarray) -> sp.csr_matrix:
        """Read rows and columns as one CSR int32 matrix."""
        blocks = list(self.blocks(rows, cols))
        return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, "csr")

    def totals(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The sum of each row over the columns `cols`, (len(rows),)."""
        total = np.zeros(len(rows))
        for at, _, block in self.tiles(rows, cols):
            total[at] += np.asarray(block.sum(1)).ravel()
        return total

    def _column_tiles(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """Read a CSC matrix from its file: (slice of `cols`, their counts), as many columns as fit in a block."""
        with reading(self.what, self.x):
            yield from self._read_columns(rows, cols)

    def _read_columns(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, sp.csr_matrix]]:
        starts = sparse_starts(self.x, len(self.genes), "genes", self.what)
        most = max(1, self.block_bytes // 16)  # a value and its row take up to 16 bytes
        low = 0
        while low < len(cols):
            high = low + 1
            while high < len(cols) and starts[cols[high] + 1] - starts[cols[low]] <= most:
                high += 1
            first, last = cols[low], cols[high - 1] + 1
            a, b = starts[first], starts[last]
            cell = sparse_indices(self.x, a, b, len(self.cells), "cells", self.what)
            pieces = (self.x["data"][a:b], cell, starts[first : last + 1] - a)
            block = sp.csc_matrix(pieces, shape=(len(self.cells), last - first))[:, cols[low:high] - first].tocsr()
            block = block if len(rows) == len(self.cells) else block[rows]
            yield slice(low, high), integer_counts(block, self.cells[rows], self.genes[cols[low:high]], self.what)
            low = high
