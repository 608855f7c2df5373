"""Random parts of cells, and the table of a split."""

from __future__ import annotations

from math import floor

import numpy as np
import pandas as pd

from samsvae.errors import ConfigError
from samsvae.screens.screen import text_of


def three_ways(
    cells: np.ndarray, test_fraction: float, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The train, val and test parts of `cells`, each in the order that train_test_split returns.

    ConfigError for a fraction outside 0 to 1.
    """
    check_fractions(test_fraction=test_fraction, val_fraction=val_fraction)
    test, rest = cut(cells, test_fraction, seed)
    val, train = cut(rest, val_fraction, seed)
    return train, val, test


def cut(cells: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(`fraction` of the cells, the rest); the size of the rest is rounded down, as with train_size = 1 - fraction."""
    rest = floor(exact((1 - fraction) * len(cells)))
    if rest in (0, len(cells)):
        return (cells, cells[:0]) if rest == 0 else (cells[:0], cells)
    # what train_test_split does; importing it takes longer than most splits
    order = np.random.RandomState(seed).permutation(len(cells))
    return cells[order[: len(cells) - rest]], cells[order[len(cells) - rest :]]


def evenly(cells: np.ndarray, fraction: float) -> np.ndarray:
    """A fraction of the cells, at even distances in their order."""
    taken = np.floor(np.round(fraction * np.arange(len(cells) + 1) + 0.5, 9))
    return cells[np.diff(taken) > 0]


def exact(product: float) -> float:
    """The product without its rounding error (0.1 * 30 is slightly above 3), to round up or down afterwards."""
    return round(product, 9)


def check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: {value!r} is not allowed; allowed: a number from 0 to 1.")


def split_table(obs: pd.DataFrame, **parts: np.ndarray) -> pd.DataFrame:
    """The split table; `parts`: the positions of the cells of each split, all other cells are 'none'."""
    split = np.full(len(obs), "none", dtype=object)
    for name, rows in parts.items():
        split[rows] = name
    condition = text_of(obs["condition"]).to_numpy(object)
    return pd.DataFrame({"cell": obs.index.astype(str).to_numpy(object), "condition": condition, "split": split})
