"""The one look of all figures: palette, names, panel helpers, and writing to disk.

Figures are built without pyplot, so that importing this changes nobody's backend or settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import DataError, nearest, some
from samsvae.files import atomic

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
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
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "samsvae",
    "image.cmap": "viridis",
}

INK, GREY, PALE = "#222222", "#8A8A8A", "#E4E4E4"
DIVERGING, SEQUENTIAL = "RdBu_r", "Greys"


@dataclass(frozen=True)
class Look:
    """How one model is drawn, everywhere: colour by method, the rest by inference."""

    label: str
    colour: str
    marker: str
    line: str | tuple
    hatch: str


_DASH = {"mf": (0, (1, 1.2)), "e": (0, (3.5, 1.2, 1, 1.2)), "z": (0, (4, 1.4))}

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
        ("svae", "sVAE", "#8257C2", "H", "-", ""),
        ("svae_plus_lopez", "SVAE+ (Lopez)", "#56165C", "8", "-", ""),
        # what is known without a model
        ("intercept_nb", "intercept only (NB)", INK, "_", (0, (1, 1)), ""),
        ("additive", "additive", INK, "_", (0, (5, 2)), ""),
        ("mean_of_perturbations", "mean of perturbations", INK, "_", (0, (1, 1.2)), ""),
        ("train_mean", "training mean", GREY, "_", (0, (2, 1)), ""),
        ("ridge", "ridge", GREY, "_", (0, (6, 1, 1, 1)), ""),
    )
}

#: Order of legends and bars: the paper's eight rows, then the others.
ORDER = (*TABLE_1, *(m for m in LOOKS if m not in TABLE_1))


def look(model: str) -> Look:
    """How a model is drawn; DataError with the nearest name for one that no table can hold."""
    if model not in LOOKS:
        raise DataError(f"figure table, column 'model': {model!r} has no place in the palette.{nearest(model, LOOKS)}")
    return LOOKS[model]


def models_in(column: Iterable[str], *, baselines: bool = False) -> list[str]:
    """The models of a column in the order of all figures, without (or only) the baselines."""
    found = set(column)
    for model in sorted(found):
        look(model)
    return [m for m in ORDER if m in found and (m not in ROWS) == baselines]


def need(table: pd.DataFrame, columns: Iterable[str], name: str) -> pd.DataFrame:
    """The table itself, if it has rows and these columns; DataError otherwise."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise DataError(f"{name}: no column {some(missing)}.{nearest(missing[0], table.columns)}")
    if table.empty:
        raise DataError(f"{name}: the table has no rows: there is nothing to draw.")
    return table


def need_matrix(*named: tuple[str, pd.DataFrame]) -> None:
    """Matrices that are drawn together have entries, and the same row and column names; DataError otherwise."""
    (first_name, first), *others = named
    if first.empty:
        raise DataError(f"{first_name}: the matrix has no entries: there is nothing to draw.")
    for name, matrix in others:
        for axis in ("index", "columns"):
            here, there = getattr(first, axis), getattr(matrix, axis)
            if not here.equals(there):
                odd = here.symmetric_difference(there, sort=False)
                what = f"unlike {some(odd)}" if len(odd) else "in another order"
                raise DataError(f"{name}, {axis}: not those of {first_name} ({what}).")


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the settings of RC and leave the caller's as they were."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcParams.update(mpl.rcParamsDefault)
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return wrapped


def figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure on an Agg canvas; inches."""
    fig = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(fig)
    if layout == "constrained":
        fig.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return fig


def letter(ax: Axes, text: str, title: str = "") -> None:
    """A panel's bold letter and title, above its left edge."""
    ax.set_title(f"$\\bf{{{text}}}$  {title}" if text else title, loc="left", pad=5)


def note(fig: Figure, text: str) -> None:
    """A short grey line above all panels: the protocol that the figure's numbers follow."""
    fig.suptitle(text, x=0.008, ha="left", fontsize=7.5, color="#5E5E5E")


def keys(models: Iterable[str], kind: str = "marker") -> list:
    """Legend handles of models, as their marker, line or bar."""
    handles = []
    for m in models:
        o = look(m)
        if kind == "bar":
            patch = mpl.patches.Patch(facecolor=o.colour, edgecolor="white", hatch=o.hatch, label=o.label)
            handles.append(patch)
        else:
            style = {"ls": "", "marker": o.marker} if kind == "marker" else {"ls": o.line}
            style |= {"marker": o.marker} if kind == "both" else {}
            handles.append(Line2D([], [], color=o.colour, label=o.label, mec=INK, mew=0.4, **style))
    return handles


def interval(ax: Axes, x, y, sd, model: str, *, horizontal: bool = False, **kwargs) -> None:
    """Mean as the model's marker with a bar of one sd; no bar where there is one run."""
    o = look(model)
    err = pd.Series(sd, dtype=float).fillna(0).to_numpy()
    bars = {"xerr" if horizontal else "yerr": err}
    style = {"fmt": o.marker, "color": o.colour, "mec": INK, "mew": 0.4, "elinewidth": 1.3, "capsize": 0}
    ax.errorbar(x, y, **bars, **(style | kwargs))


def save(fig: Figure, stem: str | Path, data: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write STEM.png (200 dpi), STEM.pdf and the data as tab-separated text; the same bytes every time.

    A table named '' gives STEM.tsv, others STEM.NAME.tsv. An index with names (a matrix) is written, a plain row
    number is not. Returns the paths written; DataError without data.
    """
    if not data:
        raise DataError(f"{stem}: a figure is saved with its data, and none was given.")
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf"))
    with mpl.rc_context(RC):
        with atomic(png) as path:
            fig.savefig(path, dpi=200, metadata={"Software": None})
        with atomic(pdf) as path:
            fig.savefig(path, dpi=300, metadata={"CreationDate": None, "ModDate": None})
    tables = {stem.with_name(f"{stem.name}{f'.{n}' if n else ''}.tsv"): t for n, t in data.items()}
    for target, table in tables.items():
        named = not isinstance(table.index, pd.RangeIndex)
        label = (table.index.name or "name") if named else None
        with atomic(target) as path:
            table.to_csv(path, sep="\t", index=named, index_label=label, float_format="%.6g", lineterminator="\n")
    return [png, pdf, *tables]
