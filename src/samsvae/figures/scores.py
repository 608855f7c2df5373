"""Scores of every model, next to the published numbers if there are any, and effects by condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.figures import conditions, style
from samsvae.figures.published import replogle_table1
from samsvae.figures.runs import models_only, of_largest_amount, of_settings, replicates, restricted
from samsvae.figures.score_table import METRICS, baseline_table, build_table, fit_sentences, fit_table, single_runs
from samsvae.tables import read

SAVED = {"": "table", "runs": "runs", "fits": "fits", "baselines": "baselines", "per_condition": "per_condition"}


def tables(
    *,
    scores: str,
    per_condition: Sequence[str],
    baseline_conditions: Sequence[str],
    published: Sequence[str],
    comparable: bool,
    compared: Mapping[str, object],
) -> dict[str, object]:
    """Arguments of draw.

    scores: EXPERIMENT/scores.tsv. per_condition: RUN/worth_conditions.tsv of every run. baseline_conditions:
    SPLIT/worth_conditions.tsv of every split. published: the path of replogle_table1.tsv, or nothing. comparable:
    whether screen and training are the published ones, so that differences from the published numbers mean something.
    compared: values of axes of the grid to which the table is restricted.
    """
    every = read(scores)
    rows, amount = of_largest_amount(restricted(models_only(every), compared))
    theirs = replogle_table1(Path(published[0]).parent) if published else None
    best, ours = of_settings(rows, ["model"])
    runs = ours.drop_duplicates("run")
    models = dict(zip(runs["run"], runs["model"], strict=True))
    places = pd.Series(list(zip(every["dataset"].astype(str), every["split_name"].astype(str), strict=True)))
    splits = set(places[every["run"].isin(models)])
    return {
        "table": build_table(rows, best, theirs, comparable=comparable),
        "runs": single_runs(ours),
        "baselines": baseline_table(every[places.isin(splits)]),
        "fits": fit_table(every, runs["run"].tolist()),
        "per_condition": conditions.table(per_condition, baseline_conditions, models, splits),
        "comparable": comparable,
        "unit": replicates(runs),
        "amount": amount,
    }


@style.styled
def draw(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    baselines: pd.DataFrame | None = None,
    per_condition: pd.DataFrame | None = None,
    fits: pd.DataFrame | None = None,
    *,
    comparable: bool = True,
    unit: str = "seed",
    amount: str = "",
) -> Figure:
    """The table of build_table as text, with ours drawn: marker, ± 1 sd (thick), ± 2 sd (thin), one dot per run.

    runs: model, run, metric, value. baselines: metric, model, value; named at the edge of the axis where they are
    outside. per_condition (conditions.table): drawn below the table. fits (fit_table): the note names models whose loss
    had not levelled off, or that are no better than an intercept-only model. comparable: whether screen and training
    are the published ones. If so, published means are hollow diamonds and differences are printed, with ● inside and ○
    outside the interval of our replicates; if not, the note says that published numbers must not be compared. unit: the
    word for a replicate. amount: how much of the data the runs saw, in words.
    """
    style.need(table, ["model", "method", "inference", "settings", "n_runs"], "table of scores")
    table = table.set_index("model", drop=False).loc[style.models_in(table["model"])]
    columns = _columns(table, comparable=comparable)
    low = 8.6 if per_condition is not None else 7.0
    dots = [name for name in columns if name in METRICS]
    spare = max(0.0, low - sum(columns.values())) / max(len(dots), 1)
    columns = {name: width + spare * (name in dots) for name, width in columns.items()}
    width = sum(columns.values())
    note = _note(table, per_condition, comparable=comparable, unit=unit, amount=amount)
    note += "" if fits is None else f" {fit_sentences(fits)}".rstrip()
    text = style.wrapped_note(note, width)
    above = 0.75 + 0.165 * (text.count("\n") + 1)
    ticks = 0.62 if baselines is not None and len(baselines) else 0.32
    panel = _panel_height(per_condition, width)
    height = above + 0.42 * len(table) + ticks + panel

    fig = style.figure(width, height, layout=None)
    fig.text(0.008, 1 - 0.08 / height, text, va="top", fontsize=7.5, color="#5E5E5E", linespacing=1.4)
    grid = {"left": 0.006, "right": 0.994, "top": 1 - above / height, "bottom": (ticks + panel) / height, "wspace": 0}
    axes = fig.subplots(1, len(columns), width_ratios=list(columns.values()), gridspec_kw=grid)
    ax = dict(zip(columns, np.ravel(axes), strict=True))
    for name in columns:
        _rows(ax[name], len(table), name)
    _names(ax, table)
    for metric in dots:
        _metric(ax, metric, table, runs, baselines, comparable=comparable)
    if per_condition is not None:
        _below(fig, per_condition, panel)
    return fig


_HEAD: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}


def _columns(table: pd.DataFrame, *, comparable: bool) -> dict[str, float]:
    """Columns of the figure with their widths in inches."""
    longest = table["method"].str.len().max()
    settings = max(len(part) for text in table["settings"] for part in text.partition(", ")[::2])
    columns = {"model": max(1.3, 0.085 * longest)}
    columns |= {"settings": max(0.95, 0.07 * settings)} if settings else {}
    for metric, width in (("test_iwelbo", 0.76), ("mask_pathway_accuracy", 0.66), ("ate_pearson", 0.66)):
        if metric in table:
            columns |= {metric: 1.35, f"{metric} ours": width}
            if f"published_{metric}" in table:
                columns |= {"ate_pearson by test": 0.66} if metric == "ate_pearson" else {}
                columns |= {f"{metric} published": width + 0.06}
                columns |= {f"{metric} difference": 0.82} if comparable else {}
    return columns


def _note(table: pd.DataFrame, per_condition: pd.DataFrame | None, *, comparable: bool, unit: str, amount: str) -> str:
    """How the numbers were scored, averaged and chosen, and what may be compared."""
    how = style.spread(table["n_runs"], unit)
    bars = " (thick bar ± 1 sd, thin bar ± 2 sd, one dot per run)" if how.startswith("mean") else ""
    parts = [
        f"Published protocol: effects of the data from all cells. One row per model: {how}{bars}, "
        "settings chosen on validation data."
    ]
    parts += [f"Only runs with {amount}, the most data."] * bool(amount)
    if "ate_pearson_published_rule" in table:
        parts.append("Best test: the run with the best test IWELBO, the paper's rule for its ATE column.")
        parts.append(
            "Hollow diamond: published mean; ● inside, ○ outside our mean ± 2 sd."
            if comparable
            else "Not the published screen or training: its numbers must not be compared with the published ones."
        )
    if per_condition is not None:
        parts.append(
            "Lower panel, honest protocol: effects of test cells minus their mean over conditions; models (mean over "
            "runs) at the depth of these cells."
        )
    return " ".join(parts)


def _rows(ax: Axes, n: int, name: str) -> None:
    """Axes with n rows from top to bottom, every second one shaded, with a rule above and below."""
    ax.set_label(name)
    ax.set(ylim=(n - 0.5, -0.5), yticks=[], xticks=[], xlim=(0, 1))
    ax.patch.set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.spines["top"].set_visible(True)
    for i in range(1, n, 2):
        ax.axhspan(i - 0.5, i + 0.5, color="#F4F4F4", lw=0, zorder=-1)


def _names(ax: dict[str, Axes], table: pd.DataFrame) -> None:
    """The columns that say which model a row is, and its settings."""
    inference = table["inference"].str.replace("z_basal", "$z_{basal}$").str.replace(" E", " $E$")
    _texts(ax["model"], list(zip(table["method"], inference, strict=True)), "model", fontweight="bold")
    if "settings" in ax:
        parts = [text.partition(", ") for text in table["settings"]]
        _texts(ax["settings"], [(first, rest) for first, _, rest in parts], "chosen on\nvalidation")


def _metric(
    ax: dict[str, Axes],
    metric: str,
    table: pd.DataFrame,
    runs: pd.DataFrame | None,
    baselines: pd.DataFrame | None,
    *,
    comparable: bool,
) -> None:
    """The columns of one metric: drawn, as numbers, and next to the published ones."""
    _, _, title, decimals = METRICS[metric]
    mean, sd = (table[f"{metric}{end}"].to_numpy(float) for end in ("", "_sd"))
    given = f"published_{metric}" in table
    other, other_sd = (table[f"published_{metric}{end}"].to_numpy(float) if given else None for end in ("", "_sd"))
    values = pd.DataFrame(columns=["model", "value"]) if runs is None else runs[runs["metric"] == metric]
    _dots(ax[metric], table["model"], mean, sd, values, other if comparable else None)
    ax[metric].annotate(title, (0.05, 1), (0, 21), fontsize=8.5, fontweight="bold", **_HEAD)
    ours = "ours" if given else "mean" if table["n_runs"].max() > 1 else "value"
    _texts(ax[f"{metric} ours"], _numbers(mean, sd, decimals), ours)
    if baselines is not None:
        for name, value in baselines.loc[baselines["metric"] == metric, ["model", "value"]].itertuples(index=False):
            _baseline(ax[metric], name, value, decimals)
    if other is None or other_sd is None:
        return
    _texts(ax[f"{metric} published"], _numbers(other, other_sd, decimals), "published", color="#5E5E5E")
    if comparable:
        marks = ["" if pd.isna(v) else "  ●" if v else "  ○" for v in table[f"inside_seed_interval_{metric}"]]
        gaps = [style.number(gap, decimals, "+") for gap in mean - other]
        cells = [(gap + mark, "") for gap, mark in zip(gaps, marks, strict=True)]
        _texts(ax[f"{metric} difference"], cells, "difference")
    if metric == "ate_pearson":
        rule = [(style.number(value, decimals), "") for value in table["ate_pearson_published_rule"]]
        _texts(ax["ate_pearson by test"], rule, "ours,\nbest test")


def _texts(ax: Axes, cells: list[tuple[str, str]], title: str, **kwargs: Any) -> None:
    """A column of cells of one or two lines, the second smaller and grey."""
    for i, (first, second) in enumerate(cells):
        ax.text(0.06, i - 0.17 * bool(second), first, va="center", fontsize=8, **kwargs)
        ax.text(0.06, i + 0.22, second, va="center", fontsize=7, color="#5E5E5E")
    ax.annotate(title, (0.06, 1), (0, 4), color=kwargs.get("color", style.INK), linespacing=1.0, **_HEAD)


def _dots(
    ax: Axes,
    models: pd.Series,
    mean: np.ndarray,
    sd: np.ndarray,
    runs: pd.DataFrame,
    published: np.ndarray | None,
) -> None:
    """Ours as markers with intervals and one dot per run; published means as hollow diamonds. The axis spans these."""
    drawn = [mean - 2 * np.nan_to_num(sd), mean + 2 * np.nan_to_num(sd)]
    for i, (model, m, s) in enumerate(zip(models, mean, sd, strict=True)):
        o = style.look(model)
        if not np.isfinite(m):
            text = "no mask" if str(ax.get_label()).startswith("mask") else "–"
            at: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.get_yaxis_transform()}
            ax.text(0.5, i, text, fontsize=7, color=style.GREY, **at)
        for width, k in ((1, 2), (3, 1)) if np.isfinite(s) else ():
            ax.plot([m - k * s, m + k * s], [i, i], color=o.colour, lw=width, solid_capstyle="butt")
        ax.plot(m, i, o.marker, color=o.colour, mec=style.INK, mew=0.4, ms=6)
        values = runs.loc[runs["model"] == model, "value"].to_numpy(float)
        if len(values) > 1:
            ax.plot(values, np.full(len(values), i + 0.32), "o", color=o.colour, ms=2.2, alpha=0.7, mew=0)
            drawn.append(values)
    if published is not None:
        ax.plot(published, range(len(published)), "D", mfc="none", mec=style.INK, mew=0.9, ms=6.5)
        drawn.append(published)
    every = np.concatenate(drawn)
    every = every[np.isfinite(every)]
    if len(every):
        pad = 0.14 * (np.ptp(every) or abs(every[0]) or 1)
        ax.set_xlim(every.min() - pad, every.max() + pad)
        ax.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
        ax.ticklabel_format(axis="x", useOffset=False)  # an offset would be drawn over the baselines
        ax.tick_params(labelsize=7)


def _baseline(ax: Axes, model: str, value: float, decimals: int) -> None:
    """A baseline's name and value below the axis: at its line, or at the edge with an arrow if it lies beyond."""
    low, high = ax.get_xlim()
    o, text = style.look(model), f"{style.label(model)}\n{style.number(value, decimals)}"
    share = (value - low) / (high - low)
    if 0 <= share <= 1:
        ax.axvline(value, color=o.colour, ls=o.line, lw=0.9, zorder=0)
        side = "center" if 0.35 < share < 0.65 else "left" if share <= 0.35 else "right"
    else:
        side = "left" if share < 0 else "right"
        text = f"◂ {text}" if share < 0 else text.replace("\n", " ▸\n")
    x = {"left": 0.03, "center": share, "right": 0.97}[side]
    at: dict[str, Any] = {"ha": side, "va": "top", "fontsize": 7, "color": "#5E5E5E", "linespacing": 1.1}
    ax.annotate(text, (x, 0), (0, -17), **_HEAD, **at)


def _panel_height(per_condition: pd.DataFrame | None, width: float) -> float:
    """Inches that the lower panel takes, with its title, legend and names."""
    if per_condition is None:
        return 0.0
    return 0.42 + 0.17 * _legend_rows(per_condition, width) + 1.9 + conditions.room(per_condition)


def _legend_rows(per_condition: pd.DataFrame, width: float) -> int:
    return math.ceil(per_condition["model"].nunique() / _legend_columns(width))


def _legend_columns(width: float) -> int:
    return max(1, int((width - 0.6) / 2.45))


def _below(fig: Figure, per_condition: pd.DataFrame, panel: float) -> None:
    """The lower panel, with its legend between the title and the axes."""
    width, height = fig.get_size_inches()
    ax = fig.add_axes((0.6 / width, conditions.room(per_condition) / height, 1 - 0.7 / width, 1.9 / height))
    handles = conditions.panel(ax, per_condition)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.3}
    ax.legend(handles=handles, ncols=_legend_columns(width), fontsize=7, handletextpad=0.4, **place)
    rows = _legend_rows(per_condition, width)
    ax.set_title("effects of each condition (honest protocol)", loc="left", fontweight="bold", pad=8 + 12 * rows)


def _numbers(mean: np.ndarray, sd: np.ndarray, decimals: int) -> list[tuple[str, str]]:
    parts = [f"± {s:.{decimals}f}" if np.isfinite(s) else "" for s in sd]
    return [(style.number(m, decimals), s) for m, s in zip(mean, parts, strict=True)]
