"""Read and write the tables and matrices that rules exchange."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import pandas as pd

from samsvae.errors import DataError
from samsvae.files import DIGITS, SEPARATOR, atomic, write_frame
from samsvae.screens.hdf5 import read_anndata

#: Columns that are read as text, also if labels look like numbers or missing values ('000', 'NA').
TEXT = ("condition", "cell", "gene", "run", "model")


def read(path: str | Path) -> pd.DataFrame:
    """Read a TSV. Columns in TEXT are text; elsewhere an empty field is NaN. DataError if it cannot be read."""
    try:
        table = pd.read_csv(path, sep=SEPARATOR, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable table ({error}); delete it and rerun the rule that writes it."
        ) from None
    return table


def write(table: pd.DataFrame, path: str | Path, *, digits: int = DIGITS, index_label: str | None = None) -> None:
    """Write a TSV in the one format of all tables (`files.write_frame`); by default floats have 9 digits."""
    write_frame(table, path, digits=digits, index_label=index_label)


def read_h5ad(path: str | Path) -> ad.AnnData:
    """Read a matrix with named rows and columns; DataError if the file is missing or damaged."""
    try:
        return read_anndata(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise DataError(
            f"{path}: not a readable h5ad file ({reason}); delete it and rerun the rule that writes it."
        ) from None


def write_h5ad(matrix: ad.AnnData, path: str | Path) -> None:
    """Write a matrix with named rows and columns; the same content gives the same bytes."""
    with atomic(path) as aside:
        matrix.write_h5ad(aside, compression="gzip")


def of_experiments(paths: Iterable[str]) -> pd.DataFrame:
    """Tables of several experiments as one, with a column experiment from the paths (``.../EXPERIMENT/file``)."""
    return pd.concat([read(path).assign(experiment=Path(path).parent.name) for path in paths], ignore_index=True)
