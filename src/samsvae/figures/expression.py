"""Differentially expressed (DE) genes of a few perturbations, in the data and in the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from samsvae.errors import DataError, nearest
from samsvae.evaluation.collect import collect_scores
from samsvae.figures import style
from samsvae.figures.runs import ate_unit, frame, models_only, of_run, of_split, short_names, shown_run, shown_runs
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations
from samsvae.tables import read

ALPHA = 0.05  # a gene is significant if its adjusted p-value is below

COLOURS = {"no": "#C9C9C9", "data": "#2B6FA8", "both": "#5B2A86", "model": "#D8A13A"}

NAMED = 6  # genes named in a panel

NOTE = "Published protocol: tests and effects of the data from all cells of every split."

SAVED = {
    "overlap": "overlap",
    "tests": "data_de",
    "model_tests": "model_de",
    "data_effects": "data_effects",
    "model_effects": "model_effects",
}


def tables(
    *,
    grid: str,
    scores: Sequence[str],
    effects: Sequence[str],
    tests: Sequence[str],
    agreement: Sequence[str],
    data: str,
    references: Sequence[str],
    screen: str,
    shown: str,
) -> dict[str, object]:
    """Arguments of draw: tests of data and model, effects, and the overlap for the chosen run of every model.

    scores, effects: RUN/scores.tsv and RUN/effects.h5ad of the candidates. tests, agreement: tables of their tests and
    their agreement with the data, each of one or more runs. data: expression_tests.tsv of the data. references:
    SPLIT/effects.h5ad. shown: the model to show if it is among the candidates; else the one with the best validation
    IWELBO is shown.
    """
    found = collect_scores(read(grid), scores, [], [])
    candidates = models_only(found)
    chosen = shown_run(candidates, shown)
    observed = read_h5ad(of_split(references, found, chosen.run))
    predicted = read_h5ad(of_run(effects, chosen.run))
    models = {run: model for model, run in shown_runs(candidates).items()}
    agree, model_tests = (pd.concat([read(path) for path in paths], ignore_index=True) for paths in (agreement, tests))
    agree = agree.assign(model=agree["run"].map(models)).dropna(subset="model")
    model_tests = model_tests[model_tests["run"] == chosen.run].reset_index(drop=True)
    if agree.empty or model_tests.empty:
        raise DataError("expression figure: no tests of a run that is shown are among the inputs.")
    tested = read(data)  # of all cells: the split may leave conditions out
    return {
        "data_de": tested[tested["condition"].isin(observed.obs_names)].reset_index(drop=True),
        "data_effects": frame(observed),
        "model_effects": frame(predicted).loc[observed.obs_names, observed.var_names],
        "overlap": overlap_table(agree.reset_index(drop=True)),
        "model_de": model_tests,
        "names": short_names(read_perturbations(screen)),
        "model_name": style.label(chosen.model),
        "unit": ate_unit(observed),
        "sentence": chosen.sentence,
    }


@style.styled
def draw(
    data_de: pd.DataFrame,
    data_effects: pd.DataFrame,
    model_effects: pd.DataFrame,
    overlap: pd.DataFrame,
    *,
    conditions: Sequence[str] | None = None,
    model_de: pd.DataFrame | None = None,
    test: str = "wilcoxon",
    names: Mapping[str, str] | None = None,
    model_name: str = "model",
    unit: str = " (log2)",
    sentence: str = "",
) -> Figure:
    """Model against data ATE (upper row), volcano of the data (lower row) of a few perturbations, and DE overlap.

    data_de, model_de: condition, gene, method, log_fold_change (log2), pvalue, padj; effects: conditions x genes;
    overlap: model, condition, k, overlap in [0, 1] (overlap_table); without rows its panel is left out. conditions: at
    most four, by default the three with the most significant genes. names: condition -> title. Colours show genes with
    padj < 0.05 in the data, in the model (if model_de is given) or in both; the most significant ones in the data are
    named. unit: of the ATE, for labels. sentence: says which run is shown.
    """
    columns = ["condition", "gene", "method", "log_fold_change", "pvalue", "padj"]
    style.need(data_de, columns, "DE of the data")
    if len(overlap):  # a screen may have fewer genes than the smallest k
        style.need(overlap, ["model", "condition", "k", "overlap"], "DE overlap")
    style.need_matrix(("data effects", data_effects), ("model effects", model_effects))
    conditions = _conditions(conditions, data_de, data_effects, test)

    width, seen = max(2.35 * len(conditions), 2.9), set()
    widths = [width, 3.0] if len(overlap) else [width]
    fig = style.figure(sum(widths), 5.5)
    style.note(fig, f"{NOTE} {sentence}")
    left, *right = style.side_by_side(fig, widths)
    axes = left.subplots(2, len(conditions), squeeze=False)
    for j, condition in enumerate(conditions):
        table = _genes(data_de, model_de, condition, test)
        table["data"], table["model"] = (
            e.loc[condition].reindex(table.index).astype(float) for e in (data_effects, model_effects)
        )
        title = style.plain((names or {}).get(condition, condition), 24)
        seen |= set(table["kind"])
        _scatter(axes[0, j], table, first=j == 0, model_name=model_name, unit=unit)
        _volcano(axes[1, j], table, first=j == 0, test=test)
        for ax, tag, kind in zip(
            axes[:, j], (chr(97 + j), chr(97 + len(conditions) + j)), ("scatter", "volcano"), strict=True
        ):
            ax.set_label(f"{kind} {condition}")
            style.letter(ax, tag, title)
    _kinds(left, seen, model_de is not None, columns=4 if len(conditions) > 1 else 2)
    if right:
        _overlap(right[0], overlap, data_effects.shape[1], chr(97 + 2 * len(conditions)))
    return fig


def overlap_table(agreement: pd.DataFrame, *, test: str = "wilcoxon") -> pd.DataFrame:
    """The overlaps in tables of metrics.de.de_agreement (with a column model): model, condition, k, overlap."""
    rows = style.need(agreement, ["model", "condition", "method", "metric", "value"], "DE agreement")
    rows = rows[(rows["method"] == test) & rows["metric"].str.startswith("de_overlap")]
    k = rows["metric"].str.removeprefix("de_overlap").astype(int)
    return rows.assign(k=k, overlap=rows["value"])[["model", "condition", "k", "overlap"]].reset_index(drop=True)


def strongest(de: pd.DataFrame, n: int = 3, *, test: str = "wilcoxon") -> list[str]:
    """The n conditions with the most significant genes; among ties, the first by name."""
    of = de[(de["method"] == test) & (de["padj"] < ALPHA)]
    counts = of.groupby("condition").size().reindex(sorted(de["condition"].unique()), fill_value=0)
    return list(counts.sort_values(ascending=False, kind="stable").index[:n])


def _conditions(
    conditions: Sequence[str] | None, data_de: pd.DataFrame, data_effects: pd.DataFrame, test: str
) -> list[str]:
    """The conditions to draw; DataError if one is unknown or there are not 1 to 4."""
    chosen = strongest(data_de, test=test) if conditions is None else list(conditions)
    for condition in chosen:
        for where, known in (("DE of the data", set(data_de["condition"])), ("effects", set(data_effects.index))):
            if condition not in known:
                raise DataError(f"{where}: no condition {condition!r}.{nearest(condition, sorted(known))}")
    if not 1 <= len(chosen) <= 4:
        raise DataError(f"expression figure: {len(chosen)} conditions were chosen. Allowed: 1 to 4.")
    return chosen


def _genes(data_de: pd.DataFrame, model_de: pd.DataFrame | None, condition: str, test: str) -> pd.DataFrame:
    """The DE row of each gene in the data, with its kind: significant in neither, data, both, model."""
    pick = [
        d[(d["condition"] == condition) & (d["method"] == test)].set_index("gene")
        for d in (data_de, model_de)
        if d is not None
    ]
    table = style.need(pick[0].copy(), [], f"DE of the data, {condition!r} by {test!r}")
    hit = (table["padj"] < ALPHA).to_numpy()
    too = (pick[1]["padj"].reindex(table.index) < ALPHA).to_numpy() if len(pick) > 1 else np.zeros(len(table), bool)
    return table.assign(kind=np.select([hit & too, hit, too], ["both", "data", "model"], "no"))


def _kinds(fig: SubFigure, seen: set[str], model: bool, columns: int) -> None:
    """The legend of the kinds of genes that were seen. model: whether the genes of the model were tested too."""
    kinds = {"no": "neither", "data": "data", "both": "data and model", "model": "model"}
    kinds = kinds if model else {"no": "no", "data": "yes"}
    title = f"significant (padj < {ALPHA}) in" if model else f"significant in the data (padj < {ALPHA})"
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=COLOURS[k], label=text) for k, text in kinds.items() if k in seen
    ]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(columns, len(handles))}
    fig.legend(handles=handles, title=title, title_fontsize=7.5, **place)


def _points(ax: Axes, x: pd.Series, y: pd.Series, kind: pd.Series) -> None:
    """Points in the colour of their kind; those that are not significant anywhere lie below the others."""
    for k, colour in COLOURS.items():
        of = (kind == k).to_numpy()
        size = 5 if k == "no" else 9
        ax.scatter(x[of], y[of], s=size, color=colour, lw=0, rasterized=len(x) > 2000, zorder=2 + (k != "no"))


def _scatter(ax: Axes, table: pd.DataFrame, *, first: bool, model_name: str, unit: str) -> None:
    """ATE of the model against that of the data, one point per gene, with Pearson's r."""
    x, y = table["data"], table["model"]
    limit = max(np.nanmax(np.abs(v)) for v in (x, y)) * 1.1 or 1.0
    ax.plot([-limit, limit], [-limit, limit], color=style.GREY, lw=0.8, ls=style.DASHED, zorder=1)
    _points(ax, x, y, table["kind"])
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=f"ATE of the data{unit}")
    ax.set_ylabel(f"ATE of {model_name}{unit}" if first else "")
    r = x.corr(y) if x.std() > 0 and y.std() > 0 else float("nan")
    ax.text(
        0.04,
        0.96,
        f"r = {style.number(r, 2)}" if np.isfinite(r) else "r undefined",
        transform=ax.transAxes,
        va="top",
    )
    ax.locator_params(nbins=5)


def _volcano(ax: Axes, table: pd.DataFrame, *, first: bool, test: str) -> None:
    """−log10 p against log2 fold change, the top genes named; p-values of 0 are drawn at the smallest other one."""
    smallest = table["pvalue"][table["pvalue"] > 0].min()
    floor = max(smallest if np.isfinite(smallest) else 1e-300, 1e-300)
    height = -np.log10(table["pvalue"].clip(lower=floor))
    x = table["log_fold_change"]
    _points(ax, x, height, table["kind"])
    side = np.nanmax(np.abs(x)) * 2.1 or 1.0  # room for names next to the points
    top = height.max() * 1.18 or 1.0
    ax.set(xlim=(-side, side), ylim=(-0.02 * top, top), xlabel="log2 fold change (data)")
    ax.set_ylabel(f"−log10 p ({test})" if first else "")
    ax.axvline(0, color=style.PALE, lw=0.7, zorder=0)
    _name_genes(ax, x, height, table)


def _name_genes(ax: Axes, x: pd.Series, y: pd.Series, table: pd.DataFrame) -> None:
    """Names of the most significant genes in a column at each side of the panel, with a thin line to each point."""
    best = table.assign(y=y)[table["padj"] < ALPHA].sort_values("y", ascending=False, kind="stable").index[:NAMED]
    low, top = ax.get_ylim()
    step = (top - low) * 0.075
    for side, names in ((1, [g for g in best if x[g] >= 0]), (-1, [g for g in best if x[g] < 0])):
        at = top
        for gene in names:
            at = min(at - step, y[gene])
            edge = 0.97 * ax.get_xlim()[side > 0]  # off the axis
            symbol = gene.partition("_ENSG")[0]  # a symbol of several genes has the id of the gene behind it
            ax.annotate(
                style.plain(symbol, 10),
                (x[gene], y[gene]),
                (edge, at),
                fontsize=7,
                ha="right" if side > 0 else "left",
                va="center",
                arrowprops={
                    "arrowstyle": "-",
                    "lw": 0.4,
                    "color": style.GREY,
                    "shrinkA": 0,
                    "shrinkB": 1,
                    "relpos": (side < 0, 0.5),
                },
            )


def _overlap(fig: SubFigure, overlap: pd.DataFrame, genes: int, tag: str) -> None:
    """Mean overlap of the top k over conditions by model, with quartiles as bars and chance as dashes."""
    ax = fig.subplots()
    ax.set_label("overlap")
    models, ks = style.models_in(overlap["model"]), sorted(overlap["k"].unique())
    place = {k: i for i, k in enumerate(ks)}
    step = 0.78 / len(models)
    for j, model in enumerate(models):
        groups = overlap[overlap["model"] == model].groupby("k")["overlap"]
        mean, low, high = groups.mean(), groups.quantile(0.25), groups.quantile(0.75)
        x, o = mean.index.map(place) + (j - (len(models) - 1) / 2) * step, style.look(model)
        ax.vlines(x, low, high, color=o.colour, lw=1.4)
        ax.plot(x, mean, o.marker, color=o.colour, mec=style.INK, mew=0.4)
    for k, i in place.items():
        ax.hlines(min(k / genes, 1), i - 0.45, i + 0.45, color=style.INK, lw=0.8, ls=style.DASHED)
    ax.set_xticks(range(len(ks)), [f"top {k}" for k in ks])
    ax.tick_params(axis="x", length=0)
    n = overlap["condition"].nunique()
    spread = f"mean and quartiles over\n{n:,} perturbations" if n > 1 else "1 perturbation"
    ax.set(ylim=(0, 1.02), xlim=(-0.55, len(ks) - 0.45), xlabel=spread)
    ax.set_ylabel("share of the data's top genes among the model's")
    chance = Line2D([], [], color=style.INK, lw=0.8, ls=style.DASHED, label="chance")
    fig.legend(handles=[*style.keys(models), chance], loc="outside lower center", ncols=1)
    style.letter(ax, tag, "overlap of DE genes")
