"""Scores of every model, next to the published numbers where there are some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import DataError
from samsvae.evaluation.metrics.selection import best_runs, best_settings, chosen, summary
from samsvae.figures import published, style
from samsvae.figures.runs import of_table_1

#: metric of the table: (its rows in the scores: metric, split; title; decimals)
METRICS = {
    "test_iwelbo": ("iwelbo", "test", "test IWELBO (nats per cell)", 2),
    "mask_pathway_accuracy": ("mask_pathway_accuracy", "all", "mask pathway accuracy", 2),
    "ate_pearson": ("ate_pearson", "all", "ATE-Pearson", 3),
}

COLUMNS = [
    *("model", "method", "inference", "settings", "n_runs"),
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_sd")),
    "ate_pearson_published_rule",
    *(f"published_{metric}{end}" for metric in METRICS for end in ("", "_sd")),
    *(f"difference_{metric}" for metric in METRICS),
    *(f"inside_seed_interval_{metric}" for metric in METRICS),
]


def build_replogle_table1(
    scores: pd.DataFrame,
    selected: pd.DataFrame,
    published: pd.DataFrame,
    *,
    classifier: str = "logistic",
    comparable: bool = True,
) -> pd.DataFrame:
    """The table's rows, in the paper's order: COLUMNS, NaN where there is no number.

    scores: the published protocol's, tidy (model, run, settings, seed, metric, split, value). selected: the
    settings chosen on validation data, a row per model (metrics.selection.best_settings by model). published:
    published.replogle_table1. ``ate_pearson_published_rule`` is of the one run, of all settings in the scores
    with the chosen number of latents, with the best *test* IWELBO. A published mean is ``inside_seed_interval``
    if it is within mean ± 2 sd of our seeds; empty where ours is a single run. ``comparable``: whether the screen is
    the published one; if not, differences and intervals are empty.
    """
    style.need(scores, ["model", "run", "metric", "split", "value"], "scores")
    style.need(selected, ["model"], "selected settings")
    style.need(published, ["model", "metric", "mean", "sd"], "published numbers")
    scores = scores[scores["model"].isin(TABLE_1)]
    ours = chosen(scores, selected.drop(columns=["mean", "sd", "n"], errors="ignore"))
    means = summary(ours, ["model", "metric", "split"]).set_index(["model", "metric", "split"])
    theirs = published.set_index(["model", "metric"])
    if "n_latent" in selected and "n_latent" in scores:
        scores = scores.merge(selected[["model", "n_latent"]], on=["model", "n_latent"])
    best = scores.merge(best_runs(scores, ["model"])[["model", "run"]], on=["model", "run"])
    best = best[(best["metric"] == "ate_pearson") & (best["split"] == "all")].set_index("model")["value"]

    rows = []
    for model in style.models_in(ours["model"]):
        mine = ours[ours["model"] == model]
        row = {"model": model, "method": ROWS[model].method, "inference": ROWS[model].inference}
        row |= {"settings": settings_text(mine.iloc[0]), "n_runs": mine["run"].nunique()}
        row["ate_pearson_published_rule"] = best.get(model, np.nan)
        for name, (metric, split, *_) in METRICS.items():
            key = f"{metric}/{classifier}" if name == "mask_pathway_accuracy" else metric
            mean, sd = _at(means, (model, key, split))
            row |= {name: mean, f"{name}_sd": sd}
            row[f"published_{name}"], row[f"published_{name}_sd"] = _at(theirs, (model, metric))
            difference = mean - row[f"published_{name}"] if comparable else np.nan
            row[f"difference_{name}"] = difference
            known = np.isfinite(sd) and np.isfinite(difference)
            row[f"inside_seed_interval_{name}"] = bool(abs(difference) <= 2 * sd) if known else None
        rows.append(row)
    if not rows:
        raise DataError("Replogle table: the scores hold no run of the selected settings: there is nothing to draw.")
    return pd.DataFrame(rows, columns=COLUMNS)


def settings_text(row: pd.Series) -> str:
    """What was chosen for a row: 'α = 0.01, 100 latents'; only what its model reads."""
    model = row["model"]
    parts = []
    if model in ("svae_plus", "sams_vae_bb") and pd.notna(row.get("beta_b")):
        parts.append(f"b = {row['beta_b']:g}")
    if model.startswith("sams_vae") and model != "sams_vae_bb" and pd.notna(row.get("mask_prior")):
        parts.append(f"α = {row['mask_prior']:g}")
    if pd.notna(row.get("n_latent")):
        parts.append(f"{row['n_latent']:g} latents")
    return ", ".join(parts)


def _at(table: pd.DataFrame, key: tuple) -> tuple[float, float]:
    return tuple(table.loc[key, ["mean", "sd"]].astype(float)) if key in table.index else (np.nan, np.nan)


@style.styled
def draw(table: pd.DataFrame, *, comparable: bool = True) -> Figure:
    """The table of build_replogle_table1 as text, with ours drawn: dot, ± 1 sd (thick) and ± 2 sd (thin).

    comparable: whether the screen is the published one. If so, published means are drawn as hollow diamonds
    and the difference is printed, with ● inside and ○ outside our seed interval; if not, neither is shown, and
    the subtitle says that the published numbers are not to be compared.
    """
    style.need(table, COLUMNS, "Replogle table")
    table = table.set_index("model", drop=False).loc[style.models_in(table["model"])]
    columns = [("model", 1.3), ("settings", 0.95)]
    for metric, width in (("test_iwelbo", 0.76), ("mask_pathway_accuracy", 0.66), ("ate_pearson", 0.66)):
        columns += [(metric, 1.25), (f"{metric} ours", width)]
        columns += [("ate_pearson by test", 0.66)] if metric == "ate_pearson" else []
        columns += [(f"{metric} published", width + 0.06)] + [(f"{metric} difference", 0.82)] * comparable
    height, names = 1.5 + 0.42 * len(table), [name for name, _ in columns]
    widths = [width for _, width in columns]
    fig = style.figure(sum(widths), height, layout=None)
    grid = {"left": 0.006, "right": 0.994, "top": 1 - 1.05 / height, "bottom": 0.32 / height, "wspace": 0}
    ax = dict(zip(names, fig.subplots(1, len(widths), width_ratios=widths, gridspec_kw=grid), strict=True))
    for name in names:
        _rows(ax[name], len(table), name)

    methods = [
        (m, i.replace("z_basal", "$z_{basal}$").replace(" E", " $E$")) for m, i in table[["method", "inference"]].values
    ]
    _texts(ax["model"], methods, "model", fontweight="bold")
    settings = [(t.partition(", ")[0], t.partition(", ")[2]) for t in table["settings"]]
    _texts(ax["settings"], settings, "chosen on\nvalidation")
    for metric, (_, _, title, decimals) in METRICS.items():
        mean, sd = (table[f"{metric}{end}"].to_numpy(float) for end in ("", "_sd"))
        other, other_sd = (table[f"published_{metric}{end}"].to_numpy(float) for end in ("", "_sd"))
        _dots(ax[metric], table["model"], mean, sd, other if comparable else None)
        ax[metric].annotate(title, (0.05, 1), (0, 21), fontsize=8.5, fontweight="bold", **_HEAD)
        _texts(ax[f"{metric} ours"], _numbers(mean, sd, decimals), "ours")
        _texts(ax[f"{metric} published"], _numbers(other, other_sd, decimals), "published", color="#5E5E5E")
        if comparable:
            inside = [None if pd.isna(v) else bool(v) for v in table[f"inside_seed_interval_{metric}"]]
            gaps = [_number(d, decimals, "+") for d in mean - other]
            marks = ["" if v is None else "  ●" if v else "  ○" for v in inside]
            _texts(
                ax[f"{metric} difference"],
                [(g + m, "") for g, m in zip(gaps, marks, strict=True)],
                "difference",
            )
    rule = [(_number(r, METRICS["ate_pearson"][3]), "") for r in table["ate_pearson_published_rule"]]
    _texts(ax["ate_pearson by test"], rule, "ours,\nbest test")

    few, many = int(table["n_runs"].min()), int(table["n_runs"].max())
    runs = f"{many} run{'s' * (many > 1)} a row" if few == many else f"{few} to {many} runs a row"
    note = f"Replogle, published protocol, {runs}" + (
        ": mean ± sd; thick bar ± 1 sd, thin bar ± 2 sd. " if many > 1 else ". "
    )
    note += "Best test: the run of best test IWELBO, the paper's rule for its ATE column.\n"
    note += (
        "Hollow diamond: published mean; ● inside, ○ outside our mean ± 2 sd."
        if comparable
        else "Miniature screen, not the published one: its numbers must not be compared with the published ones."
    )
    fig.text(0.008, 1 - 0.08 / height, note, va="top", fontsize=8, linespacing=1.4)
    return fig


_HEAD = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}


def _rows(ax: Axes, n: int, name: str) -> None:
    """An axes of n rows from top to bottom, every second one shaded, with a rule above and below."""
    ax.set_label(name)
    ax.set(ylim=(n - 0.5, -0.5), yticks=[], xticks=[], xlim=(0, 1))
    ax.patch.set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.spines["top"].set_visible(True)
    for i in range(1, n, 2):
        ax.axhspan(i - 0.5, i + 0.5, color="#F4F4F4", lw=0, zorder=-1)


def _texts(ax: Axes, cells: list[tuple[str, str]], title: str, **kwargs) -> None:
    """A column of cells of one or two lines, the second smaller and grey."""
    for i, (first, second) in enumerate(cells):
        ax.text(0.06, i - 0.17 * bool(second), first, va="center", fontsize=8, **kwargs)
        ax.text(0.06, i + 0.22, second, va="center", fontsize=7, color="#5E5E5E")
    ax.annotate(title, (0.06, 1), (0, 4), color=kwargs.get("color", style.INK), linespacing=1.0, **_HEAD)


def _dots(ax: Axes, models, mean, sd, published) -> None:
    """Ours as dots with intervals; published means as hollow diamonds."""
    for i, (model, m, s) in enumerate(zip(models, mean, sd, strict=True)):
        o = style.look(model)
        if not np.isfinite(m):
            ax.text(
                0.5,
                i,
                "no mask" if ax.get_label().startswith("mask") else "–",
                ha="center",
                va="center",
                fontsize=7,
                color=style.GREY,
                transform=ax.get_yaxis_transform(),
            )
        for width, k in ((1, 2), (3, 1)) if np.isfinite(s) else ():
            ax.plot([m - k * s, m + k * s], [i, i], color=o.colour, lw=width, solid_capstyle="butt")
        ax.plot(m, i, o.marker, color=o.colour, mec=style.INK, mew=0.4, ms=6)
    drawn = [mean - 2 * np.nan_to_num(sd), mean + 2 * np.nan_to_num(sd)]
    if published is not None:
        ax.plot(published, range(len(published)), "D", mfc="none", mec=style.INK, mew=0.9, ms=6.5)
        drawn.append(published)
    drawn = np.concatenate(drawn)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn):
        pad = 0.14 * (np.ptp(drawn) or abs(drawn[0]) or 1)
        ax.set_xlim(drawn.min() - pad, drawn.max() + pad)
        ax.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
        ax.tick_params(labelsize=7)


def _number(value: float, decimals: int, sign: str = "") -> str:
    """'−1756.27' with a true minus sign; a dash for no number."""
    return f"{value:{sign}.{decimals}f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else "–"


def _numbers(mean, sd, decimals: int) -> list[tuple[str, str]]:
    spread = [f"± {s:.{decimals}f}" if np.isfinite(s) else "" for s in sd]
    return [(_number(m, decimals), s) for m, s in zip(mean, spread, strict=True)]


# ---- Replogle ------------------------------------------------------------------------------------------------------


def tables(scores: pd.DataFrame, folder: str | Path, *, comparable: bool) -> pd.DataFrame:
    """Table 1: chosen settings, our means and sds over seeds, the published numbers beside them.

    ``comparable``: whether the screen is the published one, so that there are differences to print.
    """
    rows = of_table_1(scores)
    best = best_settings(rows, ["model"])
    return build_replogle_table1(rows, best, published.replogle_table1(folder), comparable=comparable)
