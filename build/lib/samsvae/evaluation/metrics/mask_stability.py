"""Whether seeds find the same masks, and whether guides of a gene share one (S11 of docs/evaluation.md).

Letters: T perturbations, L latents (which may differ between seeds), R seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from samsvae.errors import DataError
from samsvae.evaluation.metrics.checked import checked

#: Permutations of the rows of the second mask, per pair of seeds.
PERMUTATIONS = 20

#: Permutations of the genes of guides.
SIBLING_PERMUTATIONS = 1000


@dataclass(frozen=True)
class MaskStability:
    """Agreement of the masks of R seeds, per pair of seeds in the order (0, 1), (0, 2), ... and as means."""

    jaccards: np.ndarray  #: (pairs,), of matched masks; NaN if both are empty
    nulls: np.ndarray  #: (pairs,), mean over permuted rows
    grams: np.ndarray  #: (pairs,), Pearson of the Jaccards of rows; NaN where one mask's are all equal
    density: np.ndarray  #: (R,), share of ones
    active_latents: np.ndarray  #: (R,), latents with a one

    def scores(self) -> dict[str, float]:
        """``jaccard``, ``null``, ``excess`` = (jaccard - null) / (1 - null), ``gram``, ``density``, ``active_latents``.

        Means over pairs or seeds. A mean is NaN if one of its pairs is NaN or there is one seed; ``excess`` is NaN also
        where the null is 1, as for masks of ones.
        """
        jaccard, null, gram = (
            float(np.mean(values)) if len(values) else np.nan for values in (self.jaccards, self.nulls, self.grams)
        )
        return {
            "jaccard": jaccard,
            "null": null,
            "excess": (jaccard - null) / (1 - null) if null < 1 else np.nan,
            "gram": gram,
            "density": float(np.mean(self.density)),
            "active_latents": float(np.mean(self.active_latents)),
        }


def mask_stability(masks: Sequence[np.ndarray], *, seed: int = 0, permutations: int = PERMUTATIONS) -> MaskStability:
    """Agreement of the masks (T, L) of R seeds, bool or probabilities that are cut at 0.5 (S11).

    The null permutes the perturbations of the second mask of a pair; one ``default_rng(seed)`` serves all pairs in
    their order. DataError if there is no mask, or if the numbers of perturbations differ.
    """
    if not len(masks):
        raise DataError("There is no mask; at least one is needed.")
    found = [_mask(f"masks[{i}]", mask) for i, mask in enumerate(masks)]
    if len(lengths := {len(mask) for mask in found}) > 1:
        raise DataError(f"masks have {sorted(lengths)} perturbations; the numbers must be equal.")
    rng = np.random.default_rng(seed)
    upper = np.triu_indices(len(found[0]), 1)
    rows = [row_jaccards(mask)[upper] for mask in found]
    jaccards, nulls, grams = [], [], []
    for i, j in itertools.combinations(range(len(found)), 2):
        one, other = found[i], found[j]
        jaccards.append(matched_jaccard(one, other))
        permuted = (other[rng.permutation(len(other))] for _ in range(permutations))
        nulls.append(float(np.mean([matched_jaccard(one, shuffled) for shuffled in permuted])))
        grams.append(_pearson(rows[i], rows[j]))
    return MaskStability(
        jaccards=np.array(jaccards),
        nulls=np.array(nulls),
        grams=np.array(grams),
        density=np.array([mask.mean() for mask in found]),
        active_latents=np.array([mask.any(0).sum() for mask in found]),
    )


def matched_jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard index of masks (T, L) and (T, L'), latents matched by the assignment of largest total overlap (S11).

    NaN if both are empty. DataError if the numbers of perturbations differ.
    """
    one = _mask("one", one)
    other = _mask("other", other, len(one))
    overlap = one.T.astype(float) @ other
    shared = overlap[linear_sum_assignment(overlap, maximize=True)].sum()
    union = one.sum() + other.sum() - shared
    return float(shared / union) if union else np.nan


def row_jaccards(mask: np.ndarray) -> np.ndarray:
    """Jaccard index of the rows of a mask (T, L) with each other, (T, T); 0 for two empty rows."""
    mask = _mask("mask", mask).astype(float)
    shared, size = mask @ mask.T, mask.sum(1)
    union = size[:, None] + size - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


@dataclass(frozen=True)
class SiblingRank:
    """Whether guides of one gene share a mask more than guides of different genes."""

    rank: float  #: mean share of other genes' guides that are less similar than a sibling; 0.5 is chance, 1 the best
    null: float  #: mean of the rank over permuted genes
    p: float  #: share of permutations, and the data, with a rank at least as large
    n_guides: int  #: guides that have a sibling


def sibling_rank(
    mask: np.ndarray, gene: Sequence[object] | np.ndarray, *, seed: int = 0, permutations: int = SIBLING_PERMUTATIONS
) -> SiblingRank:
    """Rank of the guides of the same gene by the Jaccard index of their rows in a mask (T, L) (S11).

    ``gene`` (T,): the target of each guide. For a guide, the rank of a sibling is the share of the guides of other
    genes that are less similar to it, equal ones counted half; it is averaged over siblings, then over guides. The
    null permutes the genes (``default_rng(seed)``). NaN if no guide has both a sibling and a guide of another gene.
    DataError if the lengths differ.
    """
    similarity = row_jaccards(mask)
    if len(gene) != len(similarity):
        raise DataError(f"gene has {len(gene)} entries, but the mask has {len(similarity)} guides; they must be equal.")
    code = np.unique(np.asarray(gene, str), return_inverse=True)[1]
    same = code[:, None] == code
    np.fill_diagonal(same, False)
    siblings = same.sum(1)
    others = len(code) - 1 - siblings
    same[others == 0] = False
    guide, sibling = np.nonzero(same)
    n_guides = len(np.unique(guide))
    if not n_guides:
        return SiblingRank(np.nan, np.nan, np.nan, 0)
    np.fill_diagonal(similarity, -1)  # rank 1 is the guide itself
    ranks = pd.DataFrame(similarity).rank(axis=1).to_numpy() - 1
    # a rank sum counts pairs of siblings too: m (m + 1) / 2 of them
    weight = 1 / (siblings[guide] * others[guide] * n_guides)
    correction = float((weight * (siblings[guide] + 1) / 2).sum())
    rng = np.random.default_rng(seed)
    orders = [np.arange(len(code)), *(rng.permutation(len(code)) for _ in range(permutations))]
    rank, *null = (float(weight @ ranks[order[guide], order[sibling]]) - correction for order in orders)
    larger = sum(value >= rank - 1e-12 for value in null)
    mean = float(np.mean(null)) if null else np.nan
    return SiblingRank(rank, mean, (1 + larger) / (1 + len(null)), n_guides)


def _mask(name: str, values: np.ndarray, n_rows: int | str = "T") -> np.ndarray:
    return checked(name, values, (n_rows, "L")) > 0.5


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(a, b)[0, 1])
