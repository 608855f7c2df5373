"""What the scores of the honest protocol are worth: each compared with every baseline, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.evaluation.metrics.calibration import LEAST_BDS, LEAST_DRF
from samsvae.evaluation.metrics.intervals import Interval, paired_difference
from samsvae.evaluation.metrics.table import metric
from samsvae.tables import read

#: The metrics in front. They score centred effects, in which only differences between conditions count.
HEADLINE = ("nmse_centred", "pearson_centred", "discrimination")

#: The name of the ceiling among the models of a split's table.
CEILING = "ceiling"

#: What `compare` returns.
VERDICT = ("against", "difference", "difference_low", "difference_high", "verdict")

#: Columns that identify a row of a run's table and of its conditions.
ROW, CONDITION = ("run", "metric", "set"), ("run", "metric", "set", "condition")


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
    ``baseline_conditions``: paths of splits (``.../DATASET/SPLIT/file``), whose model is also their run.
    """
    place = grid[["run", "model", "dataset", "split_name"]]
    ours, each = (
        _joined([read(path) for path in paths]).merge(place, on="run", validate="many_to_one")
        for paths in (worth, conditions)
    )
    theirs, their_each = (_joined([_of_split(path) for path in paths]) for paths in (baselines, baseline_conditions))
    verdicts = []
    for (run, name, where, dataset, split_name), rows in each.groupby([*ROW, "dataset", "split_name"], sort=False):
        at = (their_each["metric"] == name) & (their_each["set"] == where) & (their_each["model"] != CEILING)
        at &= (their_each["dataset"] == dataset) & (their_each["split_name"] == split_name)
        here = (theirs["metric"] == name) & (theirs["dataset"] == dataset) & (theirs["split_name"] == split_name)
        found = compare(str(name), rows, their_each[at], calibrated=calibration_of(theirs[here]))
        verdicts.append({"run": run, "metric": name, "set": where, **found})
    ours = ours.merge(pd.DataFrame(verdicts, columns=[*ROW, *VERDICT]), on=list(ROW), how="left")
    return _joined([ours, theirs]), _joined([each, their_each])


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
        if len(both) >= 3:
            weight = both["weight"].to_numpy() if name.startswith("nmse") else None
            values = sign * both["value"].to_numpy(), sign * both["theirs"].to_numpy()
            found[str(model)] = paired_difference(*values, over=weight)
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


def _of_split(path: str) -> pd.DataFrame:
    """A table of a split, with its place in columns; baselines are their own runs."""
    folder = Path(path).parent
    table = read(path)
    return table.assign(run=table["model"], dataset=folder.parent.name, split_name=folder.name)
