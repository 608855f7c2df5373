"""Every published number next to ours: the difference, and a verdict in words (published.tsv)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from samsvae.evaluation.selection import summary
from samsvae.figures.pair_scores import every_number, with_axes
from samsvae.figures.published import NUMBERS, numbers
from samsvae.figures.runs import models_only, of_largest_amount, of_settings, restricted
from samsvae.figures.score_table import METRICS
from samsvae.tables import read

#: What identifies a published number within its table.
KEY = NUMBERS[:5]

#: A difference of at most so many standard deviations is no difference.
MOST_SD = 2.0

#: Metrics of Table 1 -> the names of ours.
_OURS = {metric.partition("/")[0]: metric for metric, *_ in METRICS.values()}


def reproduction(sources: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each published number, with ours and how they differ.

    ``sources``: `FigurePlan.reproductions`. Columns: task, experiment, model, encoding, fraction, metric, split;
    published_mean, published_sd, published_n; mean, sd and n of our runs, chosen as in the figures ``scores`` and
    ``combinations``; difference (ours minus published); spread (whose sd is the unit of difference_in_sd: published,
    or ours if the paper has none); difference_in_sd; verdict. Scores of a screen that is not the published one have no
    difference. DataError for a damaged table.
    """
    parts = [_compared(source) for source in sources]
    return pd.concat(parts, ignore_index=True)


def _compared(source: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of one published table and one experiment (or none)."""
    theirs = numbers(source["published"]).replace({"metric": _OURS})
    theirs = theirs.rename(columns={name: f"published_{name}" for name in NUMBERS[5:]})
    ours = _ours(source) if source["scores"] else pd.DataFrame(columns=list(NUMBERS))
    ours = ours.astype(dict.fromkeys(("fraction", "mean", "sd", "n"), float))
    table = theirs.merge(ours, on=list(KEY), how="left", validate="one_to_one")
    comparable = not source["not_comparable"]
    table["difference"] = table["mean"] - table["published_mean"] if comparable else np.nan
    has_sd = table["published_sd"] > 0
    table["spread"] = np.where(table["difference"].isna(), "", np.where(has_sd, "published", "ours"))
    spread = table["published_sd"].where(has_sd, table["sd"])
    table["difference_in_sd"] = table["difference"] / spread.where(spread > 0)
    if comparable:
        table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    else:
        table["verdict"] = f"not comparable: {source['not_comparable']}"
    return table.assign(task=source["task"], experiment=source["experiment"])[["task", "experiment", *table]]


def _ours(source: Mapping[str, Any]) -> pd.DataFrame:
    """Our scores of an experiment, by KEY: mean, sd, n over runs."""
    rows = restricted(models_only(read(source["scores"])), source["compared"])
    if rows.empty:
        return pd.DataFrame(columns=list(NUMBERS))
    if source["figure"] == "combinations":
        return every_number(with_axes(rows))
    _, chosen = of_settings(of_largest_amount(rows)[0], ["model"])
    return summary(chosen.assign(encoding="sum", fraction=np.nan), KEY)


def _verdict(row: Mapping[str, Any]) -> str:
    """The verdict on one number of the published screen."""
    if np.isnan(row["difference"]):
        return "not run"
    if row["metric"] == "iwelbo_relative" and row["published_mean"] == row["published_sd"] == 0:
        return "the reference, 0 for both"
    if np.isnan(row["difference_in_sd"]):
        return "undecided: no sd"
    within = abs(row["difference_in_sd"]) <= MOST_SD
    return f"within {MOST_SD:g} sd" if within else f"differs by {row['difference_in_sd']:+.1f} sd"
