"""Scores of predicted effects against the observed effects.

Letters: C conditions, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.vocabulary import SPLITS
from samsvae.evaluation.metrics.effects import ate_scores, condition_scores


def score(predicted: np.ndarray, data: ad.AnnData) -> Iterator[dict[str, object]]:
    """Scores of predicted effects (C, G) against ``data`` (``data_effects.effects``): protocol, metric, split, value.

    ``published`` compares with the effects in all cells, for all conditions (split ``all``) and for the conditions
    that have cells in a split. If every condition has cells in every split, these would be four equal rows, and
    readers might take one for held out; then only ``all`` is given. ``held-out`` compares with the effects in the test
    cells alone. Conditions with a NaN in their prediction are left out.
    """
    known = np.isfinite(predicted).all(1)
    chosen = {name: known & (data.obs[f"n_{name}"] > 0).to_numpy() for name in SPLITS}
    parts = {} if all(np.array_equal(at, known) for at in chosen.values()) else chosen
    for split, at in {"all": known, **parts}.items():
        if at.any():
            for metric, value in ate_scores(data.X[at], predicted[at]).items():
                yield {"protocol": "published", "metric": metric, "split": split, "value": value}
    at = chosen["test"]
    if at.any():
        truth = data.layers["held_out"][at]
        for metric, value in ate_scores(truth, predicted[at]).items():
            yield {"protocol": "held-out", "metric": metric, "split": "test", "value": value}
        each = condition_scores(truth, predicted[at])["ate_pearson"]
        if np.isfinite(each).any():
            value = float(np.nanmean(each))
            yield {"protocol": "held-out", "metric": "ate_pearson_per_condition", "split": "test", "value": value}


def per_condition(predicted: np.ndarray, data: ad.AnnData) -> pd.DataFrame:
    """Agreement of predicted (C, G) and observed effects in each condition: condition, protocol, ate_pearson, ate_r2.

    A condition has no row for a protocol if its predicted or observed effects have a NaN.
    """
    tables = []
    for protocol, truth in (("published", data.X), ("held-out", data.layers["held_out"])):
        at = np.isfinite(predicted).all(1) & np.isfinite(truth).all(1)
        none = {"ate_pearson": np.empty(0), "ate_r2": np.empty(0)}
        scores = condition_scores(truth[at], predicted[at]) if at.any() else none
        tables.append(pd.DataFrame({"condition": data.obs_names[at], "protocol": protocol, **scores}))
    return pd.concat(tables, ignore_index=True)
