"""The likelihood bound by number of particles, and how far its importance weights can be trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.evaluation.bound import HEAVY_METRIC, SAMPLE, TEST, verdicts
from samsvae.evaluation.metrics.importance_weights import HEAVY, HEAVY_SHARE
from samsvae.evaluation.metrics.table import metric
from samsvae.figures import style
from samsvae.figures.runs import models_only, of_largest_amount, of_settings, restricted
from samsvae.tables import read

SAVED = {"": "bounds", "verdicts": "verdicts"}

#: Cells of a panel, in words.
CELLS = {SAMPLE: "a sample of", TEST: "all"}

PLACE = ["dataset", "split_name"]


def tables(*, scores: str, bound: str, compared: Mapping[str, object]) -> dict[str, object]:
    """Arguments of draw: bounds and weights of the models, averaged over the runs with each model's best settings.

    scores, bound: EXPERIMENT/scores.tsv and bound.tsv. compared: values of axes of the grid to which the models are
    restricted.
    """
    rows, amount = of_largest_amount(restricted(models_only(read(scores)), compared))
    _, ours = of_settings(rows, ["model"])
    table = read(bound)
    table = table[table["run"].isin(ours["run"].unique())]
    bounds = averages(table)
    found = bounds.join(verdicts(bounds, who="model", by=["cells"])).dropna(subset="verdict")
    reasons = table["reason"].dropna()
    return {
        "bounds": bounds,
        "verdicts": found.drop(columns=["cells", "error", "blocks", "reason"]).reset_index(drop=True),
        "models": style.models_in(bounds["model"]),
        "reason": "" if bounds["value"].notna().any() else next(iter(reasons), "no bound is defined"),
        "amount": amount,
    }


def averages(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the runs of a model within each split, then over the splits that most models have.

    Bounds differ more between splits than between models. Errors are those of the means. NaN if a run has no value.
    """
    models = table.groupby(PLACE)["model"].nunique()
    places = models[models == models.max()].reset_index()[PLACE]
    table = table.merge(places, on=PLACE)
    of_bound = ["metric", "cells", "particles"]
    runs = table.groupby(["model", *PLACE])["run"].nunique()
    each = _mean(table, ["model", *PLACE, *of_bound])
    missing = each.set_index(["model", *PLACE]).index.map(runs).to_numpy() != each["number"].to_numpy()
    each.loc[missing, ["value", "error"]] = np.nan
    return _mean(each, ["model", *of_bound]).drop(columns="number").assign(reason="")


def _mean(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means of values, with the errors of these means, the fewest blocks and cells, and the number of rows."""
    found = table.assign(square=table["error"] ** 2).groupby(by, sort=False)
    means = found.agg(
        n_cells=("n_cells", "min"),
        value=("value", lambda values: values.mean(skipna=False)),
        error=("square", lambda squares: np.sqrt(squares.sum(skipna=False)) / len(squares)),
        blocks=("blocks", "min"),
        number=("value", "size"),
    )
    return means.reset_index()


@style.styled
def draw(
    bounds: pd.DataFrame, verdicts: pd.DataFrame, *, models: list[str], reason: str = "", amount: str = ""
) -> Figure:
    """Bounds against particles on the sample (a) and all test cells (b), differences (c), weights (d, e).

    bounds: model, metric, cells, n_cells, particles, value, error. verdicts: model, particles, n_cells, relative,
    relative_error, verdict. models: those to draw, in order. reason: why there is no bound, in which case the figure
    says so. amount: how much of the data the runs saw.
    """
    if reason:
        return style.nothing(f"Honest protocol: there is no bound to show, because {reason}", "no bound")
    bounds = style.need(bounds, ["model", "metric", "cells", "particles", "value", "error"], "bounds")
    fig = style.figure(10.6, 4.3 + 0.19 * len(models))
    only = f" Only runs with {amount}, the most data." if amount else ""
    style.note(
        fig,
        "Honest protocol: importance-weighted bound of the log-likelihood of test cells (IWELBO), with the error over "
        f"blocks of particles.{only} {_sentences(verdicts)}",
    )
    above, below = style.stacked(fig, [2.4, 1.1 + 0.19 * len(models)])
    for ax, cells, letter in zip(above.subplots(1, 2), (SAMPLE, TEST), "ab", strict=True):
        rows = bounds[(bounds["metric"] == "iwelbo") & (bounds["cells"] == cells)]
        _curves(ax, rows, cells, models)
        style.letter(ax, letter, f"IWELBO of {CELLS[cells]} {_number(rows['n_cells'])} test cells")
    left, middle, right = below.subplots(1, 3, sharey=True)
    shown = verdicts[verdicts["model"].isin(models)].set_index("model")
    _differences(left, shown, models)
    sample = bounds[bounds["cells"] == SAMPLE]
    _sizes(middle, sample, models)
    _heavy(right, sample, models)
    left.set_yticks(range(len(models)), [style.label(model) for model in reversed(models)], fontsize=7)
    for ax in (left, middle, right):
        ax.set_ylim(-0.7, len(models) - 0.3)
        ax.tick_params(axis="y", length=0)
    return fig


def _sentences(verdicts: pd.DataFrame) -> str:
    """The verdicts in words, each once with the models that have it, best first."""
    if not len(verdicts):
        return ""
    names = "|".join(map(re.escape, verdicts["model"]))
    ranked = verdicts.sort_values("relative", ascending=False, kind="stable")
    words = []
    for verdict, found in ranked.groupby("verdict", sort=False):
        text = re.sub(r"^undecided: (.*)$", r"undecided (\1)", str(verdict))
        text = re.sub(rf"\b({names})\b", lambda match: style.label(match[0]), text)
        alone = 2 < len(found) == len(verdicts)
        who = "all models" if alone else " · ".join(map(style.label, found["model"]))  # names have commas
        words.append(f"{who}: {text}.")
    return f"With {_particles(verdicts['particles'])} on the sample: {' '.join(words)}"


def _number(values: pd.Series) -> str:
    return f"{int(values.max()):,}" if len(values) else "no"


def _particles(values: pd.Series) -> str:
    number = _number(values)
    return f"{number} particle{'' if number == '1' else 's'}"


def _curves(ax: Axes, rows: pd.DataFrame, cells: str, models: list[str]) -> None:
    """IWELBO against particles, filled for the sample and hollow for all test cells."""
    ax.set_label(f"bound {cells}")
    for model in models:
        of = rows[(rows["model"] == model) & np.isfinite(rows["value"])].sort_values("particles")
        look = style.look(model)
        fill = look.colour if cells == SAMPLE else "white"
        edge = style.INK if cells == SAMPLE else look.colour
        error = of["error"].fillna(0)
        ax.errorbar(of["particles"], of["value"], error, color=look.colour, lw=0.9, ls=look.line, elinewidth=1.3,
                    marker=look.marker, mfc=fill, mec=edge, mew=0.4 if cells == SAMPLE else 0.9, ms=4.5)  # fmt: skip
    ax.set(xscale="log", xlabel="particles", ylabel=metric("iwelbo").label)
    style.log_ticks(ax.xaxis, 1, max(200, float(rows["particles"].max())))


def _differences(ax: Axes, shown: pd.DataFrame, models: list[str]) -> None:
    """The bound of each model minus the highest, with two block errors; hollow if it decides nothing."""
    ax.set_label("differences")
    ax.axvline(0, color=style.INK, lw=0.8, ls=style.DASHED)
    for y, model in enumerate(reversed(models)):
        if model in shown.index:
            look, row = style.look(model), shown.loc[model]
            error = 2 * np.nan_to_num(float(row["relative_error"]))
            decided = not str(row["verdict"]).startswith("undecided")
            face: dict[str, Any] = (
                {"mfc": look.colour, "mec": style.INK, "mew": 0.4} if decided else {"mfc": "white", "mew": 0.9}
            )
            ax.errorbar(row["relative"], y, xerr=error, color=look.colour, marker=look.marker, ms=5, **face)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("nats per cell, ± 2 block errors (hollow: undecided)")
    style.letter(ax, "c", f"minus the highest, {_particles(shown['particles'])}")


def _sizes(ax: Axes, sample: pd.DataFrame, models: list[str]) -> None:
    """The effective sample size of the weights: the median cell, and a line to the 5 % quantile."""
    ax.set_label("effective sample size")
    ax.axvline(10, color=style.INK, lw=0.8, ls=style.DASHED)
    table = sample.pivot_table(index="model", columns="metric", values="value", sort=False)
    for y, model in enumerate(reversed(models)):
        if model in table.index and {"ess_median", "ess_5"} <= set(table):
            look = style.look(model)
            low, middle = table.loc[model, ["ess_5", "ess_median"]].astype(float)
            ax.plot([low, middle], [y, y], color=look.colour, lw=1.1)
            ax.plot([middle], [y], look.marker, color=look.colour, mec=style.INK, mew=0.4, ms=5)
    particles = float(sample["particles"].max()) if len(sample) else 1.0
    ax.set(xscale="log", xlim=(0.9, 1.1 * particles), xlabel="median of cells, line to their 5 % quantile")
    style.log_ticks(ax.xaxis, 1, max(200, particles))
    style.letter(ax, "d", f"effective number of {_particles(sample['particles'])}")


def _heavy(ax: Axes, sample: pd.DataFrame, models: list[str]) -> None:
    """The share of cells with heavy weights, and the share above which a bound is not compared."""
    ax.set_label("heavy weights")
    ax.axvline(HEAVY_SHARE, color=style.INK, lw=0.8, ls=style.DASHED)
    shares = sample[sample["metric"] == HEAVY_METRIC].set_index("model")["value"]
    for y, model in enumerate(reversed(models)):
        if model in shares.index:
            look = style.look(model)
            ax.plot([shares[model]], [y], look.marker, color=look.colour, mec=style.INK, mew=0.4, ms=5, clip_on=False)
    ax.set(xlim=(0, 1), xlabel=f"share of cells with Pareto k above {HEAVY}")
    style.letter(ax, "e", "heavy weights")
