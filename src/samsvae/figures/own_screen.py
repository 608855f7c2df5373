"""A screen of your own: likelihood and effects next to baselines, effects and masks drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samsvae.evaluation.metrics.selection import of_best_settings
from samsvae.figures import heatmaps, style
from samsvae.figures.masks import latent_order, mask_heatmap
from samsvae.figures.runs import frame, label, models_only, of_run, shown_runs
from samsvae.screens.screen import read_uns
from samsvae.tables import read, read_h5ad

BASELINE = "mean_of_perturbations"

PROTOCOL = "Held-out protocol: effects of the data from test cells. Settings chosen on validation data."


@style.styled
def draw(
    scores: pd.DataFrame,
    data_effects: pd.DataFrame,
    model_effects: pd.DataFrame,
    per_condition: pd.DataFrame,
    *,
    mask_probability: pd.DataFrame | None = None,
    pathway: pd.Series | None = None,
    name: str = "model",
    mask_name: str = "mask probability",
) -> Figure:
    """Held-out likelihood by model (a), effects by perturbation (b), ATE of data and model (c, d), masks (e).

    scores: model, metric, value (and split); the rows ``iwelbo`` (test) are drawn, those of ``intercept_nb`` as a
    line. per_condition: model, condition, value, Pearson's r of a condition's ATE (mean over runs if several; rows
    of other metrics than ``ate_pearson`` are left out); ``mean_of_perturbations`` is the grey line. Effects:
    conditions x genes, of the model called ``name``; mask_probability: perturbations x latents, of that called
    ``mask_name``, drawn in the order of c where its rows hold them all, and named where they are few.
    """
    scores = style.need(scores, ["model", "metric", "value"], "scores")
    scores = scores[(scores["metric"] == "iwelbo") & (scores.get("split", "test") == "test")]
    style.need(scores, [], "scores (metric 'iwelbo', split 'test')")
    style.need(per_condition, ["model", "condition", "value"], "scores per condition")
    style.need_matrix(("data effects", data_effects), ("model effects", model_effects))
    fig = style.figure(10.2, 8.1)
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.4])
    style.note(fig, PROTOCOL)
    ax_scores, ax_conditions = top.subplots(1, 2, width_ratios=[1, 2.1])
    _likelihood(ax_scores, scores)
    _conditions(ax_conditions, per_condition)
    masked = mask_probability is not None and mask_probability.size > 0
    left, right = bottom.subfigures(1, 2, width_ratios=[2, 1]) if masked else (bottom, None)
    rows = heatmaps.effects_side_by_side(left, data_effects, model_effects, pathway, "cd", name)
    if masked:
        _mask(right, mask_probability, pathway, rows, mask_name)
    return fig


def _likelihood(ax: Axes, scores: pd.DataFrame) -> None:
    """A dot per run and the mean of each model; the intercept-only model as a line."""
    ax.set_label("likelihood")
    models = style.models_in(scores["model"])
    for i, model in enumerate(models):
        o, values = style.look(model), scores.loc[scores["model"] == model, "value"].to_numpy(float)
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0]
        ax.plot(values, i + np.asarray(spread), "o", color=o.colour, ms=3, alpha=0.55, mew=0)
        ax.plot(np.mean(values), i, o.marker, color=o.colour, mec=style.INK, mew=0.4, ms=6.5)
    base = scores.loc[scores["model"] == "intercept_nb", "value"]
    if len(base):
        o = style.look("intercept_nb")
        ax.axvline(base.mean(), color=o.colour, ls=o.line, lw=1)
        at = {"ha": "center", "xytext": (0, 2), "textcoords": "offset points", "fontsize": 7}
        ax.annotate(o.label, (base.mean(), 1), xycoords=("data", "axes fraction"), **at)
    ax.set_yticks(range(len(models)), [style.look(m).label for m in models])
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(models) - 0.4, -0.6), xlabel="test IWELBO (nats per cell)")
    ax.margins(x=0.12)
    ax.locator_params(axis="x", nbins=4)
    ax.set_title("$\\bf{a}$  held-out likelihood", loc="left", pad=13)


def _conditions(ax: Axes, table: pd.DataFrame) -> None:
    """Pearson's r of each perturbation, sorted by the best model's; the mean of perturbations as a line."""
    if "metric" in table:
        table = table[table["metric"] == "ate_pearson"]
    style.need(table, [], "scores per condition (metric 'ate_pearson')")
    wide = table.groupby(["condition", "model"])["value"].mean().unstack()
    models = style.models_in(wide.columns)
    ax.set_label("conditions")
    first = wide[models].mean().idxmax() if models else wide.columns[0]
    wide = wide.sort_values(first, ascending=False, kind="stable", na_position="last")
    x = np.arange(len(wide))
    handles = style.keys(models)
    if BASELINE in wide:
        ax.step(x, wide[BASELINE], where="mid", color=style.GREY, lw=1.2, zorder=1)
        label = f"{style.look(BASELINE).label} (median {wide[BASELINE].median():.2f})"
        handles.append(Line2D([], [], color=style.GREY, lw=1.2, label=label))
    for handle, model in zip(handles, models, strict=False):
        o, many = style.look(model), len(wide) > heatmaps.MOST_NAMES
        ax.plot(
            x,
            wide[model],
            o.marker,
            color=o.colour,
            mec=style.INK,
            mew=0.2 if many else 0.4,
            ms=3 if many else 5,
        )
        handle.set_label(f"{o.label} (median {wide[model].median():.2f})")
    ax.axhline(0, color=style.INK, lw=0.6, zorder=0)
    if len(wide) <= heatmaps.MOST_NAMES:
        ax.set_xticks(
            x,
            [str(n) if len(str(n)) <= 16 else f"{str(n)[:15]}…" for n in wide.index],
            rotation=90,
            fontsize=7,
        )
        ax.tick_params(axis="x", length=0)
    else:
        ax.set_xlabel(f"{len(wide):,} perturbations")
        ax.set_xticks([])
    ax.set(
        xlim=(-0.8, len(wide) - 0.2),
        ylim=(min(-0.05, np.nanmin(wide) - 0.05), 1.02),
        ylabel="Pearson r of the ATE",
    )
    ax.legend(handles=handles, loc="lower left", ncols=2, fontsize=7, bbox_to_anchor=(0.18, 1.0), borderaxespad=0.2)
    ax.set_title("$\\bf{b}$  effects", loc="left", pad=13)


def _mask(fig: Figure, mask: pd.DataFrame, pathway: pd.Series | None, beside: list, name: str) -> None:
    """Masks, the rows in the order of the heatmaps ``beside`` where all are among theirs, and with their names."""
    ax = fig.subplots()
    ax.set_label("mask probability")
    group = heatmaps.annotated(mask, pathway)
    shown = mask if group is None else mask.loc[group.index]
    latents, active = latent_order(shown)
    rows = [row for row in beside if row in shown.index]
    rows = rows if len(rows) == len(shown) else heatmaps.row_order(shown, group)
    drawn = mask_heatmap(ax, shown.loc[rows, latents], active)
    heatmaps.rows_named(ax, rows)
    style.letter(ax, "e", name)
    fig.colorbar(drawn, ax=ax, shrink=0.45, aspect=18, pad=0.02).set_label("posterior mask probability")


def tables(
    scores: pd.DataFrame,
    per_condition: Sequence[str],
    effects_files: Sequence[str],
    perturbations: Sequence[str],
    baseline_conditions: str,
    reference: str,
    screen: str,
) -> dict:
    """Arguments of the figure of an own screen: all held-out, each model under its best settings on validation data.

    Effects are of the model of best mean validation IWELBO, masks of the best one that has some; the run of either is
    its first seed.
    """
    best = of_best_settings(models_only(scores))
    val = best[(best["metric"] == "iwelbo") & (best["split"] == "val")].groupby("model", sort=False)["value"].mean()
    order, runs = val.sort_values(ascending=False, kind="stable").index, shown_runs(models_only(scores))
    data, predicted = read_h5ad(reference), read_h5ad(of_run(effects_files, runs[order[0]]))
    of = best.drop_duplicates("run").set_index("run")["model"]
    each = [read(p).assign(model=of[run], run=run) for p in per_condition if (run := Path(p).parent.name) in of]
    each = pd.concat([*each, read(baseline_conditions)], ignore_index=True)
    each = each[each["protocol"].eq("held-out") & ~each["model"].isin(["train_mean", "additive"])]
    held_out = frame(data, "held_out").dropna()
    tables = ((model, read_h5ad(of_run(perturbations, runs[model]))) for model in order)
    masked, found = next(((model, t) for model, t in tables if "mask_probability" in t.obsm), (None, None))
    table = read_uns(screen, "perturbations")
    drawn = scores[scores["run"].isin([*of.index, "intercept_nb"])]
    return {
        "scores": drawn.replace({"metric": {"log_likelihood": "iwelbo"}}).reset_index(drop=True),
        "data_effects": held_out,
        "model_effects": frame(predicted).loc[held_out.index, held_out.columns],
        "per_condition": each.rename(columns={"ate_pearson": "value"})[
            ["model", "run", "condition", "value"]
        ].reset_index(drop=True),
        "mask_probability": None
        if masked is None
        else pd.DataFrame(np.asarray(found.obsm["mask_probability"]), found.obs_names),
        "pathway": table["pathway"].astype(str) if (table["pathway"] != "").any() else None,
        "name": label(order[0]),
        "mask_name": "" if masked is None else label(masked),
    }
