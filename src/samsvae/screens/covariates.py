"""Covariates of a custom screen: columns of obs with categories of cells that are no perturbation, such as batches.

Letters: n cells.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.errors import DataError, some
from samsvae.screens.labels import obs_column
from samsvae.screens.screen import RESERVED, text_of

log = logging.getLogger(__name__)

#: A column of numbers with more levels than this is probably a measurement.
MANY = 50

#: Columns that a screen has anyway, under these names.
TAKEN = ("condition", "library_size", "split", RESERVED)


def checked_covariates(
    obs: pd.DataFrame, names: Sequence[str], is_control: np.ndarray, source: str | Path, *, complete: bool = True
) -> dict[str, pd.Categorical]:
    """The covariates ``names`` of the kept cells, with their levels as text, by name.

    ``is_control`` (n,). A warning names the levels without control cells, in which effects cannot be observed, and a
    column that is probably a measurement.
    ``complete``: False if the cells are only a part of a screen, and may all have one level. DataError if a column is
    missing or reserved, has missing values, only one level, or nearly as many levels as cells.
    """
    found = {}
    for name in names:
        where = f"{source}: obs column {name!r}, a covariate,"
        if name in TAKEN:
            raise DataError(f"{where} has a name that screens use themselves; rename the column.")
        column = obs_column(obs, name, source)
        level = text_of(column).str.strip()
        missing = column.isna().to_numpy() | (level == "").to_numpy()
        if missing.any():
            raise DataError(
                f"{where} has no value in {int(missing.sum())} cells: {some(obs.index[missing])}. "
                "Fill them in, or remove the cells."
            )
        kinds = level.unique()
        if complete and len(kinds) == 1:
            raise DataError(f"{where} has the level {kinds[0]!r} in all cells, so it tells none apart; leave it out.")
        if complete and 2 * len(kinds) > len(level):
            raise DataError(
                f"{where} has {len(kinds)} levels in {len(level)} cells; a covariate is a category that many cells "
                "share. Group its values, or leave it out."
            )
        if complete and len(kinds) > MANY and pd.api.types.is_numeric_dtype(column):
            log.warning(
                "%s holds numbers, and models read each of its %d levels as a category of its own. If it measures "
                "something, group its values, or leave it out",
                *(where, len(kinds)),
            )
        if complete and is_control.any() and (without := sorted(set(kinds) - set(level[is_control]))):
            log.warning(
                "%s has no control cell in %s, so the effects in these cells cannot be observed", where, some(without)
            )
        found[name] = pd.Categorical(level.to_numpy(object))
    return found
