"""The truth of the honest protocol for any screen, with a control or without one."""

from __future__ import annotations

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.dosage_truth import truth_by_dosage
from samsvae.evaluation.truth import Truth, truth_of


def truth_or_reason(screen: Screen, split: np.ndarray) -> Truth | str:
    """The observed effects under a split (n,), or one sentence that says why it has no effects to score."""
    try:
        return truth_by_dosage(screen, split) if screen.by_dosage else truth_of(screen, split)
    except DataError as error:
        return str(error)
