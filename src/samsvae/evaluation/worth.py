"""What the scores of the honest protocol are worth: each compared with every baseline, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.evaluation.collect import same_rules
from samsvae.evaluation.metrics.constants import LEAST_BDS, LEAST_CONDITIONS, LEAST_DRF
from samsvae.evaluation.metrics.intervals import Interval, paired_difference
from samsvae.evaluation.metrics.table import metric
from samsvae.evaluation.score_tables import CEILING, DUPLICATE
from samsvae.tables import read

#: The metrics in front: three of centred effects, in which only differences between conditions count, and one of cells.
HEADLINE = ("nmse_centred", "pearson_centred", "discrimination", "energy_share")

#: What `compare` returns.
VERDICT = ("against", "difference", "difference_low", "difference_high", "verdict")

#: Columns that identify a row of a run's table.
ROW = ("run", "metric", "set")

#: Columns in which the scores of a model and of its baselines must agree, as far as tables have them.
PLACE = ("metric", "set", "dataset", "split_name")


def collect_worth(
    grid: pd.DataFrame,
    worth: Iterable[str],
    conditions: Iterable[str],
    baselines: Iterable[str],
    baseline_conditions: Iterable[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables of an experiment, with the columns run, model, dataset and split_name.

    The first has the scores of runs, baselines and ceilings, and for runs ``against``, ``difference``, ``verdict`` (in
    words); the second has the scores by condition. ``worth``, ``conditions``: paths of runs. ``baselines``,
    ``baseline_conditions``: paths of splits (``.../DATASET/SPLIT/file``), whose model is also their run. DataError if
    ``worth`` and ``baselines`` were scored by different rules.
    """
    place = grid[["run", "model", "dataset", "split_name"]]
    ours, each = (
        _joined([read(path) for path in paths]).merge(place, on="run", validate="many_to_one")
        for paths in (worth, conditions)
    )
    theirs, their_each = (
        _joined([read_of_split(path) for path in paths]) for paths in (baselines, baseline_conditions)
    )
    same_rules([ours, theirs])
    found = verdicts(each, their_each, theirs, by=[*ROW, "dataset", "split_name"])
    ours = ours.merge(found[[*ROW, *VERDICT]], on=list(ROW), how="left")
    return _joined([ours, theirs]), _joined([each, their_each])


def verdicts(
    each: pd.DataFrame, baselines: pd.DataFrame, calibrated: pd.DataFrame, *, by: Sequence[str]
) -> pd.DataFrame:
    """`compare` scores by condition; a row for each group of the columns ``by``: these, VERDICT and ``ranks``.

    Metrics that have no better direction have no row, nor have undefined scores, whose table has the reason.
    ``each``: scores of models by condition. ``baselines``: the same for baselines, with one row per model and condition
    in each PLACE. ``calibrated``: rows of the tables of splits, with the DRF and BDS of metrics. ``ranks``: whether the
    metric may rank models.
    """
    shared = [column for column in PLACE if column in by]
    tables = baselines[~baselines["model"].isin([CEILING, DUPLICATE])], calibrated
    # once, not for every group: an experiment has many runs and splits
    at_place = [dict(list(table.groupby(shared, sort=False))) for table in tables]
    rows = []
    for values, found in each.groupby(list(by), sort=False):
        group = dict(zip(by, values, strict=True))
        if not metric(str(group["metric"])).better or found["value"].isna().all():
            continue
        place = tuple(group[column] for column in shared)
        theirs, known = (there.get(place, table.iloc[:0]) for there, table in zip(at_place, tables, strict=True))
        numbers = calibration_of(known)
        verdict = compare(str(group["metric"]), found, theirs, calibrated=numbers)
        rows.append({**group, **verdict, "ranks": tells_apart(numbers)})
    return pd.DataFrame(rows, columns=[*by, *VERDICT, "ranks"])


def calibration_of(rows: pd.DataFrame) -> tuple[float, float] | None:
    """DRF and BDS of a metric on a screen, from rows of a split's table; None if they are unknown."""
    known = rows.reindex(columns=["drf", "bds"]).dropna()  # tables of an older version lack them
    return (float(known["drf"].iloc[0]), float(known["bds"].iloc[0])) if len(known) else None


def tells_apart(calibrated: tuple[float, float] | None) -> bool:
    """Whether a metric may rank models on this screen: DRF of .1 and BDS of .8 or more, or unknown (S9)."""
    return calibrated is None or (calibrated[0] >= LEAST_DRF and calibrated[1] >= LEAST_BDS)


def compare(
    name: str, ours: pd.DataFrame, baselines: pd.DataFrame, *, calibrated: tuple[float, float] | None = None
) -> dict[str, object]:
    """Compare the scores of a model by condition with those of every baseline, on the conditions that both predict.

    ``ours``: condition, value, weight; several rows of a condition (runs) are averaged. ``baselines``: the same with
    the column model. Returns ``against`` (the baseline that the model beats by least, or loses to by most),
    ``difference`` with its interval (positive: the model is better), and ``verdict``. ``calibrated``: DRF and BDS of
    the metric; nothing is decided by one that cannot tell signal from noise.
    """
    found: dict[str, Interval] = {}
    mine = ours.groupby("condition", sort=False)[["value", "weight"]].mean()
    sign = -1.0 if metric(name).better == "lower" else 1.0
    for model, rows in baselines.groupby("model", sort=False):
        both = mine.join(rows.set_index("condition")["value"].rename("theirs"), how="inner").dropna()
        if len(both) >= LEAST_CONDITIONS:
            weight = both["weight"].to_numpy()
            values = sign * both["value"].to_numpy(), sign * both["theirs"].to_numpy()
            ratio = (weight != 1).any()  # a ratio of sums, not a mean
            found[str(model)] = paired_difference(*values, over=weight if ratio else None)
    known = {model: each for model, each in found.items() if np.isfinite(each.low)}
    if not known:
        return {"against": "", "verdict": "undecided: no interval of a difference is defined"}
    # a baseline that is better comes first, then one that may be as good
    worst = min(known, key=lambda model: (known[model].high >= 0, known[model].low > 0, known[model].mean))
    if known[worst].high < 0:
        verdict = f"below {worst}"
    elif known[worst].low > 0:
        verdict = "better than every baseline"
    else:
        verdict = f"not distinguishable from {worst}"
    if calibrated is not None and not tells_apart(calibrated):
        drf, bds = calibrated
        verdict = f"undecided: the metric does not tell signal from noise here (DRF {drf:.2f}, BDS {bds:.2f})"
    each = known[worst]
    numbers = {"difference": each.mean, "difference_low": each.low, "difference_high": each.high}
    return {"against": worst, **numbers, "verdict": verdict}


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; those without rows are left out, because their columns have no types."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def read_of_split(path: str) -> pd.DataFrame:
    """A table of a split (``.../DATASET/SPLIT/file``), with its place in columns; baselines are their own runs."""
    folder = Path(path).parent
    table = read(path)
    return table.assign(run=table["model"], dataset=folder.parent.name, split_name=folder.name)
