"""The tables of an experiment, collected over its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from samsvae.tables import read


def collect_scores(
    grid: pd.DataFrame, scores: Iterable[str], pathways: Iterable[str], baselines: Iterable[str]
) -> pd.DataFrame:
    """Scores of all runs with the columns of the grid, and those of the baselines for every split.

    The path of a run's file names the run (``.../runs/RUN/file``), that of
    a baseline its data set and split (``.../DATASET/SPLIT/file``).
    """
    rows = [read(path) for path in scores]
    for path in pathways:
        table = read(path)
        metric = "mask_pathway_" + table["metric"] + "/" + table["classifier"]
        rows.append(pd.DataFrame({"run": Path(path).parent.name, "protocol": "published", "metric": metric,
                                  "split": "all", "value": table["mean"]}))  # fmt: skip
    found = grid.merge(pd.concat(rows, ignore_index=True), on="run", how="right", validate="one_to_many")
    axes = [c for c in grid.columns if c not in ("run", "model", "method", "inference")]
    parts = [found]
    for path in map(Path, baselines):
        at = (grid["dataset"] == path.parents[1].name) & (grid["split_name"] == path.parent.name)
        known = {c: grid.loc[at, c].iloc[0] for c in axes if grid.loc[at, c].nunique(dropna=False) == 1}
        table = read(path)
        parts.append(table.assign(method="baseline", inference="", run=table["model"], **known))
    return pd.concat(parts, ignore_index=True)[[*grid.columns, "protocol", "metric", "split", "value"]]


def collect_histories(grid: pd.DataFrame, histories: Iterable[str]) -> pd.DataFrame:
    """Histories of all runs, with model, method and inference."""
    table = pd.concat([read(path) for path in histories], ignore_index=True)
    return grid[["run", "model", "method", "inference"]].merge(table, on="run", how="right", validate="one_to_many")


#: Columns of Snakemake's benchmark tables that are kept, as they are called in the cost table.
BENCHMARK = {"s": "job_seconds", "cpu_time": "job_cpu_seconds", "max_rss": "job_memory_mb"}


def collect_cost(grid: pd.DataFrame, records: Iterable[str], benchmarks: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """What every run cost: device, steps, seconds, speed, memory, parameters, and what Snakemake measured of its job.

    ``benchmarks``: the tables of the jobs that a run may have had; the newest counts. Runs that had one job have its
    name and its numbers in common; a run that has no table (an imported one) has none.
    """
    import json

    columns = [
        "run",
        "device",
        "steps",
        "seconds",
        "steps_per_second",
        "peak_memory_mb",
        "parameters",
        "threads",
        "torch",
    ]
    found = [json.loads(Path(path).read_text()) for path in records]
    table = pd.DataFrame([{column: record[column] for column in columns} for record in found])
    there = {run: [path for path in map(Path, paths) if path.is_file()] for run, paths in benchmarks.items()}
    newest = {run: max(paths, key=lambda path: path.stat().st_mtime_ns) for run, paths in there.items() if paths}
    jobs = [{"run": run, **_benchmark(path)} for run, path in newest.items()]
    table = table.merge(pd.DataFrame(jobs, columns=["run", "job", *BENCHMARK.values()]), on="run", how="left")
    return grid[["run", "model", "method", "inference"]].merge(table, on="run", how="right", validate="one_to_one")


def _benchmark(path: Path) -> dict[str, object]:
    """The name of a job (``train/RUN``, ``together/BATCH``) and its numbers; NaN for one too short to be measured."""
    row = read(path).iloc[-1]
    numbers = {name: pd.to_numeric(row[column], errors="coerce") for column, name in BENCHMARK.items()}
    return {"job": f"{path.parent.name}/{path.stem}", **numbers}
