"""Cells cut in two disjoint halves, controls too, and the effects of each half (S2).

Letters: n cells, G genes, C conditions, R repeats.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from samsvae.errors import DataError
from samsvae.evaluation.metrics.estimates import (
    Effects,
    Moments,
    Values,
    Weights,
    checked_cells,
    effects,
    level_shares,
    transformed,
)

REPEATS = 20


def halves(
    condition: np.ndarray,
    names: Sequence[str] | np.ndarray,
    *,
    cells: np.ndarray | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> np.ndarray:
    """The half of each cell in each repeat (S2): 0, 1, or -1 for cells that are left out, int8 (R, n).

    ``condition`` (n,): codes into ``names`` (C,). ``cells`` (n,) bool: the cells to cut, by default all. The cells of a
    condition in file order are permuted by ``default_rng([seed, repeat, crc32(name)])``; the first and the second
    floor(n / 2) are the halves.
    """
    chosen = np.ones(len(condition), bool) if cells is None else np.asarray(cells, bool)
    found = np.full((repeats, len(condition)), -1, np.int8)
    for c in np.unique(condition[chosen]):
        rows = np.flatnonzero(chosen & (condition == c))
        half = len(rows) // 2
        for r in range(repeats):
            order = np.random.default_rng([seed, r, zlib.crc32(str(names[c]).encode())]).permutation(len(rows))
            found[r, rows[order[:half]]] = 0
            found[r, rows[order[half : 2 * half]]] = 1
    return found


def half_effects(
    X: Values,
    condition: np.ndarray,
    n_conditions: int,
    half: np.ndarray,
    *,
    control: int = 0,
    method: str = "log2",
    level: np.ndarray | None = None,
) -> Iterator[tuple[Effects, Effects]]:
    """Effects of both halves in each repeat, each half against its own half of the controls (S2), R pairs.

    X (n, G): counts. ``condition`` (n,): codes. ``half`` (R, n): from halves. Each cell is transformed once. The
    pairs come one after the other, to save memory: make a list of them to use them twice. ``level`` (n,): codes of
    levels, if X are `Matched` cells; each half is then matched to its own controls. DataError if a half has fewer than
    2 control cells, or as in condition_moments.
    """
    condition, X = checked_cells(X, condition, n_conditions)
    if half.ndim != 2 or half.shape[1] != len(condition):
        raise DataError(f"The halves of {len(condition)} cells must be (repeats, cells); their shape is {half.shape}.")
    group = np.concatenate([half == 0, half == 1])  # (2 R, n)
    n = np.zeros((len(group), n_conditions), int)
    mean, variance = (np.full((len(group), n_conditions, X.shape[1]), np.nan) for _ in range(2))
    used = group.any(0)
    for c in np.unique(condition[used]):
        rows = np.flatnonzero(used & (condition == c))
        weights = group[:, rows].astype(float)
        n[:, c] = weights.sum(1)
        mean[:, c], variance[:, c] = _moments_of(X, rows, weights, method)
    shares = None if level is None else _level_controls(X, condition, level, group, control, method)
    for r in range(len(half)):
        yield tuple(  # type: ignore[misc]
            effects(Moments(n[i], mean[i], variance[i]), control=control)
            if shares is None or level is None
            else _rematched(Moments(n[i], mean[i], variance[i]), condition, level, group[i], control, *shares[i])
            for i in (r, r + len(half))
        )


def _level_controls(
    X: Values, condition: np.ndarray, level: np.ndarray, group: np.ndarray, control: int, method: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each group of cells, the mean of its controls in each level and its squared error, (J, G) each.

    NaN for a level with fewer than two of them.
    """
    n_levels = int(level.max()) + 1
    means, errors = (np.full((len(group), n_levels, X.shape[1]), np.nan) for _ in range(2))
    for j in range(n_levels):
        rows = np.flatnonzero(group.any(0) & (condition == control) & (level == j))
        if len(rows):
            weights = group[:, rows].astype(float)
            mean, variance = _moments_of(X, rows, weights, method)
            means[:, j] = np.where(np.isnan(variance), np.nan, mean)
            errors[:, j] = variance / np.maximum(weights.sum(1), 1)[:, None]
    return list(zip(means, errors, strict=True))


def _rematched(
    moments: Moments, condition: np.ndarray, level: np.ndarray, cells: np.ndarray, control: int, means: np.ndarray,
    errors: np.ndarray,
) -> Effects:  # fmt: skip
    """Effects of some cells against their own controls of the same levels, from moments of `Matched` cells.

    Matched cells are relative to all controls of a level; this replaces them by those among the ``cells`` (n,) bool.
    Conditions with cells in a level without such controls are NaN.
    """
    weights = Weights(level_shares(condition, level, cells, (len(moments.n), len(means))), np.nan_to_num(errors))
    found = effects(moments, control=control, weights=weights)
    silent = weights.of @ np.isnan(means) > 0
    delta = found.delta - weights.of @ np.nan_to_num(means) + moments.mean[control]
    return Effects(*(np.where(silent, np.nan, values) for values in (delta, found.se2, found.own)))


def _moments_of(X: Values, rows: np.ndarray, weights: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances (n - 1) of several groups of the cells ``rows`` (k,): (groups, G) each.

    ``weights`` (groups, k): 1 for the cells of a group, otherwise 0. Values count from the first cell, so that the
    variance loses no digits and is exactly 0 for a constant gene. NaN as in Moments.
    """
    n_genes = X.shape[1]
    total, squares = np.zeros((len(weights), n_genes)), np.zeros((len(weights), n_genes))
    first = np.zeros(n_genes)
    for at, y in transformed(X, rows, method):
        if at[0] == 0:
            first = y[0].copy()
        y -= first
        total += weights[:, at] @ y
        squares += weights[:, at] @ (y * y)
    n = weights.sum(1, dtype=float)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(n > 0, total / n, np.nan)
        variance = np.where(n >= 2, np.maximum(0, squares - total * mean) / (n - 1), np.nan)
    return mean + first, variance
