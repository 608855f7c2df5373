"""Simulations: are the true masks, latents and effects recovered?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from samsvae.evaluation.metrics.selection import of_best_settings
from samsvae.figures import style
from samsvae.figures.runs import models_only

RULE = "true-positives"  # the matching rule that is drawn; the other is in the data

METRICS = {  # title, what it is, and the split that is drawn where there are several
    f"mask_f1/{RULE}": ("mask F1", "matched by true positives", None),
    f"mask_precision/{RULE}": ("mask precision", "matched by true positives", None),
    f"mask_recall/{RULE}": ("mask recall", "matched by true positives", None),
    "mcc_pearson": ("latents, MCC", "mean |Pearson's r|", None),
    "ate_r2": ("effects, R²", "against all cells", "all"),
    "iwelbo": ("test IWELBO", "nats per cell", "test"),
}

NOTE = (
    "Published protocol: effects of the data from all cells. Mean ± sd over data seeds; settings chosen on validation "
    "data."
)

# Targets per latent and perturbation: 2 of 15 in SAMS-VAE's; k ~ U{1, 2, 3} draws with replacement in SVAE+'s.
DENSITY = {"sams": 2 / 15, "svae": sum(15 * (1 - (14 / 15) ** k) for k in (1, 2, 3)) / 3 / 15}


def summarise(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and sd over data seeds of the drawn metrics: columns by, metric, mean, sd, n."""
    table = style.need(scores, [*by, "metric", "value"], "simulation scores")
    keep = table["metric"].isin(METRICS)
    for metric, (*_, split) in METRICS.items():
        if split and "split" in table:
            keep &= (table["metric"] != metric) | (table["split"] == split)
    table = style.need(table[keep].dropna(subset="value"), [], "simulation scores (the metrics drawn)")
    return table.groupby([*by, "metric"])["value"].agg(mean="mean", sd="std", n="count").reset_index()


@style.styled
def draw(sams_scores: pd.DataFrame, svae_scores: pd.DataFrame, *, density: dict[str, float] = DENSITY) -> Figure:
    """SAMS-VAE's simulation against cells per perturbation (a-f), SVAE+'s by method (g-l): mean ± sd of data seeds.

    sams_scores: model, cells, metric, value (and split); svae_scores: the same without cells. Metrics: METRICS,
    of one setting per model. density: share of ones in the true masks of ``sams`` and ``svae``: the dashed line
    is the mask of ones (precision = density, recall 1, F1 = 2 density / (1 + density)).
    """
    sams, svae = summarise(sams_scores, ["model", "cells"]), summarise(svae_scores, ["model"])
    models, methods = style.models_in(sams["model"]), style.models_in(svae["model"])
    height = 5.1 + 0.4, 1.1 + 0.19 * len(methods)
    fig = style.figure(10.4, sum(height) + 0.2)
    style.note(fig, NOTE)
    top, bottom = fig.subfigures(2, 1, height_ratios=height)
    top.suptitle("SAMS-VAE's simulation", x=0.01, ha="left", fontweight="bold", fontsize=9)
    bottom.suptitle("SVAE+'s simulation", x=0.01, ha="left", fontweight="bold", fontsize=9)
    upper, lower = top.subplots(2, 3).ravel(), bottom.subplots(1, 6, sharey=True)
    for axes, tags, table, draw in ((upper, "abcdef", sams, _curves), (lower, "ghijkl", svae, _bars)):
        for ax, tag, (metric, (title, what, _)) in zip(axes, tags, METRICS.items(), strict=True):
            of = table[table["metric"] == metric]
            ax.set_label(f"{'sams' if draw is _curves else 'svae'} {metric}")
            style.letter(ax, tag, title)
            (ax.set_ylabel if draw is _curves else ax.set_xlabel)(what)
            draw(ax, of, models if draw is _curves else methods)
            _ones(ax, metric, density["sams" if draw is _curves else "svae"], vertical=draw is _bars)
            if of.empty:
                ax.axis("off")
                ax.text(0.5, 0.5, "not scored", transform=ax.transAxes, ha="center", color=style.GREY)
    ones = Line2D([], [], color=style.INK, lw=0.9, ls=(0, (4, 2)), label="mask of ones")
    top.legend(handles=[*style.keys(models, "both"), ones], loc="outside right center", handlelength=2.8)
    return fig


def _curves(ax: Axes, table: pd.DataFrame, models: list[str]) -> None:
    """Lines over cells per perturbation (log), models side by side so that intervals can be told apart."""
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


def _bars(ax: Axes, table: pd.DataFrame, models: list[str]) -> None:
    """A bar per method from 0; dots where the metric has no natural zero."""
    table = table.set_index("model").reindex(models)
    y = np.arange(len(models))
    zero = not table["mean"].lt(0).any()
    for i, model in enumerate(models):
        o, mean, sd = style.look(model), table["mean"].iloc[i], table["sd"].iloc[i]
        if not np.isfinite(mean):
            ax.text(0.03, i, "–", transform=ax.get_yaxis_transform(), va="center", color=style.GREY)
            continue
        if zero:
            ax.barh(i, mean, 0.76, color=o.colour, hatch=o.hatch, edgecolor="white", linewidth=0)
            ax.errorbar(mean, i, xerr=np.nan_to_num(sd), fmt="none", ecolor=style.INK, elinewidth=0.9)
        else:
            style.interval(ax, [mean], [i], [sd], model, horizontal=True)
    ax.set_yticks(y, [style.look(m).label for m in models])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(models) - 0.4, -0.6)
    ax.locator_params(axis="x", nbins=3)


def _ones(ax: Axes, metric: str, density: float, *, vertical: bool) -> None:
    """What the mask of ones reaches."""
    at = {"mask_f1": 2 * density / (1 + density), "mask_precision": density, "mask_recall": 1.0}.get(
        metric.split("/")[0]
    )
    if at is not None:
        (ax.axvline if vertical else ax.axhline)(at, color=style.INK, lw=0.9, ls=(0, (4, 2)), zorder=4)


# ---- simulations, curves, own screens ------------------------------------------------------------------------------


def one_setting(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of the published protocol under each model's best settings on validation data.

    Data seeds are replicates; cells per perturbation are kept apart.
    """
    rows = models_only(scores)
    return of_best_settings(rows, ["model", *([c] if (c := "cells") in rows else [])], ["seed", "data_seed"])
