"""Training curves: the validation loss of every run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samsvae.figures import style
from samsvae.tables import of_experiments, read


@style.styled
def draw(histories: pd.DataFrame) -> Figure:
    """Validation loss against step, a thin line per run, coloured by method, dashed by inference, paler for less data.

    histories: experiment, run, model, step, val_loss (rows without a validation loss are passed over), and ``amount``,
    what tells runs of one model by the data that they saw ('fraction 0.5'), in its order; '' where nothing does. The
    y-axis shows from the lowest loss to the highest of the 99 % of values after the first tenth of the steps.
    """
    need = style.need(histories, ["experiment", "run", "model", "step", "val_loss"], "histories")
    table = style.need(need[np.isfinite(need["val_loss"])], [], "histories (with a validation loss)")
    experiments = list(dict.fromkeys(table["experiment"]))
    columns = min(3, len(experiments))
    rows = math.ceil(len(experiments) / columns)
    models = style.models_in(table["model"])
    fig = style.figure(max(3.1 * columns, 5.0), 2.3 * rows + 0.5 + 0.16 * math.ceil(len(models) / 3))
    style.note(fig, "Validation cells, under either protocol the same. A line per run.")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax, experiment in zip(axes, experiments, strict=False):
        part = table[table["experiment"] == experiment]
        ax.set_label(experiment)
        amounts = list(dict.fromkeys(part["amount"])) if "amount" in part else [""]
        shades = dict(zip(amounts, np.linspace(0.4, 1, len(amounts)) if len(amounts) > 1 else [1], strict=True))
        for model in style.models_in(part["model"]):
            runs = part[part["model"] == model].sort_values("step").groupby("run")
            lines = [run[["step", "val_loss"]].to_numpy(float) for _, run in runs]
            o = style.look(model)
            colours = [_shade(o.colour, shades[run["amount"].iloc[0]] if "amount" in run else 1) for _, run in runs]
            alpha = 0.9 if len(lines) <= 10 else 0.4
            drawn = LineCollection(lines, colors=colours, linestyles=[o.line], linewidths=0.9, alpha=alpha)
            drawn.set_rasterized(len(lines) > 50)
            ax.add_collection(drawn)
        if len(amounts) > 1:
            keys = [Line2D([], [], color=_shade(style.INK, shade), label=amount) for amount, shade in shades.items()]
            ax.legend(handles=keys, loc="upper right", fontsize=7, handlelength=1.6)
        late = part[part["step"] >= part["step"].min() + 0.1 * np.ptp(part["step"])]["val_loss"]
        low, high = part["val_loss"].min(), np.percentile(late, 99)
        pad = 0.06 * ((high - low) or abs(low) or 1)
        ax.set(ylim=(low - pad, high + pad), xlim=(0, part["step"].max()), xlabel="step")
        ax.set_title(f"{experiment} ({part['run'].nunique()} runs)", loc="left")
        ax.set_ylabel("validation loss (nats per cell)" if ax in axes[::columns] else "")
        ax.locator_params(nbins=5)
    for ax in axes[len(experiments) :]:
        ax.remove()
    fig.legend(
        handles=style.keys(models, "line"),
        loc="outside lower center",
        ncols=3 if columns < 3 else 4,
        handlelength=2.6,
    )
    return fig


def _shade(colour: str, share: float) -> tuple[float, ...]:
    """A colour mixed with white: ``share`` of it is left."""
    return tuple(1 - share * (1 - part) for part in to_rgb(colour))


#: Axes that say how much data a run saw, with the word for one of their values.
AMOUNTS = {"fraction": "fraction {:g}", "cells": "{:g} cells each"}


def tables(histories: Iterable[str], grids: Iterable[str]) -> pd.DataFrame:
    """The histories of experiments, with ``amount``: how much data a run saw, where that differs; least first."""
    tables = []
    for history, grid in zip(histories, grids, strict=True):
        table, runs = of_experiments([history]), read(grid).set_index("run")
        axis = next((name for name in AMOUNTS if name in runs and runs[name].nunique() > 1), None)
        if axis is not None:
            table = table.assign(order=table["run"].map(runs[axis])).sort_values("order", kind="stable")
            table["amount"] = table.pop("order").map(AMOUNTS[axis].format)
        tables.append(table if axis else table.assign(amount=""))
    return pd.concat(tables, ignore_index=True)
