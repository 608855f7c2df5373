"""Effects of the model next to the data's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures import heatmaps, style
from samsvae.figures.runs import best_run, frame, label, of_run
from samsvae.screens.screen import read_uns
from samsvae.tables import read_h5ad


@style.styled
def draw(data: pd.DataFrame, model: pd.DataFrame, pathway: pd.Series | None = None, *, name: str = "model") -> Figure:
    """ATE of data and model as heatmaps of one order and colour scale (a, b), entry by entry (c), per perturbation (d).

    data, model: conditions x genes, ATE (log2), of equal row and column names. pathway: of each condition, ''
    for none; the heatmaps then show the annotated conditions, c and d always all. name: the model's name.
    """
    style.need_matrix(("data effects", data), ("model effects", model))
    fig = style.figure(10.2, 5.4)
    style.note(fig, "Published protocol: effects of the data from all cells, whatever their split.")
    left, right = fig.subfigures(1, 2, width_ratios=[2.35, 1])
    heatmaps.effects_side_by_side(left, data, model, pathway, "ab", name)
    ax, below = right.subplots(2, 1, height_ratios=[1.9, 1])
    ax.set_label("agreement")
    heatmaps.agreement(ax, data, model, xlabel="ATE of the data (log2)", ylabel=f"ATE of {name} (log2)")
    style.letter(ax, "c", f"all {len(data):,} perturbations")
    right.colorbar(ax.hexagons, ax=ax, shrink=0.66, aspect=18, pad=0.02).set_label("perturbations × genes per hexagon")

    r = heatmaps.correlations(data, model).dropna()
    below.set_label("per perturbation")
    below.hist(r, bins=np.linspace(min(0, r.min() if len(r) else 0), 1, 26), color=style.GREY, ec="white", lw=0.5)
    if len(r):
        below.axvline(r.median(), color=style.INK, lw=0.9, ls=(0, (4, 2)))
    below.set(xlabel="Pearson r over genes", ylabel="perturbations", xlim=(None, 1))
    style.letter(below, "d", f"{len(r):,} perturbations (median r = {r.median():.2f})")
    return fig


def tables(scores: pd.DataFrame, files: Iterable[str], reference: str, screen: str, *, model: str) -> dict:
    """Arguments of the effects figure: ATE of the data (all cells) and of the run shown."""
    run = best_run(scores, model)
    data, predicted = read_h5ad(reference), read_h5ad(of_run(files, run))
    pathway = read_uns(screen, "perturbations")["pathway"].astype(str)
    return {
        "data": frame(data),
        "model": frame(predicted).loc[data.obs_names, data.var_names],
        "pathway": pathway.reindex(data.obs_names).fillna(""),
        "name": label(model),
    }
