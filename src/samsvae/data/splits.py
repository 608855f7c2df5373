"""Who is trained on, validated on, tested on: a table (cell, condition, split), rows in screen order.

split is 'train', 'val', 'test' or 'none' (a cell that nothing uses). Cuts are scikit-learn's train_test_split
on row numbers in file order, so that the published splits come out to the cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.files import atomic
from samsvae.settings import SPLITS

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
    conditions: Sequence[str],
    *,
    test_fraction: float = 0.2,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """All cells of `conditions` are test; the others are split at random (test_fraction 0: no other test
    cells)."""
    known = sorted(set(obs["condition"].astype(str)))
    if unknown := [c for c in conditions if c not in known]:
        raise ConfigError(f"held_out: no cell has the condition {unknown[0]!r}.{nearest(unknown[0], known)}")
    out = obs["condition"].astype(str).isin(list(conditions)).to_numpy()
    train, val, test = three_ways(np.flatnonzero(~out), test_fraction, val_fraction, seed)
    return _table(obs, train=train, val=val, test=np.concatenate([test, np.flatnonzero(out)]))


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
    path: str | Path | None = None,
) -> pd.DataFrame:
    """The split that a ``SplitConfig`` describes; DataError where one of train, val and test has no cell."""
    if kind == "random":
        split = random_split(obs, test_fraction=test_fraction, val_fraction=val_fraction, seed=split_seed)
    elif kind == "held_out":
        shares = {"test_fraction": test_fraction, "val_fraction": val_fraction}
        split = held_out(obs, conditions, **shares, seed=split_seed)
    elif kind == "norman_ood":
        split = norman_ood(obs, fraction=fraction, seed=split_seed, test_pairs=test_pairs, test_fraction=test_fraction)
    elif kind == "norman_efficiency":
        split = norman_efficiency(obs, fraction=fraction, seed=split_seed, test_fraction=test_fraction)
    elif kind == "given":
        split = given(obs)
    elif kind == "file":
        split = read_split(path, obs.index)
    else:
        raise ConfigError(f"split.kind: {kind!r} is not known.{nearest(kind, KINDS)}")
    for name in SPLITS:
        if not (split["split"] == name).any():
            raise DataError(f"the split {kind!r} of {len(obs)} cells leaves no {name!r} cell; change its fractions.")
    return split


def summary(split: pd.DataFrame) -> pd.DataFrame:
    """Cells and conditions of each split, 'none' included (rows: split; columns: cells, conditions)."""
    groups = split.groupby("split")
    table = pd.DataFrame({"cells": groups.size(), "conditions": groups["condition"].nunique()})
    return table.reindex(list(LABELS), fill_value=0).rename_axis("split").reset_index()


def write_split(split: pd.DataFrame, path: str | Path) -> None:
    with atomic(path) as aside:
        split.to_csv(aside, sep="\t", index=False)


def read_split(path: str | Path, cells: Sequence[str] | None = None) -> pd.DataFrame:
    """A split table; DataError if it is malformed, or not of the given `cells` in their order."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    split = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if list(split.columns) != ["cell", "condition", "split"]:
        raise DataError(f"{path}: the columns are {some(split.columns)}; allowed: cell, condition, split.")
    if wrong := sorted(set(split["split"]) - set(LABELS)):
        raise DataError(f"{path}: column 'split' has the values {some(wrong)}; allowed: {', '.join(LABELS)}.")
    if cells is not None and list(split["cell"]) != list(cells):
        raise DataError(f"{path}: column 'cell' is not the {len(cells)} cells of the screen in their order.")
    return split


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
