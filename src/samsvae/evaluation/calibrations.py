"""Which metrics tell a replicate from the mean effect on a screen (S9)."""

from __future__ import annotations

from functools import partial

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.evaluation.matched_parts import part_of
from samsvae.evaluation.metrics.agreement import PER_CONDITION, nmse_terms
from samsvae.evaluation.metrics.calibration import REPEATS, Calibration, calibrate, calibration
from samsvae.evaluation.metrics.constants import LEAST_CONDITIONS
from samsvae.evaluation.metrics.discrimination import discrimination
from samsvae.evaluation.metrics.estimates import REFERENCES, at_reference
from samsvae.evaluation.metrics.halves import half_effects, halves
from samsvae.evaluation.metrics.matched import Matched
from samsvae.evaluation.truth import Truth


def calibrations(screen: Screen, truth: Truth) -> dict[str, Calibration]:
    """Whether each metric of effects tells a replicate from the mean effect on this screen (S9).

    From halves of all cells: per condition, and for the pooled error per repeat. Conditions without two cells in each
    half are left out. {} if fewer than 3 are left.
    """
    every = part_of(screen, np.ones(len(screen.condition), bool), screen.condition == truth.control)
    half = halves(screen.condition, screen.conditions, cells=every.rows, repeats=REPEATS)
    pairs = list(
        half_effects(
            every.X,
            screen.condition,
            len(screen.conditions),
            half,
            control=truth.control,
            method=every.method,
            level=every.X.level if isinstance(every.X, Matched) else None,
        )
    )
    defined = np.all([np.isfinite(part.delta).all(1) for pair in pairs for part in pair], axis=0)
    rows = truth.rows[defined[truth.rows]]
    if len(rows) < LEAST_CONDITIONS:
        return {}
    found = {
        f"{name}_{reference}": calibrate(pairs, rows, measure, reference=reference, higher_is_better=name != "mse")
        for reference in REFERENCES
        for name, measure in PER_CONDITION.items()
    }
    if len(truth.targets) < len(screen.genes):
        measure = partial(discrimination, targets=truth.targets)
        found["discrimination"] = calibrate(pairs, rows, measure, reference="centred", higher_is_better=True)
    errors = []  # of a replicate, whose own error is subtracted too: it is no part of what it predicts
    for a, b in pairs:
        (delta, se2), (replicate, own) = (at_reference(half, rows, "centred") for half in (a, b))
        error, size = (terms.sum() for terms in nmse_terms(delta, se2 + own, replicate))
        errors.append((error / (size + own.sum()) if size + own.sum() > 0 else np.nan, 1.0))
    positive, negative = (np.array(each)[:, None] for each in zip(*errors, strict=True))
    if np.isfinite(positive).all():
        found["nmse_centred"] = calibration(positive, negative, higher_is_better=False)
    return found
