"""How well combinations are predicted, by how many, or how much, of them was seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from samsvae.errors import DataError, nearest
from samsvae.evaluation.metrics.effects import interactions
from samsvae.evaluation.metrics.selection import of_best_settings, relative_to, shown, summary
from samsvae.figures import heatmaps, published, style
from samsvae.figures.runs import frame, models_only, of_run
from samsvae.screens.screen import read_uns
from samsvae.tables import read_h5ad

METRICS = {
    "iwelbo_relative": "test IWELBO relative to SAMS-VAE\n(corr. $z_b$, $E$) at 0 (nats per cell)",
    "ate_pearson": "ATE-Pearson of test pairs",
}

NOTE = (
    "Published protocol: effects of the data from all cells. Bars: mean ± sd over split seeds; settings chosen on "
    "validation data."
)

TASKS = {
    "ood": "fraction of all pairs seen in training",
    "efficiency": "fraction of the pairs' training cells seen",
}


def core(summary: pd.DataFrame, encoding: str = "sum") -> pd.DataFrame:
    """Rows of one encoding (SVAE+ has only ``unique`` and always stays, baselines have none)."""
    if "split" in summary:
        summary = summary[summary["split"] == "test"]
    if "encoding" not in summary:
        return summary
    always = summary["model"].isin(["svae_plus", *style.models_in(summary["model"], baselines=True)])
    return summary[always | (summary["encoding"] == encoding)]


@style.styled
def draw(
    scores_summary: pd.DataFrame,
    interactions: pd.DataFrame | None = None,
    published: pd.DataFrame | None = None,
    task: str = "ood",
    *,
    encoding: str = "sum",
) -> Figure:
    """Relative test IWELBO (a) and ATE-Pearson (b) against the fraction seen, and foretold interactions (c ...).

    scores_summary: model, fraction, metric (iwelbo_relative, ate_pearson), mean, sd over split seeds; where it
    has the columns split and encoding, the test rows of one encoding are drawn (core). Baselines (additive,
    mean_of_perturbations, ...) are lines in b. interactions: model, fraction, pair, seen, gene, observed, predicted
    (pair minus additive effect); a panel per model, whose title says how many of its pairs were in training.
    published: published.norman, drawn as hollow markers. Bars of no height, such as the reference of a, are marked.
    """
    if task not in TASKS:
        raise DataError(f"Norman figure: no task {task!r}.{nearest(task, TASKS)}")
    table = style.need(scores_summary, ["model", "fraction", "metric", "mean", "sd"], "Norman summary")
    table = style.need(core(table, encoding), [], f"Norman summary (encoding {encoding!r}, test)")
    theirs = None if published is None else core(published, encoding)
    models, fractions = style.models_in(table["model"]), sorted(table["fraction"].unique())
    pairs = None if interactions is None else _interactions(interactions)
    panels = [] if pairs is None else style.models_in(pairs["model"])

    fig = style.figure(9.6, 3.9 if not panels else 6.6)
    style.note(fig, NOTE)
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.3, 1]) if panels else (fig, None)
    axes = top.subplots(1, 2)
    for ax, tag, (metric, label) in zip(axes, "ab", METRICS.items(), strict=True):
        ax.set_label(metric)
        _bars(ax, table[table["metric"] == metric], theirs, metric, models, fractions)
        ax.set(ylabel=label, xlabel=TASKS[task])
        style.letter(ax, tag, "held-out likelihood" if metric == "iwelbo_relative" else "average treatment effects")
    lines = style.models_in(table["model"], baselines=True)
    handles = style.keys(models, "bar") + style.keys(lines, "line")
    if theirs is not None:
        handles.append(Line2D([], [], ls="", marker="D", mfc="white", mec=style.INK, mew=0.9, label="published"))
    top.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(handles) < 6 else -(-len(handles) // 2),
    )
    if panels:
        _foretold(bottom, pairs, panels)
    return fig


def _bars(
    ax: Axes,
    table: pd.DataFrame,
    published: pd.DataFrame | None,
    metric: str,
    models: Sequence[str],
    fractions: Sequence[float],
) -> None:
    """Groups of bars (mean ± sd) by fraction; baselines as short lines over the group, published as diamonds."""
    style.need(table, [], f"Norman summary (metric {metric!r})")
    width = 0.82 / len(models)
    place = {f: i for i, f in enumerate(fractions)}
    for j, model in enumerate(models):
        o, off = style.look(model), (j - (len(models) - 1) / 2) * width
        rows = table[table["model"] == model]
        x = rows["fraction"].map(place) + off
        ax.bar(x, rows["mean"], width * 0.94, color=o.colour, hatch=o.hatch, edgecolor="white", linewidth=0)
        ax.errorbar(x, rows["mean"], rows["sd"].fillna(0), fmt="none", ecolor=style.INK, elinewidth=0.9)
        for at in x[rows["mean"] == 0]:  # a bar that cannot be seen is not one that is missing
            ax.plot(at, 0, "o", color=o.colour, mec=style.INK, mew=0.5, zorder=4)
            ax.annotate("0", (at, 0), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        if published is not None:
            of = published[(published["model"] == model) & (published["metric"] == metric)]
            of = of[of["fraction"].isin(fractions)]
            style_of = {"mfc": "white", "mec": style.INK, "mew": 0.8, "ms": 4.2, "ls": "", "zorder": 4}
            ax.plot(of["fraction"].map(place) + off, of["mean"], "D", **style_of)
    for model in style.models_in(table["model"], baselines=True):
        rows, o = table[table["model"] == model].dropna(subset="mean"), style.look(model)
        x = rows["fraction"].map(place)
        ax.hlines(rows["mean"], x - 0.46, x + 0.46, color=o.colour, linestyles=[o.line], lw=1.3, zorder=5)
    ax.axhline(0, color=style.INK, lw=0.7)
    ax.set_xticks(range(len(fractions)), [f"{f:g}" for f in fractions])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.55, len(fractions) - 0.45)


def _interactions(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["model", "fraction", "pair", "seen", "gene", "observed", "predicted"]
    table = style.need(table, columns, "interactions")
    return style.need(table.dropna(subset=["observed", "predicted"]), [], "interactions (without NaN)")


def _seen(table: pd.DataFrame) -> str:
    """The fraction of a run, and how many of its pairs were in training."""
    seen = table.drop_duplicates("pair")["seen"]
    how = {0: "no pair", len(seen): "all pairs"}.get(int(seen.sum()), f"{int(seen.sum())} of {len(seen)} pairs")
    return f"fraction {table['fraction'].iloc[0]:g}: {how} seen"


def _foretold(fig: Figure, table: pd.DataFrame, models: Sequence[str]) -> None:
    """Predicted against observed interaction, a panel per model, one scale for all."""
    axes = fig.subplots(1, len(models), squeeze=False, sharex=True, sharey=True)[0]
    limit = float(table[["observed", "predicted"]].abs().to_numpy().max()) * 1.05 or 1.0
    for ax, tag, model in zip(axes, "cdefghijklmn", models, strict=False):
        rows = table[table["model"] == model]
        ax.set_label(f"interaction {model}")
        heatmaps.agreement(
            ax,
            rows[["observed"]],
            rows[["predicted"]],
            xlabel="observed interaction (log2)",
            ylabel="",
            limit=limit,
        )
        style.letter(ax, tag, f"{style.look(model).label}\n{_seen(rows)}")
    axes[0].set_ylabel("predicted interaction (log2)")
    top = max(ax.hexagons.norm.vmax for ax in axes)
    for ax in axes:
        ax.hexagons.set_clim(1, max(top, 2))
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    fig.colorbar(axes[0].hexagons, ax=list(axes), shrink=0.8, aspect=18, pad=0.015).set_label("pair × gene per hexagon")


# ---- Norman --------------------------------------------------------------------------------------------------------

NORMAN_REFERENCE = {"model": "sams_vae_corr", "encoding": "sum", "fraction": 0}


def norman_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The models' scores, under the settings of each model and encoding that are best over all splits and fractions."""
    return of_best_settings(models_only(scores), ["model", "encoding"], ["seed", "split_seed", "fraction"])


def norman_summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Relative IWELBO and ATE-Pearson of the test cells by model, encoding and fraction: mean and sd over splits.

    Of several settings of a model the best on validation data count.
    """
    rows = norman_rows(scores)
    relative = relative_to(rows, NORMAN_REFERENCE, ["split_seed"])
    base = scores[(scores["protocol"] == "published") & (scores["method"] == "baseline")]
    ate = pd.concat([rows, base], ignore_index=True).query("metric == 'ate_pearson'")
    rows = pd.concat([relative[relative["split"] == "test"], ate[ate["split"] == "test"]], ignore_index=True)
    rows["encoding"] = rows["encoding"].fillna("sum")
    return summary(rows, ["model", "encoding", "fraction", "metric"])


def norman_interactions(
    scores: pd.DataFrame, files: Sequence[str], references: Sequence[str], screen: str
) -> pd.DataFrame:
    """Interactions of the test pairs, observed in all cells and predicted by a run of each model.

    An interaction is the effect of a pair minus the sum of its single effects, each side by its own singles. The run
    shown is of the model's best settings, its largest fraction and first split. Columns: model, run, fraction, pair,
    seen (whether the pair has training cells), gene, observed, predicted, and ``made``, what was put in, where the
    screen is a miniature. ``references``: the effects of the data for every split.
    """
    place = scores.drop_duplicates("run").set_index("run")["split_name"]
    rows = core(norman_rows(scores))
    most = rows["fraction"] == rows.groupby("model")["fraction"].transform("max")
    made = read_uns(screen, "miniature_truth")
    tables = []
    for model, run, fraction in shown(rows[most], ["split_seed", "seed"])[["model", "run", "fraction"]].values:
        data = read_h5ad(of_run(references, place[run]))
        members = np.asarray(data.uns["members"])
        pairs = (data.obs["n_test"] > 0).to_numpy() & ((members >= 0).sum(1) == 2)
        observed = pd.DataFrame(interactions(data.X, members), data.obs_names, data.var_names)[pairs]
        effect = frame(read_h5ad(of_run(files, run))).loc[data.obs_names, data.var_names].to_numpy()
        predicted = pd.DataFrame(interactions(effect, members), data.obs_names, data.var_names)[pairs]
        table = pd.DataFrame({"observed": observed.stack(), "predicted": predicted.stack()})
        if made is not None:
            table["made"] = made.reindex(index=observed.index, columns=observed.columns).stack()
        table = table.rename_axis(["pair", "gene"]).reset_index()
        seen = table["pair"].map(data.obs["n_train"] > 0)
        tables.append(table.assign(model=model, run=run, fraction=fraction, seen=seen))
    return pd.concat(tables, ignore_index=True)


def norman_published(folder: str | Path, task: str, *, comparable: bool) -> pd.DataFrame | None:
    """The published numbers of a task, where the screen is the published one."""
    return published.norman(folder, task) if comparable else None
