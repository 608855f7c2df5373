"""Can a metric tell a replicate from the mean effect on this screen? (S9)

Letters: G genes, S scored conditions, R repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from samsvae.errors import DataError
from samsvae.evaluation.metrics.constants import LEAST_BDS, LEAST_DRF
from samsvae.evaluation.metrics.estimates import Effects, centred, checked_effects

#: Repeats of the halves.
REPEATS = 5


class Calibration(NamedTuple):
    """How far a replicate lies from the mean effect, on the way to the best score.

    ``drf``: (mean negative - mean positive) / (mean negative - best) over all pairs. ``drf_median``: the same for each
    pair, its mean over repeats, then the median over conditions. ``bds``: share of pairs whose positive is better.
    ``n``: conditions with a defined pair.
    """

    drf: float
    drf_median: float
    bds: float
    n: int

    @property
    def ranks(self) -> bool:
        """Whether the metric may rank models on this screen; otherwise it is printed in grey."""
        return bool(self.bds >= LEAST_BDS and self.drf >= LEAST_DRF)


def calibrate(
    pairs: Iterable[tuple[Effects, Effects]],
    rows: np.ndarray,
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    reference: str,
    higher_is_better: bool,
) -> Calibration:
    """Calibration of a metric of effects on halves of all cells (S9).

    ``pairs``: from halves.half_effects, R of them; half A is the truth, half B the positive, the mean of half B's
    effects the negative (its centred effect is 0). ``rows``: the scored conditions. ``metric(truth, predicted)`` takes
    (S, G) each and returns (S,). ``higher_is_better``: whether it is an agreement (best 1) or an error (best 0).
    DataError for undefined effects or fewer than 3 conditions.
    """
    positive, negative = [], []
    for a, b in pairs:
        truth, replicate = a.delta[rows], b.delta[rows]
        checked_effects(truth, replicate)
        mean = np.broadcast_to(replicate.mean(0), replicate.shape)
        truth, replicate, mean = (centred(x, reference) for x in (truth, replicate, mean))
        positive.append(metric(truth, replicate))
        negative.append(metric(truth, mean))
    return calibration(np.array(positive), np.array(negative), higher_is_better=higher_is_better)


def calibration(positive: np.ndarray, negative: np.ndarray, *, higher_is_better: bool) -> Calibration:
    """Calibration from scores of replicates and of a prediction without signal, (R, S) each (S9).

    ``higher_is_better``: agreements, whose best value is 1; otherwise errors and distances, whose best value is 0. A
    pair that is undefined on both sides leaves (a constant truth). All NaN without a defined pair. DataError if the
    shapes differ or one side alone is NaN.
    """
    positive, negative = np.asarray(positive, float), np.asarray(negative, float)
    if positive.ndim != 2 or positive.shape != negative.shape:
        raise DataError(f"Scores must be (repeats, conditions); they have {positive.shape} and {negative.shape}.")
    if (np.isnan(positive) != np.isnan(negative)).any():
        raise DataError("A metric must be undefined for both predictions of a condition or for neither; correct it.")
    kept = ~np.isnan(positive)
    defined = kept.any(0)
    if not defined.any():
        return Calibration(np.nan, np.nan, np.nan, 0)
    pos, neg = (1 - x if higher_is_better else x for x in (positive, negative))
    each = np.divide(neg - pos, neg, out=np.full_like(neg, np.nan), where=neg != 0)
    each = np.where(kept, each, 0).sum(0)[defined] / kept.sum(0)[defined]
    drf = _range(pos[kept].mean(), neg[kept].mean())
    return Calibration(drf, float(np.median(each)), float((pos < neg)[kept].mean()), int(defined.sum()))


def _range(pos: float, neg: float) -> float:
    """Share of the way from the negative to the best value 0 that the positive goes; NaN if there is no way."""
    return float((neg - pos) / neg) if neg else float("nan")
