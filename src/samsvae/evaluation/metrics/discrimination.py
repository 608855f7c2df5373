"""Is a prediction closer to its own condition than to the others? (S5)

Letters: G genes, S scored conditions.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from samsvae.errors import DataError
from samsvae.evaluation.metrics.agreement import TINY
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS
from samsvae.evaluation.metrics.estimates import checked_effects

MEASURES = ("cosine", "l1", "l2")


def discrimination(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    measure: str = "cosine",
    targets: np.ndarray | None = None,
    least: int = LEAST_CONDITIONS,
) -> np.ndarray:
    """1 - k / (S - 1) with k the mid-rank of the right condition by distance to each prediction (S5): (S,).

    1: the right one is the closest; .5 says nothing, and is the mean of a constant prediction. ``truth``, ``predicted``
    (S, G): effects at one reference, centred for the headline. ``measure``: ``cosine`` (distance 1 if a norm is at most
    1e-12), ``l1`` or ``l2``. ``targets``: genes (indices; -1: none) that the whole panel targets; they are left out,
    since leaving out only a condition's own would reward predicting the targets of the others. Distances within
    1e-12 max(1, distance) are equal. DataError for other shapes, values that are not finite, fewer than ``least``
    conditions, another measure, or if no gene is left.
    """
    checked_effects(truth, predicted, least=max(2, least))
    keep = np.ones(truth.shape[1], bool)
    if targets is not None:
        targets = np.asarray(targets)
        if targets.size and targets.max() >= len(keep):
            raise DataError(f"A target is gene {targets.max()}, but there are only {len(keep)} genes (from 0).")
        keep[targets[targets >= 0]] = False
    if not keep.any():
        raise DataError("Every gene is a target of the panel, so that none is left for the discrimination.")
    distance = _distances(predicted[:, keep], truth[:, keep], measure)
    own = np.diag(distance)[:, None]
    equal = np.abs(distance - own) <= TINY * np.maximum(1, np.abs(own))
    rank = ((distance < own) & ~equal).sum(1) + (equal.sum(1) - 1) / 2
    return 1 - rank / (len(truth) - 1)


def _distances(predicted: np.ndarray, truth: np.ndarray, measure: str) -> np.ndarray:
    """Distance from each prediction to each true effect, (S, S)."""
    if measure == "cosine":
        units = []
        for x in (predicted, truth):
            norm = np.linalg.norm(x, axis=1, keepdims=True)
            units.append(np.divide(x, norm, out=np.zeros_like(x), where=norm > TINY))
        return 1 - units[0] @ units[1].T
    if measure not in MEASURES:
        raise DataError(f"measure {measure!r} is unknown; allowed: {', '.join(MEASURES)}.")
    return cdist(predicted, truth, {"l1": "cityblock", "l2": "euclidean"}[measure])
