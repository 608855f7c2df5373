"""Effects of each condition by the honest protocol: the scores of models between a baseline and the ceiling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from samsvae.evaluation.worth import CEILING
from samsvae.figures import style
from samsvae.figures.runs import of_every_condition
from samsvae.tables import read

METRIC = "pearson_centred"

#: Lines of a panel: the baselines to beat (`shrunk` needs training cells) and the ceiling.
LINES = ("shrunk", "ridge_pc", CEILING)

LONGEST = 16  # characters of a condition's name below the axis


def table(
    runs: Iterable[str], baselines: Iterable[str], models: Mapping[str, str], splits: Set[tuple[str, str]]
) -> pd.DataFrame | None:
    """Pearson's r of each condition's centred effect: model, run, condition, value; None if no effect is scored.

    runs: RUN/worth_conditions.tsv; only those in `models` (run -> model) are read. baselines:
    SPLIT/worth_conditions.tsv; LINES are read for the splits (dataset, split name) of these runs.
    """
    files = {Path(path).parent.name: path for path in runs}
    parts = [of_every_condition(read(path)).assign(model=models[run]) for run, path in files.items() if run in models]
    for path in baselines:
        if Path(path).parts[-3:-1] in splits:
            found = of_every_condition(read(path))
            parts.append(found[found["model"].isin(LINES)].assign(run=found["model"]))
    if not parts:
        return None
    each = pd.concat(parts, ignore_index=True)
    each = each[each["metric"].eq(METRIC) & each["value"].notna()]
    if not each["model"].isin(models.values()).any():
        return None
    return each[["model", "run", "condition", "value"]].reset_index(drop=True)


def named(each: pd.DataFrame) -> bool:
    """Whether the conditions are few enough to be named below the axis."""
    return each["condition"].nunique() <= style.MOST_NAMES


def room(each: pd.DataFrame) -> float:
    """Inches that the names, or the label, take below the axis."""
    return 0.2 + 0.066 * min(LONGEST, each["condition"].astype(str).str.len().max()) if named(each) else 0.35


def panel(ax: Axes, each: pd.DataFrame) -> list[Artist]:
    """One marker per model and condition (mean over runs), sorted by the ceiling; LINES as steps.

    Returns the handles of a legend, with means over conditions.
    """
    wide = _by_model(each)
    models = style.models_in(wide.columns)
    ax.set_label("conditions")
    first = CEILING if CEILING in wide else models[0]
    wide = wide.sort_values(first, ascending=False, kind="stable", na_position="last")
    x, handles = np.arange(len(wide)), style.keys(models)
    shift = np.linspace(-0.25, 0.25, len(models)) if named(each) and len(models) > 1 else np.zeros(len(models))
    for handle, model, dx in zip(handles, models, shift, strict=True):
        o, mew, size = style.look(model), *((0.4, 5) if named(each) else (0.2, 3))
        ax.plot(x + dx, wide[model], o.marker, color=o.colour, mec=style.INK, mew=mew, ms=size)
        handle.set_label(f"{o.label} (mean {style.number(wide[model].mean(), 2)})")
    for name in LINES:
        if name in wide:
            look = _line(name)
            ax.step(x, wide[name], where="mid", zorder=1, **look)
            text = f"{style.label(name)} (mean {style.number(wide[name].mean(), 2)})"
            handles.append(Line2D([], [], label=text, **look))
    ax.axhline(0, color=style.INK, lw=0.6, zorder=0)
    if named(each):
        ax.set_xticks(x, [style.plain(name, LONGEST) for name in wide.index], rotation=90, fontsize=7)
        ax.tick_params(axis="x", length=0)
    else:
        ax.set_xlabel(f"{len(wide):,} conditions, sorted by {style.label(first)}")
        ax.set_xticks([])
    low = min(-0.05, float(np.nanmin(wide)) - 0.05)
    ax.set(xlim=(-0.8, len(wide) - 0.2), ylim=(low, 1.05), ylabel="Pearson r, centred")
    return handles


def _line(model: str) -> dict[str, Any]:
    look = style.look(model)
    return {"color": look.colour, "ls": look.line, "lw": 1.2}


def histogram(ax: Axes, tag: str, each: pd.DataFrame, model: str, kind: str) -> None:
    """How many conditions of a model have which correlation, with the means of the model and of LINES.

    tag: the panel's letter. kind: the word for conditions.
    """
    wide = _by_model(each)
    values = wide[model].dropna()
    ax.set_label("per condition")
    low = min(0.0, float(values.min()))
    ax.hist(values, bins=np.linspace(low, 1, 26).tolist(), color=style.PALE, ec="white", lw=0.5)
    means = wide[[name for name in (model, *LINES) if name in wide]].mean()
    for name, mean in means.items():
        ax.axvline(mean, label=f"{style.label(str(name))} (mean {style.number(mean, 2)})", **_line(str(name)))
    ax.set(xlabel="Pearson r over genes, centred", ylabel=f"number of {kind}", xlim=(None, 1))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize=7, labelspacing=0.25)
    style.letter(ax, tag, f"{len(values):,} {kind} (honest protocol)", pad=8 + 10 * len(means))


def _by_model(each: pd.DataFrame) -> pd.DataFrame:
    """The mean over runs: conditions x models."""
    each = style.need(each, ["model", "condition", "value"], "scores per condition")
    return each.groupby(["condition", "model"])["value"].mean().unstack()
