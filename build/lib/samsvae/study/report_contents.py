"""What the report shows, from the plan's plain values: figures with their captions and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samsvae.figures.registry import FIGURES
from samsvae.study.report import ExperimentEntry, FigureEntry, write_report

#: Tables of an experiment that the report links.
TABLES = ("grid", "scores", "bound", "transfer", "worth", "worth_conditions", "masks", "histories", "cost")


def report_of(
    out: str | Path,
    experiments: Sequence[Mapping[str, Any]],
    *,
    title: str,
    cost: str | Path | None = None,
    config: str | Path | None = None,
    provenance: str | Path | None = None,
    published: Sequence[str | Path] = (),
    notice: str = "",
) -> None:
    """Write the report page. ``experiments``: ``FigurePlan.contents``; figures without a picture are left out.

    ``published``: ``FigurePlan.published``.
    """
    entries = [_experiment(each) for each in experiments]
    files = {name: Path(path) if path else None for name, path in
             {"cost": cost, "config": config, "provenance": provenance}.items()}  # fmt: skip
    files["published"] = next(map(Path, published), None)
    write_report(Path(out), title=title, experiments=entries, notice=notice, **files)


def _experiment(each: Mapping[str, Any]) -> ExperimentEntry:
    folder = Path(each["folder"])
    figures = [_figure(each["name"], figure) for figure in each["figures"]]
    scores = folder / "scores.tsv"
    return ExperimentEntry(
        name=each["name"],
        screen=each["screen"],
        runs=each["runs"],
        scores=scores if scores.is_file() else None,
        figures=tuple(figure for figure in figures if figure.png.is_file()),
        files=tuple(path for path in (folder / f"{name}.tsv" for name in TABLES) if path.is_file()),
    )


def _figure(experiment: str, figure: Mapping[str, Any]) -> FigureEntry:
    stem, row = figure["stem"], FIGURES[figure["name"]]
    tables = tuple(Path(f"{stem}.{name}.tsv" if name else f"{stem}.tsv") for name in figure["saved"])
    return FigureEntry(
        experiment=experiment,
        name=row.name,
        title=row.title,
        caption=row.caption,
        png=Path(f"{stem}.png"),
        pdf=Path(f"{stem}.pdf"),
        tables=tables,
    )
