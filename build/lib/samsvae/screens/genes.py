"""Chooses genes: the most variable ones, or those in a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.screens.counts import Counts
from samsvae.screens.user_tables import read_list


def most_variable(counts: Counts, rows: np.ndarray, n: int, *, at_most: bool = False) -> np.ndarray:
    """Sorted column positions of the n most variable genes in the given rows, by scanpy's rule 'seurat_v3'.

    The score of a gene is its variance, with counts clipped at sqrt(n cells) standard deviations above the mean,
    divided by the variance that a loess of log variance on log mean predicts. Two passes over the tiles, so memory
    never holds all counts (scanpy holds them more than twice). The span is 0.3 as in scanpy; on some panels with few
    or rare genes that fit is singular, and a wider span is used. With `at_most`, all genes that vary if they are fewer.
    DataError if fewer than n genes vary otherwise, or if every span fails.
    """
    from skmisc.loess import loess  # slow to import, used only here

    sums, squares = _moments(counts, rows)
    cells = len(rows)
    mean = sums / cells
    variance = (squares / cells - mean**2) * cells / max(cells - 1, 1)
    varies = variance > 1e-12  # rounding may leave a constant gene above 0
    if at_most:
        n = min(n, max(1, int(varies.sum())))
    if n > varies.sum():
        raise DataError(
            f"{counts.what}: genes: {n} requested, but only {int(varies.sum())} genes vary between the {cells} cells "
            "used to choose them. Request fewer genes, give a list, or use 'all'."
        )
    for span in (0.3, 0.5, 1.0):
        try:
            fit = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=span, degree=2)
            fit.fit()
            break
        except ValueError as error:
            reason = error
    else:
        raise DataError(
            f"{counts.what}: genes: {n}: the choice by seurat_v3 failed ({reason}). Give a list of genes, or 'all'."
        ) from reason
    expected = np.ones_like(mean)
    expected[varies] = 10**fit.outputs.fitted_values
    top = mean + np.sqrt(expected * cells)

    sums, squares = _moments(counts, rows, top)
    score = (cells * mean**2 + squares - 2 * sums * mean) / ((cells - 1) * expected)
    return np.sort(np.argsort(-np.where(varies, score, -1.0), kind="stable")[:n])


def _moments(counts: Counts, rows: np.ndarray, top: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of every gene over the rows, (G,) each; counts are clipped at `top` (G) if given."""
    every = np.arange(len(counts.genes))
    sums, squares = np.zeros((2, len(every)))
    for _, at, block in counts.tiles(rows, every):
        values = block.astype(np.float64)
        if top is not None:
            values.data = np.minimum(values.data, top[at][values.indices])
        sums[at] += np.asarray(values.sum(0)).ravel()
        squares[at] += np.asarray(values.power(2).sum(0)).ravel()
    return sums, squares


def gene_positions(names: Sequence[str], var: pd.Index, source: str | Path) -> np.ndarray:
    """Sorted column positions of genes given by name; DataError for a name that the source does not have."""
    at = var.get_indexer(list(names))
    if (at < 0).any() or not len(at):
        missing = [name for name, i in zip(names, at, strict=True) if i < 0]
        hint = nearest(missing[0] if missing else "", var)
        raise DataError(f"{source}: has no gene {some(missing)}, which the option genes requests.{hint}")
    return np.sort(at)


def read_names(path: str | Path) -> list[str]:
    """The distinct names in a text file with one name per line.

    ConfigError if there is no such file, DataError if it is not text.
    """
    if not Path(path).is_file():
        raise ConfigError(
            f"genes: {str(path)!r} is not allowed: no such file. Allowed: 'auto', 'all', a number, a list, a file with "
            "one name per line."
        )
    return read_list(path)
