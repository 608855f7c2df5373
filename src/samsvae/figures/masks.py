"""Masks of one run: which perturbations share latents; and whether the masks of all models predict the annotation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from samsvae.evaluation.collect import collect_scores
from samsvae.evaluation.metrics.constants import MAJORITY
from samsvae.evaluation.metrics.table import axis_label
from samsvae.evaluation.selection import of_best_settings
from samsvae.figures import heatmaps, style
from samsvae.figures.runs import models_only, of_run, short_names, shown_run
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations
from samsvae.tables import read

ACTIVE = 0.5  # a latent is active if the mask probability of some perturbation is above

CLASSIFIERS = {"logistic": "logistic\nregression", "forest": "random\nforest", "knn": "5 nearest\nneighbours"}

SAVED = {
    "mask_probability": "mask_probability",
    "embedding": "embedding",
    "accuracy": "accuracy",
    "pathway": "pathway",
}


def tables(
    *,
    grid: str,
    scores: Sequence[str],
    perturbations: Sequence[str],
    pathways: Sequence[str],
    screen: str,
    shown: str,
) -> dict[str, object]:
    """Arguments of draw: matrices of the run shown, and the accuracy of every masked model.

    scores, perturbations, pathways: RUN/scores.tsv, RUN/perturbations.h5ad and RUN/pathways.tsv of the candidates,
    which are all masked models; no pathways if the screen has no annotation. shown: the model to show if it is among
    the candidates; else the one with the best validation IWELBO is shown.
    """
    found = models_only(collect_scores(read(grid), scores, [], []))
    chosen = shown_run(found, shown)
    matrices = read_h5ad(of_run(perturbations, chosen.run))
    table = read_perturbations(screen)
    names = short_names(table)
    latents = [f"z{i}" for i in range(matrices.obsm["embedding"].shape[1])]
    rows = [names.get(name, name) for name in matrices.obs_names]
    mask, embedding = (
        pd.DataFrame(np.asarray(matrices.obsm[name]), rows, latents) for name in ("mask_probability", "embedding")
    )
    runs = of_best_settings(found).drop_duplicates("run").set_index("run")["model"]
    files = {Path(path).parent.name: path for path in pathways}
    accuracy = [read(path).assign(model=runs[run]) for run, path in files.items() if run in runs]
    pathway = table["pathway"].astype(str).rename(names)
    return {
        "mask_probability": mask,
        "embedding": embedding,
        "pathway": pathway if (pathway != "").any() else None,
        "accuracy": accuracy_table(pd.concat(accuracy, ignore_index=True)) if accuracy else None,
        "name": style.label(chosen.model),
        "sentence": chosen.sentence,
    }


@style.styled
def draw(
    mask_probability: pd.DataFrame,
    embedding: pd.DataFrame,
    pathway: pd.Series | None = None,
    accuracy: pd.DataFrame | None = None,
    *,
    name: str = "",
    sentence: str = "",
) -> Figure:
    """Mask probability (a), mask times embedding (b), and how well masks predict pathways (c).

    mask_probability, embedding: perturbations x latents, with equal names. pathway: of each perturbation, '' for
    none; if any has one, a and b show only those, grouped, else all are clustered. accuracy: accuracy_table; None
    leaves c out. name: the model in a and b. sentence: says which run is shown.
    """
    style.need_matrix(("mask probability", mask_probability), ("embedding", embedding))
    group = heatmaps.annotated(mask_probability, pathway)
    rows = mask_probability if group is None else mask_probability.loc[group.index]
    height = heatmaps.height(len(rows), least=3.9 if accuracy is None else 5.0, most=6.4)
    fig = style.figure(7.4 if accuracy is None else 10.6, height)
    left, *right = style.side_by_side(fig, [1] if accuracy is None else [2.2, 1])
    active = _matrices(left, rows, (mask_probability * embedding).loc[rows.index], group)
    if name:
        left.suptitle(name, fontsize=9)
    if accuracy is not None:
        _accuracy(right[0].subplots(), accuracy)
    style.note(fig, _note(active, int(rows.isna().all(axis=1).sum()), accuracy, sentence))
    return fig


# ---- the numbers ---------------------------------------------------------------------------------------------------


def accuracy_table(found: pd.DataFrame) -> pd.DataFrame:
    """Plain accuracy by classifier and model: mean and sd over runs (over repeats if there is one run), n runs."""
    plain = found[found["metric"] == "accuracy"]
    majority = plain.loc[plain["classifier"] == MAJORITY, "mean"].iloc[0]
    rows = plain[plain["classifier"] != MAJORITY].groupby(["classifier", "model"], sort=False)
    table = rows.agg(
        mean=("mean", "mean"),
        between=("mean", "std"),
        within=("sd", "mean"),
        null_mean=("null_mean", "mean"),
        null_sd=("null_sd", "mean"),
        n=("mean", "count"),
    ).reset_index()
    return table.assign(sd=table["between"].fillna(table["within"]), majority=majority).drop(
        columns=["between", "within"]
    )


def latent_order(mask_probability: pd.DataFrame) -> tuple[list, int]:
    """Latents by clustering, the inactive ones at the right; and the number of active ones."""
    active = (mask_probability > ACTIVE).any()
    parts = [mask_probability.loc[:, which] for which in (active, ~active)]
    return [c for part in parts for c in part.columns[heatmaps.cluster(part.to_numpy().T)]], int(active.sum())


# ---- the drawing ---------------------------------------------------------------------------------------------------


def _note(active: int, untrained: int, accuracy: pd.DataFrame | None, sentence: str) -> str:
    """Which run is shown, whether a latent is active, how many rows are empty, and how accuracies were averaged."""
    parts = [sentence] * bool(sentence)
    if untrained:
        rows = "grey row: 1 perturbation" if untrained == 1 else f"grey rows: {untrained} perturbations"
        parts.append(f"{rows.capitalize()} without training cells.")
    if not active:
        parts.append(f"No latent is active: no mask probability is above {ACTIVE}.")
    if accuracy is not None:
        how = style.spread(accuracy["n"]) if "n" in accuracy else "mean ± sd"
        how += ", ± sd over repeats of the cross-validation" * how.startswith("one")
        parts.append(f"c: published protocol, all models with masks, settings chosen on validation data, {how}.")
    return " ".join(parts)


def _matrices(fig: SubFigure, mask: pd.DataFrame, product: pd.DataFrame, group: pd.Series | None) -> int:
    """Both heatmaps with their colour bars, in one order of rows and latents. Returns the number of active latents."""
    rows = heatmaps.row_order(mask, group)
    latents, active = latent_order(mask)
    strips = [0.05] * (group is not None)
    axes = list(fig.subplots(1, 2 + len(strips), width_ratios=[*strips, 1, 1]))
    if group is not None:
        heatmaps.strip(axes[0], group[rows])
        axes[0].set_label("pathways")
    title = "mask probability" if active else "mask probability: no latent is active"
    limit = heatmaps.limit_of(product)
    panels = (
        ("a", "mask probability", title, mask, None, "mask probability (approximate posterior)"),
        (
            "b",
            "mask × embedding",
            "mask × embedding",
            product,
            limit,
            "mask probability × embedding",
        ),
    )
    for ax, (tag, panel, heading, matrix, lim, quantity) in zip(axes[-2:], panels, strict=True):
        drawn = _heatmap(ax, matrix.loc[rows, latents], active, limit=lim)
        ax.set_label(panel)
        style.letter(ax, tag, heading)
        ax.set_xlabel(f"{len(rows):,} perturbations × {len(latents)} latents ({active or 'none'} active)")
        bar = fig.colorbar(drawn, ax=ax, orientation="horizontal", shrink=0.7, aspect=25, pad=0.02)
        bar.set_label(quantity)
    axes[-1].set_xlabel("same order")
    if group is None:
        heatmaps.rows_named(axes[0], rows)
    elif len(rows) <= heatmaps.MOST_NAMES:
        axes[-1].yaxis.tick_right()
        heatmaps.rows_named(axes[-1], rows)
    return active


def _heatmap(ax: Axes, matrix: pd.DataFrame, active: int, *, limit: float | None) -> AxesImage:
    """A matrix (perturbations x latents), with a line between active and inactive latents if there are both."""
    drawn = heatmaps.image(ax, matrix, limit=limit)
    if 0 < active < matrix.shape[1]:
        ax.axvline(active - 0.5, color=style.INK, lw=0.8, ls=(0, (3, 2)))
    return drawn


def _accuracy(ax: Axes, table: pd.DataFrame) -> None:
    """One group per classifier, one marker per model; the null as a band behind each, the majority rate as a line."""
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
    rate: dict[str, Any] = {"color": style.INK, "lw": 0.8, "ls": style.DASHED}
    ax.axhline(majority, zorder=1, **rate)
    ax.set_xticks(range(len(found)), [CLASSIFIERS.get(c, c) for c in found])
    ax.tick_params(axis="x", length=0)
    label = axis_label(f"mask_pathway_accuracy/{next(iter(CLASSIFIERS))}")
    ax.set(xlim=(-0.55, len(found) - 0.45), ylim=(0, 1.02), ylabel=label)
    null = Patch(color=style.PALE, label="labels permuted (mean ± 2 sd)")
    handles = [*style.keys(models), null, Line2D([], [], label=f"largest pathway ({majority:.2f})", **rate)]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.09), ncol=1, borderaxespad=0)
    style.letter(ax, "c", "masks predict pathways")
