"""Tables and matrices between the rules: read, written aside and renamed, collected over the runs of an experiment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import pandas as pd

from samsvae.errors import DataError
from samsvae.files import DIGITS, SEPARATOR, atomic, write_frame

#: Labels stay text, whatever they look like ('000', 'NA').
TEXT = ("condition", "cell", "gene", "run", "model")


def read(path: str | Path) -> pd.DataFrame:
    """A tidy TSV. Labels are text; an empty field is NaN elsewhere."""
    try:
        table = pd.read_csv(path, sep=SEPARATOR, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable table ({error}).") from None
    return table


def write(table: pd.DataFrame, path: str | Path, *, digits: int = DIGITS, index_label: str | None = None) -> None:
    """Write a TSV in the one format of all tables (`files.write_frame`); by default floats have 9 digits."""
    write_frame(table, path, digits=digits, index_label=index_label)


def read_h5ad(path: str | Path) -> ad.AnnData:
    """A matrix with named rows and columns; DataError where the file is damaged."""
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # anndata and h5py raise many kinds on a damaged file
        raise DataError(f"{path}: not a readable h5ad file ({error}).") from None


def write_h5ad(matrix: ad.AnnData, path: str | Path) -> None:
    """A matrix with named rows and columns: the same content gives the same bytes."""
    with atomic(path) as aside:
        matrix.write_h5ad(aside, compression="gzip")


def of_experiments(paths: Iterable[str]) -> pd.DataFrame:
    """The tables of several experiments as one, with a column of their names (``.../EXPERIMENT/file``)."""
    return pd.concat([read(path).assign(experiment=Path(path).parent.name) for path in paths], ignore_index=True)
