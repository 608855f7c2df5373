"""Masks of one run: which perturbations share latents; and for all models, whether masks predict and are stable."""

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
from samsvae.evaluation.masks import ACTIVE, collect_masks, latent_names
from samsvae.evaluation.metrics.constants import FEATURES, MAJORITY
from samsvae.evaluation.selection import of_best_settings
from samsvae.figures import heatmaps, style
from samsvae.figures.runs import models_only, of_run, short_names, shown_run
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations
from samsvae.tables import read

CLASSIFIERS = {"logistic": "logistic\nregression", "forest": "random\nforest", "knn": "5 nearest\nneighbours"}

#: The marker of the accuracy that the effects of a model reach.
EFFECTS: dict[str, Any] = {"ls": "", "marker": "_", "ms": 9, "mew": 1.6}

#: Columns of the table of masks: metric, heading, digits.
STABILITY = (
    ("mask_gram", "stability\nover seeds", 2),
    ("mask_excess", "overlap\nbeyond chance", 2),
    ("mask_density", "share of\nentries on", 2),
    ("mask_active_latents", "active\nlatents", 1),
    ("sibling_rank", "rank of same\ngene (chance 0.5)", 2),
)

SAVED = {
    "mask_probability": "mask_probability",
    "embedding": "embedding",
    "accuracy": "accuracy",
    "pathway": "pathway",
    "stability": "stability",
}


def tables(
    *,
    grid: str,
    scores: Sequence[str],
    perturbations: Sequence[str],
    pathways: Sequence[str],
    baselines: Sequence[str],
    screen: str,
    shown: str,
) -> dict[str, object]:
    """Arguments of draw: matrices of the run shown, and the accuracies and stability of every masked model.

    scores, perturbations: RUN/scores.tsv and RUN/perturbations.h5ad of the candidates, which are all masked models.
    pathways: accuracies of these runs, and perhaps of others; baselines: of the training means; none of both if the
    screen has no annotation. shown: the model to show if it is among the candidates; else the one with the best
    validation IWELBO is shown.
    """
    runs_of_grid = read(grid)
    found = models_only(collect_scores(runs_of_grid, scores, [], []))
    chosen = shown_run(found, shown)
    matrices = read_h5ad(of_run(perturbations, chosen.run))
    table = read_perturbations(screen)
    names = short_names(table)
    latents = latent_names(matrices.obsm["embedding"].shape[1])
    rows = [names.get(name, name) for name in matrices.obs_names]
    mask, embedding = (
        pd.DataFrame(np.asarray(matrices.obsm[name]), rows, latents) for name in ("mask_probability", "embedding")
    )
    runs = of_best_settings(found).drop_duplicates("run").set_index("run")["model"]
    accuracy = pd.concat([read(path) for path in pathways]) if pathways else None
    files = [path for path in perturbations if Path(path).parent.name in runs]
    pathway = table["pathway"].astype(str).rename(names)
    return {
        "mask_probability": mask,
        "embedding": embedding,
        "pathway": pathway if (pathway != "").any() else None,
        "accuracy": None if accuracy is None else accuracy_table(accuracy, runs, [read(path) for path in baselines]),
        "stability": stability_table(collect_masks(runs_of_grid, files, [screen])),
        "name": style.label(chosen.model),
        "sentence": chosen.sentence,
    }


@style.styled
def draw(
    mask_probability: pd.DataFrame,
    embedding: pd.DataFrame,
    pathway: pd.Series | None = None,
    accuracy: pd.DataFrame | None = None,
    stability: pd.DataFrame | None = None,
    *,
    name: str = "",
    sentence: str = "",
) -> Figure:
    """Mask probability (a), mask times embedding (b), how well masks and other features predict pathways (c), and a
    table of the masks of every model (d).

    mask_probability, embedding: perturbations x latents, with equal names. pathway: of each perturbation, '' for
    none; if any has one, a and b show only those, grouped, else all are clustered. accuracy: accuracy_table;
    stability: stability_table; None leaves c or d out. name: the model in a and b. sentence: says which run is shown.
    """
    style.need_matrix(("mask probability", mask_probability), ("embedding", embedding))
    group = heatmaps.annotated(mask_probability, pathway)
    rows = mask_probability if group is None else mask_probability.loc[group.index]
    height = heatmaps.height(len(rows), least=3.9 if accuracy is None else 5.0, most=6.4)
    below = 0.0 if stability is None else 0.75 + 0.19 * len(stability)
    fig = style.figure(7.4 if accuracy is None else 10.6, height + below)
    upper, *lower = style.stacked(fig, [height, below] if below else [height])
    left, *right = style.side_by_side(upper, [1] if accuracy is None else [2.2, 1])
    active = _matrices(left, rows, (mask_probability * embedding).loc[rows.index], group)
    if name:
        left.suptitle(name, fontsize=9)
    if accuracy is not None:
        _accuracy(right[0].subplots(), accuracy)
    if stability is not None:
        _stability(lower[0].subplots(), stability, "c" if accuracy is None else "d")
    style.note(fig, _note(active, int(rows.isna().all(axis=1).sum()), accuracy, stability, sentence))
    return fig


# ---- the numbers ---------------------------------------------------------------------------------------------------


def accuracy_table(found: pd.DataFrame, runs: pd.Series, baselines: Sequence[pd.DataFrame] = ()) -> pd.DataFrame:
    """Plain accuracy by classifier, features and model: mean and sd over runs (over repeats if there is one run).

    found: accuracies of runs. runs: the model of each run to show. baselines: accuracies of predictors without a model,
    as scores. Columns: classifier, features, model, mean, sd, null_mean, null_sd, n (runs), majority.
    """
    plain = found[(found["metric"] == "accuracy") & found["run"].isin(runs.index)]
    plain = plain.assign(model=plain["run"].map(runs))
    majority = plain.loc[plain["classifier"] == MAJORITY, "mean"].iloc[0]
    rows = plain[plain["classifier"] != MAJORITY].groupby(["classifier", "features", "model"], sort=False)
    table = rows.agg(
        mean=("mean", "mean"),
        between=("mean", "std"),
        within=("sd", "mean"),
        null_mean=("null_mean", "mean"),
        null_sd=("null_sd", "mean"),
        n=("mean", "count"),
    ).reset_index()
    table = table.assign(sd=table["between"].fillna(table["within"])).drop(columns=["between", "within"])
    for baseline in baselines:
        scores = baseline[baseline["metric"].str.startswith("effects_pathway_accuracy/")]
        own = scores.assign(classifier=scores["metric"].str.partition("/")[2], features="effects", mean=scores["value"])
        table = pd.concat([table, own[["classifier", "features", "model", "mean", "sd"]]], ignore_index=True)
    return table.assign(majority=majority)


def stability_table(masks: pd.DataFrame) -> pd.DataFrame | None:
    """A row per model: seeds, STABILITY (means over seeds) and the largest p of the rank; None without masks."""
    if not len(masks):
        return None
    ranks = masks["metric"].str.startswith("sibling")
    seeds = masks[~ranks].groupby("model", sort=False)["n"].first().rename("seeds")
    means = masks.groupby(["model", "metric"])["value"].agg(lambda values: values.mean(skipna=False)).unstack()
    means = means.reindex(seeds.index).reindex(columns=[metric for metric, *_ in STABILITY])
    p = masks[masks["metric"] == "sibling_rank_p"].groupby("model")["value"].max().rename("sibling_rank_largest_p")
    return pd.concat([seeds, means, p.reindex(seeds.index)], axis=1).rename_axis("model").reset_index()


def latent_order(mask_probability: pd.DataFrame) -> tuple[list, int]:
    """Latents by clustering, the inactive ones at the right; and the number of active ones."""
    active = (mask_probability > ACTIVE).any()
    parts = [mask_probability.loc[:, which] for which in (active, ~active)]
    return [c for part in parts for c in part.columns[heatmaps.cluster(part.to_numpy().T)]], int(active.sum())


# ---- the drawing ---------------------------------------------------------------------------------------------------


def _note(
    active: int, untrained: int, accuracy: pd.DataFrame | None, stability: pd.DataFrame | None, sentence: str
) -> str:
    """Which run is shown, whether a latent is active, how many rows are empty, and how numbers were averaged."""
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
    if stability is not None and (stability["seeds"] == 1).any():
        parts.append(f"{'c' if accuracy is None else 'd'}: one seed has no stability over seeds.")
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
    elif len(rows) <= style.MOST_NAMES:
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
    """One group per classifier, one column per model: its features as markers, and the null of its mask as a band.

    Across each group: the accuracy of the training means, and across all, that of the largest pathway.
    """
    columns = ["classifier", "features", "model", "mean", "sd", "null_mean", "null_sd", "majority"]
    style.need(table, columns, "accuracy")
    ax.set_label("accuracy")
    models = style.models_in(table["model"])
    found = [c for c in CLASSIFIERS if c in set(table["classifier"])]
    found += sorted(set(table["classifier"]) - set(found))
    place = {c: i for i, c in enumerate(found)}
    step = 0.8 / max(len(models), 1)
    for j, model in enumerate(models):
        own = table[table["model"] == model]
        x = own["classifier"].map(place).to_numpy(float) + (j - (len(models) - 1) / 2) * step
        at = {name: x[own["features"] == name] for name in FEATURES}
        mask, embedding, effects = (own[own["features"] == name] for name in FEATURES)
        for middle, mean, sd in zip(at["mask"], mask["null_mean"], mask["null_sd"].fillna(0), strict=True):
            low, height = mean - 2 * sd, max(4 * sd, 0.004)
            ax.add_patch(Rectangle((middle - step / 2, low), step, height, color=style.PALE, lw=0, zorder=0))
        look = style.look(model)
        ax.plot(at["effects"], effects["mean"], color=look.colour, **EFFECTS)
        hollow: dict[str, Any] = {"ls": "", "marker": look.marker, "mfc": "white", "mec": look.colour, "mew": 1.0}
        ax.plot(at["embedding"], embedding["mean"], **hollow)
        style.interval(ax, at["mask"], mask["mean"], mask["sd"], model)
    without = table[table["model"].isin(style.models_in(table["model"], baselines=True))]
    means: dict[str, Any] = {"color": style.INK, "lw": 1.1}
    for classifier, value in zip(without["classifier"], without["mean"], strict=True):
        ax.hlines(value, place[classifier] - 0.44, place[classifier] + 0.44, zorder=1, **means)
    majority = float(np.nanmean(table["majority"]))
    rate: dict[str, Any] = {"color": style.INK, "lw": 0.8, "ls": style.DASHED}
    ax.axhline(majority, zorder=1, **rate)
    ax.set_xticks(range(len(found)), [CLASSIFIERS.get(c, c) for c in found])
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.55, len(found) - 0.45), ylim=(0, 1.02), ylabel="pathway accuracy")
    marks: dict[str, Any] = {"ls": "", "color": style.GREY, "marker": "o"}
    handles = [
        Line2D([], [], label="mask (markers as in d)", **marks),
        Line2D([], [], label="embedding, before the mask", **(marks | {"mfc": "white"})),
        Line2D([], [], label="effects that the model predicts", **(marks | EFFECTS)),
        *([Line2D([], [], label="mean effects of training cells", **means)] if len(without) else []),
        Patch(color=style.PALE, label="mask, labels permuted (mean ± 2 sd)"),
        Line2D([], [], label=f"largest pathway ({majority:.2f})", **rate),
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.09), ncol=1, borderaxespad=0)
    style.letter(ax, "c", "do masks predict pathways?")


def _stability(ax: Axes, table: pd.DataFrame, letter: str) -> None:
    """A table with a row per model: its marker and name, and STABILITY."""
    ax.set_label("stability")
    shown = table.set_index("model").loc[style.models_in(table["model"])]
    heads = [("seeds", "seeds", 0), *STABILITY]
    heads = [head for head in heads if shown[head[0]].notna().any() or head[0] != "sibling_rank"]
    for y, (model, row) in enumerate(shown.iterrows()):
        look = style.look(str(model))
        ax.plot(-0.75, y, look.marker, color=look.colour, mec=style.INK, mew=0.4, clip_on=False)
        for x, (metric, _, digits) in enumerate(heads):
            text = style.number(float(row[metric]), digits)
            if metric == "sibling_rank" and np.isfinite(row[metric]):
                text += f" (p {style.number(row['sibling_rank_largest_p'], 3)})"
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5)
    ax.set_xticks(range(len(heads)), [head for _, head, _ in heads])
    ax.set_yticks(range(len(shown)), [style.label(str(model)) for model in shown.index])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set(xlim=(-0.9, len(heads) - 0.5), ylim=(len(shown) - 0.5, -0.5))
    style.letter(ax, letter, "masks of all models")
