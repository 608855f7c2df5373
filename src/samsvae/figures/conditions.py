"""The panel of held-out effects by condition, below the table of scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from samsvae.figures import heatmaps, style
from samsvae.tables import read

BASELINE = "mean_of_perturbations"

LONGEST = 16  # characters of a condition's name below the axis


def table(
    runs: Iterable[str], baselines: Iterable[str], models: Mapping[str, str], splits: Set[tuple[str, str]]
) -> pd.DataFrame | None:
    """Pearson's r of each condition's held-out effect: model, run, condition, value; None if nothing is held out.

    runs: RUN/per_condition.tsv; only those in `models` (run -> model) are read. baselines: SPLIT/per_condition.tsv;
    BASELINE is read for the splits (dataset, split name) of these runs.
    """
    files = {Path(path).parent.name: path for path in runs}
    parts = [read(path).assign(model=models[run], run=run) for run, path in files.items() if run in models]
    for path in baselines:
        if Path(path).parts[-3:-1] in splits:
            found = read(path)
            parts.append(found[found["model"] == BASELINE].assign(run=BASELINE))
    if not parts:
        return None
    each = pd.concat(parts, ignore_index=True)
    each = each[each["protocol"].eq("held-out") & each["ate_pearson"].notna()]
    if not each["model"].isin(models.values()).any():
        return None
    return each.rename(columns={"ate_pearson": "value"})[["model", "run", "condition", "value"]].reset_index(drop=True)


def named(each: pd.DataFrame) -> bool:
    """Whether the conditions are few enough to be named below the axis."""
    return each["condition"].nunique() <= heatmaps.MOST_NAMES


def room(each: pd.DataFrame) -> float:
    """Inches that the names, or the label, take below the axis."""
    return 0.2 + 0.066 * min(LONGEST, each["condition"].astype(str).str.len().max()) if named(each) else 0.35


def panel(ax: Axes, each: pd.DataFrame) -> list[Artist]:
    """One marker per model and condition (mean over runs), sorted by the best model; BASELINE as a grey line.

    Returns the handles of a legend, with each model's median over conditions.
    """
    style.need(each, ["model", "condition", "value"], "scores per condition")
    wide = each.groupby(["condition", "model"])["value"].mean().unstack()
    models = style.models_in(wide.columns)
    ax.set_label("conditions")
    first = wide[models].mean().idxmax() if models else wide.columns[0]
    wide = wide.sort_values(first, ascending=False, kind="stable", na_position="last")
    x, handles = np.arange(len(wide)), style.keys(models)
    shift = np.linspace(-0.25, 0.25, len(models)) if named(each) and len(models) > 1 else np.zeros(len(models))
    for handle, model, dx in zip(handles, models, shift, strict=True):
        o, mew, size = style.look(model), *((0.4, 5) if named(each) else (0.2, 3))
        ax.plot(x + dx, wide[model], o.marker, color=o.colour, mec=style.INK, mew=mew, ms=size)
        handle.set_label(f"{o.label} (median {style.number(wide[model].median(), 2)})")
    if BASELINE in wide:
        text = f"{style.label(BASELINE)} (median {style.number(wide[BASELINE].median(), 2)})"
        ax.step(x, wide[BASELINE], where="mid", color=style.GREY, lw=1.2, zorder=1)
        handles.append(Line2D([], [], color=style.GREY, lw=1.2, label=text))
    ax.axhline(0, color=style.INK, lw=0.6, zorder=0)
    if named(each):
        ax.set_xticks(x, [style.plain(name, LONGEST) for name in wide.index], rotation=90, fontsize=7)
        ax.tick_params(axis="x", length=0)
    else:
        ax.set_xlabel(f"{len(wide):,} conditions, sorted by {style.label(str(first))}")
        ax.set_xticks([])
    low = min(-0.05, float(np.nanmin(wide)) - 0.05)
    ax.set(xlim=(-0.8, len(wide) - 0.2), ylim=(low, 1.05), ylabel="Pearson r of the held-out effect")
    return handles
