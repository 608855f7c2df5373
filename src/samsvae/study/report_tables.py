"""The tables of the report, as text: key scores of an experiment, all its scores, and any table as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from samsvae.config.vocabulary import SEED_AXES
from samsvae.config.zoo import ROWS
from samsvae.evaluation.metrics.table import metric
from samsvae.evaluation.selection import DESCRIPTION, PLACE, of_best_settings

#: Rows of one table that the page contains; the TSV has the rest.
MOST_ROWS = 3000

#: Scores in an experiment's first table, if it has them: metric, split, second line of the heading, decimals. The first
#: line is the metric's label. Higher is better, save for the density, which has no better direction.
KEY_SCORES = (
    ("iwelbo", "test", "test cells", 2),
    ("ate_pearson", "all", "all conditions", 3),
    ("ate_pearson", "test", "conditions with test cells", 3),
    ("mask_pathway_accuracy/logistic", "all", "all perturbations", 3),
    ("mcc_pearson", "test", "test cells", 3),
    ("latent_r2", "test", "test cells", 3),
    ("mask_f1/correlation", "test", "trained perturbations", 3),
    ("mask_density", "test", "trained perturbations; no score", 3),
)

#: Axes of a grid that are conditions of the experiment, not settings to choose: each value has its own rows.
CONDITIONS = ("encoding", "cells", "fraction", "n_latent")


class Column(NamedTuple):
    """A column of a table: heading, a second line below it, and whether its values are numbers."""

    name: str
    note: str
    number: bool


@dataclass(frozen=True)
class Table:
    """A table of text for the page. ``fixed``: columns with one value in all rows, stated once and left out.

    ``rows``: at most MOST_ROWS of ``total``. ``best``: cells (row, column) to emphasise.
    """

    columns: list[Column]
    rows: list[list[str]]
    total: int
    fixed: list[tuple[str, str]]
    best: frozenset[tuple[int, int]] = frozenset()


#: Verdicts on published numbers without a comparison, and what they say about the study.
_NOT_COMPARED = {
    "not comparable: miniature screen": "its screens are synthetic miniatures",
    "not comparable: other data": "its screens are not the published ones",
    "not comparable: other training": "its trainings are not the published ones",
    "not run": "no run of this study repeats them yet",
}


class KeyRow(NamedTuple):
    """A row of the key scores: model, inference and its conditions as text; its scores; the settings it chose."""

    labels: tuple[str, str]
    conditions: tuple[str, ...]
    runs: str
    scores: pd.DataFrame
    settings: str


def key_table(scores: pd.DataFrame) -> Table | None:
    """Mean ± sd over seeds of the published protocol's KEY_SCORES, with each model's best settings on validation data.

    None if no run has a validation IWELBO. Baselines are at the end.
    """
    published = scores[scores["protocol"] == "published"].drop(columns=[c for c in PLACE if c in scores])
    is_baseline = published["method"] == "baseline"
    models, baselines = published[~is_baseline], published[is_baseline]
    if not ((models["metric"] == "iwelbo") & (models["split"] == "val") & models["value"].notna()).any():
        return None
    conditions = [c for c in CONDITIONS if c in models and models[c].nunique(dropna=False) > 1]
    rows = [*_model_rows(models, conditions), *_baseline_rows(baselines, conditions)]
    columns = [Column("Model", "", False), Column("Inference", "", False)]
    columns += [Column(_heading(c), "", bool(pd.api.types.is_numeric_dtype(models[c]))) for c in conditions]
    columns.append(Column("Runs", "", True))
    cells = [[*row.labels, *row.conditions, row.runs] for row in rows]
    best: set[tuple[int, int]] = set()
    previous: list[list[list[float]]] = []
    for name, split, note, decimals in KEY_SCORES:
        values = [_values(row.scores, name, split) for row in rows]
        exact = [list(value) for value in values]
        if not any(exact) or exact in previous:  # the same again: every condition has test cells
            continue
        previous.append(exact)
        for line, value in zip(cells, values, strict=True):
            line.append(_mean_sd(value, decimals))
        if metric(name).better:
            best |= {(i, len(columns)) for i in _best_rows(rows, [value.mean() for value in values])}
        columns.append(Column(metric(name).label, note, True))
    if any(row.settings for row in rows):
        columns.append(Column("Settings chosen", "on validation data", False))
        cells = [[*line, row.settings] for line, row in zip(cells, rows, strict=True)]
    return Table(columns, cells, len(cells), [], frozenset(best))


def _model_rows(models: pd.DataFrame, conditions: list[str]) -> Iterator[KeyRow]:
    """A row per model and condition, in the order of the grid. One choice of settings holds for all fractions."""
    over = [*SEED_AXES, "fraction"]
    best = of_best_settings(models, ["model", *(c for c in conditions if c != "fraction")], over)
    settings = [c for c in models if c not in {"model", *conditions, *over, *DESCRIPTION}]
    for model in models["model"].unique():
        every = models[models["model"] == model]
        chosen = [c for c in settings if every[c].nunique(dropna=False) > 1]
        for at, group in _groups(best[best["model"] == model], conditions):
            first = group.iloc[0]
            text = ", ".join(f"{spaced(c)} {cell_text(first[c])}" for c in chosen)
            yield KeyRow((first["method"], cell_text(first["inference"])), at, str(group["run"].nunique()), group, text)


def _baseline_rows(baselines: pd.DataFrame, conditions: list[str]) -> Iterator[KeyRow]:
    for model in baselines["model"].unique():
        for at, group in _groups(baselines[baselines["model"] == model], conditions):
            yield KeyRow((spaced(model), "baseline"), at, "", group, "")


def _groups(rows: pd.DataFrame, by: list[str]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Groups of rows with equal values in some columns, sorted by them; all rows without a column."""
    if not by and len(rows):
        yield (), rows
    elif by:
        for at, group in rows.groupby(by, dropna=False):
            yield tuple(map(cell_text, at)), group


def _values(scores: pd.DataFrame, name: str, split: str) -> pd.Series:
    return scores.loc[(scores["metric"] == name) & (scores["split"] == split), "value"].dropna()


def _mean_sd(values: pd.Series, decimals: int) -> str:
    return _plus_minus(values.mean(), values.std(), decimals)


def _plus_minus(mean: float, sd: float, decimals: int) -> str:
    """A mean and its sd as text; nothing for NaN."""
    return _signed(mean, decimals, "") + (f" ± {sd:.{decimals}f}" if mean == mean and sd == sd else "")


def _signed(value: float, decimals: int, plus: str = "+") -> str:
    return f"{value:{plus}z.{decimals}f}".replace("-", "−") if value == value else ""


def _best_rows(rows: Sequence[KeyRow], means: Sequence[float]) -> list[int]:
    """The model with the highest mean among those under the same conditions, if there are several."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, (row, mean) in enumerate(zip(rows, means, strict=True)):
        if row.runs and mean == mean:
            groups.setdefault(row.conditions, []).append(i)
    return [max(group, key=means.__getitem__) for group in groups.values() if len(group) > 1]


def verdict_sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """For each metric (and set of conditions), which models have which verdict: a heading and a sentence."""
    found = []
    for (name, *where), rows in verdicts.groupby([c for c in ("metric", "set") if c in verdicts], sort=False):
        heading = ", ".join([metric(str(name)).label, *(f"{each} conditions" for each in where)])
        by_verdict = rows.groupby("verdict", sort=False)["model"].agg(list)
        parts = [
            f"{', '.join(map(_full_name, models))}: {_in_words(verdict)}" for verdict, models in by_verdict.items()
        ]
        found.append((heading, "; ".join(parts) + "."))
    return found


def _full_name(model: str) -> str:
    return f"{ROWS[model].method} ({ROWS[model].inference})"


def _in_words(verdict: object) -> str:
    """A verdict with the names of models as the tables write them."""
    return re.sub(r"\w+", lambda word: _full_name(word[0]) if word[0] in ROWS else spaced(word[0]), str(verdict))


def reproductions(table: pd.DataFrame) -> tuple[str, list[tuple[str, str, Table]]]:
    """Published numbers next to ours: for each published table its name, how many have which verdict, and the numbers.

    If no score of the study may be compared with them, there is only the first value, a sentence that says why.
    ``table``: published.tsv.
    """
    kinds = table["verdict"].str.replace(r" by .*", "", regex=True)
    if kinds.str.match("not (run|comparable)").all():
        numbers = {why: int((kinds == verdict).sum()) for verdict, why in _NOT_COMPARED.items()}
        reasons = [f"{why} ({number} numbers)" for why, number in numbers.items() if number]
        start = f"No score of this study is compared with the {len(table)} published numbers: "
        return f"{start}{'; '.join(reasons)}.", []
    found = []
    for task, rows in table.groupby("task", sort=False):
        higher = rows.loc[kinds == "differs", "difference"] > 0
        sides = {"differs": f" (ours is higher: {higher.sum()}, lower: {(~higher).sum()})"}
        counts = kinds[rows.index].value_counts().items()
        words = (f"{str(kind).capitalize()}: {n}{sides.get(str(kind), '')}." for kind, n in counts)
        found.append((str(task), " ".join([f"{len(rows)} numbers.", *words]), _reproduction(rows)))
    return "", found


def _reproduction(table: pd.DataFrame) -> Table:
    """The rows of one published table, as text."""
    rows = []
    for row in table.to_dict("records"):
        decimals = 2 if row["metric"].startswith("iwelbo") else 3
        theirs, ours = (_plus_minus(row[f"{end}mean"], row[f"{end}sd"], decimals) for end in ("published_", ""))
        model, label = ROWS[row["model"]], metric(row["metric"]).label.partition(" (")[0]
        rows.append(
            {
                Column("Model", "", False): f"{model.method}, {model.inference}",
                Column("Encoding", "", False): row["encoding"],
                Column("Fraction", "", True): cell_text(row["fraction"]),
                Column("Metric", "", False): f"{label}, {row['split']}",
                Column("Published", "mean ± sd", True): theirs,
                Column("Ours", "mean ± sd", True): ours,
                Column("Verdict", "", False): row["verdict"].replace(" -", " −"),
                Column("Difference", "", True): _signed(row["difference"], decimals),
                Column("Difference", "in sd", True): _signed(row["difference_in_sd"], 1),
                Column("Runs", "", True): cell_text(row["n"]),
            }
        )
    has_fractions = table["fraction"].notna().any()  # else there are no combinations, and so one encoding
    columns = [column for column in rows[0] if has_fractions or column.name not in ("Encoding", "Fraction")]
    return Table(columns, [[row[column] for column in columns] for row in rows[:MOST_ROWS]], len(rows), [])


def score_table(scores: pd.DataFrame) -> Table:
    """All scores: a row per run (and baseline), a column per metric, split and protocol."""
    labels = [c for c in scores if c not in {"protocol", "metric", "split", "value", "rules"}]
    kinds = list(dict.fromkeys(zip(scores["metric"], scores["split"], scores["protocol"], strict=True)))
    wide: dict[tuple[str, ...], dict[tuple, str]] = {}
    keys = zip(*(map(cell_text, scores[c]) for c in labels), strict=True)
    values = zip(scores["metric"], scores["split"], scores["protocol"], scores["value"], strict=True)
    for key, (name, split, protocol, value) in zip(keys, values, strict=True):
        wide.setdefault(key, {})[name, split, protocol] = f"{value:#.6g}" if value == value else ""
    table = pd.DataFrame(list(wide), columns=labels, dtype=object).replace("", None)
    table = table.drop(columns=[c for c in ("model", *PLACE) if c in table])  # a run's id names them
    for kind in kinds:
        table[kind] = [found.get(kind, "") for found in wide.values()]
    return whole_table(table, keep=("run", "method", "inference", *kinds))


def whole_table(table: pd.DataFrame, keep: Sequence[object] = ("run",)) -> Table:
    """A table as text; columns with the same value in every row, other than ``keep``, are stated once."""
    constant = [c for c in table if c not in keep and len(table) > 1 and table[c].nunique(dropna=False) == 1]
    fixed = [(spaced(str(c)), cell_text(table[c].iloc[0])) for c in constant]
    columns, cells = [], []
    for name in table.columns.drop(constant):
        cells.append([cell_text(value) for value in table[name][:MOST_ROWS]])
        number = all(_NUMBER.fullmatch(text) for text in cells[-1] if text)
        first, *where = name if isinstance(name, tuple) else (_heading(str(name)),)
        columns.append(Column(first, ", ".join(where), number))
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table(columns, rows, len(table), [(name, value) for name, value in fixed if value])


_NUMBER = re.compile(r"-?[\d,]*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)


def cell_text(value: object) -> str:
    """A cell: floats with six digits, nothing for None and NaN."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value)


def spaced(name: str) -> str:
    return name.replace("_", " ")


def _heading(name: str) -> str:
    return spaced(name)[:1].upper() + spaced(name)[1:]
