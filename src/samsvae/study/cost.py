"""The cost table of an experiment, from the records and benchmarks of its runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pandas as pd

from samsvae.errors import DataError
from samsvae.tables import read, read_json

#: Keys of a run's record (`records.record`) that become columns of the cost table.
COST = ("run", "device", "steps", "seconds", "steps_per_second", "peak_memory_mb", "parameters", "threads", "torch")

#: Columns of Snakemake's benchmark tables -> columns of the cost table.
BENCHMARK = {"s": "job_seconds", "cpu_time": "job_cpu_seconds", "max_rss": "job_memory_mb"}


def collect_cost(grid: pd.DataFrame, records: Iterable[str], benchmarks: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """The cost of every run: device, steps, seconds, speed, memory, parameters, and Snakemake's numbers for its job.

    ``benchmarks``: for each run, Snakemake's tables of the jobs that may have trained it; the newest is used. Runs that
    shared a job have the same job name and numbers. A run without a table, such as an imported one, has none. DataError
    if a record is damaged or is that of another run.
    """
    table = pd.DataFrame([_record(path, set(grid["run"])) for path in records])
    if (twice := table["run"].duplicated()).any():
        raise DataError(f"two records are those of the run {table.loc[twice, 'run'].iloc[0]!r}. Delete its run.json.")
    existing = {run: [path for path in map(Path, paths) if path.is_file()] for run, paths in benchmarks.items()}
    newest = {run: max(paths, key=lambda path: path.stat().st_mtime_ns) for run, paths in existing.items() if paths}
    jobs = [{"run": run, **_benchmark(path)} for run, path in newest.items()]
    table = table.merge(pd.DataFrame(jobs, columns=["run", "job", *BENCHMARK.values()]), on="run", how="left")
    return grid[["run", "model", "method", "inference"]].merge(table, on="run", how="right", validate="one_to_one")


def _record(path: str | Path, runs: Collection[str]) -> dict[str, object]:
    """The columns of the cost table that a run's record has."""
    found = read_json(path)
    if missing := [key for key in COST if key not in found]:
        raise DataError(f"{path}: no {missing[0]!r}; delete it and rerun the rule that writes it.")
    if found["run"] not in runs:
        raise DataError(f"{path}: its run {found['run']!r} is not in the grid; delete it and rerun.")
    return {column: found[column] for column in COST}


def _benchmark(path: Path) -> dict[str, object]:
    """The name of a job (``train/RUN``, ``together/BATCH``) and its numbers; NaN if it was too short to measure."""
    row = read(path).iloc[-1]
    numbers = {name: pd.to_numeric(row[column], errors="coerce") for column, name in BENCHMARK.items()}
    return {"job": f"{path.parent.name}/{path.stem}", **numbers}
