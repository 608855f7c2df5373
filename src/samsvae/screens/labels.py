"""Turns perturbation labels into conditions: combinations, controls, and warnings about doubtful labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.config.screens import CustomOptions
from samsvae.config.vocabulary import UNPERTURBED
from samsvae.errors import DataError, nearest, some
from samsvae.screens.screen import members, text_of
from samsvae.screens.targets import targets_of

log = logging.getLogger(__name__)

#: Texts, in lower case, that a missing label may have turned into when the table was written.
NO_LABEL = {"nan", "none", "na", "n/a", "<na>", "null"}


def conditions_of(
    label: pd.Series,
    options: CustomOptions,
    where: str,
    *,
    complete: bool = True,
    table: Mapping[str, str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells that have a label (n), and the condition of each.

    ``where``: the source and column of the labels, for messages. ``table``: guide -> target, for the option targets.

    DataError if cells have no label and the options do not allow dropping them, if a combination has an empty part, if
    a guide has no target, if a ``complete`` screen has no control cell, or, without a control, if all cells received
    the same number of perturbations. Doubtful labels are logged as warnings.
    """
    controls, separator = options.controls, options.separator
    label, missing = text_of(label).str.strip(), label.isna().to_numpy()
    missing |= (label == "").to_numpy()
    if missing.any() and options.unlabelled == "error":
        raise DataError(
            f"{where} has no label in {int(missing.sum())} cells: {some(label.index[missing])}. "
            "Label them, or set unlabelled: drop."
        )
    rows = np.flatnonzero(~missing)
    label = label.iloc[rows]
    split = {name: _parts(name, separator) for name in label.unique()}
    if odd := sorted(name for name, parts in split.items() if name not in controls and "" in parts):
        raise DataError(f"{where} has combinations with an empty part (separator {separator!r}): {some(odd)}.")
    if options.perturbations is None and options.guides == "target":
        split = _merged(split, options, where, table)
    names = {name: _canonical(name, parts, separator, controls) for name, parts in split.items()}
    condition = label.map(names).to_numpy(object)
    control = controls[0] if controls else UNPERTURBED
    if complete:
        _check_reference(set(names.values()), options, sorted(names), where)
    if options.perturbations is not None:
        return rows, condition
    found = set(names).union(*split.values())
    if complete and (unused := [name for name in controls if name not in found]):
        log.warning("%s: no cell has the control label %s", where, some(unused))

    _warn_of_doubtful_names(label.value_counts(), split, controls, where)
    if complete and separator and not any(separator in name for name in split):
        log.warning("%s: no label contains the separator %r, so there are no combinations", where, separator)
    if not separator:
        _warn_of_combinations(set(names), where)
    parts_of = [members(name, separator, control) for name in set(names.values())]
    alone = {parts[0] for parts in parts_of if len(parts) == 1}
    never = sorted({part for parts in parts_of if len(parts) > 1 for part in parts} - alone)
    if complete and never:
        log.warning(
            "%s: %d perturbations occur only in combinations: %s. If these are fragments of names, the separator %r "
            "also occurs inside names: rename the labels, or leave separator empty",
            *(where, len(never), some(never), separator),
        )
    return rows, condition


def _merged(
    split: Mapping[str, list[str]], options: CustomOptions, where: str, table: Mapping[str, str] | None
) -> dict[str, list[str]]:
    """The parts of each label, with targets in place of guides."""
    guides = {part for name in set(split) - set(options.controls) for part in split[name]}
    target_of = targets_of(sorted(guides), options, where, table)
    return {
        name: [new for part in parts for new in _parts(target_of.get(part, part), options.separator)]
        for name, parts in split.items()
    }


def _parts(label: str, separator: str) -> list[str]:
    """The parts of a label, stripped."""
    return [part.strip() for part in (label.split(separator) if separator else [label])]


def _warn_of_doubtful_names(
    cells_of: pd.Series, split: Mapping[str, Sequence[str]], controls: Sequence[str], where: str
) -> None:
    """Warn about names that look like a missing label, or that differ from a control only in upper and lower case.

    cells_of: number of cells of each label; split: the names in each label.
    """
    cells: Counter[str] = Counter()
    for label, n in cells_of.items():
        if label not in controls:
            cells.update({name: n for name in set(split[label]) - set(controls)})
    for alike, what in (
        (NO_LABEL, "a missing label that was written as text"),
        ({name.lower() for name in controls}, "a control written in different upper and lower case"),
    ):
        if found := [f"{name} ({n} cells)" for name, n in sorted(cells.items()) if name.lower() in alike]:
            log.warning("%s: %s: treated as a perturbation, but looks like %s", where, some(found), what)


def _warn_of_combinations(labels: set[str], where: str) -> None:
    """Warn about labels such as 'A|B' next to 'A' and 'B': without a separator they are perturbations of their own."""
    for separator in "+|&,;:/_-":
        joined = sorted(name for name in labels if separator in name)
        if found := [name for name in joined if all(part.strip() in labels for part in name.split(separator))]:
            log.warning(
                "%s: %s look like combinations of other labels, but no separator is set, so they are perturbations of "
                "their own. For combinations set separator: %s",
                *(where, some(found), f'"{separator}"'),
            )


def _check_reference(conditions: set[str], options: CustomOptions, labels: Sequence[str], where: str) -> None:
    """DataError if no condition is the control; without one, if all received the same number of perturbations."""
    controls = options.controls
    if controls and controls[0] not in conditions:
        if options.perturbations is not None:
            raise DataError(
                f"{where}: every cell received a perturbation, so there is no control cell ({some(controls)}). Name "
                "the guides that are controls, or set control: none; effects are then relative to the zero dosage."
            )
        without = " If there is none, write control: null." if controls == ("none",) else ""
        raise DataError(f"{where} has no control cell ({some(controls)}).{nearest(controls[0], labels)}{without}")
    numbers = {len(members(name, options.separator, controls[0] if controls else "")) for name in conditions}
    if not controls and len(numbers) < 2:
        raise DataError(
            f"{where}: every cell received {numbers.pop()} perturbation(s), so the data do not say what a cell without "
            "any is like. Name a control, or use cells that differ in how many perturbations they received."
        )


def _canonical(label: str, parts: Sequence[str], separator: str, controls: Sequence[str]) -> str:
    """The one name of a condition: control labels dropped, single perturbations sorted and listed once."""
    control = controls[0] if controls else UNPERTURBED
    if label in (*controls, control):  # it may hold the separator
        return control
    return separator.join(sorted(set(parts) - set(controls))) or control


def obs_column(obs: pd.DataFrame, name: str, source: str | Path, *also: str) -> pd.Series:
    """A column of obs; DataError if there is none, or if several have this name.

    `also`: allowed values of the option that are not column names.
    """
    if name not in obs:
        raise DataError(f"{source}: obs has no column {name!r}.{nearest(name, [*also, *obs.columns])}")
    if (n := int((obs.columns == name).sum())) > 1:
        raise DataError(f"{source}: obs has {n} columns called {name!r}. Rename or remove all but one.")
    return obs[name]
