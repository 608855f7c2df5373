"""The report: one self-contained HTML page with every figure, score table and cost; and Snakemake's own report.

The template is report.html.j2. The page needs no network, and the same inputs give the same bytes.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from samsvae import tables
from samsvae.errors import DataError, SamsvaeError, nearest
from samsvae.files import atomic
from samsvae.study.report_tables import (
    Column,
    Table,
    key_table,
    reproductions,
    score_table,
    verdict_sentences,
    whole_table,
)
from samsvae.text import span
from samsvae.version import VERSION

log = logging.getLogger(__name__)

#: Rows that a table shows at first; a button shows more.
SHOWN_ROWS = 24


@dataclass(frozen=True)
class FigureEntry:
    """A figure of one experiment.

    ``caption``: plain text, paragraphs separated by a blank line, with ``**bold**``, ``*italic*`` and `code`.
    ``tables``: the data behind the figure.
    """

    experiment: str
    name: str
    title: str
    caption: str
    png: Path
    pdf: Path
    tables: tuple[Path, ...]


@dataclass(frozen=True)
class ExperimentEntry:
    """An experiment: a line about its screen, the number of its runs, its scores, its figures in reading order."""

    name: str
    screen: str
    runs: int
    scores: Path | None
    figures: tuple[FigureEntry, ...]
    files: tuple[Path, ...]


class Link(NamedTuple):
    """A file: its name, its path relative to the page's folder, and the same path as a URL."""

    short: str
    name: str
    url: str


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    entry: FigureEntry
    id: str
    number: int
    caption: Markup
    source: str
    size: tuple[int, int]
    links: list[tuple[str, list[Link]]]


@dataclass(frozen=True)
class Section:
    """An experiment as the page shows it."""

    entry: ExperimentEntry
    id: str
    key: Table | None
    verdicts: list[tuple[str, str]]
    pictures: list[Picture]
    scores: Table | None
    scores_link: Link | None
    files: list[Link]


def write_report(
    out: Path,
    *,
    title: str,
    experiments: Sequence[ExperimentEntry],
    cost: Path | None,
    config: Path | None,
    provenance: Path | None,
    published: Path | None = None,
    notice: str = "",
) -> None:
    """Write the report of some experiments as one HTML page that needs no other file.

    Parameters
    ----------
    out
        The page. Links to the inputs are relative to its folder.
    title
        Heading of the page.
    experiments
        The experiments and their figures, in reading order.
    cost
        Costs of all runs: a row per run with at least the columns device, seconds and torch.
    config
        The complete configuration, JSON.
    provenance
        Snakemake's own report, for a link.
    published
        Published numbers next to ours (study.reproduction).
    notice
        Text of a banner at the top, such as how much of the study has finished.

    Raises
    ------
    DataError
        If an input is missing or damaged: one sentence with its name.
    """
    out = Path(out)
    others = {"cost": cost, "config": config, "provenance": provenance, "published": published}
    for path in (*others.values(), *(path for entry in experiments for path in _files(entry))):
        if path is not None and not path.is_file():
            raise DataError(f"{path}: no such file (an input of the report {out}).")
    costs = None if cost is None else tables.read(cost)
    content = {
        "title": title,
        "notice": notice,
        "facts": _key_numbers(experiments, costs, cost),
        "sections": _sections(experiments, out.parent),
        "costs": None if costs is None else _cost_table(costs),
        "reproduction": None if published is None else reproductions(tables.read(published)),
        "data": _data_sets(experiments),
        "config": None if config is None else _pretty_json(config),
        "links": {name: path and _link(path, out.parent) for name, path in others.items()},
        "shown_rows": SHOWN_ROWS,
    }
    page = _render(content)
    with atomic(out) as aside:
        aside.write_text(page, encoding="utf-8", newline="\n")


def _render(content: Mapping[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(content)


def write_provenance(snakefile: str | Path, config: str | Path, targets: Sequence[str], path: str | Path) -> None:
    """Run a second Snakemake that reports how some targets were made, with the configuration in a file.

    It may run inside a workflow, which holds the lock. SamsvaeError with its last lines if it fails.
    """
    with atomic(path) as aside:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--configfile", str(config)]
        command += ["--nolock", "--cores", "1", "--report", str(aside), "--", *targets]
        done = subprocess.run(command, capture_output=True, text=True)
        log.info("%s", done.stderr)
        if done.returncode:
            raise SamsvaeError(f"{path}: the report failed: {' '.join(done.stderr.splitlines()[-5:])}")


# ---- Experiments and figures ---------------------------------------------------------------------------------------


def _files(entry: ExperimentEntry) -> Iterator[Path]:
    """Every file that the page shows or links for an experiment."""
    for figure in entry.figures:
        yield from (figure.png, figure.pdf, *figure.tables)
    yield from (*([] if entry.scores is None else [entry.scores]), *entry.files)


def _sections(experiments: Sequence[ExperimentEntry], folder: Path) -> list[Section]:
    sections, number = [], 0
    for entry in experiments:
        pictures = []
        for figure in entry.figures:
            number += 1
            pictures.append(_picture(figure, number, folder))
        scores = None if entry.scores is None else tables.read(entry.scores)
        sections.append(
            Section(
                entry,
                id=_slug(entry.name),
                key=None if scores is None else key_table(scores),
                verdicts=_verdicts(entry),
                pictures=pictures,
                scores=None if scores is None else score_table(scores),
                scores_link=None if entry.scores is None else _link(entry.scores, folder),
                files=[_link(path, folder) for path in dict.fromkeys(_files(entry))],
            )
        )
    return sections


def _verdicts(entry: ExperimentEntry) -> list[tuple[str, str]]:
    """What each headline metric says of the models, from the tables next to the figures: metric, sentence."""
    names = [f"{figure}.verdicts.tsv" for figure in ("worth", "bound")]
    paths = [path for figure in entry.figures for path in figure.tables if path.name in names and path.is_file()]
    found = [table for table in map(tables.read, paths) if len(table)]
    return [sentence for table in found for sentence in verdict_sentences(table)]


def _picture(entry: FigureEntry, number: int, folder: Path) -> Picture:
    links = [("PNG", [_link(entry.png, folder)]), ("PDF", [_link(entry.pdf, folder)])]
    if entry.tables:
        links.append(("Data", [_link(path, folder) for path in entry.tables]))
    content = entry.png.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise DataError(f"{entry.png}: not a PNG image.")
    return Picture(
        entry,
        id=f"{_slug(entry.experiment)}.{_slug(entry.name)}",
        number=number,
        caption=markup(entry.caption),
        source=f"data:image/png;base64,{base64.b64encode(content).decode()}",
        size=struct.unpack(">II", content[16:24]),
        links=links,
    )


_MARKS = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<strong>\S(?:.*?\S)??)\*\*|\*(?P<em>[^\s*](?:[^*]*[^\s*])?)\*", re.DOTALL
)


def markup(caption: str) -> Markup:
    """A caption as HTML: paragraphs at blank lines, bold, italic and code; everything else is escaped."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", caption) if part.strip()]
    return Markup("\n").join(Markup("<p>{}</p>").format(_inline(part)) for part in paragraphs)


def _inline(text: str) -> Markup:
    html, end = Markup(""), 0
    for match in _MARKS.finditer(text):
        tag = str(match.lastgroup)
        inside = match[tag]
        content = escape(inside) if tag == "code" else _inline(inside)
        html += escape(text[end : match.start()]) + Markup("<{0}>{1}</{0}>").format(Markup(tag), content)
        end = match.end()
    return html + escape(text[end:])


def _link(path: Path, folder: Path) -> Link:
    name = Path(os.path.relpath(path, folder)).as_posix()
    return Link(path.name, name, quote(name))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


# ---- Numbers and tables --------------------------------------------------------------------------------------------


def _key_numbers(
    experiments: Sequence[ExperimentEntry], costs: pd.DataFrame | None, path: Path | None
) -> list[tuple[str, str]]:
    """The numbers at the top of the page: term, value."""
    runs = sum(entry.runs for entry in experiments)
    facts = [("Experiments", f"{len(experiments):,}"), ("Trainings", f"{runs:,}")]
    if costs is not None:
        for column in ("device", "seconds", "torch"):
            if column not in costs:
                raise DataError(f"{path}: no column {column!r}.{nearest(column, costs.columns)}")
        facts.append(("Total training time (h:mm:ss)", span(float(costs["seconds"].sum()))))
        facts.append(("Device", _distinct(costs["device"])))
    facts.append(("samsvae", VERSION))
    if costs is not None:
        facts.append(("torch", _distinct(costs["torch"])))
    return facts


def _distinct(values: pd.Series) -> str:
    return ", ".join(str(value) for value in values.dropna().unique()) or "unknown"


def _cost_table(costs: pd.DataFrame) -> Table:
    """One row per run; the experiment first. A run's id contains its model."""
    first = [column for column in ("experiment", "run") if column in costs]
    return whole_table(costs[[*first, *(c for c in costs if c not in (*first, "model"))]])


def _data_sets(experiments: Sequence[ExperimentEntry]) -> Table | None:
    """The facts of the experiments' data cards side by side: a row per item, a column per experiment."""
    facts: dict[str, Mapping[str, str]] = {}
    for entry in experiments:
        paths = [path for figure in entry.figures for path in figure.tables if re.search(r"\bfacts\.tsv$", path.name)]
        if paths:
            table = pd.read_csv(paths[0], sep="\t", dtype=str, keep_default_na=False)
            facts[entry.name] = dict(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True))
    items = dict.fromkeys(item for table in facts.values() for item in table)
    rows = [[item, *(table.get(item, "") for table in facts.values())] for item in items]
    columns = [Column("Item", "", False), *(Column(name, "", False) for name in facts)]
    return Table(columns, rows, len(rows), []) if rows else None


def _pretty_json(path: Path) -> str:
    try:
        return json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2, sort_keys=True, ensure_ascii=False)
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from None
