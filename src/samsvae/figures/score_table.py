"""The table of scores: one row per model, next to the published numbers if there are any."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from samsvae.config.zoo import ROWS
from samsvae.errors import DataError
from samsvae.evaluation.metrics.constants import FIT
from samsvae.evaluation.metrics.table import axis_label
from samsvae.evaluation.selection import DESCRIPTION, PLACE, best_runs, chosen, summary
from samsvae.figures import style
from samsvae.figures.runs import REPLICATES

#: metric of the table: (its rows in the scores: metric, split; title; decimals)
METRICS = {
    "test_iwelbo": ("iwelbo", "test", f"test {axis_label('iwelbo')}", 2),
    "mask_pathway_accuracy": (
        "mask_pathway_accuracy/logistic",
        "all",
        axis_label("mask_pathway_accuracy/logistic"),
        2,
    ),
    "ate_pearson": ("ate_pearson", "all", axis_label("ate_pearson"), 3),
}

#: metric of the table: the baseline named at its axis, and that baseline's rows: protocol, metric, split
BASELINES = {
    "test_iwelbo": ("intercept_nb", "held-out", "log_likelihood", "test"),
    "ate_pearson": ("mean_of_perturbations", "published", "ate_pearson", "all"),
}

#: Settings named in a row, with their words. Others have their own names.
WORDS = {
    "beta_b": "b = {:g}",
    "mask_prior": "α = {:g}",
    "n_latent": "{:g} latents",
    "n_layers": "{:g} layers",
    "kl_weight": "β = {:g}",
    "mask_penalty": "λ = {:g}",
    "encoding": "{} encoding",
}


def build_table(
    scores: pd.DataFrame, selected: pd.DataFrame, published: pd.DataFrame | None = None, *, comparable: bool = True
) -> pd.DataFrame:
    """A row per model in the order of all figures; NaN for a missing number, no columns for a metric without any.

    scores: of the published protocol, tidy (model, run, settings, seed, metric, split, value). selected: the
    settings chosen on validation data, a row per model (selection.best_settings by model). published:
    published.replogle_table1; without it the table has no columns about published numbers.
    ``ate_pearson_published_rule`` is that of the one run with the best *test* IWELBO among all settings with the chosen
    number of latents. ``inside_seed_interval``: the published mean is within mean ± 2 sd of our replicates; empty for
    a single run. comparable: whether screen and training are the published ones; if not, differences and intervals are
    empty.
    """
    style.need(scores, ["model", "run", "metric", "split", "value"], "scores")
    style.need(selected, ["model"], "selected settings")
    ours = chosen(scores, selected.drop(columns=["mean", "sd", "n"], errors="ignore"))
    means = summary(ours, ["model", "metric", "split"]).set_index(["model", "metric", "split"])
    varied = _varied(scores)
    rows = []
    for model in style.models_in(ours["model"]):
        mine = ours[ours["model"] == model]
        row: dict[str, object] = {"model": model, "method": ROWS[model].method, "inference": ROWS[model].inference}
        row |= {"settings": settings_text(mine.iloc[0], varied.get(model, ())), "n_runs": mine["run"].nunique()}
        for name, (metric, split, *_) in METRICS.items():
            row[name], row[f"{name}_sd"] = _at(means, (model, metric, split))
        rows.append(row)
    if not rows:
        raise DataError("table of scores: no run has the selected settings, so there is nothing to draw.")
    table = pd.DataFrame(rows)
    table = table.drop(columns=[f"{name}{end}" for name in METRICS if table[name].isna().all() for end in ("", "_sd")])
    return table if published is None else _with_published(table, scores, selected, published, comparable=comparable)


def _with_published(
    table: pd.DataFrame, scores: pd.DataFrame, selected: pd.DataFrame, published: pd.DataFrame, *, comparable: bool
) -> pd.DataFrame:
    """The table with the paper's rule for its ATE column, the published numbers, and how ours differ from them."""
    style.need(published, ["model", "metric", "mean", "sd"], "published numbers")
    theirs = published.set_index(["model", "metric"])
    if "n_latent" in selected and "n_latent" in scores:
        scores = scores.merge(selected[["model", "n_latent"]], on=["model", "n_latent"])
    best = scores.merge(best_runs(scores, ["model"])[["model", "run"]], on=["model", "run"])
    best = best[(best["metric"] == "ate_pearson") & (best["split"] == "all")].set_index("model")["value"]
    table = table.assign(ate_pearson_published_rule=table["model"].map(best))
    there = [name for name in METRICS if name in table]
    for name in there:
        metric = METRICS[name][0].partition("/")[0]
        pairs = [_at(theirs, (model, metric)) for model in table["model"]]
        table[f"published_{name}"], table[f"published_{name}_sd"] = np.array(pairs).T
    for name in there:
        table[f"difference_{name}"] = table[name] - table[f"published_{name}"] if comparable else np.nan
    for name in there:
        difference, sd = table[f"difference_{name}"], table[f"{name}_sd"]
        inside = (difference.abs() <= 2 * sd).astype(object)
        table[f"inside_seed_interval_{name}"] = inside.where(difference.notna() & sd.notna(), None)
    return table


def settings_text(row: pd.Series, varied: Sequence[str] = ()) -> str:
    """The chosen settings of a row: 'α = 0.01, 100 latents'.

    They are the ones that describe its model (b, α, the number of latents), and the `varied` ones, which differ between
    its runs.
    """
    model = row["model"]
    shown = [name for name in varied if name not in ("beta_b", "mask_prior", "n_latent")]
    if model in ("svae_plus", "sams_vae_bb", "svae_plus_lopez"):
        shown.insert(0, "beta_b")
    if model.startswith("sams_vae") and model != "sams_vae_bb":
        shown.insert(0, "mask_prior")
    shown.append("n_latent")
    return ", ".join(WORDS.get(name, f"{name} = {{}}").format(row[name]) for name in shown if pd.notna(row.get(name)))


def baseline_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The baselines to compare with: metric of the table, model, value (mean over splits)."""
    rows = []
    for name, (model, protocol, metric, split) in BASELINES.items():
        at = (scores["method"] == "baseline") & (scores["model"] == model) & (scores["protocol"] == protocol)
        value = scores.loc[at & (scores["metric"] == metric) & (scores["split"] == split), "value"].mean()
        rows += [(name, model, value)] * bool(np.isfinite(value))
    return pd.DataFrame(rows, columns=["metric", "model", "value"])


def single_runs(scores: pd.DataFrame) -> pd.DataFrame:
    """The table's metrics of every run: model, run, metric, value."""
    parts = [
        scores[(scores["metric"] == metric) & (scores["split"] == split)].assign(metric=name)
        for name, (metric, split, *_) in METRICS.items()
    ]
    return pd.concat(parts, ignore_index=True)[["model", "run", "metric", "value"]]


def fit_table(scores: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    """How the fits of these runs went: model, run, metric, value (the rows of protocol ``fit``)."""
    at = (scores["protocol"] == FIT) & scores["run"].isin(runs)
    return scores.loc[at, ["model", "run", "metric", "value"]].reset_index(drop=True)


def fit_sentences(fits: pd.DataFrame) -> str:
    """Counts of sampled cells, runs whose loss had not levelled off, runs no better than intercept-only; '' if none."""
    depths = sorted(set(fits.loc[fits["metric"] == "ate_library", "value"]))
    found = [f"Sampled cells have {' or '.join(f'{depth:,.0f}' for depth in depths)} counts."] if depths else []
    for metric, bad, words in (
        ("levelled_off", lambda value: value == 0, "The validation loss had not levelled off (train longer)"),
        ("gain_over_intercept_only", lambda value: value <= 0, "No better than an intercept-only model"),
    ):
        rows = fits[fits["metric"] == metric]
        few = rows[bad(rows["value"])]
        if len(few):
            names = ", ".join(
                f"{style.label(model)} ({(few['model'] == model).sum()} of {(rows['model'] == model).sum()} runs)"
                for model in style.models_in(few["model"])
            )
            found.append(f"{words}: {names}.")
    return " ".join(found)


def _varied(scores: pd.DataFrame) -> dict[str, list[str]]:
    """Model -> the settings that differ between its runs."""
    other = {*WORDS, *REPLICATES, *DESCRIPTION, *PLACE, "model"}
    names = [name for name in WORDS if name in scores] + [name for name in scores if name not in other]
    counts = scores.groupby("model")[names].nunique()
    return {str(model): [name for name in names if row[name] > 1] for model, row in counts.iterrows()}


def _at(table: pd.DataFrame, key: tuple) -> tuple[float, float]:
    if key not in table.index:
        return math.nan, math.nan
    mean, sd = table.loc[key, ["mean", "sd"]].astype(float)
    return mean, sd
