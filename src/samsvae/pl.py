"""Plots of a fitted model for notebooks, in scanpy's style: each returns the Axes it has drawn on.

    from samsvae import fit, pl

    pl.volcano(fitted, "A")
    pl.masks(fitted, ax=ax)

``ax``: where to draw (default: a new figure). ``show``: True shows the figure at once; notebooks show it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from samsvae.config.validate import check_positive, check_whole
from samsvae.errors import DataError, nearest
from samsvae.evaluation.named_conditions import Condition, Label
from samsvae.figures import heatmaps, style
from samsvae.fitted import Fitted

__all__ = ["curves", "effects", "masks", "volcano"]

#: Colours of genes that go down and up in a volcano plot.
DOWN, UP = "#2166AC", "#B2182B"


def masks(fitted: Fitted, *, ax: Axes | None = None, show: bool | None = None) -> Axes:
    """The probability that each perturbation acts on each latent, both clustered; grey: no training cell.

    DataError for a model without masks.

    >>> masks(fitted).get_xlabel()
    'latents'
    """
    table = fitted.mask_probability
    rows = heatmaps.row_order(table, None)
    columns = table.columns[heatmaps.cluster(table.to_numpy().T)]
    with mpl.rc_context(style.RC):
        ax = _axes(ax, 2.4 + 0.11 * table.shape[1], heatmaps.height(len(rows), least=2.2, most=6.4))
        drawn = heatmaps.image(ax, table.loc[rows, columns])
        heatmaps.rows_named(ax, rows)
        _columns_named(ax, columns)
        ax.set_xlabel("latents")
        ax.figure.colorbar(drawn, ax=ax, shrink=0.6, aspect=18, pad=0.02, label="mask probability")
    return _shown(ax, show)


def effects(
    fitted: Fitted,
    conditions: Label | Sequence[Condition] | None = None,
    genes: int | Sequence[str] = 30,
    *,
    draws: int = 100,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Effects of conditions on genes against control (log2), clustered.

    ``conditions`` as in ``Fitted.effects``. ``genes``: names, which keep their order, or the number of genes with the
    largest effects. DataError if a gene or a condition is unknown.

    >>> effects(fitted, ["A", "A+B"], genes=["g0", "g5"]).get_xlabel()
    'genes'
    """
    table = fitted.effects(conditions, draws=draws)
    matrix = table.pivot(index="condition", columns="gene", values="effect")[list(fitted.genes)]
    if isinstance(genes, int):
        check_whole(genes=genes)
        largest = matrix.abs().max().nlargest(genes).index
        matrix = matrix[largest]
        matrix = matrix.iloc[:, heatmaps.cluster(matrix.to_numpy().T)]
    else:
        if unknown := [name for name in genes if name not in matrix]:
            raise DataError(f"genes: the model has no gene {unknown[0]!r}.{nearest(unknown[0], matrix.columns)}")
        matrix = matrix[list(genes)]
    matrix = matrix.iloc[heatmaps.cluster(matrix.to_numpy())]
    with mpl.rc_context(style.RC):
        width = 2.4 + 0.14 * min(matrix.shape[1], style.MOST_NAMES)
        ax = _axes(ax, width, heatmaps.height(len(matrix), least=2.2, most=6.4))
        drawn = heatmaps.image(ax, matrix, limit=heatmaps.limit_of(matrix))
        heatmaps.rows_named(ax, matrix.index)
        _columns_named(ax, matrix.columns)
        ax.set_xlabel("genes")
        ax.figure.colorbar(drawn, ax=ax, shrink=0.6, aspect=18, pad=0.02, extend="both", label="effect (log2)")
    return _shown(ax, show)


def curves(fitted: Fitted, *, ax: Axes | None = None, show: bool | None = None) -> Axes:
    """Loss per cell of the training batches and of the validation cells by step; the dashed line is the step kept.

    The two losses may use different numbers of particles. DataError if the file of the model has no history.

    >>> curves(fitted).get_ylabel()
    'loss (nats per cell)'
    """
    history = fitted.history
    if history.empty:
        raise DataError("curves: the model has no history of its training.")
    with mpl.rc_context(style.RC):
        ax = _axes(ax, 4.6, 3.0)
        for name, colour, word in (("train_loss", style.GREY, "training"), ("val_loss", UP, "validation")):
            ax.plot(history["step"], history[name], color=colour, marker="." if len(history) < 3 else "", label=word)
        if (best := fitted.checkpoint.facts.get("best_step")) is not None:
            ax.axvline(best, color=style.INK, lw=0.8, ls=style.DASHED)
        late = history[history["step"] >= 0.1 * history["step"].max()][["train_loss", "val_loss"]].to_numpy()
        low, high = late.min(), np.percentile(late, 99)
        margin = 0.06 * ((high - low) or 1.0)
        ax.set(ylim=(low - margin, high + margin), xlim=(0, None), xlabel="step", ylabel="loss (nats per cell)")
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        ax.legend()
    return _shown(ax, show)


def volcano(
    fitted: Fitted,
    condition: Condition,
    *,
    delta: float = 0.25,
    lfsr: float = 0.05,
    names: int = 10,
    draws: int = 400,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Effects of one condition on all genes (log2), against their size in standard deviations of the posterior.

    Genes with |effect| > ``delta`` and a local false sign rate below ``lfsr`` (``Fitted.differential_expression``) are
    coloured; the ``names`` largest of them are named. The rate itself is 0 for most of these, so it is no axis.

    >>> volcano(fitted, "A", names=3).get_xlabel()
    'effect (log2)'
    """
    check_positive(lfsr=lfsr)
    table = fitted.differential_expression([condition], delta=delta, draws=draws)
    x, sd = table["effect"].to_numpy(), table["sd"].to_numpy()
    y = np.abs(x) / np.where(sd > 0, sd, 1.0)  # an effect without spread is 0: no mask was on in any draw
    changed = (np.abs(x) > delta) & (table["lfsr"].to_numpy() < lfsr)
    with mpl.rc_context(style.RC):
        ax = _axes(ax, 4.6, 3.6)
        for part, colour in ((~changed, style.GREY), (changed & (x < 0), DOWN), (changed & (x > 0), UP)):
            ax.scatter(x[part], y[part], s=10, color=colour, linewidths=0, rasterized=True)
        for at in (-delta, delta):
            ax.axvline(at, color=style.GREY, lw=0.7, ls=style.DASHED)
        limit = 1.6 * max(np.abs(x).max(), 2 * delta)
        ax.set(xlim=(-limit, limit), ylim=(-0.03 * y.max(), 1.08 * y.max() or 1.0))
        ax.set(xlabel="effect (log2)", ylabel="|effect| / sd")
        style.letter(ax, "", style.plain(table["condition"].iloc[0], 40))
        chosen = table.assign(x=x, y=y)[changed].sort_values("effect", key=np.abs, ascending=False)[:names]
        _named(ax, chosen[chosen["x"] < 0], "right")
        _named(ax, chosen[chosen["x"] > 0], "left")
    return _shown(ax, show)


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def _shown(ax: Axes, show: bool | None) -> Axes:
    if show:
        plt.show()
    return ax


def _columns_named(ax: Axes, names: Sequence[str]) -> None:
    """Names of columns if few enough to be readable."""
    if len(names) <= style.MOST_NAMES:
        ax.set_xticks(range(len(names)), [style.plain(name) for name in names], rotation=90, fontsize=7)


def _named(ax: Axes, genes: pd.DataFrame, align: str) -> None:
    """Names next to the points of genes, on the outer side, moved up or down so that they do not overlap."""
    if genes.empty:
        return
    genes = genes.sort_values("y", kind="stable")
    low, high = ax.get_ylim()
    line = 0.13 * (high - low) / (ax.bbox.height / ax.figure.dpi)  # 0.13 inches in units of the axis
    places = heatmaps.apart(genes["y"].to_numpy(), np.full(len(genes), line), low, high)
    side = 1 if align == "left" else -1
    for (_, gene), place in zip(genes.iterrows(), places, strict=True):
        ax.annotate(
            style.plain(gene["gene"]), (gene["x"], gene["y"]), (gene["x"] + side * 0.06 * ax.get_xlim()[1], place),
            ha=align, va="center", fontsize=7,
            arrowprops={"arrowstyle": "-", "color": style.GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
