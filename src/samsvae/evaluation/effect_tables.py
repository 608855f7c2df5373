"""Tables of the effects of named conditions, from draws of the approximate posterior.

Letters: S draws, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import numpy as np
import pandas as pd

from samsvae.config.validate import check_positive, check_whole
from samsvae.errors import ConfigError
from samsvae.evaluation.model_effects import effect_draws
from samsvae.evaluation.named_conditions import LABELS, Condition, Label, Names, as_text
from samsvae.training.checkpoint import Checkpoint


def effect_table(
    checkpoint: Checkpoint,
    conditions: Label | Sequence[Condition] | None,
    columns: Sequence[str],
    summary: Callable[[np.ndarray], np.ndarray],
    *,
    draws: int,
    cells: int,
    library: float,
    seed: int,
) -> pd.DataFrame:
    """A table of condition, gene and the ``columns`` that ``summary`` makes of the draws (S, G) of a condition.

    ``conditions``: by default every perturbation. The rest as in `samsvae.evaluation.model_effects.effect_draws`.
    ConfigError if a number is not allowed; DataError if a condition is unknown.
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
    found = effect_draws(
        checkpoint.model, np.array(members), against=control, draws=draws, cells=cells, library=library, seed=seed,
        summary=summary,
    )  # fmt: skip
    rows = {"condition": np.repeat([names.label(condition) for condition in asked], len(checkpoint.genes))}
    rows["gene"] = np.tile(checkpoint.genes, len(asked))
    return pd.DataFrame(rows | dict(zip(columns, found.reshape(len(columns), -1), strict=True)))
