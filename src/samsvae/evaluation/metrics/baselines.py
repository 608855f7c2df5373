"""Predictions of perturbation effects that need no model: what a model has to beat, scored by the same code.

Letters: C conditions, P most perturbations in a condition, G genes. Effects are (C, G) matrices against
control.
"""

from __future__ import annotations

import numpy as np


def mean_of_perturbations(effects: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Every condition looks like the mean effect of the training conditions: (C, G) of equal rows.

    ``train`` (C,) says which rows are averaged; leave the control out of it.
    """
    return np.broadcast_to(effects[np.asarray(train, bool)].mean(0), effects.shape).copy()


def additive(singles: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Every condition is the sum of the effects of its perturbations, each given alone: (C, G).

    ``singles`` (C, G): effects, of which only the rows of single perturbations are read. ``members`` (C, P):
    the perturbations of each condition, -1 where there is none. NaN where one of them was never given alone;
    0 for the control.
    """
    given = members >= 0
    alone = np.flatnonzero(given.sum(1) == 1)
    n_perturbations = members.max(initial=-1) + 1
    effect_of = np.full((n_perturbations + 1, singles.shape[1]), np.nan)
    effect_of[members[alone].max(1)] = singles[alone]
    effect_of[-1] = 0.0  # what -1 refers to: no perturbation
    return effect_of[members].sum(1)
