"""The data card: facts about a processed screen, and a picture of its cells, genes, conditions and splits."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from samsvae.figures import style
from samsvae.screens.data_card import DOSAGES, data_card

COLOURS = {"control": style.GREY, "single": "#1B6CB0", "combination": "#DD7400", "perturbation": style.INK}
COLOURS |= dict(zip(DOSAGES, COLOURS.values(), strict=False))

WIDTH = 42  # characters of a value before it is broken into lines

HEIGHT, LINES = 5.4, 30  # usual height of a card in inches, and the lines of facts that fit

MOST_LINES = 75  # most lines of facts for which a card grows in height

SAVED = {name: name for name in ("facts", "conditions", "counts", "genes", "splits", "findings")}


def tables(*, screen: str, split: str, dataset: str, split_name: str) -> dict[str, object]:
    """Arguments of draw: the card of a screen (screen.h5ad) and one split of its cells (cells.tsv), and their names."""
    return dict(vars(data_card(screen, split, name=dataset, split_name=split_name)))


@style.styled
def draw(
    facts: pd.DataFrame,
    conditions: pd.DataFrame,
    counts: pd.DataFrame,
    genes: pd.DataFrame,
    splits: pd.DataFrame,
    findings: pd.DataFrame | None = None,
) -> Figure:
    """The tables of a data card (screens.data_card).

    Facts as text; counts per cell (a), cells per condition (b), detection against mean of every gene (c), cells by
    split and kind (d). The findings are the note above the figure.
    """
    style.need(facts, ["item", "value"], "facts")
    style.need(conditions, ["condition", "kind", "cells"], "conditions")
    style.need(counts, ["low", "high", "cells"], "counts")
    style.need(genes, ["gene", "mean", "detected"], "genes")
    style.need(splits, ["split", "kind", "cells"], "splits")
    fig = style.figure(10.2, HEIGHT * max(1, min(_lines(facts), MOST_LINES) / LINES))
    if findings is not None and len(findings):
        style.note(fig, style.plain(" ".join(findings["finding"].astype(str)), 2000))
    left, right = style.side_by_side(fig, [1.25, 2])
    _facts(left, facts)
    axes = right.subplots(2, 2)
    _counts(axes[0, 0], counts)
    _conditions(axes[0, 1], conditions)
    _genes(axes[1, 0], genes)
    _splits(axes[1, 1], splits)
    return fig


def _parts(value: object) -> list[str]:
    """At most two lines of a value."""
    return textwrap.wrap(str(value), WIDTH)[:2]


def _lines(facts: pd.DataFrame) -> float:
    """Number of lines that the facts take."""
    return sum(0.92 * len(_parts(value)) + 0.12 for value in facts["value"]) + 0.5


def _facts(fig: SubFigure, facts: pd.DataFrame) -> None:
    """Item and value, line by line; the table next to the figure also has those that do not fit."""
    ax = fig.subplots()
    ax.set_label("facts")
    ax.set_axis_off()
    lines = min(max(_lines(facts), LINES), MOST_LINES)
    ax.set(xlim=(0, 1), ylim=(lines, -0.5))
    line = 0.0
    for item, value in facts[["item", "value"]].itertuples(index=False):
        parts = _parts(value)
        if line + len(parts) > lines:
            ax.text(0, line, "…", va="top", color=style.GREY)
            break
        ax.text(0, line, style.plain(item, 28), va="top", fontsize=7, color=style.GREY)
        for part in parts:
            ax.text(0.42, line, style.plain(part, WIDTH), va="top", fontsize=7)
            line += 0.92
        line += 0.12


def _counts(ax: Axes, counts: pd.DataFrame) -> None:
    """Histogram of the counts per cell, or of the sum of a cell's real values in a simulation."""
    ax.set_label("counts")
    edges = [*counts["low"], counts["high"].iloc[-1]]
    ax.stairs(counts["cells"], edges, fill=True, color=style.GREY)
    low, high = float(edges[0]), float(edges[-1])
    real = low < 0  # the real values of a simulation
    ax.set(xlabel="sum of a cell's values" if real else "counts of a cell", ylabel="number of cells")
    if 0 < 3 * low < high:
        ax.set_xscale("log")
        style.log_ticks(ax.xaxis, low, high)
    style.letter(ax, "a", "values per cell" if real else "counts per cell")


def _conditions(ax: Axes, conditions: pd.DataFrame) -> None:
    """Cells of every condition by kind, or of every perturbation; largest first."""
    ax.set_label("conditions")
    start = 1  # each kind begins where the previous one ends, so that none hides another
    for kind, colour in COLOURS.items():
        cells = np.sort(conditions.loc[conditions["kind"] == kind, "cells"])[::-1]
        if len(cells):
            label = f"{kind}{'s' if len(cells) > 1 and kind != 'control' else ''} ({len(cells):,})"
            at = np.arange(start, start + len(cells))
            ax.plot(at, cells, color=colour, label=label, marker="." if len(cells) < 60 else "")
            start += len(cells)
    by_dosage = (conditions["kind"] == "perturbation").all()
    what, order = ("perturbation", "number") if by_dosage else ("condition", "kind and number")
    ax.set(xlabel=f"{what}, by {order} of cells", ylabel="number of cells")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    low, high = conditions["cells"].min(), conditions["cells"].max()
    if high > 10 * low > 0:
        ax.set_yscale("log")
        style.log_ticks(ax.yaxis, low, high)
    else:
        ax.set_ylim(0, 1.1 * high)
    ax.legend(loc="best")
    style.letter(ax, "b", f"cells per {what}")


def _genes(ax: Axes, genes: pd.DataFrame) -> None:
    """Detection of every gene against its mean."""
    ax.set_label("genes")
    mean = genes["mean"].clip(lower=genes.loc[genes["mean"] > 0, "mean"].min())
    ax.plot(mean, genes["detected"], ".", ms=2.5, color=style.INK, alpha=0.5, mew=0, rasterized=len(genes) > 2000)
    ax.set(xlabel="mean of the gene", ylabel="share of cells with a value other than 0", ylim=(-0.03, 1.03))
    if (mean > 0).all() and mean.max() > 10 * mean.min():
        ax.set_xscale("log")
        style.log_ticks(ax.xaxis, mean.min(), mean.max())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    style.letter(ax, "c", f"{len(genes):,} genes")


def _splits(ax: Axes, splits: pd.DataFrame) -> None:
    """Cells of every split, stacked by kind in the colours of b, or with a legend if b has no kinds of cells."""
    ax.set_label("splits")
    table = splits.pivot(index="split", columns="kind", values="cells").loc[list(dict.fromkeys(splits["split"]))]
    table = table[table.sum(1) > 0]
    bottom = np.zeros(len(table))
    for kind, colour in COLOURS.items():
        if kind in table and table[kind].any():
            ax.bar(table.index, table[kind], bottom=bottom, color=colour, width=0.7, label=kind)
            bottom += table[kind].to_numpy()
    for x, total in enumerate(bottom):
        ax.annotate(f"{int(total):,}", (x, total), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    ax.yaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set(ylabel="number of cells", ylim=(0, 1.12 * bottom.max()))
    if set(splits["kind"]) <= set(DOSAGES):
        ax.legend(loc="best")
    style.letter(ax, "d", "cells by split")
