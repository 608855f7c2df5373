"""Heatmaps that several figures share: orders of rows and columns, the pathway strip, effects next to each other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.optimize import isotonic_regression
from scipy.spatial.distance import pdist

from samsvae.figures import style

#: Colours of pathways, unlike those of the methods.
PATHWAYS = (
    "#4E79A7",
    "#F1CE63",
    "#59A14F",
    "#E15759",
    "#B07AA1",
    "#79CFCB",
    "#9C755F",
    "#F5A6B8",
    "#86BC5C",
    "#5B5B8C",
)


def cluster(matrix: np.ndarray) -> np.ndarray:
    """Order of the rows by hierarchical clustering (average linkage, Euclidean distance); NaN counts as 0."""
    matrix = np.nan_to_num(np.asarray(matrix, float))
    if len(matrix) < 3:
        return np.arange(len(matrix))
    tree = linkage(pdist(matrix), "average", optimal_ordering=len(matrix) <= 500)
    return leaves_list(tree)


def row_order(matrix: pd.DataFrame, group: pd.Series | None) -> list:
    """Row names by group in alphabetical order (rows without a group last), clustered within each group."""
    if group is None:
        return list(matrix.index[cluster(matrix.to_numpy())])
    group = group.reindex(matrix.index).fillna("").astype(str)
    names = sorted(set(group), key=lambda name: (name == "", name))
    parts = [matrix[group == name] for name in names]
    return [row for part in parts for row in part.index[cluster(part.to_numpy())]]


def annotated(matrix: pd.DataFrame, group: pd.Series | None) -> pd.Series | None:
    """The groups of the rows that have one; None if no row has."""
    if group is None:
        return None
    group = group.reindex(matrix.index).fillna("").astype(str)
    return group[group != ""] if (group != "").any() else None


def pathway_name(name: str) -> str:
    """SPLICEOSOME -> Spliceosome, MEDIATOR_COMPLEX -> Mediator complex, S40_RIBOSOMAL_UNIT -> 40S ribosomal unit."""
    words = [w[1:] + "S" if w[:1] == "S" and w[1:].isdigit() else w for w in str(name).split("_")]
    if not str(name).isupper():
        return str(name).replace("_", " ")
    words = [w if len(w) <= 2 or w[0].isdigit() else w.lower() for w in words]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def strip(ax: Axes, group: pd.Series) -> None:
    """A colour strip of the groups of ordered rows. Names stand near the middle of their group without
    overlap; if not all fit, those of the largest groups."""
    order = list(dict.fromkeys(group))
    code = group.map({name: i for i, name in enumerate(order)}).to_numpy()
    colours = [PATHWAYS[i % len(PATHWAYS)] if name else "#DDDDDD" for i, name in enumerate(order)]
    image: dict[str, Any] = {"cmap": ListedColormap(colours), "aspect": "auto", "interpolation": "nearest"}
    ax.imshow(code[:, None], vmin=-0.5, vmax=len(order) - 0.5, **image)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    texts = [textwrap.fill(pathway_name(name), 17).replace("$", r"\$") if name else "no pathway" for name in order]
    sizes, middle = np.array([((code == i).sum(), np.flatnonzero(code == i).mean()) for i in range(len(order))]).T
    inches = ax.figure.bbox.height / ax.figure.dpi  # fraction of its part of the figure
    height = len(code) * (0.125 * np.array([t.count("\n") + 1 for t in texts]) + 0.03) / (0.86 * inches)
    largest = np.argsort(-sizes, kind="stable")
    fit = np.sort(largest[np.cumsum(height[largest]) <= len(code)])  # names of the largest groups, if not all fit
    places = apart(middle[fit], height[fit], -0.5, len(code) - 0.5) if len(fit) else middle[fit]
    for text, at, y in zip([texts[i] for i in fit], places, middle[fit], strict=True):
        link: dict[str, Any] = {
            "arrowstyle": "-",
            "color": style.GREY,
            "lw": 0.6,
            "shrinkA": 1,
            "shrinkB": 0,
            "relpos": (1, 0.5),
        }
        style_of: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7.5, "linespacing": 1.05}
        ax.annotate(text, (-0.5, y), (-1.3, at), arrowprops=link, annotation_clip=False, **style_of)


def apart(at: np.ndarray, height: np.ndarray, low: float, high: float) -> np.ndarray:
    """Positions closest to `at` (least squares), in the same order and within low to high, whose heights do not
    overlap."""
    offset = np.concatenate([[0], np.cumsum((height[1:] + height[:-1]) / 2)])
    free = isotonic_regression(np.asarray(at, float) - offset).x
    first, last = low + height[0] / 2, high - offset[-1] - height[-1] / 2
    return np.clip(free, first, max(first, last)) + offset


def rows_named(ax: Axes, names: Sequence[object]) -> None:
    """Names of the rows if few enough to be readable, no ticks otherwise."""
    ax.tick_params(length=0)
    if len(names) > style.MOST_NAMES:
        ax.set_yticks([])
    else:
        ax.set_yticks(range(len(names)), [style.plain(name) for name in names], fontsize=7)


def height(n: int, *, least: float, most: float) -> float:
    """Inches of a figure whose heatmap has n rows: room for the names of up to MOST_NAMES rows, within bounds."""
    return min(max(least, 1.7 + 0.113 * min(n, style.MOST_NAMES)), max(most, 1.7 + 0.113 * n * (n <= style.MOST_NAMES)))


def image(ax: Axes, matrix: pd.DataFrame, *, limit: float | None = None) -> AxesImage:
    """A matrix as it is ordered, without interpolation: diverging within ±limit, or sequential from 0 to 1.

    NaN is grey.
    """
    ax.set_facecolor(style.PALE)
    low, high, colours = (0.0, 1.0, style.SEQUENTIAL) if limit is None else (-limit, limit, style.DIVERGING)
    drawn = ax.imshow(matrix.to_numpy(float), aspect="auto", vmin=low, vmax=high, cmap=colours, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set(linewidth=0.5, color=style.GREY)
    return drawn


def limit_of(*matrices: pd.DataFrame) -> float:
    """Colour limit: the 99.5th percentile of the absolute entries that are not 0."""
    values = np.abs(np.concatenate([m.to_numpy(float).ravel() for m in matrices]))
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.percentile(values, 99.5)) if len(values) else 1.0


def effects_side_by_side(
    fig: SubFigure,
    data: pd.DataFrame,
    model: pd.DataFrame,
    pathway: pd.Series | None,
    *,
    name: str = "model",
    kind: str = "perturbations",
    names: Mapping[str, str] | None = None,
    unit: str = " (log2)",
) -> None:
    """ATE heatmaps of data (a) and model (b): rows and columns in the order of the data, equal colour limits.

    pathway: of each row, '' for none; if any row has one, the rows without are left out. name: of the model. kind: the
    word for rows. names: row -> the name to draw. unit: of the ATE, for the colour bar.
    """
    group = annotated(data, pathway)
    if group is not None:
        kind = kind if len(group) == len(data) else "with a pathway"
        data = data.loc[group.index]
    rows, columns = row_order(data, group), data.columns[cluster(data.to_numpy().T)]
    limit, strips = limit_of(data), [0.045] * (group is not None)
    axes = fig.subplots(1, 2 + len(strips), width_ratios=[*strips, 1, 1])
    if group is not None:
        strip(axes[0], group[rows])
        axes[0].set_label("pathways")
    for ax, tag, matrix, title in zip(axes[-2:], "ab", (data, model), ("data", name), strict=True):
        drawn = image(ax, matrix.loc[rows, columns], limit=limit)
        ax.set_xlabel(f"{len(rows):,} {kind} × {len(columns):,} genes")
        ax.set_label(f"effects {title}")
        style.letter(ax, tag, title)
    if group is None:
        rows_named(axes[0], [(names or {}).get(row, row) for row in rows])
    bar = fig.colorbar(drawn, ax=list(axes[-2:]), shrink=0.45, aspect=18, pad=0.02, extend="both")
    bar.set_label(f"ATE{unit}")


def agreement(
    ax: Axes, data: pd.DataFrame, model: pd.DataFrame, *, xlabel: str, ylabel: str, limit: float | None = None
) -> PolyCollection:
    """Hexagons of model against data over all entries, the identity and Pearson's r. Returns them for a colour bar.

    limit: of both axes, on either side of 0; by default the smallest that holds all entries.
    """
    x, y = (m.to_numpy(float).ravel() for m in (data, model))
    ok = np.isfinite(x) & np.isfinite(y)
    x, y = x[ok], y[ok]
    r = float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 0 and y.std() > 0 else float("nan")
    lim = limit or max((np.abs(v).max() for v in (x, y) if len(v)), default=0) * 1.05 or 1.0
    ax.axhline(0, color=style.PALE, lw=0.7, zorder=0)
    ax.axvline(0, color=style.PALE, lw=0.7, zorder=0)
    bins: dict[str, Any] = {"gridsize": 45, "extent": (-lim, lim, -lim, lim), "mincnt": 1, "linewidths": 0.1}
    hexagons = ax.hexbin(x, y, rasterized=True, norm=LogNorm(), **bins)
    ax.plot([-lim, lim], [-lim, lim], color=style.INK, lw=0.8, ls=style.DASHED)
    ax.set(xlim=(-lim, lim), ylim=(-lim, lim), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    text = f"r = {style.number(r, 3)}" if np.isfinite(r) else "r undefined"
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=8)
    return hexagons


def count_bar(fig: SubFigure, hexagons: PolyCollection, axes: Sequence[Axes], label: str, **kwargs: Any) -> None:
    """A colour bar of counts per hexagon, from 1, with plain numbers."""
    high = max(hexagons.get_clim()[1] or 0.0, 2.0)
    hexagons.set_clim(1, high)
    bar = fig.colorbar(hexagons, ax=list(axes), aspect=18, **kwargs)
    style.log_ticks(bar.ax.yaxis, 1, high)
    bar.set_label(label)
