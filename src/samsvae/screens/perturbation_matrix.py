"""Turns a matrix of perturbations (cells x guides) into labels.

Letters: n cells, T guides or perturbations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae.config.screens import CustomOptions
from samsvae.config.vocabulary import UNPERTURBED
from samsvae.errors import DataError, quoted, some
from samsvae.screens.hdf5 import check_sparse, reading
from samsvae.screens.sources import Source
from samsvae.screens.targets import targets_of

log = logging.getLogger(__name__)

#: What may join names in a label; the first that no name contains is used.
SEPARATORS = ("+", "|", "&", ";", "/", "~")

_BLOCK = 2**22  # values of a dense matrix that are read at a time


def labels_of_matrix(
    data: Source, options: CustomOptions, table: Mapping[str, str], source: str | Path, *, complete: bool = True
) -> tuple[pd.Series, CustomOptions]:
    """One label per cell (n) from the matrix of perturbations, and the options under which labels are read.

    Labels join the names of what a cell received by a separator that occurs in no name. A cell that received nothing
    has the label of the control, or UNPERTURBED without one. ``table``: guide -> target, for the option targets.
    A perturbation that no cell received is left out with a warning, one with fewer than min_cells cells by the options
    rare and min_cells. ``complete``: False if no cell need have received anything, and columns of zeros are nothing to
    warn about. DataError in one sentence for a matrix that does not fit.
    """
    where = f"{source}: {options.perturbations}"
    received, names = _received(data, options, where, source, complete)
    if options.guides == "target" and (target_of := targets_of(names, options, where, table)):
        received, names = _merged(received, [target_of.get(name, name) for name in names])
    kept = _kept(received, names, options, where, complete)
    received, names = received[:, kept], [names[t] for t in kept]
    separator = _separator(names, options, where)
    text, starts = np.array(names, object), received.indptr
    nothing = options.controls[0] if options.controls else UNPERTURBED
    labels = [separator.join(text[received.indices[a:b]]) or nothing for a, b in pairwise(starts)]
    return pd.Series(labels, data.obs.index, dtype=object), replace(options, separator=separator, min_cells=1)


def joined_lists(label: pd.Series, options: CustomOptions, where: str) -> tuple[pd.Series, CustomOptions]:
    """Labels (n) that are lists of names, as in memory, joined as in `labels_of_matrix`; others unchanged.

    DataError if only some labels are lists.
    """
    is_list = label.map(lambda each: isinstance(each, list | tuple | set | frozenset | np.ndarray)).to_numpy(bool)
    if not is_list.any():
        return label, options
    if not is_list.all():
        raise DataError(f"{where} has lists in some cells, but not in {some(label.index[~is_list])}.")
    lists = [sorted({str(name) for name in each}) for each in label]
    names = sorted({name for each in lists for name in each})
    if not names:
        raise DataError(f"{where} has only empty lists.")
    separator = _separator(names, options, where)
    nothing = options.controls[0] if options.controls else UNPERTURBED
    text = [separator.join(each) or nothing for each in lists]
    return pd.Series(text, label.index, dtype=object), replace(options, separator=separator)


def _received(
    data: Source, options: CustomOptions, where: str, source: str | Path, complete: bool
) -> tuple[sp.csr_matrix, list[str]]:
    """Which cell received which guide, as CSR (n, T) of ones, and the names of the guides (T)."""
    assert options.perturbations is not None  # the caller has checked
    found = data.read(options.perturbations)
    columns: Any = None
    if isinstance(found, pd.DataFrame):
        columns = found.columns
        _check_index(found.index.astype(str), data.obs.index, where)
        numeric = found.apply(pd.api.types.is_numeric_dtype) | found.apply(pd.api.types.is_bool_dtype)
        if not numeric.all():
            raise DataError(f"{where}: the columns {some(found.columns[~numeric])} hold no numbers.")
        found = sp.csr_matrix(found.astype(float).to_numpy())
    elif np.dtype(found.dtype).kind not in "buif":
        raise DataError(f"{where} must hold numbers, but its values have the type {found.dtype}.")
    shape = tuple(getattr(found, "shape", ()))
    if len(shape) != 2:
        raise DataError(f"{where} must be a matrix of cells x guides, but its shape is {shape}.")
    if shape[0] != len(data.obs):
        raise DataError(f"{where} has {shape[0]} rows, but there are {len(data.obs)} cells.")
    names = _names(data, options, columns, shape[1], where, source)
    with reading(where):
        received, largest = _at_least(found, options.threshold, data.obs.index, names, where)
    if complete and not received.nnz:
        raise DataError(
            f"{where} has no value of threshold = {options.threshold:g} or more (the largest is {largest:g}), so no "
            "cell received a guide. Lower threshold, or correct the matrix."
        )
    return received, names


def _check_index(rows: pd.Index, cells: pd.Index, where: str) -> None:
    if rows.equals(cells):
        return
    if len(rows) == len(cells) and set(rows) == set(cells):
        raise DataError(f"{where}: the rows have the same names as the cells, but in another order. Reorder the table.")
    if len(rows) != len(cells):
        raise DataError(f"{where} has {len(rows)} rows, but there are {len(cells)} cells.")
    raise DataError(
        f"{where}: the names of the rows are not those of the cells, such as {some(rows[rows != cells], 2)}."
    )


def _names(
    data: Source, options: CustomOptions, columns: Any, number: int, where: str, source: str | Path
) -> list[str]:
    """The names of the guides (T): those of perturbation_names, else the columns of a table, else uns KEY_names."""
    place = options.perturbation_names
    if place is None and columns is None:
        place = f"uns:{str(options.perturbations).removeprefix('obsm:')}_names"
        try:
            columns = data.read(place)
        except DataError:
            key = place.removeprefix("uns:")
            raise DataError(
                f"{where}: its {number} columns have no names. Make it a DataFrame, put the names in uns[{key!r}], or "
                "set perturbation_names: uns:KEY."
            ) from None
    elif place is not None:
        columns = data.read(place)
    what = where if place is None else f"{source}: {place}"
    if isinstance(columns, str) or np.ndim(columns) != 1:
        raise DataError(f"{what} must be a list of {number} names, not {quoted(columns)}.")
    if missing := int(pd.isna(columns).sum()):
        raise DataError(f"{what}: {missing} of {number} names of guides are missing.")
    names = [str(name) for name in np.asarray(columns).tolist()]
    if len(names) != number:
        raise DataError(f"{what} has {len(names)} names, but the matrix {options.perturbations} has {number} columns.")
    repeated = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(repeated):
        raise DataError(f"{what}: {len(repeated)} names of guides occur more than once: {some(repeated)}.")
    if odd := [name for name in names if name != name.strip() or name in ("", UNPERTURBED)]:
        raise DataError(f"{what}: the names {some(odd)} are not allowed: empty, with spaces around, or reserved.")
    return names


def _at_least(
    matrix: Any, threshold: float, cells: pd.Index, names: Sequence[str], where: str
) -> tuple[sp.csr_matrix, float]:
    """The entries of `threshold` or more as ones, and the largest entry.

    DataError for values that are negative or not finite; a warning for fractions below the threshold.
    """
    if sp.issparse(matrix):
        check_sparse(matrix)
        matrix = sp.csr_matrix(matrix, copy=True)  # the caller's stays as it is
        matrix.sum_duplicates()
        step = max(matrix.shape[0], 1)
    else:  # in a file or in memory, block by block
        step = max(1, _BLOCK // max(1, matrix.shape[1]))
    parts, largest, fractions = [], 0.0, 0
    for start in range(0, matrix.shape[0], step):
        block = sp.csr_matrix(matrix[start : start + step])
        values = block.data.astype(float)
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            cell = cells[start + int(np.searchsorted(block.indptr, at, side="right")) - 1]
            raise DataError(
                f"{where} must hold numbers of 0 or more, but cell {quoted(cell)}, guide "
                f"{quoted(names[block.indices[at]])} is {values[at]}."
            )
        largest = max(largest, values.max(initial=0.0))
        fractions += int(((values < threshold) & (values % 1 > 0)).sum())
        block = sp.csr_matrix(((values >= threshold).astype(np.int8), block.indices, block.indptr), block.shape)
        block.eliminate_zeros()
        parts.append(block)
    received = sp.vstack(parts, format="csr") if parts else sp.csr_matrix(matrix.shape, dtype=np.int8)
    received.sort_indices()
    if fractions:
        log.warning(
            "%s: %d values are fractions below threshold = %g, so they count as not received; if these are no counts, "
            "set threshold to the value from which a guide counts as received",
            *(where, fractions, threshold),
        )
    return received, largest


def _merged(received: sp.csr_matrix, targets: Sequence[str]) -> tuple[sp.csr_matrix, list[str]]:
    """A cell received a target if it received one of its guides."""
    names, column = np.unique(np.array(targets, object).astype(str), return_inverse=True)
    one_of = sp.csr_matrix((np.ones(len(column), int), (np.arange(len(column)), column)), (len(column), len(names)))
    merged = sp.csr_matrix(received.astype(int) @ one_of)
    merged.sort_indices()
    return merged, names.tolist()


def _kept(
    received: sp.csr_matrix, names: Sequence[str], options: CustomOptions, where: str, complete: bool
) -> np.ndarray:
    """The columns to keep, as positions; controls stay, since their cells do."""
    cells = np.asarray((received > 0).sum(0)).ravel()
    control = np.isin(names, options.controls)
    if complete and (none := (cells == 0) & ~control).any():
        log.warning("%s: no cell received %s; left out", where, some(np.array(names)[none]))
    few = (cells > 0) & (cells < options.min_cells) & ~control
    if few.any():
        listed = some(f"{names[t]} ({cells[t]})" for t in np.flatnonzero(few).tolist())
        found = f"{where} has {few.sum()} perturbations with fewer than min_cells = {options.min_cells} cells: {listed}"
        if options.rare == "error":
            raise DataError(f"{found}. Lower min_cells, or set rare: drop.")
        log.warning("%s; left out, but their cells stay", found)
    kept = np.flatnonzero(~few & (cells > 0))
    if complete and not (~control[kept]).any():
        raise DataError(f"{where} has no perturbation with min_cells = {options.min_cells} cells or more.")
    return kept


def _separator(names: Sequence[str], options: CustomOptions, where: str) -> str:
    """The separator of the options, or the first of SEPARATORS that no name contains."""
    if options.separator:
        if odd := [name for name in names if options.separator in name]:
            raise DataError(
                f"{where}: the separator {options.separator!r} occurs in the names {some(odd)}. Leave separator empty."
            )
        return options.separator
    several = ("+" * n for n in range(2, 2 + max(map(len, names))))
    return next(text for text in (*SEPARATORS, *several) if not any(text in name for name in names))
