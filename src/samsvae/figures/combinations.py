"""How well combinations are predicted, by the fraction of them, or of their cells, seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from samsvae.evaluation.metrics.table import METRICS, axis_label
from samsvae.figures import heatmaps, style
from samsvae.figures.interactions import interaction_table, list_tested_conditions
from samsvae.figures.pair_scores import (
    HONEST,
    PLAIN,
    core,
    read_all_scores,
    summarise,
    summarise_honest,
    unscored,
)
from samsvae.figures.published import norman
from samsvae.figures.runs import models_only, replicates

#: Kinds of splits whose fractions have a meaning: task of the published tables, label of the x-axis.
KINDS = {
    "norman_ood": ("ood", "fraction of all combinations seen in training"),
    "norman_efficiency": ("efficiency", "fraction of the combinations' training cells seen"),
}

CENTRED = (
    " Panel c, honest protocol: effects of test cells minus their mean over conditions, at the depth of these cells."
)

LOWER = " Lower panels: combinations with test cells, unseen or seen in training; one run of each model."

MOST = 4  # interaction panels in a row

SAVED = {"scores": "scores", "interactions": "interactions", "published": "published"}


def tables(
    *,
    grid: str,
    scores: Sequence[str],
    baselines: Sequence[str],
    effects: Sequence[str],
    references: Sequence[str],
    worth: Sequence[str],
    baseline_worth: Sequence[str],
    screen: str,
    published: Sequence[str],
    comparable: bool,
) -> dict[str, object]:
    """Arguments of draw.

    scores, effects, worth: RUN/scores.tsv, RUN/effects.h5ad and RUN/worth.tsv of the runs. baselines, references,
    baseline_worth: SPLIT/baselines.tsv, SPLIT/effects.h5ad and SPLIT/worth.tsv of every split. published: the path of
    the published table, or nothing; read if screen and training are the published ones (comparable).
    """
    found = read_all_scores(grid, scores, baselines)
    kind = str(found["split_name"].iloc[0]).partition("-")[0]
    conditions = list_tested_conditions(references)
    if not conditions["combination"].any():
        message = "No combination of perturbations has test cells in this experiment, so there is nothing to predict."
        return {"scores": None, "interactions": None, "published": None, "message": message}
    summary, reference = summarise(found)
    theirs = norman(Path(published[0]).parent, KINDS[kind][0]) if published and comparable and kind in KINDS else None
    return {
        "scores": pd.concat([summary, summarise_honest(found, worth, baseline_worth)], ignore_index=True),
        "interactions": interaction_table(found, effects, references, screen),
        "published": theirs,
        "kind": kind,
        "reference": reference,
        "targets": "combinations" if conditions["combination"].all() else "conditions",
        "unit": replicates(models_only(found).drop_duplicates("run")),
        "reason": unscored(found, baseline_worth),
    }


@style.styled
def draw(
    scores: pd.DataFrame | None,
    interactions: pd.DataFrame | None = None,
    published: pd.DataFrame | None = None,
    *,
    kind: str = "norman_ood",
    reference: str = "",
    targets: str = "combinations",
    unit: str = "split seed",
    encoding: str = PLAIN,
    reason: str = "",
    message: str = "",
) -> Figure:
    """Relative test IWELBO (a), ATE-Pearson (b) and HONEST (c) by fraction and model, and predicted interactions.

    scores: model, fraction, metric (iwelbo_relative or iwelbo_relative_to_best, ate_pearson, and HONEST, without which
    there is no c), mean, sd; if it has the columns split and encoding, the test rows of one encoding are drawn (core).
    Baselines (additive, ...) are lines in b and c. interactions: interaction_table; a panel per model, whose title says
    how many of its combinations were in training. published: published.norman, hollow markers. kind: of the split, for
    the x label. reference: the one in a, in words. targets: the word for the conditions in b and c. unit: the word for
    a replicate. Bars of height 0 get a marker. reason: what the honest protocol does not score, as a sentence. message:
    drawn alone if there is nothing else.
    """
    if message:
        return _sentence(message)
    table = style.need(
        pd.DataFrame() if scores is None else scores, ["model", "fraction", "metric", "mean", "sd"], "scores"
    )
    table = style.need(core(table, encoding), [], f"scores (encoding {encoding!r}, test)")
    theirs = None if published is None else core(published, encoding)
    pairs = None if interactions is None else _complete(interactions)
    panels = [] if pairs is None else style.models_in(pairs["model"])
    honest = (table["metric"] == HONEST).any()
    width = 11 if honest else 9.6
    lower = 0.32 * width * -(-len(panels) // MOST)
    fig = style.figure(width, 3.9 + lower)
    how = style.spread(table["n"], unit) if "n" in table else "mean ± sd"
    style.note(
        fig,
        f"Published protocol: effects of the data from all cells. Bars: {how}; settings chosen on validation data."
        + CENTRED * bool(honest)
        + LOWER * bool(panels)
        + f" {reason}".rstrip(),
    )
    top, *bottom = style.stacked(fig, [3.7, lower] if panels else [1])
    _scores(top, table, theirs, kind, reference, targets)
    if pairs is not None:
        _interactions(bottom[0], pairs, panels, first="d" if honest else "c")
    return fig


def _sentence(message: str) -> Figure:
    """A small figure with one sentence in place of panels."""
    fig = style.figure(6.4, 1.2)
    ax = fig.subplots()
    ax.set_label("message")
    ax.set_axis_off()
    ax.text(0.5, 0.5, style.wrapped_note(message, 5.6), ha="center", va="center", transform=ax.transAxes)
    return fig


def _scores(
    fig: SubFigure, table: pd.DataFrame, published: pd.DataFrame | None, kind: str, reference: str, targets: str
) -> None:
    """The panels of bars, with one legend."""
    relative = next((m for m in table["metric"].unique() if str(m).startswith("iwelbo_relative")), "iwelbo_relative")
    unit = METRICS["iwelbo_relative"].unit
    against = f"test IWELBO relative to\n{reference or 'the reference'} ({unit})"
    labels = {relative: against, "ate_pearson": f"{axis_label('ate_pearson')} of test {targets}"}
    titles = {relative: "held-out likelihood", "ate_pearson": "average treatment effects", HONEST: "honest protocol"}
    if (table["metric"] == HONEST).any():
        labels[HONEST] = f"Pearson r, centred, of test {targets}"
    models, lines = (style.models_in(table["model"], baselines=which) for which in (False, True))
    fractions, drawn = sorted(table["fraction"].unique()), False
    graded = kind in KINDS and not np.isnan(fractions).any()
    for ax, tag, (metric, label) in zip(fig.subplots(1, len(labels)), "abc", labels.items(), strict=False):
        ax.set_label(metric)
        theirs = None if published is None else published[published["metric"] == metric]
        drawn |= _bars(ax, table[table["metric"] == metric], theirs, models, fractions)
        if graded:
            ax.set_xticks(range(len(fractions)), [f"{f:g}" for f in fractions])
        ax.set(ylabel=label, xlabel=KINDS[kind][1] if graded else "model")
        style.letter(ax, tag, titles[metric])
    handles = style.keys(models, "bar") + style.keys(lines, "line")
    if drawn:
        handles.append(Line2D([], [], ls="", marker="D", mfc="white", mec=style.INK, mew=0.9, label="published"))
    columns = len(handles) if len(handles) < 5 else min(5, -(-len(handles) // 2))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns)


def _bars(
    ax: Axes,
    table: pd.DataFrame,
    published: pd.DataFrame | None,
    models: Sequence[str],
    fractions: Sequence[float],
) -> bool:
    """Groups of bars (mean ± sd) by fraction; baselines as short lines over the group, published means as diamonds.

    Returns whether a published mean was drawn.
    """
    style.need(table, [], f"scores (metric {ax.get_label()!r})")
    width = min(0.82 / len(models), 0.2)
    place = {f: i for i, f in enumerate(fractions)}
    drawn = False
    for j, model in enumerate(models):
        o, off = style.look(model), (j - (len(models) - 1) / 2) * width
        rows = table[table["model"] == model]
        x = rows["fraction"].map(place) + off
        ax.bar(x, rows["mean"], width * 0.94, color=o.colour, hatch=o.hatch, edgecolor="white", linewidth=0)
        several = rows["sd"].notna()
        ax.errorbar(
            x[several], rows["mean"][several], rows["sd"][several], fmt="none", ecolor=style.INK, elinewidth=0.9
        )
        for at in x[rows["mean"] == 0]:  # a bar without height must not look like a missing one
            ax.plot(at, 0, "o", color=o.colour, mec=style.INK, mew=0.5, zorder=4)
            ax.annotate("0", (at, 0), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        if published is not None:
            of = published[(published["model"] == model) & published["fraction"].isin(fractions)]
            style_of: dict[str, Any] = {"mfc": "white", "mec": style.INK, "mew": 0.8, "ms": 4.2, "ls": "", "zorder": 4}
            ax.plot(of["fraction"].map(place) + off, of["mean"], "D", **style_of)
            drawn |= len(of) > 0
    for model in style.models_in(table["model"], baselines=True):
        rows, o = table[table["model"] == model].dropna(subset="mean"), style.look(model)
        for at, mean in zip(rows["fraction"].map(place), rows["mean"], strict=True):
            ax.plot([at - 0.46, at + 0.46], [mean, mean], color=o.colour, ls=o.line, lw=1.3, zorder=5)
    ax.axhline(0, color=style.INK, lw=0.7)
    ax.set_xticks([])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.55, len(fractions) - 0.45)
    return drawn


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["model", "fraction", "pair", "seen", "gene", "observed", "predicted"]
    table = style.need(table, columns, "interactions")
    return style.need(table.dropna(subset=["observed", "predicted"]), [], "interactions (without NaN)")


def _seen(table: pd.DataFrame) -> str:
    """How many of its combinations were in training, and the fraction of the run if it has one."""
    seen = table.drop_duplicates("pair")["seen"]
    n, of = int(seen.sum()), len(seen)
    how = {0: f"{of} unseen", of: f"all {of} seen"}.get(n, f"{n} of {of} seen")
    fraction = table["fraction"].iloc[0]
    return how if np.isnan(fraction) else f"{how} at fraction {fraction:g}"


def _interactions(fig: SubFigure, table: pd.DataFrame, models: Sequence[str], *, first: str) -> None:
    """Predicted against observed interactions: one panel per model, one scale for all; ``first``: the first letter."""
    rows = -(-len(models) // MOST)
    axes = list(fig.subplots(rows, MOST, squeeze=False, sharex=True, sharey=True).ravel())
    for ax in axes[len(models) :]:
        ax.remove()
    axes = axes[: len(models)]
    limit = float(table[["observed", "predicted"]].abs().to_numpy().max()) * 1.05 or 1.0
    found = []
    for j, (ax, model) in enumerate(zip(axes, models, strict=True)):
        of = table[table["model"] == model]
        ax.set_label(f"interaction {model}")
        labels = "observed interaction (log2)", "predicted interaction (log2)" if j % MOST == 0 else ""
        found.append(
            heatmaps.agreement(ax, of[["observed"]], of[["predicted"]], xlabel=labels[0], ylabel=labels[1], limit=limit)
        )
        ax.tick_params(labelbottom=True)
        style.letter(ax, chr(ord(first) + j), f"{style.label(model)}\n{_seen(of)}")
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    high = max(hexagons.get_clim()[1] or 0.0 for hexagons in found)
    for hexagons in found:
        hexagons.set_clim(1, max(high, 2.0))
    heatmaps.count_bar(fig, found[0], axes, "combinations × genes per hexagon", shrink=0.8, pad=0.015)
