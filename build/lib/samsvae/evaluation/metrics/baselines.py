"""Predictions of perturbation effects that need no model and that a model has to beat. The same code scores both.

Letters: C conditions, P largest number of perturbations in a condition, G genes. Effects (C, G) are against control.
"""

from __future__ import annotations

import numpy as np

from samsvae.errors import DataError


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


def no_change(shape: tuple[int, int]) -> np.ndarray:
    """Predict no effect (S4): zeros (C, G)."""
    return np.zeros(shape)


def shrunk(effects: np.ndarray, se2: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Training effects shrunk towards their mean mu by their own noise (S4): (C, G); NaN where untrained.

    mu + b (d - mu) with b = 1 - sum e^2 / sum (d - mu)^2 over genes, between 0 and 1. ``effects``, ``se2`` (C, G): of
    training cells. ``train`` (C,) marks the trained conditions. DataError if there are none or one is undefined.
    """
    trained = _trained(effects, train)
    apart = effects[trained] - effects[trained].mean(0)
    size, noise = (apart**2).sum(1), se2[trained].sum(1)
    b = np.clip(1 - np.divide(noise, size, out=np.ones_like(size), where=size > 0), 0, 1)
    found = np.full(effects.shape, np.nan)
    found[trained] = effects[trained].mean(0) + b[:, None] * apart
    return found


def matching_mean(effects: np.ndarray, members: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Mean over a condition's perturbations of their single effects; mu for one never trained alone (S4): (C, G).

    ``effects`` (C, G): of training cells. ``members`` (C, P): perturbations, padded with -1. ``train`` (C,) marks the
    trained conditions. NaN for a condition without perturbations. DataError as in shrunk.
    """
    trained = _trained(effects, train)
    given = members >= 0
    effect_of = np.tile(effects[trained].mean(0), (members.max(initial=-1) + 2, 1))
    alone = trained[given[trained].sum(1) == 1]
    effect_of[members[alone].max(1)] = effects[alone]
    effect_of[-1] = 0.0  # index -1: no perturbation
    number = given.sum(1, keepdims=True)
    return np.divide(effect_of[members].sum(1), number, out=np.full(effects.shape, np.nan), where=number > 0)


def ridge_pc(
    effects: np.ndarray, members: np.ndarray, train: np.ndarray, *, components: int = 10, penalty: float = 0.1
) -> np.ndarray:
    """Ridge regression of principal components of the training effects on the perturbations (S4): (C, G).

    mu + phi W V': the SVD of the trained effects minus mu gives ``components`` scores (fewer if a singular value is
    below 1e-10 of the first), which are regressed on the multi-hot dosages phi without an intercept. Arguments and
    errors as in matching_mean. NaN for a condition without a trained perturbation.
    """
    trained = _trained(effects, train)
    given = members >= 0
    dosage = np.zeros((len(members), members.max(initial=-1) + 1))
    np.add.at(dosage, (np.nonzero(given)[0], members[given]), 1.0)
    mu = effects[trained].mean(0)
    U, s, Vt = np.linalg.svd(effects[trained] - mu, full_matrices=False)
    k = min(components, int((s >= 1e-10 * s[0]).sum())) if s[0] > 0 else 0
    phi = dosage[trained]
    W = np.linalg.solve(phi.T @ phi + penalty * np.eye(phi.shape[1]), phi.T @ (U[:, :k] * s[:k]))
    silent = dosage[:, phi.sum(0) > 0].sum(1) == 0
    return np.where(silent[:, None], np.nan, mu + dosage @ W @ Vt[:k])


def _trained(effects: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Indices of the trained conditions."""
    train = np.asarray(train, bool)
    if effects.ndim != 2 or train.shape != (len(effects),) or not train.any():
        raise DataError(f"A baseline needs trained conditions; {train.sum()} of {len(effects)} are marked as trained.")
    if not np.isfinite(effects[train]).all():
        raise DataError("A training effect is not finite; mark only conditions with at least two training cells.")
    return np.flatnonzero(train)
