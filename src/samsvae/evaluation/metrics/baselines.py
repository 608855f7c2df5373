"""Predictions of perturbation effects that need no model and that a model has to beat. The same code scores both.

Letters: C conditions, P largest number of perturbations in a condition, G genes. Effects (C, G) are against control.
"""

from __future__ import annotations

import numpy as np


def mean_of_perturbations(effects: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Predict the mean effect of the training conditions for every condition: equal rows (C, G).

    ``train`` (C,) marks the rows to average; it should not include the control.
    """
    return np.broadcast_to(effects[np.asarray(train, bool)].mean(0), effects.shape).copy()


def additive(singles: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Predict the sum of the effects of a condition's single perturbations: (C, G).

    ``singles`` (C, G): effects; only rows of single perturbations are read. ``members`` (C, P): the perturbations of
    each condition, padded with -1. A condition is NaN if one of its perturbations has no row of its own, and 0 if it
    has no perturbation (the control).
    """
    given = members >= 0
    alone = np.flatnonzero(given.sum(1) == 1)
    n_perturbations = members.max(initial=-1) + 1
    effect_of = np.full((n_perturbations + 1, singles.shape[1]), np.nan)
    effect_of[members[alone].max(1)] = singles[alone]
    effect_of[-1] = 0.0  # index -1: no perturbation
    return effect_of[members].sum(1)
