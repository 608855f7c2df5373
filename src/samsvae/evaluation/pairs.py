"""Observed interactions of pairs of perturbations under a split (S12).

Letters: n cells, C conditions, P most perturbations of a condition, S pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from samsvae.evaluation.metrics.estimates import LEAST_FOR_VARIANCE, Moments, Weights
from samsvae.evaluation.metrics.halves import halves
from samsvae.evaluation.metrics.interactions import Interactions, pair_interactions


class Pairs(NamedTuple):
    """Interactions of the same S pairs: ``observed``, which score predictions, and those in ``every`` cell."""

    observed: Interactions
    every: Interactions


def cells_of_untested_singles(
    condition: np.ndarray, names: np.ndarray, members: np.ndarray, split: np.ndarray
) -> np.ndarray:
    """Cells that stand in for the test cells of single perturbations with fewer than two of them (S12): (n,) bool.

    They are the first half of the validation cells (`halves`). ``condition`` (n,): codes into ``names`` (C,).
    ``members`` (C, P): padded with -1. ``split`` (n,).
    """
    n = np.bincount(condition[split == "test"], minlength=len(names))
    untested = np.flatnonzero(((members >= 0).sum(1) == 1) & (n < LEAST_FOR_VARIANCE))
    cells = (split == "val") & np.isin(condition, untested)
    return halves(condition, names, cells=cells, repeats=1)[0] == 0


def observed_pairs(
    moments: Mapping[str, Moments],
    members: np.ndarray,
    scored: np.ndarray,
    *,
    control: int,
    controls: Moments,
    weights: Mapping[str, Weights],
) -> Pairs:
    """The interactions of the scored pairs that are observed together with both of their singles.

    ``moments``: of the ``test`` cells, of those that are ``instead`` of them (`cells_of_untested_singles`), and of
    ``every`` cell. ``members`` (C, P). ``scored``: codes of the scored conditions. ``control``: its code, and
    ``controls``: the moments that it has on the observed side. ``weights``: those of the controls, by the same names,
    if cells are matched; else {}.
    """
    instead = moments["instead"].n > 0
    either = (
        np.where(instead.reshape(-1, *[1] * (test.ndim - 1)), other, test)
        for test, other in zip(moments["test"], moments["instead"], strict=True)
    )
    both = weights.get("test")
    if both is not None:
        both = both._replace(of=np.where(instead[:, None], weights["instead"].of, both.of))
    observed = pair_interactions(Moments(*either), members, control=control, controls=controls, weights=both)
    observed = Interactions(*(values[np.isin(observed.rows, scored)] for values in observed))
    every = pair_interactions(moments["every"], members, control=control, weights=weights.get("every"))
    at = np.searchsorted(every.rows, observed.rows)  # what a part of the cells shows, all of them show
    return Pairs(observed, Interactions(*(values[at] for values in every)))
