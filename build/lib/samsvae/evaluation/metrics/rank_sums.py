"""Wilcoxon's rank sums of many groups against one, corrected for ties."""

from __future__ import annotations

import numpy as np


def _stable_order(values: np.ndarray) -> np.ndarray:
    """As np.argsort with kind 'stable'; cells at the minimum, most often without counts, are not sorted."""
    above = values > values.min()
    large = np.flatnonzero(above)
    return np.concatenate([np.flatnonzero(~above), large[np.argsort(values[large], kind="stable")]])


def rank_scores(Y: np.ndarray, group: np.ndarray, number: np.ndarray) -> np.ndarray:
    """z-scores of Wilcoxon's rank sums of groups 1 to C against group 0, corrected for ties, (g, C).

    Y (n, g): values. ``group`` (n,): 0 to C. ``number`` (C + 1,): cells per group. NaN where all values are equal, so
    that the variance is 0, and for groups without cells. There is no continuity correction.

    The cells of all groups are sorted once per gene. A cell's rank against control is the number of control cells with
    a smaller value plus half the number with an equal value. Equal cells of a group are counted together.
    """
    n, g = Y.shape
    by_group = np.argsort(group, kind="stable")
    values = np.ascontiguousarray(Y[by_group].T)
    order = np.stack([_stable_order(row) for row in values])  # among equal values, control comes first
    value, of = np.take_along_axis(values, order, 1), group[by_group][order]
    other = np.ones((g, n), bool)  # than the value before
    other[:, 1:] = value[:, 1:] != value[:, :-1]
    first = other.copy()
    first[:, 1:] |= of[:, 1:] != of[:, :-1]
    start = np.flatnonzero(first)  # of each set of equal cells in a group
    cells = np.diff(start, append=g * n).astype(float)
    of, gene, change = of.ravel()[start], start // n, other.ravel()[start]
    tie = np.cumsum(change) - 1  # number of the set of equal cells in any group
    control = np.bincount(tie, np.where(of == 0, cells, 0.0))
    below = np.cumsum(control) - control - gene[change] * number[0]
    place = gene * len(number) + of

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, g * len(number)).reshape(g, len(number))[:, 1:]

    wins = total((below + control / 2)[tie] * cells)
    equal = control[tie]
    ties = total((equal + cells) ** 3 - (equal + cells) - equal**3 + equal)
    ties += np.bincount(gene[change], control**3 - control, g)[:, None]
    both = number[0] + number[1:]
    variance = number[0] * number[1:] / 12 * (both + 1 - ties / (both * (both - 1)))
    # if all cells are equal, the variance is 0 up to rounding
    return np.where(variance > 1e-9 * both, wins - number[0] * number[1:] / 2, np.nan) / np.sqrt(np.abs(variance))
