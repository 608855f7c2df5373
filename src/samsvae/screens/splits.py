"""Splits cells into training, validation and test cells: a table (cell, condition, split), rows in screen order.

split is 'train', 'val', 'test' or 'none' (an unused cell). Random cuts of row positions in file order are those of
scikit-learn's train_test_split, which reproduces the published splits cell by cell.

obs.attrs['controls'], which reading a screen sets, lists the labels that mean the control, its name first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.vocabulary import SPLIT_LABELS, SPLITS, UNPERTURBED
from samsvae.errors import ConfigError, DataError, nearest, quoted, some
from samsvae.files import write_frame
from samsvae.screens.context_split import held_out_context
from samsvae.screens.cuts import check_fractions, cut, evenly, exact, split_table, three_ways
from samsvae.screens.screen import text_of
from samsvae.screens.user_tables import read_user_table

log = logging.getLogger(__name__)

KINDS = ("random", "norman_ood", "norman_efficiency", "held_out", "held_out_context", "given", "file")


def random_split(
    obs: pd.DataFrame,
    *,
    test_fraction: float = 0.2,
    val_fraction: float = 0.2,
    seed: int = 0,
    stratified: bool = False,
) -> pd.DataFrame:
    """Split cells at random: `test_fraction` of all cells are test, then `val_fraction` of the rest are val.

    The published Replogle split is test_fraction 0.2, val_fraction 0.2, seed 0. ``stratified``: the same fractions of
    each condition, and in it of each level of the covariates, as nearly as whole cells allow. ConfigError for a
    fraction outside 0 to 1.
    """
    if stratified:
        return _stratified(obs, test_fraction, val_fraction, seed)
    return split_old(obs, np.ones(len(obs), bool), test_fraction, val_fraction, seed)


def _stratified(obs: pd.DataFrame, test_fraction: float, val_fraction: float, seed: int) -> pd.DataFrame:
    """A random split with the same fractions of each condition and level.

    Cells are shuffled and then sorted by condition and level, and every part takes them at even distances.
    """
    check_fractions(test_fraction=test_fraction, val_fraction=val_fraction)
    keys = ("condition", *obs.attrs.get("covariates", ()))
    groups = pd.MultiIndex.from_frame(pd.concat([text_of(obs[key]) for key in keys], axis=1))
    shuffled = np.random.default_rng(seed).permutation(len(obs))
    order = shuffled[np.argsort(pd.factorize(groups, sort=True)[0][shuffled], kind="stable")]
    test = evenly(order, test_fraction)
    rest = order[~np.isin(order, test)]
    val = evenly(rest, val_fraction)
    return split_table(obs, train=rest[~np.isin(rest, val)], val=val, test=test)


def column_split(obs: pd.DataFrame, column: str | None, seed: int, share: float = 0.2) -> np.ndarray:
    """The split of every cell (n): that of a column of obs, or a ``share`` of 'val', the rest 'train', without one.

    DataError if obs has no such column, or other values in it.
    """
    if column is None:
        parts = np.full(len(obs), "train", dtype="<U5")
        parts[three_ways(np.arange(len(obs)), 0.0, share, seed)[1]] = "val"
        return parts
    if column not in obs:
        raise DataError(f"split: obs has no column {column!r}.{nearest(column, obs.columns)}")
    parts = obs[column].astype(str).to_numpy(str)
    if odd := sorted(set(parts) - set(SPLIT_LABELS)):
        raise DataError(f"split: obs column {column!r} has the values {some(odd)}; allowed: {', '.join(SPLIT_LABELS)}.")
    return parts


def check_parts(parts: np.ndarray) -> None:
    """DataError if no cell is 'train' or 'val' (n)."""
    for name in ("train", "val"):
        if not (parts == name).any():
            raise DataError(f"split: no cell is {name!r}; training needs cells with 'train' and with 'val'.")


def norman_ood(
    obs: pd.DataFrame, *, fraction: float, seed: int, test_pairs: float = 0.25, test_fraction: float = 0.2
) -> pd.DataFrame:
    """Task A, unseen pairs: `fraction` of the pairs have training cells; the last `test_pairs` of them are test pairs.

    The pairs are the guide_identity strings of cells with two targets, shuffled by `seed`. A larger fraction only adds
    cells; at 1 the test pairs also have training cells. Cells with one target or none are only train and val. Cells
    with more targets are unused.

    DataError if obs lacks n_targets or guide_identity; ConfigError for a fraction outside 0 to 1.
    """
    check_fractions(fraction=fraction, test_pairs=test_pairs, test_fraction=test_fraction)
    pair_cells, other_cells, identity = _norman_cells(obs)
    pairs = np.unique(identity[pair_cells])
    np.random.default_rng(seed).shuffle(pairs)
    test_part = pairs[len(pairs) - ceil(exact(test_pairs * len(pairs))) :]
    train_part = pairs[: floor(exact(fraction * len(pairs)))]
    train, val, test = three_ways(pair_cells, test_fraction, test_fraction, seed)
    other_val, other_train = cut(other_cells, test_fraction, seed)
    return split_table(
        obs,
        train=np.concatenate([other_train, train[np.isin(identity[train], train_part)]]),
        val=np.concatenate([other_val, val[np.isin(identity[val], train_part)]]),
        test=test[np.isin(identity[test], test_part)],
    )


def norman_efficiency(obs: pd.DataFrame, *, fraction: float, seed: int, test_fraction: float = 0.2) -> pd.DataFrame:
    """Task B, few cells of each pair: the first `fraction` of the training cells of pairs; val and test stay the same.

    DataError if obs lacks n_targets or guide_identity; ConfigError for a fraction outside 0 to 1.
    """
    check_fractions(fraction=fraction, test_fraction=test_fraction)
    pair_cells, other_cells, _ = _norman_cells(obs)
    train, val, test = three_ways(pair_cells, test_fraction, test_fraction, seed)
    other_val, other_train = cut(other_cells, test_fraction, seed)
    return split_table(
        obs,
        train=np.concatenate([other_train, train[: floor(exact(fraction * len(train)))]]),
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
    """Use all cells of `conditions`, and of every combination that contains one of `combinations_of`, as test cells.

    The other cells are split at random (with test_fraction 0 they are never test cells). A condition may list its parts
    in any order, with control labels among them. The single perturbations in `combinations_of` are not held out,
    because their effect can only be learned from their own cells.

    ConfigError for a condition or perturbation that the screen does not have, or a fraction outside 0 to 1.
    """
    known = sorted(set(text_of(obs["condition"])))
    controls = obs.attrs.get("controls", ())
    perturbed = [name for name in known if name not in controls]  # the control is no suggestion of what to hold out
    out = [find_condition(name, known, separator, controls, perturbed) for name in conditions]
    parts = {name: name.split(separator) for name in known if separator and separator in name}
    if combinations_of and not parts:
        raise ConfigError("combinations_of: not allowed, because the screen has no combinations.")
    for name in combinations_of:
        combinations = [combination for combination, members in parts.items() if name in members]
        if not combinations:
            combined = sorted({member for members in parts.values() for member in members})
            raise ConfigError(f"combinations_of: no combination contains {quoted(name)}.{nearest(name, combined)}")
        out += combinations
    is_out = text_of(obs["condition"]).isin(out).to_numpy()
    split = split_old(obs, ~is_out, test_fraction, val_fraction, seed)
    return split.assign(split=split["split"].mask(is_out, "test"))


def split_old(obs: pd.DataFrame, old: np.ndarray, test_fraction: float, val_fraction: float, seed: int) -> pd.DataFrame:
    """A random split of the cells ``old`` (n,) bool; the others are 'none'."""
    train, val, test = three_ways(np.flatnonzero(old), test_fraction, val_fraction, seed)
    return split_table(obs, train=train, val=val, test=test)


def find_condition(
    condition: str, known: Sequence[str], separator: str, controls: Sequence[str], suggested: Sequence[str]
) -> str:
    """The condition in `known` that a user names; its parts may be in any order, with control labels among them.

    As in the labels of the source, with controls ['ctrl', 'NT'] 'B+ctrl+A' means 'A+B', and 'NT' means 'ctrl'.
    """
    parts = [part.strip() for part in condition.split(separator)] if separator else [condition]
    ordered = separator.join(sorted(parts))
    without = separator.join(sorted(set(parts) - set(controls)))
    if controls and (condition in controls or set(parts) <= set(controls)):
        without = controls[0]
    for name in (condition, ordered, without):
        if name in known:
            return name
    raise ConfigError(f"no cell has the condition {quoted(condition)}.{nearest(without, suggested)}")


def given(obs: pd.DataFrame) -> pd.DataFrame:
    """The split in the column split of obs, as in simulations; DataError if it is missing or has other values."""
    if "split" not in obs:
        raise DataError(f"the screen's obs has no column 'split'.{nearest('split', obs.columns)}")
    split = text_of(obs["split"]).to_numpy(object)
    if wrong := sorted(set(split) - set(SPLIT_LABELS)):
        raise DataError(f"obs column 'split' has the values {some(wrong)}; allowed: {', '.join(SPLIT_LABELS)}.")
    return split_table(obs, **{name: np.flatnonzero(split == name) for name in SPLITS})


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
    stratified: bool = False,
    context_column: str | None = None,
    context: str | None = None,
    separator: str = "",
) -> pd.DataFrame:
    """The split that a ``SplitConfig`` describes. ``separator``: the text between the parts of a combination.

    DataError if train, val or test has no cells, if the control has neither train nor val cells, or if obs or the table
    at ``path`` lacks something; ConfigError for a setting that is not allowed.
    """
    if "split" in obs and kind != "given":
        log.warning("obs has a column 'split', but a split of kind %r ignores it (kind: given uses it)", kind)
    how: dict[str, Any] = {"test_fraction": test_fraction, "val_fraction": val_fraction, "seed": split_seed}
    if kind == "random":
        split = random_split(obs, **how, stratified=stratified)
    elif kind == "held_out":
        split = held_out(obs, conditions, combinations_of=combinations_of, separator=separator, **how)
    elif kind == "held_out_context":
        if context_column is None or context is None:
            raise ConfigError("context_column and context: required for a split of kind 'held_out_context'.")
        split = held_out_context(obs, context_column, context, separator=separator, **how)
    elif kind == "norman_ood":
        split = norman_ood(obs, fraction=fraction, seed=split_seed, test_pairs=test_pairs, test_fraction=test_fraction)
    elif kind == "norman_efficiency":
        split = norman_efficiency(obs, fraction=fraction, seed=split_seed, test_fraction=test_fraction)
    elif kind == "given":
        split = given(obs)
    elif kind == "file":
        if path is None:
            raise ConfigError("split.path: missing; kind 'file' needs the path of a table.")
        split = from_file(obs, path, separator=separator)
    else:
        raise ConfigError(f"split.kind: {kind!r} is not known.{nearest(kind, KINDS)}")
    check_split(obs, split, kind, SPLITS)
    if never := untrained(split, separator):
        log.warning("the split %r has no training cells for %s; no model can learn their effects", kind, some(never))
    return split


def check_split(obs: pd.DataFrame, split: pd.DataFrame, kind: str, needed: Sequence[str]) -> None:
    """DataError if one of the ``needed`` splits has no cells, or the control neither train nor val cells."""
    for name in needed:
        if not (split["split"] == name).any():
            hint = {"given": "change the column", "file": "add some to the table"}.get(kind, "change its fractions")
            raise DataError(f"the split {kind!r} of {len(obs)} cells leaves no {name!r} cell; {hint}.")
    _check_control(obs, split, kind)


def _check_control(obs: pd.DataFrame, split: pd.DataFrame, kind: str) -> None:
    """DataError if the control has no training and no validation cell, against which effects are measured."""
    for control in obs.attrs.get("controls", ())[:1]:
        if not (split["condition"].eq(control) & split["split"].isin(["train", "val"])).any():
            raise DataError(
                f"the split {kind!r} leaves no 'train' or 'val' cell of the control {quoted(control)}, against which "
                "effects are measured; let some of its cells be 'train'."
            )


def untrained(split: pd.DataFrame, separator: str = "") -> list[str]:
    """The perturbations, and the control if there is one, that no training cell received, sorted."""

    def parts(conditions: pd.Series) -> set[str]:
        return {part for name in conditions.unique() for part in (name.split(separator) if separator else [name])}

    trained = parts(split["condition"][split["split"] == "train"]) | {UNPERTURBED}
    return sorted(parts(split["condition"]) - trained)


def summary(split: pd.DataFrame) -> pd.DataFrame:
    """Number of cells and conditions of each split, including 'none' (columns: split, cells, conditions)."""
    groups = split.groupby("split")
    table = pd.DataFrame({"cells": groups.size(), "conditions": groups["condition"].nunique()})
    return table.reindex(list(SPLIT_LABELS), fill_value=0).rename_axis("split").reset_index()


def write_split(split: pd.DataFrame, path: str | Path) -> None:
    """Write a split as a TSV: cell, condition, split, and further columns if it has them."""
    write_frame(split, path)


def from_file(obs: pd.DataFrame, path: str | Path, *, separator: str = "") -> pd.DataFrame:
    """Read a split from a user's table with the columns `split` and `cell`, or `split` and `condition`.

    Rows may have any order and further columns are ignored; if both columns exist, `cell` is used. Cells that the table
    does not list are 'none'. Cells that the screen does not have are ignored, because the filter may have dropped them.
    The numbers of both are logged.

    DataError if a column is missing, a value is not allowed, a name repeats, the screen lacks a condition, or the table
    lists no cell of the screen.
    """
    table = read_user_table(path)
    key = "cell" if "cell" in table else "condition"
    for column in (key, "split"):
        if column not in table:
            found = f"it has {some(table.columns)}"
            raise DataError(f"{path}: the columns 'split' and 'cell' (or 'condition') are needed, but {found}.")
    names, labels = table[key].str.strip(), table["split"].str.strip()
    if wrong := sorted(set(labels) - set(SPLIT_LABELS)):
        raise DataError(f"{path}: column 'split' has the values {some(wrong)}; allowed: {', '.join(SPLIT_LABELS)}.")
    if key == "condition":
        known, controls = sorted(set(text_of(obs["condition"]))), obs.attrs.get("controls", ())
        try:
            names = names.map(lambda name: find_condition(name, known, separator, controls, known))
        except ConfigError as error:
            raise DataError(f"{path}: column 'condition': {error}") from None
    if names.duplicated().any():
        raise DataError(f"{path}: column {key!r} lists more than once: {some(names[names.duplicated()].unique())}.")

    label_of = dict(zip(names, labels, strict=True))
    keys = obs.index.astype(str) if key == "cell" else text_of(obs["condition"])
    split = np.array([label_of.get(name, "none") for name in keys], dtype=object)
    unlisted, unknown = sum(name not in label_of for name in keys), len(set(label_of) - set(keys))
    if unlisted == len(obs):
        examples = f"it lists {some(names, 2)}; the screen has {some(keys, 2)}"
        raise DataError(f"{path}: column {key!r} has none of the {len(obs)} cells of the screen: {examples}.")
    if unlisted:
        log.warning("%s: does not list %d of %d cells; they become 'none' and are unused", path, unlisted, len(obs))
    if unknown:
        log.warning("%s: %d of the cells it lists are not in the screen", path, unknown)
    return split_table(obs, **{name: np.flatnonzero(split == name) for name in SPLITS})


def _norman_cells(obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the cells with two targets, positions of the cells with one or none, and guide_identity (n)."""
    for column in ("n_targets", "guide_identity"):
        if column not in obs:
            raise DataError(f"the screen's obs has no column {column!r}.{nearest(column, obs.columns)}")
    n_targets = obs["n_targets"].to_numpy(int)
    identity = text_of(obs["guide_identity"]).to_numpy(object)
    return np.flatnonzero(n_targets == 2), np.flatnonzero(n_targets < 2), identity
