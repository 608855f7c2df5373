"""The likelihood bounds of an experiment's runs, compared within each split, with verdicts in words (S10)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from samsvae.evaluation.collect import of_runs, same_rules
from samsvae.evaluation.metrics.importance_weights import BLOCKS, HEAVY, HEAVY_SHARE, Bound, comparison_size, undecided

#: The two sets of cells: a fixed sample of the test cells, with many particles, and all of them, with fewer.
SAMPLE, TEST = "sample", "test"

#: Columns of a run's table.
TABLE = ("protocol", "metric", "cells", "n_cells", "particles", "value", "error", "blocks", "reason")

#: Columns that identify a row of the runs' tables.
ROW = ("run", "metric", "cells", "particles")

#: Columns that `verdicts` adds.
VERDICT = ("relative", "relative_error", "against", "verdict")

#: The metric whose value is the share of cells with heavy weights.
HEAVY_METRIC = f"pareto_above_{HEAVY}"


def collect_bounds(grid: pd.DataFrame, paths: Iterable[str]) -> pd.DataFrame:
    """The table of all runs of an experiment, with model, dataset and split_name, and `verdicts` within each split.

    ``paths``: of the tables of runs. DataError if a table is damaged, that of another run, or scored by other rules.
    """
    table = of_runs(grid, paths, ROW, "value")
    same_rules([table])
    table = table.merge(grid[["run", "model", "dataset", "split_name"]], on="run", validate="many_to_one")
    return table.join(verdicts(table))


def verdicts(table: pd.DataFrame, *, who: str = "run", by: Sequence[str] = ("dataset", "split_name")) -> pd.DataFrame:
    """Compare the bounds on the samples within each group of ``by``; a row per member, with the index of its bound.

    ``table``: rows of tables with the columns TABLE, ``by`` and ``who``, the column whose members are compared. They
    are compared at the largest number of particles with 10 blocks for all of them. ``relative`` is the bound minus the
    highest one, ``relative_error`` the root of the sum of both squared block errors, ``against`` the member with the
    highest bound. The verdict is ``best``, ``below NAME`` or ``undecided: ...`` (S10): a difference below twice its
    error decides nothing, and neither does one with a member whose weights are heavy in more than a tenth of the cells.
    The highest bound is ``best`` if all others are decidedly below it.
    """
    rows: dict[object, dict[str, object]] = {}
    for _, group in table[table["cells"] == SAMPLE].groupby(list(by), sort=False):
        rows |= _compare([_Member.of(str(name), found) for name, found in group.groupby(who, sort=False)])
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows)), columns=list(VERDICT))


@dataclass(frozen=True)
class _Member:
    """One run or model of a comparison: its bounds by number of particles, their rows, and its share of heavy cells."""

    name: str
    bounds: dict[int, Bound]
    rows: dict[int, object]
    heavy: float
    reason: str  # why it has no bounds

    @classmethod
    def of(cls, name: str, table: pd.DataFrame) -> _Member:
        found = table[table["metric"] == "iwelbo"]
        sizes = found["particles"].astype(int)
        numbers = zip(sizes, found["value"], found["error"], found["blocks"].fillna(0).astype(int), strict=True)
        heavy = table.loc[table["metric"] == HEAVY_METRIC, "value"]
        reason = found["reason"].fillna("").iloc[0]
        return cls(
            name,
            {} if reason else {size: Bound(size, *rest) for size, *rest in numbers},
            dict(zip(sizes, found.index, strict=True)),
            float(heavy.iloc[0]) if len(heavy) else np.nan,
            reason.rstrip("."),
        )


def _compare(members: Sequence[_Member]) -> dict[object, dict[str, object]]:
    """The verdict on every member, by the index of the row that it belongs to."""
    size = comparison_size(*(member.bounds for member in members if member.bounds))
    values = {each.name: each.bounds[size].value for each in members if size is not None and size in each.bounds}
    ranked = sorted(
        (each for each in members if np.isfinite(values.get(each.name, np.nan))), key=lambda each: -values[each.name]
    )
    rows = {}
    for member in members:
        at = member.rows[size] if size in member.rows else next(iter(member.rows.values()))
        if member.reason:
            rows[at] = _undecided(member.reason)
        elif size is None:
            rows[at] = _undecided(f"it needs {BLOCKS} blocks of particles")
        elif member not in ranked:
            rows[at] = _undecided("its bound is not finite")
        elif len(ranked) == 1:
            rows[at] = {"relative": 0.0, **_undecided("nothing else of this split has a bound")}
        else:
            rows[at] = _verdict(member, ranked, size)
    return rows


def _verdict(member: _Member, ranked: Sequence[_Member], size: int) -> dict[str, object]:
    """The verdict on one of several members that are ranked by their bounds with ``size`` particles."""
    best = ranked[0]
    if member is best:
        doubts = [doubt for other in ranked[1:] if (doubt := _doubt(best, other, size, to=other))]
        return {"relative": 0.0, "verdict": f"undecided: {doubts[0]}" if doubts else "best"}
    ours, theirs = member.bounds[size], best.bounds[size]
    doubt = _doubt(best, member, size, to=best)
    return {
        "relative": ours.value - theirs.value,
        "relative_error": math.hypot(ours.error, theirs.error),
        "against": best.name,
        "verdict": f"undecided: {doubt}" if doubt else f"below {best.name}",
    }


def _doubt(best: _Member, other: _Member, size: int, *, to: _Member) -> str:
    """Why the difference of two bounds decides nothing, seen from the one that is not ``to``; '' if it decides."""
    high, low = best.bounds[size], other.bounds[size]
    error = math.hypot(high.error, low.error)
    if not undecided(high.value - low.value, error, (best.heavy, other.heavy)):
        return ""
    for each in (best, other):
        if np.isnan(each.heavy):
            return f"Pareto k is not defined for {each.name}"
        if each.heavy > HEAVY_SHARE:
            return f"Pareto k is above {HEAVY} in {each.heavy:.0%} of the cells of {each.name}"
    return f"the difference to {to.name} is below twice its error"


def _undecided(reason: str) -> dict[str, object]:
    return {"verdict": f"undecided: {reason}"}
