"""Scores of the combinations figure by model and fraction: relative IWELBO, ATE-Pearson, and the honest Pearson."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from samsvae.evaluation.collect import collect_scores
from samsvae.evaluation.selection import PLACE, of_best_settings, relative_to, summary
from samsvae.evaluation.worth import CEILING, read_of_split
from samsvae.figures import style
from samsvae.figures.runs import models_only, of_every_condition
from samsvae.tables import read

PLAIN = "sum"  # the encoding in which a combination is the sum of its perturbations

#: The reference of the published tables: a SAMS-VAE that saw no combination.
REFERENCE: dict[str, object] = {"model": "sams_vae_corr", "encoding": PLAIN, "fraction": 0}

EFFECTS = ("ate_pearson", "ate_pearson_top20")

#: The score of the honest protocol, and what is drawn next to the models.
HONEST, HONEST_LINES = "pearson_centred", ("additive", "shrunk", "ridge_pc", CEILING)

OVER = ("seed", "split_seed", "fraction")  # settings are chosen over all of these


def read_all_scores(grid: str, scores: Iterable[str], baselines: Sequence[str]) -> pd.DataFrame:
    """Scores of runs with the columns of the grid, and of the baselines with the fraction and seed of their split.

    A grid without fractions has NaN, one without split seeds 0.
    """
    return with_axes(collect_scores(read(grid), scores, [], baselines))


def with_axes(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with the columns fraction (NaN) and split_seed (0), if their grid does not have these axes."""
    return scores.assign(
        **{c: value for c, value in (("fraction", float("nan")), ("split_seed", 0)) if c not in scores}
    )


def best_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of each model and encoding under its best settings over all splits and fractions."""
    return of_best_settings(models_only(scores), ["model", "encoding"], OVER)


def core(table: pd.DataFrame, encoding: str = PLAIN) -> pd.DataFrame:
    """The test rows of one encoding: models without PLAIN are always among them, and so are baselines."""
    if "split" in table:
        table = table[table["split"] == "test"]
    if "encoding" not in table:
        return table
    plain = set(table.loc[table["encoding"] == PLAIN, "model"])
    always = {*style.models_in(table["model"], baselines=True), *(set(table["model"]) - plain)}
    return table[table["model"].isin(always) | (table["encoding"] == encoding)]


def summarise(scores: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Relative IWELBO and ATE-Pearson of the test cells: model, encoding, fraction, metric, mean, sd, n over runs.

    Each model has its best settings on validation data. The second value names the reference of the
    relative IWELBO: REFERENCE on the same split seed (metric iwelbo_relative; DataError if it is missing for a split
    seed), or, for scores without it, the model with the best mean validation IWELBO on the same split
    (metric iwelbo_relative_to_best).
    """
    rows = best_rows(scores)
    relative, reference = _relative(rows)
    places = scores.loc[scores["run"].isin(rows["run"]), list(PLACE)].drop_duplicates()
    base = scores[(scores["protocol"] == "published") & (scores["method"] == "baseline")]
    base = base.merge(places, on=list(PLACE))  # no baseline of a data set or split whose runs were not chosen
    ate = pd.concat([rows, base], ignore_index=True).query("metric == 'ate_pearson'")
    table = pd.concat([relative[relative["split"] == "test"], _of_test_conditions(ate)], ignore_index=True)
    table["encoding"] = table["encoding"].fillna(PLAIN)
    return summary(table, ["model", "encoding", "fraction", "metric"]), reference


def every_number(scores: pd.DataFrame) -> pd.DataFrame:
    """What the published tables hold, of our runs: model, encoding, fraction, metric, split, mean, sd, n over runs.

    Settings are chosen as in `summarise`. The relative IWELBO is over the split seeds for which REFERENCE has run.
    """
    rows = best_rows(scores)
    known = rows[rows["split_seed"].isin(rows.loc[_is_reference(rows), "split_seed"])]
    relative = relative_to(known, REFERENCE, ["split_seed"])
    effects = _of_test_conditions(rows[rows["metric"].isin(EFFECTS)]).assign(split="test")
    table = pd.concat([rows[rows["metric"] == "iwelbo"], relative, effects], ignore_index=True)
    return summary(table, ["model", "encoding", "fraction", "metric", "split"])


def _is_reference(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(np.all([rows[column] == value for column, value in REFERENCE.items()], axis=0), rows.index)


def summarise_honest(scores: pd.DataFrame, worth: Sequence[str], baselines: Sequence[str]) -> pd.DataFrame:
    """HONEST of the models that `summarise` shows, of baselines and of the ceiling, with the same columns.

    Over all conditions with test cells. worth: RUN/worth.tsv of the runs. baselines: SPLIT/worth.tsv of every split.
    """
    runs = best_rows(scores)[["run", "model", "encoding", "fraction"]].drop_duplicates()
    places = scores.loc[scores["run"].isin(runs["run"]), [*PLACE, "fraction"]].drop_duplicates()
    ours = pd.concat([of_every_condition(read(path)) for path in worth]).merge(runs, on="run")
    theirs = pd.concat([of_every_condition(read_of_split(path)) for path in baselines]).merge(places, on=list(PLACE))
    table = pd.concat([ours, theirs[theirs["model"].isin(HONEST_LINES)].assign(encoding=PLAIN)], ignore_index=True)
    table = table[(table["metric"] == HONEST) & table["value"].notna()]
    return summary(table, ["model", "encoding", "fraction", "metric"])


def unscored(scores: pd.DataFrame, baselines: Sequence[str]) -> str:
    """What the honest protocol does not score in the splits that `summarise` shows, and why, as a sentence; or ''."""
    runs = best_rows(scores)["run"]
    places = scores.loc[scores["run"].isin(runs), list(PLACE)].drop_duplicates()
    table = pd.concat([read_of_split(path) for path in baselines]).merge(places, on=list(PLACE))
    table = table[table["model"] == CEILING]
    for metric, what in ((HONEST, "effects"), ("interaction_nmse", "interactions")):
        rows = table[table["metric"].isna() | (table["metric"] == metric)]
        if len(rows) and rows["value"].isna().all():
            return f"The honest protocol scores no {what}: {rows['reason'].iloc[0].rstrip('.')}."
    return ""


def _of_test_conditions(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of conditions with test cells; where all conditions have some, there is just one row, for ``all``."""
    place = rows.reindex(columns=["run", *PLACE]).astype(str).agg("/".join, axis=1)
    is_test = rows["split"] == "test"
    return rows[is_test | ((rows["split"] == "all") & ~place.isin(place[is_test]))]


def _relative(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """IWELBO minus that of the reference, and the name of the reference."""
    if _is_reference(rows).any():
        name = f"{style.label(str(REFERENCE['model']))} at fraction {REFERENCE['fraction']}"
        return relative_to(rows, REFERENCE, ["split_seed"]), name
    val = rows[(rows["metric"] == "iwelbo") & (rows["split"] == "val")]
    means = val.groupby(["model", "encoding"]).agg(value=("value", "mean"), n=("run", "nunique")).reset_index()
    best = means[means["n"] == means["n"].max()].sort_values("value", ascending=False, kind="stable").iloc[0]
    reference: dict[str, object] = {"model": best["model"], "encoding": best["encoding"]}
    relative = relative_to(rows, reference, ["split_seed", "fraction"])
    return relative.assign(metric="iwelbo_relative_to_best"), f"{style.label(best['model'])} on the same split"
