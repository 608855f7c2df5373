"""Predicted effects next to the observed ones, for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.evaluation.collect import collect_scores
from samsvae.figures import heatmaps, style
from samsvae.figures.runs import ate_unit, frame, models_only, of_run, of_split, short_names, shown_run
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations
from samsvae.tables import read

NOTE = "Published protocol: effects of the data from all cells of every split."

SAVED = {"data": "data", "model": "model"}


def tables(
    *, grid: str, scores: Sequence[str], effects: Sequence[str], references: Sequence[str], screen: str, shown: str
) -> dict[str, object]:
    """Arguments of draw: ATE of the data (all cells) and of the run shown.

    scores, effects: RUN/scores.tsv and RUN/effects.h5ad of the candidates. references: SPLIT/effects.h5ad. shown: the
    model to show if it is among the candidates; else the one with the best validation IWELBO is shown.
    """
    found = collect_scores(read(grid), scores, [], [])
    chosen = shown_run(models_only(found), shown)
    data = read_h5ad(of_split(references, found, chosen.run))
    predicted = read_h5ad(of_run(effects, chosen.run))
    perturbations = read_perturbations(screen)
    sampled = f"Sampled cells have {predicted.uns['library']:,.0f} counts. " if "library" in predicted.uns else ""
    several = "n_perturbations" in data.obs and bool((data.obs["n_perturbations"] > 1).any())
    return {
        "data": frame(data),
        "model": frame(predicted).loc[data.obs_names, data.var_names],
        "pathway": perturbations["pathway"].astype(str).reindex(data.obs_names).fillna(""),
        "name": style.label(chosen.model),
        "kind": "conditions" if several else "perturbations",
        "names": short_names(perturbations),
        "unit": ate_unit(data),
        "sentence": f"{sampled}{chosen.sentence}",
    }


@style.styled
def draw(
    data: pd.DataFrame,
    model: pd.DataFrame,
    pathway: pd.Series | None = None,
    *,
    name: str = "model",
    kind: str = "perturbations",
    names: Mapping[str, str] | None = None,
    unit: str = " (log2)",
    sentence: str = "",
) -> Figure:
    """ATE of data (a) and model (b) as heatmaps with one order and colour scale, entry by entry (c), per row (d).

    data, model: conditions x genes, ATE, with equal row and column names. pathway: of each condition, '' for
    none; if any has one, a and b show only those, while c and d always show all. name: the model's. kind: the word
    for rows. names: row -> the name to draw. unit: of the ATE, for labels. sentence: says which run is shown.
    """
    style.need_matrix(("data effects", data), ("model effects", model))
    group = heatmaps.annotated(data, pathway)
    fig = style.figure(10.2, heatmaps.height(len(data) if group is None else 0, least=5.4, most=5.4))
    style.note(fig, f"{NOTE} {sentence}")
    left, right = style.side_by_side(fig, [2.35, 1])
    heatmaps.effects_side_by_side(left, data, model, pathway, name=name, kind=kind, names=names, unit=unit)
    ax, below = right.subplots(2, 1, height_ratios=[1.9, 1])
    ax.set_label("agreement")
    hexagons = heatmaps.agreement(ax, data, model, xlabel=f"ATE of the data{unit}", ylabel=f"ATE of {name}{unit}")
    style.letter(ax, "c", f"all {len(data):,} {kind}")
    heatmaps.count_bar(right, hexagons, [ax], f"{kind} × genes per hexagon", shrink=0.66, pad=0.02)

    r = heatmaps.correlations(data, model).dropna()
    below.set_label("per perturbation")
    below.hist(r, bins=np.linspace(min(0, r.min() if len(r) else 0), 1, 26), color=style.GREY, ec="white", lw=0.5)
    if len(r):
        below.axvline(r.median(), color=style.INK, lw=0.9, ls=style.DASHED)
    below.set(xlabel="Pearson r over genes", ylabel=f"number of {kind}", xlim=(None, 1))
    below.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.letter(below, "d", f"{len(r):,} {kind} (median r = {style.number(r.median(), 2)})")
    return fig
