"""Paired comparisons of transfers to new perturbations, and the verdict on the claim of the SVAE+ paper, in words.

Differences vary for two reasons, and each has its own test: trainings differ by their seed (t test of the means of the
seeds), and perturbations differ (sign test of the means of the perturbations). A difference counts if both are below
LEVEL and agree in sign. The claim names several methods to beat; it holds if each is beaten (an intersection-union
test, which needs no correction for their number).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, ttest_1samp

#: With fewer seeds nothing is decided: trainings that differ in their seed alone differ as much as methods do.
LEAST_SEEDS = 5
LEVEL = 0.05

#: Methods of the SVAE+ paper with its sparse-mechanism-shift prior, and the methods they are compared with.
SPARSE = ("svae_plus_lopez", "svae")
OTHERS = ("ivae", "ivae_drawn", "beta_vae", "vae")

HOLDS, ONLY_RELEASED, FAILS, UNDECIDED = "holds", "holds only as released", "does not hold", "undecided"
BETTER, WORSE = "better", "worse"


class Comparison(NamedTuple):
    """The mean difference of two predictors (positive: the first is better), with the p-values of both tests.

    ``perturbations``, ``p_perturbations``: 0 and NaN for a score that has no perturbations.
    """

    difference: float
    seeds: int
    perturbations: int
    p_seeds: float
    p_perturbations: float
    outcome: str


def compare(differences: pd.DataFrame) -> Comparison:
    """Test paired differences over seeds and over perturbations (two-sided).

    ``differences``: the columns seed, value and, unless the score has no perturbations, perturbation. The t test reads
    the mean of each seed, the sign test that of each perturbation; perturbations without a difference leave it.
    """
    seeds = differences.groupby("seed")["value"].mean().to_numpy()
    mean = float(seeds.mean()) if len(seeds) else float("nan")
    p_seeds = _t_test(seeds)
    signs, p_signs, n = np.sign(mean), float("nan"), 0
    if "perturbation" in differences:
        each = differences.groupby("perturbation")["value"].mean().to_numpy()
        n, signs, p_signs = len(each), np.sign(np.sign(each).sum()), sign_test(each)
    low = p_seeds < LEVEL and signs == np.sign(mean) and (np.isnan(p_signs) or p_signs < LEVEL)
    outcome = (BETTER if mean > 0 else WORSE) if low else UNDECIDED
    if len(seeds) < LEAST_SEEDS:
        outcome = too_few(len(seeds))
    return Comparison(mean, len(seeds), n, p_seeds, p_signs, outcome)


def _t_test(values: np.ndarray) -> float:
    """The p-value of a mean of 0; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    if np.ptp(values) == 0:
        return float(values[0] == 0)
    return float(ttest_1samp(values, 0.0).pvalue)


def sign_test(values: np.ndarray) -> float:
    """The p-value of as many positive as negative values; 1 if all are 0."""
    known = values[np.isfinite(values) & (values != 0)]
    return float(binomtest(int((known > 0).sum()), len(known)).pvalue) if len(known) else 1.0


def too_few(seeds: int) -> str:
    """The verdict where there are too few seeds."""
    return f"{UNDECIDED}: {seeds} seed{'' if seeds == 1 else 's'}, {LEAST_SEEDS} are needed"


def verdict(ours: Mapping[str, Comparison], released: Mapping[str, Comparison]) -> str:
    """Whether a method beats all others: HOLDS, ONLY_RELEASED, FAILS, or UNDECIDED (with the seeds if too few).

    ``ours``, ``released``: its comparisons in both variants, by the method that it is compared with. The claim holds if
    it is better than each, does not hold if it is worse than one, and is undecided otherwise. It holds only as released
    if it does not hold or is undecided in ours, but the variant as released finds it better than each of the same.
    """
    seeds = min((each.seeds for each in ours.values()), default=0)
    if seeds < LEAST_SEEDS:
        return too_few(seeds)
    if all(each.outcome == BETTER for each in ours.values()):
        return HOLDS
    if all(name in released and released[name].outcome == BETTER for name in ours):
        return ONLY_RELEASED
    return FAILS if any(each.outcome == WORSE for each in ours.values()) else UNDECIDED
