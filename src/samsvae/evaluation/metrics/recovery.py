"""Recovery of a simulation's true masks and latents.

Letters: n cells, T perturbations, L true latents, L' learned latents. Learned latents come in any order and number, so
they are first matched to the true ones. The name of a mask score ends with the rule of the match:

* ``true-positives``: the Hungarian assignment with the most true positives of the mask (the SAMS-VAE paper's rule);
* ``correlation``: the Hungarian assignment with the largest sum of absolute correlations of the latents (the rule of
  the SVAE+ paper, with absolute values; its published code keeps the sign).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from samsvae.evaluation.metrics.constants import MATCHES, TARGETS

#: Indices of min(L, L') true latents, and of the learned latents matched to them.
Match = tuple[np.ndarray, np.ndarray]


def match_by_true_positives(true_mask: np.ndarray, found: np.ndarray) -> Match:
    """Match latents by their masks, (T, L) and (T, L')."""
    return linear_sum_assignment(true_mask.T.astype(float) @ found.astype(float), maximize=True)


def match_by_correlation(z_true: np.ndarray, z_learned: np.ndarray) -> Match:
    """Match latents by the absolute Pearson correlations of their values, (n, L) and (n, L')."""
    return linear_sum_assignment(absolute_correlation(z_true, z_learned), maximize=True)


def absolute_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|Pearson correlation| of the columns of a (n, L) and b (n, L'): (L, L'); 0 if one is constant."""
    a, b = (x - x.mean(0) for x in (np.asarray(a, float), np.asarray(b, float)))
    product = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return np.divide(np.abs(a.T @ b), product, out=np.zeros_like(product), where=product > 0)


def mask_scores(true_mask: np.ndarray, found: np.ndarray, match: Match) -> tuple[float, float, float]:
    """Precision, recall and F1 of an inferred mask (T, L') against the true one (T, L), under a match; 0/0 counts as 0.

    Entries of unmatched learned latents are false positives; entries of unmatched true latents are false negatives.
    """
    hits = np.count_nonzero(true_mask[:, match[0]].astype(bool) & found[:, match[1]].astype(bool))
    n_true, n_found = int(np.count_nonzero(true_mask)), int(np.count_nonzero(found))
    return hits / max(n_found, 1), hits / max(n_true, 1), 2 * hits / max(n_true + n_found, 1)


def all_ones_f1(true_mask: np.ndarray) -> float:
    """F1 of a mask of ones (recall 1, precision = density), which an inferred mask has to beat."""
    density = np.mean(np.asarray(true_mask, bool))
    return float(2 * density / (1 + density))


def largest_entries(embedding: np.ndarray, targets: int = TARGETS) -> np.ndarray:
    """A mask (T, L') that is 1 at the ``targets`` largest absolute values of each row of an embedding (T, L').

    This is how the SVAE+ paper reads the targets of iVAE, which infers no mask. On a tie, the first latents count.
    """
    size = np.abs(np.asarray(embedding, float))
    order = np.argsort(-size, axis=1, kind="stable")
    mask = np.zeros(size.shape)
    np.put_along_axis(mask, order[:, :targets], 1.0, axis=1)
    return mask


def mask_recovery(
    true_mask: np.ndarray,
    prob: np.ndarray,
    *,
    z_true: np.ndarray | None = None,
    z_learned: np.ndarray | None = None,
) -> dict[str, float]:
    """Precision, recall and F1 of the mask (probability > 0.5), with keys such as ``mask_f1/true-positives``, and its
    ``mask_density``. An empty mask has the scores 0.

    ``true_mask`` (T, L); ``prob`` (T, L'); ``z_true`` (n, L) and ``z_learned`` (n, L'), true values and posterior means
    in the same cells. Without both, there are no scores for the rule ``correlation``. ValueError if the shapes do not
    fit.
    """
    true_mask, found = np.asarray(true_mask, bool), np.asarray(prob) > 0.5
    if len(true_mask) != len(found):
        raise ValueError(
            f"true_mask has {len(true_mask)} perturbations, but prob has {len(found)}; the numbers must be equal."
        )
    by_masks, by_latents = MATCHES
    matches = {by_masks: match_by_true_positives(true_mask, found)}
    if z_true is not None and z_learned is not None:
        if z_true.shape[1] != true_mask.shape[1] or z_learned.shape[1] != found.shape[1]:
            raise ValueError("The masks and the values have different numbers of latents; they must be equal.")
        matches[by_latents] = match_by_correlation(z_true, z_learned)
    scores = {
        f"mask_{name}/{rule}": value
        for rule, match in matches.items()
        for name, value in zip(("precision", "recall", "f1"), mask_scores(true_mask, found, match), strict=True)
    }
    return scores | {"mask_density": float(found.mean())}


def latent_recovery(z_true: np.ndarray, z_learned: np.ndarray) -> dict[str, float]:
    """``mcc_pearson``, ``mcc_spearman`` and ``latent_r2`` of learned latents (n, L') against the true ones (n, L)."""
    ranks = (pd.DataFrame(z).rank().to_numpy() for z in (z_true, z_learned))
    return {
        "mcc_pearson": mean_correlation(z_true, z_learned),
        "mcc_spearman": mean_correlation(*ranks),
        "latent_r2": latent_r2(z_true, z_learned),
    }


def mean_correlation(z_true: np.ndarray, z_learned: np.ndarray) -> float:
    """MCC: mean over true latents of |correlation| with the matched learned latent (Hungarian), 0 if unmatched."""
    correlation = absolute_correlation(z_true, z_learned)
    return float(correlation[linear_sum_assignment(correlation, maximize=True)].sum() / len(correlation))


def latent_r2(z_true: np.ndarray, z_learned: np.ndarray) -> float:
    """Mean over true latents of the R2 of a linear regression (with intercept) on all learned latents."""
    y = np.asarray(z_true, float) - np.mean(z_true, 0, dtype=float)
    x = np.asarray(z_learned, float) - np.mean(z_learned, 0, dtype=float)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.mean(1 - (residual**2).sum(0) / (y**2).sum(0)))
