"""The score and history tables of an experiment, collected from the files of its runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from samsvae.tables import read


def collect_scores(
    grid: pd.DataFrame, scores: Iterable[str], pathways: Iterable[str], baselines: Iterable[str]
) -> pd.DataFrame:
    """Scores of all runs, and of the baselines for every split, with the columns of the grid.

    ``scores``, ``pathways``, ``baselines``: paths. The path of a pathways file names its run (``.../runs/RUN/file``),
    the path of a baseline its data set and split (``.../DATASET/SPLIT/file``). A baseline gets the values of those
    columns of the grid in which all runs of its split agree.
    """
    rows = [read(path) for path in scores]
    for path in pathways:
        table = read(path)
        metric = "mask_pathway_" + table["metric"] + "/" + table["classifier"]
        run = Path(path).parent.name
        rows.append(
            pd.DataFrame(
                {"run": run, "protocol": "published", "metric": metric, "split": "all", "value": table["mean"]}
            )
        )
    found = grid.merge(pd.concat(rows, ignore_index=True), on="run", how="right", validate="one_to_many")
    axes = [c for c in grid.columns if c not in ("run", "model", "method", "inference")]
    parts = [found]
    for path in baselines:
        folder = Path(path).parent
        at = (grid["dataset"] == folder.parent.name) & (grid["split_name"] == folder.name)
        known = {c: grid.loc[at, c].iloc[0] for c in axes if grid.loc[at, c].nunique(dropna=False) == 1}
        table = read(path)
        parts.append(table.assign(method="baseline", inference="", run=table["model"], **known))
    return pd.concat(parts, ignore_index=True)[[*grid.columns, "protocol", "metric", "split", "value"]]


def collect_histories(grid: pd.DataFrame, histories: Iterable[str]) -> pd.DataFrame:
    """Training histories of all runs, with the columns model, method and inference."""
    table = pd.concat([read(path) for path in histories], ignore_index=True)
    return grid[["run", "model", "method", "inference"]].merge(table, on="run", how="right", validate="one_to_many")
