"""Average precision, in numpy: importing scikit-learn for it would double the start-up time of a job."""

from __future__ import annotations

import numpy as np


def average_precision(label: np.ndarray, score: np.ndarray) -> float:
    """Average precision of scores (D,) for labels (D,) bool, summed over distinct thresholds (S6).

    NaN if no label or every label is true, or if there is none.
    """
    label, score = np.asarray(label, bool), np.asarray(score)
    n_true = label.sum()
    if n_true in (0, len(label)):
        return np.nan
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of those with equal scores
    hits = np.cumsum(label[order])[last]
    return float(np.diff(hits, prepend=0) @ (hits / (last + 1)) / n_true)
