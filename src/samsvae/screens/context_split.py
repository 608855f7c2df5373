"""A split that holds out a context, such as a cell line: models see only its controls, and predict its effects."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from samsvae.errors import DataError, nearest, quoted, some
from samsvae.screens.cuts import split_table, three_ways
from samsvae.screens.screen import text_of

log = logging.getLogger(__name__)


def held_out_context(
    obs: pd.DataFrame,
    column: str,
    context: str,
    *,
    separator: str = "",
    test_fraction: float = 0.2,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """Use the perturbed cells of one context as test cells, and train on the other contexts and on its controls.

    ``column``: the covariate with the contexts. The cells of other contexts are train and val (``val_fraction``). The
    controls of the context are train, val and test (``test_fraction``), so that test effects have controls of their
    own. A condition with a perturbation that only the held-out context has cannot be predicted: its cells are unused,
    and a warning counts them.

    DataError if the column is no covariate of the screen, if the context has no perturbed cells or no controls, or if
    it is the only one; ConfigError for a fraction outside 0 to 1.
    """
    covariates = list(obs.attrs.get("covariates", ()))
    if column not in covariates:
        raise DataError(
            f"context_column: {quoted(column)} is no covariate of the screen; list it in the option covariates."
            f"{nearest(column, covariates)}"
        )
    level, condition = text_of(obs[column]).to_numpy(object), text_of(obs["condition"]).to_numpy(object)
    if context not in level:
        raise DataError(
            f"context: obs column {column!r} has no {quoted(context)}.{nearest(context, sorted(set(level)))}"
        )
    inside, is_control = level == context, condition == next(iter(obs.attrs.get("controls", ())), None)
    for cells, what in (
        (inside & is_control, f"no control cell in {quoted(context)}, which effects are measured against"),
        (inside & ~is_control, f"no perturbed cell in {quoted(context)}, so there are no effects to predict"),
        (~inside & ~is_control, f"no perturbed cell in another context than {quoted(context)}, so nothing is learned"),
    ):
        if not cells.any():
            raise DataError(f"context: the screen has {what}.")
    train, val, _ = three_ways(np.flatnonzero(~inside), 0.0, val_fraction, seed)
    parts = three_ways(np.flatnonzero(inside & is_control), test_fraction, val_fraction, seed)
    test = np.flatnonzero(inside & ~is_control & ~_unknown(condition, train, inside & ~is_control, separator))
    return split_table(
        obs,
        train=np.concatenate([train, parts[0]]),
        val=np.concatenate([val, parts[1]]),
        test=np.concatenate([test, parts[2]]),
    )


def _unknown(condition: np.ndarray, train: np.ndarray, perturbed: np.ndarray, separator: str) -> np.ndarray:
    """The cells (n,) bool of conditions with a perturbation that no cell in ``train`` received; a warning counts them.

    ``perturbed`` (n,) bool: the cells to be predicted.
    """

    def parts(name: str) -> list[str]:
        return name.split(separator) if separator else [name]

    known = {part for name in set(condition[train]) for part in parts(name)}
    never = sorted(name for name in set(condition[perturbed]) if not known.issuperset(parts(name)))
    cells = perturbed & np.isin(condition, never)
    if never:
        log.warning(
            "%d conditions (%d cells) have a perturbation without training cells in another context, so they cannot be "
            "predicted and are left out: %s", len(never), cells.sum(), some(never),
        )  # fmt: skip
    return cells
