"""Masks: which perturbations share latents, and whether the masks predict the annotation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from samsvae.evaluation.metrics.selection import of_best_settings
from samsvae.figures import heatmaps, style
from samsvae.figures.runs import best_run, label, of_run, of_table_1, short_names
from samsvae.screens.screen import read_uns
from samsvae.tables import read, read_h5ad

NOTE = "Published protocol. Settings chosen on validation data; a and b show their first seed."

ACTIVE = 0.5  # a latent is active where some perturbation's mask probability is above

CLASSIFIERS = {"logistic": "logistic\nregression", "forest": "random\nforest", "knn": "5 nearest\nneighbours"}


def latent_order(mask_probability: pd.DataFrame) -> tuple[list, int]:
    """Latents by clustering, the inactive ones pushed right; and the number of active ones."""
    active = (mask_probability > ACTIVE).any()
    parts = [mask_probability.loc[:, keep] for keep in (active, ~active)]
    return [c for part in parts for c in part.columns[heatmaps.cluster(part.to_numpy().T)]], int(active.sum())


def mask_heatmap(ax: Axes, matrix: pd.DataFrame, active: int, *, limit: float | None = None):
    """A matrix perturbations x latents with a line between active and inactive latents."""
    drawn = heatmaps.image(ax, matrix, limit=limit)
    if 0 < active < matrix.shape[1]:
        ax.axvline(active - 0.5, color=style.INK, lw=0.8, ls=(0, (3, 2)))
    ax.set_xlabel(f"{len(matrix):,} perturbations × {matrix.shape[1]} latents ({active} active)")
    return drawn


@style.styled
def draw(
    mask_probability: pd.DataFrame,
    embedding: pd.DataFrame,
    pathway: pd.Series | None,
    accuracy: pd.DataFrame | None,
    *,
    name: str = "",
) -> Figure:
    """Mask probability (a), mask times embedding (b), and how well masks predict pathways (c).

    mask_probability, embedding: perturbations x latents, of equal names. pathway: of each perturbation, '' for
    none; the heatmaps then show the annotated ones. accuracy: classifier, model, mean, sd, null_mean, null_sd,
    majority (one row per classifier and model; None leaves c out). name: the model of a and b.
    """
    style.need_matrix(("mask probability", mask_probability), ("embedding", embedding))
    group = heatmaps.annotated(mask_probability, pathway)
    shown = mask_probability if group is None else mask_probability.loc[group.index]
    product = (mask_probability * embedding).loc[shown.index]
    rows = heatmaps.row_order(shown, group)
    latents, active = latent_order(shown)

    fig = style.figure(10.6 if accuracy is not None else 7.4, 6.4)
    left, right = fig.subfigures(1, 2, width_ratios=[2.2, 1]) if accuracy is not None else (fig, None)
    axes = list(left.subplots(1, 2 + (group is not None), width_ratios=[*([0.05] * (group is not None)), 1, 1]))
    if group is not None:
        heatmaps.strip(axes[0], group[rows])
        axes[0].set_label("pathways")
    limit = heatmaps.limit_of(product)
    panels = (
        ("a", "mask probability", shown, None, "posterior mask probability"),
        ("b", "mask × embedding", product, limit, "mask probability × embedding"),
    )
    for ax, (tag, title, matrix, lim, quantity) in zip(axes[-2:], panels, strict=True):
        drawn = mask_heatmap(ax, matrix.loc[rows, latents], active, limit=lim)
        ax.set_label(title)
        style.letter(ax, tag, title)
        ax.set_xlabel(ax.get_xlabel() if tag == "a" else "same order")
        bar = left.colorbar(drawn, ax=ax, orientation="horizontal", shrink=0.7, aspect=25, pad=0.02)
        bar.set_label(quantity)
    if name:
        left.suptitle(name, fontsize=9)
    style.note(fig, NOTE)
    if group is None:
        heatmaps.rows_named(axes[0], rows)
    elif len(rows) <= heatmaps.MOST_NAMES:
        axes[-1].yaxis.tick_right()
        heatmaps.rows_named(axes[-1], rows)
    if accuracy is not None:
        _accuracy(right.subplots(), accuracy)
    return fig


def _accuracy(ax: Axes, table: pd.DataFrame) -> None:
    """A group per classifier, a marker per model; the null as a band behind each, the majority rate as a line."""
    style.need(table, ["classifier", "model", "mean", "sd", "null_mean", "null_sd", "majority"], "accuracy")
    ax.set_label("accuracy")
    models = style.models_in(table["model"])
    found = [c for c in CLASSIFIERS if c in set(table["classifier"])]
    found += sorted(set(table["classifier"]) - set(found))
    place = {c: i for i, c in enumerate(found)}
    step = 0.8 / max(len(models), 1)
    for j, model in enumerate(models):
        rows = table[table["model"] == model]
        x = rows["classifier"].map(place).to_numpy(float) + (j - (len(models) - 1) / 2) * step
        for at, mean, sd in zip(x, rows["null_mean"], rows["null_sd"].fillna(0), strict=True):
            band = Rectangle((at - step / 2, mean - 2 * sd), step, max(4 * sd, 0.004), color=style.PALE, lw=0, zorder=0)
            ax.add_patch(band)
        style.interval(ax, x, rows["mean"], rows["sd"], model)
    majority = float(np.nanmean(table["majority"]))
    rate = {"color": style.INK, "lw": 0.8, "ls": (0, (4, 2))}
    ax.axhline(majority, zorder=1, **rate)
    ax.set_xticks(range(len(found)), [CLASSIFIERS.get(c, c) for c in found])
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.55, len(found) - 0.45), ylim=(0, 1.02), ylabel="accuracy of predicting the pathway")
    null = Patch(color=style.PALE, label="labels permuted (mean ± 2 sd)")
    handles = [*style.keys(models), null, Line2D([], [], label=f"largest pathway ({majority:.2f})", **rate)]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.09), ncol=1, borderaxespad=0)
    style.letter(ax, "c", "masks predict pathways")


def tables(
    scores: pd.DataFrame, perturbations: Iterable[str], pathways: Iterable[str], screen: str, *, model: str
) -> dict[str, object]:
    """Arguments of the masks figure: matrices of the run shown, and the accuracy of every masked model."""
    run = best_run(scores, model)
    matrices = read_h5ad(of_run(perturbations, run))
    latents = [f"z{i}" for i in range(matrices.obsm["embedding"].shape[1])]
    tables = {
        name: pd.DataFrame(np.asarray(matrices.obsm[name]), matrices.obs_names, latents)
        for name in ("mask_probability", "embedding")
    }
    table = read_uns(screen, "perturbations")
    names = short_names(table["gene"].astype(str))
    pathway = table["pathway"].astype(str).rename(names)
    tables = {name: matrix.rename(index=names) for name, matrix in tables.items()}
    best = of_best_settings(of_table_1(scores))
    runs = best[["model", "run"]].drop_duplicates().set_index("run")["model"]
    found = pd.concat(
        [read(p).assign(model=runs[Path(p).parent.name]) for p in pathways if Path(p).parent.name in runs]
    )
    return {**tables, "pathway": pathway, "accuracy": accuracy_table(found), "name": label(model)}


def accuracy_table(found: pd.DataFrame) -> pd.DataFrame:
    """Plain accuracy by classifier and model: mean and sd over runs (over repeats where there is one run)."""
    plain = found[found["metric"] == "accuracy"]
    majority = plain.loc[plain["classifier"] == "majority", "mean"].iloc[0]
    rows = plain[plain["classifier"] != "majority"].groupby(["classifier", "model"], sort=False)
    table = rows.agg(
        mean=("mean", "mean"),
        between=("mean", "std"),
        within=("sd", "mean"),
        null_mean=("null_mean", "mean"),
        null_sd=("null_sd", "mean"),
    ).reset_index()
    return table.assign(sd=table["between"].fillna(table["within"]), majority=majority).drop(
        columns=["between", "within"]
    )
