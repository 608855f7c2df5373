"""The report page from the runs that have finished so far, without Snakemake and next to a study that is running.

Nothing is written outside the folder of the preview: figures of a study that has finished stay as they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from samsvae.config.grid import Run, grid_table, run_settings
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import DataError, SamsvaeError
from samsvae.evaluation.bound import collect_bounds
from samsvae.evaluation.collect import RULES, collect_histories, collect_scores
from samsvae.evaluation.masks import collect_masks
from samsvae.evaluation.transfer_tables import collect_transfer
from samsvae.evaluation.worth import collect_worth
from samsvae.figures.write import write_figure
from samsvae.files import verify, write_json, write_table
from samsvae.study.code_digest import scoring_rules
from samsvae.study.cost import collect_cost
from samsvae.study.figure_plan import FigurePlan
from samsvae.study.plan import RUN_FILES, Plan
from samsvae.study.report_contents import report_of
from samsvae.study.reproduction import reproduction
from samsvae.study.times import seconds_of
from samsvae.tables import PRECISE, of_experiments, read, write

log = logging.getLogger(__name__)


def write_preview(config: Mapping, *, resources: str | Path) -> Path:
    """Draw what the finished runs allow and return the path of the page (RESULTS/preview/report.html).

    ``config``: the merged configuration, whose paths start in the current folder. ``resources``: the folder with the
    published tables. A figure whose files do not exist yet is left out, with a line in the log. Runs made with other
    settings than the current ones have not finished, as in ``samsvae progress``. DataError if no run has finished.
    """
    folders = build(Study, config).pathvars
    results = Path(folders.folder("results"))
    plan = Plan(config, results=results, benchmarks=folders.folder("benchmarks"))
    every = sum(map(len, plan.runs.values()))
    finished = {name: [run for run in found.values() if is_finished(plan, run)] for name, found in plan.runs.items()}
    any_finished = any(finished.values())
    finished = {name: _of_same_rules(plan, name, found) for name, found in finished.items()}
    n = sum(map(len, finished.values()))
    if not n and any_finished:
        raise DataError(
            f"{results}: runs have finished, but the current code has scored none of them yet. Run the workflow, which "
            "scores them again."
        )
    if not n:
        raise DataError(f"{results}: none of the {every:,} runs has finished, so there is nothing to preview yet.")
    out = results / "preview"
    for file in FigurePlan(plan, resources=resources, out=out).files():  # those of an earlier preview
        Path(file).unlink(missing_ok=True)
    plan = plan.only({name: found for name, found in finished.items() if found})
    pictures = FigurePlan(plan, resources=resources, out=out)
    for experiment in plan.runs:
        _write_tables(plan, pictures, experiment, out / experiment)
        if not pictures.figures(experiment):
            log.info("%s: no figures yet: none of the runs that they compare has finished", experiment)
    for experiment, figure in tqdm(pictures.every(), "drawing", unit="figure", disable=None):  # on a terminal alone
        _draw(pictures, experiment, figure)
    write(of_experiments(str(out / name / "cost.tsv") for name in plan.runs), out / "cost.tsv")
    if published := pictures.published():
        write(reproduction(pictures.reproductions()), published[0])
    write_json(json.loads(plan.config_in_force()), out / "config.json")
    page = out / "report.html"
    report_of(
        page,
        pictures.contents(),
        title=plan.study.title,
        cost=out / "cost.tsv",
        config=out / "config.json",
        published=published,
        notice=f"PREVIEW: {n:,} of {every:,} trainings have finished.",
    )
    return page


def is_finished(plan: Plan, run: Run) -> bool:
    """Whether all files of a run exist, made with the current settings."""
    exist = all(Path(file).is_file() for file in plan.files_of(run).values())
    return exist and seconds_of(Path(plan.run_file(run, RUN_FILES["run"])), run_settings(run)) is not None


def _of_same_rules(plan: Plan, experiment: str, found: list[Run]) -> list[Run]:
    """The runs whose scores can be compared: all if one version scored them, else those of the current code."""
    rules, current = {}, scoring_rules()
    for run in found:
        tables = _existing([plan.run_file(run, "scores.tsv"), plan.split_file(run, "baselines.tsv")])
        rules[run.id] = {_rules(path) for path in tables}
    if len({each for pair in rules.values() for each in pair}) <= 1:
        return found
    kept = [run for run in found if rules[run.id] == {current}]
    log.info("%s: %d runs are left out until the current code has scored them", experiment, len(found) - len(kept))
    return kept


def _rules(path: str) -> str:
    """The rules that the first row of a table of scores names; '' if it names none."""
    with open(path, encoding="utf-8") as lines:
        head, row = (lines.readline().rstrip("\n").split("\t") for _ in range(2))
    return dict(zip(head, row, strict=False)).get(RULES, "")


def _write_tables(plan: Plan, pictures: FigurePlan, experiment: str, folder: Path) -> None:
    """The tables of an experiment, from its finished runs."""
    found: list[Run] = list(plan.runs[experiment].values())
    write_table(grid_table(found), folder / "grid.tsv")
    grid = read(folder / "grid.tsv")
    pathways = _existing(pictures.pathway_files(experiment))
    scores = plan.run_files(found, "scores.tsv")
    rules = {_rules(path) for path in scores}
    baselines = _existing([*plan.split_files(found, "baselines.tsv"), *pictures.pathway_baselines(experiment)])
    baselines = [path for path in baselines if _rules(path) in rules]  # those of pathways may be older
    write(collect_scores(grid, scores, pathways, baselines), folder / "scores.tsv")
    write(collect_histories(grid, plan.run_files(found, "history.tsv")), folder / "histories.tsv")
    write(collect_bounds(grid, plan.run_files(found, "bound.tsv")), folder / "bound.tsv")
    masked = [run for run in plan.masked(experiment) if Path(plan.data_file(run.dataset, "screen.h5ad")).is_file()]
    matrices, screens = plan.run_files(masked, "perturbations.h5ad"), plan.data_files(masked, "screen.h5ad")
    write(collect_masks(grid, matrices, screens), folder / "masks.tsv")
    files = [plan.run_files(found, name) for name in ("worth.tsv", "worth_conditions.tsv")]
    files += [_existing(plan.split_files(found, name)) for name in ("worth.tsv", "worth_conditions.tsv")]
    if all(files):  # a split has its tables before its runs, unless they come from an older version
        for table, name in zip(collect_worth(grid, *files), ("worth", "worth_conditions"), strict=True):
            write(table, folder / f"{name}.tsv", digits=PRECISE)
    if plan.study.settings[experiment].transfer:
        scored = _existing(plan.split_files(found, "transfer.tsv"))
        write(collect_transfer(grid, plan.run_files(found, "transfer.tsv"), scored), folder / "transfer.tsv")
    benchmarks = {run: _existing(paths) for run, paths in plan.benchmarks_of(experiment).items()}
    write(collect_cost(grid, plan.run_files(found, "run.json"), benchmarks), folder / "cost.tsv")


def _draw(pictures: FigurePlan, experiment: str, figure: str) -> None:
    """Draw one figure, if its files exist."""
    there: dict[str, str | list[str]] = {}
    for name, files in pictures.inputs(experiment, figure).items():
        found = _existing([files] if isinstance(files, str) else files)
        if files and not found:
            log.info("%s_%s: not drawn yet: the files of its %s do not exist yet", experiment, figure, name)
            return
        there[name] = found[0] if isinstance(files, str) else found
    try:
        verify(path for files in there.values() for path in ([files] if isinstance(files, str) else files))
        write_figure(figure, there, pictures.settings(experiment, figure), pictures.picture(experiment, figure))
    except SamsvaeError as error:  # there may be too few runs for the figure to compare
        log.info("%s_%s: not drawn yet (%s)", experiment, figure, error)


def _existing(paths: list[str]) -> list[str]:
    return [path for path in paths if Path(path).is_file()]
