"""Splits for the transfer to new interventions: cells to adapt to, and cells to test on (section 1 of the design).

A new intervention is a condition that training never sees. Half of its cells, at random, are test cells; the others are
the pool, in one random order; an adaptation reads the first k.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import svds

from samsvae.config.splits import SplitConfig
from samsvae.config.vocabulary import LIBRARY, NEW_ADAPT, NEW_TEST
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.screens.screen import members, read_screen, read_tables, text_of
from samsvae.screens.splits import check_split, find_condition, given, make_split, split_old

log = logging.getLogger(__name__)

#: Test cells that a new intervention needs, as in the release of the SVAE+ paper.
LEAST_TEST_CELLS = 11

#: Cells of a condition that its strength is measured on, and principal components.
STRENGTH_CELLS, STRENGTH_COMPONENTS = 1000, 50


def split_screen(path: str | Path, settings: Mapping[str, Any]) -> pd.DataFrame:
    """The split of a screen's file by a `SplitConfig` as a dict: cell, condition, split; `add_new` says what else.

    In a split of kind 'transfer', the old cells have the split that the screen gives (simulations), or a random one. It
    may lack test cells. Errors as for `make_split`.
    """
    how, screen = SplitConfig(**settings), read_tables(path)
    if how.kind != "transfer":
        return make_split(screen.obs, separator=screen.uns["separator"], **how.of_cells())
    if how.strongest is not None:
        screen = read_screen(path)
    new = new_conditions(screen, last=how.last, pathway=how.pathway, strongest=how.strongest, conditions=how.conditions)
    is_new = text_of(screen.obs["condition"]).isin(new).to_numpy()
    if "split" in screen.obs:
        old = given(screen.obs)
    else:
        old = split_old(screen.obs, ~is_new, how.test_fraction, how.val_fraction, how.split_seed)
    split = add_new(old, new, new_cells=how.new_cells, seed=how.split_seed)
    check_split(screen.obs, split, how.kind, ("train", "val"))
    return split


def new_conditions(
    screen: ad.AnnData,
    *,
    last: int | None = None,
    pathway: str | None = None,
    strongest: int | None = None,
    conditions: Sequence[str] = (),
) -> list[str]:
    """The new interventions of a screen, by one of the four ways to choose them; ``strongest`` needs its counts.

    ConfigError if the screen lacks what is asked for.
    """
    if last is not None:
        return last_conditions(screen, last)
    if pathway is not None:
        return pathway_conditions(screen, pathway)
    if strongest is not None:
        return strongest_conditions(screen, strongest)
    known = sorted(set(text_of(screen.obs["condition"])))
    control, separator = screen.uns["control"], screen.uns["separator"]
    perturbed = [name for name in known if name != control]
    controls = screen.obs.attrs.get("controls", ())
    return [find_condition(name, perturbed, separator, controls, perturbed) for name in conditions]


def last_conditions(screen: ad.AnnData, n: int) -> list[str]:
    """The conditions of the last ``n`` perturbations by name; ConfigError unless some are left."""
    names = list(screen.uns["perturbations"].index)
    if n >= len(names):
        raise ConfigError(f"last: {n} is not allowed; the screen has {len(names)} perturbations, and some must be old.")
    return _with_any(screen, names[-n:])


def pathway_conditions(screen: ad.AnnData, pathway: str) -> list[str]:
    """The conditions with a perturbation of a pathway; ConfigError for a pathway that the annotation lacks."""
    table = screen.uns["perturbations"]
    known = sorted(set(table["pathway"]) - {""}) if "pathway" in table else []
    if pathway not in known:
        has = f"the annotation has {some(known)}" if known else "the perturbations have no annotation"
        raise ConfigError(f"pathway: {pathway!r} is not allowed; {has}.{nearest(pathway, known)}")
    return _with_any(screen, table.index[table["pathway"] == pathway])


def _with_any(screen: ad.AnnData, names: Sequence[str]) -> list[str]:
    """The conditions that contain one of the perturbations."""
    asked, control, separator = set(names), screen.uns["control"], screen.uns["separator"]
    known = sorted(set(text_of(screen.obs["condition"])))
    return [name for name in known if asked & set(members(name, separator, control))]


def strongest_conditions(screen: ad.AnnData, n: int) -> list[str]:
    """The ``n`` conditions whose mean is farthest from that of the control, strongest first.

    Means of log(1 + counts per 10,000) of at most the first 1,000 cells of each condition and of the control, in the 50
    principal components of these cells. ConfigError for too many conditions or a screen without control.
    """
    condition = text_of(screen.obs["condition"]).to_numpy(object)
    control = str(screen.uns["control"])
    names = sorted(set(condition) - {control})
    if not control or n >= len(names):
        raise ConfigError(
            f"strongest: {n} is not allowed; the screen has {len(names)} conditions"
            f"{'' if control else ' and no control to compare them with'}, and some must be old."
        )
    rank = pd.Series(condition).groupby(condition).cumcount().to_numpy()
    used = np.flatnonzero(rank < STRENGTH_CELLS)
    counts = sparse.csr_matrix(screen.X[used], dtype=float)
    size = np.asarray(counts.sum(1)).ravel()
    scaled = sparse.diags(LIBRARY / np.maximum(size, 1)) @ counts
    scores = _principal_components(scaled.log1p())
    mean = pd.DataFrame(scores).groupby(condition[used]).mean()
    strength = ((mean - mean.loc[control]) ** 2).sum(axis=1).drop(control)
    return list(strength.sort_values(ascending=False, kind="stable").index[:n])


def _principal_components(Y: sparse.csr_matrix) -> np.ndarray:
    """Scores (n, k) of cells Y (n, G) on their first principal components; distances do not depend on signs."""
    k = min(STRENGTH_COMPONENTS, min(Y.shape) - 1)
    mean = np.asarray(Y.mean(0)).ravel()
    centred = sparse.linalg.LinearOperator(
        Y.shape,
        matvec=lambda v: Y @ v.ravel() - mean @ v.ravel(),
        rmatvec=lambda u: Y.T @ u.ravel() - mean * u.sum(),
        dtype=float,
    )
    vectors = svds(centred, k, v0=np.ones(min(Y.shape)), return_singular_vectors="vh")[2]
    return Y @ vectors.T - mean @ vectors.T


def add_new(
    split: pd.DataFrame, new: Sequence[str], *, new_cells: int | Literal["all"] = 0, seed: int = 0
) -> pd.DataFrame:
    """A split of the old cells with the new interventions in it.

    ``split``: cell, condition, split. The cells of ``new`` conditions become 'none', and the columns transfer
    ('new_adapt', 'new_test' or '') and rank (of a cell in its pool, from 1; 0 elsewhere) are added. The first
    ``new_cells`` cells of each pool are training cells instead, a tenth of them, but at least one, for validation: that
    is the upper bound which trains on the new interventions too. Interventions with fewer than 11 test cells are left
    out with a warning. A condition's cells are drawn by the seed and its name. DataError if no intervention is left.
    """
    condition, label = split["condition"].to_numpy(object), split["split"].to_numpy(object).copy()
    part, rank = np.full(len(split), "", object), np.zeros(len(split), int)
    label[np.isin(condition, list(new))] = "none"
    few = []
    for name in new:
        cells = np.flatnonzero(condition == name)
        cells = cells[np.random.default_rng([seed, crc32(name.encode())]).permutation(len(cells))]
        test, pool = cells[: len(cells) // 2], cells[len(cells) // 2 :]
        if len(test) < LEAST_TEST_CELLS:
            few.append(name)
            continue
        part[test], part[pool] = NEW_TEST, NEW_ADAPT
        rank[pool] = np.arange(1, len(pool) + 1)
        known = pool if new_cells == "all" else pool[:new_cells]
        label[known] = "train"
        label[known[: max(1, len(known) // 10)]] = "val"
    if len(few) == len(new):
        raise DataError(
            f"the split 'transfer' has no new intervention with {LEAST_TEST_CELLS} test cells (half of its cells)."
        )
    if few:
        log.warning(
            "%d of %d new interventions have fewer than %d test cells and are left out: %s",
            *(len(few), len(new), LEAST_TEST_CELLS, some(few)),
        )
    return split.assign(split=label, transfer=part, rank=rank)
