"""One simulation: are the true masks, latents and effects recovered?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from samsvae.evaluation.metrics.constants import EMPTY_MASK, MATCHES
from samsvae.evaluation.metrics.table import axis_label
from samsvae.evaluation.selection import of_best_settings
from samsvae.figures import style
from samsvae.figures.runs import models_only, replicates
from samsvae.tables import read

RULE = MATCHES[0]  # the matching rule that is drawn; the other is in the data

_MATCHED = f"matched by {RULE.replace('-', ' ')}"

#: Metrics drawn: title, label of the axis, and the split that is drawn if there are several.
METRICS = {
    f"mask_f1/{RULE}": ("mask F1", f"{axis_label(f'mask_f1/{RULE}')}\n({_MATCHED})", None),
    f"mask_precision/{RULE}": ("mask precision", f"{axis_label(f'mask_precision/{RULE}')}\n({_MATCHED})", None),
    f"mask_recall/{RULE}": ("mask recall", f"{axis_label(f'mask_recall/{RULE}')}\n({_MATCHED})", None),
    "mcc_pearson": ("latents", f"mean correlation coefficient\n{axis_label('mcc_pearson')}", None),
    "ate_r2": ("effects", f"{axis_label('ate_r2')}\n(against all cells)", "all"),
    "iwelbo": ("held-out likelihood", f"test {axis_label('iwelbo')}", "test"),
}

ALL_ONES, DENSITY = "mask_f1_all_ones", "mask_density"

SAVED = {"": "scores"}


def tables(*, grid: str, scores: str) -> dict[str, object]:
    """Arguments of draw: the scores of each model's best settings on validation data, for each number of cells.

    scores: EXPERIMENT/scores.tsv. Seeds of training, split and data are replicates.
    """
    rows = one_setting(read(scores))
    if "cells" in rows and read(grid)["cells"].nunique() < 2:
        rows = rows.drop(columns="cells")
    return {"scores": rows, "unit": replicates(rows.drop_duplicates("run"))}


@style.styled
def draw(scores: pd.DataFrame, *, unit: str = "data seed") -> Figure:
    """Recovery of masks, latents and effects, and test IWELBO: curves over cells per perturbation, or bars.

    scores: model, metric, split, value of one setting per model, one row per run, and cells if it differs between runs.
    Metrics without a value have no panel. The dashed line is a mask of ones: F1 is the mean of ``mask_f1_all_ones``,
    which determines its density d = F1 / (2 - F1), equal to its precision; its recall is 1. The mean of
    ``mask_density`` is the label of the bars of F1; empty masks (a density below 1 %) are listed above the panels.
    """
    by = ["model", *(["cells"] if "cells" in scores else [])]
    table = summarise(scores, by)
    models = style.models_in(table["model"])
    metrics = [metric for metric in METRICS if (table["metric"] == metric).any()]
    f1 = scores.loc[scores["metric"] == ALL_ONES, "value"].mean()
    density = scores[scores["metric"] == DENSITY].groupby(by)["value"].mean()
    curves = "cells" in by
    rows = -(-len(metrics) // 3) if curves else 1
    fig = (
        style.figure(10.4, 2.45 * rows + 0.4)
        if curves
        else style.figure(2.2 + 1.5 * len(metrics), 1.5 + 0.2 * len(models))
    )
    style.note(
        fig,
        f"Published protocol: effects of the data from all cells. {'Points' if curves else 'Bars'}: "
        f"{style.spread(table['n'], unit)}; settings chosen on validation data.{_empty(density)}",
    )
    columns = min(len(metrics), 3 if curves else 6)
    axes = fig.subplots(rows, columns, squeeze=False, sharey=False if curves else "row").ravel()
    lines = False
    for ax, tag, metric in zip(axes, "abcdef", metrics, strict=False):
        title, label, _ = METRICS[metric]
        ax.set_label(metric)
        style.letter(ax, tag, title)
        of = table[table["metric"] == metric]
        if curves:
            ax.set_ylabel(label)
            _curves(ax, of, models)
        else:
            ax.set_xlabel(label)
            _bars(ax, of, models)
            if metric.startswith("mask_f1"):
                _densities(ax, of, models, density)
        lines |= _ones(ax, metric, f1, vertical=not curves)
    for ax in axes[len(metrics) :]:
        ax.remove()
    _legend(fig, models if curves else [], lines)
    return fig


# ---- the numbers ---------------------------------------------------------------------------------------------------


def one_setting(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of the published protocol under each model's best settings on validation data.

    Data seeds are replicates; settings are chosen separately for each number of cells per perturbation.
    """
    rows = models_only(scores)
    by = ["model", *(["cells"] if "cells" in rows else [])]
    return of_best_settings(rows, by, ["seed", "split_seed", "data_seed"])


def summarise(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and sd of the drawn metrics over runs: columns of ``by``, metric, mean, sd, n."""
    table = style.need(scores, [*by, "metric", "value"], "simulation scores")
    drawn = table["metric"].isin(METRICS)
    for metric, (*_, split) in METRICS.items():
        if split and "split" in table:
            drawn &= (table["metric"] != metric) | (table["split"] == split)
    table = style.need(table[drawn].dropna(subset="value"), [], "simulation scores (the metrics drawn)")
    return table.groupby([*by, "metric"])["value"].agg(mean="mean", sd="std", n="count").reset_index()


# ---- the drawing ---------------------------------------------------------------------------------------------------


def _legend(fig: Figure, models: Sequence[str], lines: bool) -> None:
    """The models' markers and lines, and the mask of ones if it is drawn."""
    handles = style.keys(models, "both")
    if lines:
        handles.append(Line2D([], [], color=style.INK, lw=0.9, ls=style.DASHED, label="mask of ones"))
    if handles:
        fig.legend(handles=handles, loc="outside right center" if models else "outside lower center", handlelength=2.8)


def _curves(ax: Axes, table: pd.DataFrame, models: Sequence[str]) -> None:
    """Lines over cells per perturbation (log axis), the models shifted so that their intervals do not overlap."""
    cells = sorted(table["cells"].unique())
    for j, model in enumerate(models):
        rows, o = table[table["model"] == model].sort_values("cells"), style.look(model)
        shift = 1.02 ** (j - (len(models) - 1) / 2)
        style.interval(ax, rows["cells"] * shift, rows["mean"], rows["sd"], model, ls=o.line, lw=1.1, ms=5)
    if cells:
        ax.set(xscale="log", xlim=(cells[0] / 1.35, cells[-1] * 1.35))
    ax.set_xticks(cells, [f"{c:g}" for c in cells])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("cells per perturbation")


def _bars(ax: Axes, table: pd.DataFrame, models: Sequence[str]) -> None:
    """One bar per method, from 0; markers if the metric has negative values."""
    table = table.set_index("model").reindex(models)
    y = np.arange(len(models))
    zero = not table["mean"].lt(0).any()
    for i, model in enumerate(models):
        o, mean, sd = style.look(model), float(table["mean"].iloc[i]), float(table["sd"].iloc[i])
        if not np.isfinite(mean):
            ax.text(0.03, i, "–", transform=ax.get_yaxis_transform(), va="center", color=style.GREY)
            continue
        if zero:
            ax.barh(i, mean, 0.76, color=o.colour, hatch=o.hatch, edgecolor="white", linewidth=0)
            if np.isfinite(sd):
                ax.errorbar(mean, i, xerr=sd, fmt="none", ecolor=style.INK, elinewidth=0.9)
        else:
            style.interval(ax, [mean], [i], [sd], model, horizontal=True)
    ax.set_yticks(y, [style.label(m) for m in models])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(models) - 0.4, -0.6)
    if not zero:
        ax.margins(x=0.12)
    ax.locator_params(axis="x", nbins=3)


def _densities(ax: Axes, table: pd.DataFrame, models: Sequence[str], density: pd.Series) -> None:
    """The share of ones in each model's mask, behind its bar; the word 'empty' for an empty mask."""
    table = table.set_index("model").reindex(models)
    for i, model in enumerate(models):
        if model in density.index and np.isfinite(table["mean"].iloc[i]):
            end = table["mean"].iloc[i] + np.nan_to_num(table["sd"].iloc[i])
            words = "empty" if density[model] < EMPTY_MASK else f"{100 * density[model]:.0f} % on"
            ax.annotate(words, (end, i), (3, 0), textcoords="offset points", va="center", fontsize=7, color=style.INK)
    low, high = ax.get_xlim()
    ax.set_xlim(low, low + 1.35 * (high - low))


def _empty(density: pd.Series) -> str:
    """A sentence that names the models with an empty mask, and at how many cells."""
    found: dict[str, list[str]] = {}
    for at in density.index[density < EMPTY_MASK]:
        model, *cells = at if isinstance(at, tuple) else (at,)
        found.setdefault(model, []).extend(f"{value:g}" for value in cells)
    if not found:
        return ""
    names = [style.label(model) + (f" at {', '.join(cells)} cells" if cells else "") for model, cells in found.items()]
    empty = f"Empty masks (under {100 * EMPTY_MASK:g} % of the entries are on), whose scores mean little"
    return f" {empty}: {'; '.join(names)}."


def _ones(ax: Axes, metric: str, f1: float, *, vertical: bool) -> bool:
    """The value of a mask of ones, whose F1 is given, as a line. Returns whether the metric has one."""
    at = {"mask_f1": f1, "mask_precision": f1 / (2 - f1), "mask_recall": 1.0}.get(metric.split("/")[0])
    if at is None or not np.isfinite(f1):
        return False
    line: dict[str, Any] = {"color": style.INK, "lw": 0.9, "ls": style.DASHED, "zorder": 4}
    if vertical:
        ax.axvline(at, **line)
    else:
        ax.axhline(at, **line)
    return True
