"""Interactions of pairs of perturbations, each side with its own singles and control (S12).

Letters: G genes, C conditions, P most perturbations of a condition, S pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from samsvae.errors import DataError
from samsvae.evaluation.metrics.estimates import LEAST_FOR_VARIANCE, Moments, Weights


class Interactions(NamedTuple):
    """``rows`` (S,): conditions of the pairs; ``singles`` (S, 2): conditions of their members; ``value``, ``se2``
    (S, G): the interaction and its squared standard error."""

    rows: np.ndarray
    singles: np.ndarray
    value: np.ndarray
    se2: np.ndarray


class Fit(NamedTuple):
    """Coefficients of gi_fit for each pair, (S,) each."""

    c1: np.ndarray
    c2: np.ndarray
    magnitude: np.ndarray
    explained: np.ndarray


def pairs_with_singles(members: np.ndarray, defined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Conditions of two perturbations that were both measured alone: rows (S,), and the rows of the singles (S, 2).

    ``members`` (C, P): perturbations of each condition, padded with -1. ``defined`` (C,) bool: conditions with enough
    cells. Singles are in the order of ``members``.
    """
    members = np.asarray(members)
    if members.ndim != 2 or np.shape(defined) != (len(members),):
        raise DataError(f"members {members.shape} must be (conditions, perturbations), with one flag per condition.")
    number = (members >= 0).sum(1)
    alone = {int(members[c].max()): c for c in np.flatnonzero(defined & (number == 1))}
    found = []
    for c in np.flatnonzero(defined & (number == 2)):
        a, b = (int(p) for p in members[c] if p >= 0)
        if a in alone and b in alone:
            found.append((c, alone[a], alone[b]))
    table = np.array(found, int).reshape(-1, 3)
    return table[:, 0], table[:, 1:]


def pair_interactions(
    moments: Moments,
    members: np.ndarray,
    *,
    control: int = 0,
    controls: Moments | None = None,
    weights: Weights | None = None,
) -> Interactions:
    """I = m_ab - m_a - m_b + m_0 of one set of cells, with e^2 = q_ab + q_a + q_b + q_0 (S12).

    ``moments``: of that set. ``members`` (C, P). ``controls``: where the control comes from, by default ``moments``.
    ``weights``: those of the controls, if the moments are those of matched cells; q_0 is then that of w_ab - w_a - w_b.
    Compare observed and predicted interactions that each come from their own singles and control: sharing the data's
    singles would share their noise, and then even "no change" correlates. DataError if the control has fewer than 2
    cells.
    """
    source = moments if controls is None else controls
    if source.n[control] < LEAST_FOR_VARIANCE:
        raise DataError(f"The control has {source.n[control]} of the chosen cells; interactions need at least 2.")
    rows, singles = pairs_with_singles(members, moments.n >= LEAST_FOR_VARIANCE)
    n = np.maximum(moments.n, 1)[:, None]
    own = moments.variance / n
    a, b = singles.T
    mean = moments.mean
    value = mean[rows] - mean[a] - mean[b] + source.mean[control]
    if weights is None:
        of_control = source.variance[control] / source.n[control]
    else:
        of_control = weights.se2(weights.of[rows] - weights.of[a] - weights.of[b])
    se2 = own[rows] + own[a] + own[b] + of_control
    return Interactions(rows, singles, value, se2)


def gi_fit(both: np.ndarray, first: np.ndarray, second: np.ndarray) -> Fit:
    """Least squares d_ab = c1 d_a + c2 d_b over genes (S12): c1, c2, magnitude sqrt(c1^2 + c2^2), share explained.

    ``both``, ``first``, ``second`` (S, G): effects of the pairs and their singles over the detected genes. The share is
    1 - residual / sum of squares; NaN without an effect. DataError for other shapes or values that are not finite.
    """
    shapes = {np.shape(x) for x in (both, first, second)}
    if len(shapes) > 1 or np.ndim(both) != 2:
        raise DataError(f"Effects of pairs and singles must have one shape (pairs, genes); they have {sorted(shapes)}.")
    if not all(np.isfinite(x).all() for x in (both, first, second)):
        raise DataError("Effects of pairs and singles must be finite; leave out pairs without cells or singles.")
    fitted = np.full((4, len(both)), np.nan)
    for i, (ab, a, b) in enumerate(zip(both, first, second, strict=True)):
        design = np.stack([a, b], 1)
        c = np.linalg.lstsq(design, ab, rcond=None)[0]
        total = (ab**2).sum()
        explained = 1 - ((ab - design @ c) ** 2).sum() / total if total else np.nan
        fitted[:, i] = *c, np.hypot(*c), explained
    return Fit(*fitted)
