"""Training curves: the validation loss of every run of an experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from samsvae.figures import style
from samsvae.figures.runs import AMOUNTS
from samsvae.tables import read

NOTE = "Loss on the validation cells, which is the same under either protocol. One line per run."

SHORT = 0.5  # share of the usual interval between validations: a last one that follows sooner is not drawn

SAVED = {"": "histories"}


def tables(*, grid: str, histories: str) -> dict[str, object]:
    """Arguments of draw: histories.tsv with ``amount``: how much data a run saw, if runs differ in it, least first."""
    table, runs = read(histories), read(grid).set_index("run")
    axis = next((name for name in AMOUNTS if name in runs and runs[name].nunique() > 1), None)
    if axis is None:
        table = table.assign(amount="")
    else:
        table = table.assign(order=table["run"].map(runs[axis])).sort_values("order", kind="stable", ignore_index=True)
        table["amount"] = table.pop("order").map(AMOUNTS[axis].format)
    return {"histories": table, "name": Path(histories).parent.name}


@style.styled
def draw(histories: pd.DataFrame, *, name: str = "") -> Figure:
    """Validation loss against step, a thin line per run, coloured by method, dashed by inference, paler for less data.

    histories: run, model, step, val_loss (rows without a validation loss are not drawn), and ``amount``: the words for
    the data that a run saw ('fraction 0.5'), in order; '' if all runs of a model saw the same. name: of the
    experiment. The y-axis spans from the lowest loss to the highest of the 99 % of values after the first tenth of
    the steps.

    A run is validated once more at its last step. If that is less than SHORT of the usual interval after the previous
    validation, it is not drawn: over a few steps, noise in the validation would look like a turn of the curve.
    """
    table = style.need(histories, ["run", "model", "step", "val_loss"], "histories")
    table = style.need(table[np.isfinite(table["val_loss"])], [], "histories (with a validation loss)")
    amounts = list(dict.fromkeys(table["amount"])) if "amount" in table else [""]
    shades = dict(zip(amounts, np.linspace(0.4, 1, len(amounts)) if len(amounts) > 1 else [1.0], strict=True))
    runs = {str(run): of.sort_values("step", kind="stable") for run, of in table.groupby("run", sort=False)}
    low, high = _limits(table)

    fig = style.figure(7.4, 4.0)
    ax = fig.subplots()
    ax.set_label(name or "curves")
    visible: set[str] = set()
    hidden = 0
    for model in style.models_in(table["model"]):
        lines, colours = [], []
        for of in (of for of in runs.values() if of["model"].iloc[0] == model):
            line = without_short_end(of[["step", "val_loss"]].to_numpy(float))
            lines.append(line)
            colours.append(_shade(style.look(model).colour, shades[of["amount"].iloc[0]] if "amount" in of else 1.0))
            seen = bool((line[:, 1] <= high).any())
            visible |= {model} if seen else set()
            hidden += not seen
        _lines(ax, lines, colours, style.look(model))
    ax.set(ylim=(low, high), xlim=(0, table["step"].max()), xlabel="training step")
    ax.set_ylabel("validation loss (nats per cell)")
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    style.letter(ax, "", f"{name} ({len(runs)} run{'s' * (len(runs) > 1)})".strip())
    above = f" {hidden} run{'s lie' if hidden > 1 else ' lies'} above the axis." if hidden else ""
    style.note(fig, NOTE + above)
    _legend(fig, [model for model in style.models_in(table["model"]) if model in visible], shades)
    return fig


def without_short_end(line: np.ndarray, share: float = SHORT) -> np.ndarray:
    """A curve (n, 2) of step and loss, without its last point if that follows the previous one too soon.

    Too soon: after less than `share` of the median distance between the earlier points.
    """
    gaps = np.diff(line[:, 0])
    return line[:-1] if len(gaps) > 1 and gaps[-1] < share * np.median(gaps[:-1]) else line


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    """Limits of the y-axis, with some margin."""
    late = table[table["step"] >= table["step"].min() + 0.1 * np.ptp(table["step"])]["val_loss"]
    low, high = float(table["val_loss"].min()), float(np.percentile(late, 99))
    pad = 0.06 * ((high - low) or abs(low) or 1)
    return low - pad, high + pad


def _lines(ax: Axes, lines: list[np.ndarray], colours: list[tuple[float, float, float]], o: style.Look) -> None:
    """The curves of one model; a run with a single validation is a marker."""
    alpha = 0.9 if len(lines) <= 10 else 0.4
    drawn = LineCollection(lines, colors=colours, linestyles=[o.line], linewidths=0.9, alpha=alpha)
    drawn.set_rasterized(len(lines) > 50)
    ax.add_collection(drawn)
    for line, colour in zip(lines, colours, strict=True):
        if len(line) == 1:
            ax.plot(line[:, 0], line[:, 1], o.marker, color=colour, mec=style.INK, mew=0.4, clip_on=False)


def _legend(fig: Figure, models: list[str], shades: dict[str, float]) -> None:
    """The models with a curve, and the shades of the amounts of data."""
    handles = style.keys(models, "line")
    if len(shades) > 1:
        handles += [Line2D([], [], color=_shade(style.INK, shade), label=amount) for amount, shade in shades.items()]
    fig.legend(handles=handles, loc="outside right center", handlelength=2.6)


def _shade(colour: str, share: float) -> tuple[float, float, float]:
    """A mix of white with this share of a colour."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue
