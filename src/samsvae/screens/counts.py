"""Chosen cells and genes out of h5ad files of any size: counts block by block, checked to be counts, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from samsvae.errors import ConfigError, DataError, nearest, some

BLOCK_BYTES = 64 << 20  # of a matrix are read at a time: fast on disk, small in memory

PART = 1 << 22  # values that become one sparse block

NAMES = 1 << 17  # strings read at a time; each is an object of its own


@contextmanager
def open_h5ad(path: str | Path) -> Iterator[h5py.File]:
    """An h5ad opened for reading; DataError if it is missing, damaged or not AnnData."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}).") from error
    with file:
        if missing := [name for name in ("X", "obs", "var") if name not in file]:
            raise DataError(f"{path}: not an h5ad file, it has no {' and no '.join(missing)}.")
        yield file


def read_table(table: h5py.Group, rows: np.ndarray | slice = slice(None)) -> pd.DataFrame:
    """Some rows (sorted positions; all of them by default) of obs or var.

    Memory: the rows, one column at a time; labels stay codes of their categories. DataError where it is no table.
    """
    with _damage_named(table):
        index = table.attrs["_index"]
        names = pd.Index(_column(table[index], rows), name=None if index == "_index" else index)
        columns = {name: _column(table[name], rows) for name in table.attrs["column-order"]}
        return pd.DataFrame(columns, names, copy=False)


def read_labels(table: h5py.Group, name: str) -> pd.Categorical:
    """One column of obs or var; DataError where it is not there."""
    with _damage_named(table):
        columns = list(table.attrs["column-order"])
        if name in columns:
            return pd.Categorical(_column(table[name], slice(None)))
    place = table.name.strip("/")
    raise DataError(f"{table.file.filename}: {place} has no column {name!r}.{nearest(name, columns)}")


@contextmanager
def _damage_named(table: h5py.Group) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, AttributeError, OSError) as error:
        what = f"{table.file.filename}: {table.name.strip('/')}"
        raise DataError(f"{what} is damaged, or no table as anndata 0.7 and later write it ({error}).") from error


def _column(column: h5py.Dataset | h5py.Group, rows: np.ndarray | slice):
    if isinstance(column, h5py.Group):
        if column.attrs["encoding-type"] != "categorical":  # numbers or text with missing values
            return read_elem(column)[rows]
        ordered = bool(column.attrs["ordered"])
        return pd.Categorical.from_codes(column["codes"][:][rows], read_elem(column["categories"]), ordered=ordered)
    if "categories" in column.attrs:  # anndata 0.7: a column of codes, which refers to a list of its own
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


def integer_counts(x, cells: Sequence, genes: Sequence, what: str) -> sp.csr_matrix:
    """`x` (cells, genes), dense or sparse, as CSR int32; DataError names the first value that is no count.

    `cells` and `genes` are the names of rows and columns and `what` the place ("FILE: X"), for the message.
    """
    x = sp.csr_matrix(x) if sp.issparse(x) else _compressed(np.asarray(x))
    value = x.data
    bad = ~((value >= 0) & (value <= np.iinfo(np.int32).max) & (value == np.floor(value)))  # NaN is bad too
    if bad.any():
        at = int(bad.argmax())
        row = int(np.searchsorted(x.indptr, at, side="right")) - 1
        raise DataError(
            f"{what} must hold counts (whole numbers from 0 up), but cell {str(cells[row])!r}, "
            f"gene {str(genes[x.indices[at]])!r} is {value[at]:g} ({int(bad.sum())} such values here)."
        )
    x = x.astype(np.int32)
    x.sum_duplicates()  # sorts the columns of each row as well
    x.eliminate_zeros()
    return x


def _compressed(x: np.ndarray) -> sp.csr_matrix:
    """A dense matrix as CSR, in half the time and memory of scipy's way over int64 coordinates."""
    there = x != 0
    starts = np.concatenate([[0], there.sum(1).cumsum()])
    gene = np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape)
    return sp.csr_matrix((x[there], gene[there], starts), shape=x.shape)


def count_blocks(
    x: h5py.Dataset | h5py.Group,
    rows: np.ndarray,
    cols: np.ndarray,
    *,
    cells: Sequence,
    genes: Sequence,
    what: str,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[sp.csr_matrix]:
    """Rows and columns (sorted positions) of a dense or CSR matrix in an HDF5 file: CSR int32 blocks of rows, in order.

    `cells` (len(rows)) and `genes` (len(cols)) name what is kept. Memory: some `block_bytes`, whatever the size
    of the file. Stretches without a wanted row are not read.
    """
    blocks = _csr_blocks if isinstance(x, h5py.Group) else _dense_blocks
    try:
        for low, high, block in blocks(x, rows, cols, what, block_bytes):
            yield integer_counts(block, cells[low:high], genes, what)
    except OSError as error:
        raise DataError(f"{what} cannot be read ({error}).") from error


def _dense_blocks(x: h5py.Dataset, rows: np.ndarray, cols: np.ndarray, what: str, block_bytes: int):
    """(low, high, dense values of rows[low:high])."""
    n_cells, n_genes = x.shape
    width = max(x.dtype.itemsize * n_genes, 1)
    step = max(1, block_bytes // width)
    chunk = x.chunks[0] if x.chunks else 1
    if chunk <= step:
        step -= step % chunk  # a chunk is never decoded twice
    elif chunk * width <= 4 * block_bytes:  # h5py's own choice of chunks is that tall; taller ones are decoded anew
        step = chunk
    buffer = np.empty((min(step, n_cells), n_genes), x.dtype)
    part = max(1, PART // max(len(cols), 1))
    for start in range(0, n_cells, step):
        stop = min(start + step, n_cells)
        first, last = np.searchsorted(rows, (start, stop))
        if first == last:
            continue
        x.read_direct(buffer, np.s_[start:stop], np.s_[: stop - start])
        for low in range(first, last, part):
            high = min(low + part, last)
            wanted = rows[low:high] - start
            if len(cols) < n_genes:
                yield low, high, buffer[np.ix_(wanted, cols)]
            elif wanted[-1] - wanted[0] == high - low - 1:  # a stretch of whole rows needs no copy
                yield low, high, buffer[wanted[0] : wanted[-1] + 1]
            else:
                yield low, high, buffer[wanted]


def _csr_blocks(x: h5py.Group, rows: np.ndarray, cols: np.ndarray, what: str, block_bytes: int):
    """(low, high, CSR values of rows[low:high])."""
    kind = x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "unknown"))
    if kind not in ("csr_matrix", "csr"):
        raise DataError(f"{what} is stored as {kind}; allowed: a dense matrix or csr_matrix.")
    n_cells, n_genes = matrix_shape(x)
    starts = sparse_starts(x, n_cells, "cells", what)
    most = max(1, block_bytes // 16)  # a value and its column are up to 16 bytes
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
    """The indptr of n rows (or columns), int64 (n + 1); DataError where it does not fit the values."""
    if missing := [name for name in ("data", "indices", "indptr") if name not in x]:
        raise DataError(f"{what} is damaged: it has no {' and no '.join(missing)}.")
    starts, stored = x["indptr"][:].astype(np.int64), len(x["data"])
    if len(starts) != n + 1 or starts[0] or starts[-1] != stored or (np.diff(starts) < 0).any():
        raise DataError(f"{what} is damaged: its indptr does not fit {n} {kind} and {stored} values.")
    if len(x["indices"]) != stored:
        raise DataError(f"{what} is damaged: it has {stored} values, but {len(x['indices'])} indices.")
    return starts


def sparse_indices(x: h5py.Group, a: int, b: int, n: int, kind: str, what: str) -> np.ndarray:
    """Indices a to b, each below n; DataError otherwise: scipy would read beyond its arrays."""
    found = x["indices"][a:b]
    if len(found) and not 0 <= found.min() <= found.max() < n:
        raise DataError(f"{what} is damaged: its indices are not those of {n} {kind}.")
    return found


def matrix_shape(x: h5py.Dataset | h5py.Group) -> tuple[int, int]:
    """(cells, genes) of a dense or sparse matrix in an HDF5 file."""
    shape = x.shape if isinstance(x, h5py.Dataset) else x.attrs.get("shape", x.attrs.get("h5sparse_shape"))
    return int(shape[0]), int(shape[1])


# ---- counts in a file or in memory ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Counts (n, G) that are not read yet: dense, CSR or CSC, of an open HDF5 file or in memory."""

    x: h5py.Dataset | h5py.Group | sp.spmatrix | np.ndarray
    cells: pd.Index
    genes: pd.Index
    what: str  # "FILE: X", for messages
    block_bytes: int = BLOCK_BYTES

    @property
    def by_columns(self) -> bool:
        kind = self.x.attrs.get("encoding-type", self.x.attrs.get("h5sparse_format")) if self.in_file else ""
        return kind in ("csc_matrix", "csc")

    @property
    def in_file(self) -> bool:
        return isinstance(self.x, h5py.Dataset | h5py.Group)

    def check(self) -> None:
        """DataError where the matrix has another shape than its names (a file that was put together by hand)."""
        group = isinstance(self.x, h5py.Group)
        shape = self.x.attrs.get("shape", self.x.attrs.get("h5sparse_shape")) if group else self.x.shape
        names = len(self.cells), len(self.genes)
        if shape is None or tuple(shape) != names:
            raise DataError(f"{self.what} has the shape {shape}, but there are {names[0]} cells and {names[1]} genes.")

    def tiles(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, slice, sp.csr_matrix]]:
        """Some rows and columns (sorted positions) as CSR int32 in tiles: (which of `rows`, which of `cols`, counts).

        DataError where they are no counts. Memory: a tile.
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
        """The same in whole rows, in order; of a CSC matrix, and in memory, in one block."""
        names = {"cells": self.cells[rows], "genes": self.genes[cols], "what": self.what}
        if not self.in_file:
            return iter([integer_counts(self.x[rows][:, cols], **names)])
        if self.by_columns:
            return iter([sp.hstack([block for _, block in self._column_tiles(rows, cols)], "csr", np.int32)])
        return count_blocks(self.x, rows, cols, block_bytes=self.block_bytes, **names)

    def read(self, rows: np.ndarray, cols: np.ndarray) -> sp.csr_matrix:
        """The same as one matrix."""
        blocks = list(self.blocks(rows, cols))
        return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, "csr")

    def totals(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Sums of rows over some columns."""
        total = np.zeros(len(rows))
        for at, _, block in self.tiles(rows, cols):
            total[at] += np.asarray(block.sum(1)).ravel()
        return total

    def _column_tiles(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """Of a CSC matrix in a file: (which of `cols`, their counts), as many columns as a block may have entries."""
        starts = sparse_starts(self.x, len(self.genes), "genes", self.what)
        most = max(1, self.block_bytes // 16)  # a value and its row are up to 16 bytes
        low = 0
        while low < len(cols):
            high = low + 1
            while high < len(cols) and starts[cols[high] + 1] - starts[cols[low]] <= most:
                high += 1
            first, last = cols[low], cols[high - 1] + 1
            a, b = starts[first], starts[last]
            try:
                cell = sparse_indices(self.x, a, b, len(self.cells), "cells", self.what)
                pieces = (self.x["data"][a:b], cell, starts[first : last + 1] - a)
            except OSError as error:
                raise DataError(f"{self.what} cannot be read ({error}).") from error
            block = sp.csc_matrix(pieces, shape=(len(self.cells), last - first))[:, cols[low:high] - first].tocsr()
            block = block if len(rows) == len(self.cells) else block[rows]
            yield slice(low, high), integer_counts(block, self.cells[rows], self.genes[cols[low:high]], self.what)
            low = high


def most_variable(counts: Counts, rows: np.ndarray, n: int) -> np.ndarray:
    """Sorted numbers of the n genes that vary most in some rows, by the rule that scanpy calls 'seurat_v3'.

    The variance of each gene, its counts clipped at sqrt(n cells) standard deviations, over the variance that a loess
    of log variance on log mean expects. Two passes over the tiles, so that the counts are never held as a whole
    (scanpy needs them in memory, more than twice). scanpy's span is 0.3; its fit is singular on some panels of few or
    rare genes, where a wider one is taken.
    """
    from skmisc.loess import loess  # needed here alone

    every = np.arange(len(counts.genes))
    sums, squares = np.zeros((2, len(every)))
    for _, at, block in counts.tiles(rows, every):
        values = block.astype(np.float64)
        sums[at] += np.asarray(values.sum(0)).ravel()
        squares[at] += np.asarray(values.power(2).sum(0)).ravel()
    cells = len(rows)
    mean = sums / cells
    variance = (squares / cells - mean**2) * cells / max(cells - 1, 1)
    varies = variance > 1e-12  # a constant gene may be off by rounding
    if n > varies.sum():
        found = f"only {int(varies.sum())} genes vary between the {cells} cells they are chosen on"
        raise DataError(f"{counts.what}: genes: {n} asked for, but {found}.")
    for span in (0.3, 0.5, 1.0):
        try:
            fit = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=span, degree=2)
            fit.fit()
            break
        except ValueError as error:
            reason = error
    else:
        raise DataError(f"{counts.what}: genes: {n}: seurat_v3 failed ({reason}); give a list or 'all'.") from reason
    expected = np.ones_like(mean)
    expected[varies] = 10**fit.outputs.fitted_values
    top = mean + np.sqrt(expected * cells)

    sums, squares = np.zeros((2, len(every)))
    for _, at, block in counts.tiles(rows, every):
        values = block.astype(np.float64)
        values.data = np.minimum(values.data, top[at][values.indices])
        sums[at] += np.asarray(values.sum(0)).ravel()
        squares[at] += np.asarray(values.power(2).sum(0)).ravel()
    score = (cells * mean**2 + squares - 2 * sums * mean) / ((cells - 1) * expected)
    return np.sort(np.argsort(-np.where(varies, score, -1.0), kind="stable")[:n])


def named(names: Sequence[str], var: pd.Index, source: str | Path) -> np.ndarray:
    """Sorted column numbers of genes by name; DataError for one that is not there."""
    at = var.get_indexer(list(names))
    if (at < 0).any() or not len(at):
        missing = [name for name, i in zip(names, at, strict=True) if i < 0]
        hint = nearest(missing[0] if missing else "", var)
        raise DataError(f"{source}: has no gene {some(missing)} of those asked for.{hint}")
    return np.sort(at)


def read_names(path: str | Path) -> list[str]:
    """The distinct names in a text file, one on each line."""
    if not Path(path).is_file():
        raise ConfigError(
            f"genes: {str(path)!r} is not allowed: no such file. Allowed: 'all', a list, its file, a number."
        )
    lines = (line.strip() for line in Path(path).read_text().splitlines())
    return list(dict.fromkeys(line for line in lines if line))
