"""The cost table of an experiment, from the records and benchmarks of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    found: dict[str, dict[str, object]] = {}
    for path in records:
        record = read_json(path)
        if missing := [key for key in COST if key not in record]:
            raise DataError(f"{path}: no {missing[0]!r}; delete it and rerun the rule that writes it.")
        if (run := record["run"]) in found or run not in set(grid["run"]):
            problem = "that of another file too" if run in found else "not one of the grid"
            raise DataError(f"{path}: its run {run!r} is {problem}; delete it and rerun the rule that writes it.")
        found[run] = {column: record[column] for column in COST}
    table = pd.DataFrame(found.values())
    existing = {run: [path for path in map(Path, paths) if path.is_file()] for run, paths in benchmarks.items()}
    newest = {run: max(paths, key=lambda path: path.stat().st_mtime_ns) for run, paths in existing.items() if paths}
    jobs = [{"run": run, **_benchmark(path)} for run, path in newest.items()]
    table = table.merge(pd.DataFrame(jobs, columns=["run", "job", *BENCHMARK.values()]), on="run", how="left")
    return grid[["run", "model", "method", "inference"]].merge(table, on="run", how="right", validate="one_to_one")


def _benchmark(path: Path) -> dict[str, object]:
    """The name of a job (``train/RUN``, ``together/BATCH``) and its numbers; NaN if it was too short to measure."""
    row = read(path).iloc[-1]
    numbers = {name: pd.to_numeric(row[column], errors="coerce") for column, name in BENCHMARK.items()}
    return {"job": f"{path.parent.name}/{path.stem}", **numbers}
