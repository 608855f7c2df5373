"""The intercept-only negative binomial, which knows only each gene's mean and dispersion.

Letters: n cells, G genes. The mean is m = l p_g + 1e-4 and the variance m + m^2 / theta_g. The floor 1e-4, the same as
in the models' decoder, keeps the likelihood finite for genes without training counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import digamma, gammaln

from samsvae.config.vocabulary import FLOOR

THETA = (1e-4, 1e6)  # bounds; a gene without counts ends at the first, an underdispersed one (Poisson) at the second

_STEPS = 28  # of the bisection, which finds log theta to 1e-7

_GENES, _BLOCK = 64, 2048  # genes fitted and cells scored at a time, to save memory


class InterceptNB(NamedTuple):
    """``proportion`` (G,) of a cell's counts in each gene, ``theta`` (G,) concentration."""

    proportion: np.ndarray
    theta: np.ndarray


def fit_intercept_nb(
    X: np.ndarray | sparse.spmatrix, library: np.ndarray, *, group: np.ndarray | None = None
) -> InterceptNB:
    """Fit counts X (n, G) with library (n,): p_g = counts / library sizes, theta_g by maximum likelihood given p_g.

    ``group`` (n,) codes from 0: theta is fitted given the profile of each cell's own group; p_g stays that of all.
    """
    X, library = sparse.csc_matrix(X, dtype=float), np.asarray(library, float)
    proportion = np.asarray(X.sum(0)).ravel() / library.sum()
    profiles, group = proportion[None], np.zeros(len(library), int) if group is None else np.asarray(group)
    if group.any():
        member = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))))
        profiles = (member @ X).toarray() / np.maximum(member @ library, 1.0)[:, None]  # a code may have no cell
    blocks = [slice(start, start + _GENES) for start in range(0, X.shape[1], _GENES)]
    theta = [_concentration(X[:, genes], library, profiles[:, genes], group) for genes in blocks]
    return InterceptNB(proportion, np.concatenate(theta))


def own_profile(
    X: np.ndarray | sparse.spmatrix, library: np.ndarray, fit: InterceptNB, *, mean_library: float
) -> InterceptNB:
    """The profile of a few cells X (k, G) with library (k,), shrunk towards that of ``fit``, whose theta it keeps.

    The profile of ``fit`` counts as one more cell, with the ``mean_library`` of the training cells.
    """
    counts = np.asarray(X.sum(0), float).ravel() + mean_library * fit.proportion
    return fit._replace(proportion=counts / (np.sum(library, dtype=float) + mean_library))


def _concentration(X: sparse.csc_matrix, library: np.ndarray, profiles: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Maximum likelihood theta (g,) of a block of genes (n, g), by bisection of the score in log theta.

    ``profiles`` (p, g), and which of them each cell has: ``profile`` (n,). The score depends on a cell only through its
    library size, its profile and, in a separate term, the gene's count. So cells with equal library sizes and profiles,
    and equal counts of a gene, are grouped first: exact, with far fewer terms.
    """
    codes, rank = np.unique(library, return_inverse=True)
    pairs, group, number = np.unique(profile * len(codes) + rank, return_inverse=True, return_counts=True)
    which, sizes = pairs // len(codes), codes[pairs % len(codes)]
    indicator = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), (len(sizes), len(group)))
    mean = sizes[:, None] * profiles[which] + FLOOR  # (sizes, g)
    excess = number[:, None] * mean - (indicator @ X).toarray()

    gene = np.repeat(np.arange(X.shape[1]), np.diff(X.indptr))
    base = int(X.max()) + 1
    pair, times = np.unique(gene * base + X.data.astype(np.int64), return_counts=True)
    gene, value = np.divmod(pair, base)

    low, high = (np.full(X.shape[1], np.log(bound)) for bound in THETA)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        theta = np.exp(middle)
        counted = np.bincount(gene, times * (digamma(value + theta[gene]) - digamma(theta[gene])), X.shape[1])
        score = counted + (excess / (theta + mean) - number[:, None] * np.log1p(mean / theta)).sum(0)
        low, high = np.where(score > 0, middle, low), np.where(score > 0, high, middle)
    return np.exp((low + high) / 2)


def intercept_nb_log_likelihood(fit: InterceptNB, X: np.ndarray | sparse.spmatrix, library: np.ndarray) -> np.ndarray:
    """log p(x) (n,) of held-out cells X (n, G), summed over genes. Its mean is comparable with an IWELBO."""
    library = np.asarray(library, float)
    rows = []
    for start in range(0, X.shape[0], _BLOCK):
        x = X[start : start + _BLOCK]
        x = x if isinstance(x, np.ndarray) else x.toarray()
        mean = library[start : start + _BLOCK, None] * fit.proportion + FLOOR
        rows.append(nb_log_prob(x.astype(float), mean, fit.theta).sum(1))
    return np.concatenate(rows)


def nb_log_prob(x: np.ndarray, mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """log NB(x; mean, concentration theta), elementwise (docs/model.md, eq. 2)."""
    counted = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    return counted - theta * np.log1p(mean / theta) + x * (np.log(mean) - np.log(theta + mean))
