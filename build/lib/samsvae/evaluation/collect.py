"""The score and history tables of an experiment, collected from the files of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from samsvae.errors import DataError
from samsvae.tables import read_rows

#: The column with the digest of the code that scored (study.code_digest.scoring_rules).
RULES = "rules"

#: Columns that identify a row: of scores, of the scores of a baseline, of pathways and of a history.
SCORE = ("run", "protocol", "metric", "split")
BASELINE = ("model", "protocol", "metric", "split")
PATHWAY = ("run", "features", "classifier", "metric")
HISTORY = ("run", "step")


def collect_scores(
    grid: pd.DataFrame, scores: Iterable[str], pathways: Iterable[str], baselines: Iterable[str]
) -> pd.DataFrame:
    """Scores of all runs, and of the baselines for every split, with the columns of the grid.

    ``scores``, ``pathways``, ``baselines``: paths. A pathways file may have several runs, also some that the grid does
    not list. The path of a baseline names its data set and split (``.../DATASET/SPLIT/file``). A baseline gets the
    values of those columns of the grid in which all runs of its split agree. DataError if a table is damaged, has no
    rows or is that of another run, or if the rules differ (`same_rules`).
    """
    rows = [of_runs(grid, scores, SCORE, "value")]
    no_model = {path: read_rows(path, BASELINE, "value") for path in baselines}
    same_rules([*rows, *(table.assign(run=table["model"]) for table in no_model.values())])
    for path in pathways:
        table = read_rows(path, PATHWAY, "mean")
        table = table[table["run"].isin(grid["run"])]
        same = {"protocol": "published", "metric": pathway_metrics(table), "split": "all", "value": table["mean"]}
        rows.append(pd.DataFrame({"run": table["run"], **same}))
    found = grid.merge(pd.concat(rows, ignore_index=True), on="run", how="right", validate="one_to_many")
    axes = [c for c in grid.columns if c not in ("run", "model", "method", "inference")]
    parts = [found]
    for path, table in no_model.items():
        folder = Path(path).parent
        at = (grid["dataset"] == folder.parent.name) & (grid["split_name"] == folder.name)
        known = {c: grid.loc[at, c].iloc[0] for c in axes if grid.loc[at, c].nunique(dropna=False) == 1}
        parts.append(table.assign(method="baseline", inference="", run=table["model"], **known))
    table = pd.concat(parts, ignore_index=True)
    return table[[*grid.columns, "protocol", "metric", "split", "value", *([RULES] if RULES in table else [])]]


def same_rules(tables: Iterable[pd.DataFrame]) -> None:
    """DataError unless all tables (with the column run) name the same rules of scoring.

    Tables of versions without that column have unknown rules.
    """
    first: dict[str, str] = {}
    for table in tables:
        given = table[RULES].fillna("unknown") if RULES in table else ["unknown"] * len(table)
        for rules, run in zip(given, table["run"], strict=True):
            first.setdefault(rules, run)
    if len(first) > 1:
        (one, run), (other, second) = list(first.items())[:2]
        raise DataError(
            f"{RULES}: the scores of {run!r} and {second!r} were made by different rules ({one} and {other}), so they "
            "cannot be compared. Run the workflow again, which replaces the older ones."
        )


def pathway_metrics(accuracies: pd.DataFrame) -> pd.Series:
    """The names of accuracies of pathways as scores, such as 'mask_pathway_accuracy/logistic'."""
    return accuracies["features"] + "_pathway_" + accuracies["metric"] + "/" + accuracies["classifier"]


def collect_histories(grid: pd.DataFrame, histories: Iterable[str]) -> pd.DataFrame:
    """Training histories of all runs, with the columns model, method and inference; DataError as `collect_scores`."""
    table = of_runs(grid, histories, HISTORY, "val_loss")
    return grid[["run", "model", "method", "inference"]].merge(table, on="run", how="right", validate="one_to_many")


def of_runs(grid: pd.DataFrame, paths: Iterable[str], key: Sequence[str], number: str) -> pd.DataFrame:
    """The tables of runs as one table; each file must hold one run of the grid, and no two files the same run."""
    tables: dict[str, pd.DataFrame] = {}
    for path in paths:
        table = read_rows(path, key, number)
        runs = list(dict.fromkeys(table["run"]))
        if len(runs) != 1 or runs[0] in tables or runs[0] not in set(grid["run"]):
            held = ", ".join(map(repr, runs)) or "no run"
            raise DataError(
                f"{path}: it must hold one run of the grid that no other file holds, not {held}; "
                "delete it and rerun the rule that writes it."
            )
        tables[runs[0]] = table
    return pd.concat(tables.values(), ignore_index=True)
