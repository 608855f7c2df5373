"""Tables of the effects of named conditions, from draws of the approximate posterior.

Letters: S draws, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from samsvae.config.validate import check_positive, check_whole
from samsvae.errors import ConfigError
from samsvae.evaluation.added_effects import added_effect_draws, backgrounds_of
from samsvae.evaluation.model_effects import effect_draws
from samsvae.evaluation.named_conditions import LABELS, Condition, Label, Names, as_text
from samsvae.training.checkpoint import Checkpoint

#: Maps the draws (S, G) of the effects of a condition to columns of a table (s, G).
Summary = Callable[[np.ndarray], np.ndarray]


def mean_and_interval(level: float) -> Summary:
    """The mean of the draws, and the interval that contains the share ``level`` of them: effect, low, high."""

    def summary(drawn: np.ndarray) -> np.ndarray:
        return np.stack([drawn.mean(0), *np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)])

    return summary


def signs(delta: float) -> Summary:
    """Mean and standard deviation of the draws, the share with |effect| > ``delta``, and the local false sign rate."""

    def summary(drawn: np.ndarray) -> np.ndarray:
        rate = np.minimum((drawn <= 0).mean(0), (drawn >= 0).mean(0))
        return np.stack([drawn.mean(0), drawn.std(0), (np.abs(drawn) > delta).mean(0), rate])

    return summary


def effect_table(
    checkpoint: Checkpoint,
    conditions: Label | Sequence[Condition] | None,
    columns: Sequence[str],
    summary: Summary,
    *,
    draws: int,
    cells: int,
    library: float,
    covariates: Mapping[str, Label] | None = None,
    seed: int,
) -> pd.DataFrame:
    """A table of condition, gene and the ``columns`` that ``summary`` makes of the draws of a condition.

    ``conditions``: by default every perturbation. In a screen without a control, effects are those of
    `samsvae.evaluation.added_effects`. The rest as in `samsvae.evaluation.model_effects.effect_draws`.
    ``covariates``: the level of some of them (`Names.levels`). ConfigError if a number is not allowed; DataError if a
    condition, a covariate or its level is unknown.
    """
    check_whole(draws=draws, cells=cells)
    check_positive(library=library)
    if conditions is None:
        conditions = checkpoint.perturbations
    if isinstance(conditions, LABELS) or not isinstance(conditions, Iterable):
        conditions = [cast(Label, conditions)]
    asked = [as_text(each) for each in conditions]
    if not asked:
        raise ConfigError("conditions: the list is empty; pass labels or lists of perturbations.")
    names = Names(checkpoint)
    *members, control = names.members([*asked, []])
    how: dict[str, Any] = {"draws": draws, "cells": cells, "library": library, "seed": seed}
    how["levels"] = names.levels(covariates)
    backgrounds = backgrounds_of(checkpoint)
    if backgrounds is None:
        found = effect_draws(checkpoint.model, np.array(members), against=control, summary=summary, **how)
    else:
        parts = added_effect_draws(
            checkpoint.model, np.array(members), backgrounds=backgrounds, use=lambda _, drawn: summary(drawn), **how
        )
        found = np.stack(parts, 1)
    rows = {"condition": np.repeat([names.label(condition) for condition in asked], len(checkpoint.genes))}
    rows["gene"] = np.tile(checkpoint.genes, len(asked))
    return pd.DataFrame(rows | dict(zip(columns, found.reshape(len(columns), -1), strict=True)))
