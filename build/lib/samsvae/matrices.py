"""Read and write the matrices that rules exchange.

Tables have a module of their own, because importing anndata takes as long as drawing a small figure.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from samsvae.errors import DataError
from samsvae.files import atomic, verify
from samsvae.screens.hdf5 import read_anndata
from samsvae.tables import damaged


def read_h5ad(path: str | Path) -> ad.AnnData:
    """Read a matrix with named rows and columns; DataError if the file is missing or damaged (`files.verify`)."""
    verify([path])
    try:
        return read_anndata(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise damaged(path, f"not a readable h5ad file ({reason})") from None


def write_h5ad(matrix: ad.AnnData, path: str | Path) -> None:
    """Write a matrix with named rows and columns; the same content gives the same bytes."""
    with atomic(path) as aside:
        matrix.write_h5ad(aside, compression="gzip")
