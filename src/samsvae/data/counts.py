"""Counts out of HDF5 files: chosen rows and columns, block by block, checked to be counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp

from samsvae.errors import DataError

BLOCK_BYTES = 64 << 20  # rows are read about 64 MB at a time: fast on disk, small in memory


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


def integer_counts(x, cells: Sequence, genes: Sequence, what: str) -> sp.csr_matrix:
    """`x` (cells, genes), dense or sparse, as CSR int32; DataError names the first value that is no count.

    `cells` and `genes` are the names of rows and columns and `what` the place ("FILE: X"), for the message.
    """
    x = sp.csr_matrix(x)
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


def read_counts(
    x: h5py.Dataset | h5py.Group,
    rows: np.ndarray,
    cols: np.ndarray,
    *,
    cells: Sequence,
    genes: Sequence,
    what: str,
    block_bytes: int = BLOCK_BYTES,
) -> sp.csr_matrix:
    """Rows and columns (sorted positions) of a dense or CSR matrix in an HDF5 file, as CSR int32.

    `cells` (len(rows)) and `genes` (len(cols)) name what is kept. Memory: the result and one block of rows,
    whatever the size of the file. Blocks without a wanted row are skipped.
    """
    sparse = isinstance(x, h5py.Group)
    if sparse:
        kind = x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "unknown"))
        if kind not in ("csr_matrix", "csr"):
            raise DataError(f"{what} is stored as {kind}; allowed: a dense matrix or csr_matrix.")
        starts = x["indptr"][:].astype(np.int64)
    n_cells, n_genes = x.attrs.get("shape", x.attrs.get("h5sparse_shape")) if sparse else x.shape
    step = max(1, block_bytes // (4 * max(int(n_genes), 1)))
    if not sparse:
        chunk = x.chunks[0] if x.chunks else 1
        step -= step % chunk if chunk <= step else 0  # a chunk is never decoded twice
        buffer = np.empty((min(step, n_cells), n_genes), x.dtype)

    # The result is filled in place: of these upper bounds only what is written becomes resident memory.
    most = len(rows) * len(cols)
    if sparse:
        most = min(most, int((starts[rows + 1] - starts[rows]).sum()))
    data, indices = np.empty(most, np.int32), np.empty(most, np.int32)
    indptr = np.zeros(len(rows) + 1, np.int64)
    for start in range(0, n_cells, step):
        stop = min(start + step, n_cells)
        low, high = np.searchsorted(rows, (start, stop))
        if low == high:
            continue
        wanted = rows[low:high] - start
        if sparse:
            a, b = starts[start], starts[stop]
            pieces = (x["data"][a:b], x["indices"][a:b], starts[start : stop + 1] - a)
            block = sp.csr_matrix(pieces, shape=(stop - start, n_genes))[wanted][:, cols]
        else:
            x.read_direct(buffer, np.s_[start:stop], np.s_[: stop - start])
            block = buffer[np.ix_(wanted, cols)]
        block = integer_counts(block, cells[low:high], genes, what)
        filled = indptr[low]
        data[filled : filled + block.nnz] = block.data
        indices[filled : filled + block.nnz] = block.indices
        indptr[low + 1 : high + 1] = filled + block.indptr[1:]
    total = indptr[-1]
    return sp.csr_matrix((data[:total], indices[:total], indptr), shape=(len(rows), len(cols)))
