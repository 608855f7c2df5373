"""The look that all figures share: palette, labels, panel helpers and saving.

Figures are built without pyplot, so importing this module changes neither the backend nor the settings of the caller.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import DataError, nearest, some
from samsvae.files import atomic
from samsvae.tables import write

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.3,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "svg.hashsalt": "samsvae",
    "image.cmap": "viridis",
}

INK, GREY, PALE = "#222222", "#8A8A8A", "#E4E4E4"
DIGITS = 6  # of the numbers written with a figure
MOST_NAMES = 60  # of rows of a panel that can be read

DIVERGING, SEQUENTIAL = "RdBu_r", "Greys"

#: A line style of matplotlib: a string, or an offset with the lengths of dashes and gaps.
Line = Any

DASHED: Line = (0, (4, 2))


#: The predictor of effects that were made outside the project, as tables name it.
PREDICTION = "prediction"


@dataclass(frozen=True)
class Look:
    """How every figure draws one model: the colour shows the method, the rest the inference."""

    label: str
    colour: str
    marker: str
    line: Line
    hatch: str


_DASH: dict[str, Line] = {"mf": (0, (1, 1.2)), "e": (0, (3.5, 1.2, 1, 1.2)), "z": (0, (4, 1.4))}

LOOKS: dict[str, Look] = {
    key: Look(_label, *rest)
    for key, _label, *rest in (
        ("cond_vae", "Conditional VAE", "#009E73", "o", "-", ""),
        ("svae_plus", "SVAE+", "#B5172B", "s", "-", ""),
        ("cpa_vae_mf", "CPA-VAE, MF", "#7DB8E0", "v", _DASH["mf"], "...."),
        ("cpa_vae_corr", "CPA-VAE, corr. $z_b$", "#1B6CB0", "^", "-", ""),
        ("sams_vae_mf", "SAMS-VAE, MF", "#F7C970", "P", _DASH["mf"], "...."),
        ("sams_vae_corr_e", "SAMS-VAE, corr. $E$", "#F3B04A", "X", _DASH["e"], "xxxx"),
        ("sams_vae_corr_z", "SAMS-VAE, corr. $z_b$", "#EA951F", "p", _DASH["z"], "////"),
        ("sams_vae_corr", "SAMS-VAE, corr. $z_b$, $E$", "#DD7400", "D", "-", ""),
        ("sams_vae_bb", "SAMS-VAE Beta-Bernoulli", "#7A4A1E", "d", "-", ""),
        ("vae", "VAE", "#ABABAB", "<", "-", ""),
        ("beta_vae", "β-VAE", "#6E6E6E", ">", "-", ""),
        ("ivae", "iVAE", "#C3AEE0", "h", "-", ""),
        ("ivae_drawn", "iVAE, drawn mask", "#A48FD2", "h", _DASH["z"], "////"),
        ("svae", "sVAE", "#8257C2", "H", "-", ""),
        ("svae_plus_lopez", "SVAE+ (Lopez)", "#56165C", "8", "-", ""),
        (PREDICTION, "prediction", "#C2185B", "*", "-", ""),
        # baselines, which need no model
        ("intercept_nb", "intercept only (NB)", INK, "_", (0, (1, 1)), ""),
        ("additive", "additive", INK, "_", (0, (5, 2)), ""),
        ("mean_of_perturbations", "mean of perturbations", INK, "_", (0, (1, 1.2)), ""),
        ("train_mean", "training mean", GREY, "_", (0, (2, 1)), ""),
        ("other_contexts", "mean of other contexts", INK, "|", (0, (3, 1, 1, 1, 1, 1)), ""),
        ("shrunk", "shrunk training mean", GREY, "|", (0, (4, 1)), ""),
        ("ridge_pc", "ridge on components", GREY, "x", (0, (6, 1, 1, 1)), ""),
        ("matching_mean", "mean of its singles", GREY, "+", (0, (1, 2)), ""),
        ("no_change", "no change", GREY, "_", (0, (1, 3)), ""),
        ("ceiling", "ceiling", INK, "_", "-", ""),
    )
}

#: Order of rows, legends and bars: the eight rows of the paper's table, then the others.
ORDER = (*TABLE_1, *(m for m in LOOKS if m not in TABLE_1))


def look(model: str) -> Look:
    """The look of a model; DataError with the nearest name for an unknown one."""
    if model not in LOOKS:
        raise DataError(f"figure table, column 'model': {model!r} has no place in the palette.{nearest(model, LOOKS)}")
    return LOOKS[model]


def label(model: str) -> str:
    """The name of a model as figures write it."""
    return look(model).label


def models_in(column: Iterable[str], *, baselines: bool = False) -> list[str]:
    """The models of a column, or its baselines, in the order of all figures."""
    found = set(column)
    for model in sorted(found):
        look(model)
    return [m for m in ORDER if m in found and (m not in (*ROWS, PREDICTION)) == baselines]


def need(table: pd.DataFrame, columns: Iterable[str], name: str) -> pd.DataFrame:
    """The table itself if it has rows and these columns; DataError otherwise."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise DataError(f"{name}: no column {some(missing)}.{nearest(missing[0], table.columns)}")
    if table.empty:
        raise DataError(f"{name}: the table has no rows, so there is nothing to draw.")
    return table


def need_matrix(*named: tuple[str, pd.DataFrame]) -> None:
    """DataError unless the matrices of one figure have entries and equal row and column names."""
    (first_name, first), *others = named
    if first.empty:
        raise DataError(f"{first_name}: the matrix has no entries, so there is nothing to draw.")
    for name, matrix in others:
        for axis in ("index", "columns"):
            here, there = getattr(first, axis), getattr(matrix, axis)
            if not here.equals(there):
                odd = here.symmetric_difference(there, sort=False)
                reason = f"the difference: {some(odd)}" if len(odd) else "the order differs"
                raise DataError(f"{name}, {axis}: not the same names as in {first_name} ({reason}).")


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with the settings of RC and leave those of the caller unchanged."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcParams.update(mpl.rcParamsDefault)
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return wrapped


class _Layout(ConstrainedLayoutEngine):
    """The constrained layout with rounded positions.

    Its solver goes through its variables by their addresses in memory, so its last digits differ from run to run, and
    with them the bytes of a PDF (0 or -0).
    """

    def execute(self, fig: Figure) -> None:
        super().execute(fig)
        for part in _parts(fig):
            part.bbox_relative.set_points(_rounded(part.bbox_relative.get_points()))
        for ax in fig.axes:
            arranged = ax.get_in_layout()
            ax.set_position(Bbox(_rounded(ax.get_position(original=True).get_points())), which="original")
            ax.set_in_layout(arranged)  # a position given by hand would be left out of the next layout


def _parts(fig: Figure | SubFigure) -> list[SubFigure]:
    """All parts of a figure, and their parts."""
    return [deeper for part in fig.subfigs for deeper in (part, *_parts(part))]


def _rounded(points: np.ndarray) -> np.ndarray:
    return np.round(points, 9) + 0.0  # no -0


def figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of this size in inches on an Agg canvas."""
    fig = Figure(figsize=(width, height), layout=_Layout(w_pad=0.06, h_pad=0.06) if layout else None)
    FigureCanvasAgg(fig)
    return fig


def side_by_side(fig: Figure | SubFigure, widths: Sequence[float]) -> list[SubFigure]:
    """Parts of a figure from left to right."""
    return list(fig.subfigures(1, len(widths), width_ratios=list(widths), squeeze=False)[0])


def stacked(fig: Figure | SubFigure, heights: Sequence[float]) -> list[SubFigure]:
    """Parts of a figure from top to bottom."""
    return list(fig.subfigures(len(heights), 1, height_ratios=list(heights), squeeze=False)[:, 0])


def letter(ax: Axes, text: str, title: str = "", *, pad: float = 5) -> None:
    """A panel's bold letter and title, above its left edge; ``pad``: points between them and the panel."""
    ax.set_title(f"$\\bf{{{text}}}$  {title}" if text else title, loc="left", pad=pad)


def note(fig: Figure, text: str) -> None:
    """Grey sentences above all panels (protocol, seeds, what was chosen on validation data), broken to the width."""
    fig.suptitle(wrapped_note(text, fig.get_figwidth()), x=0.008, ha="left", fontsize=7.5, color="#5E5E5E")


def nothing(sentence: str, label: str) -> Figure:
    """A figure that says in a sentence why there is nothing to draw; ``label`` stands for its only axes."""
    fig = figure(7.4, 1.2)
    note(fig, sentence)
    ax = fig.subplots()
    ax.set_axis_off()
    ax.set_label(label)
    return fig


def wrapped_note(text: str, width: float) -> str:
    """A note in lines that fit a width in inches; its own line breaks stay."""
    most = int(width / 0.056)
    return "\n".join("\n".join(textwrap.wrap(line, most, break_on_hyphens=False)) for line in text.split("\n"))


def plain(name: object, most: int = 22) -> str:
    """A name from the data as text to draw: one line of at most `most` characters, with dollar signs escaped."""
    text = re.sub(r"[^\S ]+", " ", str(name))  # line breaks and tabs
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


def number(value: float, decimals: int, sign: str = "") -> str:
    """'−1756.27' with a true minus sign; a dash for no number."""
    if not math.isfinite(value):
        return "–"
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def spread(counts: Iterable[int], unit: str = "seed") -> str:
    """How rows were averaged: 'mean ± sd over 5 seeds', 'one seed'. `counts`: the number of runs of each row."""
    numbers = sorted({int(n) for n in counts if n > 0})
    if not numbers or numbers[-1] == 1:
        return f"one {unit}"
    return (
        f"mean ± sd over {numbers[0]} to {numbers[-1]} {unit}s"
        if len(numbers) > 1
        else (f"mean ± sd over {numbers[0]} {unit}s")
    )


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis from low to high as plain numbers: at 1, 2 and 5 if few decades, else at decades."""
    few = high < 200 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    axis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def keys(models: Iterable[str], kind: str = "marker") -> list[Artist]:
    """Legend handles of models: ``marker``, ``line``, ``both`` or ``bar``."""
    handles: list[Artist] = []
    for m in models:
        o = look(m)
        if kind == "bar":
            handles.append(Patch(facecolor=o.colour, edgecolor="white", hatch=o.hatch, label=o.label))
        else:
            style: dict[str, Any] = {"ls": "", "marker": o.marker} if kind == "marker" else {"ls": o.line}
            style |= {"marker": o.marker} if kind == "both" else {}
            handles.append(Line2D([], [], color=o.colour, label=o.label, mec=INK, mew=0.4, **style))
    return handles


def interval(ax: Axes, x, y, sd, model: str, *, horizontal: bool = False, **kwargs: Any) -> None:
    """The mean as the model's marker, with a bar of ± 1 sd unless there is only one run."""
    o = look(model)
    err = pd.Series(sd, dtype=float).fillna(0).to_numpy()
    style: dict[str, Any] = {"fmt": o.marker, "color": o.colour, "mec": INK, "mew": 0.4}
    style |= {"elinewidth": 1.3, "capsize": 0, "xerr" if horizontal else "yerr": err}
    ax.errorbar(x, y, **(style | kwargs))


def save(fig: Figure, stem: str | Path, data: Mapping[str, pd.DataFrame | pd.Series | None]) -> list[Path]:
    """Write STEM.png (200 dpi), STEM.pdf and the data as tab-separated text; equal figures give equal bytes.

    A table named '' gives STEM.tsv, others STEM.NAME.tsv; None gives a table without rows. Row names are written
    unless they are a plain row number. Returns the paths written; DataError without data.
    """
    if not data:
        raise DataError(f"{stem}: a figure is saved with its data, but none was given.")
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf"))
    with mpl.rc_context(RC):
        fig.set_dpi(200)
        if fig.axes and (layout := fig.get_layout_engine()):
            layout.execute(fig)
        fig.set_layout_engine(None)  # else it computes the same layout, which is slow, four times
        with atomic(png) as path:
            fig.savefig(path, dpi=200, metadata={"Software": None})
        with atomic(pdf) as path:
            fig.savefig(path, dpi=300, metadata={"CreationDate": None, "ModDate": None})
    targets = {stem.with_name(f"{stem.name}{f'.{n}' if n else ''}.tsv"): t for n, t in data.items()}
    for target, content in targets.items():
        table = pd.DataFrame(columns=["name"]) if content is None else content
        table = table.to_frame() if isinstance(table, pd.Series) else table
        named = not isinstance(table.index, pd.RangeIndex)
        write(table, target, digits=DIGITS, index_label=str(table.index.name or "name") if named else None)
    return [png, pdf, *targets]
