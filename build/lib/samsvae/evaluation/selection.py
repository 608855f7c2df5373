"""Choose hyper-parameters from score tables, which have a row with a ``value`` for each run, metric and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from samsvae.errors import DataError, nearest, some

#: Columns of a score table that describe a row and are never hyper-parameters.
DESCRIPTION = (
    "experiment",
    "run",
    "checkpoint",
    "method",
    "inference",
    "protocol",
    "metric",
    "split",
    "value",
    "rules",
)

#: Columns of a grid that name files; the settings in which files differ have separate columns.
PLACE = ("dataset", "split_name")


def best_settings(
    scores: pd.DataFrame,
    by: Sequence[str],
    over: Sequence[str] = ("seed",),
    *,
    settings: Sequence[str] | None = None,
    metric: str = "iwelbo",
    split: str = "val",
) -> pd.DataFrame:
    """The settings with the best mean score over seeds (``over``), for each group of ``by``.

    ``settings``: the columns that define a setting; by default every column that is not in ``by``, ``over`` or
    DESCRIPTION. Settings with fewer finished seeds than others in the group are not considered, because a mean over
    the surviving runs is biased. A column of ``over`` that the scores lack is ignored. If means are equal, the first
    setting in sorted order wins. Columns: ``by``, ``settings``, mean, sd, n. DataError if the scores have no rows of
    this metric and split.
    """
    by, over = list(by), [c for c in over if c in scores]
    table = _of(scores, metric, split)
    settings = [c for c in table if c not in {*by, *over, *DESCRIPTION}] if settings is None else list(settings)
    columns = [*by, *settings]
    seeds = summary(table, [*columns, *over]).rename(columns={"mean": "value"})  # one value per seed
    means = summary(seeds, columns)
    most = means.groupby(by, dropna=False)["n"].transform("max") if by else means["n"].max()
    means = means[(means["n"] == most) & (means["n"] > 0)].sort_values("mean", ascending=False, kind="stable")
    return _first(means, by)


def best_runs(scores: pd.DataFrame, by: Sequence[str], *, metric: str = "iwelbo", split: str = "test") -> pd.DataFrame:
    """The published rule: for each group of ``by``, the run with the best *test* score, which is then not held out.

    DataError if the scores have no rows of this metric and split.
    """
    table = _of(scores, metric, split).dropna(subset="value")
    return _first(table.sort_values("value", ascending=False, kind="stable"), list(by))


def chosen(scores: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """The scores (all metrics) of the settings or runs that best_settings or best_runs chose; NaN equals NaN."""
    on = [c for c in best if c in scores and c not in {"metric", "split", "value", "protocol", "experiment"}]
    return scores.merge(best[on].drop_duplicates(), on=on)


def of_best_settings(
    scores: pd.DataFrame, by: Sequence[str] = ("model",), over: Sequence[str] = ("seed",)
) -> pd.DataFrame:
    """The scores (all metrics, all seeds) of the settings that are best on validation data for each group of ``by``."""
    return chosen(scores, best_settings(scores, by, over).drop(columns=["mean", "sd", "n"]))


def shown(runs: pd.DataFrame, over: Sequence[str] = ("seed",)) -> pd.DataFrame:
    """The run to show for each setting: the first, sorted by ``over``, of the runs that differ only in ``over``.

    ``runs``: scores or a grid, with a column run. Returns one row for each setting, in the order of ``runs``. Rules and
    figures both call this function; of_best_settings chooses the setting.
    """
    over = [c for c in over if c in runs]
    settings = [c for c in runs if c not in {*over, *DESCRIPTION, *PLACE}]
    each = runs.drop_duplicates("run").reset_index(drop=True)
    return (each.sort_values(over, kind="stable") if over else each).drop_duplicates(settings).sort_index()


def relative_to(
    scores: pd.DataFrame, reference: Mapping[str, object], match: Sequence[str], *, metric: str = "iwelbo"
) -> pd.DataFrame:
    """Rows of one metric minus the reference with equal ``match`` columns and split, as ``<metric>_relative``.

    For Norman: ``relative_to(scores, {"model": "sams_vae_corr", "encoding": "sum", "fraction": 0}, ["split_seed"])``.
    If several runs (seeds) fit the reference, their mean is subtracted; so filter other hyper-parameters of the
    reference beforehand, or name them in it. DataError if a column is missing, or the reference has no row for a match.
    """
    for column in (*reference, *match):
        _known(scores, column)
    table = scores[scores["metric"] == metric]
    fits = pd.Series(True, index=table.index)
    for column, value in reference.items():
        fits &= table[column] == value
    on = [*match, "split"]
    base = table[fits].groupby(on, dropna=False)["value"].mean().rename("base").reset_index()
    table = table.merge(base, on=on, how="left", indicator="found")
    lost = table.loc[table["found"] != "both", on].drop_duplicates()
    if len(lost):
        where = some(", ".join(f"{k} {v}" for k, v in row.items()) for row in lost.to_dict("records"))
        what = ", ".join(f"{k} {v}" for k, v in reference.items())
        raise DataError(f"scores: the reference ({what}) has no {metric} for {where}; add or rerun it.")
    table["value"] -= table["base"]
    return table.assign(metric=f"{metric}_relative").drop(columns=["base", "found"])


def summary(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, sd (n - 1) and number of values that are not NaN, per group of ``by``, in which NaN is a value too."""
    by = list(by)
    for column in by:
        _known(scores, column)
    if not by:
        return pd.DataFrame([scores["value"].agg(["mean", "std", "count"]).rename({"std": "sd", "count": "n"})])
    return scores.groupby(by, dropna=False)["value"].agg(mean="mean", sd="std", n="count").reset_index()


def _first(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The first row of each group of ``by``, sorted by it; of the complete table if ``by`` is empty."""
    if not by:
        return table.head(1).reset_index(drop=True)
    return table.drop_duplicates(by).sort_values(by, ignore_index=True)


def _of(scores: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Rows of one metric and split; DataError if there are none."""
    for column, value in (("metric", metric), ("split", split)):
        _known(scores, column)
        if not (scores[column] == value).any():
            raise DataError(f"scores: the column {column!r} has no {value!r}.{nearest(value, scores[column].unique())}")
    return scores[(scores["metric"] == metric) & (scores["split"] == split)]


def _known(scores: pd.DataFrame, column: str) -> None:
    if column not in scores:
        raise DataError(f"scores: the column {column!r} is missing.{nearest(column, scores.columns)}")
