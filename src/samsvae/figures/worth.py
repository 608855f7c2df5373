"""What the scores are worth: between the mean effect and the ceiling, by condition, and the coverage of intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from samsvae.config.zoo import ROWS
from samsvae.evaluation.metrics.constants import LEVELS
from samsvae.evaluation.metrics.reliability import fraction_of_range
from samsvae.evaluation.metrics.table import metric
from samsvae.evaluation.score_tables import CEILING
from samsvae.evaluation.worth import HEADLINE, verdicts
from samsvae.figures import style
from samsvae.figures.runs import models_only, of_largest_amount, of_settings, restricted
from samsvae.tables import read

#: Sets of conditions, in words.
SETS = {"seen": "with training cells", "unseen": "without training cells", "all": "of all kinds"}

BASELINES = (
    "mean_of_perturbations", "train_mean", "other_contexts", "shrunk", "ridge_pc", "additive", "matching_mean"
)  # fmt: skip

#: Largest height of the two panels on the right together, in inches.
RIGHT = 8.5

SAVED = {"": "scores", "conditions": "conditions", "verdicts": "verdicts", "coverage": "coverage"}


def tables(*, scores: str, worth: str, conditions: str, compared: Mapping[str, object]) -> dict[str, object]:
    """Arguments of draw: the runs with each model's best settings, the baselines and the ceiling of their splits.

    scores, worth, conditions: EXPERIMENT/scores.tsv, worth.tsv and worth_conditions.tsv. compared: values of axes of
    the grid to which the models are restricted.
    """
    rows, amount = of_largest_amount(restricted(models_only(read(scores)), compared))
    _, ours = of_settings(rows, ["model"])
    every, each = read(worth), read(conditions)
    runs = ours["run"].unique()
    place = ["dataset", "split_name"]
    places = every.loc[every["run"].isin(runs), place].drop_duplicates()
    shown, each = (
        table[table["run"].isin(runs) | ~table["model"].isin(ROWS)].merge(places, on=place) for table in (every, each)
    )
    reasons = shown["reason"].dropna()
    return {
        "scores": _means(shown),
        "conditions": each,
        "verdicts": _verdicts(each, set(ours["model"]), shown),
        "coverage": shown[shown["metric"].isin(_coverage_names())][["model", "run", "metric", "set", "value"]],
        "models": style.models_in(ours["model"]),
        "reason": str(reasons.iloc[0]) if len(reasons) and not shown["value"].notna().any() else "",
        "amount": amount,
    }


def _coverage_names() -> list[str]:
    return [f"{name}{level}" for name in ("coverage", "coverage_top") for level in LEVELS]


def _means(shown: pd.DataFrame) -> pd.DataFrame:
    """The headline scores of models, baselines and ceiling: means over runs and splits, with the mean interval.

    ``fraction_of_range``: 0 at the mean effect of the training perturbations, 1 at the ceiling.
    """
    table = shown[shown["metric"].isin(HEADLINE) & shown["value"].notna()]
    numbers = ["value", "low", "high", "n_conditions"]
    means = table.groupby(["metric", "set", "model"], sort=False)[numbers].mean()
    ends = means["value"].unstack("model").reindex(columns=[BASELINES[0], CEILING])
    of_row = ends.loc[means.index.droplevel("model")].to_numpy()
    means["fraction_of_range"] = fraction_of_range(means["value"].to_numpy(), *of_row.T)
    return means.reset_index()


def _verdicts(each: pd.DataFrame, models: set[str], shown: pd.DataFrame) -> pd.DataFrame:
    """The verdict on every model, metric and set: each condition is the mean over the model's runs."""
    group = ["metric", "set", "model", "condition"]
    theirs = each[~each["model"].isin(models)]
    theirs = theirs.groupby(group, sort=False)[["value", "weight"]].mean().reset_index()
    mine = each[each["model"].isin(models) & each["metric"].isin(HEADLINE)]
    return verdicts(mine, theirs, shown, by=["model", "metric", "set"])


@style.styled
def draw(
    scores: pd.DataFrame,
    conditions: pd.DataFrame,
    verdicts: pd.DataFrame,
    coverage: pd.DataFrame,
    *,
    models: list[str],
    reason: str = "",
    amount: str = "",
) -> Figure:
    """Headline scores between baseline and ceiling (a), conditions against their ceilings (b), coverage (c).

    scores: metric, set, model, value, low, high, n_conditions. conditions: metric, set, model, condition, value.
    verdicts: model, metric, set, verdict, against (the baseline that it names). coverage: model, metric, set, value.
    models: those to draw, in order. reason: why nothing is scored, in which case the figure says so. amount: how much
    of the data the runs saw.
    """
    lines = {} if reason else _lines(scores, models)
    if not lines:
        return style.nothing(
            f"Honest protocol: no effect is scored, because {reason or 'no score is defined'}", "nothing to score"
        )
    sets = [where for _, where in lines]
    heights = [0.5 + 0.14 * len(rows) for rows in lines.values()]
    fig = style.figure(10.6, max(4.8, 1.2 + sum(heights)))
    only = f" Only runs with {amount}, the most data." if amount else ""
    how = "effects of test cells minus their mean over conditions; models at the depth of the test "
    style.note(fig, f"Honest protocol: {how}cells, baselines from training cells.{only} {_sentences(verdicts)}")
    left, right = style.side_by_side(fig, [1.9, 1])
    axes = np.ravel(left.subplots(len(lines), 1, height_ratios=heights))
    for i, (ax, ((name, where), rows)) in enumerate(zip(axes, lines.items(), strict=True)):
        ceiling = scores[(scores[["model", "metric", "set"]] == [CEILING, name, where]).all(axis=1)]
        _line(ax, rows, ceiling["value"], name, where, first=i == 0)
        if "ranks" in verdicts and not verdicts.loc[verdicts["metric"] == name, "ranks"].all():
            _grey(ax)
    spare = fig.get_figheight() - RIGHT  # below many lines, the right panels keep their shape
    right = style.stacked(right, [RIGHT, spare])[0] if spare > 0 else right
    _right(right, conditions, coverage, models, sets[0])
    return fig


def _lines(scores: pd.DataFrame, models: list[str]) -> dict[tuple[str, str], pd.DataFrame]:
    """The scores to draw, by metric and set: those of models, in order, and below them of baselines."""
    if not len(scores):
        return {}
    style.need(scores, ["metric", "set", "model", "value", "low", "high"], "scores")
    sets = [name for name in ("seen", "unseen") if (scores["set"] == name).any()] or ["all"]
    found = {}
    for where in sets:
        for name in HEADLINE:
            # the effects of no change are the mean, once they are centred; its cells are not
            baselines = ("no_change", *BASELINES) if name == "energy_share" else BASELINES
            rows = scores[(scores["metric"] == name) & (scores["set"] == where)].set_index("model")
            if rows.index.isin(models).any():  # a prediction of effects alone has no cells
                found[name, where] = rows.loc[[model for model in (*models, *baselines) if model in rows.index]]
    return found


def _sentences(verdicts: pd.DataFrame) -> str:
    """The verdict on each model for the first headline metric and set."""
    if not len(verdicts):
        return ""
    first = verdicts[(verdicts["metric"] == HEADLINE[0])]
    first = first if len(first) else verdicts
    first = first[first["set"] == first["set"].iloc[0]]
    words = []
    for row in first.itertuples():
        verdict = str(row.verdict)
        if row.against:
            verdict = verdict.replace(str(row.against), style.label(str(row.against)))
        words.append(f"{style.label(str(row.model))}: {verdict}")
    return f"By {metric(first['metric'].iloc[0]).label}: {'; '.join(words)}."


def _line(ax: Axes, rows: pd.DataFrame, ceiling: pd.Series, name: str, where: str, *, first: bool) -> None:
    """One metric: the band from the mean effect to the ceiling, and a marker with its interval for every predictor."""
    ax.set_label(f"{name} {where}")
    ends = [*ceiling, *rows.loc[rows.index == "mean_of_perturbations", "value"]]
    if len(ends) == 2 and np.isfinite(ends).all():
        ax.axvspan(min(ends), max(ends), color=style.PALE, lw=0, zorder=0)
    for y, model in enumerate(reversed(rows.index)):
        value, low, high = rows.loc[model, ["value", "low", "high"]].astype(float)
        look = style.look(model)
        ax.plot([low, high], [y, y], color=look.colour, lw=1.1)
        marker = "|" if look.marker == "_" else look.marker  # a dash would vanish in its interval
        ax.plot([value], [y], marker, color=look.colour, mec=style.INK, mew=0.4 if look.marker != "_" else 1.1, ms=5)
    ax.set(ylim=(-0.8, len(rows) - 0.2))
    ax.set_yticks(range(len(rows)), [style.label(model) for model in reversed(rows.index)], fontsize=7)
    ax.tick_params(axis="y", length=0)
    number = int(rows["n_conditions"].max())
    better = {"lower": "← better", "higher": "better →"}.get(metric(name).better, "")
    text = f"{metric(name).label} ({better}), {number} conditions {SETS[where]}"
    style.letter(ax, "a" if first else "", text)


def _grey(ax: Axes) -> None:
    """Mark a metric that cannot tell signal from noise on this screen, so that it ranks nothing."""
    for line in ax.lines:
        line.set(color=style.GREY, alpha=0.4)
    ax.set_title(
        f"{ax.get_title(loc='left')}: does not tell signal from noise here", loc="left", color=style.GREY, pad=5
    )


def _right(fig: SubFigure, conditions: pd.DataFrame, coverage: pd.DataFrame, models: list[str], where: str) -> None:
    """Each condition's correlation against its ceiling for the best model (b), and coverage against nominal (c)."""
    above, below = fig.subplots(2, 1)
    above.set_label("conditions")
    wide = conditions[(conditions["metric"] == "pearson_centred") & (conditions["set"] == where)]
    wide = wide.pivot_table(index="condition", columns="model", values="value")
    there = [model for model in models if model in wide]
    if there and CEILING in wide:
        best = wide[there].mean().idxmax()
        look = style.look(str(best))
        above.plot(wide[CEILING], wide[best], look.marker, color=look.colour, mec=style.INK, mew=0.3, ms=4)
        if "shrunk" in wide:
            above.plot(wide[CEILING], wide["shrunk"], ".", color=style.GREY, ms=4, zorder=1)
        low = min(-0.05, float(np.nanmin(wide[[best, *({"shrunk"} & set(wide))]])) - 0.05)
        above.plot([max(low, 0), 1], [max(low, 0), 1], color=style.INK, lw=0.8, ls=style.DASHED)
        above.set(xlim=(-0.03, 1.03), ylim=(low, 1.03), xlabel="r of a perfect prediction (grey: shrunk training mean)")
        above.set_ylabel("Pearson r, centred")
        style.letter(above, "b", f"{look.label}, by condition")
    else:
        above.set_axis_off()
    below.set_label("coverage")
    levels = np.array(LEVELS)
    below.plot([0, 1], [0, 1], color=style.INK, lw=0.8, ls=style.DASHED)
    coverage = coverage[coverage["set"] == where]
    table = coverage.groupby(["model", "metric"])["value"].mean().unstack() if len(coverage) else pd.DataFrame()
    for model in [*models, "train_mean"]:
        if model in table.index:
            look = style.look(model)
            values = table.loc[model, [f"coverage{level}" for level in LEVELS]]
            below.plot(levels, values, look.marker, ls="-", lw=0.9, color=look.colour, mec=style.INK, mew=0.3, ms=4)
    below.set(xlim=(0.4, 1), ylim=(0, 1), xlabel="nominal coverage (grey: training mean)", ylabel="coverage")
    style.letter(below, "c", "effects of test cells inside intervals")
