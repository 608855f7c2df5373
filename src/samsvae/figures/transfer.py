"""Transfer to new perturbations: gain with few cells, the claim of the SVAE+ paper, and effects from ten cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from samsvae.config.splits import NEW_BY
from samsvae.config.transfer import ALL_CELLS
from samsvae.evaluation.selection import best_settings, chosen
from samsvae.evaluation.transfer_tables import ALL, read_transfer
from samsvae.evaluation.transfer_verdicts import BETTER, OTHERS, SPARSE, WORSE, sign_test
from samsvae.figures import style
from samsvae.figures.heatmaps import pathway_name
from samsvae.figures.runs import REPLICATES, models_only, of_largest_amount, restricted
from samsvae.figures.transfer_tables import (
    FEW,
    KEPT,
    OURS,
    OWN_PROFILE,
    RELEASED,
    by_perturbation,
    comparisons,
    few_of,
    last_stage,
    means,
    verdicts,
    with_seeds,
)
from samsvae.screens.screen import members, read_uns
from samsvae.tables import read

WIDTH, NOTE_WIDTH = 11.2, 10.4  # inches
LATENTS = "mcc_pearson"
UNIT = "gain over the training mean (nats per cell)"
FITTED, ADAPTED = "#DD7400", "#1B6CB0"  # parameters that are fitted: in training, and to the cells of new perturbations
SINGLE, COMBINED = "#1B6CB0", "#DD7400"

SAVED = {
    "": "scores",
    "perturbations": "perturbations",
    "latents": "latents",
    "comparisons": "comparisons",
    "verdicts": "verdicts",
}


def tables(*, scores: str, transfer: str, screen: str, compared: Mapping[str, object]) -> dict[str, object]:
    """Arguments of draw: scores of new perturbations under each model's best settings on validation data.

    scores, transfer: EXPERIMENT/scores.tsv and transfer.tsv. screen: says which perturbations are combinations.
    compared: values of axes of the grid to which the models are restricted; not the number of new cells in a training.
    """
    separator = str(read_uns(screen, "separator", ""))
    return arguments(read(scores), read_transfer(transfer), separator=separator, compared=compared)


def arguments(
    scores: pd.DataFrame, table: pd.DataFrame, *, separator: str, compared: Mapping[str, object]
) -> dict[str, object]:
    """The same from the tables themselves. separator: between the members of a combination; '' without any."""
    rules = {axis: value for axis, value in compared.items() if axis != "new_cells"}
    rows, _ = of_largest_amount(restricted(scores[scores["method"] != "baseline"], rules))
    bound = table["adapt"].eq("refit")
    transferred, refitted = (set(table.loc[at, "run"]) for at in (~bound, bound))
    plain = models_only(rows).drop(columns="new_cells", errors="ignore")
    best = best_settings(plain[plain["run"].isin(transferred)], ["model"], (*REPLICATES, *NEW_BY))
    ours = set(chosen(plain, best.drop(columns=["mean", "sd", "n"]))["run"]) & (transferred | refitted)
    runs = with_seeds(rows[rows["run"].isin(ours)])
    final = last_stage(table, runs)
    latents = _latents(rows[rows["run"].isin(ours & transferred)], runs)
    models = style.models_in(best["model"])
    found = comparisons(final, latents, models)
    each = by_perturbation(final)
    return {
        "scores": means(final),
        "perturbations": each.assign(combination=[len(members(n, separator, "")) > 1 for n in each["perturbation"]]),
        "latents": latents,
        "comparisons": found,
        "verdicts": verdicts(found),
        "models": models,
        "stages": 3 if table["stage"].eq(2).any() else 2,
        "particles": int(table["particles"].max()) if table["particles"].notna().any() else 0,
    }


def _latents(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The MCC of every run of a simulation, in test cells if it has them: run, model, seed, training, value."""
    found = rows[rows["metric"] == LATENTS]
    found = found.sort_values("split", key=lambda split: split != "test", kind="stable").drop_duplicates("run")
    return runs.merge(found[["run", "value"]], on="run")[["run", "model", "seed", "training", "value"]]


@style.styled
def draw(
    scores: pd.DataFrame,
    perturbations: pd.DataFrame,
    latents: pd.DataFrame,
    comparisons: pd.DataFrame,
    verdicts: pd.DataFrame,
    *,
    models: list[str],
    stages: int = 3,
    particles: int = 0,
) -> Figure:
    """Scheme (a), latents (b), few cells (c), a pair of methods (d), variants (e), what was held out (f), effects (g).

    scores: as `transfer_tables.means` returns it. perturbations: by_perturbation, with the column combination. latents:
    model, seed, value. comparisons, verdicts: as transfer_tables has them. models: those to draw, in order. stages: 2
    if no method has a second training. particles: K of the bound. A panel without data is left out.
    """
    places = sorted(set(scores.loc[scores["cells"] == ALL_CELLS, "held_out"]) - {ALL})
    lower = _lower(perturbations, models)
    heights = [4.1 if len(latents) else 3.3, *([3.0] if lower else []), *([1.5 + 0.24 * len(places)] if places else [])]
    fig = style.figure(WIDTH, 1.3 + sum(heights))
    style.note(fig, _note(scores, comparisons, verdicts, particles))
    parts = iter(style.stacked(fig, heights))
    _first_row(next(parts), scores, latents, models, stages)
    if lower:
        axes = np.ravel(next(parts).subplots(1, len(lower), width_ratios=[1.5 if at == "d" else 1.1 for at in lower]))
        for ax, at in zip(axes, lower, strict=True):
            if at == "d":
                _strip(ax, perturbations, lower[at], comparisons)
            elif at == "e":
                _variants(ax, scores, lower[at])
            else:
                _effects(ax, perturbations, lower[at][0])
    if places:
        _heat(next(parts).subplots(), scores, models, places)
    return fig


def _lower(perturbations: pd.DataFrame, models: Sequence[str]) -> dict[str, list[str]]:
    """The panels of the second row, by letter, with the models that each shows."""
    of = {metric: rows for metric, rows in perturbations.groupby("metric")}
    gain, effects = (of.get(name, perturbations.iloc[:0]) for name in ("gain", "effect_pearson"))
    at_all = gain[gain["cells"] == ALL_CELLS]
    ours, released = (set(at_all.loc[at_all["variant"] == variant, "model"]) for variant in (OURS, RELEASED))
    sparse, others = ([model for model in names if model in ours] for names in (SPARSE, OTHERS))
    few = effects[(effects["cells"] == few_of(effects["cells"])) & (effects["variant"] == OURS)]
    known = [model for model in (*SPARSE, *reversed(models)) if model in set(few.dropna(subset="value")["model"])]
    panels = {
        "d": [sparse[0], others[0]] if sparse and others else [],
        "e": [model for model in models if model in ours & released],
        "g": known[:1] if OWN_PROFILE in set(few["model"]) else [],
    }
    return {letter: shown for letter, shown in panels.items() if shown}


# ---- the note ------------------------------------------------------------------------------------------------------


def _note(scores: pd.DataFrame, compared: pd.DataFrame, verdicts: pd.DataFrame, particles: int) -> str:
    bound = f" (bounds with {particles:,} particles)" if particles else ""
    seeds = style.spread(scores.loc[scores["adapt"] != "profile", "seeds"])
    parts = [f"Honest protocol: test cells of perturbations that no training saw{bound}; {seeds}; settings chosen on "
             "validation data.", _few_words(compared)]  # fmt: skip
    for claim, rows in verdicts.groupby("claim", sort=False):
        words = [f"{style.label(row.model)}: {row.verdict}{_seen(row)}" for row in rows.itertuples()]
        parts.append(f"Claim of the SVAE+ paper: {claim}. {'; '.join(words)}.")
    lines = [style.wrapped_note(part, NOTE_WIDTH) for part in parts if part]
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", "\n".join(lines))


def _seen(row: Any) -> str:
    """The seeds behind a verdict, unless it names them, and what was seen."""
    sees = re.sub(r"\w+", lambda word: style.label(word[0]) if word[0] in OTHERS else word[0], row.sees)
    return f" ({'' if ':' in row.verdict else f'{row.seeds} seeds; '}{sees})"


def _few_words(compared: pd.DataFrame) -> str:
    """Whether models beat the own profile of few cells, in words."""
    rows = compared[compared["claim"] == FEW]
    if not len(rows):
        return ""
    question = f"With {rows['cells'].iloc[0]} cells of a new perturbation, is a model better than the cells themselves?"
    words = {BETTER: "yes", WORSE: "no, worse"}
    found = []
    for outcome in sorted(
        set(rows["outcome"]), key=lambda outcome: list(words).index(outcome) if outcome in words else 2
    ):
        of = rows[rows["outcome"] == outcome].itertuples()
        names = ", ".join(f"{style.label(row.model)} {row.difference:+.1f}" for row in of)
        found.append(f"{words.get(outcome, outcome)}: {names}")
    answer = "; ".join(found)
    return f"{question} {answer[:1].upper()}{answer[1:]} (nats per cell above their own profile)."


# ---- the panels ----------------------------------------------------------------------------------------------------


def _first_row(fig: SubFigure, scores: pd.DataFrame, latents: pd.DataFrame, models: Sequence[str], stages: int) -> None:
    left, right = style.side_by_side(fig, [1, 2.1])
    axes = np.ravel(left.subplots(1 + bool(len(latents)), 1))
    _scheme(axes[0], stages)
    if len(latents):
        _latent_dots(axes[1], latents, models)
    if len(scores):
        _curve(right.subplots(), scores, models)


def _scheme(ax: Axes, stages: int) -> None:
    """What each stage fits (colour) and what it leaves (grey): a column per stage, a row per kind of parameter."""
    ax.set_label("scheme")
    rows = ["networks, dispersion", "masks, old perturbations", "shifts, old perturbations", "shift, new perturbation"]
    fitted = {"1 train": (0, 1, 2), "2 train again": (0, 2), "adapt": (3,)}
    columns = [name for name in fitted if stages == 3 or not name.startswith("2")]
    for x, name in enumerate(columns):
        for y in range(len(rows)):
            colour = (ADAPTED if y == 3 else FITTED) if y in fitted[name] else style.PALE
            ax.add_patch(Rectangle((x - 0.44, y - 0.38), 0.88, 0.76, facecolor=colour, lw=0))
            text = "fitted" if y in fitted[name] else "0" if y == 3 else "fixed"
            ax.text(x, y, text, ha="center", va="center", color="white" if y in fitted[name] else style.INK, fontsize=7)
    cells = ["old cells"] * (len(columns) - 1) + ["k new cells"]
    names = [f"{name}\n{of}" for name, of in zip([*columns[:-1], f"{len(columns)} adapt"], cells, strict=True)]
    ax.set_xticks(range(len(columns)), names, fontsize=7)
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    ax.set(xlim=(-0.55, len(columns) - 0.45), ylim=(len(rows) - 0.5, -0.5))
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    style.letter(ax, "a", "what each stage fits")


def _latent_dots(ax: Axes, latents: pd.DataFrame, models: Sequence[str]) -> None:
    """MCC by method: a dot for every run, and a line at their mean."""
    ax.set_label("latents")
    shown = [model for model in models if model in set(latents["model"])]
    for y, model in enumerate(shown):
        values, look = latents.loc[latents["model"] == model, "value"].to_numpy(), style.look(model)
        ax.plot(values, y + _jitter(len(values)), "o", color=look.colour, ms=3, mec="none", alpha=0.8)
        ax.plot([values.mean()] * 2, [y - 0.34, y + 0.34], color=style.INK, lw=1.1)
    ax.set_yticks(range(len(shown)), [style.label(model) for model in shown], fontsize=7)
    ax.set(ylim=(len(shown) - 0.4, -0.6), xlabel="MCC (higher is better); line: mean")
    ax.tick_params(axis="y", length=0)
    style.letter(ax, "b", "latents of the simulation")


def _jitter(n: int) -> np.ndarray:
    """Offsets (n,) in a fixed order, by the golden ratio, so that dots of one row do not hide each other."""
    return 0.5 * ((np.arange(n) * 0.618034) % 1 - 0.5)


def _curve(ax: Axes, scores: pd.DataFrame, models: Sequence[str]) -> None:
    """Gain by number of cells of the new perturbation: a line per method, the own profile, and the upper bound."""
    ax.set_label("few cells")
    rows = scores[(scores["held_out"] == ALL) & (scores["variant"] == OURS)]
    numbers = sorted(set(rows["cells"]), key=lambda n: float("inf") if n == ALL_CELLS else int(n))
    place = {number: i for i, number in enumerate(numbers)}
    if rows["mean"].min() < 0.3 * rows["mean"].max():  # else 0 would flatten all lines
        ax.axhline(0, color=style.GREY, lw=0.8)
    for j, model in enumerate(models):
        look, shift = style.look(model), 0.03 * (j - (len(models) - 1) / 2)
        of = rows[rows["model"] == model]
        for refit, line in ((False, look.line), (True, (0, (1, 1.5)))):
            each = of[(of["adapt"] == "refit") == refit].sort_values("cells", key=lambda cells: cells.map(place))
            face: dict[str, Any] = {"mfc": "white", "mec": look.colour, "mew": 0.9} if refit else {}
            if len(each):
                x = each["cells"].map(place) + shift
                style.interval(ax, x, each["mean"], each["sd"], model, ls=line, lw=1.2, ms=5, **face)
    own = rows[rows["model"] == OWN_PROFILE].sort_values("cells", key=lambda cells: cells.map(place))
    ax.plot(own["cells"].map(place), own["mean"], color=style.INK, ls=style.DASHED, lw=1.5, zorder=4)
    most = rows.groupby("cells")["perturbations"].max()
    words = {n: f"{n}" + (f"\n({most[n]} of {most.max()})" if most[n] < most.max() else "") for n in numbers}
    ax.set_xticks(range(len(numbers)), [words[n] for n in numbers])
    ax.set(xlim=(-0.35, len(numbers) - 0.65), xlabel="cells of the new perturbation", ylabel=UNIT)
    handles = [*style.keys(models, "both"), Line2D([], [], color=style.INK, ls=style.DASHED, label="own profile")]
    if (rows["adapt"] == "refit").any():
        handles.append(Line2D([], [], color=style.GREY, ls=(0, (1, 1.5)), marker="o", mfc="white", label="refit"))
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.6)
    style.letter(ax, "c", "few cells of a new perturbation")


def _strip(ax: Axes, perturbations: pd.DataFrame, pair: Sequence[str], compared: pd.DataFrame) -> None:
    """The gain of the first method minus that of the second for every perturbation, by what was held out."""
    ax.set_label("pair")
    at = (
        (perturbations["metric"] == "gain") & (perturbations["variant"] == OURS) & (perturbations["cells"] == ALL_CELLS)
    )
    rows = perturbations[at & (perturbations["adapt"] != "refit") & perturbations["model"].isin(pair)]
    wide = rows.pivot_table(index=["held_out", "dataset", "perturbation"], columns="model", values="value").dropna()
    difference = wide[pair[0]] - wide[pair[1]]
    places = sorted(wide.index.get_level_values("held_out").unique())
    ax.axvline(0, color=style.INK, lw=0.8)
    for y, place in enumerate(places):
        values = difference.xs(place, level="held_out").to_numpy()
        colour = np.where(values > 0, style.look(pair[0]).colour, style.look(pair[1]).colour)
        ax.scatter(values, y + 1.4 * _jitter(len(values)), s=9, c=colour, lw=0, alpha=0.8)
        ax.plot([values.mean()] * 2, [y - 0.4, y + 0.4], color=style.INK, lw=1.3)
    ax.set_yticks(range(len(places)), [pathway_name(place) for place in places], fontsize=7)
    ax.set(
        ylim=(len(places) - 0.4, -0.6), xlabel=f"{style.label(pair[0])} minus {style.label(pair[1])} (nats per cell)"
    )
    ax.tick_params(axis="y", length=0)
    of = compared[(compared["claim"] == "transfer") & (compared["model"] == pair[0]) & (compared["against"] == pair[1])]
    seeds = int(of["seeds"].max()) if len(of) else 1
    p = f"sign test p = {sign_test(difference.to_numpy()):.2g}, {seeds} seed{'s' if seeds > 1 else ''}"
    style.letter(ax, "d", f"each new perturbation: {p}")


def _variants(ax: Axes, scores: pd.DataFrame, models: Sequence[str]) -> None:
    """The gain with all cells as released, with the statistics of batch norm kept, and in ours: a line per method."""
    ax.set_label("variants")
    names = {RELEASED: "as released", KEPT: "statistics\nkept", OURS: "ours"}
    rows = scores[(scores["held_out"] == ALL) & (scores["cells"] == ALL_CELLS) & (scores["adapt"] != "refit")]
    wide = rows.pivot_table(index="model", columns="variant", values="mean").reindex(columns=list(names))
    for model in models:
        look, values = style.look(model), wide.loc[model].to_numpy(float)
        there = np.isfinite(values)
        ax.plot(np.arange(3)[there], values[there], look.marker, ls=look.line, color=look.colour, mec=style.INK,
                mew=0.4, ms=5, lw=1.2)  # fmt: skip
    ax.set_xticks(range(3), list(names.values()))
    ax.set(xlim=(-0.3, 2.3), ylabel="gain (nats per cell)")
    style.letter(ax, "e", "as released, and ours")


def _effects(ax: Axes, perturbations: pd.DataFrame, model: str) -> None:
    """The effect's correlation with that of the test cells: of a model adapted to few cells, and of these cells."""
    ax.set_label("effects")
    few = few_of(perturbations["cells"])
    at = (perturbations["metric"] == "effect_pearson") & (perturbations["variant"] == OURS)
    rows = perturbations[at & (perturbations["cells"] == few) & (perturbations["adapt"] != "refit")]
    on = ["held_out", "dataset", "perturbation", "combination"]
    wide = rows.pivot_table(index=on, columns="model", values="value")[[OWN_PROFILE, model]].dropna().reset_index()
    for combined, colour, marker in ((False, SINGLE, "o"), (True, COMBINED, "D")):
        of = wide[wide["combination"] == combined]
        word = "combinations" if combined else "single"
        if len(of):
            label = f"{len(of)} {word}" if wide["combination"].any() else None
            ax.plot(of[OWN_PROFILE], of[model], marker, color=colour, ms=4, mec="white", mew=0.3, label=label)
    low = float(wide[[OWN_PROFILE, model]].to_numpy().min()) - 0.05
    ax.plot([low, 1], [low, 1], color=style.INK, lw=0.8, ls=style.DASHED)
    ax.set(xlim=(low, 1.02), ylim=(low, 1.02), xlabel=f"r of the mean of {few} cells")
    ax.set_ylabel(f"r of {style.label(model)}")
    if wide["combination"].any():
        ax.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.1)
    above = int((wide[model] > wide[OWN_PROFILE]).sum())
    style.letter(ax, "g", f"effects from {few} cells: above in {above} of {len(wide)}")


def _heat(ax: Axes, scores: pd.DataFrame, models: Sequence[str], places: Sequence[str]) -> None:
    """The gain with all cells by what was held out and method, with the own profile; numbers are ranks in a row."""
    ax.set_label("held out")
    at = (scores["variant"] == OURS) & (scores["cells"] == ALL_CELLS) & (scores["adapt"] != "refit")
    wide = scores[at].pivot_table(index="held_out", columns="model", values="mean")
    wide = wide.reindex(index=places, columns=[name for name in (*models, OWN_PROFILE) if name in wide])
    low, high = float(np.nanmin(wide)), float(np.nanmax(wide))
    both = low < 0 < high
    most = max(-low, high)
    colours: dict[str, Any] = {"vmin": -most, "vmax": most} if both else {"vmin": low - 0.1 * (high - low)}
    image = ax.imshow(wide, cmap=style.DIVERGING if both else style.SEQUENTIAL, aspect="auto", **colours)
    for (y, x), rank in np.ndenumerate(wide.rank(axis=1, ascending=False).to_numpy()):
        if np.isfinite(rank):
            dark = sum(image.cmap(image.norm(wide.iloc[y, x]))[:3]) < 1.4
            ax.text(x, y, f"{rank:g}", ha="center", va="center", fontsize=7.5, color="white" if dark else style.INK)
    names = ["own profile" if name == OWN_PROFILE else style.label(name) for name in wide]
    ax.set_xticks(range(len(names)), names, rotation=20, ha="right")
    ax.set_yticks(range(len(places)), [pathway_name(place) for place in places])
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01)
    bar.set_label("gain (nats per cell)")
    style.letter(ax, "f", "what was held out, all cells of the pool (number: rank, 1 is best)")
