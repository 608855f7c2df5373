"""How labels become conditions: combinations, controls, and labels that may be mistakes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.config.screens import CustomOptions
from samsvae.errors import DataError, nearest, some
from samsvae.screens.screen import members

log = logging.getLogger(__name__)

#: What a label that was missing may have become on its way through text.
NO_LABEL = {"nan", "none", "na", "n/a", "<na>", "null"}


def conditions_of(obs: pd.DataFrame, options: CustomOptions, source: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the cells with a label, and their conditions."""
    column, controls, separator = options.perturbation_column, options.control, options.separator
    label = obs_column(obs, column, source)
    where = f"{source}: obs column {column!r}"
    label, missing = label.astype(str).str.strip(), label.isna().to_numpy()
    missing |= (label == "").to_numpy()
    if missing.any() and options.unlabelled == "error":
        raise DataError(
            f"{where} has no label in {int(missing.sum())} cells: {some(obs.index[missing])}. "
            "Label them, or set unlabelled: drop."
        )
    rows = np.flatnonzero(~missing)
    label = label.iloc[rows]
    pieces = {name: name.split(separator) if separator else [name] for name in label.unique()}
    split = {name: [part.strip() for part in parts] for name, parts in pieces.items()}
    if odd := sorted(name for name, parts in split.items() if name not in controls and "" in parts):
        raise DataError(f"{where} has combinations with an empty part (separator {separator!r}): {some(odd)}.")
    names = {name: _canonical(name, parts, separator, controls) for name, parts in split.items()}
    condition = label.map(names).to_numpy(object)
    if unused := [name for name in controls if name not in names]:
        log.warning("%s: no cell has the control label %s", where, some(unused))
    if controls[0] not in condition:
        raise DataError(f"{where} has no control cell ({some(controls)}).{nearest(controls[0], sorted(names))}")

    _doubtful(label.value_counts(), split, controls, where)
    if separator and not any(separator in name for name in split):
        log.warning("%s: no label contains the separator %r: there are no combinations", where, separator)
    found = [members(name, separator, controls[0]) for name in set(names.values())]
    alone = {parts[0] for parts in found if len(parts) == 1}
    if never := sorted({part for parts in found if len(parts) > 1 for part in parts} - alone):
        log.warning(
            "%s: %d perturbations occur in combinations only: %s. If these are pieces of names, the separator %r is "
            "part of the names as well: rename the labels, or leave separator empty",
            *(where, len(never), some(never), separator),
        )
    return rows, condition


def _doubtful(cells_of: pd.Series, split: Mapping[str, Sequence[str]], controls: Sequence[str], where: str) -> None:
    """Warn of names that look like a missing label, or like a control but for upper and lower case.

    cells_of: cells of each label; split: the names in each label.
    """
    cells: Counter[str] = Counter()
    for label, n in cells_of.items():
        if label not in controls:
            cells.update({name: n for name in set(split[label]) - set(controls)})
    for alike, what in (
        (NO_LABEL, "a missing label that was written as text"),
        ({name.lower() for name in controls}, "a control in other upper and lower case"),
    ):
        if found := [f"{name} ({n} cells)" for name, n in sorted(cells.items()) if name.lower() in alike]:
            log.warning("%s: %s: a perturbation here, but it looks like %s", where, some(found), what)


def _canonical(label: str, parts: Sequence[str], separator: str, controls: Sequence[str]) -> str:
    """One name per condition: control labels dropped, single perturbations sorted, each once."""
    if label in controls:
        return controls[0]
    return separator.join(sorted(set(parts) - set(controls))) or controls[0]


# ---- options -------------------------------------------------------------------------------------------------------


def obs_column(obs: pd.DataFrame, name: str, source: str | Path, *also: str) -> pd.Series:
    """A column of obs; `also`: words that would be allowed in place of its name."""
    if name not in obs:
        raise DataError(f"{source}: obs has no column {name!r}.{nearest(name, [*also, *obs.columns])}")
    return obs[name]
