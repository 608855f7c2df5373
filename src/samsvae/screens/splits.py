"""Who is trained on, validated on, tested on: a table (cell, condition, split), rows in screen order.

split is 'train', 'val', 'test' or 'none' (a cell that nothing uses). Cuts are scikit-learn's train_test_split
on row numbers in file order, so that the published splits come out to the cell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from samsvae.config.vocabulary import SPLITS
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.files import write_frame

log = logging.getLogger(__name__)

LABELS = (*SPLITS, "none")  # what a cell of a split table may be

KINDS = ("random", "norman_ood", "norman_efficiency", "held_out", "given", "file")


def random_split(
    obs: pd.DataFrame, *, test_fraction: float = 0.2, val_fraction: float = 0.2, seed: int = 0
) -> pd.DataFrame:
    """Cells at random: `test_fraction` of all are test, `val_fraction` of the others val (Replogle: 0.2, 0.2,
    0)."""
    train, val, test = three_ways(np.arange(len(obs)), test_fraction, val_fraction, seed)
    return _table(obs, train=train, val=val, test=test)


def norman_ood(
    obs: pd.DataFrame, *, fraction: float, seed: int, test_pairs: float = 0.25, test_fraction: float = 0.2
) -> pd.DataFrame:
    """Task A: pairs never seen. `fraction` of the pairs have training cells; the last `test_pairs` are the
    test pairs.

    The pairs are the guide_identity strings of cells with two targets, shuffled by `seed`; a larger fraction
    only adds cells, and at 1 the test pairs have training cells too. Cells with one target or none: train and
    val only.
    """
    _fractions(fraction=fraction, test_pairs=test_pairs, test_fraction=test_fraction)
    pair_cells, other_cells, identity = _norman_cells(obs)
    pairs = np.unique(identity[pair_cells])
    np.random.default_rng(seed).shuffle(pairs)
    test_part = pairs[len(pairs) - ceil(_exact(test_pairs * len(pairs))) :]
    train_part = pairs[: floor(_exact(fraction * len(pairs)))]
    train, val, test = three_ways(pair_cells, test_fraction, test_fraction, seed)
    other_val, other_train = _cut(other_cells, test_fraction, seed)
    return _table(
        obs,
        train=np.concatenate([other_train, train[np.isin(identity[train], train_part)]]),
        val=np.concatenate([other_val, val[np.isin(identity[val], train_part)]]),
        test=test[np.isin(identity[test], test_part)],
    )


def norman_efficiency(obs: pd.DataFrame, *, fraction: float, seed: int, test_fraction: float = 0.2) -> pd.DataFrame:
    """Task B: few cells of pairs. The first `fraction` of the pairs' training cells; val and test are the
    same for all."""
    _fractions(fraction=fraction, test_fraction=test_fraction)
    pair_cells, other_cells, _ = _norman_cells(obs)
    train, val, test = three_ways(pair_cells, test_fraction, test_fraction, seed)
    other_val, other_train = _cut(other_cells, test_fraction, seed)
    return _table(
        obs,
        train=np.concatenate([other_train, train[: floor(_exact(fraction * len(train)))]]),
        val=np.concatenate([other_val, val]),
        test=test,
    )


def held_out(
    obs: pd.DataFrame,
    conditions: Sequence[str] = (),
    *,
    combinations_of: Sequence[str] = (),
    separator: str = "",
    test_fraction: float = 0.2,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """All cells of `conditions`, and of the combinations with one of `combinations_of`, are test cells.

    The others are split at random (test_fraction 0: no other test cells). A condition may name its parts in any
    order. The single perturbations of `combinations_of` stay where they are: without a cell of them there is
    nothing to learn their effect from.
    """
    known = sorted(set(obs["condition"].astype(str)))
    out = [_known(name, known, separator) for name in conditions]
    parts = {name: name.split(separator) for name in known if separator and separator in name}
    if combinations_of and not parts:
        raise ConfigError("combinations_of: the screen has no combinations.")
    for name in combinations_of:
        with_it = [combination for combination, members in parts.items() if name in members]
        if not with_it:
            combined = sorted({member for members in parts.values() for member in members})
            raise ConfigError(f"combinations_of: no combination contains {name!r}.{nearest(name, combined)}")
        out += with_it
    is_out = obs["condition"].astype(str).isin(out).to_numpy()
    train, val, test = three_ways(np.flatnonzero(~is_out), test_fraction, val_fraction, seed)
    return _table(obs, train=train, val=val, test=np.concatenate([test, np.flatnonzero(is_out)]))


def _known(condition: str, known: Sequence[str], separator: str) -> str:
    """The condition among `known` that a person means, who may write the parts of a combination in any order."""
    ordered = separator.join(sorted(condition.split(separator))) if separator else condition
    for name in (condition, ordered):
        if name in known:
            return name
    raise ConfigError(f"no cell has the condition {condition!r}.{nearest(condition, known)}")


def given(obs: pd.DataFrame) -> pd.DataFrame:
    """The split that the screen carries in obs.split (the simulations)."""
    if "split" not in obs:
        raise DataError(f"the screen's obs has no column 'split'.{nearest('split', obs.columns)}")
    split = obs["split"].astype(str).to_numpy()
    if wrong := sorted(set(split) - set(LABELS)):
        raise DataError(f"obs column 'split' has the values {some(wrong)}; allowed: {', '.join(LABELS)}.")
    return _table(obs, **{name: np.flatnonzero(split == name) for name in SPLITS})


def make_split(
    obs: pd.DataFrame,
    *,
    kind: str,
    split_seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float = 0.2,
    fraction: float = 1.0,
    test_pairs: float = 0.25,
    conditions: Sequence[str] = (),
    combinations_of: Sequence[str] = (),
    path: str | Path | None = None,
    separator: str = "",
) -> pd.DataFrame:
    """The split that a ``SplitConfig`` describes; DataError where one of train, val and test has no cell.

    ``separator``: what joins the combinations in obs.condition.
    """
    if "split" in obs and kind != "given":
        log.warning("obs has a column 'split', which a split of kind %r does not look at (kind: given does)", kind)
    if kind == "random":
        split = random_split(obs, test_fraction=test_fraction, val_fraction=val_fraction, seed=split_seed)
    elif kind == "held_out":
        out = {"combinations_of": combinations_of, "separator": separator}
        shares = {"test_fraction": test_fraction, "val_fraction": val_fraction}
        split = held_out(obs, conditions, **out, **shares, seed=split_seed)
    elif kind == "norman_ood":
        split = norman_ood(obs, fraction=fraction, seed=split_seed, test_pairs=test_pairs, test_fraction=test_fraction)
    elif kind == "norman_efficiency":
        split = norman_efficiency(obs, fraction=fraction, seed=split_seed, test_fraction=test_fraction)
    elif kind == "given":
        split = given(obs)
    elif kind == "file":
        split = by_hand(obs, path, separator=separator)
    else:
        raise ConfigError(f"split.kind: {kind!r} is not known.{nearest(kind, KINDS)}")
    for name in SPLITS:
        if not (split["split"] == name).any():
            hint = {"given": "change the column", "file": "name some in the table"}.get(kind, "change its fractions")
            raise DataError(f"the split {kind!r} of {len(obs)} cells leaves no {name!r} cell; {hint}.")
    if never := untrained(split, separator):
        log.warning("the split %r has no training cell of %s, whose effects no model can learn", kind, some(never))
    return split


def untrained(split: pd.DataFrame, separator: str = "") -> list[str]:
    """The parts of the conditions, perturbations and the control, that no training cell received."""

    def parts(conditions: pd.Series) -> set[str]:
        return {part for name in conditions.unique() for part in (name.split(separator) if separator else [name])}

    return sorted(parts(split["condition"]) - parts(split["condition"][split["split"] == "train"]))


def summary(split: pd.DataFrame) -> pd.DataFrame:
    """Cells and conditions of each split, 'none' included (rows: split; columns: cells, conditions)."""
    groups = split.groupby("split")
    table = pd.DataFrame({"cells": groups.size(), "conditions": groups["condition"].nunique()})
    return table.reindex(list(LABELS), fill_value=0).rename_axis("split").reset_index()


def write_split(split: pd.DataFrame, path: str | Path) -> None:
    write_frame(split, path)


def by_hand(obs: pd.DataFrame, path: str | Path, *, separator: str = "") -> pd.DataFrame:
    """The split in a table that a person has written: columns `split` and `cell`, or `split` and `condition`.

    Rows in any order, further columns are not looked at; with both columns `cell` counts. Cells that no row names
    are 'none'. Cells that the screen does not have are left out, as the filter may have dropped them; a condition
    that it does not have is a DataError, and so is a table that names no cell of the screen. The log says how many.
    """
    table = hand_table(path, dtype=str, keep_default_na=False)
    key = "cell" if "cell" in table else "condition"
    for column in (key, "split"):
        if column not in table:
            there = f"its columns: {some(table.columns)}"
            raise DataError(f"{path}: needed are the columns 'split' and 'cell' (or 'condition'); {there}.")
    names, labels = table[key].str.strip(), table["split"].str.strip()
    if wrong := sorted(set(labels) - set(LABELS)):
        raise DataError(f"{path}: column 'split' has the values {some(wrong)}; allowed: {', '.join(LABELS)}.")
    if key == "condition":
        known = sorted(set(obs["condition"].astype(str)))
        try:
            names = names.map(lambda name: _known(name, known, separator))
        except ConfigError as error:
            raise DataError(f"{path}: column 'condition': {error}") from None
    if names.duplicated().any():
        raise DataError(f"{path}: column {key!r} names more than once {some(names[names.duplicated()].unique())}.")

    label_of = dict(zip(names, labels, strict=True))
    there = obs.index.astype(str) if key == "cell" else obs["condition"].astype(str)
    split = np.array([label_of.get(name, "none") for name in there], dtype=object)
    unnamed, lost = sum(name not in label_of for name in there), len(set(label_of) - set(there))
    if unnamed == len(obs):
        examples = f"it names {some(names, 2)}; the screen has {some(there, 2)}"
        raise DataError(f"{path}: column {key!r} has none of the {len(obs)} cells of the screen: {examples}.")
    if unnamed:
        log.warning("%s: %d of %d cells are not in it: they are 'none', which nothing uses", path, unnamed, len(obs))
    if lost:
        log.warning("%s: %d of its cells are not in the screen", path, lost)
    return _table(obs, **{name: np.flatnonzero(split == name) for name in SPLITS})


def hand_table(path: str | Path, **options) -> pd.DataFrame:
    """A table from a person's hand, commas in a .csv and tabs elsewhere; `options` of pandas.read_csv."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    try:
        return pd.read_csv(path, sep="," if Path(path).suffix == ".csv" else "\t", **options)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable table ({reason}).") from error


def three_ways(
    cells: np.ndarray, test_fraction: float, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """train, val, test parts of `cells`, each in the order in which train_test_split returns it."""
    _fractions(test_fraction=test_fraction, val_fraction=val_fraction)
    test, rest = _cut(cells, test_fraction, seed)
    val, train = _cut(rest, val_fraction, seed)
    return train, val, test


def _cut(cells: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(`fraction` of the cells, the rest); the rest is rounded down, as by train_size = 1 - fraction."""
    rest = floor(_exact((1 - fraction) * len(cells)))
    if rest in (0, len(cells)):  # an empty side, which scikit-learn refuses
        return (cells, cells[:0]) if rest == 0 else (cells[:0], cells)
    kept, cut = train_test_split(cells, train_size=rest, random_state=seed)
    return cut, kept


def _exact(product: float) -> float:
    """0.1 * 30 is a little above 3: take that off before rounding up or down."""
    return round(product, 9)


def _fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: {value!r} is not allowed; allowed: a number from 0 to 1.")


def _norman_cells(obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of the cells with two targets, of those with one or none, and guide_identity (n)."""
    for column in ("n_targets", "guide_identity"):
        if column not in obs:
            raise DataError(f"the screen's obs has no column {column!r}.{nearest(column, obs.columns)}")
    n_targets = obs["n_targets"].to_numpy(int)
    identity = obs["guide_identity"].astype(str).to_numpy()
    return np.flatnonzero(n_targets == 2), np.flatnonzero(n_targets < 2), identity


def _table(obs: pd.DataFrame, **parts: np.ndarray) -> pd.DataFrame:
    split = np.full(len(obs), "none", dtype=object)
    for name, rows in parts.items():
        split[rows] = name
    return pd.DataFrame({"cell": obs.index.to_numpy(str), "condition": obs["condition"].to_numpy(str), "split": split})
