"""Predicted effects next to the observed ones, for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from samsvae.evaluation.collect import collect_scores
from samsvae.figures import conditions, heatmaps, style
from samsvae.figures.runs import ate_unit, frame, models_only, of_run, of_split, short_names, shown_run
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations
from samsvae.tables import read

NOTE = "Published protocol: effects of the data from all cells of every split."

HONEST = (
    " Panel d, honest protocol: effects of test cells minus their mean over conditions, at the depth of these cells."
)

SAVED = {"data": "data", "model": "model", "conditions": "each"}


def tables(
    *,
    grid: str,
    scores: Sequence[str],
    effects: Sequence[str],
    references: Sequence[str],
    per_condition: Sequence[str],
    baseline_conditions: Sequence[str],
    screen: str,
    shown: str,
) -> dict[str, object]:
    """Arguments of draw: ATE of the data (all cells) and of the run shown, and its scores by condition.

    scores, effects, per_condition: RUN/scores.tsv, RUN/effects.h5ad and RUN/worth_conditions.tsv of the candidates.
    references, baseline_conditions: SPLIT/effects.h5ad and SPLIT/worth_conditions.tsv. shown: the model to show if it
    is among the candidates; else the one with the best validation IWELBO is shown.
    """
    found = collect_scores(read(grid), scores, [], [])
    chosen = shown_run(models_only(found), shown)
    reference = of_split(references, found, chosen.run)
    data = read_h5ad(reference)
    dataset, split = Path(reference).parts[-3:-1]
    predicted = read_h5ad(of_run(effects, chosen.run))
    perturbations = read_perturbations(screen)
    sampled = f"Sampled cells have {predicted.uns['library']:,.0f} counts. " if "library" in predicted.uns else ""
    several = "n_perturbations" in data.obs and bool((data.obs["n_perturbations"] > 1).any())
    return {
        "data": frame(data),
        "model": frame(predicted).loc[data.obs_names, data.var_names],
        "pathway": perturbations["pathway"].astype(str).reindex(data.obs_names).fillna(""),
        "each": conditions.table(per_condition, baseline_conditions, {chosen.run: chosen.model}, {(dataset, split)}),
        "shown": chosen.model,
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
    each: pd.DataFrame | None = None,
    *,
    shown: str = "",
    kind: str = "perturbations",
    names: Mapping[str, str] | None = None,
    unit: str = " (log2)",
    sentence: str = "",
) -> Figure:
    """ATE of data (a) and model (b) as heatmaps with one order and colour scale, entry by entry (c); scores (d).

    data, model: conditions x genes, ATE, with equal row and column names. pathway: of each condition, '' for
    none; if any has one, a and b show only those, while c always shows all. each: conditions.table; without it there is
    no d. shown: the model. kind: the word for rows. names: row -> the name to draw. unit: of the ATE, for labels.
    sentence: says which run is shown.
    """
    style.need_matrix(("data effects", data), ("model effects", model))
    group = heatmaps.annotated(data, pathway)
    fig = style.figure(10.2, heatmaps.height(len(data) if group is None else 0, least=5.4, most=5.4))
    name = style.label(shown) if shown else "model"
    style.note(fig, f"{NOTE}{HONEST if each is not None else ''} {sentence}")
    left, right = style.side_by_side(fig, [2.35, 1])
    heatmaps.effects_side_by_side(left, data, model, pathway, name=name, kind=kind, names=names, unit=unit)
    ratios = [1.3, 1] if each is not None else [1]
    ax, *below = right.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
    ax.set_label("agreement")
    hexagons = heatmaps.agreement(ax, data, model, xlabel=f"ATE of the data{unit}", ylabel=f"ATE of {name}{unit}")
    style.letter(ax, "c", f"all {len(data):,} {kind}")
    heatmaps.count_bar(right, hexagons, [ax], f"{kind} × genes per hexagon", shrink=0.66, pad=0.02)
    if each is not None:
        conditions.histogram(below[0], "d", each, shown, kind)
    return fig
