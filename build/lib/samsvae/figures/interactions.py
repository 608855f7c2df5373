"""Interactions of test combinations, observed and predicted, for the combinations figure."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.evaluation.metrics.effects import interactions
from samsvae.evaluation.selection import shown
from samsvae.figures.pair_scores import best_rows, core
from samsvae.figures.runs import frame, of_run, of_split
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_uns


def list_tested_conditions(references: Sequence[str]) -> pd.DataFrame:
    """The conditions with test cells on any split (SPLIT/effects.h5ad): whether each is a combination."""
    parts = []
    for path in references:
        data = read_h5ad(path)
        combination = pd.Series((np.asarray(data.uns["members"]) >= 0).sum(1) > 1, data.obs_names)
        parts.append(combination[(data.obs["n_test"] > 0).to_numpy()])
    found = pd.concat(parts)
    return found[~found.index.duplicated()].to_frame("combination")


def interaction_table(
    scores: pd.DataFrame, effects: Sequence[str], references: Sequence[str], screen: str
) -> pd.DataFrame | None:
    """Interactions of test combinations, observed in all cells and predicted by one run of each model.

    An interaction is the effect of a combination minus the sum of its single effects; data and model use their own.
    The run shown has the model's best settings, its first split, and the largest fraction at which no test combination
    has training cells. If there is none, it is the largest fraction at which some combinations have no training cells,
    and only these are included; failing that, the largest.
    Columns: model, run, fraction, pair, seen (whether the combination has training cells), gene, observed, predicted,
    and ``made``, the simulated interaction, if the screen is a miniature. None if no test combination has known
    singles. references: SPLIT/effects.h5ad of every split.
    """
    rows = core(best_rows(scores).drop(columns="split"))  # all runs, so any split will do
    candidates = shown(rows, ["split_seed", "seed"])
    truth = read_uns(screen, "miniature_truth")
    data: dict[str, ad.AnnData] = {}
    tables = []
    for model, runs in candidates.groupby("model", sort=False):
        found = []
        for run, fraction in runs[["run", "fraction"]].itertuples(index=False):
            path = of_split(references, scores, run)
            if path not in data:
                data[path] = read_h5ad(path)
            seen = _seen(data[path])
            rank = 2 if len(seen) and not seen.any() else int(not seen.all()) if len(seen) else -1
            found.append((rank, 0.0 if np.isnan(fraction) else fraction, run, path))
        rank, _, run, path = max(found)
        if rank < 0:
            continue
        seen = _seen(data[path])
        kept = seen.index[~seen] if rank else seen.index
        table = _interactions(data[path], frame(read_h5ad(of_run(effects, run))), kept, truth)
        fraction = runs.set_index("run").loc[run, "fraction"]
        tables.append(table.assign(model=model, run=run, fraction=fraction, seen=table["pair"].map(seen)))
    if not tables or (table := pd.concat(tables, ignore_index=True)).empty:
        return None
    return table


def _seen(data: ad.AnnData) -> pd.Series:
    """Whether each combination with test cells has training cells."""
    at = (data.obs["n_test"] > 0).to_numpy() & ((np.asarray(data.uns["members"]) >= 0).sum(1) > 1)
    return (data.obs["n_train"] > 0)[at]


def _interactions(
    data: ad.AnnData, predicted: pd.DataFrame, names: pd.Index, truth: pd.DataFrame | None
) -> pd.DataFrame:
    """Observed and predicted interactions of some conditions: pair, gene, observed, predicted (and made)."""
    members = np.asarray(data.uns["members"])
    effect = predicted.loc[data.obs_names, data.var_names].to_numpy()
    observed, expected = (
        pd.DataFrame(interactions(values, members), data.obs_names, data.var_names).loc[names]
        for values in (np.asarray(data.X), effect)
    )
    table = pd.DataFrame({"observed": observed.stack(), "predicted": expected.stack()})
    if truth is not None:
        table["made"] = truth.reindex(index=observed.index, columns=observed.columns).stack()
    return table.rename_axis(["pair", "gene"]).reset_index()
